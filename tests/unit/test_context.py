"""gmp.context: ending, deadlines, values, what goroutines inherit."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref

import pytest

import gmp
from gmp import context, go, recv, select
from gmp.context import (
    Canceled,
    Context,
    DeadlineExceeded,
    after_func,
    background,
    cause,
    current,
    with_cancel,
    with_cancel_cause,
    with_deadline,
    with_timeout,
    with_value,
    without_cancel,
)


def ended(ctx: Context) -> bool:
    done = ctx.done()
    return done is not None and done.closed


def test_background_never_ends() -> None:
    ctx = background()
    assert ctx is background() is context.todo()
    assert (ctx.done(), ctx.err(), ctx.deadline(), ctx.remaining(), ctx.value("key"), cause(ctx)) == (None,) * 6
    ctx.check()
    assert select(recv(ctx.done()), default=True).index == -1


def test_cancel_ends_the_context_and_what_was_derived_from_it() -> None:
    parent, cancel = with_cancel(background())
    value = with_value(parent, "user", 7)
    child, cancel_child = with_cancel(value)
    sibling, cancel_sibling = with_cancel(parent)
    grandchild, _ = with_timeout(child, 100)
    assert not any(map(ended, (parent, value, child, sibling, grandchild)))
    cancel_child()
    assert [ended(c) for c in (parent, value, child, sibling, grandchild)] == [False, False, True, False, True]
    cancel()
    cancel()
    for ctx in (parent, value, child, sibling, grandchild):
        assert ended(ctx)
        assert isinstance(ctx.err(), Canceled)
        assert ctx.err() is ctx.err()
        with pytest.raises(Canceled, match="context canceled"):
            ctx.check()
    late, _ = with_timeout(value, 1)
    assert ended(late)
    assert isinstance(late.err(), Canceled)
    cancel_sibling()


def test_deadline() -> None:
    far, cancel = with_timeout(background(), 100)
    assert far.err() is None
    assert 0 < far.remaining() <= 100  # type: ignore[operator]
    cancel()
    ctx, cancel = with_timeout(background(), 0.02)
    g = go(lambda: ctx.done().recv_ok())  # type: ignore[union-attr]
    assert g.result() == (None, False)
    assert isinstance(ctx.err(), DeadlineExceeded)
    assert isinstance(ctx.err(), TimeoutError)
    assert time.monotonic() >= ctx.deadline()  # type: ignore[operator]
    assert ctx.remaining() == 0
    assert cause(ctx) is ctx.err()
    cancel()
    assert isinstance(ctx.err(), DeadlineExceeded)


def test_the_earlier_deadline_counts() -> None:
    first, cancel = with_timeout(background(), 100)
    later, _ = with_timeout(first, 200)
    assert later.deadline() == first.deadline()
    at = time.monotonic() + 50
    sooner, _ = with_deadline(with_value(later, 1, 1), at)
    assert sooner.deadline() == at
    assert 0 < sooner.remaining() <= 50  # type: ignore[operator]
    cancel()
    assert isinstance(sooner.err(), Canceled)
    for past in (-1, 0):
        ctx, _ = with_timeout(background(), past)
        assert isinstance(ctx.err(), DeadlineExceeded)
        assert ended(ctx)
    forever, cancel = with_timeout(background(), float("inf"))
    assert forever.err() is None
    cancel()


def test_values() -> None:
    key = object()
    ctx = with_value(with_value(background(), "a", 1), key, 2)
    inner, cancel = with_cancel(ctx)
    again = with_value(inner, "a", 3)
    assert [again.value(k) for k in ("a", key, "b")] == [3, 2, None]
    assert [inner.value(k) for k in ("a", key, "b")] == [1, 2, None]
    cancel()
    assert again.value("a") == 3


def test_cause() -> None:
    why = ValueError("the user went away")
    parent, cancel = with_cancel_cause(background())
    child, _ = with_cancel(with_value(parent, 1, 1))
    assert cause(child) is None
    cancel(why)
    assert cause(parent) is cause(child) is why
    assert isinstance(child.err(), Canceled)
    other, cancel = with_cancel_cause(background())
    cancel(None)
    assert cause(other) is other.err()
    late, cancel_late = with_cancel_cause(parent)
    cancel_late(KeyError())
    assert cause(late) is why


def test_without_cancel() -> None:
    parent, cancel = with_timeout(with_value(background(), "a", 1), 100)
    ctx = without_cancel(parent)
    child, cancel_child = with_cancel(ctx)
    cancel()
    assert (ctx.err(), ctx.done(), ctx.deadline(), ctx.value("a"), cause(ctx)) == (None, None, None, 1, None)
    assert child.err() is None
    cancel_child()
    assert isinstance(child.err(), Canceled)


def test_after_func() -> None:
    ran: gmp.Chan[tuple[object, ...]] = gmp.Chan(10)
    ctx, cancel = with_cancel(background())
    stop = after_func(with_value(ctx, 1, 1), ran.send, (1,))
    stopped = after_func(ctx, ran.send, (2,))
    assert [stopped(), stopped()] == [True, False]
    cancel()
    assert ran.recv() == (1,)
    assert stop() is False
    late = after_func(ctx, lambda *args, **kw: ran.send((args, kw)), 3, a=4)
    assert ran.recv() == ((3,), {"a": 4})
    assert late() is False
    never = after_func(background(), ran.send, (5,))
    assert [never(), never()] == [True, False]
    assert len(ran) == 0


def test_current_is_that_of_the_block_and_of_goroutines_started_in_it() -> None:
    outside = current()
    with with_value_and_timeout("a", 1) as ctx:
        assert current() is ctx
        with with_cancel(current()) as inner:
            assert current() is inner
            g = go(lambda: (current(), current().value("a")))
            assert g.result() == (inner, 1)
        assert inner.err() is not None
        assert ctx.err() is None
        assert current() is ctx
    assert isinstance(ctx.err(), Canceled)
    assert current() is outside
    with pytest.raises(ZeroDivisionError), with_cancel(background()) as ctx:
        raise ZeroDivisionError
    assert ctx.err() is not None
    pair = with_cancel(background())
    with pair, pytest.raises(RuntimeError, match="entered already"), pair:
        pass
    assert current() is outside


def with_value_and_timeout(key: str, value: object) -> context.Derived[object]:  # type: ignore[type-var]
    return with_timeout(with_value(background(), key, value), 100)  # type: ignore[return-value]


def test_a_deep_tree_ends_as_a_whole() -> None:
    root, cancel = with_cancel(background())
    ctx = root
    for i in range(20_000):
        ctx = with_value(with_cancel(ctx)[0], i, i)
    assert ctx.value("none") is None
    assert ctx.value(0) == 0
    assert len(repr(ctx)) > 20_000
    done = ctx.done()
    assert done is not None
    cancel()
    assert done.closed
    assert isinstance(ctx.err(), Canceled)


def test_a_cancelled_context_is_collected() -> None:
    root, cancel = with_cancel(background())
    refs = []
    for _ in range(100):
        ctx, cancel_ctx = with_timeout(root, 100)
        refs.append(weakref.ref(ctx))
        cancel_ctx()
    del ctx, cancel_ctx
    gc.collect()
    assert [r() for r in refs] == [None] * 100
    assert root.err() is None
    cancel()


def test_names() -> None:
    ctx = with_value(with_cancel(background())[0], "user", 1)
    assert repr(ctx) == "background.with_cancel.with_value('user')"
    assert repr(without_cancel(ctx)).endswith(".without_cancel")
    timed, cancel = with_timeout(ctx, 10)
    assert "with_deadline(" in repr(timed)
    cancel()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: with_cancel(None),
            TypeError,
            r"with_cancel\(\) argument 1 must be a gmp.context.Context, not NoneType",
        ),
        (lambda: with_timeout(1, 1), TypeError, r"with_timeout\(\) argument 1 must be"),
        (
            lambda: with_timeout(background(), "1"),
            TypeError,
            r"with_timeout\(\) argument 2 must be a number of seconds, not str",
        ),
        (lambda: with_timeout(background(), None), TypeError, r"with_timeout\(\) argument 2"),
        (lambda: with_deadline(background(), float("nan")), ValueError, r"with_deadline\(\) argument 2 .* nan"),
        (lambda: with_value(background(), None, 1), ValueError, r"with_value\(\) argument 2, the key"),
        (
            lambda: with_cancel_cause(background())[1]("why"),
            TypeError,
            r"cancel\(\) argument 1 must be an exception or None",
        ),
        (lambda: after_func(background(), 1), TypeError, r"after_func\(\) argument 2 must be callable"),
        (lambda: after_func(1, print), TypeError, r"after_func\(\) argument 1"),
        (lambda: cause(1), TypeError, r"cause\(\) argument 1"),
        (lambda: without_cancel(1), TypeError, r"without_cancel\(\) argument 1"),
    ],
)
def test_bad_arguments(call, error, text) -> None:
    with pytest.raises(error, match=text):
        call()


def test_stress_trees_that_end_from_all_sides() -> None:
    """Threads and goroutines derive, cancel and wait at once; every waiter wakes, every context ends with its parent."""
    rng = random.Random(1)
    for _ in range(20):
        root, cancel = with_cancel(background())
        made: list[Context] = [root]
        fired: list[int] = []

        def grow(seed: int, root: Context = root, made: list[Context] = made, fired: list[int] = fired) -> None:
            rng = random.Random(seed)
            for i in range(50):
                parent = made[rng.randrange(len(made))]
                match rng.randrange(5):
                    case 0:
                        ctx, stop = with_cancel(parent)
                        if rng.random() < 0.3:
                            stop()
                    case 1:
                        ctx, _ = with_timeout(parent, rng.random() * 0.02)
                    case 2:
                        ctx = with_value(parent, i, i)
                    case 3:
                        ctx, _ = with_cancel(parent)
                        after_func(ctx, fired.append, i)
                    case _:
                        gmp.gosched()
                        continue
                made.append(ctx)

        gs = [go(grow, rng.random()) for _ in range(8)]
        threads = [threading.Thread(target=grow, args=(rng.random(),)) for _ in range(2)]
        for t in threads:
            t.start()
        waiters = [go(lambda c=c: c.done().recv_ok()) for c in list(made)]
        gmp.sleep(rng.random() * 0.005)
        cancel()
        for g in gs:
            g.join()
        for t in threads:
            t.join()
        for w in waiters:
            assert w.result() == (None, False)
        assert all(c.err() is not None for c in made)
        assert all(ended(c) for c in made)
    while gmp.runtime.num_goroutine() > 1:
        gmp.sleep(0.001)


def test_cancel_from_a_signal_handler(child) -> None:
    c = child(
        """
        import os, signal
        from gmp import context, go, sleep
        ctx, cancel = context.with_cancel(context.background())
        signal.signal(signal.SIGUSR1, lambda *_: cancel())
        go(lambda: (sleep(0.05), os.kill(os.getpid(), signal.SIGUSR1)))
        try:
            ctx.done().recv()
        except Exception as e:
            print(type(e).__name__, type(ctx.err()).__name__)
        """
    )
    assert c.out == "ChanClosed Canceled\n", c
