"""`python -m benchmarks.sysmon_price [ROUNDS]`: what the monitor thread costs a program that is busy in one goroutine.

Child processes in turn run the same loop: without gmp; with gmp imported, in the main goroutine; in a goroutine of its own.
Shown are medians of each one's processor time over that of its neighbour without gmp, and the monitor thread's own time
on a CPU, of the time that passed (from /proc: Linux).
"""

from __future__ import annotations

import statistics
import subprocess
import sys

LOOP = """
import time
def work():
    n = 0
    for i in range(30_000_000):
        n += i & 3
    return n
"""
REPORT = """
from pathlib import Path
own = 0
for task in Path("/proc/self/task").iterdir():
    if (task / "comm").read_text().startswith("gmp-sysmon"):
        own = int((task / "schedstat").read_text().split()[0])
print(time.process_time() - start, own / 1e9 / (time.monotonic() - began))
"""
KINDS = {
    "without gmp": "start, began = time.process_time(), time.monotonic()\nwork()\n",
    "main goroutine": "import gmp\ngmp.sleep(0.01)\nstart, began = time.process_time(), time.monotonic()\nwork()\n",
    "goroutine": "import gmp\ngmp.sleep(0.01)\nstart, began = time.process_time(), time.monotonic()\ngmp.go(work).join()\n",
}


def run(kind: str) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", LOOP + KINDS[kind] + REPORT], capture_output=True, text=True, check=True
    )
    total, share = map(float, done.stdout.split())
    return total, share


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    ratios: dict[str, list[float]] = {kind: [] for kind in KINDS}
    shares: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        base = 0.0
        for kind in KINDS:
            total, share = run(kind)
            base = base or total
            ratios[kind].append(total / base)
            shares[kind].append(share)
    for kind in KINDS:
        ratio, share = statistics.median(ratios[kind]), statistics.median(shares[kind])
        print(
            f"{kind:16} {100 * (ratio - 1):+6.2f} % processor time, {100 * share:5.2f} % of a CPU for the monitor thread"
        )


if __name__ == "__main__":
    main()
