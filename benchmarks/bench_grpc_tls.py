"""The Greeter over TLS 1.3 at 100 RPCs at once: goroutines beside a thread pool and grpc.aio, the same client for all, in turn.

As bench_grpc.py; target: at least 4 times grpc.aio.  "plain" is the same server without TLS: what TLS costs.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench_grpc import CLOCK, QUICK_ROUNDS, ROUNDS
from benchmarks.grpc_peers import Peer, Sample, make_certificates

pytest.importorskip("grpc")
pytest.importorskip("cryptography")

CONCURRENCY = 100
WARM_UP, SECONDS = 0.5, 1.5
KINDS = {
    "threads-10": "threads-10",
    "aio": "aio",
    "compat": "compat",
    "goroutines": "goroutines",
    "plain": "goroutines",
}
TARGETS = {"aio": 4.0}


@pytest.fixture(scope="module")
def samples(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Sample]]:
    rounds = QUICK_ROUNDS if request.config.getoption("--quick", default=False) else ROUNDS
    tls: Path = make_certificates(tmp_path_factory.mktemp("tls"))
    peers = {name: Peer(kind, 0.0, None if name == "plain" else tls) for name, kind in KINDS.items()}
    result: dict[str, list[Sample]] = {name: [] for name in KINDS}
    try:
        for peer in peers.values():
            peer.measure(CONCURRENCY, WARM_UP, WARM_UP)
        for _ in range(rounds):
            for name, peer in peers.items():
                result[name].append(peer.measure(CONCURRENCY, WARM_UP, SECONDS))
    finally:
        for peer in peers.values():
            peer.close()
    return result


def rate(samples: list[Sample]) -> float:
    return statistics.median(sample.rate for sample in samples)


@pytest.mark.timeout(300)
@pytest.mark.benchmark(group=f"gRPC over TLS, {CONCURRENCY} RPCs, instant", timer=CLOCK)
@pytest.mark.parametrize("kind", KINDS)
def test_grpc_tls(kind: str, samples: dict[str, list[Sample]], request: pytest.FixtureRequest) -> None:
    own = samples[kind]
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
        rss_mb=round(merged.rss / 1e6, 1),
        cpu_us_per_rpc=round(merged.cpu_per_call * 1e6, 1),
        client_cpu_us_per_rpc=round(merged.client_cpu * 1e6, 1),
        goroutines_ratio=round(rate(samples["goroutines"]) / rate(own), 2),
        goroutines_ratio_target=TARGETS.get(kind),
    )
