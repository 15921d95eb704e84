"""What is wrong is said at once, naming the argument and the remedy, and nothing is lost by it."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable

import pytest

import gmp
from gmp import Chan, ChanClosed, go, recv, select, send
from gmp.sync import Mutex, WaitGroup
from tests.waiting import parked, until


def waits(timeout: object) -> list[tuple[str, Callable[[], object]]]:
    """Every call that takes a timeout, ready or not to go ahead."""
    full, empty, ready = Chan[int](1), Chan[int](), Chan[int](1)
    full.send(1)
    ready.send(1)
    locked, free, wg = Mutex(), Mutex(), WaitGroup()
    locked.lock()
    wg.add(1)
    done = go(int)
    done.join()
    t = timeout
    return [
        ("Chan.recv()", lambda: empty.recv(t)),
        ("Chan.recv()", lambda: ready.recv(timeout=t)),
        ("Chan.recv_ok()", lambda: empty.recv_ok(t)),
        ("Chan.send()", lambda: full.send(1, t)),
        ("Chan.send()", lambda: full.send(1, timeout=t)),
        ("select()", lambda: select(recv(empty), timeout=t)),
        ("select()", lambda: select(recv(ready), timeout=t)),
        ("Mutex.lock()", lambda: locked.lock(t)),
        ("Mutex.lock()", lambda: free.lock(timeout=t)),
        ("WaitGroup.wait()", lambda: wg.wait(t)),
        ("WaitGroup.wait()", lambda: WaitGroup().wait(timeout=t)),
        ("Goroutine.join()", lambda: done.join(t)),
        ("Goroutine.result()", lambda: done.result(timeout=t)),
        ("sleep()", lambda: gmp.sleep(t)),
    ]


@pytest.mark.parametrize("timeout", [-1, -0.001, -1e300, float("-inf"), float("nan"), -(10**400)])
def test_negative_times(timeout: float) -> None:
    for what, call in waits(timeout):
        with pytest.raises(ValueError, match="0 or more seconds") as info:
            call()
        assert str(info.value).startswith(what)


@pytest.mark.parametrize("timeout", ["1", b"1", [], {}, object(), 1j, int])
def test_times_that_are_no_numbers(timeout: object) -> None:
    for what, call in waits(timeout):
        with pytest.raises(TypeError, match="number of seconds") as info:
            call()
        assert str(info.value).startswith(what)
        assert type(timeout).__name__ in str(info.value)


def test_sleep_none() -> None:
    with pytest.raises(TypeError, match=r"sleep\(\): the time must be a number of seconds, not NoneType"):
        gmp.sleep(None)  # type: ignore[arg-type]


def test_float_that_fails() -> None:
    class Bad:
        def __float__(self) -> float:
            raise ZeroDivisionError

    for _, call in waits(Bad()):
        with pytest.raises(ZeroDivisionError):
            call()


def test_wrong_names_and_numbers_of_arguments() -> None:
    ch: Chan[int] = Chan(1)
    done = go(int)
    done.join()
    wg, m = WaitGroup(), Mutex()
    for what, call in [
        ("recv", lambda: ch.recv(tiemout=1)),  # type: ignore[call-arg]
        ("recv", lambda: ch.recv(1, 2)),  # type: ignore[call-arg]
        ("recv", lambda: ch.recv(1, timeout=2)),  # type: ignore[misc]
        ("recv_ok", lambda: ch.recv_ok(seconds=1)),  # type: ignore[call-arg]
        ("send", lambda: ch.send()),  # type: ignore[call-arg]
        ("send", lambda: ch.send(1, 2, 3)),  # type: ignore[call-arg]
        ("send", lambda: ch.send(1, tiemout=2)),  # type: ignore[call-arg]
        ("send", lambda: ch.send(timeout=2)),  # type: ignore[call-arg]
        ("send", lambda: ch.send(value=2)),  # type: ignore[call-arg]
        ("send", lambda: ch.send(value=2, timeout=1)),  # type: ignore[call-arg]
        ("close", lambda: ch.close(1)),  # type: ignore[call-arg]
        ("join", lambda: done.join(1, 2)),  # type: ignore[call-arg]
        ("join", lambda: done.join(tiemout=2)),  # type: ignore[call-arg]
        ("result", lambda: done.result(tiemout=2)),  # type: ignore[call-arg]
        ("lock", lambda: m.lock(blocking=False)),  # type: ignore[call-arg]
        ("wait", lambda: wg.wait(tiemout=2)),  # type: ignore[call-arg]
        ("add", lambda: wg.add(1, 2)),  # type: ignore[call-arg]
        ("add", lambda: wg.add("1")),  # type: ignore[arg-type]
        ("add", lambda: wg.add(1.5)),  # type: ignore[arg-type]
        ("select", lambda: select(recv(ch), tiemout=1)),  # type: ignore[call-arg]
        ("send", lambda: send(ch)),  # type: ignore[call-arg]
        ("send", lambda: send(ch, 1, 2)),  # type: ignore[call-arg]
        ("recv", lambda: recv()),  # type: ignore[call-arg]
        ("Chan", lambda: Chan(size=1)),  # type: ignore[call-arg]
        ("Chan", lambda: Chan(1, 2)),  # type: ignore[call-arg]
        ("gosched", lambda: gmp.gosched(1)),  # type: ignore[call-arg]
        ("sleep", lambda: gmp.sleep()),  # type: ignore[call-arg]
        ("sleep", lambda: gmp.sleep(1, 2)),  # type: ignore[call-arg]
    ]:
        with pytest.raises(TypeError, match=what):
            call()
    assert len(ch) == 0
    assert wg.count == 0
    assert not m.locked()
    for call in (lambda: ch.recv(tiemout=1), lambda: ch.send(1, tiemout=1), lambda: done.join(tiemout=1)):  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="tiemout"):
            call()


def test_go() -> None:
    with pytest.raises(TypeError, match=r"gmp\.go\(fn, \*args\)"):
        go()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"go\(\) argument 1 .*not NoneType.*pass the function itself"):
        go(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"go\(\) argument 1 .*not int"):
        go(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="go"):
        go(fn=int)  # type: ignore[call-arg]


def test_chan() -> None:
    with pytest.raises(ValueError, match=r"Chan\(\) cap must be 0 or more, not -1"):
        Chan(-1)
    for bad in ("x", 1.5, None, []):
        with pytest.raises(TypeError, match=r"Chan\(\) cap must be an int"):
            Chan(bad)  # type: ignore[arg-type]
    for huge in (2**70, 2**63, 2**62):
        with pytest.raises((OverflowError, ValueError, MemoryError), match=r"cap|[Cc]han"):
            Chan(huge)
    with pytest.raises((MemoryError, ValueError), match=r"Chan\(\)"):
        Chan(2**59)
    assert Chan(True).cap == 1


def test_types_cannot_be_subclassed_or_changed() -> None:
    for kind in (Chan, Mutex, gmp.Case, gmp.Goroutine):
        with pytest.raises(TypeError):
            type("Sub", (kind,), {})
    with pytest.raises(TypeError):
        Chan.recv = None  # type: ignore[method-assign, assignment]
    with pytest.raises(AttributeError):
        Chan().cap = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        gmp.Case()


def test_methods_on_the_wrong_object() -> None:
    for method in (Chan.recv, Chan.send, Chan.close, Mutex.lock, gmp.Goroutine.join):
        with pytest.raises(TypeError):
            method(object(), 1)  # type: ignore[arg-type, call-arg]


def test_select_cases() -> None:
    ch: Chan[int] = Chan()
    for bad in (None, 3, ch, ch.recv, (ch, 1)):
        with pytest.raises(TypeError, match=r"select\(\) argument 2 must be a case"):
            select(recv(ch), bad)  # type: ignore[arg-type]
    for bad in (3, "ch", ch.recv):
        with pytest.raises(TypeError, match=r"recv\(\) argument 1 must be a gmp.Chan"):
            recv(bad)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"send\(\) argument 1 must be a gmp.Chan"):
            send(bad, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most 65535 cases"):
        select(*[recv(None)] * 70_000, default=True)

    class Bad:
        def __bool__(self) -> bool:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        select(recv(ch), default=Bad())  # type: ignore[arg-type]


def test_many_cases() -> None:
    chans: list[Chan[int]] = [Chan() for _ in range(20_000)]
    with pytest.raises(TimeoutError):
        select(*map(recv, chans), timeout=0.001)
    g = go(select, *map(recv, chans))
    parked(g)
    chans[12_345].send(7)
    assert g.result() == (12_345, 7, True)


def test_closed_channels_say_what_was_tried() -> None:
    ch: Chan[int] = Chan()
    ch.close()
    for message, call in [
        ("send on closed channel", lambda: ch.send(1)),
        ("receive on closed channel", ch.recv),
        ("close of closed channel", ch.close),
        ("send on closed channel", lambda: select(send(ch, 1))),
    ]:
        with pytest.raises(ChanClosed, match=message):
            call()
    assert issubclass(ChanClosed, RuntimeError)


def test_nothing_is_leaked_by_mistakes() -> None:
    """Thousands of each: reference counts and the number of objects stay where they are."""
    value = object()
    ch: Chan[object] = Chan()
    closed: Chan[object] = Chan()
    closed.close()
    fn = lambda *a, **k: None  # noqa: E731
    mutex, wg = Mutex(), WaitGroup()

    def mistakes() -> None:
        for call in (
            lambda: go(),  # type: ignore[call-arg]
            lambda: go(None, value),  # type: ignore[arg-type]
            lambda: go(value, value),  # type: ignore[arg-type]
            lambda: Chan(value),  # type: ignore[arg-type]
            lambda: Chan(-1),
            lambda: Chan(2**70),
            lambda: ch.send(value, -1),
            lambda: ch.send(value, timeout=value),  # type: ignore[arg-type]
            lambda: ch.send(value, 0),
            lambda: ch.recv(0),
            lambda: ch.recv(value),  # type: ignore[arg-type]
            lambda: ch.recv(nonsense=value),  # type: ignore[call-arg]
            lambda: closed.send(value),
            lambda: closed.recv(),
            lambda: closed.close(),
            lambda: select(send(ch, value), value),  # type: ignore[arg-type]
            lambda: select(*[send(ch, value)] * 10, value),  # type: ignore[arg-type]
            lambda: select(send(ch, value), nonsense=value),  # type: ignore[call-arg]
            lambda: select(send(ch, value), timeout=-1),
            lambda: select(send(ch, value), timeout=0),
            lambda: select(send(closed, value), send(closed, value)),
            lambda: send(value, value),  # type: ignore[arg-type]
            lambda: recv(value),  # type: ignore[arg-type]
            lambda: gmp.sleep(value),  # type: ignore[arg-type]
            lambda: mutex.lock(value),  # type: ignore[arg-type]
            lambda: mutex.unlock(),
            lambda: wg.add(value),  # type: ignore[arg-type]
            lambda: wg.done(),
            lambda: wg.go(value),  # type: ignore[arg-type]
            lambda: gmp.wait(value),  # type: ignore[arg-type]
            lambda: go(fn, value, value, value, value, value, value, k=value).join(-1),
            lambda: go((1).__truediv__, 0).result(),
        ):
            with contextlib.suppress(
                TypeError, ValueError, OverflowError, TimeoutError, RuntimeError, ZeroDivisionError
            ):
                call()
                raise AssertionError("no exception")

    start = gmp.runtime.num_goroutine()
    for _ in range(20):
        mistakes()
    until(lambda: gmp.runtime.num_goroutine() <= start)
    gc.collect()
    objects = value, ch, closed, fn, mutex, wg
    before = [sys.getrefcount(o) for o in objects]
    count = len(gc.get_objects())
    for _ in range(1000):
        mistakes()
    until(lambda: gmp.runtime.num_goroutine() <= start)
    gc.collect()
    assert [sys.getrefcount(o) for o in objects] == before
    assert len(gc.get_objects()) - count < 500


def test_nothing_is_leaked_by_ordinary_use() -> None:
    value = object()
    args = tuple(object() for _ in range(12))

    def f(*a: object, **k: object) -> object:
        gmp.gosched()
        return value

    def use() -> None:
        ch: Chan[object] = Chan()
        g = go(f, *args[:3], key=args[3])
        go(f, *args, key=args[4])
        s = go(ch.send, value)
        assert ch.recv() is value
        assert g.result() is value
        s.join()
        r = go(select, recv(ch), send(Chan(), args[5]))
        parked(r)
        ch.send(args[6])
        assert r.result().value is args[6]

    start = gmp.runtime.num_goroutine()
    for _ in range(50):
        use()
    until(lambda: gmp.runtime.num_goroutine() <= start)
    gc.collect()
    before = [sys.getrefcount(o) for o in (value, f, *args)]
    none = sys.getrefcount(None)
    count = len(gc.get_objects())
    for _ in range(2000):
        use()
    until(lambda: gmp.runtime.num_goroutine() <= start)
    gc.collect()
    assert [sys.getrefcount(o) for o in (value, f, *args)] == before
    assert abs(sys.getrefcount(None) - none) < 500  # immortal since 3.12: always equal there
    assert len(gc.get_objects()) - count < 500


# ---- at the end of the interpreter ----


def test_operations_in_exit_handlers(child) -> None:
    """atexit runs in reverse order: before gmp's own handler all works; after it, each call says why not."""
    child("""
        import atexit
        def late():
            import gmp
            ch = gmp.Chan(1)
            ch.send(1); assert ch.recv() == 1        # what does not wait still works
            for what, call in [
                ("go", lambda: gmp.go(print, "ran")),
                ("recv", lambda: ch.recv()),
                ("recv", lambda: ch.recv(1)),
                ("sleep", lambda: gmp.sleep(0.001)),
                ("select", lambda: gmp.select(gmp.recv(ch))),
                ("wait", lambda: (wg := gmp.sync.WaitGroup(), wg.add(1), wg.wait())),
                ("lock", lambda: (m := gmp.sync.Mutex(), m.lock(), m.lock())),
            ]:
                try:
                    call()
                except RuntimeError as e:
                    assert "shutting down" in str(e), e
                else:
                    raise AssertionError(what)
            gmp.gosched()
            print("late ok")
        atexit.register(late)
        import gmp
        def early():
            ch = gmp.Chan()
            gmp.go(ch.send, 3)
            assert ch.recv() == 3
            print("early ok")
        atexit.register(early)
    """).expect(0, "early ok\nlate ok")


def test_operations_in_destructors_at_exit(child) -> None:
    c = child("""
        import gmp, sys
        class Thing:
            def __init__(self): self.me = self
            def __del__(self):
                for call in (lambda: ch.recv(), lambda: gmp_.go(int), lambda: gmp_.sleep(1), lambda: ch2.send(1)):
                    try:
                        call()
                    except RuntimeError as e:
                        out.write(".")
                out.write("end")
                out.flush()
        gmp_ = gmp
        ch, ch2 = gmp.Chan(), gmp.Chan()
        out = sys.__stdout__
        sys.modules["keep"] = thing = Thing()
    """)
    c.expect(0)
    assert c.out in ("....end", "")  # some versions do not run destructors that late
    assert "Traceback" not in c.err


# ---- memory refused ----


def test_address_space_refused(child) -> None:
    """RLIMIT_AS: go raises MemoryError, says what to do, and works again when goroutines have ended."""
    child(
        """
        import gmp, resource, re
        gmp.go(int).join()
        vm = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (vm + 64 * 2**20, resource.RLIM_INFINITY))
        ch = gmp.Chan()
        gs = []
        try:
            while len(gs) < 100_000:
                gs.append(gmp.go(ch.recv))
        except MemoryError as e:
            message = str(e)
        assert "RLIMIT_AS" in message, message
        n = len(gs)
        assert n >= 10, n
        assert gmp.runtime.num_goroutine() == n + 1
        for _ in range(3):                      # refused again, and again nothing is lost
            try:
                gs.append(gmp.go(ch.recv))
                assert len(gs) < n + 500
            except MemoryError:
                pass
        for i in range(len(gs)):
            ch.send(i)
        assert sorted(g.result() for g in gs) == list(range(len(gs)))
        del gs
        assert [gmp.go(lambda i=i: i).result() for i in range(n)] == list(range(n))
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        gs = [gmp.go(ch.recv) for _ in range(2 * n)]
        ch.close()
        print("ok")
        """,
        timeout=60,
    ).expect(0, "ok")


def test_thread_refused(child) -> None:
    """No thread to be had: goroutines run on those that there are."""
    child(
        """
        import gmp, resource, threading, time
        import ctypes
        # a user other than root, so that RLIMIT_NPROC means something
        import os
        if os.getuid() == 0:
            os.setgid(54321); os.setuid(54321)
        resource.setrlimit(resource.RLIMIT_NPROC, (3, 3))
        ch = gmp.Chan()
        gs = [gmp.go(lambda i=i: (time.sleep(0.01), ch.send(i))) for i in range(20)]
        assert sorted(ch.recv() for _ in range(20)) == list(range(20))
        print("ok")
        """,
        timeout=60,
    ).expect(0, "ok")
