"""Listener and listen."""

from __future__ import annotations

import errno
import os
import socket as so
from collections.abc import Iterator
from typing import TYPE_CHECKING

import gmp
from gmp import _core
from gmp.net import _addr
from gmp.net._addr import Address, Name
from gmp.net._conn import Conn
from gmp.sync import Mutex

if TYPE_CHECKING:
    import ssl as ssl_module

# Of a connection that went away, or whose network did, before it was accepted: accept(2)
GONE = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED ENETDOWN EPROTO ENOPROTOOPT EHOSTDOWN ENONET EHOSTUNREACH EOPNOTSUPP ENETUNREACH ECONNRESET EPERM"
    ).split()
    if hasattr(errno, name)
)
SHORT = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
FIRST_PAUSE, LAST_PAUSE = 0.005, 0.2


class Listener:
    """Accepts connections; listen() makes it.  Iterating accepts until it is closed.

    Any number of goroutines may accept at a time; they take turns.  Go: net.Listener
    """

    def __init__(self, fd: _core.FD, addr: Name, ssl: ssl_module.SSLContext | None, path: str | None) -> None:
        self._fd = fd
        self._addr = addr
        self._ssl = ssl
        self._path = path
        self._inode = _inode(path)
        self._turn = Mutex()

    @property
    def addr(self) -> Name:
        """Where it listens: (host, port), or a path.  Go: Addr"""
        return self._addr

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._fd.closed

    def fileno(self) -> int:
        """The descriptor; -1 when closed."""
        return self._fd.fileno()

    def accept(self) -> Conn:
        """Park until a connection comes in and return it.

        With TLS the handshake is done by the connection's first read or write, in whose goroutine that is.
        Connections that ended before they were accepted are passed over.  Out of descriptors or memory, it waits (5 ms to
        0.2 s, as Go's http.Server does) and tries again.  Raises OSError (EBADF) when closed, TimeoutError at the deadline.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                with self._turn:
                    fd, remote = self._fd.accept()
            except TimeoutError:
                raise TimeoutError(f"accept {_addr.show(self._addr)}: timed out") from None
            except OSError as e:
                if self._fd.closed:
                    raise OSError(errno.EBADF, f"accept {_addr.show(self._addr)}: use of a closed listener") from None
                if e.errno in GONE:
                    continue
                if e.errno not in SHORT:
                    raise
                gmp.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE)
                continue
            try:
                conn = Conn(fd, remote=remote)
            except BaseException:
                os.close(fd)
                raise
            if self._ssl is None:
                return conn
            from gmp.net._tls import TLSConn

            return TLSConn.over(conn, self._ssl, server_side=True)

    def set_deadline(self, seconds: float | None) -> None:
        """accept() raises TimeoutError from then on, seconds from now; None: never.  Go: TCPListener.SetDeadline"""
        self._fd.set_read_deadline(seconds)

    def close(self) -> None:
        """Stop listening; those who accept get OSError.  The path of a Unix socket is removed.  Again: nothing."""
        if self._fd.closed:
            return
        self._fd.close()
        if self._path is not None and self._inode is not None and _inode(self._path) == self._inode:
            try:
                os.unlink(self._path)
            except OSError:
                pass

    def __iter__(self) -> Iterator[Conn]:
        while True:
            try:
                conn = self.accept()
            except OSError:
                if self._fd.closed:
                    return
                raise
            yield conn

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<gmp.net.Listener {_addr.show(self._addr)}{' closed' if self.closed else ''}>"


def _inode(path: str | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        st = os.stat(path)
    except (OSError, ValueError):
        return None
    return st.st_dev, st.st_ino


def listen(
    address: Address,
    *,
    network: str = "tcp",
    backlog: int | None = None,
    reuse_port: bool = False,
    ssl: ssl_module.SSLContext | None = None,
) -> Listener:
    """Listen for connections.

    address: as for dial(); without a host, on all of this host's, IPv4 and IPv6; port 0: a free one, see Listener.addr.
    network: "tcp", "tcp4", "tcp6" or "unix".  backlog: connections that may wait to be accepted; None: the system's most.
    reuse_port: share the port with other listeners that say so (SO_REUSEPORT).  ssl: a context for TLS.
    Raises OSError with its errno, socket.gaierror for a host that is not found.  Go: net.Listen
    """
    _addr.check_network(network)
    if backlog is None:
        backlog = so.SOMAXCONN
    elif not isinstance(backlog, int):
        raise TypeError(f"listen() backlog must be an int or None, not {type(backlog).__name__}")
    if ssl is not None:
        from ssl import SSLContext

        if not isinstance(ssl, SSLContext):
            raise TypeError(f"listen() ssl must be an ssl.SSLContext, not {type(ssl).__name__}")
    if network == "unix":
        path = _addr.path_of(address)
        what = f"listen unix {_addr.show(path)}"
        return _listen(so.AF_UNIX, path, what, backlog, reuse_port, ssl)
    host, port = _addr.split(address)
    what = f"listen {network} {_addr.show((host, port))}"
    both = not host and network == "tcp" and so.has_dualstack_ipv6()
    found = _addr.resolve("tcp6" if both else network, host, port, None, so.AI_PASSIVE)
    # Of several addresses an IPv4 one, as Go does
    family, where = next((f for f in found if f[0] == so.AF_INET), found[0])
    return _listen(family, where, what, backlog, reuse_port, ssl, both)


def _listen(
    family: int,
    address: str | tuple[str, int],
    what: str,
    backlog: int,
    reuse_port: bool,
    ssl: ssl_module.SSLContext | None,
    both: bool = False,
) -> Listener:
    s = so.socket(family, so.SOCK_STREAM)
    try:
        s.setblocking(False)
        try:
            if family != so.AF_UNIX:
                s.setsockopt(so.SOL_SOCKET, so.SO_REUSEADDR, 1)
                s.setsockopt(so.IPPROTO_TCP, so.TCP_NODELAY, 1)  # what is accepted inherits it
                if family == so.AF_INET6:
                    s.setsockopt(so.IPPROTO_IPV6, so.IPV6_V6ONLY, not both)
            if reuse_port:
                s.setsockopt(so.SOL_SOCKET, so.SO_REUSEPORT, 1)
            s.bind(address)
            s.listen(backlog)
        except OSError as e:
            if e.errno is None:
                raise OSError(f"{what}: {e}") from None  # a path that is too long
            raise _addr.error(e.errno, what) from None
        name = _addr.name_of(family, s.getsockname())
        fd = _core.FD(s.fileno())
        s.detach()
    finally:
        s.close()
    path = name if isinstance(name, str) and name[:1] not in ("", "\0") else None
    return Listener(fd, name, ssl, path)
