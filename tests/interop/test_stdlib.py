"""gmp beside what else runs things: queue, futures, asyncio, logging, greenlet."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import contextlib
import io
import logging
import queue
import random
import selectors
import socket
import socketserver
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import gmp
from gmp import Chan, go


@pytest.mark.parametrize("make", [queue.Queue, queue.LifoQueue, queue.SimpleQueue])
def test_queue_between_goroutines_and_threads(make: type[queue.Queue[int]]) -> None:
    q = make()
    n = 300

    def produce(base: int) -> None:
        for i in range(n):
            q.put(base + i)

    got: list[int] = []
    gs = [go(produce, 1000 * k) for k in range(3)]
    t = threading.Thread(target=produce, args=(5000,))
    t.start()
    consumers = [go(lambda: [got.append(q.get(timeout=20)) for _ in range(n)]) for _ in range(4)]
    for g in gs + consumers:
        g.join()
    t.join()
    assert len(set(got)) == 4 * n


def test_bounded_queue() -> None:
    q: queue.Queue[int] = queue.Queue(maxsize=1)
    g = go(lambda: [q.put(i) for i in range(100)])
    assert [q.get(timeout=20) for _ in range(100)] == list(range(100))
    g.join()


def test_thread_pool_from_goroutines() -> None:
    with cf.ThreadPoolExecutor(3) as pool:

        def f(i: int) -> int:
            a = gmp.wait(pool.submit(pow, i, 2))
            b = pool.submit(lambda: go(pow, i, 3).result()).result(20)  # holds a thread, which is slower but right
            return a + b

        assert [g.result() for g in [go(f, i) for i in range(20)]] == [i**2 + i**3 for i in range(20)]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    t = threading.Thread(target=loop.run_forever)
    t.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    t.join(20)
    loop.close()


def test_asyncio_in_a_thread(loop: asyncio.AbstractEventLoop) -> None:
    async def work(i: int) -> int:
        await asyncio.sleep(0.01)
        return i * i

    def f(i: int) -> int:
        return gmp.wait(asyncio.run_coroutine_threadsafe(work(i), loop), 20)

    assert [g.result() for g in [go(f, i) for i in range(50)]] == [i * i for i in range(50)]


def test_asyncio_awaits_goroutines(loop: asyncio.AbstractEventLoop) -> None:
    with gmp.Executor() as ex:

        def slow(i: int) -> int:
            gmp.sleep(0.01)
            return i + 1

        async def main() -> list[int]:
            inner = asyncio.get_running_loop()
            return await asyncio.gather(*[inner.run_in_executor(ex, slow, i) for i in range(50)])

        assert gmp.wait(asyncio.run_coroutine_threadsafe(main(), loop), 20) == list(range(1, 51))


def test_asyncio_sends_to_a_channel(loop: asyncio.AbstractEventLoop) -> None:
    ch: Chan[int] = Chan(100)

    async def produce() -> None:
        for i in range(50):
            ch.send(i, 0)
            await asyncio.sleep(0)
        ch.close()

    f = asyncio.run_coroutine_threadsafe(produce(), loop)
    assert list(ch) == list(range(50))
    gmp.wait(f)


def test_asyncio_run_in_main_and_in_a_goroutine() -> None:
    async def main() -> int:
        await asyncio.sleep(0.01)
        return 3

    assert asyncio.run(main()) == 3
    assert go(lambda: asyncio.run(main())).result() == 3


def test_logging() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter("%(message)s|%(threadName)s|%(name)s"))
    log = logging.getLogger("gmp.test")
    log.addHandler(handler)
    log.propagate = False
    try:

        def f(i: int) -> None:
            for k in range(20):
                log.warning("%d-%d", i, k)
                if k % 7 == 0:
                    gmp.gosched()

        gs = [go(f, i) for i in range(20)]
        threads = [threading.Thread(target=f, args=(100 + i,)) for i in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for g in gs:
            g.join()
    finally:
        log.removeHandler(handler)
    lines = out.getvalue().splitlines()
    assert len(lines) == 23 * 20
    assert {line.split("|")[0] for line in lines} == {
        f"{i}-{k}" for i in (*range(20), 100, 101, 102) for k in range(20)
    }


def test_sockets() -> None:
    class Echo(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(line.upper())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        t = threading.Thread(target=server.serve_forever)
        t.start()

        def client(i: int) -> bytes:
            with socket.create_connection(server.server_address, timeout=20) as s, s.makefile("rwb") as f:
                f.write(b"hello %d\n" % i)
                f.flush()
                return f.readline()

        assert [g.result() for g in [go(client, i) for i in range(10)]] == [b"HELLO %d\n" % i for i in range(10)]
        server.shutdown()
        t.join()


def test_http_server_and_clients_in_goroutines() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = str(go(lambda: len(self.path)).result()).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = go(server.serve_forever)

        def get(i: int) -> int:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/{'x' * i}", timeout=20) as r:
                return int(r.read())

        assert [g.result() for g in [go(get, i) for i in range(10)]] == [i + 1 for i in range(10)]
        server.shutdown()
        serving.join()


def test_selectors() -> None:
    a, b = socket.socketpair()
    with a, b, selectors.DefaultSelector() as sel:
        sel.register(a, selectors.EVENT_READ)
        g = go(sel.select, 20)
        gmp.sleep(0.01)
        b.send(b"x")
        assert len(g.result()) == 1


def test_random_and_time_are_shared_safely() -> None:
    def f() -> float:
        return sum(random.random() for _ in range(1000)) + time.time()

    assert all(g.result() > 0 for g in [go(f) for _ in range(20)])


def test_contextlib_exit_stack_across_parks() -> None:
    log: list[str] = []

    def f(i: int) -> None:
        with contextlib.ExitStack() as stack:
            for k in range(3):
                stack.callback(lambda k=k: (gmp.gosched(), log.append(f"{i}{k}")))
                gmp.gosched()

    for g in [go(f, i) for i in range(5)]:
        g.join()
    assert sorted(log) == [f"{i}{k}" for i in range(5) for k in range(3)]
    for i in range(5):
        mine = [e for e in log if e[0] == str(i)]
        assert mine == [f"{i}2", f"{i}1", f"{i}0"]
