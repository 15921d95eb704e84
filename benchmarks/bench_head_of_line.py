"""No head-of-line blocking, the talk's point: 1,000 quick calls on a connection that has slow ones on it.

gRPC: a handler that takes SLOW seconds, a stream that nobody reads and an upload of 64 MB are under way on the same connection.  HTTP/1.1:
the slow request alone is, on a connection that is kept alive; whoever comes later waits for it.
"""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

grpc = pytest.importorskip("grpc")

import gmp  # noqa: E402
import gmp.grpc  # noqa: E402
from gmp.net.http import HTTPServer  # noqa: E402

QUICK = 1_000
SLOW = 2.0  # seconds
PIECE = bytes(64 << 10)
UPLOAD = (64 << 20) // len(PIECE)


def quick(request: bytes, context: Any) -> bytes:
    return request


def slow(request: bytes, context: Any) -> bytes:
    gmp.sleep(SLOW)
    return request


def flood(request: bytes, context: Any) -> Iterator[bytes]:
    while context.is_active():
        yield PIECE


def upload(requests: Iterator[bytes], context: Any) -> bytes:
    return b"%d" % sum(map(len, requests))


@contextlib.contextmanager
def channel() -> Iterator[Any]:
    server = gmp.grpc.server()
    handlers = {
        "Quick": grpc.unary_unary_rpc_method_handler(quick),
        "Slow": grpc.unary_unary_rpc_method_handler(slow),
        "Flood": grpc.unary_stream_rpc_method_handler(flood),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("T", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with gmp.grpc.insecure_channel(f"127.0.0.1:{port}") as it:
        yield it
    server.stop(None)


def calls(it: Any) -> None:
    call = it.unary_unary("/T/Quick")
    for g in [gmp.go(call, b"x") for _ in range(QUICK)]:
        assert g.result() == b"x"


@pytest.mark.benchmark(group=f"{QUICK:,} quick calls on one connection")
@pytest.mark.parametrize("beside", ["nothing", "slow ones"])
def test_grpc(benchmark: Any, beside: str) -> None:
    with channel() as it:
        calls(it)
        if beside == "nothing":
            benchmark.pedantic(calls, (it,), rounds=5)
            return
        pending: list[Any] = []

        def set_up() -> None:
            pending.append(it.unary_unary("/T/Slow").future(b"slow"))
            pending.append(it.unary_stream("/T/Flood")(b""))
            pending.append(it.stream_unary("/T/Upload").future(iter([PIECE] * UPLOAD)))

        set_up()
        began = time.perf_counter()
        benchmark.pedantic(calls, (it,), rounds=3)
        took = time.perf_counter() - began
        benchmark.extra_info.update(
            slow_handler_has_ended=pending[0].done(), upload_has_ended=pending[2].done(), s=round(took, 3)
        )
        for call in pending:
            call.cancel()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # a response is one packet

    def do_GET(self) -> None:
        if self.path == "/slow":
            gmp.sleep(SLOW)
        self.send_response(200)
        self.send_header("content-length", "1")
        self.end_headers()
        self.wfile.write(b"x")
        self.wfile.flush()

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.benchmark(group=f"{QUICK:,} quick calls on one connection")
def test_http_1(benchmark: Any) -> None:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    gmp.go(server.serve_forever)
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1])

    def requests() -> None:
        connection.request("GET", "/slow")
        connection.getresponse().read()
        for _ in range(QUICK):
            connection.request("GET", "/quick")
            assert connection.getresponse().read() == b"x"

    requests()
    benchmark.pedantic(requests, rounds=3)
    connection.close()
    server.shutdown()
    server.server_close()
