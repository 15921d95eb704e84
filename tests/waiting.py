"""Waiting for what a test needs, instead of for some time or a number of turns.

A gosched() lets others run, but not all of them, nor as far as they go: on every 61st tick a goroutine of the global queue
comes first, and whoever has run for 10 ms loses its P, at any place.  Programs that tests start may use this module too.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import gmp
from gmp import _core

LIMIT = 50.0 * (float(os.environ.get("GMP_TEST_SLOWDOWN") or 0) or (5.0 if os.environ.get("GMP_SANITIZE") else 1.0))


def until(condition: Callable[[], object], turn: Callable[[], object] | None = None) -> None:
    """Calls turn, which lets others run, until the condition is true: gosched(), from the 100th time on a sleep of 1 ms."""
    deadline = time.monotonic() + LIMIT
    turns = 0
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {LIMIT:g} s it is still not so\n{gmp.runtime.stack(all=True)}")
        turns += 1
        if turn is not None:
            turn()
        elif turns < 100:
            gmp.gosched()
        else:
            gmp.sleep(0.001)


def status(g: gmp.Goroutine[Any] | int) -> str | None:
    """Of a goroutine or its id: "runnable", "running" or the reason of its wait; None when it has ended."""
    if isinstance(g, int):
        return next((e[2] for e in _core._goroutines() if e[0] == g), None)
    return _core._status(g)


def waiting(reason: str) -> int:
    """How many goroutines, and threads inside gmp, wait for this reason: "chan receive" for example."""
    return sum(e[2] == reason for e in _core._goroutines())


def parked(*gs: gmp.Goroutine[Any] | int, turn: Callable[[], object] | None = None) -> None:
    """Waits until each of the goroutines has been seen waiting for something."""
    for g in gs:

        def waits(g: gmp.Goroutine[Any] | int = g) -> bool:
            now = status(g)
            assert now is not None, f"{g} has ended instead of waiting"
            return now not in ("runnable", "running")

        until(waits, turn)


def me() -> int:
    """The calling goroutine's id."""
    return _core._goid()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """No other goroutine and no thread runs meanwhile, unless the caller parks, yields or makes a call that lets go of the GIL.

    (sysmon may still take its P: then one goroutine has left the queue, and waits for the GIL.)
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
