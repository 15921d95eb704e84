"""go and the Goroutine handle."""

from __future__ import annotations

import functools
import gc
import sys
import threading
import time
import weakref

import pytest

import gmp
from tests.waiting import undisturbed, until


def test_result() -> None:
    g = gmp.go(lambda: 42)
    assert g.result() == 42
    assert g.result() == 42  # as often as one likes
    assert g.done
    assert g.join() is None


def test_runs_later_not_inline() -> None:
    seen: list[str] = []
    with undisturbed():
        g = gmp.go(seen.append, "goroutine")
        seen.append("main")
    g.join()
    assert seen == ["main", "goroutine"]


@pytest.mark.parametrize("npos", [0, 1, 4, 5, 6, 40])
@pytest.mark.parametrize("nkw", [0, 1, 5, 30])
def test_arguments(npos: int, nkw: int) -> None:
    def f(*args: int, **kwargs: int) -> tuple[tuple[int, ...], dict[str, int]]:
        gmp.gosched()
        return args, kwargs

    kw = {f"k{i}": i for i in range(nkw)}
    assert gmp.go(f, *range(npos), **kw).result() == (tuple(range(npos)), kw)


def test_keyword_that_looks_like_our_own() -> None:
    def f(**kwargs: object) -> dict[str, object]:
        return kwargs

    kw = {"fn": 1, "timeout": 2, "name": 3, "self": 4}
    assert gmp.go(f, **kw).result() == kw


class Callable_:
    def __call__(self, x: int) -> int:
        return x + 1

    def method(self, x: int) -> int:
        return x + 2


@pytest.mark.parametrize(
    ("fn", "args", "expected"),
    [
        (len, ("abc",), 3),
        (int, ("12",), 12),
        (Callable_(), (1,), 2),
        (Callable_().method, (1,), 3),
        (functools.partial(pow, 2), (5,), 32),
        ("a-b".replace, ("-", "+"), "a+b"),
        (sorted, ([2, 1],), [1, 2]),
    ],
)
def test_any_callable(fn, args, expected) -> None:
    assert gmp.go(fn, *args).result() == expected


def test_go_starts_go() -> None:
    """The goroutine's first function is C code: there is no Python frame to be created by."""
    inner = gmp.go(gmp.go, lambda: 5).result()
    assert inner.result() == 5


def test_wrong_arguments_for_fn_raise_in_the_goroutine() -> None:
    g = gmp.go(lambda: None, 1)
    with pytest.raises(TypeError):
        g.result()


def test_exception_is_the_same_object_each_time() -> None:
    error = ValueError("boom")

    def f() -> None:
        raise error

    g = gmp.go(f)
    for wait in (g.result, g.join, g.result):
        with pytest.raises(ValueError, match="boom") as info:
            wait()
        assert info.value is error
    names = []
    tb = error.__traceback__
    while tb is not None:
        names.append(tb.tb_frame.f_code.co_name)
        tb = tb.tb_next
    assert "f" in names


def test_base_exceptions_pass_through_result() -> None:
    for kind in (KeyboardInterrupt, SystemExit, GeneratorExit):

        def f(kind=kind) -> None:
            raise kind("x")

        with pytest.raises(kind):
            gmp.go(f).result()


def test_join_timeout() -> None:
    ch: gmp.Chan[int] = gmp.Chan()
    g = gmp.go(ch.recv)
    with pytest.raises(TimeoutError):
        g.join(0)
    with pytest.raises(TimeoutError):
        g.result(timeout=0.01)
    assert not g.done
    ch.send(3)
    assert g.result(timeout=10) == 3
    assert g.result(0) == 3


def test_many_join_one() -> None:
    ch: gmp.Chan[int] = gmp.Chan()
    g = gmp.go(ch.recv)
    joiners = [gmp.go(g.result) for _ in range(100)]
    impatient = [gmp.go(g.join, 0.01) for _ in range(10)]
    for j in impatient:
        with pytest.raises(TimeoutError):
            j.join()
    ch.send(9)
    assert [j.result() for j in joiners] == [9] * 100


def test_join_itself() -> None:
    box: list[gmp.Goroutine[None]] = []

    def f() -> None:
        until(lambda: box)  # it may run at once
        box[0].join()

    box.append(gmp.go(f))
    with pytest.raises(RuntimeError, match="itself"):
        box[0].join()
    box.clear()


def test_id_name_repr() -> None:
    def worker(ch: gmp.Chan[None]) -> None:
        ch.recv()

    ch: gmp.Chan[None] = gmp.Chan()
    a, b = gmp.go(worker, ch), gmp.go(worker, ch)
    assert a.id != b.id
    assert isinstance(a.id, int)
    assert a.name.endswith("worker")
    assert "running" in repr(a)
    assert str(a.id) in repr(a)
    ch.send(None)
    ch.send(None)
    a.join()
    b.join()
    assert a.name.endswith("worker")
    assert "returned" in repr(a)
    c = gmp.go(len, 3)
    with pytest.raises(TypeError):
        c.join()
    assert c.name == "len"
    assert "failed" in repr(c)


def test_names_of_callables_without_a_name() -> None:
    class Nameless:
        def __call__(self) -> None: ...

        def __getattr__(self, name: str) -> object:
            raise ZeroDivisionError(name)

    g = gmp.go(Nameless())
    assert "Nameless" in g.name
    g.join()
    assert "Nameless" in g.name
    partial = gmp.go(functools.partial(len, ""))
    assert partial.name
    partial.join()


def test_ids_are_never_reused() -> None:
    ids = []
    for _ in range(1000):
        g = gmp.go(int)
        ids.append(g.id)
        g.join()
    assert len(set(ids)) == 1000


def test_handle_cannot_be_made_or_subclassed() -> None:
    with pytest.raises(TypeError):
        gmp.Goroutine()
    with pytest.raises(TypeError):
        type("Sub", (gmp.Goroutine,), {})


def test_arguments_are_released_before_the_handle() -> None:
    class Thing: ...

    thing = Thing()
    ref = weakref.ref(thing)
    g = gmp.go(lambda x: None, thing)
    del thing
    g.join()
    assert ref() is None


def test_result_lives_as_long_as_the_handle() -> None:
    class Thing: ...

    g = gmp.go(Thing)
    ref = weakref.ref(g.result())
    assert ref() is not None
    del g
    assert ref() is None


def test_handle_in_a_cycle_is_collected() -> None:
    class Thing:
        handle: object

    def make() -> Thing:
        return Thing()

    g = gmp.go(make)
    thing = g.result()
    thing.handle = g
    ref = weakref.ref(thing)
    del g, thing
    gc.collect()
    assert ref() is None


def test_failed_handle_in_a_cycle_is_collected() -> None:
    class Mine(Exception): ...

    def fail() -> None:
        raise Mine

    g = gmp.go(fail)
    with pytest.raises(Mine) as info:
        g.join()
    exc = info.value
    exc.handle = g  # type: ignore[attr-defined]
    ref = weakref.ref(exc)
    del g, exc, info
    gc.collect()
    assert ref() is None


def test_a_long_chain_of_handles_is_freed() -> None:
    """Each one's result is the one before: freeing the last frees all, and must not recurse in C."""
    g = None
    for _ in range(200_000):
        g = gmp.go(lambda x: x, g)
        g.join()
    del g
    gc.collect()


def test_deep_python_recursion_inside_a_goroutine() -> None:
    def depth(n: int) -> int:
        return 0 if n == 0 else 1 + depth(n - 1)

    n = sys.getrecursionlimit() - 50
    assert gmp.go(depth, n).result() == n
    with pytest.raises(RecursionError):
        gmp.go(depth, n + 100).result()
    assert gmp.go(depth, n).result() == n


def test_a_burst() -> None:
    n = 20_000
    assert sum(g.result() for g in [gmp.go(lambda i: i, i) for i in range(n)]) == n * (n - 1) // 2


def test_tree_of_goroutines() -> None:
    def skynet(num: int, size: int) -> int:
        if size == 1:
            return num
        return sum(g.result() for g in [gmp.go(skynet, num + i * size // 10, size // 10) for i in range(10)])

    assert skynet(0, 10_000) == 10_000 * 9_999 // 2


def test_go_from_a_thread_without_gmp() -> None:
    out: list[gmp.Goroutine[int]] = []
    t = threading.Thread(target=lambda: out.append(gmp.go(lambda: 7)))
    t.start()
    t.join()
    assert out[0].result(10) == 7


def test_gosched_takes_turns() -> None:
    def turns() -> str:
        log: list[str] = []

        def f(name: str) -> None:
            for _ in range(3):
                log.append(name)
                gmp.gosched()

        for g in [gmp.go(f, "a"), gmp.go(f, "b")]:
            g.join()
        assert sorted(log) == ["a"] * 3 + ["b"] * 3
        return "".join(log)

    # Whoever loses the processor for 10 ms in the middle loses its P, and with it its turn.
    until(lambda: turns() in ("ababab", "bababa"))


def test_busy_goroutine_does_not_starve_main() -> None:
    stop = False

    def spin() -> int:
        n = 0
        while not stop:
            n += 1
        return n

    g = gmp.go(spin)
    t0 = time.monotonic()
    gmp.sleep(0.05)  # wakes beside the spinner
    assert time.monotonic() - t0 < 20
    stop = True
    assert g.result() > 0
