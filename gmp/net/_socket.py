"""socket: the interface of socket.socket for code that is written against it.

The descriptor is non-blocking; what would block parks the goroutine instead.  From the first call that may wait on, a
_core.FD owns the descriptor: it knows who waits, and closes the descriptor when the last call on it has ended.  Every call
goes through it (read, write_part, or call for the rest), so none meets a number that has become another file's.
"""

from __future__ import annotations

import errno
import os
import socket as so
import time
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import gmp
from gmp import _core
from gmp.net._wait import wait_read, wait_write

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

NONBLOCK = getattr(so, "SOCK_NONBLOCK", 0)
DONTWAIT = getattr(so, "MSG_DONTWAIT", 0)
WAITALL = getattr(so, "MSG_WAITALL", 0)
LOOK_AGAIN = 1.0  # seconds: how late one who waits behind another notices that the socket was closed


class socket(so.socket):
    """A socket.socket whose blocking calls park the goroutine.

    It does what socket.socket does, but for this: the descriptor itself (fileno(), detach()) is always non-blocking, the
    time-out is gmp's; close() wakes those who wait, with OSError (EBADF); sendfile() reads and sends.
    For TLS let the context make the socket: context.sslsocket_class = gmp.net.SSLSocket.
    """

    _poll: _core.FD | None
    _seconds: float | None

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        self._poll = None
        self._seconds = 0.0 if type != -1 and type & NONBLOCK else so.getdefaulttimeout()
        super().__init__(family, type, proto, fileno)
        super().setblocking(False)

    # ---- time-outs ----

    def settimeout(self, value: float | None, /) -> None:
        """Seconds until a call raises TimeoutError; None: never; 0: calls that would wait raise BlockingIOError."""
        if value is not None:
            try:
                value = 0.0 + value
            except TypeError:
                kind = type(value).__name__
                raise TypeError(f"settimeout() value must be a number of seconds or None, not {kind}") from None
            if not value >= 0:
                raise ValueError("Timeout value out of range")
        super().setblocking(False)  # OSError when closed
        self._seconds = value

    def gettimeout(self) -> float | None:
        """What settimeout has set."""
        return self._seconds

    @property
    def timeout(self) -> float | None:
        return self._seconds

    def setblocking(self, flag: bool, /) -> None:
        """settimeout(None) or settimeout(0)."""
        self.settimeout(None if flag else 0.0)

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

    def _until(self) -> float | None:
        return None if self._seconds is None else time.monotonic() + self._seconds

    def _wait(self, write: bool, deadline: float | None) -> None:
        """Park until a call is worth another try."""
        poll = self._poller()
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError("timed out")
        try:
            if write:
                poll.wait_write(left)
            else:
                poll.wait_read(left)
        except TimeoutError:
            raise TimeoutError("timed out") from None
        except OSError as e:
            if e.errno != errno.EBUSY:
                raise
            # A goroutine waits there already; this one waits beside it.
            try:
                pause = LOOK_AGAIN if left is None else min(left, LOOK_AGAIN)
                (wait_write if write else wait_read)(poll.fileno(), pause)
            except TimeoutError:
                pass

    def _parking(self, write: bool, flags: int, call: Callable[..., T], *args: Any) -> T:
        """call(*args), parking until it does not raise BlockingIOError."""
        poll = self._poll
        if self._seconds == 0 or flags & DONTWAIT:
            return call(*args) if poll is None else poll.call(call, *args)
        deadline: float | None = -1.0
        while True:
            poll = self._poll or self._poller()
            try:
                return poll.call(call, *args)
            except BlockingIOError:
                pass
            if deadline == -1.0:
                deadline = self._until()
            self._wait(write, deadline)

    # ---- calls that wait ----

    def connect(self, address: Any, /) -> None:
        """Connect, parking until it is done.  A host's name is resolved first, which blocks this thread only."""
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
        fd, address = self._parking(False, 0, cast(Any, super())._accept)
        return socket(self.family, self.type, self.proto, fileno=fd), address

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """At most bufsize bytes, and at most 64 KiB of a stream; b"" at its end."""
        if flags or self._seconds == 0 or type(bufsize) is not int or bufsize < 0:
            if flags & WAITALL and self._seconds is None:
                buffer = bytearray(bufsize)
                return bytes(buffer[: self.recv_into(buffer, 0, flags)])
            return self._parking(False, flags, super().recv, bufsize, flags)
        try:
            return (self._poll or self._poller()).read(bufsize, 0, self._seconds)
        except TimeoutError:
            raise TimeoutError("timed out") from None
        except OSError as e:
            if e.errno != errno.EBUSY:
                raise
        return self._parking(False, flags, super().recv, bufsize, flags)

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        if flags & WAITALL and self._seconds is None and self.type == so.SOCK_STREAM:
            return self._receive_all(buffer, nbytes, flags & ~WAITALL)
        if not (flags or nbytes or self._seconds == 0):
            try:
                return (self._poll or self._poller()).read_into(buffer, 0, 0, self._seconds)
            except TimeoutError:
                raise TimeoutError("timed out") from None
            except OSError as e:
                if e.errno != errno.EBUSY:
                    raise
        return self._parking(False, flags, super().recv_into, buffer, nbytes, flags)

    def _receive_all(self, buffer: Buffer, nbytes: int, flags: int) -> int:
        with memoryview(buffer) as view, view.cast("B") as octets:
            if not 0 <= nbytes <= len(octets):
                raise ValueError("recv_into(): nbytes must be 0 to the length of the buffer")
            total, done = nbytes or len(octets), 0
            while done < total:
                n = self._parking(False, flags, super().recv_into, octets[done:total], 0, flags)
                done += n
                if not n or flags & so.MSG_PEEK:
                    break
            return done

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        return self._parking(False, flags, super().recvfrom, bufsize, flags)

    def recvfrom_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        return self._parking(False, flags, super().recvfrom_into, buffer, nbytes, flags)

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        return self._parking(False, flags, super().recvmsg, bufsize, ancbufsize, flags)

    def recvmsg_into(self, buffers: Iterable[Buffer], ancbufsize: int = 0, flags: int = 0, /) -> Any:
        return self._parking(False, flags, super().recvmsg_into, list(buffers), ancbufsize, flags)

    def send(self, data: Buffer, flags: int = 0, /) -> int:
        if not flags and self._seconds != 0:
            try:
                return (self._poll or self._poller()).write_part(data, 0, self._seconds)
            except TimeoutError:
                raise TimeoutError("timed out") from None
            except OSError as e:
                if e.errno != errno.EBUSY:
                    raise
        return self._parking(True, flags, super().send, data, flags)

    def sendall(self, data: Buffer, flags: int = 0, /) -> None:
        """All of data.  The time-out is for all of it, as in socket.socket."""
        if self._seconds == 0 or flags & DONTWAIT:
            super().sendall(data, flags)
            return
        start = time.monotonic() if self._seconds is not None else 0.0
        sent = socket.send(self, data, flags)
        if isinstance(data, bytes) and sent == len(data):
            return
        with memoryview(data) as view, view.cast("B") as octets:
            deadline = None if self._seconds is None else start + self._seconds
            while sent < len(octets):
                try:
                    sent += (self._poll or self._poller()).call(super().send, octets[sent:], flags)
                except BlockingIOError:
                    self._wait(True, deadline)

    def sendto(self, data: Buffer, *args: Any) -> int:
        flags = args[0] if len(args) > 1 else 0
        return self._parking(True, flags, super().sendto, data, *args)

    def sendmsg(self, buffers: Iterable[Buffer], ancdata: Iterable[Any] = (), *args: Any) -> int:
        flags = args[0] if args else 0
        return self._parking(True, flags, super().sendmsg, list(buffers), list(ancdata), *args)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a file, by reading it and send()."""
        return cast(int, cast(Any, self)._sendfile_use_send(file, offset, count))

    # ---- the end ----

    def dup(self) -> Self:
        """A socket of a duplicate of the descriptor."""
        other = type(self)(self.family, self.type, self.proto, fileno=so.dup(self.fileno()))
        other.settimeout(self._seconds)
        return other

    def detach(self) -> int:
        """Close the object and leave the descriptor open, non-blocking; returns it."""
        poll, self._poll = self._poll, None
        if poll is not None:
            poll.detach()
        return super().detach()

    def _real_close(self, *args: Any) -> None:
        poll, self._poll = self._poll, None
        if poll is None:
            so.SocketType.close(self)
        else:
            so.SocketType.detach(self)
            poll.close()  # closes the descriptor when the last call has ended

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
    options: Iterable[tuple[Any, ...]] = (),
) -> socket:
    """socket.create_connection with this module's socket.

    address: (host, port); each of the host's addresses is tried, with the time-out for each.  timeout: seconds, or None;
    the new socket's too.  options: arguments of setsockopt, for before the connection.
    Raises OSError (the first one, or with all_errors an ExceptionGroup of all), socket.gaierror.
    """
    errors: list[Exception] = []
    host, port = address
    for family, kind, proto, _, where in so.getaddrinfo(host, port, 0, so.SOCK_STREAM):
        s = None
        try:
            s = socket(family, kind, proto)
            for option in options:
                s.setsockopt(*option)
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
        except BaseException:
            if s is not None:
                s.close()
            raise
    if not errors:
        raise OSError("getaddrinfo returns an empty list")
    try:
        if all_errors:
            raise ExceptionGroup("create_connection failed", errors)
        raise errors[0]
    finally:
        errors.clear()  # a cycle through the traceback
