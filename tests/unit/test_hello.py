"""The talk's hello_goroutine: two goroutines take turns at the screen."""

from __future__ import annotations

import itertools
import time

import gmp


def test_lines_interleave() -> None:
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
    switches = sum(a != b for a, b in itertools.pairwise(who))
    assert switches >= 2, lines  # neither has run to its end before the other began


def test_as_a_program(child) -> None:
    c = child("""
        import sys
        import gmp

        def display(message):
            for i in range(3):
                gmp.sleep(0.01)
                sys.stdout.write(f"{message} {i}\\n")  # in one piece: print() writes four

        gmp.go(display, "hello")
        display("goroutine")
        gmp.sleep(0.05)
    """).expect(0)
    assert sorted(c.out.split("\n")[:-1]) == sorted(f"{m} {i}" for m in ("hello", "goroutine") for i in range(3))
