"""A closed-loop gRPC client that costs little: it keeps `concurrency` unary calls under way and times each.

grpcio's clients spend about as much processor time on a call as a server does.  On a machine with two CPUs they would measure themselves.
This one speaks HTTP/2 itself, as far as one method with one request and one expected reply needs it, for some microseconds a call.
Every reply is compared with the expected message; anything else raises LoadError.

    python grpc_load.py PORT PATH REQUEST REPLY CONCURRENCY WARM_UP SECONDS [CA]     (messages in hex; JSON to stdout)

With a file of a CA certificate it speaks TLS, with a server of that CA called localhost.
"""

from __future__ import annotations

import json
import selectors
import socket
import ssl
import struct
import sys
import time
from dataclasses import dataclass

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
MAX_WINDOW = (1 << 31) - 1
CONNECTIONS = 4  # as many as there are calls, but no more


class LoadError(Exception):
    """The server did not answer as it should."""


@dataclass
class Load:
    """What was measured after the warm-up."""

    calls: int
    seconds: float
    latencies: list[float]  # seconds, of the calls that ended
    stuck: int  # calls that were under way all the time
    client_cpu: float  # seconds a call


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def text(value: bytes) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value


class Connection:
    """One HTTP/2 connection: start() begins a call, receive() handles what the server sent and tells which calls are over."""

    def __init__(self, port: int, path: str, request: bytes, reply: bytes, tls: ssl.SSLContext | None) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pending = int
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
            self.pending = self.sock.pending
        self.message = b"\0" + struct.pack(">I", len(request)) + request
        self.reply = b"\0" + struct.pack(">I", len(reply)) + reply
        self.window = 65535  # what we may still send
        self.next_stream = 1
        self.started: dict[int, float] = {}
        self.got: dict[int, bytes] = {}
        self.unparsed = b""
        settings = struct.pack(">HIHI", 2, 0, 4, MAX_WINDOW)  # no pushes; all streams' windows wide open
        self.output = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", frame(SETTINGS, 0, 0, settings)]
        self.output.append(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", MAX_WINDOW - 65535)))
        # HPACK: the first call enters four fields in the table (65 to 62), later ones name them.
        authority = b"127.0.0.1:%d" % port
        self.headers = (
            b"\x83\x86\x44" + text(path.encode()) + b"\x41" + text(authority) + b"\x5f" + text(b"application/grpc")
        ) + (b"\x40" + text(b"te") + text(b"trailers"))

    def start(self, now: float) -> bool:
        """Begin a call; False if the server's window does not allow it yet."""
        size = len(self.message)
        if self.window < size:
            return False
        self.window -= size
        stream = self.next_stream
        self.next_stream += 2
        self.started[stream] = now
        self.output.append(frame(HEADERS, END_HEADERS, stream, self.headers))
        self.output.append(frame(DATA, END_STREAM, stream, self.message))
        if stream == 1:
            self.headers = b"\x83\x86" + bytes([0x80 | n for n in (65, 64, 63, 62)])
        return True

    def flush(self) -> None:
        if self.output:
            data = b"".join(self.output)
            self.output.clear()
            self.sock.sendall(data)

    def receive(self) -> list[int]:
        data = self.sock.recv(1 << 18)
        if not data:
            raise LoadError("the server closed the connection")
        while self.pending():  # ssl's recv returns one record
            data += self.sock.recv(1 << 18)
        data = self.unparsed + data
        ended = []
        at, end = 0, len(data)
        while end - at >= 9:
            head, flags, stream = struct.unpack_from(">IBI", data, at)
            stop = at + 9 + (head >> 8)
            if stop > end:
                break
            kind = head & 0xFF
            if kind == DATA:
                self.got[stream] = self.got.get(stream, b"") + data[at + 9 : stop]
            elif kind == HEADERS or kind == CONTINUATION:
                pass
            elif kind == PING and not flags & ACK:
                self.output.append(frame(PING, ACK, 0, data[at + 9 : stop]))
            elif kind == SETTINGS and not flags & ACK:
                self.output.append(frame(SETTINGS, ACK, 0))
            elif kind == WINDOW_UPDATE and stream == 0:
                self.window += struct.unpack_from(">I", data, at + 9)[0]
            elif kind in (RST_STREAM, GOAWAY):
                raise LoadError(f"the server refused: frame {kind}, {data[at + 9 : stop]!r}")
            if kind <= HEADERS and flags & END_STREAM:
                if self.got.pop(stream, b"") != self.reply:
                    raise LoadError("a call failed or its reply was wrong")
                ended.append(stream)
            at = stop
        self.unparsed = data[at:]
        return ended


def run(
    port: int,
    path: str,
    request: bytes,
    reply: bytes,
    concurrency: int,
    warm_up: float,
    seconds: float,
    ca: str | None = None,
) -> Load:
    """Keep `concurrency` calls under way for warm_up + seconds; measure during the latter."""
    tls = None
    if ca is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.load_verify_locations(ca)
        tls.set_alpn_protocols(["h2"])
    connections = [Connection(port, path, request, reply, tls) for _ in range(min(CONNECTIONS, concurrency))]
    selector = selectors.DefaultSelector()
    clock = time.perf_counter
    waiting = dict.fromkeys(connections, 0)  # calls that a window does not allow yet
    for c in connections:
        selector.register(c.sock, selectors.EVENT_READ, c)
    for i in range(concurrency):
        connections[i % len(connections)].start(clock())
    latencies: list[float] = []
    begin = clock() + warm_up
    finish = begin + seconds
    cpu = 0.0
    measuring = False
    try:
        for c in connections:
            c.flush()
        while True:
            ready = selector.select(10)
            if not ready:
                raise LoadError("no reply for 10 s")
            now = clock()
            if not measuring and now >= begin:
                begin, finish, measuring, cpu = now, now + seconds, True, time.process_time()
            if now >= finish:
                break
            for key, _ in ready:
                c = key.data
                ended = c.receive()
                now = clock()
                for stream in ended:
                    began = c.started.pop(stream)
                    if measuring:
                        latencies.append(now - began)
                waiting[c] += len(ended)
                while waiting[c] and c.start(now):
                    waiting[c] -= 1
                c.flush()
        cpu = time.process_time() - cpu
    finally:
        for c in connections:
            c.sock.close()
        selector.close()
    if not latencies:
        raise LoadError("no call ended in time")
    stuck = sum(began < begin for c in connections for began in c.started.values())
    return Load(len(latencies), now - begin, latencies, stuck, cpu / len(latencies))


def main() -> None:
    port, path, request, reply, concurrency, warm_up, seconds, *ca = sys.argv[1:]
    try:
        load = run(
            int(port),
            path,
            bytes.fromhex(request),
            bytes.fromhex(reply),
            int(concurrency),
            float(warm_up),
            float(seconds),
            *ca,
        )
    except (LoadError, OSError) as error:
        sys.exit(f"grpc_load: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    json.dump(vars(load), sys.stdout)


if __name__ == "__main__":
    main()
