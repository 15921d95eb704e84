"""Nothing freezes the others: how late the timers of one program are while its other tasks block and compute.

freeze: n tasks in one process for SECONDS: 50 in time.sleep(0.2), 10 in SQL functions written in Python (half of them sleep,
half compute), 2 in pure-Python loops, 10 waiting for subprocesses; all others sleep 5 ms at a time by the scheduler's own sleep
and note how late they wake. No call is patched.

    p99_ms, p50_ms, max_ms  lateness of the timers
    wakeups                 of timers, a second
    progress                the least that any of the other tasks got done, in units of what it does on an idle machine

handoff: n tasks each in an unpatched time.sleep(0.05); seconds until the last one is back.
"""

from __future__ import annotations

import sqlite3
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.harness import Bench, Figure, Target, Watch

SECONDS = 3.0
PERIOD = 0.005
BLOCKED, SQL, BUSY, PROCESSES = 50, 10, 2, 10

FREEZE = Bench("freeze")
FREEZE.shape(
    "freeze",
    title="1,000 tasks that block, compute and sleep",
    n=1000,
    ops=1,
    fresh=True,
    pinned=False,
    rounds=5,
    quick_rounds=3,
    slow=True,
    figures=(
        Figure("p99_ms", "1,000 mixed tasks: timers late, p99", "ms", (Target(50.0),)),
        Figure("p50_ms", "1,000 mixed tasks: timers late, median", "ms"),
    ),
)

HANDOFF = Bench("handoff")
HANDOFF.shape(
    "handoff_1k",
    title="1,000 tasks in time.sleep(0.05)",
    n=1000,
    ops=1,
    fresh=True,
    pinned=False,
    rounds=5,
    quick_rounds=3,
    figures=(Figure("wall_s", "1,000 tasks in time.sleep(0.05)", "s", (Target(0.5),)),),
)


class Mixed:
    """The program. spawn(f, *args) starts a task, sleep is the scheduler's."""

    def __init__(self, n: int, spawn: Callable[..., Any], sleep: Callable[[float], object]) -> None:
        self.n = n
        self.spawn = spawn
        self.sleep = sleep
        self.running = True
        self.late: list[list[float]] = []
        self.done: dict[str, list[int]] = {"blocked": [], "sql": [], "busy": [], "process": []}

    def timer(self) -> None:
        late: list[float] = []
        self.late.append(late)
        sleep, now = self.sleep, time.monotonic
        while self.running:
            due = now() + PERIOD
            sleep(PERIOD)
            late.append(now() - due)

    def counted(self, kind: str, step: Callable[[], object]) -> None:
        counts = self.done[kind]
        me = len(counts)
        counts.append(0)
        while self.running:
            step()
            counts[me] += 1

    def sql(self, compute: bool) -> None:
        def slow(x: int) -> int:
            if compute:
                end = time.thread_time() + 0.01
                while time.thread_time() < end:
                    x += sum(range(1000))
            else:
                time.sleep(0.02)
            return x

        db = sqlite3.connect(":memory:", check_same_thread=False)
        db.create_function("slow", 1, slow)
        self.counted("sql", lambda: db.execute("select slow(1) + slow(2)").fetchall())
        db.close()

    def busy(self) -> None:
        def step() -> None:
            for _ in range(100_000):
                pass

        self.counted("busy", step)

    def start(self) -> list[Any]:
        tasks = [self.spawn(self.timer) for _ in range(self.n - BLOCKED - SQL - BUSY - PROCESSES)]
        tasks += [self.spawn(self.counted, "blocked", lambda: time.sleep(0.2)) for _ in range(BLOCKED)]
        tasks += [self.spawn(self.sql, i % 2 == 0) for i in range(SQL)]
        tasks += [self.spawn(self.busy) for _ in range(BUSY)]
        run = lambda: subprocess.run(["sleep", "0.1"], check=True)  # noqa: E731
        tasks += [self.spawn(self.counted, "process", run) for _ in range(PROCESSES)]
        return tasks

    def figures(self, seconds: float) -> dict[str, float]:
        late = sorted(x * 1e3 for mine in self.late for x in mine)
        cuts = statistics.quantiles(late, n=1000)
        return {
            "p50_ms": cuts[499],
            "p99_ms": cuts[989],
            "p999_ms": cuts[998],
            "max_ms": late[-1],
            "wakeups": len(late) / seconds,
            "least_wakeups": min(map(len, self.late)),
        } | {f"least_{kind}": min(counts, default=0) for kind, counts in self.done.items()}


@FREEZE.contender("gmp")
def _(watch: Watch, ops: int, n: int) -> None:
    import gmp

    def body() -> None:
        with watch:
            tasks = program.start()
            gmp.sleep(SECONDS)
            program.running = False
            for t in tasks:
                t.join()

    program = Mixed(n, gmp.go, gmp.sleep)
    gmp.go(body).result()
    watch.figures |= program.figures(SECONDS)


@FREEZE.contender("threads")
def _(watch: Watch, ops: int, n: int) -> None:
    def spawn(f: Callable[..., Any], *args: Any) -> threading.Thread:
        thread = threading.Thread(target=f, args=args)
        thread.start()
        return thread

    program = Mixed(n, spawn, time.sleep)
    with watch:
        tasks = program.start()
        time.sleep(SECONDS)
        program.running = False
        for t in tasks:
            t.join()
    watch.figures |= program.figures(SECONDS)


@HANDOFF.contender("gmp")
def _(watch: Watch, ops: int, n: int) -> None:
    import gmp

    def body() -> None:
        with watch:
            tasks = [gmp.go(time.sleep, 0.05) for _ in range(n)]
            for t in tasks:
                t.join()

    gmp.go(body).result()
    watch.figures |= {"wall_s": watch.wall}


@HANDOFF.contender("threads")
def _(watch: Watch, ops: int, n: int) -> None:
    with watch:
        tasks = [threading.Thread(target=time.sleep, args=(0.05,)) for _ in range(n)]
        for t in tasks:
            t.start()
        for t in tasks:
            t.join()
    watch.figures |= {"wall_s": watch.wall}


def test_freeze(measure: Callable[[], None]) -> None:
    measure()
