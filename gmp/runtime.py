"""What the scheduler is doing.  Go: package runtime."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from gmp import _core, _traceback
from gmp._core import gosched, lock_os_thread, num_goroutine, set_max_threads, unlock_os_thread

__all__ = [
    "gosched",
    "lock_os_thread",
    "metrics",
    "num_cpu",
    "num_goroutine",
    "set_max_threads",
    "stack",
    "stats",
    "unlock_os_thread",
]


def num_cpu() -> int:
    """CPUs that this process may run on.  Go: runtime.NumCPU."""
    import gmp

    n: int = gmp.lib.gmp_num_cpu()
    return n


def stack(all: bool = False) -> str:
    """The calling goroutine's Python stack as text; with all, every goroutine's.

    Each begins with a line like "goroutine 7 [chan receive, 3 minutes] app.worker:" (minutes: of a wait that long) and ends
    with "created by app.main at app.py:12 in goroutine 1".  The signal SIGQUIT (Ctrl-\\) has the same printed, and ends the
    process with status 2, unless the program has a handler of its own or GMPDEBUG=sigquit=0 is set.
    Go: runtime.Stack.
    """
    frame = sys._getframe(1)
    if all:
        return _traceback.format_all(frame)
    return f"goroutine {_core._goid()} [running]:\n" + "".join(traceback.format_stack(frame))


def stats() -> dict[str, int | str]:
    """Counts of the scheduler.

    goroutines (the main one included), procs, threads (OS threads that run goroutines), idle_threads, runnable (queued),
    timers, switches, handoffs (Ps taken from blocked or busy threads), stacks, stacks_in_use, stacks_unguarded (stacks
    without a guard page), stack_bytes (address space of each), guards ("madvise", "mprotect" or "none").
    """
    return _core.stats()


_METRICS = (  # of stats(): name, kind, what it is
    ("goroutines", "gauge", "Goroutines, the main one included."),
    ("runnable", "gauge", "Goroutines that wait for a processor."),
    ("threads", "gauge", "OS threads that run goroutines."),
    ("idle_threads", "gauge", "OS threads that have nothing to do."),
    ("timers", "gauge", "Timers that are set."),
    ("stacks", "gauge", "Stacks of goroutines."),
    ("stacks_in_use", "gauge", "Stacks of goroutines that exist."),
    ("switches", "counter", "Switches between goroutines."),
    ("handoffs", "counter", "Processors taken from blocked or busy threads."),
)
_metrics_of_others: list[Callable[[], str]] = []  # gmp.grpc's


def metrics() -> str:
    """What stats() counts as text in Prometheus's format, with what gmp.grpc counts, if it is in use: for a /metrics page."""
    counts = stats()
    lines = []
    for key, kind, about in _METRICS:
        name = f"gmp_{key}_total" if kind == "counter" else f"gmp_{key}"
        lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}", f"{name} {counts[key]}"]
    return "\n".join(lines) + "\n" + "".join(other() for other in _metrics_of_others)
