"""Yield: give way to the others, come back when they have had their turn.

n tasks yield in a loop; an operation is one yield of one task. greenlet has no scheduler: its tasks switch to each
other in a ring. Threads give way with sched_yield, which here means handing over the GIL.

yield_beside: the same for 0.2 s beside a thread that keeps the interpreter busy. Half of the time is the thread's; whoever lets
go of the GIL at each yield gets it back 5 ms later, and so hardly any.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from benchmarks.harness import GO, Bench, Target, Watch

AS_GO = Target(1.0, "go-1", {(3, 12): 1.2, (3, 13): 1.2})

YIELD = Bench("yield")
YIELD.shape("yield_2", title="yield, 2 tasks", n=2, ops=400_000, targets=(AS_GO,))
YIELD.shape("yield_1000", title="yield, 1,000 tasks", n=1000, ops=400_000, targets=(AS_GO,), without=("threads",))


@YIELD.contender("gmp")
def _(watch: Watch, ops: int, n: int) -> None:
    from gmp import go, gosched

    def spin(times: int) -> None:
        for _ in range(times):
            gosched()

    def body() -> None:
        tasks = [go(spin, ops // n) for _ in range(n)]
        with watch:
            for task in tasks:
                task.join()

    go(body).join()


@YIELD.contender("gevent", ops=40_000)
def _(watch: Watch, ops: int, n: int) -> None:
    import gevent

    def spin(times: int) -> None:
        for _ in range(times):
            gevent.sleep(0)

    tasks = [gevent.spawn(spin, ops // n) for _ in range(n)]
    with watch:
        gevent.joinall(tasks)


@YIELD.contender("greenlet", ops=200_000)
def _(watch: Watch, ops: int, n: int) -> None:
    from greenlet import getcurrent, greenlet

    def spin(i: int, times: int) -> None:
        switch = tasks[(i + 1) % n].switch
        main.switch()
        for _ in range(times):
            switch()

    main = getcurrent()
    tasks = [greenlet(spin) for _ in range(n)]
    for i, task in enumerate(tasks):
        task.switch(i, ops // n)
    with watch:
        tasks[0].switch()  # comes back when the first one is through
    for task in tasks[1:]:
        task.switch()


@YIELD.contender("asyncio", "uvloop", ops=40_000)
async def _(watch: Watch, ops: int, n: int) -> None:
    import asyncio

    async def spin(times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(spin(ops // n)) for _ in range(n)]
    with watch:
        for task in tasks:
            await task


@YIELD.contender("trio", ops=20_000)
async def _(watch: Watch, ops: int, n: int) -> None:
    import trio

    async def spin(times: int) -> None:
        for _ in range(times):
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(n):
            nursery.start_soon(spin, ops // n)
        watch.__enter__()
    watch.__exit__()


@YIELD.contender("threads", ops=40_000)
def _(watch: Watch, ops: int, n: int) -> None:
    import os

    def spin(times: int) -> None:
        start.wait()
        for _ in range(times):
            os.sched_yield()

    start = threading.Barrier(n + 1)
    tasks = [threading.Thread(target=spin, args=(ops // n,)) for _ in range(n)]
    for task in tasks:
        task.start()
    start.wait()
    with watch:
        for task in tasks:
            task.join()


BESIDE = Bench("yield_beside")
BESIDE.shape("yield_beside", title="yield, 2 tasks, a busy thread beside", n=2, ops=1, pinned=False, without=GO)
SECONDS = 0.2


class BusyThread:
    """Computes while the block runs that it guards."""

    def __init__(self) -> None:
        self.stop = False
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.stop:
            pass

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop = True
        self.thread.join()


@BESIDE.contender("gmp")
def _(watch: Watch, ops: int, n: int) -> int:
    from gmp import go, gosched

    def spin() -> int:
        count = 0
        while time.perf_counter() < end:
            for _ in range(10):
                gosched()
            count += 10
        return count

    def body() -> int:
        tasks = [go(spin) for _ in range(n)]
        with BusyThread(), watch:
            return sum(task.result() for task in tasks)

    end = time.perf_counter() + SECONDS
    return go(body).result()


@BESIDE.contender("gevent")
def _(watch: Watch, ops: int, n: int) -> int:
    import gevent

    def spin() -> int:
        count = 0
        while time.perf_counter() < end:
            for _ in range(10):
                gevent.sleep(0)
            count += 10
        return count

    end = time.perf_counter() + SECONDS
    tasks = [gevent.spawn(spin) for _ in range(n)]
    with BusyThread(), watch:
        return sum(task.get() for task in tasks)


@BESIDE.contender("asyncio", "uvloop")
async def _(watch: Watch, ops: int, n: int) -> int:
    import asyncio

    async def spin() -> int:
        count = 0
        while time.perf_counter() < end:
            for _ in range(10):
                await asyncio.sleep(0)
            count += 10
        return count

    end = time.perf_counter() + SECONDS
    tasks = [asyncio.create_task(spin()) for _ in range(n)]
    with BusyThread(), watch:
        return sum([await task for task in tasks])


def test_switch(measure: Callable[[], None]) -> None:
    measure()
