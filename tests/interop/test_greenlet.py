"""greenlets inside a goroutine, as long as they stay inside it and do not park across each other."""

from __future__ import annotations

import threading

import pytest

from gmp import Chan, go

greenlet = pytest.importorskip("greenlet")


def ping_pong(n: int) -> list[int]:
    """Two greenlets switch to and fro between parks of the goroutine."""
    out: list[int] = []
    parent = greenlet.getcurrent()

    def body(x: int) -> str:
        while x < n:
            out.append(x)
            x = parent.switch(x)
        return "done"

    g = greenlet.greenlet(body)
    x = 0
    while not g.dead:
        g.switch(x)
        x += 1
    return out


def test_in_a_goroutine_that_does_not_park() -> None:
    assert [g.result() for g in [go(ping_pong, n) for n in range(1, 20)]] == [list(range(n)) for n in range(1, 20)]


def test_one_after_another_on_used_stacks() -> None:
    for n in range(1, 100):
        assert go(ping_pong, n).result() == list(range(n))


def test_in_threads_that_wait_for_goroutines() -> None:
    out: list[list[int]] = []

    def f() -> None:
        ch: Chan[list[int]] = Chan()
        g = go(lambda: ch.send(ping_pong(10)))
        out.append(ping_pong(10))
        out.append(ch.recv())
        g.join()

    threads = [threading.Thread(target=f) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(20)
    assert out == [list(range(10))] * 8


def test_in_main() -> None:
    g = go(ping_pong, 30)
    assert ping_pong(30) == list(range(30))
    assert g.result() == list(range(30))


def test_exceptions_between_greenlets() -> None:
    def f() -> str:
        def body() -> None:
            raise ValueError("inner")

        try:
            greenlet.greenlet(body).switch()
        except ValueError as e:
            return str(e)
        return "none"

    assert [g.result() for g in [go(f) for _ in range(20)]] == ["inner"] * 20
