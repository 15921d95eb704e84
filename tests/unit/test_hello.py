"""The talk's hello_goroutine: two goroutines take turns at the screen."""

from __future__ import annotations

import itertools
import time

import gmp
from tests.waiting import until


def test_lines_interleave() -> None:
    def switches() -> int:
        lines: list[str] = []

        def display(message: str) -> None:
            for i in range(5):
                time.sleep(0.02)  # plain blocking code
                lines.append(f"{i}: {message}")

        hello = gmp.go(display, "Hello")
        world = gmp.go(display, "Goroutine")
        hello.join()
        world.join()
        assert sorted(lines) == sorted(f"{i}: {m}" for i in range(5) for m in ("Hello", "Goroutine"))
        who = [line.split()[1] for line in lines]
        return sum(a != b for a, b in itertools.pairwise(who))

    # Neither has run to its end before the other began; a machine that is busy with others may keep one waiting for 100 ms.
    until(lambda: switches() >= 2)


def test_as_a_program(child) -> None:
    c = child("""
        import sys
        import gmp

        def display(message):
            for i in range(3):
                gmp.sleep(0.01)
                sys.stdout.write(f"{message} {i}\\n")  # in one piece: print() writes four

        g = gmp.go(display, "hello")
        display("goroutine")
        g.join()
    """).expect(0)
    assert sorted(c.out.split("\n")[:-1]) == sorted(f"{m} {i}" for m in ("hello", "goroutine") for i in range(3))
