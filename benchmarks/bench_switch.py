"""Yield: give way to the others, come back when they have had their turn.

n tasks yield in a loop; an operation is one yield of one task. greenlet has no scheduler: its tasks switch to each
other in a ring. Threads give way with sched_yield, which here means handing over the GIL.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness import Bench, Target, Watch

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
    import threading

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


def test_switch(measure: Callable[[], None]) -> None:
    measure()
