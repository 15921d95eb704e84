"""Locks that belong to goroutines, for grpcio's server code.

grpc._server guards each call with a threading.Condition and each server with a threading.RLock.  Those belong to OS threads: a goroutine
that waits may go on in another thread, which then does not own the lock, and two goroutines of one thread would both own it.  These
two belong to the goroutine, or to the thread where there is none, and may be used from both at once.

Invariants:

* The lock of a Condition is only held for short stretches of code that do not park.  Whoever finds it taken therefore blocks his OS thread
  for that moment instead of parking: a caller may hold a threading.RLock of his own (grpcio's health service does), and that is safe
  as long as he stays in his thread.  The holder always gets on, because the scheduler takes the P from a blocked thread.
* Should the holder have parked all the same (a log handler or a finaliser may do anything), its turn is given to others every _PATIENCE.
* Condition.wait parks.  Condition.notify never blocks and never parks: grpcio calls it where events come in.
* RLock, the lock of a whole server, is held while interceptors run, for as long as they like: it parks.
"""

from __future__ import annotations

from _thread import allocate_lock
from types import TracebackType
from typing import Any

import gmp
from gmp._core import _goid
from gmp.sync import Mutex

_PATIENCE = 0.01  # seconds that a taken Condition lock is waited for before other goroutines get this thread


class Condition:
    """A condition variable with a reentrant lock of its own: of threading.Condition, what grpcio uses."""

    __slots__ = ("_depth", "_lock", "_owner", "_waiters")

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._owner: int | None = None
        self._depth = 0  # how often the owner has it beyond once
        self._waiters: list[gmp.Chan[None]] = []

    def __enter__(self) -> bool:
        me = _goid()
        if self._owner == me:
            self._depth += 1
        else:
            if not self._lock.acquire(False):
                self._acquire_taken()
            self._owner = me
        return True

    def __exit__(self, *exc_info: object) -> None:
        if self._depth:
            self._depth -= 1
        else:
            self._owner = None
            self._lock.release()

    def _acquire_taken(self) -> None:
        while not self._lock.acquire(True, _PATIENCE):
            gmp.gosched()

    def _check_owner(self) -> None:
        if self._owner != _goid():
            raise RuntimeError("the condition's lock is not held")

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, park until notified, take the lock again.  False if the timeout (seconds) came first."""
        self._check_owner()
        me, depth = self._owner, self._depth
        waiter: gmp.Chan[None] = gmp.Chan(1)
        self._waiters.append(waiter)
        self._depth = 0
        self._owner = None
        self._lock.release()
        try:
            waiter.recv(timeout=timeout)
            return True
        except TimeoutError:
            return False
        finally:
            if not self._lock.acquire(False):
                self._acquire_taken()
            self._owner = me
            self._depth = depth
            if waiter in self._waiters:  # timed out, or interrupted
                self._waiters.remove(waiter)

    def notify(self, n: int = 1) -> None:
        """Wake n waiters, the longest waiting first."""
        self._check_owner()
        woken = self._waiters[:n]
        del self._waiters[:n]
        for waiter in woken:
            waiter.send(None)  # there is room for it

    def notify_all(self) -> None:
        """Wake all waiters."""
        if self._waiters:
            self.notify(len(self._waiters))


class RLock:
    """A reentrant lock that parks: of threading.RLock, what grpcio uses."""

    __slots__ = ("_depth", "_mutex", "_owner")

    def __init__(self) -> None:
        self._mutex = Mutex()
        self._owner: int | None = None
        self._depth = 0

    def acquire(self) -> bool:
        me = _goid()
        if self._owner == me:
            self._depth += 1
        else:
            self._mutex.lock()
            self._owner = me
        return True

    def release(self) -> None:
        if self._depth:
            self._depth -= 1
        else:
            self._owner = None
            self._mutex.unlock()

    __enter__ = acquire

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> Any:
        self.release()
