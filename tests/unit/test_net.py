"""gmp.net: connections, listeners, TLS, descriptors, deadlines; bad descriptors and bad peers."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import select
import socket as so
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gmp
import gmp.net
from gmp import go
from gmp.net import Conn, Listener, dial, listen, wait_read, wait_write
from tests.waiting import parked, status, until

WAIT = 30.0


def echo(conn: Conn) -> None:
    with conn:
        while data := conn.read(65536):
            conn.write(data)


@contextlib.contextmanager
def serving(handler: Callable[[Conn], Any], address: Any = "127.0.0.1:0", **kwargs: Any) -> Iterator[Listener]:
    """A listener whose connections get a goroutine each."""
    listener = listen(address, **kwargs)
    handlers = []

    def serve() -> None:
        for conn in listener:
            handlers.append(go(handler, conn))

    server = go(serve)
    try:
        yield listener
    finally:
        listener.close()
        server.join(WAIT)
        for g in handlers:
            g.result(WAIT)


@contextlib.contextmanager
def pair() -> Iterator[tuple[Conn, Conn]]:
    """Two ends of a TCP connection."""
    with listen("127.0.0.1:0") as listener:
        a = dial(listener.addr, timeout=WAIT)
        listener.set_deadline(WAIT)
        b = listener.accept()
    with a, b:
        yield a, b


def until_waiting(g: gmp.Goroutine[Any]) -> None:
    """Until a goroutine has parked for a descriptor."""
    until(lambda: (status(g) or "").startswith("IO wait"))


def code_of(fn: Callable[..., Any], *args: Any) -> int | None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        fn(*args)
    return caught.value.errno


# ---- echo ----


def test_echo_over_tcp() -> None:
    with serving(echo) as listener, dial(listener.addr, timeout=WAIT) as conn:
        conn.set_deadline(WAIT)
        assert conn.write(b"hello") == 5
        assert conn.read_exactly(5) == b"hello"
        assert conn.remote_addr == listener.addr
        assert conn.local_addr[0] == "127.0.0.1"


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_echo_over_unix_socket(tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "s") if kind == "path" else f"\0gmp-test-{os.getpid()}"
    with serving(echo, address, network="unix") as listener:
        assert listener.addr == address
        with dial(address, network="unix", timeout=WAIT) as conn:
            conn.set_deadline(WAIT)
            conn.write(b"hello")
            assert conn.read_exactly(5) == b"hello"
            assert conn.remote_addr == address
    assert not os.path.exists(address.replace("\0", "@"))


def test_accepted_unix_connection_tells_its_addresses(tmp_path: Path) -> None:
    with listen(tmp_path / "s", network="unix") as listener, dial(tmp_path / "s", network="unix") as a:
        with listener.accept() as b:
            assert b.remote_addr == ""
            assert b.local_addr == a.remote_addr == str(tmp_path / "s")


@pytest.fixture(scope="session")
def contexts(certificate: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server's, client's) with a certificate for localhost."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    return server, ssl.create_default_context(cafile=str(certificate))


Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


def test_echo_over_tls(contexts: Contexts) -> None:
    server, client = contexts
    data = random.Random(1).randbytes(3_000_000)
    with serving(echo, ssl=server) as listener:
        with dial(listener.addr, timeout=WAIT, ssl=client, server_hostname="localhost") as conn:
            conn.set_deadline(WAIT)
            assert conn.write(b"line 1\nline 2\n") == 14
            assert conn.readline() == b"line 1\n"
            assert conn.read_exactly(7) == b"line 2\n"
            writer = go(conn.write, data)
            assert conn.read_exactly(len(data)) == data
            assert writer.result(WAIT) == len(data)
            assert conn.ssl_object.version() in ("TLSv1.2", "TLSv1.3")  # type: ignore[attr-defined]
            buffer = bytearray(4)
            conn.write(b"abcdef")
            assert conn.read_into(buffer) + len(conn.read(10)) >= 4
            assert buffer == b"abcd"


def test_tls_half_close(contexts: Contexts) -> None:
    server, client = contexts

    def count(conn: Conn) -> None:
        with conn:
            n = 0
            while data := conn.read(65536):
                n += len(data)
            conn.write(b"%d" % n)

    with serving(count, ssl=server) as listener:
        with dial(listener.addr, timeout=WAIT, ssl=client, server_hostname="localhost") as conn:
            conn.set_deadline(WAIT)
            conn.write(b"x" * 100_000)
            conn.close_write()
            assert conn.read_exactly(6) == b"100000"
            assert conn.read() == b""


def test_tls_wrong_name_and_wrong_peers(contexts: Contexts) -> None:
    server, client = contexts

    def quiet(conn: Conn) -> None:
        with conn, contextlib.suppress(OSError):
            conn.read()

    with serving(quiet, ssl=server) as listener:
        with pytest.raises(ssl.SSLCertVerificationError):
            dial(listener.addr, timeout=WAIT, ssl=client, server_hostname="elsewhere")
    with serving(lambda conn: conn.close()) as listener:
        with pytest.raises(OSError):  # noqa: PT011
            dial(listener.addr, timeout=WAIT, ssl=client, server_hostname="localhost")
    with listen("127.0.0.1:0") as silent:  # it never answers
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="TLS"):
            dial(silent.addr, timeout=0.1, ssl=client, server_hostname="localhost")
        assert time.monotonic() - start < WAIT


def test_tls_connection_whose_handshake_has_failed_goes_with_its_last_reference(contexts: Contexts) -> None:
    def fail(listener: Listener) -> None:
        with contextlib.suppress(ssl.SSLError):
            listener.accept().read()

    with listen("127.0.0.1:0", ssl=contexts[0]) as listener, dial(listener.addr, timeout=WAIT) as conn:
        conn.set_deadline(WAIT)
        conn.write(b"GET / HTTP/1.0\r\n\r\n")
        gc.disable()
        try:
            go(fail, listener).join(WAIT)
            with contextlib.suppress(ConnectionResetError):
                assert conn.read() == b""
        finally:
            gc.enable()


def test_tls_end_without_farewell_is_an_error(contexts: Contexts) -> None:
    server, client = contexts

    def rude(conn: Conn) -> None:
        conn.write(b"x")
        conn.abort()  # type: ignore[attr-defined]

    with serving(rude, ssl=server) as listener:
        with dial(listener.addr, timeout=WAIT, ssl=client, server_hostname="localhost") as conn:
            conn.set_deadline(WAIT)
            assert conn.read_exactly(1) == b"x"
            with pytest.raises(OSError):  # noqa: PT011
                conn.read()


def test_tls_close_wakes_a_reader(contexts: Contexts) -> None:
    server, client = contexts

    def quiet(conn: Conn) -> None:
        with conn, contextlib.suppress(OSError):  # the other end goes away with something unread
            conn.read()

    with serving(quiet, ssl=server) as listener:
        conn = dial(listener.addr, timeout=WAIT, ssl=client, server_hostname="localhost")
        reader = go(code_of, conn.read)
        until_waiting(reader)
        conn.close()
        assert reader.result(WAIT) == errno.EBADF


# ---- reading and writing ----


def test_slow_reader_gets_all_of_a_large_write() -> None:
    data = random.Random(2).randbytes(10_000_000)
    with pair() as (a, b):
        writer = go(a.write, data)
        got = bytearray()
        while len(got) < len(data):
            chunk = b.read(30_000)
            assert chunk
            got += chunk
            if len(got) % 7 == 0:
                gmp.sleep(0.001)
        assert writer.result(WAIT) == len(data)
        assert got == data


def test_half_close() -> None:
    with pair() as (a, b):
        a.write(b"question")
        a.close_write()
        b.set_deadline(WAIT)
        assert b.read_exactly(8) == b"question"
        assert b.read() == b""
        b.write(b"answer")
        b.close()
        assert a.read_exactly(6) == b"answer"
        assert a.read() == b""
        with pytest.raises(BrokenPipeError):
            a.write(b"more")


def test_readline() -> None:
    with pair() as (a, b):
        b.set_deadline(WAIT)
        reader = go(b.readline)
        for part in (b"ab", b"c", b"\nnext", b" line\nrest"):
            a.write(part)
            gmp.sleep(0.005)
        assert reader.result(WAIT) == b"abc\n"
        assert b.readline() == b"next line\n"
        assert b.read(2) == b"re"
        a.write(b"12345678\n")
        with pytest.raises(ValueError, match="no end of line"):
            b.readline(5)
        a.close()
        assert b.readline() == b"45678\n"
        assert b.readline() == b""
        with pytest.raises(ValueError):  # noqa: PT011
            b.readline(0)


def test_readline_without_newline_at_the_end() -> None:
    with pair() as (a, b):
        a.write(b"half")
        a.close()
        assert b.readline() == b"half"


def test_lines_by_iteration() -> None:
    with pair() as (a, b):
        a.write(b"one\n\ntwo\nrest")
        a.close_write()
        assert list(b) == [b"one\n", b"\n", b"two\n", b"rest"]


def test_peek_takes_nothing() -> None:
    with pair() as (a, b):
        b.set_deadline(WAIT)
        a.write(b"abc")
        for _ in range(3):
            assert b.read(100, so.MSG_PEEK) == b"abc"
        assert b.read(100) == b"abc"


@pytest.mark.parametrize("n", [0, 5, 65536, 65537, 1_000_000])
def test_read_exactly(n: int) -> None:
    data = random.Random(n).randbytes(n)
    with pair() as (a, b):
        b.set_deadline(WAIT)
        writer = go(a.write, data + b"x")
        assert b.read_exactly(n) == data
        writer.join(WAIT)
        a.close()
        with pytest.raises(EOFError, match="after 1 of 2 bytes"):
            b.read_exactly(2)
    with pytest.raises(ValueError):  # noqa: PT011
        b.read_exactly(-1)


def test_peer_reset() -> None:
    with pair() as (a, b):
        reader = go(code_of, b.read)
        until_waiting(reader)
        s = so.socket(fileno=a.detach())
        s.setsockopt(so.SOL_SOCKET, so.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()
        assert reader.result(WAIT) == errno.ECONNRESET
        assert code_of(b.write, b"x") == errno.EPIPE


# ---- deadlines ----


def test_deadline_in_the_past() -> None:
    with pair() as (a, b):
        a.write(b"x")
        b.set_read_deadline(0)
        with pytest.raises(TimeoutError):
            b.read_exactly(2)
        with pytest.raises(TimeoutError):
            b.wait_read()
        b.write(b"y")
        b.set_deadline(None)
        b.wait_write()


def test_deadline_in_the_past_holds_when_there_is_data() -> None:
    with pair() as (a, b):
        a.write(b"x")
        wait_read(b)
        b.set_deadline(0)
        for call in (lambda: b.read(1), lambda: b.read_into(bytearray(1)), lambda: b.write(b"y"), lambda: b.readline()):
            with pytest.raises(TimeoutError):
                call()  # type: ignore[no-untyped-call]
        b.set_deadline(None)
        assert b.read(1) == b"x"


def test_wait_read_sees_what_a_read_has_left() -> None:
    with pair() as (a, b):
        reader = go(b.read, 1)
        until_waiting(reader)
        a.write(b"xy")
        assert reader.result(WAIT) == b"x"  # the wake-up for both bytes is used up
        b.wait_read(WAIT)
        assert b.read(1) == b"y"


def test_a_closed_or_detached_connection_gives_no_data_to_those_who_wait() -> None:
    def taken(end: Callable[[Conn], Any]) -> bool:
        """Whether one who is awake, but has not run, when his connection is ended reads from it all the same."""
        late = []

        def read(mine: Conn, other: Conn) -> None:
            with contextlib.suppress(OSError):
                mine.read()
                late.append(mine.closed)
                end(other)

        with pair() as (a, b), pair() as (c, d):
            readers = [go(read, b, d), go(read, d, b)]
            for reader in readers:
                until_waiting(reader)
            a.write(b"x")
            c.write(b"x")  # one look finds both
            for reader in readers:
                reader.join(WAIT)
        return any(late)

    for end in (lambda conn: conn.close(), lambda conn: os.close(conn.detach())):
        assert sum(taken(end) for _ in range(10)) < 5  # not 0: one may be preempted just after its read


def test_timeout_of_one_call() -> None:
    with pair() as (a, b):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                b.read(1, 0, 0.01)
        with pytest.raises(TimeoutError):
            b.read(1, 0, 0)
        for call in (lambda: b.read(9, 0, 0), lambda: b.wait_read(0) or b.read(9)):
            a.write(b"there")
            assert select.select([b], [], [], WAIT)[0]  # without the poller, which need not have looked
            assert call() == b"there"  # type: ignore[no-untyped-call, func-returns-value]
        with pytest.raises(TimeoutError):
            b.wait_read(0)
        b.wait_write(0)
        reader = go(b.read, 1)  # the time-out has left no deadline behind
        until_waiting(reader)
        gmp.sleep(0.02)
        a.write(b"x")
        assert reader.result(WAIT) == b"x"
        with pytest.raises(TimeoutError):
            b.write(bytes(50_000_000), 0, 0.01)


def test_deadline_in_the_future_and_cleared() -> None:
    with pair() as (a, b):
        start = time.monotonic()
        b.set_read_deadline(0.05)
        with pytest.raises(TimeoutError):
            b.read()
        assert 0.05 <= time.monotonic() - start < WAIT
        with pytest.raises(TimeoutError):
            b.read()
        b.set_read_deadline(None)
        reader = go(b.read)
        until_waiting(reader)
        a.write(b"x")
        assert reader.result(WAIT) == b"x"


def test_deadline_moved_while_waiting() -> None:
    with pair() as (a, b):
        b.set_read_deadline(60)
        reader = go(b.read)
        until_waiting(reader)
        b.set_read_deadline(0.02)
        with pytest.raises(TimeoutError):
            reader.result(WAIT)

        def in_time(later: float | None) -> bool:
            start = time.monotonic()
            b.set_read_deadline(0.1)
            reader = go(b.read)
            until(lambda: reader.done or status(reader).startswith("IO wait"))  # type: ignore[union-attr]
            b.set_read_deadline(later)
            if time.monotonic() - start >= 0.1:  # on a busy machine
                a.write(b"x")
                with contextlib.suppress(TimeoutError):
                    return reader.result(WAIT) != b"x"
                return b.read() != b"x"
            gmp.sleep(0.15)
            assert not reader.done
            a.write(b"x")
            assert reader.result(WAIT) == b"x"
            return True

        until(lambda: in_time(60))
        until(lambda: in_time(None))


def test_write_deadline() -> None:
    with pair() as (a, _):
        a.set_write_deadline(0.05)
        with pytest.raises(TimeoutError):
            a.write(bytes(50_000_000))


@pytest.mark.parametrize("bad", [-1, float("nan"), "1"])
def test_bad_deadline(bad: Any) -> None:
    with pair() as (a, _), pytest.raises((ValueError, TypeError)):
        a.set_deadline(bad)


# ---- close ----


def test_close_wakes_reader_and_writer() -> None:
    with pair() as (a, _):
        reader, writer = go(code_of, a.read), go(code_of, a.write, bytes(50_000_000))
        until_waiting(reader)
        until_waiting(writer)
        a.close()
        assert reader.result(WAIT) == errno.EBADF
        assert writer.result(WAIT) == errno.EBADF
        assert a.fileno() == -1
        assert a.closed
        a.close()
        for call in (a.read, a.wait_read, a.wait_write, a.close_write, a.detach, lambda: a.local_addr):
            assert code_of(call) == errno.EBADF
        assert code_of(a.write, b"") == errno.EBADF
        assert code_of(a.set_deadline, 1) == errno.EBADF


def test_two_readers() -> None:
    with pair() as (a, b):
        first = go(b.read)
        until_waiting(first)
        assert code_of(b.read) == errno.EBUSY
        a.write(b"x")
        assert first.result(WAIT) == b"x"


def test_descriptor_is_not_reused_while_a_goroutine_waits() -> None:
    with pair() as (a, b), pair() as (c, d):
        number = b.fileno()
        reader = go(code_of, b.read)
        until_waiting(reader)
        b.close()
        new: list[int] = []
        # One of them gets the number sooner or later.
        until(lambda: new.append(os.open("/dev/null", os.O_RDONLY)) or number in new)  # type: ignore[func-returns-value]
        assert reader.result(WAIT) == errno.EBADF
        for fd in new:
            os.close(fd)
        r, w = os.pipe()
        other = go(d.read)
        c.write(b"d")
        assert other.result(WAIT) == b"d"
        os.close(r)
        os.close(w)
        a.close()


def test_reused_number_is_registered_afresh() -> None:
    for i in range(200):
        with pair() as (a, b):
            reader = go(b.read)
            a.write(b"%d" % i)
            assert reader.result(WAIT) == b"%d" % i


def test_dropped_connection_closes_its_descriptor() -> None:
    with pair() as (a, b):
        conn: Conn | None = Conn(a.detach())
        assert conn is not None
        reader = go(b.read)
        until_waiting(reader)
        conn = None
        gc.collect()
        assert reader.result(WAIT) == b""


# ---- any descriptor ----


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    r, w = os.pipe()
    yield r, w
    for fd in (r, w):
        with contextlib.suppress(OSError):
            os.close(fd)


def test_wait_read_on_a_pipe(pipe: tuple[int, int]) -> None:
    r, w = pipe
    with pytest.raises(TimeoutError):
        wait_read(r, 0)
    with pytest.raises(TimeoutError):
        wait_read(r, 0.02)
    waiters = [go(wait_read, r, WAIT) for _ in range(3)]
    for g in waiters:
        until_waiting(g)
    os.write(w, b"x")
    for g in waiters:
        g.result(WAIT)
    wait_read(r)
    wait_read(r, 0)
    os.read(r, 1)
    with pytest.raises(TimeoutError):
        wait_read(r, 0.01)
    g = go(wait_read, r, WAIT)
    os.close(w)
    g.result(WAIT)


def test_wait_write_on_a_full_pipe(pipe: tuple[int, int]) -> None:
    r, w = pipe
    wait_write(w, 1)
    os.set_blocking(w, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(w, bytes(65536))
    with pytest.raises(TimeoutError):
        wait_write(w, 0.01)
    g = go(wait_write, w, WAIT)
    os.read(r, 65536)
    g.result(WAIT)


def test_wait_on_a_connection_that_has_an_owner() -> None:
    with pair() as (a, b):
        reader = go(b.read)
        until_waiting(reader)
        g = go(wait_read, b, WAIT)
        until_waiting(g)
        a.write(b"x")
        g.result(WAIT)
        assert reader.result(WAIT) == b"x"
        with pytest.raises(TimeoutError):
            wait_read(b, 0.01)


def test_wait_on_bad_and_regular_files(tmp_path: Path, pipe: tuple[int, int]) -> None:
    for wait in (wait_read, wait_write):
        assert code_of(wait, -1) == errno.EBADF
        assert code_of(wait, 1 << 20) == errno.EBADF
        with open(tmp_path / "f", "w+b") as f:
            wait(f, 1)
            wait(f.fileno())
        with pytest.raises(TypeError):
            wait("x")  # type: ignore[arg-type]
        with pytest.raises(ValueError):  # noqa: PT011
            wait(pipe[0], -1)
    r, _ = pipe
    os.close(r)
    assert code_of(wait_read, r) == errno.EBADF


def test_an_old_waiter_leaves_a_reused_number_alone(pipe: tuple[int, int]) -> None:
    r, w = pipe
    old = go(wait_read, r, WAIT)
    until_waiting(old)
    with pair() as (a, b):
        fd = b.detach()
        os.dup2(fd, r)  # the number is another file's now
        os.close(fd)
        os.set_blocking(r, False)
        new = Conn(os.dup(r))
        with new:
            reader = go(new.read)
            until_waiting(reader)
            os.close(w)  # ends the old wait
            old.result(WAIT)
            a.write(b"x")
            assert reader.result(WAIT) == b"x"


def test_no_descriptor_is_left(pipe: tuple[int, int]) -> None:
    wait_write(pipe[1])
    gc.collect()  # those of others do not go meanwhile
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        wait_write(pipe[1], 1)
        with pytest.raises(TimeoutError):
            wait_read(pipe[0], 0.001)
        with pair() as (a, b):
            a.write(b"x")
            b.read(1)
        assert code_of(lambda: dial("127.0.0.1:1", timeout=WAIT)) == errno.ECONNREFUSED
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("fd", [-1, -5, 1 << 20])
def test_conn_of_a_bad_descriptor(fd: int) -> None:
    assert code_of(Conn, fd) == errno.EBADF


# ---- addresses ----


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("localhost", ValueError),
        ("127.0.0.1:", ValueError),
        ("::1:80", ValueError),
        ("127.0.0.1:65536", ValueError),
        (("127.0.0.1", -1), ValueError),
        (("127.0.0.1",), ValueError),
        (("127.0.0.1", 1.5), TypeError),
        ((5, 80), TypeError),
        (80, TypeError),
        (None, TypeError),
    ],
)
def test_bad_address(address: Any, error: type[Exception]) -> None:
    for fn in (dial, listen):
        with pytest.raises(error, match="address"):
            fn(address)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="udp"):
        dial("127.0.0.1:1", network="udp")
    with pytest.raises(ValueError, match="timeout"):
        dial("127.0.0.1:1", timeout=-1)
    with pytest.raises(ValueError, match="server_hostname"):
        dial("127.0.0.1:1", server_hostname="x")
    with pytest.raises(OSError, match="listen unix"):
        listen("/" + "x" * 200, network="unix")
    with pytest.raises(FileNotFoundError, match="/nonexistent/s"):
        dial("/nonexistent/s", network="unix")


@pytest.mark.parametrize("timeout", [None, 20.0])
def test_host_that_does_not_resolve(timeout: float | None) -> None:
    with pytest.raises(so.gaierror, match=r"host\.invalid"):
        dial("host.invalid:80", timeout=timeout)
    with pytest.raises(so.gaierror):
        dial(("a" * 300, 80), timeout=timeout)


def test_ipv6() -> None:
    try:
        listener = listen("[::1]:0")
    except OSError as e:
        pytest.skip(f"no IPv6 here: {e}")
    with listener, dial(listener.addr, timeout=WAIT) as a, listener.accept() as b:
        assert listener.addr[0] == a.remote_addr[0] == b.remote_addr[0] == "::1"
        assert a.local_addr == b.remote_addr
        b.write(b"six")
        assert a.read() == b"six"
        with dial(f"[::1]:{listener.addr[1]}", network="tcp6", timeout=WAIT) as c:
            assert c.remote_addr == listener.addr


def found(*addresses: tuple[str, int]) -> Callable[..., Any]:
    """What getaddrinfo is to find."""
    return lambda *args: [(so.AF_INET, so.SOCK_STREAM, 6, "", address) for address in addresses]


def test_each_address_of_a_host_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with so.socket() as s, listen("127.0.0.1:0") as listener:
        s.bind(("127.0.0.1", 0))
        closed, open_ = s.getsockname(), listener.addr
        monkeypatch.setattr(so, "getaddrinfo", found(closed, closed, open_))
        for timeout in (None, WAIT):
            with dial("somewhere:1", timeout=timeout) as conn:
                assert conn.remote_addr == open_
        monkeypatch.setattr(so, "getaddrinfo", found(closed, ("127.0.0.1", 1)))
        with pytest.raises(ConnectionRefusedError, match="dial tcp somewhere:1: Connection refused"):
            dial("somewhere:1")


def test_resolving_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = gmp.Chan[None](1), threading.Event()

    def slow(*args: Any) -> Any:
        asked.send(None)
        answer.wait(WAIT)  # as getaddrinfo blocks: the thread, without the GIL
        return found(listener.addr)()

    with listen("127.0.0.1:0") as listener:
        monkeypatch.setattr(so, "getaddrinfo", slow)
        dialing = go(dial, "somewhere:1")
        asked.recv(WAIT)
        with pytest.raises(TimeoutError, match="looking up the host"):
            dial("somewhere:1", timeout=0.02)
        answer.set()
        dialing.result(WAIT).close()
        asked.recv(WAIT)


def test_refused_names_the_address() -> None:
    with so.socket() as s:
        s.bind(("127.0.0.1", 0))  # who does not listen gets no connections
        port = s.getsockname()[1]
        with pytest.raises(ConnectionRefusedError, match=f"dial tcp 127.0.0.1:{port}: "):
            dial(("127.0.0.1", port), timeout=WAIT)


def test_dial_times_out() -> None:
    s = so.socket()
    s.bind(("127.0.0.1", 0))
    s.listen(0)
    filled = []
    try:
        start = time.monotonic()
        with pytest.raises(TimeoutError, match=r"dial tcp 127.0.0.1"):
            for _ in range(10):  # the queue is full before long
                filled.append(dial(s.getsockname(), timeout=0.1))
        assert time.monotonic() - start < WAIT
    finally:
        s.close()
        for conn in filled:
            conn.close()


def test_dial_unix_with_a_full_queue(tmp_path: Path) -> None:
    with listen(tmp_path / "s", network="unix", backlog=0) as listener:
        filled = []
        with pytest.raises(TimeoutError):
            for _ in range(10):
                filled.append(dial(tmp_path / "s", network="unix", timeout=0.05))
        late = go(dial, tmp_path / "s", network="unix", timeout=WAIT)
        for _ in filled:
            listener.accept().close()
        late.result(WAIT).close()
        for conn in filled:
            conn.close()


# ---- listeners ----


def test_listener() -> None:
    with listen("127.0.0.1:0") as listener:
        assert "127.0.0.1" in repr(listener)
        with pytest.raises(OSError, match=r"listen tcp 127.0.0.1") as caught:
            listen(listener.addr)
        assert caught.value.errno == errno.EADDRINUSE
        listener.set_deadline(0.02)
        with pytest.raises(TimeoutError):
            listener.accept()
        listener.set_deadline(None)
        acceptors = [go(code_of, listener.accept) for _ in range(5)]
        parked(*acceptors)
        listener.close()
        assert {g.result(WAIT) for g in acceptors} == {errno.EBADF}
        assert list(listener) == []
        listener.close()
    assert "closed" in repr(listener)


def test_listen_on_all_addresses() -> None:
    with listen(":0") as listener:
        for host in ("127.0.0.1", "localhost"):
            with dial((host, listener.addr[1]), timeout=WAIT) as a, listener.accept() as b:
                assert b.remote_addr[1] == a.local_addr[1]
                assert "ffff" not in str(b.remote_addr[0])


def test_reuse_port() -> None:
    with listen("127.0.0.1:0", reuse_port=True) as one, listen(one.addr, reuse_port=True) as two:
        assert one.addr == two.addr


def test_accept_survives_a_lack_of_descriptors(child: Callable[..., Any]) -> None:
    child(
        """
        import resource, socket, os, time, gmp, gmp.net
        listener = gmp.net.listen("127.0.0.1:0")
        warm = socket.create_connection(listener.addr)
        listener.accept().close()
        clients = [socket.socket() for _ in range(3)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        filler = []
        try:
            while True:
                filler.append(os.dup(0))
        except OSError as e:
            print(e.errno)
        g = gmp.go(lambda: [listener.accept() for _ in clients])
        for c in clients:
            c.settimeout(20)
            c.connect(listener.addr)
        gmp.sleep(0.05)
        assert not g.done
        for fd in filler:
            os.close(fd)
        print(len(g.result(20)))
        """
    ).expect(0, f"{errno.EMFILE}\n3")


# ---- many ----


def test_many_connections_echo_what_they_got() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)

    def client(address: Any, i: int) -> int:
        rng = random.Random(seed + i)
        total = 0
        with dial(address, timeout=WAIT * 3) as conn:
            conn.set_deadline(WAIT * 3)
            for _ in range(rng.randrange(1, 8)):
                data = rng.randbytes(rng.choice((1, 64, 1000, 100_000)))
                writer = go(conn.write, data)
                assert conn.read_exactly(len(data)) == data
                writer.join(WAIT)
                total += len(data)
                if rng.random() < 0.1:
                    gmp.sleep(rng.random() * 0.01)
        return total

    with serving(echo) as listener:
        clients = [go(client, listener.addr, i) for i in range(500)]
        assert sum(g.result(WAIT * 3) for g in clients) > 0


def test_main_and_threads_may_use_connections() -> None:
    import threading

    with serving(echo) as listener:
        results = []

        def thread() -> None:
            with dial(listener.addr, timeout=WAIT) as conn:
                conn.set_deadline(WAIT)
                conn.write(b"thread")
                results.append(conn.read_exactly(6))

        threads = [threading.Thread(target=thread) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(WAIT)
        assert results == [b"thread"] * 4


def test_ctrl_c_ends_a_read(child: Callable[..., Any]) -> None:
    child(
        """
        import os, signal, gmp, gmp.net
        from tests.waiting import me, parked
        listener = gmp.net.listen("127.0.0.1:0")
        conn = gmp.net.dial(listener.addr)
        gmp.go(lambda main: (parked(main), os.kill(os.getpid(), signal.SIGINT)), me())
        try:
            conn.read()
        except KeyboardInterrupt:
            print("interrupted")
        other = listener.accept()
        other.write(b"x")
        print(conn.read())
        """
    ).expect(0, "interrupted\nb'x'")


def test_signal_handler_may_use_the_connection_that_its_goroutine_waits_for(child: Callable[..., Any]) -> None:
    child(
        """
        import os, signal, gmp, gmp.net
        from tests.waiting import me, parked
        listener = gmp.net.listen("127.0.0.1:0")
        conn = gmp.net.dial(listener.addr)
        other = listener.accept()
        def write(main):
            parked(main)
            other.write(b"xy")
        def read(*args):
            gmp.go(write, me())
            print(conn.read(1))  # parks, and uses up the wake-up for both bytes
        signal.signal(signal.SIGUSR1, read)
        gmp.go(lambda main: (parked(main), os.kill(os.getpid(), signal.SIGUSR1)), me())
        print(conn.read(1, 0, 30))
        """
    ).expect(0, "b'x'\nb'y'")


def test_child_of_a_fork_uses_the_listener_of_its_parent(child: Callable[..., Any]) -> None:
    child(
        """
        import os, warnings, gmp, gmp.net
        from tests.waiting import parked
        warnings.simplefilter("ignore")
        listener = gmp.net.listen("127.0.0.1:0")
        mine = gmp.net.dial(listener.addr)
        theirs = listener.accept()
        waiting = gmp.go(theirs.read)  # not in the child
        parked(waiting)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                theirs.close()
                conn = listener.accept()
                conn.write(conn.read_exactly(5))
                conn.close()
                code = 0
            finally:
                os._exit(code)
        with gmp.net.dial(listener.addr, timeout=20) as conn:
            conn.set_deadline(20)
            conn.write(b"hello")
            print(conn.read_exactly(5))
        print(os.waitpid(pid, 0)[1])
        mine.write(b"x")
        print(waiting.result(20))
        """
    ).expect(0, "b'hello'\n0\nb'x'")


def test_conn_of_a_blocking_descriptor_does_not_block() -> None:
    a, b = so.socketpair()
    with a, Conn(b.detach()) as conn:
        reader = go(conn.read)
        until_waiting(reader)
        a.send(b"x")
        assert reader.result(WAIT) == b"x"


def test_short_read_is_not_always_the_end_of_what_is_there() -> None:
    """The kernel stops a read at urgent data, and behind a message with descriptors: what follows must not wait for more."""
    with pair() as (a, b):
        reader = go(b.read)
        until_waiting(reader)
        with so.socket(fileno=os.dup(a.fileno())) as s:
            s.send(b"abc")
            s.send(b"!", so.MSG_OOB)
            s.send(b"def")
        assert reader.result(WAIT) == b"abc"
        b.set_deadline(WAIT)
        assert b.read() == b"def"
    one, two = so.socketpair()
    with Conn(one.detach()) as conn, two:
        reader = go(conn.read)
        until_waiting(reader)
        so.send_fds(two, [b"abc"], [0])
        two.send(b"def")
        assert reader.result(WAIT) == b"abc"
        conn.set_deadline(WAIT)
        assert conn.read() == b"def"


def test_descriptor_that_somebody_made_blocking() -> None:
    """Its open file may be shared with another process, or code that sets it: a read must park all the same."""
    with pair() as (a, b):
        os.set_blocking(b.fileno(), True)
        reader = go(b.read)
        until_waiting(reader)
        writer = go(b.write, bytes(20_000_000))
        until_waiting(writer)
        a.write(b"x")
        assert reader.result(WAIT) == b"x"
        b.close()
        assert code_of(writer.result, WAIT) == errno.EBADF


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.read("x"), r"read\(\) size must be an int, not str"),
        (lambda c: c.read(1.5), r"read\(\) size must be an int, not float"),
        (lambda c: c.read(1, None), r"read\(\) flags must be an int, not NoneType"),
        (lambda c: c.read(1, 0, "x"), r"read\(\): the time must be a number of seconds or None, not str"),
        (lambda c: c.read(1, 0, None, 4), r"read\(\) takes .* at most, 4 arguments were given"),
        (lambda c: c.read_exactly("x"), r"size must be an int, not str"),
        (lambda c: c.readline("x"), r"readline\(\) limit must be an int, not str"),
        (lambda c: c.read_into(), r"read_into\(\) takes a buffer"),
        (lambda c: c.read_into(b"x"), r"read_into\(\) buffer must be writable.*bytes is not"),
        (lambda c: c.read_into("x"), r"read_into\(\) buffer must be a bytes-like object, not str"),
        (lambda c: c.write("x"), r"write\(\) data must be a bytes-like object, not str"),
        (lambda c: c.write(b"x", "y"), r"write\(\) flags must be an int, not str"),
        (lambda c: c.write_part(None), r"write_part\(\) data must be a bytes-like object, not NoneType"),
        (lambda c: c.shutdown("x"), r"shutdown\(\) how must be an int, not str"),
        (lambda c: c.set_deadline("x"), r"set_deadline\(\): the time must be a number of seconds or None, not str"),
        (lambda c: c.wait_read("x"), r"wait_read\(\): the time must be a number of seconds or None, not str"),
        (lambda c: Conn("x"), r"Conn\(\) fileno must be an int, not str"),
        (lambda c: wait_read("x"), r"fd must be an int or have a fileno\(\) method, not str"),
        (lambda c: wait_write(c, "x"), r"the time must be a number of seconds or None, not str"),
        (lambda c: dial(5), r"address must be 'host:port' or \(host, port\), not int"),
        (lambda c: dial("a:1", network=6), r"network must be a str, not int"),
        (lambda c: dial("a:1", timeout="x"), r"dial\(\) timeout must be a number of seconds or None, not str"),
        (lambda c: dial("a:1", ssl=1), r"ssl must be an ssl.SSLContext, not int"),
        (lambda c: dial("a:1", server_hostname=1), r"server_hostname must be a str, not int"),
        (lambda c: listen(":0", backlog="x"), r"listen\(\) backlog must be an int or None, not str"),
        (lambda c: listen(":0", ssl=1), r"listen\(\) ssl must be an ssl.SSLContext, not int"),
    ],
)
def test_wrong_types_are_named(call: Callable[[Any], Any], message: str) -> None:
    with pair() as (_, b):
        with pytest.raises(TypeError, match=message):
            call(b)
        with pytest.raises(ValueError, match="size must be 0 or more"):
            b.read(-1)
