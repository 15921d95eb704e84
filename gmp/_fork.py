"""What surrounds os.fork.

threading.main_thread() is the thread of the main goroutine, wherever that runs, but its handle (3.13 and later) names the
thread it was born on; in the child of a fork made on another one threading would fail at that and leave its work undone.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from gmp import _core

_saved: dict[int, tuple[Any, str, Any]] = {}  # by the forking thread


def _before() -> None:
    ident = threading.get_ident()
    thread = threading._active.get(ident)  # type: ignore[attr-defined]
    for name in ("_os_thread_handle", "_handle"):
        handle = getattr(thread, name, None)
        make = getattr(threading, "_make_thread_handle", None)
        if handle is not None and make is not None and getattr(handle, "ident", ident) != ident:
            _saved[ident] = (thread, name, handle)
            setattr(thread, name, make(ident))
    _core._before_fork()


def _after_in_parent() -> None:
    _core._after_fork_parent()
    if saved := _saved.pop(threading.get_ident(), None):
        setattr(*saved)


def _after_in_child() -> None:
    _saved.clear()
    _core._after_fork_child()


def register() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
