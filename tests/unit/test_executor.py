"""Executor is a concurrent.futures.Executor, and wait parks on any future."""

from __future__ import annotations

import concurrent.futures as cf
import threading
import time

import pytest

import gmp
from tests.waiting import parked, until


def test_is_an_executor() -> None:
    ex = gmp.Executor()
    assert isinstance(ex, cf.Executor)
    with ex as same:
        assert same is ex
        f = ex.submit(pow, 2, 10)
        assert isinstance(f, cf.Future)
        assert f.result() == 1024
        assert f.exception() is None
        assert f.done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        ex.submit(int)


def test_fn_and_self_as_keywords() -> None:
    def f(**kw: int) -> dict[str, int]:
        return kw

    with gmp.Executor() as ex:
        assert ex.submit(f, fn=1, self=2, timeout=3).result() == {"fn": 1, "self": 2, "timeout": 3}


def test_exception() -> None:
    def fail() -> None:
        raise KeyError("k")

    with gmp.Executor() as ex:
        f = ex.submit(fail)
        assert isinstance(f.exception(), KeyError)
        with pytest.raises(KeyError):
            f.result()
        for kind in (SystemExit, KeyboardInterrupt):

            def out(kind=kind) -> None:
                raise kind

            with pytest.raises(kind):
                ex.submit(out).result()


def test_map() -> None:
    with gmp.Executor() as ex:
        assert list(ex.map(pow, [2, 3, 4], [5, 2, 1])) == [32, 9, 4]
        assert list(ex.map(lambda x: x, range(1000), chunksize=7)) == list(range(1000))
        ch: gmp.Chan[None] = gmp.Chan()
        with pytest.raises(TimeoutError):
            list(ex.map(lambda _: ch.recv(), [1], timeout=0.02))
        ch.send(None)


def test_map_buffersize() -> None:
    started: list[int] = []

    def f(i: int) -> int:
        started.append(i)
        return i

    with gmp.Executor() as ex:
        it = ex.map(f, iter(range(1000)), buffersize=3)
        assert [next(it) for _ in range(5)] == [0, 1, 2, 3, 4]
        gmp.sleep(0.01)
        assert len(started) <= 9
        for bad in (0, -1, "x", 1.5):
            with pytest.raises(ValueError, match="buffersize"):
                ex.map(f, [1], buffersize=bad)  # type: ignore[arg-type]


def test_map_cancels_the_rest() -> None:
    """As with the standard executors, a failing call cancels those that have not started."""

    def f(i: int) -> int:
        if i == 1:
            raise ValueError
        gmp.sleep(0.01)
        return i

    with gmp.Executor(max_workers=1) as ex:
        it = ex.map(f, range(100))
        assert next(it) == 0
        with pytest.raises(ValueError):  # noqa: PT011
            next(it)
        assert list(it) == []


def test_max_workers() -> None:
    running = most = 0
    order: list[int] = []
    leave: gmp.Chan[None] = gmp.Chan()

    def f(i: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(i)
        leave.recv()
        running -= 1

    with gmp.Executor(max_workers=3) as ex:
        fs = [ex.submit(f, i) for i in range(20)]
        until(lambda: running == 3)
        for n in range(4, 21):  # one ends, the next one begins
            leave.send(None)
            until(lambda n=n: len(order) == n)
        for _ in range(3):
            leave.send(None)
        cf.wait(fs)
    assert most == 3
    assert sorted(order[:3]) == [0, 1, 2]
    assert order[3:] == list(range(3, 20))


def test_thousands_at_once() -> None:
    with gmp.Executor() as ex:
        t0 = time.monotonic()
        fs = [ex.submit(gmp.sleep, 0.1) for _ in range(3000)]
        for f in fs:
            f.result()
        assert time.monotonic() - t0 < 40  # one after another they take 300 s


def test_as_completed_and_wait() -> None:
    with gmp.Executor() as ex:
        fs = [ex.submit(lambda i: (gmp.sleep(0.002 * i), i)[1], i) for i in range(10)]
        assert sorted(f.result() for f in cf.as_completed(fs, timeout=20)) == list(range(10))
        done, pending = cf.wait([ex.submit(gmp.sleep, 0.2), ex.submit(int)], return_when=cf.FIRST_COMPLETED)
        assert done
        for f in pending:
            f.result()


def test_cancel() -> None:
    ch: gmp.Chan[None] = gmp.Chan()
    with gmp.Executor(max_workers=1) as ex:
        first = ex.submit(ch.recv)
        second = ex.submit(int)
        until(first.running)
        assert not first.cancel()
        assert second.cancel()
        with pytest.raises(cf.CancelledError):
            second.result()
        ch.send(None)
        assert first.result() is None
        assert ex.submit(int).result() == 0


def test_cancel_wakes_waiters() -> None:
    ch: gmp.Chan[None] = gmp.Chan()
    with gmp.Executor(max_workers=1) as ex:
        first = ex.submit(ch.recv)
        second = ex.submit(int)
        until(first.running)
        waiter = gmp.go(second.result)
        parked(waiter)
        second.cancel()
        with pytest.raises(cf.CancelledError):
            waiter.join()
        ch.send(None)
        first.result()


def test_shutdown() -> None:
    ch: gmp.Chan[int] = gmp.Chan()
    ex = gmp.Executor(max_workers=1)
    a = ex.submit(ch.recv)
    b, c = ex.submit(int), ex.submit(int)
    until(a.running)
    ex.shutdown(wait=False, cancel_futures=True)
    assert b.cancelled()
    assert c.cancelled()
    ch.send(4)
    ex.shutdown()
    assert a.result() == 4
    ex.shutdown()
    ex2 = gmp.Executor()
    a = ex2.submit(ch.recv)
    ex2.shutdown(wait=False)
    ch.send(5)
    assert a.result() == 5


def test_shutdown_runs_what_is_queued() -> None:
    ex = gmp.Executor(max_workers=1)
    fs = [ex.submit(gmp.sleep, 0.001) for _ in range(5)]
    ex.shutdown()
    assert all(f.done() and not f.cancelled() for f in fs)


def test_initializer() -> None:
    seen: list[int] = []
    with gmp.Executor(initializer=seen.append, initargs=(1,)) as ex:
        ex.submit(int).result()
        ex.submit(int).result()
    assert seen == [1, 1]


def test_result_timeout() -> None:
    ch: gmp.Chan[int] = gmp.Chan()
    with gmp.Executor() as ex:
        f = ex.submit(ch.recv)
        for timeout in (0, 0.01, -1):  # concurrent.futures takes what is below 0 for 0, too
            with pytest.raises(TimeoutError, match=r"Future.result\(\): the time is up"):
                f.result(timeout)
            with pytest.raises(TimeoutError, match=r"Future.exception\(\): the time is up"):
                f.exception(timeout)
        with pytest.raises(TypeError, match=r"Future.result\(\): the time must be a number"):
            f.result("1")  # type: ignore[arg-type]
        assert not f._done_callbacks  # type: ignore[attr-defined]  # nothing piles up in a future that is asked often
        ch.send(1)
        assert f.result(10) == 1


def test_callbacks() -> None:
    seen: list[int] = []
    with gmp.Executor() as ex:
        f = ex.submit(lambda: 3)
        f.add_done_callback(lambda f: seen.append(f.result()))
        f.result()
        until(lambda: seen)  # it is called after those that wait have been woken
        f.add_done_callback(lambda f: seen.append(f.result() + 1))
    assert seen == [3, 4]


@pytest.mark.parametrize("bad", [0, -1])
def test_bad_max_workers(bad: int) -> None:
    with pytest.raises(ValueError, match="max_workers"):
        gmp.Executor(max_workers=bad)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="max_workers"):
        gmp.Executor(max_workers="3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="initializer"):
        gmp.Executor(initializer=3)  # type: ignore[arg-type]
    with gmp.Executor() as ex, pytest.raises(TypeError, match="argument 1"):
        ex.submit(None)  # type: ignore[arg-type]


def test_submit_from_many_threads() -> None:
    with gmp.Executor(max_workers=7) as ex:
        results: list[list[int]] = []

        def client(base: int) -> None:
            results.append([ex.submit(lambda x: x * 2, base + i).result() for i in range(100)])

        threads = [threading.Thread(target=client, args=(1000 * k,)) for k in range(5)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert sorted(map(tuple, results)) == [tuple(2 * (1000 * k + i) for i in range(100)) for k in range(5)]


# ---- gmp.wait ----


def test_wait_on_plain_future() -> None:
    f: cf.Future[int] = cf.Future()
    gs = [gmp.go(gmp.wait, f) for _ in range(20)]
    parked(*gs)
    f.set_result(6)
    assert [g.result() for g in gs] == [6] * 20
    assert gmp.wait(f) == 6
    assert gmp.wait(f, 0) == 6


def test_wait_on_exception_and_cancel() -> None:
    f: cf.Future[int] = cf.Future()
    f.set_exception(OSError("x"))
    with pytest.raises(OSError, match="x"):
        gmp.wait(f)
    f = cf.Future()
    g = gmp.go(gmp.wait, f)
    parked(g)
    f.cancel()
    with pytest.raises(cf.CancelledError):
        g.join()


def test_wait_timeout() -> None:
    f: cf.Future[int] = cf.Future()
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError, match=r"^wait\(\)"):
            gmp.wait(f, timeout)
        with pytest.raises(TimeoutError):
            gmp.wait(f, timeout=timeout)
    assert not f._done_callbacks  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^wait\(\).* seconds"):
        gmp.wait(f, -1)
    with pytest.raises(TypeError, match=r"^wait\(\).* seconds"):
        gmp.wait(f, "1")  # type: ignore[arg-type]


def test_wait_on_no_future() -> None:
    for bad in (None, 3, "future"):
        with pytest.raises(TypeError, match=r"wait\(\) argument 1 must be a concurrent.futures.Future"):
            gmp.wait(bad)  # type: ignore[arg-type]


def test_wait_lets_others_run() -> None:
    f: cf.Future[int] = cf.Future()
    g = gmp.go(f.set_result, 1)
    assert gmp.wait(f, 10) == 1
    g.join()


def test_wait_on_a_thread_pool() -> None:
    with cf.ThreadPoolExecutor(4) as pool:
        gs = [gmp.go(lambda i=i: gmp.wait(pool.submit(lambda: (time.sleep(0.01), i)[1]))) for i in range(20)]
        assert [g.result() for g in gs] == list(range(20))
