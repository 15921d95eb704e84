"""Timers: 100,000 tasks that each sleep one second.

late: seconds from the first spawn until the last task has woken, less the second they all sleep. cpu: processor time of
the whole.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness import Bench, Figure, Watch

SLEEP = 1.0
SLEEPERS = Bench("sleepers")
SLEEPERS.shape(
    "sleepers",
    title="100,000 sleepers",
    ops=100_000,
    fresh=True,
    rounds=5,
    quick_rounds=3,
    slow=True,
    figures=(Figure("late_s", "100,000 sleepers: late", "s"), Figure("cpu_s", "100,000 sleepers: CPU", "s")),
)


def finish(watch: Watch) -> None:
    watch.figures |= {"late_s": watch.wall - SLEEP, "cpu_s": watch.cpu}


@SLEEPERS.contender("gmp")
def _(watch: Watch, ops: int, n: int) -> None:
    from gmp import go, sleep
    from gmp.sync import WaitGroup

    def nap() -> None:
        sleep(SLEEP)
        wg.done()

    def body() -> None:
        with watch:
            wg.add(ops)
            for _ in range(ops):
                go(nap)
            wg.wait()

    wg = WaitGroup()
    go(body).result()
    finish(watch)


@SLEEPERS.contender("gevent")
def _(watch: Watch, ops: int, n: int) -> None:
    import gevent

    with watch:
        gevent.joinall([gevent.spawn(gevent.sleep, SLEEP) for _ in range(ops)])
    finish(watch)


@SLEEPERS.contender("asyncio", "uvloop")
async def _(watch: Watch, ops: int, n: int) -> None:
    import asyncio

    with watch:
        for task in [asyncio.create_task(asyncio.sleep(SLEEP)) for _ in range(ops)]:
            await task
    finish(watch)


@SLEEPERS.contender("trio")
async def _(watch: Watch, ops: int, n: int) -> None:
    import trio

    with watch:
        async with trio.open_nursery() as nursery:
            for _ in range(ops):
                nursery.start_soon(trio.sleep, SLEEP)
    finish(watch)


def test_timers(measure: Callable[[], None]) -> None:
    measure()
