"""`python -m benchmarks.grpc_report [--quick] [SCENARIO…]`: gRPC servers beside each other, one table in Markdown.

Each server is a process of its own, and so is the load; the servers take turns, round by round, and medians are shown: what came out, and
the server's processor time for it.  h2load (nghttp2-client), nghttpd (nghttp2-server) and grpc-go take part where they can be had.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import grpc_load, grpc_streams
from benchmarks.grpc_peers import FULL, KINDS, METHOD, OTHERS, Peer, PeerError

NAMES = {**KINDS, **OTHERS}
HELLO = b"\0\0\0\0\x05\x0a\x03gmp"
MEGABYTE = 1_000_000


@dataclass
class Result:
    value: float
    cpu: float  # the server's, µs an operation
    note: str = ""


Measure = Callable[[Peer, float], Result]


def h2load(peer: Peer, seconds: float, path: str, body: bytes, streams: int, headers: tuple[str, ...] = ()) -> Result:
    """Calls a second, by one connection with so many calls at once."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        url = f"http://127.0.0.1:{peer.port}{path}"
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
        rate = run(n)
        while n < rate * seconds / 3:  # until the guess is good enough
            n = int(rate * seconds / 2)
            rate = run(n)
        n = max(n, int(rate * seconds))
        cpu = peer.cpu()
        rate = run(n)
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
    sample = peer.measure(1, 0.2, seconds)
    p50, p99 = sample.percentile(0.5), sample.percentile(0.99)
    assert p50 is not None
    return Result(p50 * 1e6, sample.cpu_per_call * 1e6, f"p99 {p99 * 1e6:,.0f}" if p99 is not None else "")


def waiting(peer: Peer, seconds: float) -> Result:
    sample = peer.measure(1000, 0.3, seconds)
    return Result(sample.rate, sample.cpu_per_call * 1e6, f"{sample.threads} threads")


def parked(peer: Peer, seconds: float) -> Result:
    """10,000 calls wait in their handlers: bytes each."""
    n, each = 10_000, 1_000
    peer.measure(10, 0.1, 4.0)  # it has served before
    _, before = peer.status()
    reply = b"\x0a\x0bHello, gmp!"
    clients = [grpc_load.Connection(peer.port, METHOD, b"\x0a\x03gmp", reply, None) for _ in range(n // each)]
    now = time.perf_counter()
    for client in clients:
        for _ in range(each):
            if not client.start(now):
                raise PeerError("the window is too small")
        client.flush()
    most = 0
    while time.perf_counter() - now < 2.5:
        most = max(most, peer.status()[1])
        time.sleep(0.05)
    for client in clients:
        client.sock.close()
    return Result((most - before) / n, 0.0)


def stream(peer: Peer, seconds: float) -> Result:
    cpu, began = peer.cpu(), time.perf_counter()
    rate = grpc_streams.count(peer.port, 1000, seconds)
    return Result(rate, (peer.cpu() - cpu) / (rate * (time.perf_counter() - began)) * 1e6)


def ping_pong(peer: Peer, seconds: float) -> Result:
    cpu, began = peer.cpu(), time.perf_counter()
    rate = grpc_streams.ping_pong(peer.port, 200, seconds)
    return Result(rate, (peer.cpu() - cpu) / (rate * (time.perf_counter() - began)) * 1e6)


@dataclass
class Scenario:
    title: str
    unit: str
    measure: Measure
    kinds: tuple[str, ...]
    delay: float = 0.0
    h2load: bool = False
    rounds: int = 0  # 0: as many as asked for


THREADS = ("threads-10", "threads-100", "threads-1000")
SCENARIOS = {
    "instant": Scenario(
        "instant, 100 on a connection", "calls/s", instant,
        (*THREADS, "aio", "aio-uvloop", "compat", "goroutines", "go-1", "go", "nghttpd"), h2load=True,
    ),
    "full": Scenario(
        "the same with interceptor, metadata, deadline", "calls/s", full,
        tuple(kind + FULL for kind in ("threads-10", "aio", "compat", "goroutines")), h2load=True,
    ),
    "one": Scenario("one call at a time, p50", "µs", one_at_a_time, ("threads-10", "aio", "compat", "goroutines", "go-1")),
    "waiting": Scenario(
        "handlers wait 50 ms, 1,000 at once", "calls/s", waiting,
        ("threads-1000", "aio", "aio-uvloop", "compat", "goroutines", "go-1"), delay=0.05,
    ),
    "parked": Scenario("10,000 parked, each", "bytes", parked, ("aio", "goroutines", "go-1"), delay=3.0, rounds=1),
    "stream": Scenario(
        "server streaming of 1,000", "messages/s", stream, ("threads-10", "aio", "aio-uvloop", "compat", "goroutines", "go-1")
    ),
    "pingpong": Scenario("bidi ping-pong", "messages/s", ping_pong, ("threads-10", "aio", "compat", "goroutines", "go-1")),
    "megabyte": Scenario("1 MB echo, 4 at once", "calls/s", megabyte, ("threads-10", "aio", "compat", "goroutines", "go-1"), h2load=True),
}  # fmt: skip


def race(scenario: Scenario, rounds: int, seconds: float) -> dict[str, list[Result] | str]:
    """Every server's rounds, in turn; or why it has none."""
    peers: dict[str, Peer] = {}
    results: dict[str, list[Result] | str] = {}
    if scenario.h2load and shutil.which("h2load") is None:
        return dict.fromkeys(scenario.kinds, "no h2load: install nghttp2-client")
    try:
        for kind in scenario.kinds:
            try:
                peers[kind] = Peer(kind, scenario.delay)
                results[kind] = []
            except (FileNotFoundError, PeerError) as error:
                results[kind] = str(error)
        for _ in range(scenario.rounds or rounds):
            for kind, peer in peers.items():
                own = results[kind]
                if isinstance(own, list):
                    try:
                        own.append(scenario.measure(peer, seconds))
                    except (PeerError, grpc_load.LoadError, OSError, subprocess.SubprocessError) as error:
                        results[kind] = f"failed: {str(error).splitlines()[0]}"
    finally:
        for peer in peers.values():
            peer.close()
    return results


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(names: list[str], rounds: int, seconds: float) -> None:
    for name in names:
        scenario = SCENARIOS[name]
        print(f"\n| {scenario.title} | {scenario.unit} | server's CPU, µs each | |\n|---|---:|---:|---|")
        for kind, found in race(scenario, rounds, seconds).items():
            title = NAMES[kind.removesuffix(FULL)]
            if isinstance(found, str):
                print(f"| {title} | | | {found} |")
                continue
            value = statistics.median(r.value for r in found)
            cpu = statistics.median(r.cpu for r in found)
            print(f"| {title} | {short(value)} | {short(cpu) if cpu else ''} | {found[-1].note} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 short rounds instead of 5")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    options = parser.parse_args()
    for name in options.scenarios:
        if name not in SCENARIOS:
            parser.error(f"no scenario {name!r}: there are {', '.join(SCENARIOS)}")
    table(options.scenarios or list(SCENARIOS), *((3, 0.4) if options.quick else (5, 1.0)))


if __name__ == "__main__":
    main()
