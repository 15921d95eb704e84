"""sleep and timers."""

from __future__ import annotations

import threading
import time

import gmp
from gmp import go
from tests.waiting import parked, undisturbed, until


def test_at_least() -> None:
    for seconds in (0.001, 0.02, 0.05):
        t0 = time.monotonic()
        gmp.sleep(seconds)
        assert time.monotonic() - t0 >= seconds


def test_zero_yields() -> None:
    log: list[int] = []
    with undisturbed():
        g = go(log.append, 1)
        until(lambda: log, turn=lambda: gmp.sleep(0))
    g.join()


def test_int_and_bool_seconds() -> None:
    gmp.sleep(False)
    gmp.sleep(0)


def test_order() -> None:
    """Those that sleep shorter wake first, whatever the order they went to sleep in."""

    def woken() -> list[int]:
        order: list[int] = []

        def f(i: int) -> None:
            gmp.sleep(0.02 + i * 0.02)
            order.append(i)

        for g in [go(f, i) for i in (3, 0, 2, 4, 1)]:
            g.join()
        return order

    until(
        lambda: woken() == [0, 1, 2, 3, 4]
    )  # not so when some go to sleep 20 ms after others: there are other processes


def test_sleepers_overlap() -> None:
    t0 = time.monotonic()
    for g in [go(gmp.sleep, 0.2) for _ in range(2000)]:
        g.join()
    assert 0.2 <= time.monotonic() - t0 < 40  # one after another they take 400 s


def test_timers_cancelled_early() -> None:
    """Receives with long timeouts that succeed leave no timer behind."""
    ch: gmp.Chan[int] = gmp.Chan()
    before = gmp.runtime.stats()["timers"]
    gs = [go(ch.recv, 1000) for _ in range(500)]
    parked(*gs)
    assert gmp.runtime.stats()["timers"] >= 500
    for i in range(500):
        ch.send(i)
    for g in gs:
        g.join()
    assert gmp.runtime.stats()["timers"] <= before  # other tests' may have fired


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
        t.join()
    assert len(woken) == 8
    assert all(w >= 0.05 for w in woken)


def test_short_sleep_while_a_long_one_waits() -> None:
    """A new, earlier timer is not slept through by whoever already sleeps until a later one."""
    stop: gmp.Chan[None] = gmp.Chan()
    long_ = go(stop.recv, 100)
    parked(long_)
    for _ in range(5):
        t0 = time.monotonic()
        gmp.sleep(0.01)
        assert time.monotonic() - t0 < 20
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
    assert time.monotonic() - t0 < 20
    stop = True
    g.join()
