"""All of it together: `everything.py [--seed N] [--seconds S]`, see `make stress`.

Actors of every kind run side by side, each many times over, and check what they see: channels, select, timers, sockets,
blocking calls, busy loops, callbacks from C, subprocesses, fork, signals, executors, threads, exceptions, garbage.  The seed, which
is printed first, fixes what each of them does, not how the threads interleave.  Ends with 0 and a line of counts; whoever
gets stuck ends it by faulthandler with all stacks.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import gc
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from types import FrameType

import gmp
from gmp import Chan, go, recv, select, send
from gmp.net import dial, listen
from gmp.sync import Mutex, WaitGroup

ACTORS: list[tuple[Callable[[Stress, random.Random], None], int]] = []


def actor(n: int) -> Callable[[Callable[[Stress, random.Random], None]], Callable[[Stress, random.Random], None]]:
    """n of these run at a time."""

    def register(f: Callable[[Stress, random.Random], None]) -> Callable[[Stress, random.Random], None]:
        ACTORS.append((f, n))
        return f

    return register


class Stress:
    def __init__(self, seed: int, seconds: float) -> None:
        self.seed = seed
        self.end = time.monotonic() + seconds
        self.counts: dict[str, int] = {}
        self.mutex = Mutex()
        self.shared = self.entered = 0
        self.signals_sent = 0
        self.signals_seen = 0
        self.handled_in: set[int] = set()
        self.main = gmp._core._goid()
        self.forking = Mutex()  # few processes at a time
        self.listener = listen("127.0.0.1:0")
        self.port = int(self.listener.addr[1])

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.end

    def repeat(self, f: Callable[[Stress, random.Random], None], seed: str) -> None:
        rng = random.Random(seed)
        n = 0
        while n == 0 or not self.over:
            f(self, rng)
            n += 1
            gmp.sleep(rng.random() * 0.003)
        with self.mutex:
            self.counts[f.__name__] = self.counts.get(f.__name__, 0) + n

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.handled_in.add(gmp._core._goid())
        self.signals_seen += 1

    def serve(self) -> None:
        def echo(conn: gmp.net.Conn) -> None:
            with conn:
                while data := conn.read(4096):
                    conn.write(data)

        with contextlib.suppress(OSError):
            for conn in self.listener:
                go(echo, conn)

    def run(self) -> None:
        signal.signal(signal.SIGUSR1, self.on_signal)
        server = go(self.serve)
        tasks = [go(self.repeat, f, f"{self.seed} {f.__name__} {i}") for f, n in ACTORS for i in range(n)]
        while not self.over:
            gmp.sleep(0.01)
        for t in tasks:
            t.join()
        self.listener.close()
        server.join()
        deadline = time.monotonic() + 60
        while (gmp.runtime.num_goroutine() > 1 or self.signals_seen == 0) and time.monotonic() < deadline:
            gc.collect()
            gmp.sleep(0.01)
        assert gmp.runtime.num_goroutine() == 1, gmp.runtime.stack(all=True)
        assert self.handled_in == {self.main}, (self.handled_in, self.main)
        assert self.shared == self.entered
        assert self.signals_seen <= self.signals_sent
        assert all(self.counts.values()), self.counts


@actor(20)
def channels(s: Stress, rng: random.Random) -> None:
    n = rng.randrange(1, 200)
    ch: Chan[int] = Chan(rng.choice([0, 1, 16]))
    sums = [go(lambda: sum(ch)) for _ in range(rng.randrange(1, 4))]
    for i in range(n):
        ch.send(i)
        if rng.random() < 0.02:
            gmp.gosched()
    ch.close()
    assert sum(g.result(60) for g in sums) == n * (n - 1) // 2


@actor(10)
def selects(s: Stress, rng: random.Random) -> None:
    a: Chan[int] = Chan()
    b: Chan[int] = Chan(1)
    quit_: Chan[None] = Chan()

    def other(seed: int) -> int:
        r = random.Random(seed)
        got = 0
        while True:
            try:
                case = select(recv(a), send(b, 1), recv(quit_), timeout=r.choice([None, 0.001, 1]))
            except TimeoutError:
                continue
            if case.index == 2:
                return got
            got += case.index == 0

    g = go(other, rng.randrange(1 << 30))
    sent = received = 0
    for _ in range(rng.randrange(1, 50)):
        case = select(send(a, 1), recv(b), timeout=60)
        sent += case.index == 0
        received += case.index == 1
    quit_.close()
    assert g.result(60) == sent


@actor(100)
def timers(s: Stress, rng: random.Random) -> None:
    t = rng.random() * 0.02
    t0 = time.monotonic()
    gmp.sleep(t)
    assert time.monotonic() - t0 >= t - 1e-6
    with contextlib.suppress(TimeoutError):
        Chan[int]().recv(rng.random() * 0.005)


@actor(10)
def sockets(s: Stress, rng: random.Random) -> None:
    with dial(f"127.0.0.1:{s.port}") as conn:
        for _ in range(rng.randrange(1, 20)):
            data = rng.randbytes(rng.randrange(1, 5000))
            writer = go(conn.write, data)
            assert conn.read_exactly(len(data)) == data
            writer.join(60)


@actor(20)
def blocking(s: Stress, rng: random.Random) -> None:
    how = rng.randrange(3)
    if how == 0:
        time.sleep(rng.random() * 0.02)
    elif how == 1:
        threading.Lock().acquire(timeout=0)
        lock = threading.Lock()
        lock.acquire()
        lock.acquire(timeout=rng.random() * 0.01)
    else:
        r, w = os.pipe()
        g = go(os.read, r, 1)
        gmp.sleep(rng.random() * 0.003)
        os.write(w, b"x")
        assert g.result(60) == b"x"
        os.close(r)
        os.close(w)


@actor(2)
def busy(s: Stress, rng: random.Random) -> None:
    end = time.monotonic() + rng.random() * 0.03
    while time.monotonic() < end:
        pass


@actor(4)
def sqlite(s: Stress, rng: random.Random) -> None:
    def slow(x: int) -> int:
        match rng.randrange(4):
            case 0:
                gmp.sleep(0.0005)
            case 1:
                time.sleep(0.0005)
            case 2:
                go(int).join(60)
        return x + 1

    with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as db:
        db.create_function("slow", 1, slow)
        db.execute("create table t(n)")
        db.executemany("insert into t values (?)", [(i,) for i in range(10)])
        assert db.execute("select sum(slow(n)) from t").fetchone() == (55,)


LIBC = ctypes.CDLL(None)
COMPARE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))


@actor(4)
def callbacks(s: Stress, rng: random.Random) -> None:
    def compare(a: ctypes._Pointer[ctypes.c_int], b: ctypes._Pointer[ctypes.c_int]) -> int:
        if rng.random() < 0.2:
            gmp.sleep(0.0003)
        return int(a[0] - b[0])

    numbers = (ctypes.c_int * 16)(*[rng.randrange(100) for _ in range(16)])
    want = sorted(numbers)
    LIBC.qsort(numbers, 16, ctypes.sizeof(ctypes.c_int), COMPARE(compare))
    assert list(numbers) == want
    assert sorted(want, key=lambda x: (gmp.gosched(), -x)[1]) == want[::-1]


@actor(3)
def processes(s: Stress, rng: random.Random) -> None:
    n = rng.randrange(1000)
    if rng.random() < 0.5:
        assert subprocess.run(["echo", str(n)], capture_output=True, text=True, check=True).stdout == f"{n}\n"
    else:
        p = subprocess.Popen(["sleep", "60"])
        gmp.sleep(rng.random() * 0.005)
        p.terminate()
        assert p.wait(60) == -signal.SIGTERM


def forked(seed: int) -> None:
    """In the child: a fresh runtime with the forking goroutine alone."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(60)
    assert gmp.runtime.num_goroutine() <= 2
    ch: Chan[int] = Chan()
    gs = [go(ch.send, i) for i in range(20)]
    assert sum(ch.recv() for _ in gs) == 190
    for g in gs:
        g.join()
    for g in [go(time.sleep, 0.002) for _ in range(3)]:
        g.join()


@actor(2)
def forks(s: Stress, rng: random.Random) -> None:
    with s.forking:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                forked(rng.randrange(1 << 30))
                code = 17
            except BaseException:
                import traceback

                traceback.print_exc()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 17, f"the child of a fork ended with {code}"
    gmp.sleep(0.02)


@actor(2)
def signals(s: Stress, rng: random.Random) -> None:
    s.signals_sent += 1
    os.kill(os.getpid(), signal.SIGUSR1)
    gmp.sleep(rng.random() * 0.02)


@actor(2)
def executors(s: Stress, rng: random.Random) -> None:
    with gmp.Executor(rng.choice([None, 1, 3])) as pool:
        fs = [pool.submit(pow, i, 2) for i in range(10)]
        assert [gmp.wait(f, 60) for f in fs] == [i * i for i in range(10)]
        assert list(pool.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]


@actor(5)
def exceptions(s: Stress, rng: random.Random) -> None:
    def fail(n: int) -> None:
        try:
            if n % 2:
                gmp.gosched()
            raise LookupError(n)
        finally:
            gmp.sleep(0)

    for n in range(rng.randrange(1, 10)):
        try:
            go(fail, n).join(60)
        except LookupError as e:
            assert e.args == (n,)
        else:
            raise AssertionError("it did not fail")


@actor(2)
def threads(s: Stress, rng: random.Random) -> None:
    ch: Chan[int] = Chan(rng.randrange(3))
    n = rng.randrange(1, 30)

    def work() -> None:
        for i in range(n):
            ch.send(go(lambda i=i: i).result(60))
        ch.close()

    t = threading.Thread(target=work)
    t.start()
    assert list(ch) == list(range(n))
    t.join()


@actor(5)
def locks(s: Stress, rng: random.Random) -> None:
    with s.mutex:
        value = s.shared
        if rng.random() < 0.2:
            gmp.gosched()
        s.shared = value + 1
        s.entered += 1
    wg = WaitGroup()
    for _ in range(rng.randrange(5)):
        wg.go(gmp.gosched)
    wg.wait(60)


class Node:
    """Garbage that uses channels as it goes."""

    def __init__(self, ch: Chan[int]) -> None:
        self.me = self
        self.ch = ch

    def __del__(self) -> None:
        with contextlib.suppress(TimeoutError):
            self.ch.send(1, 0)


@actor(2)
def garbage(s: Stress, rng: random.Random) -> None:
    ch: Chan[int] = Chan(10)
    for _ in range(5):
        Node(ch)
    gc.collect(rng.randrange(3))
    gmp.sleep(0.01)


@actor(2)
def generators(s: Stress, rng: random.Random) -> None:
    def numbers() -> object:
        for i in range(10):
            gmp.gosched()
            yield i

    gen = iter(numbers())  # type: ignore[call-overload]
    assert [next(gen), go(next, gen).result(60)] == [0, 1]
    assert list(gen) == list(range(2, 10))


@actor(1)
def imports(s: Stress, rng: random.Random) -> None:
    import importlib

    name = f"gmp_stress_{rng.randrange(1 << 60)}"
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, f"{name}.py"), "w") as f:
            f.write("import gmp\ngmp.sleep(0.002)\nvalue = 3\n")
        sys.path.insert(0, folder)
        try:
            importlib.invalidate_caches()
            gs = [go(importlib.import_module, name) for _ in range(3)]
            assert [g.result(60).value for g in gs] == [3] * 3
        finally:
            sys.path.remove(folder)
            sys.modules.pop(name, None)
    gmp.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0, help="0: by chance")
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    seed = args.seed or random.SystemRandom().randrange(1, 1 << 32)
    print(f"SEED={seed} SECONDS={args.seconds:g}", flush=True)
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # fork beside threads
    faulthandler.dump_traceback_later(args.seconds + 120, exit=True)
    failed: list[object] = []
    gmp.excepthook = lambda a: failed.append(a.exc_value)  # type: ignore[assignment]
    stress = Stress(seed, args.seconds)
    stress.run()
    assert not failed, failed
    stats = gmp.runtime.stats()
    print(" ".join(f"{k}={v}" for k, v in sorted(stress.counts.items())))
    print(f"signals={stress.signals_seen} threads={stats['threads']} handoffs={stats['handoffs']}")


if __name__ == "__main__":
    main()
