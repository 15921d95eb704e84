"""Chan: Go's rules for sending, receiving and closing."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from gmp import Chan, ChanClosed, go
from tests.waiting import parked


def test_unbuffered_meets() -> None:
    ch: Chan[int] = Chan()
    log: list[str] = []

    def sender() -> None:
        for i in range(3):
            ch.send(i)
            log.append(f"sent {i}")

    g = go(sender)
    for i in range(3):
        assert ch.recv() == i
        assert f"sent {i + 1}" not in log
    g.join()
    assert len(ch) == 0
    assert ch.cap == 0


def test_buffered_blocks_when_full() -> None:
    ch: Chan[int] = Chan(2)
    ch.send(1)
    ch.send(2)
    assert len(ch) == 2
    with pytest.raises(TimeoutError):
        ch.send(3, 0)
    with pytest.raises(TimeoutError):
        ch.send(3, timeout=0.01)
    assert ch.recv() == 1
    ch.send(3, 0)
    assert [ch.recv(), ch.recv(0)] == [2, 3]
    with pytest.raises(TimeoutError):
        ch.recv(0)
    with pytest.raises(TimeoutError):
        ch.recv_ok(timeout=0.01)


def test_fifo_through_a_full_buffer() -> None:
    """A waiting sender's value goes to the tail of the buffer, not to the receiver."""
    ch: Chan[int] = Chan(3)
    g = go(lambda: [ch.send(i) for i in range(1000)])
    assert [ch.recv() for _ in range(1000)] == list(range(1000))
    g.join()


def test_waiting_receivers_are_served_in_order() -> None:
    ch: Chan[int] = Chan()
    got: list[tuple[int, int]] = []

    def receive(i: int) -> None:
        got.append((i, ch.recv()))

    gs = []
    for i in range(10):
        gs.append(go(receive, i))
        parked(gs[i])
    for i in range(10):
        ch.send(i)
    for g in gs:
        g.join()
    assert sorted(got) == [(i, i) for i in range(10)]


def test_close_wakes_everybody() -> None:
    ch: Chan[int] = Chan()
    receivers = [go(ch.recv_ok) for _ in range(5)]
    parked(*receivers)
    ch.close()
    assert [g.result() for g in receivers] == [(None, False)] * 5
    ch2: Chan[int] = Chan()
    senders = [go(ch2.send, i) for i in range(5)]
    parked(*senders)
    ch2.close()
    for g in senders:
        with pytest.raises(ChanClosed, match="send on closed channel"):
            g.join()


def test_closed_channel() -> None:
    ch: Chan[int] = Chan(3)
    ch.send(1)
    ch.send(2)
    assert not ch.closed
    ch.close()
    assert ch.closed
    assert ch.recv_ok() == (1, True)
    assert ch.recv() == 2
    assert ch.recv_ok() == (None, False)
    with pytest.raises(ChanClosed, match="receive on closed channel"):
        ch.recv()
    with pytest.raises(ChanClosed, match="receive on closed channel"):
        ch.recv(0)
    with pytest.raises(ChanClosed, match="send on closed channel"):
        ch.send(3)
    with pytest.raises(ChanClosed, match="send on closed channel"):
        ch.send(3, 0)
    with pytest.raises(ChanClosed, match="close of closed channel"):
        ch.close()


def test_iteration() -> None:
    ch: Chan[int] = Chan(2)

    def produce() -> None:
        for i in range(100):
            ch.send(i)
        ch.close()

    g = go(produce)
    assert list(ch) == list(range(100))
    assert list(ch) == []
    g.join()


def test_none_is_a_value() -> None:
    ch: Chan[None] = Chan(1)
    ch.send(None)
    assert ch.recv_ok() == (None, True)


def test_truth_length_repr() -> None:
    ch: Chan[int] = Chan(4)
    assert ch
    assert len(ch) == 0
    assert "0 of 4" in repr(ch)
    ch.send(1)
    assert "1 of 4" in repr(ch)
    ch.close()
    assert "closed" in repr(ch)
    assert Chan[int] is not None  # for annotations at run time


def test_values_are_the_same_objects_and_are_released() -> None:
    class Thing: ...

    for cap in (0, 1, 3):
        ch: Chan[Thing] = Chan(cap)
        thing = Thing()
        ref = weakref.ref(thing)
        g = go(ch.send, thing)
        assert ch.recv() is thing
        g.join()
        del thing
        assert ref() is None


def test_buffered_values_go_with_the_channel() -> None:
    class Thing: ...

    ch: Chan[Thing] = Chan(10)
    refs = []
    for _ in range(7):
        thing = Thing()
        refs.append(weakref.ref(thing))
        ch.send(thing)
    del thing
    ch.recv()
    ch.close()
    del ch
    assert [r() for r in refs] == [None] * 7


def test_a_timed_out_send_keeps_nothing() -> None:
    class Thing: ...

    ch: Chan[Thing] = Chan()
    thing = Thing()
    ref = weakref.ref(thing)
    for timeout in (0, 0.001):
        with pytest.raises(TimeoutError):
            ch.send(thing, timeout)
    del thing
    assert ref() is None


def test_channel_that_holds_itself_is_collected() -> None:
    ch: Chan[object] = Chan(2)
    ch.send(ch)
    ch.send([ch])
    ref = weakref.ref(ch)
    del ch
    gc.collect()
    assert ref() is None


def test_a_long_chain_of_channels_is_freed() -> None:
    ch: Chan[object] = Chan(1)
    for _ in range(200_000):
        outer: Chan[object] = Chan(1)
        outer.send(ch)
        ch = outer
    del ch, outer


def test_destructor_that_uses_channels() -> None:
    """__del__ sends on another channel, from inside the channel's own destructor."""
    out: Chan[str] = Chan(10)

    class Thing:
        def __del__(self) -> None:
            out.send("gone")

    ch: Chan[Thing] = Chan(3)
    ch.send(Thing())
    ch.send(Thing())
    del ch
    assert [out.recv(0), out.recv(0)] == ["gone", "gone"]


def test_destructor_that_parks_while_the_collector_runs() -> None:
    ch: Chan[int] = Chan()
    got: list[int] = []

    class Thing:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            got.append(ch.recv())

    def collect() -> None:
        Thing()
        gc.collect()

    gc.disable()  # nobody else is to find it
    try:
        g = go(collect)
        parked(g)
        ch.send(1)
        g.join()
    finally:
        gc.enable()
    assert got == [1]


def test_weakref_callback_sends() -> None:
    class Thing: ...

    ch: Chan[str] = Chan(1)
    thing = Thing()
    ref = weakref.ref(thing, lambda _: ch.send("dead"))
    del thing
    assert ch.recv(0) == "dead"
    del ref


@pytest.mark.parametrize("cap", [0, 1, 128])
def test_pipeline(cap: int) -> None:
    """A chain of 100 stages, each adding one."""

    def stage(a: Chan[int], b: Chan[int]) -> None:
        for v in a:
            b.send(v + 1)
        b.close()

    first: Chan[int] = Chan(cap)
    last = first
    gs = []
    for _ in range(100):
        nxt: Chan[int] = Chan(cap)
        gs.append(go(stage, last, nxt))
        last = nxt
    gs.append(go(lambda: [first.send(i) for i in range(50)] and first.close()))
    assert list(last) == [i + 100 for i in range(50)]
    for g in gs:
        g.join()


def test_sieve() -> None:
    def generate(ch: Chan[int]) -> None:
        i = 2
        try:
            while True:
                ch.send(i)
                i += 1
        except ChanClosed:
            pass

    def filter_(a: Chan[int], b: Chan[int], prime: int) -> None:
        try:
            for v in a:
                if v % prime:
                    b.send(v)
        except ChanClosed:
            pass
        if not a.closed:
            a.close()

    ch: Chan[int] = Chan()
    chans = [ch]
    gs = [go(generate, ch)]
    primes = []
    for _ in range(30):
        prime = ch.recv()
        primes.append(prime)
        nxt: Chan[int] = Chan()
        gs.append(go(filter_, ch, nxt, prime))
        chans.append(nxt)
        ch = nxt
    assert primes[:10] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]
    assert primes[-1] == 113
    for c in chans:
        if not c.closed:
            c.close()
    for g in gs:
        g.join()


def test_between_threads() -> None:
    ch: Chan[int] = Chan()
    back: Chan[int] = Chan(4)
    n = 2000

    def echo() -> None:
        for v in ch:
            back.send(v)
        back.close()

    t = threading.Thread(target=echo)
    t.start()
    g = go(lambda: [ch.send(i) for i in range(n)] and ch.close())
    assert list(back) == list(range(n))
    t.join()
    g.join()


def test_timeout_is_about_right() -> None:
    ch: Chan[int] = Chan()
    t0 = time.monotonic()
    with pytest.raises(TimeoutError):
        ch.recv(0.05)
    assert time.monotonic() - t0 >= 0.05


def test_huge_timeouts_do_not_overflow() -> None:
    for timeout in (1e9, 1e30, 10**400, float("inf")):
        ch: Chan[int] = Chan()
        g = go(ch.recv, timeout)
        parked(g)
        ch.send(1, timeout)
        assert g.result() == 1


def test_number_like_timeouts() -> None:
    from decimal import Decimal
    from fractions import Fraction

    class Index:
        def __index__(self) -> int:
            return 0

    ch: Chan[int] = Chan()
    for timeout in (Decimal("0.001"), Fraction(1, 1000), 0, False, Index()):
        with pytest.raises(TimeoutError):
            ch.recv(timeout)  # type: ignore[arg-type]
