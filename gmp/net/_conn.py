"""Conn and dial."""

from __future__ import annotations

import errno
import os
import socket as so
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

import gmp
from gmp import _core
from gmp.net import _addr
from gmp.net._addr import Address, Name

if TYPE_CHECKING:
    import ssl as ssl_module

LINE_MAX = 65536
FEWEST_SECONDS = 2.0  # of a dial's time for each address, if there is that much


class Conn(_core.FD):
    """A stream connection: TCP, a Unix socket, or TLS over one of them.  dial() and Listener.accept() make them.

    read(n=65536): some bytes, at most n (and 64 KiB), parking while there are none; b"" at the end.  A socket's recv.
    read_into(buffer): the same into a writable buffer; returns their number.
    read_exactly(n), readline(), and lines by iteration.
    write(data): all of data, parking while the other end is slow; returns its length.  A socket's sendall.
    write_part(data): some of it; returns how much.  A socket's send.
    set_deadline(seconds), set_read_deadline, set_write_deadline: from then on, counted from now, reads or writes raise
    TimeoutError, those that wait already too, until another one is set; None: no deadline.
    close_write(), shutdown(how): end one direction.  close(): those who wait in read or write get OSError (EBADF).
    wait_read(), wait_write(): park until the next read or write is worth a try.  fileno(); closed; detach().

    One goroutine may wait to read and one to write at a time; another one gets OSError (EBUSY).  TCP_NODELAY is set.
    Errors are OSError with the usual errno: ECONNRESET and EPIPE when the other end has gone.
    Conn(fileno) takes over the descriptor of a connected stream socket.
    Go: net.Conn (net/net.go); differs: reads and writes of one direction do not queue up.
    """

    __slots__ = ("_local", "_remote")

    _local: Name | None
    _remote: Name | bytes | None

    def __new__(cls, fileno: int, *, remote: Name | bytes | None = None) -> Self:
        if remote is None:  # not one that accept() or dial() has made
            if not isinstance(fileno, int):
                raise TypeError(f"Conn() fileno must be an int, not {type(fileno).__name__}")
            os.set_blocking(fileno, False)
        return super().__new__(cls, fileno)

    def __init__(self, fileno: int, *, remote: Name | bytes | None = None) -> None:
        self._local = None
        self._remote = remote

    @property
    def local_addr(self) -> Name:
        """This end's address: (host, port), or the path of a Unix socket, "" if it has none.  Go: LocalAddr"""
        if self._local is None:
            self._local = self._ask("getsockname")
        return self._local

    @property
    def remote_addr(self) -> Name:
        """The other end's address.  Go: RemoteAddr"""
        if self._remote is None:
            self._remote = self._ask("getpeername")
        elif isinstance(self._remote, bytes):
            self._remote = _addr.parse_sockaddr(self._remote)
        return self._remote

    def _ask(self, question: str) -> Name:
        s = so.socket(fileno=_open_fd(self))
        try:
            name = _addr.name_of(s.family, getattr(s, question)())
        finally:
            s.detach()
        _open_fd(self)  # else it may have been another one's descriptor meanwhile
        return name

    def read_exactly(self, n: int) -> bytes:
        """Read n bytes.  EOFError when the connection ends before; otherwise as read().

        What was read before an error, the deadline's too, is gone.  Go: io.ReadFull
        """
        data = self.read(n)
        if len(data) == n:
            return data
        if n > LINE_MAX and data:
            return self._read_large(n, data)
        parts = [data]
        left = n - len(data)
        while left:
            data = self.read(left)
            if not data:
                raise EOFError(f"the connection ended after {n - left} of {n} bytes")
            parts.append(data)
            left -= len(data)
        return b"".join(parts)

    def _read_large(self, n: int, start: bytes) -> bytes:
        buffer = bytearray(start)
        while len(buffer) < n:
            data = self.read(n - len(buffer))
            if not data:
                raise EOFError(f"the connection ended after {len(buffer)} of {n} bytes")
            buffer += data
        return bytes(buffer)

    def readline(self, limit: int = LINE_MAX) -> bytes:
        """Read a line, with its newline; without at the end of the connection, b"" when there is nothing more.

        ValueError when there is no newline among the first limit bytes, which are gone then; so is the part of a line that
        came before a TimeoutError.  Takes nothing behind the line: read() goes on there.  Go: bufio.Reader.ReadBytes
        """
        if not isinstance(limit, int):
            raise TypeError(f"readline() limit must be an int, not {type(limit).__name__}")
        if limit < 1:
            raise ValueError(f"readline() limit must be 1 or more, not {limit}")
        parts = []
        left = limit
        while left:
            ahead = self._peek(min(left, LINE_MAX))
            if not ahead:
                break
            end = ahead.find(b"\n") + 1
            parts.append(self.read(end or len(ahead)))
            if end:
                break
            left -= len(ahead)
        else:
            raise ValueError(f"readline(): no end of line within {limit} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def __iter__(self) -> Iterator[bytes]:
        """Lines, as readline() reads them, until the end of the connection."""
        while line := self.readline():
            yield line

    def _peek(self, n: int) -> bytes:
        return self.read(n, so.MSG_PEEK)

    def close_write(self) -> None:
        """Say that nothing more will be written: the other end reads b"" and may still write.  Go: CloseWrite"""
        self.shutdown(so.SHUT_WR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<gmp.net.{type(self).__name__} {'closed' if self.closed else f'fd={self.fileno()}'}>"


def _open_fd(fd: _core.FD) -> int:
    n = fd.fileno()
    if n < 0:
        raise OSError(errno.EBADF, "use of a closed connection")
    return n


def dial(
    address: Address,
    *,
    network: str = "tcp",
    timeout: float | None = None,
    ssl: ssl_module.SSLContext | None = None,
    server_hostname: str | None = None,
) -> Conn:
    """Connect; the goroutine parks meanwhile.

    address: "host:port", "[::1]:port", (host, port); no host: this one; for network "unix" a path.
    network: "tcp", "tcp4", "tcp6" or "unix".  timeout: seconds for all of it, resolving and the TLS handshake included.
    ssl: a context for TLS; server_hostname: the name to check, the address's host if None.
    The addresses of a host are tried one after the other.
    Raises OSError with its errno, socket.gaierror for a host that is not found, TimeoutError; ssl.SSLError.
    Go: net.Dialer.Dial; differs: addresses are not raced.
    """
    _addr.check_network(network)
    if timeout is not None and not isinstance(timeout, (int, float)):
        raise TypeError(f"dial() timeout must be a number of seconds or None, not {type(timeout).__name__}")
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"dial() timeout must be 0 or more seconds or None, not {timeout!r}")
    if ssl is not None:
        from ssl import SSLContext

        if not isinstance(ssl, SSLContext):
            raise TypeError(f"dial() ssl must be an ssl.SSLContext, not {type(ssl).__name__}")
    if server_hostname is not None and not isinstance(server_hostname, str):
        raise TypeError(f"dial() server_hostname must be a str, not {type(server_hostname).__name__}")
    if server_hostname is not None and ssl is None:
        raise ValueError("dial(): server_hostname is for TLS; give ssl too")
    deadline = None if timeout is None else time.monotonic() + timeout
    if network == "unix":
        path = _addr.path_of(address)
        host = None
        what = f"dial unix {_addr.show(path)}"
        conn = _connect(so.AF_UNIX, path, what, deadline)
    else:
        host, port = _addr.split(address)
        what = f"dial {network} {_addr.show((host, port))}"
        conn = _dial_tcp(network, host, port, what, deadline)
    if ssl is None:
        return conn
    from gmp.net._tls import TLSConn

    try:
        tls = TLSConn.over(conn, ssl, server_side=False, server_hostname=server_hostname or host or None)
    except BaseException:
        conn.close()
        raise
    try:
        if deadline is not None:
            tls.set_deadline(max(0.0, deadline - time.monotonic()))
        tls.handshake()
        if deadline is not None:
            tls.set_deadline(None)
    except TimeoutError:
        tls.abort()
        raise TimeoutError(errno.ETIMEDOUT, f"{what}: the TLS handshake timed out") from None
    except BaseException:
        tls.abort()
        raise
    return tls


def _dial_tcp(network: str, host: str, port: int | str, what: str, deadline: float | None) -> Conn:
    try:
        found = _addr.resolve(network, host, port, deadline)
    except TimeoutError:
        raise TimeoutError(errno.ETIMEDOUT, f"{what}: timed out looking up the host") from None
    first: OSError | None = None
    for i, (family, address) in enumerate(found):
        until = deadline
        if deadline is not None:
            now = time.monotonic()
            left = deadline - now  # Go: net.partialDeadline
            until = now + max(left / (len(found) - i), min(left, FEWEST_SECONDS))
        try:
            return _connect(family, address, what, until)
        except OSError as e:
            first = first or e
    assert first is not None  # getaddrinfo finds something or raises
    raise first


def _connect(family: int, address: str | tuple[str, int], what: str, deadline: float | None) -> Conn:
    s = so.socket(family, so.SOCK_STREAM)
    conn: Conn | None = None
    try:
        s.setblocking(False)
        if family != so.AF_UNIX:
            s.setsockopt(so.IPPROTO_TCP, so.TCP_NODELAY, 1)
        code = s.connect_ex(address)
        pause = 0.001
        while code == errno.EAGAIN and family == so.AF_UNIX:  # the queue is full, and there is no event for its end
            if deadline is not None and time.monotonic() + pause > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"{what}: timed out")
            gmp.sleep(pause)
            pause = min(pause * 2, 0.05)
            code = s.connect_ex(address)
        remote = _addr.name_of(family, address)
        if remote == "":
            remote = os.fsdecode(address)  # type: ignore[arg-type]
        conn = Conn(s.fileno(), remote=remote)
        if code == errno.EINPROGRESS:
            code = _wait_connected(s, conn, what, deadline)
        if code not in (0, errno.EISCONN):
            raise _addr.error(code, what)
        s.detach()
        return conn
    except TypeError:
        raise
    except BaseException:
        if conn is not None:
            s.detach()
            conn.close()
        raise
    finally:
        if s.fileno() >= 0:
            s.close()


def _wait_connected(s: so.socket, conn: Conn, what: str, deadline: float | None) -> int:
    """The errno a connect under way ends with.  Go: net.(*netFD).connect"""
    try:
        if deadline is not None:
            conn.set_write_deadline(max(0.0, deadline - time.monotonic()))
        while True:
            conn.wait_write()
            code = s.getsockopt(so.SOL_SOCKET, so.SO_ERROR)
            if code in (errno.EINPROGRESS, errno.EALREADY, errno.EINTR):
                continue
            if code == 0:
                try:
                    s.getpeername()
                except OSError:
                    continue  # a false alarm
            break
    except TimeoutError:
        raise TimeoutError(errno.ETIMEDOUT, f"{what}: timed out") from None
    if deadline is not None:
        conn.set_write_deadline(None)
    return code
