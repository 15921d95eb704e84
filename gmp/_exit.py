"""The part of the interpreter's end that comes before atexit.

threading waits for all threads first.  Before 3.13 it takes the main thread off the list of those to wait for only when that
is the thread it runs on, else it waits for the main thread, which is itself, for ever.  The main goroutine may be away from
its thread at that time, because another goroutine keeps it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from gmp import _core


def _prepare() -> None:
    main = threading.main_thread()
    for _ in range(20):
        if threading.get_ident() == main.ident:
            return
        _core.sleep(0.001)  # whoever parks goes home, if home is free
    main._ident = threading.get_ident()  # type: ignore[attr-defined]


def register() -> None:
    """Have _prepare called at the beginning of the end, in the way of concurrent.futures."""
    register_atexit: Callable[[Callable[[], None]], None] | None = getattr(threading, "_register_atexit", None)
    if register_atexit is not None:
        with contextlib.suppress(RuntimeError):  # imported when it is too late
            register_atexit(_prepare)
