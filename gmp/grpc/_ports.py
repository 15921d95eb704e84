"""Addresses as gRPC writes them, and the sockets that listen there."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import Any
from urllib.parse import unquote

_BACKLOG = 4096


def bind(address: str | bytes, reuse_port: bool, listen: bool = True) -> list[socket.socket]:
    """Return the listening sockets of an address in gRPC's notation: one, or more for a name with several addresses."""
    if isinstance(address, bytes):
        address = address.decode()
    if not isinstance(address, str):
        raise TypeError(f"an address must be a str, like '[::]:50051', not {type(address).__name__}")
    scheme, _, rest = address.partition(":")
    if scheme in ("unix", "unix-abstract"):
        path = unquote(rest)
        if path.startswith("//"):
            path = path[2:]
        return [_listen(socket.AF_UNIX, "\0" + path if scheme == "unix-abstract" else path, False, listen)]
    for prefix in ("dns:///", "dns:", "ipv4:", "ipv6:"):
        if address.startswith(prefix):
            address = address[len(prefix) :]
            break
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("no port in it; expected host:port")
    if int(port) > 65535:
        raise ValueError("a port is 65535 at most")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if host in ("", "*"):
        host = "::"
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"
    found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, _, _, _, where in dict.fromkeys(found):
        if sockets and int(port) == 0:  # all on the port that the first one got
            where = (where[0], sockets[0].getsockname()[1], *where[2:])
        try:
            sockets.append(_listen(family, where, reuse_port, listen))
        except OSError as error:
            failure = error
    if not sockets:
        raise failure or OSError("the name has no address")
    return sockets


def _listen(family: int, where: Any, reuse_port: bool, listen: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, where[0] != "::")
        if family == socket.AF_UNIX and not where.startswith("\0"):
            with contextlib.suppress(
                OSError
            ):  # left over from a server before us, or one that we replace, as with grpcio
                if stat.S_ISSOCK(os.lstat(where).st_mode):
                    os.unlink(where)
        sock.bind(where)
        if listen:
            sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def files(sockets: list[socket.socket]) -> list[tuple[str, int]]:
    """The files of those that are Unix sockets, with their inodes' numbers: see remove."""
    paths = [sock.getsockname() for sock in sockets if sock.family == socket.AF_UNIX]
    return [(path, os.lstat(path).st_ino) for path in paths if isinstance(path, str) and path]


def remove(found: list[tuple[str, int]]) -> None:
    """Remove them, but for those that another server has replaced by its own."""
    while found:
        path, inode = found.pop()
        with contextlib.suppress(OSError):
            if os.lstat(path).st_ino == inode:
                os.unlink(path)
