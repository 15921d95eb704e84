"""Channels: a value there and one back through unbuffered channels; a stream of values through one of capacity 128.

asyncio and threads have no unbuffered channel: there a queue of one place (threads: SimpleQueue) takes its part. A
greenlet's switch carries a value by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.harness import Bench, Target, Watch

TRIP = Bench("round_trip")
TRIP.shape("round_trip", title="unbuffered channel, round trip", ops=100_000, targets=(Target(1.5, "go-1"),))


@TRIP.contender("gmp")
def _(watch: Watch, ops: int, n: int) -> None:
    from gmp import go

    go(_trips, watch, ops).result()


@TRIP.contender("gmp-main")
def _(watch: Watch, ops: int, n: int) -> None:
    _trips(watch, ops)


def _trips(watch: Watch, ops: int) -> None:
    from gmp import Chan, go

    def echo() -> None:
        for value in there:
            back.send(value)

    there: Chan[int] = Chan()
    back: Chan[int] = Chan()
    go(echo)
    with watch:
        for i in range(ops):
            there.send(i)
            back.recv()
    there.close()


@TRIP.contender("gevent", ops=10_000)
def _(watch: Watch, ops: int, n: int) -> None:
    import gevent
    from gevent.queue import Channel

    def echo() -> None:
        for _ in range(ops):
            back.put(there.get())

    there, back = Channel(), Channel()
    task = gevent.spawn(echo)
    with watch:
        for i in range(ops):
            there.put(i)
            back.get()
    task.join()


@TRIP.contender("greenlet")
def _(watch: Watch, ops: int, n: int) -> None:
    from greenlet import getcurrent, greenlet

    def echo(value: int) -> None:
        switch = main.switch
        for _ in range(ops):
            value = switch(value)

    main = getcurrent()
    task = greenlet(echo)
    switch = task.switch
    with watch:
        for i in range(ops):
            switch(i)
    task.switch(0)


@TRIP.contender("asyncio", "uvloop", ops=10_000)
async def _(watch: Watch, ops: int, n: int) -> None:
    import asyncio

    async def echo() -> None:
        for _ in range(ops):
            await back.put(await there.get())

    there: asyncio.Queue[int] = asyncio.Queue(1)
    back: asyncio.Queue[int] = asyncio.Queue(1)
    task = asyncio.create_task(echo())
    with watch:
        for i in range(ops):
            await there.put(i)
            await back.get()
    await task


@TRIP.contender("trio", ops=5_000)
async def _(watch: Watch, ops: int, n: int) -> None:
    import trio

    async def echo() -> None:
        async for value in there_out:
            await back_in.send(value)

    there_in, there_out = trio.open_memory_channel[int](0)
    back_in, back_out = trio.open_memory_channel[int](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        with watch:
            for i in range(ops):
                await there_in.send(i)
                await back_out.receive()
        there_in.close()


@TRIP.contender("threads", ops=2_000)
def _(watch: Watch, ops: int, n: int) -> None:
    import threading
    from queue import SimpleQueue

    def echo() -> None:
        for _ in range(ops):
            back.put(there.get())

    there: SimpleQueue[int] = SimpleQueue()
    back: SimpleQueue[int] = SimpleQueue()
    task = threading.Thread(target=echo)
    task.start()
    with watch:
        for i in range(ops):
            there.put(i)
            back.get()
    task.join()


STREAM = Bench("buffered")
STREAM.shape("buffered", title="buffered channel (128), an item", n=128, ops=400_000, targets=(Target(3.0, "go-1"),))


@STREAM.contender("gmp")
def _(watch: Watch, ops: int, n: int) -> None:
    from gmp import Chan, go

    def produce() -> None:
        for i in range(ops):
            stream.send(i)
        stream.close()

    def consume() -> None:
        with watch:
            for _ in stream:
                pass

    stream: Chan[int] = Chan(n)
    go(produce)
    go(consume).result()


@STREAM.contender("gevent", ops=100_000)
def _(watch: Watch, ops: int, n: int) -> None:
    import gevent
    from gevent.queue import Queue

    def produce() -> None:
        for i in range(ops):
            stream.put(i)

    stream: Any = Queue(n)
    task = gevent.spawn(produce)
    with watch:
        for _ in range(ops):
            stream.get()
    task.join()


@STREAM.contender("asyncio", "uvloop", ops=50_000)
async def _(watch: Watch, ops: int, n: int) -> None:
    import asyncio

    async def produce() -> None:
        for i in range(ops):
            await stream.put(i)

    stream: asyncio.Queue[int] = asyncio.Queue(n)
    task = asyncio.create_task(produce())
    with watch:
        for _ in range(ops):
            await stream.get()
    await task


@STREAM.contender("trio", ops=10_000)
async def _(watch: Watch, ops: int, n: int) -> None:
    import trio

    async def produce() -> None:
        with source:
            for i in range(ops):
                await source.send(i)

    source, stream = trio.open_memory_channel[int](n)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce)
        with watch:
            async for _ in stream:
                pass


@STREAM.contender("threads", ops=20_000)
def _(watch: Watch, ops: int, n: int) -> None:
    import threading
    from queue import Queue

    def produce() -> None:
        for i in range(ops):
            stream.put(i)

    stream: Queue[int] = Queue(n)
    task = threading.Thread(target=produce)
    task.start()
    with watch:
        for _ in range(ops):
            stream.get()
    task.join()


def test_chan(measure: Callable[[], None]) -> None:
    measure()
