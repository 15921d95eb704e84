"""Threads of every origin use gmp, and a call that blocks its thread blocks nobody else."""

from __future__ import annotations

import concurrent.futures as cf
import contextlib
import ctypes
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import gmp
from gmp import Chan, go
from gmp.sync import Mutex, WaitGroup
from tests.waiting import parked, until, waiting


def in_threads(n: int, fn: Callable[[int], None], timeout: float = 30) -> None:
    """Run fn(i) in n threads; the first exception is raised here."""
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            fn(i)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout)
    assert not [t for t in threads if t.is_alive()], gmp.runtime.stack(all=True)
    if errors:
        raise errors[0]


# ---- a call that lets go of the GIL ----


def all_sleep_at_once(run: Callable[[Callable[[int], None]], object]) -> bool:
    """run(f) runs f in 20 goroutines."""
    spans: list[tuple[float, float]] = []

    def sleep(i: int) -> None:
        begin = time.monotonic()
        time.sleep(0.2)
        spans.append((begin, time.monotonic()))

    run(sleep)
    assert len(spans) == 20
    return max(begin for begin, _ in spans) < min(end for _, end in spans)


# Repeated, as a machine that is busy with others may let one begin 200 ms after another.
def test_sleeps_of_threads_overlap() -> None:
    until(lambda: all_sleep_at_once(lambda f: [g.join() for g in [go(f, i) for i in range(20)]]))


def test_sleeps_in_threads_own_goroutines_overlap() -> None:
    until(lambda: all_sleep_at_once(lambda f: in_threads(20, lambda i: go(f, i).join())))


def test_blocked_goroutine_does_not_stop_channels() -> None:
    ch: Chan[int] = Chan()
    release = threading.Event()
    blocked = [go(release.wait, 30) for _ in range(3)]
    g = go(lambda: [ch.send(i) for i in range(2000)])
    assert [ch.recv(20) for _ in range(2000)] == list(range(2000))
    release.set()
    for b in blocked:
        assert b.result() is True
    g.join()


def test_pipe_between_goroutines() -> None:
    """One blocks in read() for what another writes."""
    r, w = os.pipe()
    reader = go(os.read, r, 10)
    writer = go(lambda: (gmp.sleep(0.01), os.write(w, b"x")))
    assert reader.result(20) == b"x"
    writer.join()
    os.close(r)
    os.close(w)


def test_threading_primitives_between_goroutines() -> None:
    """Lock, Condition, Event, Semaphore and Queue block threads, not the others."""
    lock, q = threading.Lock(), queue.Queue[int]()
    lock.acquire()
    waiter = go(lock.acquire)
    getter = go(q.get)
    event = threading.Event()
    ewaiter = go(event.wait)
    gmp.sleep(0.01)
    go(lock.release).join()
    go(q.put, 4).join()
    go(event.set).join()
    assert waiter.result(20) is True
    assert getter.result(20) == 4
    assert ewaiter.result(20) is True
    lock.release()


def test_busy_loops_do_not_starve_others() -> None:
    stop = False
    ticks = 0

    def spin() -> None:
        while not stop:
            pass

    def tick() -> None:
        nonlocal ticks
        while not stop:
            ticks += 1
            gmp.sleep(0.001)

    spinners = [go(spin) for _ in range(3)]
    ticker = go(tick)
    try:
        until(lambda: ticks >= 5, turn=lambda: gmp.sleep(0.005))
    finally:
        stop = True
    for g in (*spinners, ticker):
        g.join()


def test_handoffs_are_counted() -> None:
    before = gmp.runtime.stats()["handoffs"]
    release = threading.Event()
    blocked = go(release.wait)
    until(lambda: gmp.runtime.stats()["handoffs"] > before)
    release.set()
    blocked.join()


# ---- threads of other origin ----


def test_every_operation_from_a_thread() -> None:
    def ops(i: int) -> None:
        ch: Chan[int] = Chan()
        g = go(ch.send, i)
        assert ch.recv() == i
        g.join()
        g = go(ch.recv)
        ch.send(i)
        assert g.result() == i
        g = go(lambda: gmp.select(gmp.recv(ch)))
        assert gmp.select(gmp.send(ch, i), timeout=20).ok
        assert g.result().value == i
        with pytest.raises(TimeoutError):
            gmp.select(gmp.recv(ch), timeout=0.001)
        with pytest.raises(TimeoutError):
            ch.recv(0.001)
        gmp.sleep(0.001)
        gmp.gosched()
        m, wg = Mutex(), WaitGroup()
        m.lock()
        g = go(m.lock)
        parked(g)
        m.unlock()
        g.join()
        wg.add(2)
        gs = [go(wg.done), go(wg.done)]
        wg.wait()
        for g in gs:
            g.join()
        with gmp.Executor() as ex:
            assert ex.submit(pow, 2, 3).result() == 8
        f: cf.Future[int] = cf.Future()
        g = go(f.set_result, 5)
        assert gmp.wait(f) == 5
        g.join()
        assert gmp.runtime.stack()
        assert gmp.runtime.num_goroutine() >= 1

    ops(0)
    in_threads(1, ops)
    in_threads(8, ops)
    with cf.ThreadPoolExecutor(4) as pool:
        list(pool.map(ops, range(8)))


def test_waiting_thread_runs_others() -> None:
    """The main thread sits in a plain lock; a thread waits on a channel and, meanwhile, the goroutines it started run."""
    got: list[int] = []

    def f(_: int) -> None:
        ch: Chan[int] = Chan()
        gs = [go(lambda i=i: ch.send(i * i)) for i in range(100)]
        got.extend(ch.recv() for _ in range(100))
        for g in gs:
            g.join()

    in_threads(1, f)
    assert sorted(got) == [i * i for i in range(100)]


def test_goroutine_joins_a_thread_that_waits() -> None:
    """It must not run on that very thread, where it would wait for itself."""
    for _ in range(10):
        ch: Chan[int] = Chan()
        t = threading.Thread(target=lambda ch=ch: [ch.recv() for _ in range(3)])
        t.start()
        until(lambda: waiting("chan receive") >= 1, turn=lambda: time.sleep(0.0005))
        g = go(t.join)
        time.sleep(0.002)
        for i in range(3):
            ch.send(i)
        g.join(20)


def test_current_thread_in_a_goroutine_is_not_a_thread_that_waits() -> None:
    ch: Chan[int] = Chan()
    threads = [threading.Thread(target=ch.recv) for _ in range(5)]
    for t in threads:
        t.start()
    until(lambda: waiting("chan receive") >= 5, turn=lambda: time.sleep(0.0005))
    seen = {g.result() for g in [go(threading.current_thread) for _ in range(50)]}
    assert not seen & set(threads)
    for i in range(5):
        ch.send(i)
    for t in threads:
        t.join(20)


def test_thread_local_of_a_thread_is_not_its_lodgers() -> None:
    """A goroutine that runs on a waiting thread sees neither that thread's locals nor its exception state."""
    local = threading.local()

    def f(i: int) -> None:
        local.x = i
        ch: Chan[bool] = Chan()
        try:
            raise ValueError
        except ValueError:
            g = go(lambda: ch.send(hasattr(local, "x")))
            assert ch.recv() is False
            assert local.x == i
            g.join()

    in_threads(4, f)


def test_ping_pong_between_two_threads() -> None:
    a: Chan[int] = Chan()
    b: Chan[int] = Chan()

    def f(i: int) -> None:
        for k in range(500):
            if i == 0:
                a.send(k)
                assert b.recv() == k
            else:
                b.send(a.recv())

    in_threads(2, f)


def test_threads_come_and_go() -> None:
    """Hundreds of threads that each use gmp and end: their places are used again."""
    before = gmp.runtime.stats()["threads"]
    ch: Chan[int] = Chan(1)

    def f(i: int) -> None:
        ch.send(i)
        ch.recv()
        go(int).join()

    for _ in range(30):
        in_threads(10, f)
    assert gmp.runtime.stats()["threads"] <= before + 100  # of 300


def test_thread_that_ends_with_goroutines_alive() -> None:
    """Its goroutines go on elsewhere."""
    ch: Chan[int] = Chan()
    back: Chan[int] = Chan()
    gs: list[gmp.Goroutine[None]] = []

    def worker() -> None:
        back.send(ch.recv() + 1)

    def starter(_: int) -> None:
        gs.extend(go(worker) for _ in range(10))
        parked(*gs)

    in_threads(1, starter)
    for i in range(10):
        ch.send(i)
    assert sorted(back.recv() for _ in range(10)) == list(range(1, 11))
    for g in gs:
        g.join()


def test_thread_started_in_a_goroutine() -> None:
    def f() -> int:
        out: list[int] = []
        t = threading.Thread(target=lambda: out.append(go(lambda: 4).result()))
        t.start()
        t.join()
        return out[0]

    assert [g.result() for g in [go(f) for _ in range(5)]] == [4] * 5


def test_daemon_thread_parked_is_harmless() -> None:
    ch: Chan[int] = Chan()
    t = threading.Thread(target=ch.recv, daemon=True)
    t.start()
    until(lambda: waiting("chan receive") >= 1)
    assert go(lambda: 1).result() == 1
    ch.send(1)
    t.join(20)
    assert not t.is_alive()


# ---- callbacks from C ----

CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)


@CALLBACK
def _callback(i: int) -> int:
    ch: Chan[int] = Chan()
    g = go(ch.send, i + 1)
    v = ch.recv()
    g.join()
    gmp.gosched()
    return v


def test_ctypes_callback_parks_in_a_goroutine() -> None:
    def f(i: int) -> int:
        return sum(_callback(i + k) for k in range(5))

    assert [g.result() for g in [go(f, i) for i in range(50)]] == [sum(i + k + 1 for k in range(5)) for i in range(50)]


def test_ctypes_qsort_with_a_parking_comparison() -> None:
    libc = ctypes.CDLL(None)
    cmp_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))

    @cmp_type
    def compare(a, b):
        gmp.gosched()
        return a[0] - b[0]

    def f(seed: int) -> list[int]:
        values = [(i * seed) % 101 for i in range(60)]
        array = (ctypes.c_int * 60)(*values)
        libc.qsort(array, 60, ctypes.sizeof(ctypes.c_int), compare)
        return list(array)

    assert [g.result() for g in [go(f, s) for s in (7, 13, 31)]] == [
        sorted((i * s) % 101 for i in range(60)) for s in (7, 13, 31)
    ]


def test_callback_on_a_thread_that_python_does_not_know(tmp_path: Path) -> None:
    """pthread_create by ctypes: its first Python code is a callback, which uses channels."""
    libc = ctypes.CDLL(None)
    start_type = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    ch: Chan[int] = Chan()
    back: Chan[int] = Chan()

    @start_type
    def start(arg):
        for _ in range(3):
            back.send(ch.recv() + 1)
        back.send(_callback(41))
        return None

    for _ in range(5):
        tid = ctypes.c_ulong()
        assert libc.pthread_create(ctypes.byref(tid), None, start, None) == 0
        for k in range(3):
            ch.send(k)
            assert back.recv() == k + 1
        assert back.recv() == 42
        libc.pthread_join.argtypes = [ctypes.c_ulong, ctypes.c_void_p]
        assert libc.pthread_join(tid, None) == 0


def test_sqlite_functions_that_use_channels() -> None:
    """They must not park: SQLite's mutex belongs to a thread, and a goroutine that parks may go on on another one."""
    ch: Chan[int] = Chan(50)

    def f(i: int) -> list[int]:
        with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as db:

            def double(x: int) -> int:
                ch.send(x, 0)
                go(int)
                return x * 2

            db.create_function("double", 1, double)
            db.execute("create table t (x integer)")
            db.executemany("insert into t values (?)", [(i + k,) for k in range(5)])
            return [row[0] for row in db.execute("select double(x) from t order by x")]

    gs = [go(f, i) for i in range(10)]
    assert [g.result() for g in gs] == [[2 * (i + k) for k in range(5)] for i in range(10)]
    assert len(ch) == 50


def test_sqlite_busy_wait_blocks_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with contextlib.closing(sqlite3.connect(path, check_same_thread=False, isolation_level=None)) as db:
        db.execute("create table t (x)")
        db.execute("begin immediate")

        def other() -> None:
            with contextlib.closing(sqlite3.connect(path, timeout=20, check_same_thread=False)) as db2:
                db2.execute("insert into t values (1)")
                db2.commit()

        g = go(other)
        gmp.sleep(0.02)
        assert go(lambda: 3).result(10) == 3
        assert not g.done
        db.execute("commit")
        g.join(25)
        assert db.execute("select count(*) from t").fetchone() == (1,)


# ---- the import system ----


def test_imports_in_goroutines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many goroutines import one module at once, whose code waits."""
    (tmp_path / "gmp_test_slow_module.py").write_text("import time\ntime.sleep(0.05)\nvalue = 3\n")
    monkeypatch.syspath_prepend(tmp_path)

    def f() -> int:
        import gmp_test_slow_module  # type: ignore[import-not-found]

        return int(gmp_test_slow_module.value)

    assert [g.result(30) for g in [go(f) for _ in range(20)]] == [3] * 20
