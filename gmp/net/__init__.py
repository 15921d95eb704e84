"""Connections, listeners and any other descriptor, waited for by goroutines: they park, no thread waits.  Go: package net.

    def echo(conn):
        with conn:
            while data := conn.read(65536):
                conn.write(data)

    with gmp.net.listen("127.0.0.1:7000") as listener:
        for conn in listener:
            gmp.go(echo, conn)

Layout
    _addr       addresses, name resolution
    _conn       Conn and dial
    _listener   Listener and listen
    _tls        Conn over an ssl.SSLContext
    _wait       wait_read and wait_write for any descriptor
    _socket     socket, with the interface of socket.socket, and create_connection
    _ssl_socket SSLSocket, the same for ssl.SSLSocket
Not imported here, for libraries that take a socket:
    http        connections of http.client, servers of http.server and socketserver
    urllib3     pools        requests    a session and its adapter
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gmp.net._conn import Conn, dial
from gmp.net._listener import Listener, listen
from gmp.net._socket import create_connection, socket
from gmp.net._wait import wait_read, wait_write

if TYPE_CHECKING:
    from gmp.net._ssl_socket import SSLSocket

__all__ = [
    "Conn",
    "Listener",
    "SSLSocket",
    "create_connection",
    "dial",
    "listen",
    "socket",
    "wait_read",
    "wait_write",
]


def __getattr__(name: str) -> Any:
    if name == "SSLSocket":  # not before it is asked for: the ssl module is large
        from gmp.net._ssl_socket import SSLSocket

        return SSLSocket
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
