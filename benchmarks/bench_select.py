"""Select: take a value from whichever of n unbuffered channels has one; each has a producer of its own.

An operation is one value. asyncio's nearest is `asyncio.wait(FIRST_COMPLETED)` over one `get()` task a queue, of which
only the finished ones are made anew.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness import Bench, Watch

SELECT = Bench("select")
SELECT.shape("select_2", title="select of 2", n=2, ops=100_000)
SELECT.shape("select_4", title="select of 4", n=4, ops=100_000)


@SELECT.contender("gmp")
def _(watch: Watch, ops: int, n: int) -> None:
    from gmp import Chan, go, recv, select

    def produce(ch: Chan[int]) -> None:
        for i in range(ops // n):
            ch.send(i)

    def consume() -> None:
        if n == 2:
            a, b = chans
            with watch:
                for _ in range(ops // n * n):
                    select(recv(a), recv(b))
        else:
            a, b, c, d = chans
            with watch:
                for _ in range(ops // n * n):
                    select(recv(a), recv(b), recv(c), recv(d))

    chans: list[Chan[int]] = [Chan() for _ in range(n)]
    for ch in chans:
        go(produce, ch)
    go(consume).result()


@SELECT.contender("asyncio", "uvloop", ops=4_000)
async def _(watch: Watch, ops: int, n: int) -> int:
    import asyncio

    async def produce(queue: asyncio.Queue[int]) -> None:
        for i in range(ops // n):
            await queue.put(i)

    queues: list[asyncio.Queue[int]] = [asyncio.Queue(1) for _ in range(n)]
    producers = [asyncio.create_task(produce(queue)) for queue in queues]
    got = 0
    with watch:
        waits = {asyncio.ensure_future(queue.get()): queue for queue in queues}
        while got < ops // n * n:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in done:
                got += 1
                queue = waits.pop(wait)
                waits[asyncio.ensure_future(queue.get())] = queue
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*producers)
    return got


def test_select(measure: Callable[[], None]) -> None:
    measure()
