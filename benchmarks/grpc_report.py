"""`python -m benchmarks.grpc_report [--quick] [SCENARIO…]`: gRPC servers beside each other, as tables in Markdown.

Each server is a process of its own, and so is the load; the servers take turns, round by round, and medians are shown: what came out, and
the server's processor time for it.  At the end one table of all, and the targets with what was reached: ratios are the medians of the
rounds' ratios.  h2load (nghttp2-client), nghttpd (nghttp2-server) and grpc-go take part where they can be had.
"""

from __future__ import annotations

import argparse
import functools
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import grpc_load, grpc_streams
from benchmarks.grpc_peers import FULL, KINDS, METHOD, OTHERS, Peer, PeerError, make_certificates

ORDER = (
    "threads-10",
    "threads-100",
    "threads-1000",
    "aio",
    "aio-uvloop",
    "compat",
    "goroutines",
    "go-1",
    "go",
    "nghttpd",
    "echo",
)
NAMES = {kind: {**KINDS, **OTHERS}[kind] for kind in ORDER}
OURS = "goroutines"
HELLO = b"\0\0\0\0\x05\x0a\x03gmp"
MEGABYTE = 1_000_000
PARKED, PARKED_DELAY = 10_000, 60.0


@dataclass
class Result:
    value: float
    cpu: float  # the server's, µs an operation; 0: not measured
    threads: int = 0
    p99: float = 0.0


Measure = Callable[[Peer, float], Result]


def h2load(peer: Peer, seconds: float, path: str, body: bytes, streams: int, headers: tuple[str, ...] = ()) -> Result:
    """Calls a second, by one connection with so many calls at once."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        url = f"{'https' if peer.tls else 'http'}://127.0.0.1:{peer.port}{path}"
        more = [part for header in headers for part in ("-H", header)]
        command = ["h2load", "-c1", f"-m{streams}", "-t1", "-w30", "-W30", "-d", file.name, *more]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]

        def run(n: int) -> float:
            out = subprocess.run(
                [*command, f"-n{n}", url], capture_output=True, text=True, check=True, timeout=120
            ).stdout
            done = re.search(r"finished in .*?, ([\d.]+) req/s", out)
            if done is None or f"{n} succeeded, 0 failed, 0 errored" not in out:
                raise PeerError(f"h2load of {peer.kind}: {out}")
            return float(done[1])

        n = max(streams, 100)
        rate = peer.h2load_rate.get(path, 0.0)
        if not rate:
            run(n)
            rate = run(n)
            while n < rate * seconds / 3:  # until the guess is good enough
                n = int(rate * seconds / 2)
                rate = run(n)
        n = max(streams, 100, int(rate * seconds))
        cpu = peer.cpu()
        rate = peer.h2load_rate[path] = run(n)
        return Result(rate, (peer.cpu() - cpu) / n * 1e6)


def instant(peer: Peer, seconds: float) -> Result:
    return h2load(peer, seconds, "/grpc_load.py" if peer.kind == "nghttpd" else METHOD, HELLO, 100)


def full(peer: Peer, seconds: float) -> Result:
    return h2load(peer, seconds, METHOD, HELLO, 100, ("grpc-timeout: 10S", "x-request-id: 0123456789"))


def megabyte(peer: Peer, seconds: float) -> Result:
    data = b"\x0a" + b"\xc0\x84\x3d" + bytes(MEGABYTE)  # BytesValue
    body = b"\0" + len(data).to_bytes(4, "big") + data
    return h2load(peer, seconds, "/bench.Streams/Echo", body, 4)


def one_at_a_time(peer: Peer, seconds: float) -> Result:
    sample = peer.measure(1, 0.1, seconds)
    p50, p99 = sample.percentile(0.5), sample.percentile(0.99)
    assert p50 is not None
    assert p99 is not None
    return Result(p50 * 1e6, sample.cpu_per_call * 1e6, p99=p99 * 1e6)


def waiting(peer: Peer, seconds: float) -> Result:
    sample = peer.measure(1000, 0.2, max(seconds, 0.5))
    return Result(sample.rate, sample.cpu_per_call * 1e6, threads=sample.threads)


def parked(peer: Peer, seconds: float) -> Result:
    """So many calls wait in their handlers: bytes each, by a process that has served before, but none of them."""
    empty = b""
    warm = grpc_load.Connection(peer.port, "/bench.Streams/Echo", empty, empty, None)
    for _ in range(300):
        warm.start(0.0)
        warm.flush()
        while not warm.receive():
            pass
    _, before = peer.status()
    each = 1_000
    clients = [grpc_load.Connection(peer.port, METHOD, HELLO[5:], empty, None) for _ in range(PARKED // each)]
    for client in clients:
        for _ in range(each):
            if not client.start(0.0):
                raise PeerError("the window is too small")
        client.flush()
    calm, cpu, end = 0, peer.cpu(), time.monotonic() + 30
    while calm < 4:  # quarters of a second in which it has done nothing
        if time.monotonic() > end:
            raise PeerError("it does not come to rest")
        time.sleep(0.25)
        used, cpu = peer.cpu() - cpu, peer.cpu()
        calm = calm + 1 if used < 0.002 else 0
    threads, now = peer.status()
    for client in (warm, *clients):
        client.sock.close()
    return Result((now - before) / PARKED, 0.0, threads=threads)


def timed(load: Callable[[int, int, float], float], size: int) -> Measure:
    """What a client of grpc_streams.py measures, and the server's processor time meanwhile."""

    def measure(peer: Peer, seconds: float) -> Result:
        port = peer.port
        cpu, began = peer.cpu(), time.perf_counter()
        rate = load(port, size, seconds)
        return Result(rate, (peer.cpu() - cpu) / (rate * (time.perf_counter() - began)) * 1e6)

    return measure


@dataclass
class Scenario:
    title: str
    unit: str  # of the figure: "…/s", or less is better
    measure: Measure
    kinds: tuple[str, ...]
    delay: float = 0.0
    h2load: bool = False
    tls: bool = False
    fresh: bool = False  # a new process for each round


THREADS = ("threads-10", "threads-100", "threads-1000")
SCENARIOS = {
    "instant": Scenario(
        "instant, 100 on a connection", "calls/s", instant,
        (*THREADS, "aio", "aio-uvloop", "compat", OURS, "go-1", "go", "nghttpd"), h2load=True,
    ),
    "full": Scenario(
        "the same with interceptor, metadata, deadline", "calls/s", full,
        tuple(kind + FULL for kind in ("threads-10", "aio", "compat", OURS)), h2load=True,
    ),
    "one": Scenario("one call at a time, p50", "µs", one_at_a_time, ("threads-10", "aio", "compat", OURS, "go-1")),
    "waiting": Scenario(
        "handlers wait 50 ms, 1,000 at once", "calls/s", waiting,
        ("threads-1000", "aio", "aio-uvloop", "compat", OURS, "go-1"), delay=0.05,
    ),
    "parked": Scenario(
        f"{PARKED:,} parked, each", "bytes", parked, ("aio", OURS, "go-1"), delay=PARKED_DELAY, fresh=True
    ),
    "stream": Scenario(
        "server streaming of 1,000", "messages/s", timed(grpc_streams.count, 1000),
        ("threads-10", "aio", "aio-uvloop", "compat", OURS, "go-1"),
    ),
    "pingpong": Scenario(
        "bidi ping-pong, one stream", "messages/s", timed(grpc_streams.ping_pong, 1),
        ("threads-10", "aio", "aio-uvloop", "compat", OURS, "go-1", "echo"),
    ),
    "pingpong100": Scenario(
        "bidi ping-pong, 100 streams", "messages/s", timed(grpc_streams.ping_pong, 100),
        ("threads-100", "aio", "aio-uvloop", "compat", OURS, "go-1", "echo"),
    ),
    "megabyte": Scenario("1 MB echo, 4 at once", "calls/s", megabyte, ("threads-10", "aio", "compat", OURS, "go-1"), h2load=True),
    "tls": Scenario(
        "instant over TLS 1.3, 100 on a connection", "calls/s", instant,
        ("threads-10", "aio", "compat", OURS, "go-1"), h2load=True, tls=True,
    ),
}  # fmt: skip


@dataclass
class Target:
    """What gmp.grpc.server's figure is to be: at least (rates) or at most `limit`, or `limit` times another server's."""

    scenario: str
    limit: float
    than: str | None = None
    of: str = "value"  # or cpu, threads

    @property
    def more(self) -> bool:
        """More is better."""
        return self.of == "value" and SCENARIOS[self.scenario].unit.endswith("/s")

    def text(self) -> str:
        what = {"value": SCENARIOS[self.scenario].unit, "cpu": "µs of CPU", "threads": "threads"}[self.of]
        sign = "≥" if self.more else "≤"
        if self.than is None:
            return f"{sign} {self.limit:,g} {what}"
        limit = f"{self.limit:g}x" if self.limit >= 0.5 else f"1/{1 / self.limit:g} of"
        return f"{what} {sign} {limit} {NAMES[self.than]}"

    def met(self, got: float) -> bool:
        return got >= self.limit if self.more else got <= self.limit

    def got(self, results: dict[str, list[Result] | str]) -> float | None:
        """None when it was not measured."""
        suffix = FULL if OURS + FULL in results else ""
        own, other = results.get(OURS + suffix), results.get((self.than or OURS) + suffix)
        if not isinstance(own, list) or not isinstance(other, list) or not own or not other:
            return None
        figures = [float(getattr(r, self.of)) for r in own]
        if self.than is not None:
            figures = [a / b for a, b in zip(figures, (float(getattr(r, self.of)) for r in other), strict=False) if b]
        return statistics.median(figures) if figures else None


TARGETS = [
    Target("instant", 100_000),
    Target("instant", 10, of="cpu"),  # 100,000 calls/s on one core
    Target("instant", 1, "go-1"),
    Target("instant", 1, "go-1", "cpu"),
    Target("full", 6, "aio"),
    Target("full", 8, "threads-10"),
    Target("full", 1 / 6, "aio", "cpu"),
    Target("full", 1 / 8, "threads-10", "cpu"),
    Target("one", 0.5, "threads-10"),
    Target("one", 0.5, "aio"),
    Target("waiting", 18_000),
    Target("waiting", 11, of="threads"),
    Target("parked", 12_288),
    Target("stream", 5, "aio"),
    Target("stream", 0.2, "aio", "cpu"),
    Target("pingpong", 5, "aio"),
    Target("pingpong", 0.2, "aio", "cpu"),
    Target("pingpong100", 5, "aio"),
    Target("pingpong100", 0.2, "aio", "cpu"),
    Target("megabyte", 0.8, "threads-10"),
    Target("tls", 4, "aio"),
    Target("tls", 0.25, "aio", "cpu"),
]

ROUNDS, SECONDS = 5, 0.7
QUICK_ROUNDS, QUICK_SECONDS = 3, 0.25

Results = dict[str, list[Result] | str]  # by kind: its rounds, or why there are none


@functools.cache
def certificates() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="gmp-bench-")
    make_certificates(Path(folder.name))
    return folder


def why_not(scenario: Scenario) -> str | None:
    if scenario.h2load and shutil.which("h2load") is None:
        return "no h2load: install nghttp2-client"
    if scenario.tls:
        try:
            certificates()
        except ImportError as error:
            return f"no certificates: {error}"
    return None


def race(scenario: Scenario, rounds: int, seconds: float) -> Results:
    """Every server's rounds, in turn; or why it has none."""
    peers: dict[str, Peer] = {}
    results: Results = {}
    if (reason := why_not(scenario)) is not None:
        return dict.fromkeys(scenario.kinds, reason)

    def start(kind: str) -> Peer:
        return Peer(kind, scenario.delay, Path(certificates().name) if scenario.tls else None)

    try:
        for kind in scenario.kinds:
            try:
                peers[kind] = start(kind)
                results[kind] = []
            except (FileNotFoundError, PeerError) as error:
                results[kind] = str(error)
        for lap in range(rounds):
            for kind in peers:
                own = results[kind]
                if isinstance(own, list):
                    try:
                        if scenario.fresh and lap != 0:
                            peers[kind].close()
                            peers[kind] = start(kind)
                        own.append(scenario.measure(peers[kind], seconds))
                    except (PeerError, grpc_load.LoadError, OSError, subprocess.SubprocessError) as error:
                        results[kind] = f"failed: {str(error).splitlines()[0]}"
    finally:
        for peer in peers.values():
            peer.close()
    return results


# -- tables ------------------------------------------------------------------------------------------------------------


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def median(results: list[Result], of: str) -> float:
    return statistics.median(float(getattr(r, of)) for r in results)


def table(scenario: Scenario, results: Results) -> Iterator[str]:
    yield f"\n| {scenario.title} | {scenario.unit} | server's CPU, µs each | |\n|---|---:|---:|---|"
    for kind, found in results.items():
        title = NAMES[kind.removesuffix(FULL)]
        if isinstance(found, str):
            yield f"| {title} | | | {found} |"
            continue
        cpu, p99, threads = median(found, "cpu"), median(found, "p99"), int(max(r.threads for r in found))
        notes = [f"p99 {p99:,.0f}"] if p99 else []
        notes += [f"{threads} threads"] if threads else []
        yield f"| {title} | {short(median(found, 'value'))} | {short(cpu) if cpu else ''} | {', '.join(notes)} |"


def compact(all_results: dict[str, Results]) -> Iterator[str]:
    """A row per scenario, a column per server."""
    kinds = [kind for kind in NAMES if any(kind in r or kind + FULL in r for r in all_results.values())]
    yield "\nThe figure and, in brackets, the server's µs of processor time for each:"
    yield f"\n| | {' | '.join(NAMES[kind] for kind in kinds)} |\n|---|{'---:|' * len(kinds)}"
    for name, results in all_results.items():
        cells = []
        for kind in kinds:
            found = results.get(kind, results.get(kind + FULL, ""))
            if isinstance(found, str):
                cells.append("")
                continue
            cpu = median(found, "cpu")
            cells.append(short(median(found, "value")) + (f" ({short(cpu)})" if cpu else ""))
        yield f"| {SCENARIOS[name].title}, {SCENARIOS[name].unit} | {' | '.join(cells)} |"


def targets(all_results: dict[str, Results]) -> Iterator[str]:
    yield "\n| gmp.grpc.server | target | got | |\n|---|---|---:|---|"
    for target in TARGETS:
        if target.scenario not in all_results:
            continue
        got = target.got(all_results[target.scenario])
        verdict = "not measured" if got is None else "met" if target.met(got) else "missed"
        yield f"| {SCENARIOS[target.scenario].title} | {target.text()} | {'' if got is None else short(got)} | {verdict} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 short rounds instead of 5")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    options = parser.parse_args()
    for name in options.scenarios:
        if name not in SCENARIOS:
            parser.error(f"no scenario {name!r}: there are {', '.join(SCENARIOS)}")
    results: dict[str, Results] = {}
    for name in options.scenarios or SCENARIOS:
        rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if options.quick else (ROUNDS, SECONDS)
        results[name] = race(SCENARIOS[name], 1 if options.quick and SCENARIOS[name].fresh else rounds, seconds)
        print(*table(SCENARIOS[name], results[name]), sep="\n", flush=True)
    print(*compact(results), *targets(results), sep="\n")


if __name__ == "__main__":
    main()
