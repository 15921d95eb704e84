"""The Greeter at 1,000 RPCs at once: goroutines beside thread pools and grpc.aio, the same client for all, round by round in turn.

An operation is one RPC as the client counts them.  extra_info holds what else was seen, the ratio of goroutines to this server, and the
targets: instant handlers at least 8 times ThreadPoolExecutor(10) and 6 times grpc.aio; handlers that wait 50 ms at least twice
ThreadPoolExecutor(1000) and grpc.aio; with fewer than 12 threads.
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from benchmarks.grpc_peers import KINDS, Peer, Sample

pytest.importorskip("grpc")

CONCURRENCY = 1000
ROUNDS, QUICK_ROUNDS = 7, 3
WARM_UP, SECONDS = 0.5, 1.5
TARGETS = {  # handler: {other: rate of goroutines over its rate, at least}
    "instant": {"threads-10": 8.0, "threads-1000": 8.0, "aio": 6.0},
    "50ms": {"threads-1000": 2.0, "aio": 2.0},
}
DELAYS = {"instant": 0.0, "50ms": 0.05}
THREADS = 12

Samples = dict[str, list[Sample]]


class Clock:
    """A timer in the sense of pytest-benchmark that moves by what the client measured."""

    __name__ = "client's clock, per RPC"
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()


@pytest.fixture(scope="module")
def samples(request: pytest.FixtureRequest) -> dict[str, Samples]:
    """Every handler's rounds on every server, made at the first test."""
    rounds = QUICK_ROUNDS if request.config.getoption("--quick", default=False) else ROUNDS
    result: dict[str, Samples] = {}
    for handler, delay in DELAYS.items():
        peers = {kind: Peer(kind, delay) for kind in KINDS}
        result[handler] = {kind: [] for kind in KINDS}
        try:
            for peer in peers.values():
                peer.measure(CONCURRENCY, WARM_UP, WARM_UP)
            for _ in range(rounds):
                for kind, peer in peers.items():
                    result[handler][kind].append(peer.measure(CONCURRENCY, WARM_UP, SECONDS))
        finally:
            for peer in peers.values():
                peer.close()
    return result


def rate(samples: list[Sample]) -> float:
    return statistics.median(sample.rate for sample in samples)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "handler",
    [pytest.param(h, marks=pytest.mark.benchmark(group=f"gRPC, {CONCURRENCY} RPCs, {h}", timer=CLOCK)) for h in DELAYS],
)
def test_grpc(handler: str, kind: str, samples: dict[str, Samples], request: pytest.FixtureRequest) -> None:
    own = samples[handler][kind]
    benchmark: Any = request.getfixturevalue("benchmark")
    rounds = iter(own)
    benchmark.pedantic(lambda: CLOCK.advance(1 / next(rounds).rate), rounds=len(own))
    merged = Sample()
    for sample in own:
        merged.add(sample)
    benchmark.extra_info.update(
        requests_per_second=round(rate(own)),
        p50_ms=None if (p50 := merged.percentile(0.5)) is None else round(p50 * 1e3, 2),
        p99_ms=None if (p99 := merged.percentile(0.99)) is None else round(p99 * 1e3, 2),
        threads=merged.threads,
        rss_mb=round(merged.rss / 1e6, 1),
        cpu_us_per_rpc=round(merged.cpu_per_call * 1e6, 1),
        client_cpu_us_per_rpc=round(merged.client_cpu * 1e6, 1),
        goroutines_ratio=round(rate(samples[handler]["goroutines"]) / rate(own), 2),
        goroutines_ratio_target=TARGETS[handler].get(kind),
        threads_target=THREADS if kind == "goroutines" else None,
    )
