"""Writes inputs for h2_fuzz.c to begin with: what real clients send, and one of each abuse.  python tests/fuzz/seed.py corpus

Needs gmp and grpcio.  Each input is a mode byte and records, as the head of h2_fuzz.c says; an input of a real client has the client's
bytes as they came, and an application that echoes.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
from pathlib import Path

import grpc

import gmp.grpc

GREETED, STRICT, ECHO, CHOPPED, HURRY = 1, 2, 4, 8, 16
HEADERS, PRIORITY, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 1, 2, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, PADDED, ACK = 1, 4, 8, 1


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def came(data: bytes) -> bytes:
    return b"".join(b"\0" + sized(data[i : i + 8000]) for i in range(0, len(data), 8000))


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return bytes((1, kind, flags, stream)) + sized(payload)


def request(stream: int, which: int = 2, text: bytes = b"identity", flags: int = 0) -> bytes:
    return bytes((2, flags, stream, which)) + sized(text)


def call(which: int, what: int, size: int = 0) -> bytes:
    return bytes((3, which, what)) + struct.pack(">H", size)


def time(exponent: int) -> bytes:  # 1 us << exponent
    return bytes((4, exponent))


def room(n: int) -> bytes:
    return b"\5" + struct.pack(">H", n)


def message(data: bytes, compressed: int = 0, size: int | None = None) -> bytes:
    return struct.pack(">BI", compressed, len(data) if size is None else size) + data


def made() -> dict[str, tuple[int, bytes]]:
    body = frame(0, END_STREAM, 1, message(b"hello"))
    windows = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0))
    return {
        "unary": (GREETED | ECHO, request(1) + body),
        "bidi": (GREETED | ECHO, request(1, 3) + frame(0, 0, 1, message(b"a") + message(b"b" * 90)) + body),
        "chopped": (GREETED | ECHO | CHOPPED, request(1) + body),
        "resets": (GREETED | STRICT, b"".join(request(i) + frame(RST, 0, i, b"\0\0\0\x08") for i in range(1, 21, 2))),
        "settings": (GREETED | STRICT, frame(SETTINGS, 0, 0) * 40),
        "pings": (GREETED | STRICT, frame(PING, 0, 0, bytes(8)) * 40),
        "priorities": (GREETED | STRICT, frame(PRIORITY, 0, 3, struct.pack(">IB", 0, 1)) * 40),
        "windows": (GREETED | STRICT, request(1) + frame(WINDOW, 0, 0, struct.pack(">I", 1)) * 40),
        "empty": (GREETED | STRICT, request(1) + frame(0, 0, 1) * 40),
        "padding": (GREETED | STRICT, request(1) + frame(0, PADDED, 1, b"\x08" + bytes(8)) * 40),
        "unknown": (GREETED | STRICT, frame(77, 0, 0, b"abc") * 40),
        "continuation": (GREETED | STRICT, frame(HEADERS, 0, 1, b"\x83") + frame(CONTINUATION, 0, 1) * 40),
        "headers_not_ended": (GREETED | HURRY, frame(HEADERS, 0, 1, b"\x83") + time(20)),
        "large_header": (GREETED | STRICT, request(1, 8, b"v" * 1500) + request(3, 8, b"v" * 700)),
        "hpack_bomb": (
            GREETED | STRICT,
            frame(HEADERS, END_HEADERS, 1, b"\x83\x86\x84\x40\x01x\x7f\x81\x1e" + b"v" * 3981 + b"\xbe" * 2000),
        ),
        "stalled": (GREETED | ECHO, windows + request(1, 3) + frame(0, 0, 1, message(b"x" * 500)) * 5 + time(10)),
        "unread": (GREETED | HURRY | ECHO, room(20) + request(1) + body + time(19) + room(9)),
        "long_message": (GREETED | STRICT, request(1, 3) + frame(0, 0, 1, b"\0\x7f\xff\xff\xff" + b"x" * 100)),
        "message_cut": (GREETED | ECHO, request(1, 3) + frame(0, END_STREAM, 1, b"\0\0\0\0\x09abc")),
        "bad_flag": (GREETED | ECHO, request(1, 3) + frame(0, END_STREAM, 1, b"\7\0\0\0\0")),
        "deadline": (GREETED, request(1, 1, b"10m") + call(0, 6) + time(15) + call(0, 0)),
        "timeouts": (
            GREETED,
            b"".join(request(1 + 2 * i, 0, t) for i, t in enumerate((b"", b"1", b"99999999H", b"0n", b"-1S"))),
        ),
        "encodings": (
            GREETED,
            b"".join(request(1 + 2 * i, 2, t) for i, t in enumerate((b"gzip", b"zstd", b"deflate"))),
        ),
        "paths": (
            GREETED,
            request(1, 10, b"") + request(3, 10, b"no slash") + request(5, 10, b"/u/U") + request(7, 12, b"text/plain"),
        ),
        "idle_stream": (GREETED, frame(0, 0, 9, b"x") + request(11)),
        "closed_stream": (
            GREETED | ECHO,
            request(1) + body + body + frame(WINDOW, 0, 1, struct.pack(">I", 5)) + frame(RST, 0, 1, bytes(4)),
        ),
        "self": (
            GREETED,
            frame(PRIORITY, 0, 3, struct.pack(">IB", 3, 1)) + frame(HEADERS, 36, 3, struct.pack(">IB", 3, 1) + b"\x83"),
        ),
        "windows_overflow": (
            GREETED,
            request(1) + frame(WINDOW, 0, 1, b"\x7f\xff\xff\xff") * 2 + frame(WINDOW, 0, 0, bytes(4)),
        ),
        "oversized": (GREETED, b"\0" + sized(struct.pack(">I", 20000)[1:] + b"\0\0\0\0\0\1" + bytes(50))),
        "goaway": (GREETED | ECHO, request(1, 3) + frame(GOAWAY, 0, 0, bytes(8)) + body),
        "http1": (0, came(b"POST /u/U HTTP/1.1\r\nhost: x\r\n\r\n")),
        "tls": (0, came(b"\x16\3\1\0\x05hello")),
        "silent": (HURRY, time(25)),
        "application": (
            GREETED,
            windows
            + request(1, 3)
            + request(3, 3)
            + request(5, 3)
            + call(0, 1, 3)
            + call(0, 2, 9000)
            + call(0, 2, 9000)
            + call(1, 4, 3)
            + call(2, 5, 4)
            + call(0, 8)
            + frame(WINDOW, 0, 1, struct.pack(">I", 20000))
            + call(0, 3, 6)
            + call(0, 7),
        ),
        "orphans": (
            GREETED | STRICT,
            b"".join(request(i, 3) + call(0, 0) + frame(RST, 0, i, b"\0\0\0\x08") for i in range(1, 11, 2))
            + request(11, 3)
            + request(13, 3),
        ),
        "buffered": (
            GREETED | STRICT,
            b"".join(request(i, 3) + frame(0, 0, i, message(b"x" * 1500)) for i in range(1, 11, 2)),
        ),
        "grown": (
            GREETED | ECHO,
            request(1, 3) + b"".join(frame(0, 0, 1, d) for d in (message(b"x" * 50, size=1250), *[b"y" * 400] * 3)),
        ),
        "get": (GREETED, request(1, 16, b"GET", END_STREAM) + request(3, 16, b"PUT")),
        "two_paths": (GREETED, frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x83\x86\x04\x04/u/U\x04\x04/u/V")),
        "behind": (GREETED, b"".join(request(i, 3) for i in range(1, 40, 2)) + time(12) + call(0, 3) + time(12)),
        "not_read": (
            GREETED | HURRY,
            room(60) + b"".join(request(i, 12, b"x", END_STREAM) for i in range(1, 60, 2)) + room(999),
        ),
        "drained": (GREETED | ECHO, request(1, 3) + b"\6\1" + request(3) + time(21) + body),
        "killed": (GREETED, request(1, 3) + b"\6\0" + body),
        "texts": (0, b"".join(b"\7" + sized(t) for t in (b"100m", b"AAECAw==", b"gzip , identity,", "é%\n".encode()))),
    }


def recorded() -> dict[str, bytes]:
    """What a grpcio client sends, by what it does."""
    server = gmp.grpc.server()
    handlers = {
        "U": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
        "S": grpc.stream_stream_rpc_method_handler(lambda requests, context: requests),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("u", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    taken: dict[str, bytes] = {}
    for name in ("unary", "stream", "metadata", "compressed", "cancelled", "large"):
        with socket.create_server(("127.0.0.1", 0)) as front:
            sent: list[bytes] = []
            threading.Thread(target=_relay, args=(front, port, sent), daemon=True).start()
            with grpc.insecure_channel(f"127.0.0.1:{front.getsockname()[1]}") as channel:
                unary, stream = channel.unary_unary("/u/U"), channel.stream_stream("/u/S")
                if name == "unary":
                    unary(b"hello", timeout=5)
                elif name == "stream":
                    list(stream(iter([b"one", b"two", b"three"]), timeout=5))
                elif name == "metadata":
                    unary(b"", timeout=5, metadata=(("k", "v"), ("b-bin", b"\0\1\2"), ("k", "w" * 300)))
                elif name == "compressed":
                    unary(b"hello " * 100, timeout=5, compression=grpc.Compression.Gzip)
                elif name == "large":
                    unary(bytes(6_000), timeout=5)
                else:
                    calls = stream(iter([b"one"]), timeout=5)
                    next(calls)
                    calls.cancel()
            taken["grpcio_" + name] = b"".join(came(part) for part in sent)
    server.stop(None)
    return taken


def _relay(front: socket.socket, port: int, sent: list[bytes]) -> None:
    client = front.accept()[0]
    server = socket.create_connection(("127.0.0.1", port))

    def back() -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)

    threading.Thread(target=back, daemon=True).start()
    with contextlib.suppress(OSError):
        while data := client.recv(65536):
            sent.append(data)
            server.sendall(data)
    server.close()


def main() -> None:
    to = Path(sys.argv[1])
    for name, (mode, records) in made().items():
        (to / name).write_bytes(bytes((mode,)) + records)
    for name, records in recorded().items():
        (to / name).write_bytes(bytes((ECHO,)) + records)


main()
