"""Rounds of all contenders in turn, and what is made of them.

1. Each contender gets a child process (a new one for every round if the shape is `fresh`), pinned to one CPU unless it
   is Go with its default GOMAXPROCS. An idle child waits in a read and costs nothing.
2. One warm-up round each, then sweeps: contender after contender, one round each of a fixed number of operations.
3. A figure is the median over the rounds. A ratio is the median of the ratios sweep by sweep, so that drift and noisy
   neighbours cancel.

A contender that is not installed is left out with its reason; one that dies or takes too long is reported as failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import ctwin, gotwin
from benchmarks.harness import GO, OURS, TWINS, UNPINNED, Shape, Target, pin, unpin

WORKER = str(Path(__file__).resolve().parent / "worker.py")


class Missing(Exception):
    """The contender is not installed here."""


class Failed(Exception):
    """The contender died, raised or took too long."""


class Child:
    """One contender's process. A context manager: leaving it ends the process."""

    def __init__(self, shape: Shape, contender: str) -> None:
        self.shape = shape
        self.contender = contender
        if shape.needs_twin:
            try:
                gotwin.build()
            except FileNotFoundError as error:
                raise Missing(str(error)) from None
        env = dict(os.environ)
        if contender in TWINS:
            try:
                if contender in GO:
                    command = [gotwin.build(), "serve"]
                else:
                    command = [ctwin.build(), "threads" if contender == "pthreads" else "goroutines", "serve"]
            except FileNotFoundError as error:
                raise Missing(str(error)) from None
            for name in ("GOMAXPROCS", "GMPMAXPROCS"):
                env.pop(name, None)
            env.update(TWINS[contender])
        else:
            bench_file = shape.bench.runs[contender].__module__.rpartition("bench_")[2]
            command = [sys.executable, WORKER, bench_file, contender]
        had = pin() if shape.pinned and contender not in UNPINNED else None
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        finally:
            unpin(had)
        hello = self._answer()
        if "missing" in hello:
            self.close()
            raise Missing(hello["missing"])
        self.version: str = hello["version"]

    def round(self, ops: int) -> dict[str, float]:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{self.shape.name} {ops} {self.shape.n}\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.process.kill()

        alarm = threading.Timer(self.shape.timeout, give_up)
        alarm.start()
        line = self.process.stdout.readline()
        alarm.cancel()
        if not line:
            status = self.process.wait()
            raise Failed(f"took more than {self.shape.timeout:g} s" if late.is_set() else f"ended with status {status}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Race:
    """All rounds of one shape. `run()` fills `rounds` (dicts of figures), `missing` and `failed` of each contender."""

    def __init__(self, shape: Shape, *, quick: bool = False, contenders: list[str] | None = None) -> None:
        self.shape = shape
        self.quick = quick
        self.contenders = [c for c in shape.contenders if contenders is None or c in contenders]
        self.rounds: dict[str, list[dict[str, float]]] = {c: [] for c in self.contenders}
        self.missing: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def rounds_of(self, contender: str) -> int:
        if not self.quick:
            return self.shape.rounds
        if contender in OURS or contender in GO:
            return self.shape.quick_rounds
        return 1 if self.shape.slow else min(3, self.shape.quick_rounds)

    def run(self) -> Race:
        children: dict[str, Child] = {}
        try:
            for contender in self.contenders:
                with self._excused(contender):
                    child = Child(self.shape, contender)
                    self.versions[contender] = child.version
                    if self.shape.fresh:
                        child.close()
                    else:
                        children[contender] = child
                        child.round(max(self.shape.n, self.shape.ops_of(contender) // 10))
            for lap in range(max(map(self.rounds_of, self.contenders), default=0)):
                for contender in self.contenders:
                    if contender in self.versions and contender not in self.failed and lap < self.rounds_of(contender):
                        with self._excused(contender):
                            self.rounds[contender].append(self._round(contender, children))
        finally:
            for child in children.values():
                child.close()
        return self

    def _round(self, contender: str, children: dict[str, Child]) -> dict[str, float]:
        ops = self.shape.ops_of(contender)
        if not self.shape.fresh:
            return children[contender].round(ops)
        with Child(self.shape, contender) as child:
            return child.round(ops)

    @contextlib.contextmanager
    def _excused(self, contender: str) -> Iterator[None]:
        """Keeps one contender's absence or failure from ending the race."""
        try:
            yield
        except Missing as reason:
            self.missing[contender] = str(reason)
        except Failed as reason:
            self.failed[contender] = str(reason)

    def figure(self, contender: str, key: str) -> float | None:
        """The median over the rounds; None without any."""
        values = [r[key] for r in self.rounds.get(contender, ()) if key in r]
        return statistics.median(values) if values and contender not in self.failed else None

    def ratio(self, contender: str, to: str, key: str) -> float | None:
        """The median of `contender`'s figure over `to`'s, sweep by sweep."""
        if contender in self.failed or to in self.failed:
            return None
        pairs = zip(self.rounds.get(contender, ()), self.rounds.get(to, ()), strict=False)
        ratios = [a[key] / b[key] for a, b in pairs if key in a and b.get(key)]
        return statistics.median(ratios) if ratios else None

    def met(self, target: Target, key: str) -> bool | None:
        """Whether a target is reached; None when one of the two was not measured."""
        got = self.figure(target.of, key) if target.than is None else self.ratio(target.of, target.than, key)
        return None if got is None else got <= target.bound(sys.version_info[:2])

    def summary(self, contender: str) -> dict[str, Any]:
        """All that is known of one contender, for a report by machine."""
        info: dict[str, Any] = {"version": self.versions[contender], "ops_per_round": self.shape.ops_of(contender)}
        for key in self.rounds[contender][0]:
            if key != "ops":
                info[key] = self.figure(contender, key)
                if contender != "gmp" and "gmp" in self.rounds:
                    info[f"gmp_ratio_{key}"] = self.ratio("gmp", contender, key)
        if contender in OURS:
            version = sys.version_info[:2]
            info["targets"] = {
                f"{figure.title}: {target.text(version, figure.unit)}": self.met(target, figure.key)
                for figure in self.shape.figures
                for target in figure.targets
                if target.of == contender
            }
        return info
