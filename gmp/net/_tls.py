"""TLS over a Conn, by the ssl module's own objects: an SSLObject between two MemoryBIOs.

Locks, in this order:
    _reading    who reads records from the wire
    _writing    who writes to the wire, so that records keep their order
    _engine     the SSLObject and the BIOs, which are not for two threads at a time; never held while parked on the wire
"""

from __future__ import annotations

import socket as so
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

from gmp import _core
from gmp.net._conn import LINE_MAX, Conn
from gmp.sync import Mutex

T = TypeVar("T")

RECORDS = 256 * 1024  # written at a time
CLOSE_SECONDS = 5.0  # for the farewell.  Go: tls.(*Conn).closeNotify

_FD = _core.FD


def _octets(what: str, data: Any) -> memoryview:
    try:
        return memoryview(data).cast("B")
    except TypeError:
        raise TypeError(f"{what} must be a bytes-like object, not {type(data).__name__}") from None


class TLSConn(Conn):
    """A Conn with TLS.  The first read or write does the handshake, unless handshake() has.

    Differs from a plain one: readers queue up, writers too; an end of the connection without TLS's own farewell raises
    ssl.SSLEOFError.  After a TimeoutError of a write or a handshake it is of no more use.  Go: crypto/tls.Conn
    """

    __slots__ = ("_ahead", "_engine", "_in", "_out", "_reading", "_shaken", "_tls", "_writing")

    def __init__(self, fileno: int, *, remote: Any = None) -> None:
        super().__init__(fileno, remote=remote)
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._ahead = b""  # decrypted, not yet asked for
        self._shaken = False
        self._reading = Mutex()
        self._writing = Mutex()
        self._engine = Mutex()

    @classmethod
    def over(
        cls, conn: Conn, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> TLSConn:
        """TLS over a plain connection, which is taken over: only the new one is to be used."""
        if not isinstance(context, ssl.SSLContext):
            conn.close()
            raise TypeError(f"ssl must be an ssl.SSLContext, not {type(context).__name__}")
        tls = cls(conn.detach(), remote=conn._remote)
        try:
            tls._tls = context.wrap_bio(tls._in, tls._out, server_side, server_hostname)
        except BaseException:
            _FD.close(tls)
            raise
        return tls

    _tls: ssl.SSLObject

    @property
    def ssl_object(self) -> ssl.SSLObject:
        """For its getpeercert(), cipher(), selected_alpn_protocol(), version() ..."""
        return self._tls

    def handshake(self) -> None:
        """Do the handshake, if it is not done.  Raises ssl.SSLError, OSError, TimeoutError.  Go: Handshake"""
        if self._shaken:
            return
        with self._reading:
            while not self._shaken:
                failure: ssl.SSLError | None = None
                with self._engine:
                    try:
                        self._tls.do_handshake()
                        self._shaken = True
                    except ssl.SSLWantReadError:
                        pass
                    except ssl.SSLError as e:
                        failure = e
                if failure is not None:
                    try:
                        self._flush()  # the alert
                    except OSError:
                        pass
                    try:
                        raise failure
                    finally:
                        failure = None  # a cycle through the traceback, which would keep the connection open
                self._flush()
                if not self._shaken:
                    self._receive()

    def _receive(self) -> None:
        data = _FD.read(self)
        with self._engine:
            if data:
                self._in.write(data)
            else:
                self._in.write_eof()

    def _flush(self) -> None:
        if not self._out.pending:
            return
        with self._writing:
            with self._engine:
                data = self._out.read()
            if data:
                _FD.write(self, data)

    def _fill(self, n: int) -> None:
        """Add something to _ahead, unless the connection is at its end.  _reading is held, _ahead guarded by _engine."""
        before = len(self._ahead)
        while True:
            done = False
            with self._engine:
                if len(self._ahead) > before:
                    return  # _farewell did it
                try:
                    self._ahead += self._tls.read(n)
                    done = True
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLZeroReturnError:
                    done = True
            self._flush()  # an answer of the protocol's own
            if done:
                return
            self._receive()

    def read(self, size: int | None = None, flags: int = 0, timeout: float | None = None, /) -> bytes:
        """Some bytes, at most size; b"" at the end.  flags: MSG_PEEK leaves them there.

        timeout: seconds, for this call, instead of the deadline.  Raises as Conn.read(), and ssl.SSLError.
        """
        if timeout is not None:
            return self._timed(self.set_read_deadline, timeout, self.read, size, flags)
        if size is None:
            size = LINE_MAX
        if not isinstance(size, int):
            raise TypeError(f"read() size must be an int, not {type(size).__name__}")
        size = min(size, LINE_MAX)
        if size < 0:
            raise ValueError(f"read() size must be 0 or more, not {size}")
        self.handshake()
        if size == 0:
            return b""
        with self._reading:
            if not self._ahead:
                self._fill(size)
            with self._engine:
                data = self._ahead[:size]
                if not flags & so.MSG_PEEK:
                    self._ahead = self._ahead[size:]
            return data

    def _timed(
        self, set_deadline: Callable[[float | None], None], timeout: float, call: Callable[..., T], *args: Any
    ) -> T:
        set_deadline(timeout)
        try:
            return call(*args)
        finally:
            if not self.closed:
                set_deadline(None)

    def read_into(self, buffer: Any, size: int = 0, flags: int = 0, timeout: float | None = None, /) -> int:
        """The same into a writable buffer; returns the number of bytes."""
        if timeout is not None:
            return self._timed(self.set_read_deadline, timeout, self.read_into, buffer, size, flags)
        with _octets("read_into() buffer", buffer) as octets:
            data = self.read(size if 0 < size < len(octets) else len(octets), flags)
            octets[: len(data)] = data
            return len(data)

    def write(self, data: Any, flags: int = 0, timeout: float | None = None, /) -> int:
        """All of data; returns its length.  timeout: seconds, for this call, instead of the deadline."""
        if timeout is not None:
            return self._timed(self.set_write_deadline, timeout, self.write, data, flags)
        self.handshake()
        with _octets("write() data", data) as octets:
            total = len(octets)
            with self._writing:
                for start in range(0, total, RECORDS):
                    part = octets[start : start + RECORDS]
                    with self._engine:
                        while part:
                            part = part[self._tls.write(part) :]
                        records = self._out.read()
                    _FD.write(self, records)
            return total

    def write_part(self, data: Any, flags: int = 0, timeout: float | None = None, /) -> int:
        """Some of data; returns how much."""
        with _octets("write_part() data", data) as octets:
            return self.write(octets[:RECORDS], flags, timeout)

    def _farewell(self) -> None:
        """Puts close_notify into _out.  _engine is held."""
        try:
            while True:  # else unwrap would stumble over it
                data = self._tls.read(LINE_MAX)
                if not data:
                    break
                self._ahead += data
        except ssl.SSLError:
            pass
        try:
            self._tls.unwrap()
        except (ssl.SSLError, ValueError):
            pass

    def close_write(self) -> None:
        """Say that nothing more will be written.  The other end may still write, if it is one that does: TLS 1.3."""
        self.handshake()
        with self._writing:
            with self._engine:
                self._farewell()
                data = self._out.read()
            if data:
                _FD.write(self, data)

    def close(self) -> None:
        """Say farewell, unless a write is under way, and close; those who wait get OSError."""
        if not self.closed and self._shaken and self._writing.try_lock():
            try:
                with self._engine:
                    self._farewell()
                    data = self._out.read()
                self.set_write_deadline(CLOSE_SECONDS)
                if data:
                    _FD.write(self, data)
            except OSError:
                pass
            finally:
                self._writing.unlock()
        _FD.close(self)

    def abort(self) -> None:
        """Close without a farewell."""
        _FD.close(self)
