"""The scenarios of grpc_report.py under pytest-benchmark: a group each, a test for each server; all rounds are made at the first one.

An operation is a call or a message (of "parked", whose figure is bytes, a byte counts as a nanosecond).  extra_info holds the figure, the
server's processor time and, for gmp.grpc.server, the targets with what was reached.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("grpc")

from benchmarks.bench_grpc import CLOCK
from benchmarks.grpc_peers import FULL
from benchmarks.grpc_report import (
    OURS,
    QUICK_ROUNDS,
    QUICK_SECONDS,
    ROUNDS,
    SCENARIOS,
    SECONDS,
    TARGETS,
    Results,
    Scenario,
    median,
    race,
)

RACES: dict[str, Results] = {}


def results_of(name: str, quick: bool) -> Results:
    if name not in RACES:
        rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
        RACES[name] = race(SCENARIOS[name], 1 if quick and SCENARIOS[name].fresh else rounds, seconds)
    return RACES[name]


def seconds_of(scenario: Scenario, value: float) -> float:
    if scenario.unit.endswith("/s"):
        return 1 / value
    return value / {"µs": 1e6, "bytes": 1e9}[scenario.unit]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(
            name, kind, id=f"{name}-{kind}", marks=pytest.mark.benchmark(group=f"gRPC: {scenario.title}", timer=CLOCK)
        )
        for name, scenario in SCENARIOS.items()
        for kind in scenario.kinds
    ],
)
def test_grpc(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    scenario = SCENARIOS[name]
    results = results_of(name, request.config.getoption("--quick", default=False))
    own = results[kind]
    if isinstance(own, str):
        if own.startswith("failed"):
            pytest.fail(own, pytrace=False)
        pytest.skip(own)
    benchmark: Any = request.getfixturevalue("benchmark")
    rounds = iter(own)
    benchmark.pedantic(lambda: CLOCK.advance(seconds_of(scenario, next(rounds).value)), rounds=len(own))
    benchmark.extra_info[scenario.unit] = median(own, "value")
    for figure in ("cpu", "p99", "threads"):
        if value := median(own, figure):
            benchmark.extra_info[figure if figure == "threads" else f"{figure}_us"] = round(value, 3)
    if kind.removesuffix(FULL) == OURS:
        for target in TARGETS:
            if target.scenario == name and (got := target.got(results)) is not None:
                benchmark.extra_info[f"target: {target.text()}"] = round(got, 4)
