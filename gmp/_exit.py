"""The end of the interpreter, as far as it begins before atexit.

threading waits for the other threads first, and does the main thread's part only when that is the thread that it runs on:
otherwise, before 3.13, it waits for the main thread itself, for ever.  The main goroutine may be away from its thread then,
because another goroutine keeps it.
"""

from __future__ import annotations

import contextlib
import threading

from gmp import _core


def _prepare() -> None:
    _core._go_home()
    main = threading.main_thread()
    if main.ident != threading.get_ident():
        main._ident = threading.get_ident()  # type: ignore[attr-defined]


def register() -> None:
    """Have it called before threads are waited for; concurrent.futures does the same."""
    register_atexit = getattr(threading, "_register_atexit", None)
    if register_atexit is not None:
        with contextlib.suppress(RuntimeError):  # imported when it is too late
            register_atexit(_prepare)
