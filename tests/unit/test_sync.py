"""gmp.sync: Mutex and WaitGroup."""

from __future__ import annotations

import gc
import sys
import threading
import time

import pytest

import gmp
from gmp import go
from gmp.sync import Mutex, WaitGroup
from tests.waiting import parked


def test_mutex_excludes() -> None:
    m = Mutex()
    inside = most = total = 0

    def f() -> None:
        nonlocal inside, most, total
        for _ in range(20):
            with m:
                inside += 1
                most = max(most, inside)
                gmp.gosched()
                total += 1
                inside -= 1

    for g in [go(f) for _ in range(50)]:
        g.join()
    assert (most, total) == (1, 1000)
    assert not m.locked()


def test_mutex_methods() -> None:
    m = Mutex()
    assert "unlocked" in repr(m)
    m.lock()
    assert m.locked()
    assert "locked" in repr(m)
    assert "unlocked" not in repr(m)
    assert m.try_lock() is False
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError):
            m.lock(timeout)
        with pytest.raises(TimeoutError):
            m.lock(timeout=timeout)
    m.unlock()
    assert m.try_lock() is True
    m.unlock()
    with pytest.raises(RuntimeError, match="unlock"):
        m.unlock()
    m.lock(0)
    m.unlock()


def test_mutex_is_unlocked_by_an_exception_and_it_passes_through() -> None:
    m = Mutex()
    with pytest.raises(ZeroDivisionError), m:
        1 / 0  # noqa: B018
    assert not m.locked()


def test_another_goroutine_may_unlock() -> None:
    m = Mutex()
    m.lock()
    g = go(m.unlock)
    m.lock(10)
    g.join()
    m.unlock()


def test_timed_out_waiters_leave_the_queue() -> None:
    m = Mutex()
    m.lock()

    def impatient(i: int) -> str:
        try:
            m.lock(0.001 * (i % 5))
        except TimeoutError:
            return "timeout"
        m.unlock()
        return "locked"

    gs = [go(impatient, i) for i in range(50)]
    assert [g.result() for g in gs] == ["timeout"] * 50
    waiter = go(m.lock)
    parked(waiter)
    m.unlock()
    waiter.join()
    m.unlock()
    assert not m.locked()


def test_no_starvation() -> None:
    """A goroutine that takes the lock again and again does not shut a waiting one out for ever."""
    m = Mutex()
    stop = False

    def hog() -> None:
        while not stop:
            with m:
                t = time.perf_counter()
                while time.perf_counter() - t < 0.0005:
                    pass
                gmp.gosched()

    g = go(hog)
    for _ in range(10):
        m.lock(20)
        m.unlock()
        gmp.gosched()
    stop = True
    g.join()


def test_mutex_between_threads() -> None:
    m = Mutex()
    n = 0

    def f() -> None:
        nonlocal n
        for _ in range(300):
            with m:
                k = n
                if k % 16 == 0:
                    time.sleep(0)
                n = k + 1

    threads = [threading.Thread(target=f) for _ in range(4)]
    gs = [go(f) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for g in gs:
        g.join()
    assert n == 8 * 300


def test_waitgroup() -> None:
    wg = WaitGroup()
    wg.wait()  # at zero: at once
    wg.add(3)
    assert wg.count == 3
    with pytest.raises(TimeoutError):
        wg.wait(0)
    with pytest.raises(TimeoutError):
        wg.wait(timeout=0.01)
    waiters = [go(wg.wait) for _ in range(10)]
    parked(*waiters)
    wg.done()
    wg.add(-1)
    assert not any(w.done for w in waiters)
    wg.done()
    for w in waiters:
        w.join()
    wg.add()
    wg.done()
    wg.wait()


def test_waitgroup_negative() -> None:
    wg = WaitGroup()
    with pytest.raises(ValueError, match="negative WaitGroup counter"):
        wg.done()
    wg.add(2)
    with pytest.raises(ValueError, match="negative WaitGroup counter"):
        wg.add(-3)
    assert wg.count == 2
    wg.add(2**62)
    with pytest.raises((OverflowError, ValueError)):
        wg.add(2**62)
    assert wg.count == 2 + 2**62


def test_waitgroup_go() -> None:
    wg = WaitGroup()
    got: list[int] = []

    def f(i: int, *, k: int) -> int:
        gmp.gosched()
        got.append(i + k)
        return i

    gs = [wg.go(f, i, k=100) for i in range(20)]
    wg.wait()
    assert sorted(got) == list(range(100, 120))
    assert [g.result() for g in gs] == list(range(20))

    def fail() -> None:
        raise LookupError

    g = wg.go(fail)
    wg.wait()
    with pytest.raises(LookupError):
        g.join()
    with pytest.raises(TypeError, match=r"WaitGroup.go\(\) argument 1"):
        wg.go(None)  # type: ignore[arg-type]
    assert wg.count == 0


def test_waitgroup_reused_by_rounds() -> None:
    wg = WaitGroup()
    for n in range(1, 60):
        wg.add(n)
        for _ in range(n):
            go(wg.done)
        wg.wait()


def test_waitgroup_subclass() -> None:
    class Mine(WaitGroup):
        pass

    wg = Mine()
    wg.go(int)
    wg.wait()


def test_references() -> None:
    m, wg = Mutex(), WaitGroup()

    def once() -> None:
        m.lock()
        g = go(m.lock)
        parked(g)
        m.unlock()
        g.join()
        with pytest.raises(TimeoutError):
            m.lock(0.0001)
        m.unlock()
        with m:
            pass
        wg.add(1)
        g = go(wg.wait)
        parked(g)
        with pytest.raises(TimeoutError):
            wg.wait(0.0001)
        wg.done()
        g.join()

    once()
    gc.collect()
    before = sys.getrefcount(m), sys.getrefcount(wg)
    for _ in range(300):
        once()
    gc.collect()
    assert (sys.getrefcount(m), sys.getrefcount(wg)) == before
