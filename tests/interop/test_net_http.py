"""http.server, http.client and urllib3 on gmp.net.socket, and that class's own behaviour."""

from __future__ import annotations

import contextlib
import errno
import http.client
import http.server
import os
import pickle
import random
import selectors
import smtplib
import socket as so
import socketserver
import ssl
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gmp
from gmp import go, net
from gmp.net.http import GoMixIn, HTTPConnection, HTTPSConnection, HTTPServer
from tests.waiting import parked, status, until

WAIT = 30.0
ENTERED: gmp.Chan[None] = gmp.Chan(100)
LEAVE: gmp.Chan[None] = gmp.Chan()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/slow":
            ENTERED.send(None, WAIT)
            LEAVE.recv(WAIT)
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


class Server(HTTPServer):
    """Keeps what went wrong in a handler; it must be the client's doing."""

    def __init__(self) -> None:
        self.errors: list[BaseException | None] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.errors.append(sys.exception())


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[tuple[str, Server]]:
    """("http://host:port" or https, the server)"""
    server = Server()
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    loop = go(server.serve_forever)
    try:
        host, port = server.server_address[:2]
        yield f"{'http' if context is None else 'https'}://{host!s}:{port}", server
    finally:
        server.shutdown()
        loop.result(WAIT)
        server.server_close()
    assert not [e for e in server.errors if not isinstance(e, (ssl.SSLError, ConnectionError))]


@pytest.fixture
def url() -> Iterator[str]:
    with serving() as (url, _):
        yield url


@pytest.fixture
def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sslsocket_class = net.SSLSocket
    return context


@pytest.fixture
def tls_url(server_context: ssl.SSLContext) -> Iterator[str]:
    with serving(server_context) as (url, _):
        yield url


@pytest.fixture
def client_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate))
    context.sslsocket_class = net.SSLSocket
    return context


def connect(url: str, context: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    where = url.partition("//")[2]
    if context is None:
        return HTTPConnection(where, timeout=WAIT)
    return HTTPSConnection(where, context=context, timeout=WAIT)


DATA = random.Random(3).randbytes(2_000_000)


def test_http(url: str) -> None:
    with contextlib.closing(connect(url)) as c:
        for i in range(20):
            c.request("GET", f"/{i}")
            assert c.getresponse().read() == b"GET /%d" % i
        assert isinstance(c.sock, net.socket)
        c.request("POST", "/", DATA)
        assert c.getresponse().read() == DATA


def test_https(tls_url: str, client_context: ssl.SSLContext) -> None:
    with contextlib.closing(connect(tls_url, client_context)) as c:
        for i in range(5):
            c.request("GET", f"/{i}")
            assert c.getresponse().read() == b"GET /%d" % i
        assert isinstance(c.sock, net.SSLSocket)
        c.request("POST", "/", DATA)
        assert c.getresponse().read() == DATA


def test_https_checks_the_certificate(tls_url: str) -> None:
    connection = HTTPSConnection(tls_url.partition("//")[2], timeout=WAIT)
    with contextlib.closing(connection) as c, pytest.raises(ssl.SSLCertVerificationError):
        c.request("GET", "/")


@pytest.mark.parametrize("kind", ["http", "https"])
def test_slow_requests_run_side_by_side(kind: str, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue("url" if kind == "http" else "tls_url")
    context = request.getfixturevalue("client_context") if kind == "https" else None

    def get() -> bytes:
        with contextlib.closing(connect(url, context)) as c:
            c.request("GET", "/slow")
            return c.getresponse().read()

    getters = [go(get) for _ in range(50)]
    for _ in getters:
        ENTERED.recv(WAIT)  # all are in the handler at the same time
    stats = gmp.runtime.stats()
    assert int(stats["threads"]) - int(stats["idle_threads"]) < 40
    for _ in getters:
        LEAVE.send(None, WAIT)
    assert {g.result(WAIT) for g in getters} == {b"GET /slow"}


def test_shutdown_and_serve_again() -> None:
    with Server() as server:
        for _ in range(3):
            loop = go(server.serve_forever)
            with contextlib.closing(connect("//{}:{}".format(*server.server_address))) as c:
                c.request("GET", "/x")
                assert c.getresponse().read() == b"GET /x"
            server.shutdown()
            loop.result(WAIT)


def test_urllib3(url: str) -> None:
    urllib3 = pytest.importorskip("urllib3")
    from gmp.net.urllib3 import PoolManager

    with PoolManager(maxsize=20, timeout=WAIT) as pool:

        def get(i: int) -> bytes:
            data: bytes = pool.request("GET", f"{url}/{i}", retries=False).data
            return data

        getters = [go(get, i) for i in range(20)]
        assert [g.result(WAIT) for g in getters] == [b"GET /%d" % i for i in range(20)]
        with pytest.raises(urllib3.exceptions.NewConnectionError):
            pool.request("GET", f"http://127.0.0.1:{closed_port()}/", retries=False)
        with pytest.raises(urllib3.exceptions.NameResolutionError):
            pool.request("GET", "http://host.invalid/", retries=False)
        with net.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            with pytest.raises(urllib3.exceptions.ReadTimeoutError):
                pool.request("GET", f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.05, retries=False)


def closed_port() -> int:
    with net.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.parametrize("kind", ["http", "https"])
def test_requests(kind: str, request: pytest.FixtureRequest, certificate: Path) -> None:
    requests = pytest.importorskip("requests")
    from gmp.net.requests import Adapter, Session

    url: str = request.getfixturevalue("url" if kind == "http" else "tls_url")
    shared = Adapter(pool_maxsize=10)

    def talk(i: int) -> bytes:
        with Session() as session:
            session.trust_env = False
            session.verify = str(certificate)
            if i % 2:
                session.mount(url, shared)
            answer = session.post(f"{url}/{i}", DATA[: i * 10_000], timeout=WAIT)
            assert answer.content == DATA[: i * 10_000]
            answer = session.get(f"{url}/{i}", timeout=WAIT, stream=True)
            assert kind == "http" or isinstance(answer.raw._connection.sock, net.SSLSocket)
            return bytes(answer.content)

    talkers = [go(talk, i) for i in range(20)]
    assert [g.result(WAIT) for g in talkers] == [b"GET /%d" % i for i in range(20)]
    shared.close()
    with Session() as session:
        session.trust_env = False
        if kind == "https":
            with pytest.raises(requests.exceptions.SSLError):
                session.get(url, timeout=WAIT)
        with pytest.raises(requests.exceptions.ConnectionError):
            session.get(f"{kind}://127.0.0.1:{closed_port()}", timeout=WAIT)


def test_datagram_server() -> None:
    class Upper(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            sock.sendto(data.upper(), self.client_address)

    class Server(GoMixIn, socketserver.UDPServer):
        pass

    with Server(("127.0.0.1", 0), Upper) as server, net.socket(so.AF_INET, so.SOCK_DGRAM) as s:
        loop = go(server.serve_forever)
        s.settimeout(WAIT)
        s.sendto(b"hello", server.server_address)
        assert s.recvfrom(100) == (b"HELLO", server.server_address)
        server.shutdown()
        loop.result(WAIT)


def test_smtplib() -> None:
    """A library that makes its socket in a method."""

    class SMTP(smtplib.SMTP):
        def _get_socket(self, host: str, port: int, timeout: float) -> net.socket:
            return net.create_connection((host, port), timeout)

    class Hello(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            for line in self.rfile:
                self.wfile.write(b"221 bye\r\n" if line == b"QUIT\r\n" else b"250 well\r\n")

    class Server(GoMixIn, socketserver.TCPServer):
        pass

    with Server(("127.0.0.1", 0), Hello) as server:
        loop = go(server.serve_forever)
        with SMTP(str(server.server_address[0]), int(server.server_address[1]), "me", WAIT) as s:
            assert s.ehlo() == (250, b"well")
        server.shutdown()
        loop.result(WAIT)


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
        assert 0.05 <= time.monotonic() - start < WAIT
        b.setblocking(False)
        assert not b.getblocking()
        with pytest.raises(BlockingIOError):
            b.recv(1)
        b.setblocking(True)
        reader = go(b.recv, 10)
        parked(reader)
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
        parked(reader)
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
        parked(reader)
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
        parked(reader)
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


# ---- where it must not differ from socket.socket ----


def test_flags_and_types() -> None:
    with pair() as (a, b):
        with pytest.raises(BlockingIOError):
            b.recv(1, so.MSG_DONTWAIT)
        a.sendall(b"abc")
        reader = go(b.recv, 6, so.MSG_WAITALL)
        parked(reader)
        a.sendmsg(part for part in (b"d", b"ef"))
        assert reader.result(WAIT) == b"abcdef"
        buffers = bytearray(2), bytearray(2)
        reader = go(lambda: b.recvmsg_into(iter(buffers))[0])
        parked(reader)
        a.sendall(b"abcd")
        assert reader.result(WAIT) == 4
        assert buffers == (b"ab", b"cd")
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(a)
        with pytest.raises(TypeError):
            a.recv("x")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            a.send("x")  # type: ignore[arg-type]
        with pytest.raises(ValueError):  # noqa: PT011
            a.recv(-1)
        with pytest.raises(TypeError, match=r"settimeout\(\) value must be a number"):
            a.settimeout("x")  # type: ignore[arg-type]
    for call in (lambda: a.settimeout(1), lambda: a.recv(1), lambda: a.send(b""), lambda: a.accept(), lambda: a.dup()):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            call()  # type: ignore[no-untyped-call]
        assert caught.value.errno == errno.EBADF
    with net.socket(so.AF_INET, so.SOCK_STREAM | so.SOCK_NONBLOCK) as s:
        assert s.gettimeout() == 0


def test_large_datagrams_are_whole() -> None:
    a, b = (net.socket(fileno=s.detach()) for s in so.socketpair(so.AF_UNIX, so.SOCK_DGRAM))
    with a, b:
        a.setsockopt(so.SOL_SOCKET, so.SO_SNDBUF, 400_000)
        a.send(DATA[:100_000])
        assert b.recv(200_000) == DATA[:100_000]


def test_data_left_by_one_call_is_found_by_the_next() -> None:
    """recv() skips reads that would find nothing: it must not when another call left something."""
    with pair() as (a, b):
        for other in (b.recvfrom, b.recvmsg):
            a.sendall(b"1")
            assert b.recv(100) == b"1"
            reader: Any = go(other, 1)
            parked(reader)
            a.sendall(b"234")
            assert reader.result(WAIT)[0] == b"2"
            assert b.recv(100) == b"34"


def test_timeout_of_one_reader_is_not_the_others() -> None:
    with pair() as (a, b):
        b.settimeout(0.2)
        first = go(b.recv, 1)
        until(lambda: status(first) not in ("runnable", "running"))
        b.settimeout(None)
        second = go(b.recv, 1)
        with pytest.raises(TimeoutError):
            first.result(WAIT)
        a.send(b"x")
        assert second.result(WAIT) == b"x"


def test_detach_while_another_waits() -> None:
    with pair() as (a, b), pair() as (c, d):
        reader = go(b.recv, 1)
        parked(reader)
        number = b.detach()
        os.dup2(d.fileno(), number)  # the number is another socket's at once
        with net.socket(fileno=number) as e:
            later = go(e.recv, 1)
            with pytest.raises(OSError) as caught:  # noqa: PT011
                reader.result(WAIT)
            assert caught.value.errno == errno.EBADF
            c.send(b"x")
            assert later.result(WAIT) == b"x"
        assert a.recv(1) == b""


def test_peer_reset() -> None:
    with pair() as (a, b):
        reader = go(b.recv, 1)
        parked(reader)
        a.setsockopt(so.SOL_SOCKET, so.SO_LINGER, struct.pack("ii", 1, 0))
        a.close()
        with pytest.raises(ConnectionResetError):
            reader.result(WAIT)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            b.sendall(b"x" * 100)


def test_tls_socket_both_ways_at_once(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """A reader and several writers on each end of one connection."""
    with net.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        s = client_context.wrap_socket(
            net.create_connection(listener.getsockname(), WAIT),
            server_hostname="localhost",
            do_handshake_on_connect=False,
        )
        t = server_context.wrap_socket(listener.accept()[0], server_side=True, do_handshake_on_connect=False)
    with s, t:
        for end in (s, t):
            end.settimeout(WAIT)
        shaker = go(s.do_handshake)
        t.do_handshake()
        shaker.result(WAIT)

        def count(end: ssl.SSLSocket) -> dict[int, int]:
            counts = dict.fromkeys(range(4), 0)
            left = 4 * 300_000
            while left:
                data = end.recv(20_000)
                assert data
                for i in counts:
                    counts[i] += data.count(i)
                left -= len(data)
            return counts

        jobs = [go(end.sendall, bytes([i]) * 300_000) for end in (s, t) for i in range(4)]
        counts = [go(count, end) for end in (s, t)]
        for job in jobs:
            job.result(WAIT)
        assert [g.result(WAIT) for g in counts] == [dict.fromkeys(range(4), 300_000)] * 2
        t.settimeout(0.02)
        with pytest.raises(TimeoutError):
            t.recv(1)
        t.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            t.recv(1)
        t.setblocking(True)
        reader = go(t.recv, 1)
        parked(reader)
        t.close()
        with pytest.raises(OSError) as caught:  # noqa: PT011
            reader.result(WAIT)
        assert caught.value.errno == errno.EBADF
