"""Nothing freezes the others: the program of benchmarks/bench_freeze.py, where everyone must get on.  How fast is measured there."""

from __future__ import annotations

import pytest

import gmp
from benchmarks.bench_freeze import BLOCKED, BUSY, PROCESSES, SQL, Mixed


@pytest.mark.timeout(180)
def test_everyone_gets_on() -> None:
    n = 1000
    program = Mixed(n, gmp.go, gmp.sleep)
    tasks = program.start()
    begun = n - BLOCKED - SQL - BUSY - PROCESSES
    for _ in range(400):  # of 0.3 s, until everyone has done something
        gmp.sleep(0.3)
        least = min(map(len, program.late), default=0)
        if len(program.late) == begun and least > 20 and all(min(c, default=0) > 1 for c in program.done.values()):
            break
    program.running = False
    for t in tasks:
        t.join(60)
    assert len(program.late) == begun
    assert min(map(len, program.late)) > 20
    assert {kind: len(counts) for kind, counts in program.done.items()} == {
        "blocked": BLOCKED,
        "sql": SQL,
        "busy": BUSY,
        "process": PROCESSES,
    }
    for kind, counts in program.done.items():
        assert min(counts) > 1, (kind, counts)


def test_a_thousand_blocked_at_once(child) -> None:
    """They wait side by side, each in its own call, not one after the other: that would take 50 s."""
    child(
        """
        import gmp, time
        t0 = time.monotonic()
        for g in [gmp.go(time.sleep, 0.05) for _ in range(1000)]:
            g.join()
        assert time.monotonic() - t0 < 45
    """,
        timeout=55,
    ).expect(0)
