"""gmp.time: Timer, Ticker, after, after_func with Go's meaning."""

from __future__ import annotations

import contextvars
import gc
import threading
import time
import weakref

import pytest

import gmp
from gmp import Chan, go, recv, select
from gmp.time import Ticker, Timer, after, after_func, sleep
from tests.waiting import parked, status, until

LONG = 1000.0


def timers() -> int:
    return int(gmp.runtime.stats()["timers"])


def timers_before() -> int:
    gc.collect()  # timers of others do not go meanwhile
    return timers()


def warm_up() -> None:
    """The dispatcher of after_func exists from its first use on."""
    done: Chan[None] = Chan()
    after_func(0, done.send, None)
    done.recv(10)


# ---- after, Timer ----


def test_after_delivers_the_time() -> None:
    t0, m0 = time.time(), time.monotonic()
    fired = after(0.05).recv(10)
    assert time.monotonic() - m0 >= 0.05
    assert t0 + 0.04 <= fired <= time.time() + 0.01


def test_after_is_a_timeout_for_select() -> None:
    never: Chan[int] = Chan()
    match select(recv(never), recv(after(0.02))):
        case (1, fired, True):
            assert isinstance(fired, float)
        case other:
            pytest.fail(f"{other}")


def test_fires_once() -> None:
    timer = Timer(0.01)
    timer.c.recv(10)
    with pytest.raises(TimeoutError):
        timer.c.recv(0.05)
    assert not timer.stop()


def test_zero_fires_at_once() -> None:
    assert Timer(0).c.recv(10) > 0
    assert after(0).recv(10) > 0


def test_fires_although_nobody_waits() -> None:
    timer = Timer(0.01)
    time.sleep(0.1)
    t0 = time.monotonic()
    timer.c.recv(10)
    assert time.monotonic() - t0 < 20


def test_stop() -> None:
    before = timers_before()
    timer = Timer(LONG)
    assert timers() == before + 1
    assert timer.stop()
    assert timers() == before
    assert not timer.stop()
    with pytest.raises(TimeoutError):
        timer.c.recv(0)


def test_no_stale_time_after_stop() -> None:
    """It has fired, nobody has received: stop takes it back and says so."""
    timer = Timer(0.01)
    gmp.sleep(0.05)
    assert timer.stop()
    with pytest.raises(TimeoutError):
        timer.c.recv(0.02)


def test_reset() -> None:
    timer = Timer(LONG)
    assert timer.reset(0.01)
    timer.c.recv(10)
    assert not timer.reset(0.01)
    timer.c.recv(10)
    timer.reset(0.01)
    gmp.sleep(0.05)
    assert timer.reset(LONG)  # and the time that it had sent is gone
    with pytest.raises(TimeoutError):
        timer.c.recv(0.02)
    assert timer.stop()


def test_reset_wakes_who_waits_already() -> None:
    timer = Timer(LONG)
    g = go(timer.c.recv, LONG)
    parked(g)
    timer.reset(0.01)
    assert g.result() > 0


def test_looks_unbuffered() -> None:
    timer = Timer(0)
    gmp.sleep(0.02)
    assert timer.c.cap == 0
    assert len(timer.c) == 0
    assert isinstance(timer.c, Chan)
    assert timer.c.recv(0) > 0


def test_order() -> None:
    """Those that are due earlier fire earlier, whenever they are received."""
    fired = [0.0] * 4
    chans = [after(0.02 + 0.02 * i) for i in range(4)]
    for _ in chans:
        got = select(*[recv(c) for c in chans], timeout=10)
        fired[got.index] = got.value
    assert fired == sorted(fired)
    assert all(fired)


def test_in_threads() -> None:
    got: list[float] = []
    threads = [threading.Thread(target=lambda: got.append(after(0.03).recv(10))) for _ in range(5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(20)
    assert len(got) == 5


def test_beside_a_busy_goroutine() -> None:
    stop = False

    def spin() -> None:
        while not stop:
            pass

    g = go(spin)
    timer = Timer(0.03)
    waiter = go(timer.c.recv, 20)
    assert waiter.result() > 0
    stop = True
    g.join()


# ---- Ticker ----


def test_ticks() -> None:
    ticker = Ticker(0.01)
    t0 = time.monotonic()
    got = [ticker.c.recv(10) for _ in range(5)]
    assert time.monotonic() - t0 >= 0.04
    assert got == sorted(got)
    ticker.stop()
    with pytest.raises(TimeoutError):
        ticker.c.recv(0.05)


def test_ticks_are_dropped_for_the_slow() -> None:
    ticker = Ticker(0.01)

    def one_was_kept() -> bool:
        gmp.sleep(0.1)
        ticker.c.recv(0)
        try:
            ticker.c.recv(0)
        except TimeoutError:
            return True
        return False  # another one has come in between

    until(one_was_kept)
    ticker.stop()


def test_ticker_reset() -> None:
    ticker = Ticker(LONG)
    ticker.reset(0.01)
    for _ in range(3):
        ticker.c.recv(10)
    gmp.sleep(0.03)
    ticker.reset(LONG)
    with pytest.raises(TimeoutError):
        ticker.c.recv(0.03)
    ticker.stop()
    ticker.reset(0.01)
    ticker.c.recv(10)
    ticker.stop()
    ticker.stop()


def test_ticker_keeps_its_pace() -> None:
    """Ticks come at multiples of the period after the start, not a period after the last one was received."""
    ticker = Ticker(0.05)

    def off() -> float:
        first = ticker.c.recv(10)
        for _ in range(3):
            gmp.sleep(0.025)
            last = ticker.c.recv(10)
        return abs((last - first) / 0.05 - round((last - first) / 0.05))

    until(
        lambda: off() < 0.1
    )  # on a busy machine a tick may be late; a period after the last one, it would be off by half
    ticker.stop()


def test_iteration() -> None:
    ticker = Ticker(0.005)
    for n, fired in enumerate(ticker.c):
        assert fired > 0
        if n == 2:
            break
    ticker.stop()


# ---- after_func ----


def test_after_func() -> None:
    done: Chan[tuple[int, object]] = Chan()

    def f(a: int, b: object = None) -> None:
        done.send((a, b))

    t0 = time.monotonic()
    timer = after_func(0.03, f, 1, b="x")
    assert timer.c is None
    assert done.recv(10) == (1, "x")
    assert time.monotonic() - t0 >= 0.03
    assert not timer.stop()


def test_after_func_runs_in_a_goroutine_of_its_own() -> None:
    done: Chan[int] = Chan()

    def f() -> None:
        gmp.sleep(0.05)
        done.send(gmp._core._goid())

    after_func(0, f)
    after_func(0, f)
    ids = {done.recv(10), done.recv(10)}
    assert len(ids) == 2
    assert gmp._core._goid() not in ids


def test_after_func_stop() -> None:
    called: list[int] = []
    timer = after_func(0.03, called.append, 1)
    while not timer.stop():  # it has taken 30 ms to get here
        until(lambda: called)
        called.clear()
        timer.reset(0.03)
    assert not timer.stop()
    gmp.sleep(0.08)
    assert called == []


def test_after_func_reset() -> None:
    done: Chan[int] = Chan(10)
    timer = after_func(LONG, done.send, 1)
    assert timer.reset(0.01)
    assert done.recv(10) == 1
    assert not timer.reset(0.01)
    assert done.recv(10) == 1
    timer.reset(0)
    timer.reset(0)
    done.recv(10)
    timer.stop()


def test_after_func_is_kept_until_it_fires() -> None:
    warm_up()
    done: Chan[int] = Chan()

    class Body:
        def __call__(self) -> None:
            done.send(7)

    body = Body()
    ref = weakref.ref(body)
    after_func(0.05, body)
    del body
    gc.collect()
    assert ref() is not None
    assert done.recv(10) == 7
    deadline = time.monotonic() + 10
    while ref() is not None and time.monotonic() < deadline:
        gmp.sleep(0.001)
        gc.collect()
    assert ref() is None


def test_after_func_that_was_stopped_goes() -> None:
    class Body:
        def __call__(self) -> None: ...

    body = Body()
    ref = weakref.ref(body)
    timer = after_func(LONG, body)
    timer.stop()
    del body, timer
    gc.collect()
    assert ref() is None


def test_after_func_has_the_callers_context() -> None:
    var: contextvars.ContextVar[int] = contextvars.ContextVar("var", default=0)
    done: Chan[int] = Chan(2)
    token = var.set(5)
    timer = after_func(0.02, lambda: done.send(var.get()))
    var.reset(token)
    assert done.recv(10) == 5
    timer.reset(0)
    assert done.recv(10) == 5


def test_after_func_failure_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Chan[gmp.ExceptHookArgs] = Chan()
    monkeypatch.setattr(gmp, "excepthook", seen.send)

    def bad() -> None:
        raise LookupError("x")

    after_func(0, bad)
    args = seen.recv(10)
    assert args.exc_type is LookupError
    assert args.name.endswith("bad")
    done: Chan[int] = Chan()
    after_func(0, done.send, 1)  # the dispatcher goes on
    assert done.recv(10) == 1


def test_dispatcher_is_not_counted(child) -> None:
    child(
        """
        import gmp
        ch = gmp.Chan()
        gmp.time.after_func(0, ch.send, 1)
        ch.recv()
        from tests.waiting import until
        until(lambda: gmp.runtime.num_goroutine() == 1)
        assert gmp.runtime.stats()["goroutines"] == 1
        assert gmp.lib.gmp_num_goroutine() == 0
        text = gmp.runtime.stack(all=True)
        assert text.count("goroutine ") == 1, text
        try:
            ch.recv()
        except gmp.Deadlock as e:
            assert "_dispatch" not in str(e)
            print("deadlock")
        """
    ).expect(0, "deadlock")


def test_after_a_fork(child) -> None:
    """What was started in the parent does not fire in the child, but can be stopped, and started again."""
    child(
        """
        import gmp, os, time
        from gmp.time import Ticker, Timer, after, after_func
        called = gmp.Chan(10)
        warm = after_func(0, called.send, 0)
        called.recv()
        code = 8
        while code == 8:
            start = time.monotonic()
            timer, ticker, never = Timer(0.4), Ticker(0.2), Timer(1000)
            fn = after_func(0.4, called.send, 1)
            pid = os.fork()
            if pid == 0:
                if time.monotonic() - start >= 0.2:
                    os._exit(8)  # there may have been a tick before the fork
                gmp.sleep(0.6)
                for t in (timer, ticker):
                    try:
                        t.c.recv(0)
                    except TimeoutError:
                        pass
                    else:
                        os._exit(1)
                assert len(called) == 0
                assert not timer.stop() and not never.stop() and not fn.stop() and not warm.stop()
                timer.reset(0.01)
                timer.c.recv(10)
                ticker.reset(0.01)
                ticker.c.recv(10)
                fn.reset(0.01)
                assert called.recv(10) == 1
                after_func(0.01, called.send, 2)
                assert called.recv(10) == 2
                del timer, ticker, never, fn
                assert after(0.01).recv(10) > 0
                os._exit(7)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            timer.c.recv(10)
            ticker.c.recv(10)
            assert called.recv(10) == 1
        assert code == 7, code
        """,
        python=("-W", "ignore"),
    ).expect(0)


def test_many_after_funcs() -> None:
    n = 0
    done: Chan[None] = Chan()

    def f() -> None:
        nonlocal n
        n += 1
        if n == 5000:
            done.send(None)

    for i in range(5000):
        after_func(i % 50 / 1000, f)
    done.recv(30)
    assert n == 5000


# ---- unreferenced timers ----


@pytest.mark.parametrize(
    "make", [lambda: Timer(LONG), lambda: Ticker(LONG), lambda: after(LONG)], ids=["Timer", "Ticker", "after"]
)
def test_collectable_when_unreferenced(make) -> None:
    before = timers_before()
    objects = [make() for _ in range(1000)]
    ref = weakref.ref(objects[0])
    assert timers() == before + 1000
    del objects
    gc.collect()
    assert ref() is None
    assert timers() == before


def test_collected_while_they_fire() -> None:
    """Timers and tickers go at the moment they fire, on whatever thread that happens."""
    stop = time.monotonic() + 1.0

    def churn() -> None:
        while time.monotonic() < stop:
            keep = [Ticker(1e-5) for _ in range(20)] + [Timer(1e-5) for _ in range(20)]
            time.sleep(0.0005)
            del keep
            gmp.gosched()

    gs = [go(churn) for _ in range(4)]
    for g in gs:
        g.join()


def test_in_a_cycle() -> None:
    class Node:
        def __init__(self) -> None:
            self.me = self
            self.timer = Timer(LONG)

    before = timers_before()
    nodes = [Node() for _ in range(10)]
    assert timers() == before + 10
    del nodes
    gc.collect()
    assert timers() == before


def test_a_waiter_keeps_its_timer() -> None:
    g = go(lambda: after(0.05).recv(10))
    until(lambda: status(g) in ("chan receive", None))
    gc.collect()
    assert g.result() > 0


def test_unreceived_time_is_dropped_with_the_channel() -> None:
    cs = [after(0) for _ in range(100)]
    gmp.sleep(0.02)
    del cs
    gc.collect()


# ---- many ----


def test_hundred_thousand_timers() -> None:
    before = timers_before()
    ts = [Timer(LONG + i % 977) for i in range(100_000)]
    assert timers() == before + 100_000
    for t in ts[::2]:
        assert t.stop()
    for t in ts[1::2]:
        assert t.reset(0.001)
    for t in ts[1::2]:
        t.c.recv(30)
    assert timers() == before


def test_stop_and_reset_race_with_firing() -> None:
    """Whatever the moment: stop returns True and nothing comes, or False and exactly one time was received."""
    n = 0
    for i in range(900):
        timer = Timer(i % 10 * 1e-5)
        g = go(timer.c.recv, 0.01) if i % 3 == 0 else None
        if i % 2:
            time.sleep(0)
        stopped = timer.stop()
        if g is not None:
            try:
                g.result()
                assert not stopped
                n += 1
            except TimeoutError:
                assert stopped
        else:
            assert stopped
        with pytest.raises(TimeoutError):
            timer.c.recv(0)
    assert n >= 0


# ---- bad input ----


@pytest.mark.parametrize(
    "make", [Timer, Ticker, after, lambda s: after_func(s, int)], ids=["Timer", "Ticker", "after", "after_func"]
)
def test_bad_times(make) -> None:
    for bad in (-1, -0.001, float("nan")):
        with pytest.raises(ValueError, match="must be 0 or more seconds, not"):
            make(bad)
    for wrong in (None, "1", [], object()):
        with pytest.raises(TypeError, match="must be a number of seconds, not"):
            make(wrong)


def test_ticker_needs_a_period() -> None:
    with pytest.raises(ValueError, match=r"Ticker\(\): the time must be more than 0 seconds, not 0"):
        Ticker(0)
    ticker = Ticker(LONG)
    with pytest.raises(ValueError, match=r"Ticker\.reset\(\): the time must be more than 0 seconds"):
        ticker.reset(0.0)
    ticker.stop()


def test_bad_reset_leaves_the_timer_alone() -> None:
    timer = Timer(0.05)
    with pytest.raises(ValueError, match="must be 0 or more"):
        timer.reset(-1)
    with pytest.raises(TypeError, match="must be a number"):
        timer.reset(None)  # type: ignore[arg-type]
    assert timer.c.recv(10) > 0


def test_for_ever() -> None:
    timer = Timer(float("inf"))
    timer2 = Timer(1e300)
    assert timer.stop()
    assert timer2.stop()


def test_after_func_needs_a_function() -> None:
    with pytest.raises(TypeError, match="must be callable, not int"):
        after_func(1, 5)  # type: ignore[arg-type]


def test_core_refuses_other_channels() -> None:
    with pytest.raises(TypeError, match="a timer_chan"):
        gmp._core.timer_stop(Chan())
    with pytest.raises(TypeError, match="a timer_chan"):
        gmp._core.timer_start(object(), 1, False, "x")  # type: ignore[arg-type]


def test_sleep_is_gmp_sleep() -> None:
    assert sleep is gmp.sleep
