"""SSLSocket: ssl.SSLSocket over gmp.net.socket, for code that wraps sockets by an ssl.SSLContext."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar

from gmp.net._socket import socket
from gmp.sync import Mutex

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")


class SSLSocket(ssl.SSLSocket, socket):  # type: ignore[misc]
    """What an ssl.SSLContext's wrap_socket returns once its sslsocket_class is this class: an ssl.SSLSocket that parks.

        context = ssl.create_default_context()
        context.sslsocket_class = gmp.net.SSLSocket

    Reads and writes of several goroutines at a time are safe: OpenSSL's part of each is done one after the other.
    """

    _engine: Mutex  # OpenSSL's object is not for two threads at a time; never held while parked
    _writing: Mutex  # a write that has to wait is to be repeated before another one begins

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls, *args, **kwargs)
        self._engine = Mutex()
        self._writing = Mutex()
        return self

    def _tls(self, call: Callable[..., T], *args: Any) -> T:
        deadline: float | None = -1.0
        while True:
            try:
                with self._engine:
                    return (self._poll or self._poller()).call(call, *args)
            except ssl.SSLWantReadError:
                write = False
                if self._seconds == 0:
                    raise
            except ssl.SSLWantWriteError:
                write = True
                if self._seconds == 0:
                    raise
            if deadline == -1.0:
                deadline = self._until()
            self._wait(write, deadline)

    def _tls_write(self, call: Callable[..., T], *args: Any) -> T:
        if not self._writing.try_lock():
            if self._seconds == 0:
                raise ssl.SSLWantWriteError("another goroutine's write is under way")
            self._writing.lock(self._seconds)
        try:
            return self._tls(call, *args)
        finally:
            self._writing.unlock()

    def do_handshake(self, block: bool = False) -> None:
        seconds = self._seconds
        if block and seconds == 0:
            self._seconds = None
        try:
            self._tls(super().do_handshake)
        finally:
            self._seconds = seconds

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        return self._tls(super().read, len, buffer)

    def write(self, data: Buffer) -> int:
        return self._tls_write(super().write, data)

    def send(self, data: Buffer, flags: int = 0) -> int:
        if self._sslobj is None:  # type: ignore[attr-defined]
            return super().send(data, flags)
        return self._tls_write(super().send, data, flags)

    def unwrap(self) -> Any:
        return self._tls(super().unwrap)
