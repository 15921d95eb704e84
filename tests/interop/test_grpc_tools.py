"""HTTP/2 clients of the command line against gmp.grpc.server: h2load, nghttp and curl (`make test` installs them)."""

from __future__ import annotations

import contextlib
import re
import shutil
import struct
import subprocess
import time

import pytest

grpc = pytest.importorskip("grpc")

import gmp.grpc  # noqa: E402
from gmp.protos import helloworld_pb2, helloworld_pb2_grpc  # noqa: E402

if not gmp.grpc.is_native:
    pytest.skip("built without libnghttp2", allow_module_level=True)

LONG = 60.0
SAY_HELLO = "/helloworld.Greeter/SayHello"
uu, us = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler


def tool(name):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (apt-get install {'curl' if name == 'curl' else 'nghttp2-client'})")
    return found


def framed(data):
    return struct.pack(">BI", 0, len(data)) + data


class Greeter(helloworld_pb2_grpc.GreeterServicer):
    def SayHello(self, request, context):
        return helloworld_pb2.HelloReply(message=f"Hello, {request.name}!")


def stream(request, context):
    for i in range(100):
        yield b"%d" % i * 100


HANDLERS = {
    "Stream": us(stream),
    "Large": uu(lambda request, context: request * 3),
    "Slow": uu(lambda r, c: time.sleep(0.02) or r),
}


@contextlib.contextmanager
def serving(**options):
    server = gmp.grpc.server(**options)
    helloworld_pb2_grpc.add_GreeterServicer_to_server(Greeter(), server)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Tools", HANDLERS),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield server, f"http://127.0.0.1:{port}"
    finally:
        assert server.stop(None).wait(LONG)


def run(*command):
    done = subprocess.run(command, capture_output=True, timeout=LONG)
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode(errors="replace")
    return done.stdout


@pytest.fixture
def body(tmp_path):
    """A file with a message, of the given data."""

    def make(data):
        path = tmp_path / "body"
        path.write_bytes(framed(data))
        return str(path)

    return make


HEADERS = ("-H", "content-type: application/grpc", "-H", "te: trailers")

LOADS = {
    "unary": (SAY_HELLO, helloworld_pb2.HelloRequest(name="load").SerializeToString(), 20_000, 10, 100),
    "one_at_a_time": (SAY_HELLO, b"", 1_000, 1, 1),
    "many_connections": (SAY_HELLO, b"", 10_000, 500, 1),
    "slow": ("/test.Tools/Slow", b"x", 3_000, 20, 50),
    "streams": ("/test.Tools/Stream", b"", 1_000, 5, 50),
    "large": ("/test.Tools/Large", bytes(100_000), 400, 4, 20),
    "unknown": ("/test.Tools/Unknown", b"", 5_000, 5, 100),
}


@pytest.mark.parametrize("load", LOADS)
def test_h2load(load, body):
    path, data, calls, clients, streams = LOADS[load]
    command = ["-n", calls, "-c", clients, "-m", streams, "-t", 1, "-d", body(data), *HEADERS]
    with serving() as (server, url):
        out = run(tool("h2load"), *map(str, command), url + path).decode()
        stats = server.stats()
    counts = re.search(
        r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", out
    )
    assert counts is not None, out
    assert [int(n) for n in counts.groups()] == [calls, calls, calls, 0, 0], out
    codes = {"unknown": "UNIMPLEMENTED"}.get(load, "OK")
    assert sum(method["codes"].get(codes, 0) for method in stats["methods"].values()) == calls
    assert (stats["accepted"], stats["resets"]) == (clients, 0)


def test_nghttp(body):
    request = helloworld_pb2.HelloRequest(name="nghttp").SerializeToString()
    with serving() as (_, url):
        out = run(tool("nghttp"), "-v", "-d", body(request), *HEADERS, url + SAY_HELLO).decode(errors="replace")
    assert "Hello, nghttp!" in out
    for field in ("content-type: application/grpc", "grpc-status: 0", ":status: 200"):
        assert field in out
    assert "error_code=NO_ERROR(0x00)" in out or "GOAWAY" not in out


def curl(url, path, body_file, *more):
    """The response's body, headers and trailers, as curl has them."""
    command = [tool("curl"), "-sS", "--http2-prior-knowledge", "-i", "-X", "POST", "--data-binary", f"@{body_file}"]
    return run(*command, *HEADERS, *more, url + path)


def test_curl(body, tmp_path):
    if "HTTP2" not in run(tool("curl"), "--version").decode():
        pytest.skip("curl without HTTP/2")
    request = helloworld_pb2.HelloRequest(name="curl").SerializeToString()
    with serving() as (_, url):
        out = curl(url, SAY_HELLO, body(request))
        assert framed(helloworld_pb2.HelloReply(message="Hello, curl!").SerializeToString()) in out
        assert out.startswith(b"HTTP/2 200 \r\n")
        assert b"grpc-status: 0\r\n" in out
        # Without a body: curl 7.88 fails one call in seven whose answer comes before it has sent its own, with any server.
        (tmp_path / "nothing").touch()
        out = curl(url, "/test.Tools/Unknown", tmp_path / "nothing")
        assert b"grpc-status: 12\r\ngrpc-message: Method not found!\r\n" in out
        out = curl(url, "/test.Tools/Stream", body(b""))
        assert b"".join(framed(b"%d" % i * 100) for i in range(100)) in out
        out = curl(url, "/test.Tools/Slow", body(b""), "-H", "grpc-timeout: 1m")
        assert b"grpc-status: 4\r\n" in out
        assert run(tool("curl"), "-sS", "--http2-prior-knowledge", "-i", url + "/").startswith(b"HTTP/2 405")
