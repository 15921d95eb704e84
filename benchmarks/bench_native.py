"""Goroutines in C on gmp.h, with 1, as many as there are CPUs, and 16 Ps, beside Go and POSIX threads.

Each shape is a C function in c/goroutines.c, one in c/threads.c where threads can do it, and a Go function in go/. All of the
goroutines but those of native_parked_64k and native_spawn_burst_64k have 2 KiB stacks.

The table of goroutine against thread: native_spawn_join is set-up and tear-down, native_yield_2 the switch, native_parked the
memory. A thread's memory is what the process shows; 16 KiB of kernel stack and its other structures there come on top.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness import GO, NATIVE, Bench, Figure, Target

AS_GO = (Target(1.0, "go-1", of="native-1"), Target(1.0, "go", of="native"))
TWICE = (Target(0.5, "go-1", of="native-1"), Target(0.5, "go", of="native"))
MANY_PS = (Target(2.0, "native", of="native-16"),)  # no collapse with many Ms

C = Bench("native", twins=(*NATIVE, *GO, "pthreads"))
NO_THREADS = ("pthreads",)


def shape(name: str, title: str, **options: object) -> None:
    C.shape(f"native_{name}", title=f"C: {title}", **options)


shape("yield_2", "yield, 2 tasks", n=2, ops=400_000, targets=TWICE + MANY_PS)
shape("yield_1000", "yield, 1,000 tasks", n=1000, ops=400_000, targets=TWICE + MANY_PS, without=NO_THREADS)
shape("spawn_join", "start and wait for one", ops=100_000, targets=TWICE)
shape("spawn_burst", "start 100,000", ops=100_000, targets=TWICE, without=NO_THREADS)
shape("spawn_cold", "start 100,000, fresh process", ops=100_000, targets=TWICE, fresh=True, without=NO_THREADS)
shape("spawn_burst_64k", "start 100,000 on 64 KiB", ops=100_000, targets=AS_GO, without=("pthreads", *GO))
shape("round_trip", "unbuffered round trip", ops=200_000, targets=TWICE + MANY_PS)
shape("buffered", "item through a buffer of 128", n=128, ops=1_000_000, targets=TWICE + MANY_PS)
shape("mutex", "lock and unlock", ops=3_000_000, targets=AS_GO)
shape("contended", "lock, yield, unlock, 100 tasks", n=100, ops=100_000, targets=AS_GO)
shape("skynet", "skynet, a leaf of 1,000,000", ops=1_000_000, targets=AS_GO, rounds=5, without=NO_THREADS)
shape("sieve", "sieve, a prime of 500", ops=500, targets=AS_GO, without=NO_THREADS)
shape("cpu_1", "compute, 1 task, a step", n=1, ops=50_000_000, targets=AS_GO)
shape("cpu_2", "compute, 2 tasks, a step of each", n=2, ops=50_000_000, targets=AS_GO)
shape("sum", "parallel sum, a chunk of 1.5 µs", n=4, ops=20_000, targets=AS_GO)

MEMORY = (
    Figure("rss", "C: waiting task", "bytes", (Target(2200, of="native"), Target(1.0, "go", of="native"))),
    Figure("create_s", "C: start 10,000 that wait", "s"),
    Figure("release_s", "C: let 10,000 end", "s"),
)
shape("parked", "waiting task", ops=10_000, figures=MEMORY, fresh=True)


def test_native(measure: Callable[[], None]) -> None:
    measure()
