"""The check behind Deadlock.

The core knows that all its goroutines wait for each other.  What it does not know is threads: any thread that is not
itself parked in gmp may still send, close or unlock.  So the answer is "no deadlock" while there is a Python thread that
is not parked in gmp, an OS thread that neither Python nor gmp has started, or a native goroutine.
"""

from __future__ import annotations

import sys
import threading

from gmp import _core, _traceback


def _stranger() -> bool:
    if _core._native_count():
        return True
    parked, own = _core._known_threads()
    accounted = own
    for thread in threading.enumerate():
        if isinstance(thread, threading._DummyThread):
            continue  # made by current_thread() for a thread of gmp's, or for one that is counted below
        if thread is threading.main_thread():
            accounted += 1
            continue
        if thread.native_id not in parked:
            return True
        accounted += 1
    total: int = _core._thread_count()
    return total > accounted


def check() -> str | None:
    """The message for Deadlock, or None when somebody may still wake a goroutine.  Called in the main goroutine."""
    if _stranger():
        return None
    return "fatal error: all goroutines are asleep - deadlock!\n\n" + _traceback.format_all(sys._getframe().f_back)
