"""Spawn a task that does nothing and learn that it has finished.

spawn_join:  one at a time, an operation is spawn + run + finish + join.
spawn_burst: all at once, then wait until the last one is through, by whatever the contender has for that.
spawn_cold:  the first burst of a new process, so nothing is warm and nothing can be reused.

Go has no join: its twin waits for a value on a channel, which costs less than a WaitGroup.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.harness import Bench, Target, Watch

TARGETS = (Target(1.0, "go-1"), Target(1 / 20, "gevent"), Target(1 / 20, "asyncio"))

JOIN = Bench("spawn_join")
JOIN.shape("spawn_join", title="spawn to finish, one at a time", ops=100_000, targets=TARGETS)


@JOIN.contender("gmp")
def _(watch: Watch, ops: int, n: int) -> None:
    from gmp import go

    def body() -> None:
        with watch:
            for _ in range(ops):
                go(nothing).join()

    go(body).join()


@JOIN.contender("gmp-main")
def _(watch: Watch, ops: int, n: int) -> None:
    from gmp import go

    with watch:
        for _ in range(ops):
            go(nothing).join()


@JOIN.contender("gevent", ops=5_000)
def _(watch: Watch, ops: int, n: int) -> None:
    import gevent

    with watch:
        for _ in range(ops):
            gevent.spawn(nothing).join()


@JOIN.contender("greenlet", ops=10_000)
def _(watch: Watch, ops: int, n: int) -> None:
    from greenlet import greenlet

    with watch:
        for _ in range(ops):
            greenlet(nothing).switch()


@JOIN.contender("asyncio", "asyncio-eager", "uvloop", ops=10_000)
async def _(watch: Watch, ops: int, n: int) -> None:
    import asyncio

    with watch:
        for _ in range(ops):
            await asyncio.create_task(anothing())


@JOIN.contender("trio", ops=5_000)
async def _(watch: Watch, ops: int, n: int) -> None:
    import trio

    with watch:
        for _ in range(ops):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(anothing)


@JOIN.contender("threads", ops=500)
def _(watch: Watch, ops: int, n: int) -> None:
    import threading

    with watch:
        for _ in range(ops):
            task = threading.Thread(target=nothing)
            task.start()
            task.join()


BURST = Bench("spawn_burst")
ALL: dict[str, Any] = {"ops": 100_000, "targets": TARGETS, "slow": True}
BURST.shape("spawn_burst", title="spawn to finish, bursts of 100,000", **ALL, rounds=7)
BURST.shape("spawn_cold", title="the same, first burst of a process", **ALL, rounds=5, fresh=True)


@BURST.contender("gmp")
def _(watch: Watch, ops: int, n: int) -> None:
    from gmp import go
    from gmp.sync import WaitGroup

    def body() -> None:
        wg = WaitGroup()
        done = wg.done
        with watch:
            wg.add(ops)
            for _ in range(ops):
                go(done)
            wg.wait()

    go(body).join()


@BURST.contender("gevent")
def _(watch: Watch, ops: int, n: int) -> None:
    import gevent

    with watch:
        gevent.joinall([gevent.spawn(nothing) for _ in range(ops)])


@BURST.contender("asyncio", "asyncio-eager", "uvloop")
async def _(watch: Watch, ops: int, n: int) -> None:
    import asyncio

    with watch:
        for task in [asyncio.create_task(anothing()) for _ in range(ops)]:
            await task


@BURST.contender("trio")
async def _(watch: Watch, ops: int, n: int) -> None:
    import trio

    with watch:
        async with trio.open_nursery() as nursery:
            for _ in range(ops):
                nursery.start_soon(anothing)


@BURST.contender("threads", ops=1_000)
def _(watch: Watch, ops: int, n: int) -> None:
    import threading

    with watch:
        tasks = [threading.Thread(target=nothing) for _ in range(ops)]
        for task in tasks:
            task.start()
        for task in tasks:
            task.join()


def nothing() -> None:
    pass


async def anothing() -> None:
    pass


def test_spawn(measure: Callable[[], None]) -> None:
    measure()
