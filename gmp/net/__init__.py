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
"""

from __future__ import annotations

from gmp.net._conn import Conn, dial
from gmp.net._listener import Listener, listen
from gmp.net._socket import create_connection, socket
from gmp.net._wait import wait_read, wait_write

__all__ = [
    "Conn",
    "Listener",
    "create_connection",
    "dial",
    "listen",
    "socket",
    "wait_read",
    "wait_write",
]
