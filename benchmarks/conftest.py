"""The shapes under pytest-benchmark: one test a shape and contender, all rounds of a shape run at its first test.

A round is timed by the contender itself, in its own process, so pytest-benchmark's clock is one that moves only by what
contenders report: its table and its JSON show time per operation. `extra_info` has every figure, gmp's ratio to this
contender and the targets.

    pytest benchmarks [--quick] [-k yield] [--benchmark-json=FILE]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.append(ROOT)

from benchmarks.harness import Bench, Shape  # noqa: E402
from benchmarks.race import Race  # noqa: E402


class Clock:
    """A timer in the sense of pytest-benchmark; stands still but for `advance`."""

    __name__ = "contender's own clock, per operation"
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="fewer rounds of the shape benchmarks")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "measure" not in metafunc.fixturenames:
        return
    benches = [value for value in vars(metafunc.module).values() if isinstance(value, Bench)]
    shapes = [shape for bench in benches for shape in bench.shapes]
    cases = [
        pytest.param(
            (shape, name), id=f"{shape.name}-{name}", marks=pytest.mark.benchmark(group=shape.title, timer=CLOCK)
        )
        for shape in shapes
        for name in shape.contenders
    ]
    metafunc.parametrize("measure", cases, indirect=True)


@pytest.fixture(scope="session")
def races(request: pytest.FixtureRequest) -> Callable[[Shape], Race]:
    """Runs a shape's race once and remembers it."""
    run: dict[str, Race] = {}

    def race(shape: Shape) -> Race:
        if shape.name not in run:
            run[shape.name] = Race(shape, quick=request.config.getoption("--quick")).run()
        return run[shape.name]

    return race


@pytest.fixture
def measure(request: pytest.FixtureRequest, races: Callable[[Shape], Race]) -> Callable[[], None]:
    """Call it to report one contender's rounds of one shape."""
    shape, contender = request.param
    race = races(shape)

    def report() -> None:
        if contender in race.missing:
            pytest.skip(race.missing[contender])
        if contender in race.failed:
            pytest.fail(f"{contender}: {race.failed[contender]}", pytrace=False)
        benchmark = request.getfixturevalue("benchmark")  # not before: unused, it would complain
        rounds = iter(race.rounds[contender])
        benchmark.pedantic(lambda: CLOCK.advance(next(rounds)["ns"] / 1e9), rounds=len(race.rounds[contender]))
        benchmark.extra_info.update(race.summary(contender))

    return report
