"""select: uniform choice, default, timeout, nil channels, closed channels."""

from __future__ import annotations

import collections
import gc
import random
import sys
import time
import weakref

import pytest

import gmp
from gmp import Chan, ChanClosed, go, recv, select, send
from tests.waiting import parked


def test_ready_receive_and_send() -> None:
    a: Chan[int] = Chan(1)
    b: Chan[int] = Chan(1)
    a.send(5)
    assert select(recv(a)) == (0, 5, True)
    assert select(recv(a), send(b, 6)) == (1, None, True)
    assert b.recv() == 6


def test_result_fields_and_match() -> None:
    a: Chan[str] = Chan(1)
    a.send("x")
    r = select(recv(a))
    assert isinstance(r, gmp.Selected)
    assert (r.index, r.value, r.ok) == (0, "x", True)
    a.send("y")
    match select(recv(a)):
        case gmp.Selected(0, v, True):
            assert v == "y"
        case _:
            pytest.fail("no match")
    a.send("z")
    match select(recv(a)):
        case (0, v, True):
            assert v == "z"
        case _:
            pytest.fail("no match")


def test_default() -> None:
    a: Chan[int] = Chan()
    assert select(recv(a), default=True) == (-1, None, False)
    assert select(send(a, 1), default=True) == (-1, None, False)
    assert select(default=True) == (-1, None, False)
    assert select(recv(None), default=True) == (-1, None, False)


def test_default_false_waits() -> None:
    a: Chan[int] = Chan()
    g = go(a.send, 3)
    assert select(recv(a), default=False) == (0, 3, True)
    g.join()


def test_timeout() -> None:
    a: Chan[int] = Chan()
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError, match=r"select\(\)"):
            select(recv(a), timeout=timeout)
    t0 = time.monotonic()
    with pytest.raises(TimeoutError):
        select(timeout=0.02)
    assert time.monotonic() - t0 >= 0.02
    assert len(a) == 0
    g = go(a.send, 1)  # the channel is none the worse for it
    assert a.recv() == 1
    g.join()


def test_closed() -> None:
    a: Chan[int] = Chan(1)
    a.send(1)
    a.close()
    assert select(recv(a)) == (0, 1, True)
    assert select(recv(a)) == (0, None, False)
    with pytest.raises(ChanClosed, match="send on closed channel"):
        select(send(a, 2))
    b: Chan[int] = Chan()
    gs = [go(select, recv(b)), go(select, recv(b), recv(None))]
    parked(*gs)
    b.close()
    assert [g.result() for g in gs] == [(0, None, False)] * 2
    c: Chan[int] = Chan()
    g = go(select, send(c, 1), recv(None))
    parked(g)
    c.close()
    with pytest.raises(ChanClosed):
        g.join()


def test_nil_channels_are_never_ready() -> None:
    a: Chan[int] = Chan(1)
    a.send(1)
    assert select(recv(None), send(None, 3), recv(a)) == (2, 1, True)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 17, 300])
def test_waiting_on_many(n: int) -> None:
    chans: list[Chan[int]] = [Chan() for _ in range(n)]
    rng = random.Random(n)
    for _ in range(20):
        k = rng.randrange(n)
        g = go(select, *[recv(c) for c in chans])
        parked(g)
        chans[k].send(k)
        assert g.result() == (k, k, True)
    for _ in range(20):
        k = rng.randrange(n)
        g = go(select, *[send(c, i) for i, c in enumerate(chans)])
        parked(g)
        assert chans[k].recv() == k
        assert g.result() == (k, None, True)


def test_choice_is_uniform() -> None:
    chans: list[Chan[int]] = [Chan(1) for _ in range(4)]
    for c in chans:
        c.send(0)
    cases = [recv(c) for c in chans]
    n = 4000
    counts = collections.Counter()
    for _ in range(n):
        i = select(*cases).index
        counts[i] += 1
        chans[i].send(0)
    # 4 classes of 1000 expected, standard deviation 27: 8 of them either way
    assert all(780 < counts[i] < 1220 for i in range(4)), counts


def test_same_channel_twice_and_both_directions() -> None:
    a: Chan[int] = Chan()
    g = go(select, recv(a), recv(a), send(a, 7))
    parked(g)
    a.send(3)
    r = g.result()
    assert r.index in (0, 1)
    assert r.value == 3
    g = go(select, recv(a), send(a, 7))
    parked(g)
    assert a.recv() == 7
    assert g.result() == (1, None, True)


def test_does_not_meet_itself() -> None:
    a: Chan[int] = Chan()
    with pytest.raises(TimeoutError):
        select(recv(a), send(a, 1), timeout=0.02)


def test_two_selects_meet() -> None:
    a: Chan[int] = Chan()
    b: Chan[int] = Chan()
    n = 1000

    def left() -> int:
        return sum(select(send(a, i), recv(b)).index for i in range(n))

    def right() -> int:
        return sum(select(recv(a), send(b, i)).index for i in range(n))

    x, y = go(left), go(right)
    assert x.result() == y.result()  # each meeting is by a (0, 0) or by b (1, 1)


def test_cases_can_be_used_again() -> None:
    a: Chan[int] = Chan(10)
    case = send(a, 4)
    for _ in range(10):
        assert select(case).ok
    assert len(a) == 10
    got = recv(a)
    assert [select(got, got).value for _ in range(10)] == [4] * 10


def test_case_repr() -> None:
    a: Chan[int] = Chan()
    assert repr(recv(None)) == "gmp.recv(None)"
    assert "gmp.send(<gmp.Chan" in repr(send(a, 3))


def test_case_in_a_cycle_is_collected() -> None:
    class Thing:
        case: object

    a: Chan[Thing] = Chan()
    thing = Thing()
    thing.case = send(a, thing)
    ref = weakref.ref(thing)
    del thing
    gc.collect()
    assert ref() is None


def test_references() -> None:
    """Whatever way a select ends, it keeps no reference to values and channels."""
    value = object()
    a: Chan[object] = Chan()
    full: Chan[object] = Chan(1)
    closed: Chan[object] = Chan()
    closed.close()

    def once() -> None:
        select(send(a, value), recv(a), default=True)
        with pytest.raises(TimeoutError):
            select(send(a, value), recv(a), timeout=0.0001)
        select(send(full, value), send(a, value))
        select(recv(full), send(a, value))
        with pytest.raises(ChanClosed):
            select(send(closed, value))
        select(recv(closed), send(a, value))
        g = go(select, *[send(c, value) for c in (a, None, a, None, a, a)])
        a.recv()
        g.join()
        with pytest.raises(TypeError):
            select(send(a, value), None)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            select(*[send(a, value)] * 9, None)  # type: ignore[arg-type]

    once()
    gc.collect()
    before = [sys.getrefcount(x) for x in (value, a, full, closed, None)][:4]
    for _ in range(200):
        once()
    gc.collect()
    assert [sys.getrefcount(x) for x in (value, a, full, closed, None)][:4] == before


def test_fan_in() -> None:
    quit_: Chan[None] = Chan()
    chans: list[Chan[int]] = [Chan() for _ in range(5)]

    def produce(c: Chan[int], base: int) -> int:
        n = 0
        while select(send(c, base + n), recv(quit_)).index == 0:
            n += 1
        return n

    gs = [go(produce, c, i * 1_000_000) for i, c in enumerate(chans)]
    cases = [recv(c) for c in chans]
    counts = [0] * 5
    for _ in range(2000):
        r = select(*cases)
        assert r.value == r.index * 1_000_000 + counts[r.index]
        counts[r.index] += 1
    quit_.close()
    assert [g.result() for g in gs] == counts
