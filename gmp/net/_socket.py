"""socket: the interface of socket.socket for code that is written against it."""

from __future__ import annotations

import errno
import os
import socket as so
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import gmp
from gmp import _core
from gmp.net._wait import wait_read, wait_write

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")


class socket(so.socket):
    """A socket.socket whose blocking calls park the goroutine.

    The descriptor itself is always non-blocking; a time-out is gmp's.  close() wakes those who wait, with OSError (EBADF),
    which a socket.socket does not.  ssl.SSLContext.wrap_socket makes an ordinary blocking socket of it: for TLS, see dial().
    """

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        self._poll: _core.FD | None = None
        self._seconds: float | None = so.getdefaulttimeout()
        super().__init__(family, type, proto, fileno)
        super().setblocking(False)

    # ---- time-outs ----

    def settimeout(self, value: float | None, /) -> None:
        """Seconds until a call raises TimeoutError; None: never; 0: calls that would wait raise BlockingIOError."""
        if value is not None:
            value = 0.0 + value  # TypeError for what is not a number
            if not value >= 0:
                raise ValueError("Timeout value out of range")
        self._seconds = value

    def gettimeout(self) -> float | None:
        """What settimeout has set."""
        return self._seconds

    @property
    def timeout(self) -> float | None:
        return self._seconds

    def setblocking(self, flag: bool, /) -> None:
        """settimeout(None) or settimeout(0)."""
        self._seconds = None if flag else 0.0

    def getblocking(self) -> bool:
        """False when settimeout has set 0."""
        return self._seconds != 0

    # ---- waiting ----

    def _poller(self) -> _core.FD:
        if self._poll is None:
            fd = self.fileno()
            if fd < 0:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._poll = _core.FD(fd)  # closes it from here on
        return self._poll

    def _wait(self, write: bool, deadline: float | None) -> None:
        """Park until a call is worth another try."""
        poll = self._poller()
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError("timed out")
        try:
            if write:
                poll.set_write_deadline(left)
                poll.wait_write()
            else:
                poll.set_read_deadline(left)
                poll.wait_read()
        except TimeoutError:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError("timed out") from None
            # another goroutine's
        except OSError as e:
            if e.errno != errno.EBUSY:
                raise
            # A goroutine waits there already.  This one looks from time to time whether the socket was closed.
            pause = 1.0 if left is None else min(left, 1.0)
            try:
                (wait_write if write else wait_read)(poll.fileno(), pause)
            except TimeoutError:
                pass

    def _until(self) -> float | None:
        return None if self._seconds is None else time.monotonic() + self._seconds

    def _parking(self, write: bool, call: Callable[..., T], *args: Any) -> T:
        if self._seconds == 0:
            return call(*args)
        deadline: float | None = -1.0
        while True:
            try:
                return call(*args)
            except BlockingIOError:
                pass
            if deadline == -1.0:
                deadline = self._until()
            self._wait(write, deadline)

    # ---- calls that wait ----

    def connect(self, address: Any, /) -> None:
        """Connect, parking until it is done."""
        if self._seconds == 0:
            super().connect(address)
            return
        deadline = self._until()
        pause = 0.001
        while True:
            try:
                super().connect(address)
                return
            except BlockingIOError as e:
                if e.errno != errno.EAGAIN:
                    break
                # A Unix socket whose queue is full: there is no event for its end
                if deadline is not None and time.monotonic() + pause > deadline:
                    raise TimeoutError("timed out") from None
                gmp.sleep(pause)
                pause = min(pause * 2, 0.05)
        while True:
            self._wait(True, deadline)
            code = self.getsockopt(so.SOL_SOCKET, so.SO_ERROR)
            if code in (errno.EINPROGRESS, errno.EALREADY, errno.EINTR):
                continue
            if code not in (0, errno.EISCONN):
                raise OSError(code, os.strerror(code))
            try:
                self.getpeername()
            except OSError as e:
                if e.errno != errno.ENOTCONN:
                    raise
                continue
            return

    def connect_ex(self, address: Any, /) -> int:
        """The same, but returns the errno, 0 for none."""
        try:
            self.connect(address)
        except TimeoutError as e:
            return e.errno or errno.EAGAIN
        except so.gaierror:
            raise
        except OSError as e:
            if e.errno is None:
                raise
            return e.errno
        return 0

    def accept(self) -> tuple[socket, Any]:
        """Park until a connection comes in; returns its socket and the other end's address."""
        fd, address = self._parking(False, cast(Any, super())._accept)
        return socket(self.family, self.type, self.proto, fileno=fd), address

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        return self._parking(False, super().recv, bufsize, flags)

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        return self._parking(False, super().recv_into, buffer, nbytes, flags)

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        return self._parking(False, super().recvfrom, bufsize, flags)

    def recvfrom_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        return self._parking(False, super().recvfrom_into, buffer, nbytes, flags)

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        return self._parking(False, super().recvmsg, bufsize, ancbufsize, flags)

    def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        return self._parking(False, super().recvmsg_into, buffers, ancbufsize, flags)

    def send(self, data: Buffer, flags: int = 0, /) -> int:
        return self._parking(True, super().send, data, flags)

    def sendall(self, data: Buffer, flags: int = 0, /) -> None:
        """All of data.  The time-out is for all of it, as in socket.socket."""
        if self._seconds == 0:
            super().sendall(data, flags)
            return
        deadline: float | None = -1.0
        send = super().send
        with memoryview(data) as view, view.cast("B") as octets:
            sent = 0
            while True:
                try:
                    sent += send(octets[sent:] if sent else octets, flags)
                    if sent >= len(octets):
                        return
                    continue
                except BlockingIOError:
                    pass
                if deadline == -1.0:
                    deadline = self._until()
                self._wait(True, deadline)

    def sendto(self, data: Buffer, *args: Any) -> int:
        return self._parking(True, super().sendto, data, *args)

    def sendmsg(self, *args: Any) -> int:
        return self._parking(True, super().sendmsg, *args)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a file, by reading it and send()."""
        return cast(int, cast(Any, self)._sendfile_use_send(file, offset, count))

    # ---- the end ----

    def dup(self) -> socket:
        """A socket of a duplicate of the descriptor."""
        other = socket(self.family, self.type, self.proto, fileno=so.dup(self.fileno()))
        other.settimeout(self._seconds)
        return other

    def detach(self) -> int:
        """Close the object and leave the descriptor open, non-blocking; returns it."""
        poll, self._poll = self._poll, None
        if poll is not None:
            poll.detach()
        return super().detach()

    def _real_close(self) -> None:
        poll, self._poll = self._poll, None
        if poll is None:
            so.SocketType.close(self)
        else:
            so.SocketType.detach(self)
            poll.close()  # closes the descriptor when the last who waits has left

    def __del__(self) -> None:
        if self.__dict__.get("_poll") is not None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self._real_close()
        elif hasattr(super(), "__del__"):
            cast(Any, super()).__del__()


def create_connection(
    address: tuple[str | None, int],
    timeout: float | object | None = getattr(so, "_GLOBAL_DEFAULT_TIMEOUT"),  # noqa: B009
    source_address: tuple[str, int] | None = None,
    *,
    all_errors: bool = False,
) -> socket:
    """socket.create_connection with this module's socket; for http.client: connection._create_connection = this."""
    errors: list[Exception] = []
    host, port = address
    for family, kind, proto, _, where in so.getaddrinfo(host, port, 0, so.SOCK_STREAM):
        s = None
        try:
            s = socket(family, kind, proto)
            if timeout is None or isinstance(timeout, (int, float)):
                s.settimeout(timeout)
            if source_address:
                s.bind(source_address)
            s.connect(where)
            return s
        except OSError as e:
            errors.append(e)
            if s is not None:
                s.close()
    if not errors:
        raise OSError("getaddrinfo returns an empty list")
    if all_errors:
        raise ExceptionGroup("create_connection failed", errors)
    raise errors[0]
