"""What a shape is: who runs it, what comes out, what is aimed at.

A bench_*.py file holds `Bench` objects. One bench is one piece of work written once for each contender:

    YIELD = Bench("yield")

    @YIELD.contender("gmp")
    def _(watch, ops, n): ...

and one or more shapes of it (`YIELD.shape("yield_2", n=2, ...)`). A contender function does its set-up, wraps what is
to be timed in `with watch:` and leaves further figures in `watch.figures`. It is called many times in one process, or
once if the shape is `fresh`. Coroutine functions are run by their contender's event loop, which already exists by then.

Only the standard library is imported here: this module lives in every contender's process. Peers are imported inside
the functions.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

BENCHES = ("switch", "spawn", "chan", "select", "sync", "memory", "timers", "echo", "freeze", "native")

# In the order in which they run and are printed; those whose ratio matters most are neighbours.
CONTENDERS = {
    "gmp": "gmp",
    "native-1": "gmp in C P=1",
    "go-1": "Go P=1",
    "native": "gmp in C",
    "go": "Go",
    "native-16": "gmp in C P=16",
    "gmp-main": "gmp, main thread",
    "gevent": "gevent",
    "greenlet": "greenlet",
    "asyncio": "asyncio",
    "asyncio-eager": "asyncio, eager tasks",
    "uvloop": "uvloop",
    "trio": "trio",
    "threads": "threads",
    "pthreads": "POSIX threads",
}
NATIVE = ("native-1", "native", "native-16")
OURS = ("gmp", "gmp-main", *NATIVE)
GO = ("go-1", "go")
# Programs that know the shapes by name, with the environment that they get: go/ and c/.
TWINS = {
    "go-1": {"GOMAXPROCS": "1"},
    "go": {},
    "native-1": {"GMPMAXPROCS": "1"},
    "native": {},
    "native-16": {"GMPMAXPROCS": "16"},
    "pthreads": {},
}
UNPINNED = ("go", "native", "native-16", "pthreads")


@dataclass(frozen=True)
class Target:
    """`of`'s figure is at most `limit`, or `limit` times `than`'s; `by_version` has other limits for some Pythons."""

    limit: float
    than: str | None = None
    by_version: Mapping[tuple[int, int], float] = field(default_factory=dict)
    of: str = "gmp"

    def bound(self, version: tuple[int, int]) -> float:
        return self.by_version.get(version, self.limit)

    def text(self, version: tuple[int, int], unit: str) -> str:
        bound = self.bound(version)
        if self.than is None:
            return f"≤ {bound:,g} {unit}"
        if bound < 1:
            return f"≥ {1 / bound:g}x faster than {CONTENDERS[self.than]}"
        return f"≤ {bound:g}x {CONTENDERS[self.than]}"


@dataclass(frozen=True)
class Figure:
    """One number of a round: its key in the round's result, and how a table calls it."""

    key: str
    title: str
    unit: str
    targets: tuple[Target, ...] = ()


@dataclass
class Bench:
    name: str
    shapes: list[Shape] = field(default_factory=list)
    runs: dict[str, Callable[..., Any]] = field(default_factory=dict)
    ops: dict[str, int] = field(default_factory=dict)
    twins: tuple[str, ...] = GO

    def contender(self, *names: str, ops: int = 0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a function for these contenders. `ops`: of a round, where the shape's number would take too long."""

        def register(run: Callable[..., Any]) -> Callable[..., Any]:
            for name in names:
                self.runs[name] = run
                self.ops[name] = ops
            return run

        return register

    def shape(self, name: str, **options: Any) -> Shape:
        shape = Shape(bench=self, name=name, **options)
        self.shapes.append(shape)
        return shape


@dataclass
class Shape:
    """One row (or several) of the table. `n` is the bench's parameter: how many tasks, channels, …"""

    bench: Bench
    name: str
    title: str
    ops: int
    n: int = 0
    figures: tuple[Figure, ...] = ()
    targets: tuple[Target, ...] = ()  # of the ns figure, when no figures are given
    fresh: bool = False  # a new process for each round
    pinned: bool = True  # all but UNPINNED stay on one CPU
    rounds: int = 11
    quick_rounds: int = 5
    without: tuple[str, ...] = ()  # contenders that cannot stand this size
    slow: bool = False  # peers run a single round when in a hurry
    timeout: float = 60.0  # seconds a round may take
    needs_twin: bool = False  # the Go twin has a part in every contender's round

    def __post_init__(self) -> None:
        if not self.figures:
            self.figures = (Figure("ns", self.title, "ns", self.targets),)

    @property
    def contenders(self) -> list[str]:
        able = set(self.bench.runs) | set(self.bench.twins)
        return [c for c in CONTENDERS if c in able and c not in self.without]

    def ops_of(self, contender: str) -> int:
        return self.bench.ops.get(contender) or self.ops


class Watch:
    """Wall and CPU time of the block it guards, and what else a contender found out."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.figures: dict[str, float] = {}

    def __enter__(self) -> Watch:
        self.cpu = time.process_time()
        self.wall = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self.wall
        self.cpu = time.process_time() - self.cpu


def resident() -> tuple[int, int]:
    """This process's resident bytes, and the bytes of its page tables."""
    if sys.platform != "linux":
        raise NotImplementedError("memory is read from /proc/self/status")
    with open("/proc/self/status") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    return int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmPTE"].split()[0]) * 1024


def load(name: str) -> list[Bench]:
    """The benches of one bench_*.py file."""
    module = importlib.import_module(f"benchmarks.bench_{name}")
    return [value for value in vars(module).values() if isinstance(value, Bench)]


def all_shapes() -> list[Shape]:
    return [shape for name in BENCHES for bench in load(name) for shape in bench.shapes]


def pin() -> set[int] | None:
    """Keep this process, and what it starts from now on, on one CPU. Returns the CPUs it had."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    had = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(had)})
    return had


def unpin(had: set[int] | None) -> None:
    if had is not None:
        os.sched_setaffinity(0, had)
