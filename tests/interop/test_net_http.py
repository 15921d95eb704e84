"""http.server, http.client and urllib3 on gmp.net.socket, and that class's own behaviour."""

from __future__ import annotations

import contextlib
import errno
import http.client
import http.server
import os
import random
import selectors
import socket as so
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gmp
from gmp import go, net

WAIT = 10.0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/slow":
            gmp.sleep(0.1)
        self.reply(b"GET " + self.path.encode())

    def do_POST(self) -> None:
        self.reply(self.rfile.read(int(self.headers["Content-Length"])))

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


class Server(http.server.HTTPServer):
    """A goroutine for each connection."""

    address_family = so.AF_INET
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = net.socket(self.address_family, self.socket_type)
        self.server_bind()
        self.server_activate()
        self.handlers: list[gmp.Goroutine[Any]] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self.handlers.append(go(self.handle_one, request, client_address))

    def handle_one(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        finally:
            self.shutdown_request(request)

    def serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                self.process_request(*self.get_request())


@pytest.fixture
def server() -> Iterator[Server]:
    s = Server()
    serving = go(s.serve)
    yield s
    s.server_close()
    serving.join(WAIT)
    for g in s.handlers:
        g.result(WAIT)


def connect(server: Server) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=WAIT)  # type: ignore[arg-type]
    connection._create_connection = net.create_connection  # type: ignore[attr-defined]
    return connection


def test_http(server: Server) -> None:
    data = random.Random(3).randbytes(2_000_000)
    with contextlib.closing(connect(server)) as c:
        for i in range(20):
            c.request("GET", f"/{i}")
            assert c.getresponse().read() == b"GET /%d" % i
        assert isinstance(c.sock, net.socket)
        c.request("POST", "/", data)
        assert c.getresponse().read() == data


def test_slow_requests_run_side_by_side(server: Server) -> None:
    def get() -> bytes:
        with contextlib.closing(connect(server)) as c:
            c.request("GET", "/slow")
            return c.getresponse().read()

    start = time.monotonic()
    getters = [go(get) for _ in range(50)]
    assert {g.result(WAIT) for g in getters} == {b"GET /slow"}
    assert time.monotonic() - start < 2.5
    assert int(gmp.runtime.stats()["threads"]) < 40


def test_urllib3(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    urllib3 = pytest.importorskip("urllib3")
    from urllib3.util import connection

    class Sockets:
        socket = net.socket

        def __getattr__(self, name: str) -> Any:
            return getattr(so, name)

    monkeypatch.setattr(connection, "socket", Sockets())
    host, port = server.server_address[:2]
    with urllib3.PoolManager(maxsize=20, timeout=WAIT) as pool:

        def get(i: int) -> bytes:
            data: bytes = pool.request("GET", f"http://{host!s}:{port}/{i}", retries=False).data
            return data

        getters = [go(get, i) for i in range(20)]
        assert [g.result(WAIT) for g in getters] == [b"GET /%d" % i for i in range(20)]


# ---- the class itself ----


@contextlib.contextmanager
def pair() -> Iterator[tuple[net.socket, net.socket]]:
    with net.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        a = net.create_connection(listener.getsockname(), WAIT)
        b, address = listener.accept()
        assert address == a.getsockname()
    with a, b:
        yield a, b


def test_timeouts() -> None:
    with pair() as (a, b):
        assert a.gettimeout() == a.timeout == WAIT
        assert b.gettimeout() is None
        assert b.getblocking()
        b.settimeout(0.05)
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="timed out"):
            b.recv(1)
        assert 0.045 <= time.monotonic() - start < 5
        b.setblocking(False)
        assert not b.getblocking()
        with pytest.raises(BlockingIOError):
            b.recv(1)
        b.setblocking(True)
        reader = go(b.recv, 10)
        gmp.sleep(0.02)
        a.sendall(b"x")
        assert reader.result(WAIT) == b"x"
        a.settimeout(0.05)
        with pytest.raises(TimeoutError):
            a.sendall(bytes(50_000_000))
        with pytest.raises(ValueError):  # noqa: PT011
            a.settimeout(-1)
        with pytest.raises(TypeError):
            a.settimeout("x")  # type: ignore[arg-type]


def test_large_transfer_and_makefile() -> None:
    data = random.Random(4).randbytes(5_000_000)
    with pair() as (a, b):
        sender = go(a.sendall, data)
        with b.makefile("rb") as f:
            assert f.read(len(data)) == data
            sender.result(WAIT)
            a.sendall(b"one\ntwo")
            a.shutdown(so.SHUT_WR)
            assert f.readlines() == [b"one\n", b"two"]
        with b.makefile("w") as g:
            g.write("text")
        buffer = bytearray(10)
        assert a.recv_into(buffer) == 4
        assert buffer[:4] == b"text"


def test_several_readers_take_turns() -> None:
    with pair() as (a, b):
        for i in range(100):
            readers = [go(b.recv, 1) for _ in range(5)]
            gmp.sleep(i % 3 * 0.001)
            for _ in readers:
                a.send(b"x")
            assert [g.result(WAIT) for g in readers] == [b"x"] * 5


def test_close_wakes_a_reader() -> None:
    with pair() as (_, b):
        reader = go(b.recv, 1)
        gmp.sleep(0.02)
        b.close()
        with pytest.raises(OSError) as caught:  # noqa: PT011
            reader.result(WAIT)
        assert caught.value.errno == errno.EBADF
        assert b.fileno() == -1
        with pytest.raises(OSError):  # noqa: PT011
            b.recv(1)


def test_connect_errors() -> None:
    with net.socket() as s:
        s.bind(("127.0.0.1", 0))
        where = s.getsockname()
    with net.socket() as s:
        assert s.connect_ex(where) == errno.ECONNREFUSED
    with net.socket() as s, pytest.raises(ConnectionRefusedError):
        s.connect(where)
    with pytest.raises(ConnectionRefusedError):
        net.create_connection(where, 1)
    with net.socket() as s, pytest.raises(so.gaierror):
        s.connect(("host.invalid", 1))


def test_datagrams() -> None:
    with net.socket(so.AF_INET, so.SOCK_DGRAM) as a, net.socket(so.AF_INET, so.SOCK_DGRAM) as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        reader = go(b.recvfrom, 100)
        gmp.sleep(0.01)
        assert a.sendto(b"hello", b.getsockname()) == 5
        assert reader.result(WAIT) == (b"hello", a.getsockname())
        a.sendto(b"", b.getsockname())
        assert b.recv(10) == b""


def test_detach_and_dup() -> None:
    with pair() as (a, b):
        with pytest.raises(BlockingIOError):
            b.setblocking(False)
            b.recv(1)
        b.setblocking(True)
        reader = go(b.recv, 1)
        gmp.sleep(0.01)
        a.send(b"x")
        reader.result(WAIT)
        twin = b.dup()
        with net.socket(fileno=b.detach()) as c, twin:
            a.send(b"y")
            assert c.recv(1) == b"y"
            a.send(b"z")
            assert twin.recv(1) == b"z"


def test_selectors_and_files(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100_000)
    with pair() as (a, b), selectors.DefaultSelector() as selector, open(tmp_path / "f", "rb") as f:
        selector.register(b, selectors.EVENT_READ)
        assert selector.select(0) == []
        assert a.sendfile(f) == 100_000
        assert len(selector.select(WAIT)) == 1
        selector.unregister(b)
        with b.makefile("rb") as r:
            assert r.read(100_000) == b"x" * 100_000


def test_dropped_socket_is_closed_with_a_warning() -> None:
    with net.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        s: Any = net.create_connection(listener.getsockname(), WAIT)
        s.settimeout(0.001)
        with pytest.raises(TimeoutError):
            s.recv(1)
        fd = s.fileno()
        with pytest.warns(ResourceWarning):
            del s
        with pytest.raises(OSError):  # noqa: PT011
            os.fstat(fd)
