"""`python -m benchmarks.report [--quick] [--json FILE] [SHAPE…]`: every shape, one table in Markdown.

`--cpu` shows processor time instead of the clock's, for a machine that has other things to do; `--load FILE` shows a saved run.

Targets are set against Go on one CPU (GOMAXPROCS=1), since a GIL build runs Python on one CPU at a time. Go with its
default GOMAXPROCS stands beside it.  Goroutines in C run on all CPUs: each row has both comparisons.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import CONTENDERS, Figure, all_shapes
from benchmarks.race import Race


def short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def verdict(race: Race, figure: Figure) -> str:
    """Each target of a figure, what came out and whether that will do."""
    words = []
    for target in figure.targets:
        met = race.met(target, figure.key)
        words.append(target.text(sys.version_info[:2], figure.unit))
        if met is None:
            words[-1] += ": not measured"
            continue
        if target.than is not None:
            ratio = race.ratio(target.of, target.than, figure.key) or 0.0
            words[-1] += f" ({short(1 / ratio if target.limit < 1 else ratio)}x)"
        words[-1] += ": ok" if met else ": **missed**"
    return "; ".join(words)


def table(races: Iterable[Race]) -> str:
    races = list(races)
    columns = [c for c in CONTENDERS if any(race.rounds.get(c) for race in races)]
    head = ["shape", *(CONTENDERS[c] for c in columns), "gmp / Go P=1", "gmp / Go", "target"]
    rows = [head, ["---", *["---:"] * (len(columns) + 2), "---"]]
    for race in races:
        for figure in race.shape.figures:
            cells = [f"{figure.title}, {figure.unit}"]
            cells += ["failed" if c in race.failed else short(race.figure(c, figure.key)) for c in columns]
            ours = ("gmp", "gmp") if "gmp" in race.rounds else ("native-1", "native")
            cells += [short(race.ratio(o, go, figure.key)) for o, go in zip(ours, ("go-1", "go"), strict=True)]
            cells.append(verdict(race, figure))
            rows.append(cells)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def versions(races: Iterable[Race]) -> str:
    seen = {c: v for race in races for c, v in race.versions.items()}
    python = f"CPython {platform.python_version()}"
    others = [
        f"{CONTENDERS[c]} {seen[c]}"
        for c in ("gmp", "native", "go", "gevent", "greenlet", "uvloop", "trio")
        if c in seen
    ]
    return ", ".join([python, *others, f"{platform.system()} {platform.machine()}"])


def run(shapes: list[str], quick: bool, contenders: list[str] | None) -> list[Race]:
    races = []
    for shape in all_shapes():
        if shapes and not shape.name.startswith(tuple(shapes)):
            continue
        print(f"{shape.title} …", file=sys.stderr, flush=True)
        race = Race(shape, quick=quick, contenders=contenders).run()
        races.append(race)
        for contender, reason in race.failed.items():
            print(f"  {contender} failed: {reason}", file=sys.stderr)
    for reason in sorted({reason for race in races for reason in race.missing.values()}):
        print(f"left out: {reason}", file=sys.stderr)
    return races


def save(races: list[Race], path: Path) -> None:
    shapes = {r.shape.name: {k: getattr(r, k) for k in ("rounds", "versions", "failed", "missing")} for r in races}
    path.write_text(json.dumps({"versions": versions(races), "shapes": shapes}, indent=1) + "\n")


def load(path: Path) -> list[Race]:
    saved = json.loads(path.read_text())["shapes"]
    races = [Race(shape) for shape in all_shapes() if shape.name in saved]
    for race in races:
        vars(race).update(saved[race.shape.name])
    return races


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help="all but these are left out; a prefix will do")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: three to four minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round of every contender")
    parser.add_argument("--load", type=Path, metavar="FILE", help="show what --json saved, run nothing")
    parser.add_argument(
        "--cpu", action="store_true", help="processor time instead of wall time, where figures are in ns"
    )
    parser.add_argument("--contenders", metavar="A,B", help=f"of {','.join(CONTENDERS)}")
    options = parser.parse_args()
    contenders = options.contenders.split(",") if options.contenders else None

    races = load(options.load) if options.load else run(options.shapes, options.quick, contenders)
    if options.cpu:
        for race in races:
            race.shape.figures = tuple(replace(f, key="cpu_ns" if f.key == "ns" else f.key) for f in race.shape.figures)
    print(versions(races) + "\n")
    print(table(races))
    if options.json:
        save(races, options.json)


if __name__ == "__main__":
    main()
