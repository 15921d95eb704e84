"""Addresses: how they are written, how they are found, how they are shown."""

from __future__ import annotations

import errno
import os
import socket as so
import struct
import time
from typing import Any, TypeAlias

from gmp import _core

# "host:port", (host, port), or a path for Unix sockets
Address: TypeAlias = str | bytes | os.PathLike[str] | tuple[Any, ...]
# (host, port), or a path
Name: TypeAlias = tuple[str, int] | str

FAMILIES = {"tcp": so.AF_UNSPEC, "tcp4": so.AF_INET, "tcp6": so.AF_INET6, "unix": getattr(so, "AF_UNIX", None)}


def check_network(network: str) -> None:
    """ValueError for a network that is not known here."""
    if not isinstance(network, str):
        raise TypeError(f"network must be a str, not {type(network).__name__}")
    if FAMILIES.get(network) is None:
        raise ValueError(f"network must be one of {', '.join(map(repr, FAMILIES))}, not {network!r}")


def split(address: Address) -> tuple[str, int | str]:
    """(host, port) of a TCP address; "" for no host.  TypeError, ValueError.  Go: net.SplitHostPort"""
    if isinstance(address, str):
        host, colon, port = address.rpartition(":")
        if not colon:
            raise ValueError(f"address {address!r}: the port is missing; write host:port")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"address {address!r}: too many colons; write [host]:port")
        return host, check_port(address, port)
    if isinstance(address, tuple):
        if len(address) < 2:
            raise ValueError(f"address {address!r}: must be (host, port)")
        host, port = address[0], address[1]
        if isinstance(host, bytes):
            host = host.decode("ascii")
        if host is not None and not isinstance(host, str):
            raise TypeError(f"address {address!r}: the host must be a str, not {type(host).__name__}")
        return host or "", check_port(address, port)
    raise TypeError(f"address must be 'host:port' or (host, port), not {type(address).__name__}")


def check_port(address: Address, port: Any) -> int | str:
    if isinstance(port, str):
        if not port:
            raise ValueError(f"address {address!r}: the port is missing; write host:port")
        if not (port.isascii() and port.lstrip("+-").isdigit()):
            return port  # the name of a service
        port = int(port)
    if not isinstance(port, int):
        raise TypeError(f"address {address!r}: the port must be an int, not {type(port).__name__}")
    if not 0 <= port <= 65535:
        raise ValueError(f"address {address!r}: the port must be 0 to 65535")
    return port


def path_of(address: Address) -> str:
    """The path of a Unix socket; one that starts with a NUL character is in Linux's abstract name space."""
    if not isinstance(address, (str, bytes, os.PathLike)):
        raise TypeError(f"address must be a path, not {type(address).__name__}")
    path = os.fsdecode(address)
    if not path:
        raise ValueError("address must be a path, not an empty string")
    return path


def show(address: Any) -> str:
    """An address for messages."""
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[0], address[1]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host or ''}:{port}"
    return repr(address) if isinstance(address, str) and address[:1] == "\0" else str(address)


def name_of(family: int, address: Any) -> Name:
    """What the socket module returns as an address, in the form that dial() takes."""
    if family == so.AF_INET6:
        host = str(address[0])
        if host.startswith("::ffff:") and "." in host:
            host = host[7:]  # IPv4 on a socket for both
        return host, int(address[1])
    if family == so.AF_INET:
        return str(address[0]), int(address[1])
    return os.fsdecode(address)


def parse_sockaddr(raw: bytes) -> Name:
    """A struct sockaddr as accept(2) fills it."""
    family = struct.unpack_from("=H", raw)[0] if len(raw) >= 2 else so.AF_UNSPEC
    if family == so.AF_INET:
        return so.inet_ntop(so.AF_INET, raw[4:8]), struct.unpack_from("!H", raw, 2)[0]
    if family == so.AF_INET6:
        host = so.inet_ntop(so.AF_INET6, raw[8:24])
        scope = struct.unpack_from("=I", raw, 24)[0]
        if scope and host.startswith("fe80:"):
            host += "%" + scope_name(scope)
        return name_of(so.AF_INET6, (host, struct.unpack_from("!H", raw, 2)[0]))
    path = raw[2:]
    return os.fsdecode(path if path[:1] == b"\0" else path.partition(b"\0")[0])


def scope_name(scope: int) -> str:
    try:
        return so.if_indextoname(scope)
    except OSError:
        return str(scope)


Found: TypeAlias = "list[tuple[int, Any]]"


def resolve(network: str, host: str, port: int | str, deadline: float | None, flags: int = 0) -> Found:
    """(family, address) of each TCP address of a host, in getaddrinfo's order.

    getaddrinfo blocks its thread and releases the GIL, so the other goroutines go on.  With a deadline (time.monotonic) it
    runs in a goroutine of its own, which is left behind when the time is up, as there is no way to end it.
    Raises socket.gaierror, TimeoutError.
    """
    family = FAMILIES[network]
    assert family is not None

    def look() -> Found | Exception:
        try:
            infos = so.getaddrinfo(host or None, port, family, so.SOCK_STREAM, 0, flags)
        except (OSError, UnicodeError) as e:
            return e
        return [(int(info[0]), info[4]) for info in infos]

    found = look() if deadline is None else _core.go(look).result(max(0.0, deadline - time.monotonic()))
    shown = show((host, port))
    if isinstance(found, so.gaierror):
        raise so.gaierror(found.errno, f"{shown}: {found.strerror}") from None
    if isinstance(found, OSError):
        raise error(found.errno or errno.EIO, shown) from None
    if isinstance(found, UnicodeError):
        raise so.gaierror(so.EAI_NONAME, f"{shown}: not a host name") from found
    assert isinstance(found, list)
    return found


def error(code: int, what: str) -> OSError:
    """The OSError of an errno (of the subclass that goes with it) whose message says what it was about."""
    return OSError(code, f"{what}: {os.strerror(code)}")
