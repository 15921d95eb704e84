"""Mutex: `with lock:` by a task alone; and 100 tasks that each yield while they hold it, so that all others queue.

An operation is one lock and unlock.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness import Bench, Watch

MUTEX = Bench("mutex")
MUTEX.shape("mutex", title="mutex, lock and unlock", ops=400_000)


@MUTEX.contender("gmp")
def _(watch: Watch, ops: int, n: int) -> None:
    from gmp import go
    from gmp.sync import Mutex

    go(_alone, watch, ops, Mutex()).result()


@MUTEX.contender("gevent", ops=100_000)
def _(watch: Watch, ops: int, n: int) -> None:
    from gevent.lock import BoundedSemaphore

    _alone(watch, ops, BoundedSemaphore(1))


@MUTEX.contender("threads")
def _(watch: Watch, ops: int, n: int) -> None:
    from threading import Lock

    _alone(watch, ops, Lock())


def _alone(watch: Watch, ops: int, lock: object) -> None:
    with watch:
        for _ in range(ops):
            with lock:  # type: ignore[attr-defined]
                pass


@MUTEX.contender("asyncio", "uvloop", ops=100_000)
async def _(watch: Watch, ops: int, n: int) -> None:
    import asyncio

    lock = asyncio.Lock()
    with watch:
        for _ in range(ops):
            async with lock:
                pass


@MUTEX.contender("trio", ops=20_000)
async def _(watch: Watch, ops: int, n: int) -> None:
    import trio

    lock = trio.Lock()
    with watch:
        for _ in range(ops):
            async with lock:
                pass


QUEUE = Bench("contended")
QUEUE.shape("contended", title="mutex, 100 tasks yield inside", n=100, ops=100_000)


@QUEUE.contender("gmp")
def _(watch: Watch, ops: int, n: int) -> None:
    from gmp import go, gosched
    from gmp.sync import Mutex

    def work() -> None:
        for _ in range(ops // n):
            with lock:
                gosched()

    def body() -> None:
        tasks = [go(work) for _ in range(n)]
        with watch:
            for task in tasks:
                task.join()

    lock = Mutex()
    go(body).join()


@QUEUE.contender("gevent", ops=20_000)
def _(watch: Watch, ops: int, n: int) -> None:
    import gevent
    from gevent.lock import BoundedSemaphore

    def work() -> None:
        for _ in range(ops // n):
            with lock:
                gevent.sleep(0)

    lock = BoundedSemaphore(1)
    tasks = [gevent.spawn(work) for _ in range(n)]
    with watch:
        gevent.joinall(tasks)


@QUEUE.contender("asyncio", "uvloop", ops=10_000)
async def _(watch: Watch, ops: int, n: int) -> None:
    import asyncio

    async def work() -> None:
        for _ in range(ops // n):
            async with lock:
                await asyncio.sleep(0)

    lock = asyncio.Lock()
    tasks = [asyncio.create_task(work()) for _ in range(n)]
    with watch:
        for task in tasks:
            await task


@QUEUE.contender("trio", ops=10_000)
async def _(watch: Watch, ops: int, n: int) -> None:
    import trio

    async def work() -> None:
        for _ in range(ops // n):
            async with lock:
                await trio.lowlevel.checkpoint()

    lock = trio.Lock()
    with watch:
        async with trio.open_nursery() as nursery:
            for _ in range(n):
                nursery.start_soon(work)


def test_sync(measure: Callable[[], None]) -> None:
    measure()
