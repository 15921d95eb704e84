"""concurrent.futures on goroutines: Executor, and wait for any future."""

from __future__ import annotations

import concurrent.futures as cf
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any, TypeVar

from gmp import _core
from gmp._core import Chan
from gmp.sync import Mutex, WaitGroup

__all__ = ["Executor", "Future", "wait"]

T = TypeVar("T")


def _park(future: cf.Future[Any], timeout: float | None, what: str, least: float | None = None) -> None:
    """Park until future is done.  TimeoutError when the time is up.  least: what a smaller timeout counts as."""
    if future.done():
        return
    if timeout is not None:
        try:
            if least is not None and timeout < least:
                timeout = least
            if not 0.0 + timeout >= 0:
                raise ValueError(f"{what}: the time must be 0 or more seconds or None, not {timeout!r}")
        except TypeError:
            kind = type(timeout).__name__
            raise TypeError(f"{what}: the time must be a number of seconds or None, not {kind}") from None
    ch: Chan[None] = Chan(1)

    def wake(_: object) -> None:
        ch.send(None)

    future.add_done_callback(wake)
    try:
        ch.recv(timeout)
    except TimeoutError:
        if not future.done():
            raise TimeoutError(f"{what}: the time is up") from None
    finally:
        # A future may live long and be waited for often: do not leave callbacks behind.
        callbacks = getattr(future, "_done_callbacks", None)
        if callbacks is not None and not future.done():
            try:
                callbacks.remove(wake)
            except ValueError:
                pass


def wait(future: cf.Future[T], timeout: float | None = None) -> T:
    """Park the goroutine until a concurrent.futures.Future is done; return its result or raise its exception.

    timeout: seconds; None waits for ever, 0 tries.  Raises TimeoutError when the time is up, CancelledError when the
    future was cancelled, TypeError when it is no concurrent.futures.Future.  future.result() would do the same, but hold
    an OS thread meanwhile.
    """
    if not isinstance(future, cf.Future) and not hasattr(future, "add_done_callback"):
        raise TypeError(f"wait() argument 1 must be a concurrent.futures.Future, not {type(future).__name__}")
    _park(future, timeout, "wait()")
    return cf.Future.result(future, 0) if isinstance(future, cf.Future) else future.result()


class Future(cf.Future[T]):
    """A concurrent.futures.Future whose result() and exception() park goroutines instead of blocking their threads."""

    def result(self, timeout: float | None = None) -> T:
        """The value, or the exception raised.  TimeoutError after timeout seconds; at once if they are below 0, as there."""
        _park(self, timeout, "Future.result()", least=0)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The exception, or None.  TimeoutError after timeout seconds."""
        _park(self, timeout, "Future.exception()", least=0)
        return super().exception(0)


class Executor(cf.Executor):
    """A concurrent.futures.Executor that runs each call as a goroutine.

    max_workers: how many calls run at once; None, the default, sets no limit: a call that waits costs one page.
    Calls beyond the limit queue and start in order.  initializer and initargs are called once in each call's goroutine
    before the call, as there are no lasting workers.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if max_workers is not None:
            if not isinstance(max_workers, int):
                raise TypeError(f"Executor() max_workers must be an int or None, not {type(max_workers).__name__}")
            if max_workers <= 0:
                raise ValueError(f"Executor() max_workers must be greater than 0, not {max_workers}")
        if initializer is not None and not callable(initializer):
            raise TypeError("Executor() initializer must be callable")
        self._max_workers = max_workers
        self._initializer = initializer
        self._initargs = initargs
        self._mutex = Mutex()
        self._running = 0
        self._queue: dict[Future[Any], tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {}
        self._shutdown = False
        self._wg = WaitGroup()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Start fn(*args, **kwargs) as a goroutine and return a Future.  RuntimeError after shutdown."""
        if not callable(fn):
            raise TypeError(f"Executor.submit() argument 1 must be callable, not {type(fn).__name__}")
        future: Future[T] = Future()
        with self._mutex:
            if self._shutdown:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._wg.add(1)
            if self._max_workers is not None and self._running >= self._max_workers:
                self._queue[future] = (fn, args, kwargs)
                return future
            self._running += 1
        try:
            _core.go(self._run, future, fn, args, kwargs)
        except BaseException:
            with self._mutex:
                self._running -= 1
            self._wg.done()
            raise
        return future

    def _run(self, future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        while True:
            try:
                if future.set_running_or_notify_cancel():
                    try:
                        if self._initializer is not None:
                            self._initializer(*self._initargs)
                        result = fn(*args, **kwargs)
                    except BaseException as exc:
                        future.set_exception(exc)
                    else:
                        future.set_result(result)
            finally:
                self._wg.done()
            del future, fn, args, kwargs
            with self._mutex:
                if not self._queue:
                    self._running -= 1
                    return
                future = next(iter(self._queue))
                fn, args, kwargs = self._queue.pop(future)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Like map(fn, *iterables), the calls running at once; results in order.

        timeout: seconds from now for the whole.  chunksize means nothing here.  buffersize: how many calls may be started
        ahead of the results taken; None: all.
        """
        if buffersize is not None and (not isinstance(buffersize, int) or buffersize < 1):
            raise ValueError("Executor.map() buffersize must be None or an int of 1 or more")
        deadline = None if timeout is None else monotonic() + timeout
        calls = zip(*iterables)
        pending: list[Future[T]] = []
        for call in calls:
            pending.append(self.submit(fn, *call))
            if buffersize is not None and len(pending) >= buffersize:
                break

        def results() -> Iterator[T]:
            try:
                pending.reverse()
                while pending:
                    left = None if deadline is None else max(0.0, deadline - monotonic())
                    value = pending.pop().result(left)
                    if buffersize is not None:
                        for call in calls:
                            pending.insert(0, self.submit(fn, *call))
                            break
                    yield value
            finally:
                for future in pending:
                    future.cancel()

        return results()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with wait, park until those submitted are done; with cancel_futures, drop queued ones."""
        with self._mutex:
            self._shutdown = True
            dropped = list(self._queue) if cancel_futures else []
            for future in dropped:
                del self._queue[future]
        for future in dropped:
            future.cancel()
            future.set_running_or_notify_cancel()
            self._wg.done()
        if wait:
            self._wg.wait()
