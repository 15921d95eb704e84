"""gmp.grpc: thousands of calls parked at once in a server process with a handful of threads."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

grpc = pytest.importorskip("grpc")

THREADS = 30  # fewer than this
LONG = 40.0

SERVER = """
    import sys, threading, grpc, gmp, gmp.grpc

    go_on = gmp.Chan()  # closed when everything parked may end

    def unary(request, context):
        if request == b"release":
            go_on.close()
        else:
            go_on.recv_ok()
        return request

    def bidi(requests, context):
        for request in requests:  # parks
            yield request + b"!"

    def slow(request, context):  # parks in sending, when the client does not read
        for _ in range(64):
            yield bytes(1 << 16)

    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
        "Slow": grpc.unary_stream_rpc_method_handler(slow),
    }
    server = gmp.grpc.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("S", handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    for line in sys.stdin:
        print(gmp.runtime.num_goroutine(), flush=True)
    server.stop(0).wait(10)
    print("stopped", flush=True)
"""


def run_aio(main):
    """asyncio.run, then drop what is left: grpc.aio's poller serves one loop after the other, but not two at once."""
    try:
        asyncio.run(main)
    finally:
        gc.collect()


class Server:
    def __init__(self, process):
        self.process = process
        self.target = f"127.0.0.1:{int(process.stdout.readline())}"

    def threads(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^Threads:\s+(\d+)", status, re.MULTILINE)[1])

    def goroutines(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    async def until_goroutines(self, enough):
        for _ in range(int(LONG * 20)):
            if enough(self.goroutines()):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{self.goroutines()} goroutines")


@pytest.fixture
def server():
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Server(process)
        process.stdin.close()
        assert process.stdout.readline() == "stopped\n"
        assert process.wait(LONG) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def test_5000_unary_calls_parked(server):
    async def main():
        async with grpc.aio.insecure_channel(server.target) as channel:
            call = channel.unary_unary("/S/Unary")
            calls = [call(b"%d" % i, timeout=LONG) for i in range(5000)]
            await server.until_goroutines(lambda n: n >= 5000)
            assert server.threads() < THREADS
            assert await call(b"release", timeout=LONG) == b"release"
            for i, reply in enumerate(await asyncio.gather(*calls)):
                assert reply == b"%d" % i
            await server.until_goroutines(lambda n: n < 10)
            assert server.threads() < THREADS

    run_aio(main())


def test_1500_bidi_streams_parked(server):
    async def main():
        async with grpc.aio.insecure_channel(server.target) as channel:
            streams = [channel.stream_stream("/S/Bidi")(timeout=LONG) for _ in range(1500)]
            for turn in (b"one", b"two"):
                await asyncio.gather(*(s.write(turn) for s in streams))
                assert set(await asyncio.gather(*(s.read() for s in streams))) == {turn + b"!"}
                assert server.goroutines() >= 1500
                assert server.threads() < THREADS
            for stream in streams[:700]:
                stream.cancel()
            await server.until_goroutines(lambda n: n < 1400 - 500)
            await asyncio.gather(*(s.done_writing() for s in streams[700:]))
            assert set(await asyncio.gather(*(s.read() for s in streams[700:]))) == {grpc.aio.EOF}
            await server.until_goroutines(lambda n: n < 10)

    run_aio(main())


def test_300_senders_parked(server):
    """Responses that the client does not read yet.

    On several connections: unread ones use up a connection's window, which stays small if it does not probe.
    """

    async def main():
        async with contextlib.AsyncExitStack() as stack:
            streams = []
            for i in range(30):
                options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0), ("client", i)]
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.target, options=options))
                streams += [channel.unary_stream("/S/Slow")(b"", timeout=LONG) for _ in range(10)]
            await server.until_goroutines(lambda n: n >= 300)
            await asyncio.sleep(0.2)
            assert server.goroutines() >= 300
            assert server.threads() < THREADS
            for stream in streams[3:]:
                stream.cancel()
            for stream in streams[:3]:
                assert sum([len(reply) async for reply in stream]) == 64 << 16
            await server.until_goroutines(lambda n: n < 10)

    run_aio(main())


def test_stop_with_thousands_parked():
    """server.stop(0) cancels what is parked in request iterators; the process ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        server = Server(process)

        async def main():
            async with grpc.aio.insecure_channel(server.target) as channel:
                streams = [channel.stream_stream("/S/Bidi")(timeout=LONG) for _ in range(1000)]
                await asyncio.gather(*(s.write(b"x") for s in streams))
                await asyncio.gather(*(s.read() for s in streams))
                process.stdin.close()
                for stream in streams:
                    assert await stream.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)

        run_aio(main())
        assert process.stdout.readline() == "stopped\n"
        assert process.wait(LONG) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
