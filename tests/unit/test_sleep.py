"""sleep and timers."""

from __future__ import annotations

import threading
import time

import gmp
from gmp import go


def test_at_least() -> None:
    for seconds in (0.001, 0.02, 0.05):
        t0 = time.monotonic()
        gmp.sleep(seconds)
        assert time.monotonic() - t0 >= seconds


def test_zero_yields() -> None:
    log: list[int] = []
    g = go(log.append, 1)
    gmp.sleep(0)
    assert log == [1]
    g.join()


def test_int_and_bool_seconds() -> None:
    gmp.sleep(False)
    gmp.sleep(0)


def test_order() -> None:
    """Those that sleep shorter wake first, whatever the order they went to sleep in."""
    order: list[int] = []

    def f(i: int) -> None:
        gmp.sleep(0.02 + i * 0.02)
        order.append(i)

    for g in [go(f, i) for i in (3, 0, 2, 4, 1)]:
        g.join()
    assert order == [0, 1, 2, 3, 4]


def test_sleepers_overlap() -> None:
    t0 = time.monotonic()
    for g in [go(gmp.sleep, 0.2) for _ in range(2000)]:
        g.join()
    assert 0.2 <= time.monotonic() - t0 < 5


def test_timers_cancelled_early() -> None:
    """Receives with long timeouts that succeed leave no timer behind."""
    ch: gmp.Chan[int] = gmp.Chan()
    before = gmp.runtime.stats()["timers"]
    gs = [go(ch.recv, 1000) for _ in range(500)]
    gmp.gosched()
    for i in range(500):
        ch.send(i)
    for g in gs:
        g.join()
    assert gmp.runtime.stats()["timers"] == before


def test_sleep_in_threads() -> None:
    woken: list[float] = []

    def f() -> None:
        t0 = time.monotonic()
        gmp.sleep(0.05)
        woken.append(time.monotonic() - t0)

    threads = [threading.Thread(target=f) for _ in range(8)]
    for t in threads:
        t.start()
    gmp.sleep(0.05)
    for t in threads:
        t.join(10)
    assert len(woken) == 8
    assert all(w >= 0.05 for w in woken)


def test_short_sleep_while_a_long_one_waits() -> None:
    """A new, earlier timer is not slept through by whoever already sleeps until a later one."""
    stop: gmp.Chan[None] = gmp.Chan()
    long_ = go(stop.recv, 100)
    gmp.sleep(0.01)
    for _ in range(5):
        t0 = time.monotonic()
        gmp.sleep(0.01)
        assert time.monotonic() - t0 < 5
    t0 = time.monotonic()
    t = threading.Thread(target=gmp.sleep, args=(0.01,))
    t.start()
    t.join(20)
    assert not t.is_alive()
    stop.send(None)
    long_.join()


def test_timer_while_busy() -> None:
    """A sleeper wakes although another goroutine never yields."""
    stop = False

    def spin() -> None:
        while not stop:
            pass

    g = go(spin)
    t0 = time.monotonic()
    sleeper = go(gmp.sleep, 0.05)
    sleeper.join(20)
    assert time.monotonic() - t0 < 10
    stop = True
    g.join()
