"""Go's scheduler for CPython: goroutines, channels and select, in plain blocking code.

    import gmp

    def worker(jobs, results):
        for n in jobs:              # until jobs is closed
            results.send(n * n)

    jobs, results = gmp.Chan(), gmp.Chan(10)
    gmp.go(worker, jobs, results)
    jobs.send(7)
    print(results.recv())           # 49

Layout
    _core           the C extension: scheduler, channels, locks (csrc/)
    sync            Mutex, WaitGroup
    time            Timer, Ticker, after, after_func
    context         deadlines, cancellation and values for trees of calls
    runtime         num_goroutine, stack, stats, metrics, gosched, set_max_threads
    _executor       Executor, wait: concurrent.futures on goroutines
    _excepthook     what happens to an exception that nobody collects
    _deadlock       the check behind Deadlock
    _exit           what comes before atexit
    _fork           what surrounds os.fork
    _traceback      goroutine stacks as text
    _ffi            gmp.ffi and gmp.lib, the C interface by cffi
    native          C functions as goroutines, channels shared with them (import gmp.native)
    net             connections, listeners, wait_read, wait_write (import gmp.net)
    grpc            gRPC servers whose RPCs are goroutines (needs grpcio)
"""

from __future__ import annotations

import atexit as _atexit
from typing import Any, NamedTuple

from gmp import _core
from gmp._core import (
    Case,
    Chan,
    ChanClosed,
    Deadlock,
    Goroutine,
    go,
    gosched,
    recv,
    select,
    send,
    sleep,
)


class Selected(NamedTuple):
    """What select did: the index of the case, the value received, and False for ok when the channel was closed.

    index is -1 when default was asked for and no case was ready.
    """

    index: int  # type: ignore[assignment]  # a field hides tuple.index
    value: Any
    ok: bool


_core._set_selected(Selected)

from gmp import _deadlock, _excepthook, _exit, _fork, context, runtime, sync, time  # noqa: E402
from gmp._excepthook import ExceptHookArgs, excepthook  # noqa: E402
from gmp._executor import Executor, Future, wait  # noqa: E402

__all__ = [
    "Case",
    "Chan",
    "ChanClosed",
    "Deadlock",
    "ExceptHookArgs",
    "Executor",
    "Future",
    "Goroutine",
    "Selected",
    "context",
    "excepthook",
    "ffi",
    "go",
    "gosched",
    "lib",
    "recv",
    "runtime",
    "select",
    "send",
    "sleep",
    "sync",
    "time",
    "wait",
]

_core._set_excepthook(_excepthook.report)
_core._set_deadlock_check(_deadlock.check)
_exit.register()
_atexit.register(_core._stop)
_fork.register()


def __getattr__(name: str) -> Any:
    if name in ("ffi", "lib"):
        from gmp import _ffi

        return getattr(_ffi, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("gmp-runtime")
    raise AttributeError(f"module 'gmp' has no attribute {name!r}")
