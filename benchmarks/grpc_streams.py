"""A client of bench.Streams that costs little: it reads frames and counts bytes (see grpc_load.py)."""

from __future__ import annotations

import struct
import time

from benchmarks.grpc_load import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Connection,
    LoadError,
    frame,
)

TEXT = b"0123456789abcdef"


def string(value: bytes) -> bytes:
    """protobuf's StringValue as a message of gRPC."""
    data = b"\x0a" + bytes([len(value)]) + value
    return b"\0" + struct.pack(">I", len(data)) + data


MESSAGE = string(TEXT)


class Stream(Connection):
    """One call at a time on one connection."""

    def __init__(self, port: int, method: str) -> None:
        super().__init__(port, f"/bench.Streams/{method}", b"", b"", None)
        self.window = 65535

    def begin(self) -> int:
        stream = self.next_stream
        self.next_stream += 2
        self.output.append(frame(HEADERS, END_HEADERS, stream, self.headers))
        if stream == 1:
            self.headers = b"\x83\x86" + bytes([0x80 | n for n in (65, 64, 63, 62)])
        return stream

    def read(self) -> tuple[int, bool]:
        """Bytes of data that came, and whether the call has ended."""
        data = self.unparsed + self.sock.recv(1 << 18)
        at, end, got, ended = 0, len(data), 0, False
        if end == len(self.unparsed):
            raise LoadError("the server closed the connection")
        while end - at >= 9:
            head, flags, _ = struct.unpack_from(">IBI", data, at)
            stop = at + 9 + (head >> 8)
            if stop > end:
                break
            kind = head & 0xFF
            if kind == DATA:
                got += head >> 8
            elif kind == PING and not flags & ACK:
                self.output.append(frame(PING, ACK, 0, data[at + 9 : stop]))
            elif kind == SETTINGS and not flags & ACK:
                self.output.append(frame(SETTINGS, ACK, 0))
            elif kind == RST_STREAM:
                raise LoadError("the call was reset")
            elif kind == WINDOW_UPDATE:
                pass
            if kind <= HEADERS and flags & END_STREAM:
                ended = True
            at = stop
        self.unparsed = data[at:]
        return got, ended


def count(port: int, n: int, seconds: float) -> float:
    """Have streams of n messages sent, one after the other; messages a second."""
    client = Stream(port, "Count")
    request = string(b"%d" % n)
    total, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        stream = client.begin()
        client.output.append(frame(DATA, END_STREAM, stream, request))
        client.flush()
        got, ended = 0, False
        while not ended:
            more, ended = client.read()
            got += more
            client.flush()
        if got != n * len(MESSAGE):
            raise LoadError(f"{got} bytes came of {n} messages")
        total += n
    rate = total / (time.perf_counter() - began)
    client.sock.close()
    return rate


def ping_pong(port: int, streams: int, seconds: float) -> float:
    """On each of so many streams of a connection send a message and the next one when it has come back; messages a second."""
    client = Stream(port, "PingPong")
    size = 9 + len(MESSAGE)
    balls = {stream: frame(DATA, 0, stream, MESSAGE) for stream in [client.begin() for _ in range(streams)]}
    client.output += balls.values()
    client.flush()
    total, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        data = client.unparsed + client.sock.recv(1 << 18)
        at, end = 0, len(data)
        if end == len(client.unparsed):
            raise LoadError("the server closed the connection")
        while end - at >= 9:
            head, flags, stream = struct.unpack_from(">IBI", data, at)
            stop = at + 9 + (head >> 8)
            if stop > end:
                break
            kind = head & 0xFF
            if kind == DATA:
                if stop - at != size or flags & END_STREAM:
                    raise LoadError("another message came than was sent")
                client.output.append(balls[stream])
                total += 1
            elif kind == PING and not flags & ACK:
                client.output.append(frame(PING, ACK, 0, data[at + 9 : stop]))
            elif kind == SETTINGS and not flags & ACK:
                client.output.append(frame(SETTINGS, ACK, 0))
            elif kind in (RST_STREAM, GOAWAY):
                raise LoadError("a call was reset")
            at = stop
        client.unparsed = data[at:]
        client.flush()
    rate = total / (time.perf_counter() - began)
    client.sock.close()
    return rate
