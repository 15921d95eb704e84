"""Memory: what a parked task keeps, and what a million of them cost to make and to let go.

All tasks park on one channel (event), which closing (setting) releases. Resident memory is read from /proc/self/status
before the first and with all of them parked; page tables are counted apart. Each round is a new process.
`parked_deep`: each parks 20 Python calls down.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.harness import Bench, Figure, Target, Watch, resident

PARKED = Bench("parked")
PARKED.shape(
    "parked",
    title="parked task",
    ops=100_000,
    fresh=True,
    rounds=5,
    quick_rounds=3,
    slow=True,
    figures=(
        Figure("rss", "parked task, resident", "bytes", (Target(5_300),)),
        Figure("pte", "parked task, page tables", "bytes"),
    ),
)
PARKED.shape(
    "parked_deep",
    title="parked 20 calls deep",
    n=20,
    ops=50_000,
    fresh=True,
    rounds=3,
    quick_rounds=1,
    slow=True,
    figures=(Figure("rss", "parked 20 calls deep, resident", "bytes"),),
)
PARKED.shape(
    "million",
    title="1,000,000 parked",
    ops=1_000_000,
    fresh=True,
    rounds=3,
    quick_rounds=1,
    timeout=180,
    without=("gevent", "greenlet", "asyncio", "uvloop", "trio", "threads"),
    figures=(
        Figure("create_s", "1,000,000 parked: create", "s", (Target(10),)),
        Figure("release_s", "1,000,000 parked: release", "s", (Target(3),)),
        Figure("rss_gb", "1,000,000 parked: resident", "GB", (Target(6),)),
    ),
)


class Census:
    """Reads clock and memory at the three moments that matter."""

    def __init__(self, watch: Watch, tasks: int) -> None:
        self.figures = watch.figures
        self.tasks = tasks
        self.rss, self.pte = resident()
        self.since = time.perf_counter()

    def parked(self) -> None:
        now = time.perf_counter()
        rss, pte = resident()
        self.figures |= {
            "create_s": now - self.since,
            "rss": (rss - self.rss) / self.tasks,
            "pte": (pte - self.pte) / self.tasks,
            "rss_gb": (rss - self.rss) / 1e9,
        }
        self.since = time.perf_counter()

    def released(self) -> None:
        self.figures["release_s"] = time.perf_counter() - self.since


@PARKED.contender("gmp")
def _(watch: Watch, ops: int, n: int) -> None:
    from gmp import Chan, go, gosched
    from gmp.sync import WaitGroup

    def wait(depth: int) -> None:
        if depth:
            wait(depth - 1)
        else:
            parked.done()
            gate.recv_ok()
            released.done()

    def body() -> None:
        parked.add(ops)
        released.add(ops)
        with watch:
            census = Census(watch, ops)
            for _ in range(ops):
                go(wait, n)
            parked.wait()
            gosched()
            census.parked()
            gate.close()
            released.wait()
            census.released()

    parked, released, gate = WaitGroup(), WaitGroup(), Chan[None]()
    go(body).result()


@PARKED.contender("gevent")
def _(watch: Watch, ops: int, n: int) -> None:
    import gevent
    from gevent.event import Event

    def wait(depth: int) -> None:
        if depth:
            wait(depth - 1)
        else:
            gate.wait()

    gate = Event()
    with watch:
        census = Census(watch, ops)
        tasks = [gevent.spawn(wait, n) for _ in range(ops)]
        gevent.sleep(0)
        census.parked()
        gate.set()
        gevent.joinall(tasks)
        census.released()


@PARKED.contender("greenlet")
def _(watch: Watch, ops: int, n: int) -> None:
    from greenlet import getcurrent, greenlet

    def wait(depth: int) -> None:
        if depth:
            wait(depth - 1)
        else:
            main.switch()

    main = getcurrent()
    with watch:
        census = Census(watch, ops)
        tasks = [greenlet(wait) for _ in range(ops)]
        for task in tasks:
            task.switch(n)
        census.parked()
        for task in tasks:
            task.switch()
        census.released()


@PARKED.contender("asyncio", "uvloop")
async def _(watch: Watch, ops: int, n: int) -> None:
    import asyncio

    async def wait(depth: int) -> None:
        if depth:
            await wait(depth - 1)
        else:
            await gate.wait()

    gate = asyncio.Event()
    with watch:
        census = Census(watch, ops)
        tasks = [asyncio.create_task(wait(n)) for _ in range(ops)]
        await asyncio.sleep(0)
        census.parked()
        gate.set()
        for task in tasks:
            await task
        census.released()


@PARKED.contender("trio")
async def _(watch: Watch, ops: int, n: int) -> None:
    import trio
    import trio.testing

    async def wait(depth: int) -> None:
        if depth:
            await wait(depth - 1)
        else:
            await gate.wait()

    gate = trio.Event()
    with watch:
        census = Census(watch, ops)
        async with trio.open_nursery() as nursery:
            for _ in range(ops):
                nursery.start_soon(wait, n)
            await trio.testing.wait_all_tasks_blocked()
            census.parked()
            gate.set()
        census.released()


@PARKED.contender("threads", ops=1_000)
def _(watch: Watch, ops: int, n: int) -> None:
    import threading

    def wait(depth: int) -> None:
        if depth:
            wait(depth - 1)
        else:
            parked.release()
            gate.wait()

    parked, gate = threading.Semaphore(0), threading.Event()
    with watch:
        census = Census(watch, ops)
        tasks: list[Any] = [threading.Thread(target=wait, args=(n,)) for _ in range(ops)]
        for task in tasks:
            task.start()
        for _ in range(ops):
            parked.acquire()
        census.parked()
        gate.set()
        for task in tasks:
            task.join()
        census.released()


def test_memory(measure: Callable[[], None]) -> None:
    measure()
