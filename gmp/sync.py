"""Locks for goroutines: they park the goroutine that waits, not the thread.  Go: package sync.

A threading.RLock belongs to an OS thread, and a goroutine that parks inside `with rlock:` may go on on another one: use
these instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gmp import _core
from gmp._core import Goroutine, Mutex

__all__ = ["Mutex", "WaitGroup"]


class WaitGroup(_core.WaitGroup):
    """Waits for a number of goroutines to end.

        wg = WaitGroup()
        for url in urls:
            wg.go(fetch, url)
        wg.wait()

    Go: sync.WaitGroup.
    """

    def go(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Goroutine[Any]:
        """Start fn as a goroutine that counts while it runs.  Go: (*sync.WaitGroup).Go."""
        if not callable(fn):
            raise TypeError(f"WaitGroup.go() argument 1 must be callable, not {type(fn).__name__}")
        self.add(1)
        try:
            return _core.go(_run_and_done, self, fn, args, kwargs)
        except BaseException:
            self.done()
            raise


def _run_and_done(wg: WaitGroup, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return fn(*args, **kwargs)
    finally:
        wg.done()
