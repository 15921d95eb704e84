"""wait_read and wait_write: for descriptors that other code owns."""

from __future__ import annotations

import errno
import os
import select
from typing import Protocol

from gmp import _core


class HasFileno(Protocol):
    def fileno(self) -> int: ...


def wait_read(fd: int | HasFileno, timeout: float | None = None) -> None:
    """Park until a read from a descriptor would not block: there is data, an end, an error, or a connection to accept.

    fd: a descriptor, or what has a fileno(); blocking or not.  timeout: seconds; None: no limit; 0: do not wait.
    Raises TimeoutError, and OSError: EBADF for a closed or negative one, EMFILE when there is none left for the duplicate that is
    waited on.  Regular files are always ready.
    Any number of goroutines may wait for the same descriptor, and a Conn may own it.  Closing the descriptor with os.close
    wakes nobody, as everywhere in Unix.  Go: internal/poll.(*FD).RawRead, which waits the same way
    """
    _wait(fd, timeout, False)


def wait_write(fd: int | HasFileno, timeout: float | None = None) -> None:
    """Park until a write to a descriptor would not block, or would fail.  Otherwise as wait_read."""
    _wait(fd, timeout, True)


def _wait(fd: int | HasFileno, timeout: float | None, write: bool) -> None:
    if not isinstance(fd, int):
        fileno = getattr(fd, "fileno", None)
        if fileno is None:
            raise TypeError(f"fd must be an int or have a fileno() method, not {type(fd).__name__}")
        fd = fileno()
        if not isinstance(fd, int):
            raise TypeError(f"fileno() must return an int, not {type(fd).__name__}")
    if fd < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    # A duplicate is registered, which is a registration of its own: it can neither meet another one of this open file, nor
    # take out the next owner of the number when this one is closed meanwhile; and it starts with the present state, so that
    # no edge is missing.
    # It is closed here and nowhere else, wherever a signal handler raises.
    own = os.dup(fd)
    try:
        try:
            poll = _core.FD(own, True)
        except OSError as e:
            if e.errno == errno.EPERM:
                return  # a regular file or a directory
            raise
        try:
            if write:
                poll.wait_write(timeout)
            else:
                poll.wait_read(timeout)
        except TimeoutError:
            if not _ready(own, write):
                raise TimeoutError(f"{'write' if write else 'read'} timed out") from None
        finally:
            poll.close()
    finally:
        os.close(own)


def _ready(fd: int, write: bool) -> bool:
    p = select.poll()
    p.register(fd, select.POLLOUT if write else select.POLLIN)
    return bool(p.poll(0))
