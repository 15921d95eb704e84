"""What CPython keeps per thread is per goroutine: nothing leaks from one to another, nor into the next one on its stack."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import decimal
import re
import sys
import threading
import traceback
import warnings
from collections.abc import AsyncIterator, Iterator

import pytest

import gmp
from gmp import Chan, go
from tests.waiting import parked, until

N = 50


def turns() -> None:
    for _ in range(3):
        gmp.gosched()


# ---- threading.local ----


def test_threading_local() -> None:
    local = threading.local()
    local.x = "main"

    def f(i: int) -> int:
        assert not hasattr(local, "x")
        local.x = i
        turns()
        return local.x

    assert [g.result() for g in [go(f, i) for i in range(N)]] == list(range(N))
    assert local.x == "main"
    assert [g.result() for g in [go(f, i) for i in range(N)]] == list(range(N))  # on used stacks


def test_threading_local_subclass_is_initialised_per_goroutine() -> None:
    made: list[int] = []

    class Local(threading.local):
        def __init__(self) -> None:
            made.append(1)
            self.items: list[int] = []

    local = Local()

    def f(i: int) -> list[int]:
        local.items.append(i)
        gmp.gosched()
        return local.items

    assert [g.result() for g in [go(f, i) for i in range(10)]] == [[i] for i in range(10)]
    assert len(made) == 11


def test_threading_local_values_die_with_the_goroutine() -> None:
    import weakref

    class Thing: ...

    local = threading.local()
    refs: list[weakref.ref[Thing]] = []

    def f() -> None:
        local.thing = Thing()
        refs.append(weakref.ref(local.thing))
        gmp.gosched()

    for g in [go(f) for _ in range(10)]:
        g.join()
    until(lambda: [r() for r in refs] == [None] * 10)  # they may have their last steps to do


def test_many_locals_made_and_dropped() -> None:
    """The local dies while goroutines still hold values of it."""

    def f() -> int:
        local = threading.local()
        local.x = 1
        gmp.gosched()
        del local
        return 0

    for _ in range(20):
        for g in [go(f) for _ in range(20)]:
            g.join()


# ---- contextvars ----

var: contextvars.ContextVar[object] = contextvars.ContextVar("var", default="default")


def test_context_is_copied_at_spawn() -> None:
    token = var.set("at spawn")
    g = go(var.get)
    var.set("later")
    assert g.result() == "at spawn"
    var.reset(token)
    assert var.get() == "default"


def test_context_is_isolated() -> None:
    var_before = var.get()

    def f(i: int) -> object:
        var.set(i)
        turns()
        return var.get()

    assert [g.result() for g in [go(f, i) for i in range(N)]] == list(range(N))
    assert var.get() == var_before
    assert go(var.get).result() == var_before


def test_context_of_a_grandchild() -> None:
    def outer() -> object:
        var.set("outer")
        return go(var.get).result()

    assert go(outer).result() == "outer"
    assert var.get() == "default"


def test_context_run_inside() -> None:
    ctx = contextvars.copy_context()

    def f() -> object:
        def inside() -> object:
            var.set("in ctx")
            turns()
            return var.get()

        return ctx.run(inside), var.get()

    others = [go(turns) for _ in range(5)]
    assert go(f).result() == ("in ctx", "default")
    assert ctx[var] == "in ctx"
    for g in others:
        g.join()


def test_one_context_cannot_be_entered_twice() -> None:
    ctx = contextvars.copy_context()
    ch: Chan[None] = Chan()
    g = go(ctx.run, ch.recv)
    parked(g)
    with pytest.raises(RuntimeError, match="already entered"):
        ctx.run(int)
    ch.send(None)
    g.join()
    assert ctx.run(int) == 0


def test_context_var_cache_is_not_fooled_by_reuse() -> None:
    """ContextVar caches its value by thread state and a version: a reused thread state must not hit."""
    v: contextvars.ContextVar[int] = contextvars.ContextVar("v", default=-1)

    def setter(i: int) -> int:
        v.set(i)
        return v.get()

    for i in range(500):
        assert go(setter, i).result() == i
        assert go(v.get).result() == -1
        assert v.get() == -1


def test_decimal_context() -> None:
    def local(prec: int) -> int:
        with decimal.localcontext() as ctx:
            ctx.prec = prec
            turns()
            return len(str(decimal.Decimal(1) / 3)) - 2

    def own(prec: int) -> int:
        decimal.setcontext(decimal.Context(prec=prec))
        turns()
        return len(str(decimal.Decimal(1) / 3)) - 2

    before = decimal.getcontext().prec
    for f in (local, own):
        assert [g.result() for g in [go(f, p) for p in range(1, 30)]] == list(range(1, 30))
        assert decimal.getcontext().prec == before


def test_decimal_context_is_inherited() -> None:
    with decimal.localcontext() as ctx:
        ctx.prec = 5
        g = go(lambda: str(decimal.Decimal(1) / 3))
    assert g.result() == "0.33333"


# ---- exceptions ----


def test_exc_info_across_parks() -> None:
    def f(i: int) -> None:
        assert sys.exc_info() == (None, None, None)
        try:
            raise ValueError(i)
        except ValueError as e:
            turns()
            assert sys.exc_info()[1] is e
            try:
                turns()
                raise KeyError(i)
            except KeyError as k:
                turns()
                assert sys.exc_info()[1] is k
                assert k.__context__ is e
            turns()
            assert sys.exc_info()[1] is e
            with pytest.raises(ValueError, match=str(i)):
                raise
        assert sys.exc_info() == (None, None, None)

    try:
        raise LookupError("main")
    except LookupError:
        for g in [go(f, i) for i in range(N)]:
            g.join()
        assert isinstance(sys.exc_info()[1], LookupError)


def test_exception_does_not_reach_the_next_goroutine() -> None:
    def fail() -> None:
        try:
            raise ValueError
        finally:
            gmp.gosched()

    def look() -> tuple[object, ...]:
        return sys.exc_info()

    for _ in range(20):
        with pytest.raises(ValueError):  # noqa: PT011
            go(fail).join()
        assert go(look).result() == (None, None, None)


def test_context_of_an_exception_is_not_another_goroutines() -> None:
    def f() -> BaseException:
        try:
            raise KeyError
        except KeyError as e:
            return e

    try:
        raise ValueError
    except ValueError:
        assert go(f).result().__context__ is None


def test_traceback_of_result_shows_both_sides() -> None:
    def inner() -> None:
        raise ValueError("inside")

    def waiter() -> None:
        go(inner).result()

    try:
        go(waiter).result()
    except ValueError:
        text = traceback.format_exc()
    assert "in inner" in text
    assert "in waiter" in text


def test_parking_in_finally_and_with() -> None:
    log: list[str] = []

    @contextlib.contextmanager
    def manager(name: str) -> Iterator[None]:
        try:
            turns()
            yield
        finally:
            turns()
            log.append(name)

    def f(name: str) -> None:
        with manager(name), manager(name + "2"):
            turns()
            raise OSError(name)

    gs = [go(f, n) for n in ("a", "b")]
    for g, n in zip(gs, ("a", "b"), strict=True):
        with pytest.raises(OSError, match=n):
            g.join()
    assert sorted(log) == ["a", "a2", "b", "b2"]


# ---- generators ----


def test_generator_that_parks() -> None:
    def gen(n: int) -> Iterator[int]:
        for i in range(n):
            turns()
            yield i
            try:
                turns()
            finally:
                gmp.gosched()

    def f(n: int) -> int:
        return sum(gen(n))

    assert [g.result() for g in [go(f, n) for n in range(20)]] == [n * (n - 1) // 2 for n in range(20)]


def test_generator_resumed_by_other_goroutines() -> None:
    def gen() -> Iterator[str]:
        try:
            yield "one"
            raise ValueError
        except ValueError:
            gmp.gosched()
            yield "two"
            yield repr(sys.exc_info()[0])

    it = gen()
    assert go(next, it).result() == "one"
    assert go(next, it).result() == "two"
    assert go(next, it).result() == "<class 'ValueError'>"
    assert go(list, it).result() == []


def test_generator_running_elsewhere() -> None:
    ch: Chan[int] = Chan()

    def gen() -> Iterator[int]:
        yield ch.recv()

    it = gen()
    g = go(next, it)
    parked(g)
    with pytest.raises(ValueError, match="generator already executing"):
        next(it)
    ch.send(3)
    assert g.result() == 3


def test_async_generators_and_coroutines() -> None:
    async def agen(n: int) -> AsyncIterator[int]:
        for i in range(n):
            gmp.gosched()
            await asyncio.sleep(0)
            yield i

    async def main(n: int) -> int:
        async def one() -> int:
            return sum([i async for i in agen(n)])

        return sum(await asyncio.gather(one(), one()))

    # an event loop may live in a goroutine, as in a thread; two at once, if they do not park in each other's way
    assert go(asyncio.run, main(5)).result() == 20
    assert go(asyncio.run, main(6)).result() == 30


def test_asyncgen_hooks_and_origin_tracking_are_scrubbed() -> None:
    def set_them() -> None:
        sys.set_asyncgen_hooks(firstiter=lambda g: None, finalizer=lambda g: None)
        sys.set_coroutine_origin_tracking_depth(5)

    def get() -> tuple[object, ...]:
        return (*sys.get_asyncgen_hooks(), sys.get_coroutine_origin_tracking_depth())

    for _ in range(5):
        go(set_them).join()
        assert go(get).result() == (None, None, 0)


# ---- tracing ----


def test_threading_settrace_reaches_goroutines() -> None:
    events: list[tuple[str, str]] = []

    def tracer(frame, event, arg):
        if frame.f_code.co_name in ("traced", "inner"):
            events.append((event, frame.f_code.co_name))
            return tracer
        return None

    def inner() -> None:
        pass

    def traced() -> None:
        gmp.gosched()
        inner()
        gmp.gosched()

    threading.settrace(tracer)
    try:
        gs = [go(traced), go(traced)]
        for g in gs:
            g.join()
    finally:
        threading.settrace(None)  # type: ignore[arg-type]
    assert events.count(("call", "traced")) == 2
    assert events.count(("return", "traced")) == 2
    assert events.count(("call", "inner")) == 2
    assert events.count(("line", "traced")) == 6
    n = len(events)
    go(traced).join()  # and no more, once it is off: neither by the hook nor by what the last goroutine had set
    assert len(events) == n


def test_threading_setprofile_reaches_goroutines() -> None:
    events: list[str] = []

    def profiler(frame, event, arg) -> None:
        if frame.f_code.co_name == "profiled":
            events.append(event)

    def profiled() -> None:
        gmp.gosched()

    threading.setprofile(profiler)
    try:
        go(profiled).join()
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
    assert events[0] == "call"
    assert events[-1] == "return"
    n = len(events)
    go(profiled).join()
    assert len(events) == n


def test_sys_settrace_is_the_goroutines_own() -> None:
    lines: dict[str, int] = {"a": 0, "b": 0}

    def work(name: str) -> None:
        x = 1
        gmp.gosched()
        x += 1
        gmp.gosched()
        x += 1

    def with_trace(name: str) -> None:
        def tracer(frame, event, arg):
            if frame.f_code is work.__code__ and event == "line":
                lines[frame.f_locals["name"]] += 1
            return tracer

        sys.settrace(tracer)
        work(name)
        # deliberately left on: it must not reach the next goroutine

    a, b = go(with_trace, "a"), go(work, "b")
    a.join()
    b.join()
    assert lines == {"a": 5, "b": 0}
    assert sys.gettrace() is None or sys.gettrace().__qualname__.find("with_trace") < 0
    assert [g.result() for g in [go(sys.gettrace) for _ in range(4)]] == [None] * 4
    assert [g.result() for g in [go(sys.getprofile) for _ in range(4)]] == [None] * 4


COVERED = """
import gmp

def worker(n):
    total = 0
    for i in range(n):
        total += i
        gmp.gosched()
    if n > 1000:
        total = -1
    return total

def run():
    return [g.result() for g in [gmp.go(worker, n) for n in (3, 4)]]
"""


def test_coverage_measures_goroutines(child) -> None:
    pytest.importorskip("coverage")
    child(
        """
        import os, sys, tempfile, coverage
        d = tempfile.mkdtemp()
        sys.path.insert(0, d)
        path = os.path.join(d, "covered.py")
        with open(path, "w") as f:
            f.write(sys.argv[1])
        src = open(path).read().splitlines()
        cov = coverage.Coverage(data_file=None, include=[path])
        cov.start()
        import covered
        assert covered.run() == [3, 6]
        cov.stop()
        _, statements, _, missing, _ = cov.analysis2(path)
        assert [src[i - 1].strip() for i in missing] == ["total = -1"], (missing, src)
        print("ok")
        """,
        COVERED,
        timeout=60,
    ).expect(0, "ok")


# ---- recursion ----


def test_recursion_limit_is_per_goroutine() -> None:
    def down(n: int) -> int:
        if n == 0:
            gmp.gosched()
            return 0
        return 1 + down(n - 1)

    n = sys.getrecursionlimit() - 100
    assert [g.result() for g in [go(down, n) for _ in range(4)]] == [n] * 4

    def forever() -> None:
        forever()

    for _ in range(3):
        with pytest.raises(RecursionError):
            go(forever).join()
        assert go(down, n).result() == n


def test_setrecursionlimit_applies_to_new_goroutines() -> None:
    def down(n: int) -> int:
        return 0 if n == 0 else 1 + down(n - 1)

    old = sys.getrecursionlimit()
    sys.setrecursionlimit(old + 3000)
    try:
        assert go(down, old + 2000).result() == old + 2000
    finally:
        sys.setrecursionlimit(old)
    with pytest.raises(RecursionError):
        go(down, old + 2000).result()


def test_deep_stack_while_parked() -> None:
    """Frames beyond the first chunk, in many goroutines at once."""

    def down(n: int) -> int:
        if n == 0:
            turns()
            return 0
        return 1 + down(n - 1)

    for depth in (3, 10, 30, 100, 300):
        assert [g.result() for g in [go(down, depth) for _ in range(100)]] == [depth] * 100


def test_frame_sizes_around_the_first_chunk() -> None:
    """Functions whose frames are smaller than, about as large as, and larger than the 1 KiB of the first chunk."""
    for n in (1, 20, 60, 80, 100, 110, 115, 120, 125, 130, 200, 3000):
        ns: dict[str, object] = {"gosched": gmp.gosched}
        names = ", ".join(f"v{i}" for i in range(n))
        code = f"def f(k):\n {names}, = range(k, k + {n})\n gosched()\n r = sum(({names},))\n return r if k == 0 else r + f(k - 1)\n"
        exec(code, ns)
        f = ns["f"]
        expected = f(3)  # type: ignore[operator]
        assert [g.result() for g in [go(f, 3) for _ in range(5)]] == [expected] * 5  # type: ignore[arg-type]


# ---- the rest of what threads have ----


def test_warnings_are_raised_in_goroutines_too() -> None:
    def f() -> None:
        warnings.warn("hello", stacklevel=1)

    with pytest.warns(UserWarning, match="hello"):
        go(f).join()


def test_sys_getframe_ends_at_the_goroutine() -> None:
    def f() -> list[str]:
        names = []
        frame = sys._getframe()
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        return names

    assert go(f).result() == ["f"]
    assert go(lambda: f()).result() == ["f", "<lambda>"]


def test_frame_object_outlives_its_goroutine() -> None:
    def f(x: object) -> object:
        y = [x]
        gmp.gosched()
        del y
        return sys._getframe()

    frames = [g.result() for g in [go(f, i) for i in range(20)]]
    for g in [go(f, None) for _ in range(20)]:  # their stacks are used again
        g.join()
    assert [fr.f_locals["x"] for fr in frames] == list(range(20))
    assert all(fr.f_back is None for fr in frames)


def test_traceback_outlives_its_goroutine() -> None:
    def f(x: int) -> None:
        gmp.gosched()
        raise ValueError(x)

    errors = []
    for g in [go(f, i) for i in range(20)]:
        with pytest.raises(ValueError) as info:  # noqa: PT011
            g.join()
        errors.append(info.value)
    for g in [go(turns) for _ in range(20)]:
        g.join()
    for i, e in enumerate(errors):
        tb = e.__traceback__
        while tb.tb_next:
            tb = tb.tb_next
        assert tb.tb_frame.f_locals["x"] == i
        assert re.search(r"raise ValueError\(x\)", "".join(traceback.format_exception(e)))


def test_current_frames() -> None:
    """A thread's entry is the thread's own frame, never that of a goroutine that was there; goroutines have their own."""
    ch: Chan[None] = Chan()

    def receiver() -> None:
        ch.recv()

    def waiting() -> None:
        stop.wait(20)

    stop = threading.Event()
    t = threading.Thread(target=waiting)
    t.start()
    gs = [go(receiver) for _ in range(10)]
    parked(*gs)

    def names(frame: object) -> list[str]:
        return [s.name for s in traceback.extract_stack(frame)]  # type: ignore[arg-type]

    until(lambda: "waiting" in names(sys._current_frames()[t.ident]))
    frames = sys._current_frames()
    if threading.get_ident() == threading.main_thread().ident:
        assert frames[threading.get_ident()] is sys._getframe()
    assert "waiting" in names(frames[t.ident])
    assert sum("receiver" in names(f) for f in frames.values()) == 10
    stop.set()
    t.join()
    for _ in gs:
        ch.send(None)
    for g in gs:
        g.join()


def test_async_exception_for_a_thread_hits_that_thread() -> None:
    import ctypes

    class Stop(Exception): ...

    def target() -> None:
        nonlocal hit
        try:
            inside.set()
            while not done:
                ch.send(1)
                ch.recv()
        except Stop:
            hit = True

    hit = done = False
    ch: Chan[int] = Chan(1)
    for g in [go(turns) for _ in range(100)]:
        g.join()
    inside = threading.Event()
    t = threading.Thread(target=target)
    t.start()
    assert inside.wait(20)
    n = ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(t.ident), ctypes.py_object(Stop))
    until(lambda: not t.is_alive())
    done = True
    assert (n, hit) == (1, True)
    assert [g.result() for g in [go(lambda i=i: i) for i in range(200)]] == list(range(200))
