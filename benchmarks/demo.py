"""make demo: the talk's goroutines, one Greeter call, then the Greeter on goroutines against thread pools and asyncio.

    python -m benchmarks.demo [--quick]

All servers live in processes of their own and are loaded in turn, round by round, by one and the same client (grpc_load.py).
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # run as a file; appended, so that an installed gmp comes before the source tree's
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.grpc_peers import KINDS, Peer, PeerError, Sample, greeter

HANDLERS = {0.05: "waits 50 ms", 0.0: "at once"}
CONCURRENCY = (1, 100, 1000)
ROUNDS = 2
WARM_UP, SECONDS = 0.35, 1.15

HEADINGS = ("handler", "RPCs at once", "server", "req/s", "p50 ms", "p99 ms", "threads", "RSS MB", "CPU µs/RPC")


def display(s: str) -> None:
    import gmp

    for i in range(10):
        print(s, i)
        gmp.gosched()


def hello_goroutine() -> None:
    """The talk's first program: two goroutines take turns."""
    import gmp

    for goroutine in (gmp.go(display, "hello"), gmp.go(display, "world")):
        goroutine.join()


def greet() -> None:
    """Serve the Greeter on goroutines and call it through a generated stub."""
    import grpc

    import gmp
    import gmp.grpc
    from gmp.protos import helloworld_pb2, helloworld_pb2_grpc

    server = gmp.grpc.server()
    helloworld_pb2_grpc.add_GreeterServicer_to_server(greeter(gmp.sleep, 0.05), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = helloworld_pb2_grpc.GreeterStub(channel)
        reply = stub.SayHello(helloworld_pb2.HelloRequest(name="goroutine"), timeout=10)
        print(f'SayHello(name: "goroutine") at 127.0.0.1:{port} -> message: "{reply.message}"')
    server.stop(1).wait(10)


class Progress:
    """One line that is written over on a terminal; a line now and then elsewhere."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.terminal = sys.stdout.isatty()
        self.last = 0.0

    def step(self, what: str) -> None:
        if self.terminal:
            print(f"\r\x1b[K[{self.done + 1}/{self.total}] {what}", end="", flush=True)
        elif time.monotonic() - self.last > 5 or self.done + 1 == self.total:
            print(f"[{self.done + 1}/{self.total}] {what}", flush=True)
            self.last = time.monotonic()
        self.done += 1

    def clear(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", flush=True)


Results = dict[tuple[float, int, str], Sample]


def measure(rounds: int, seconds: float) -> Results:
    """Load every server with every concurrency; concurrency rises, so that threads and memory are those it brought about."""
    results: Results = {}
    progress = Progress(rounds * len(HANDLERS) * len(CONCURRENCY) * len(KINDS))
    with contextlib.ExitStack() as stack:
        peers = {(delay, kind): stack.enter_context(Peer(kind, delay)) for delay in HANDLERS for kind in KINDS}
        for concurrency in CONCURRENCY:
            for _ in range(rounds):
                for delay, handler in HANDLERS.items():
                    for kind, name in KINDS.items():
                        progress.step(f"{name}, handler {handler}, {concurrency:,} RPCs at once")
                        sample = results.setdefault((delay, concurrency, kind), Sample())
                        sample.add(peers[delay, kind].measure(concurrency, WARM_UP, seconds))
    progress.clear()
    return results


def milliseconds(value: float | None, seconds: float) -> str:
    if value is None:
        return f">{seconds * 1000:,.0f}"
    return f"{value * 1000:,.1f}" if value >= 0.01 else f"{value * 1000:.2f}"


def rows(results: Results, seconds: float) -> Iterator[tuple[str, ...]]:
    for delay, handler in HANDLERS.items():
        for concurrency in CONCURRENCY:
            for kind, name in KINDS.items():
                sample = results[delay, concurrency, kind]
                yield (
                    handler,
                    f"{concurrency:,}",
                    name,
                    f"{sample.rate:,.0f}",
                    milliseconds(sample.percentile(0.5), seconds),
                    milliseconds(sample.percentile(0.99), seconds),
                    str(sample.threads),
                    f"{sample.rss / 1e6:.0f}",
                    f"{sample.cpu_per_call * 1e6:,.0f}",
                )
            yield ()


def print_table(table: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in table if row) for i in range(len(HEADINGS))]
    for row in table:
        cells = [c.ljust(w) if i in (0, 2) else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=False))]
        print("  ".join(cells).rstrip())


def summary(results: Results) -> Iterator[str]:
    most = CONCURRENCY[-1]
    for delay, handler in HANDLERS.items():
        own = results[delay, most, "goroutines"]
        others = ", ".join(
            f"{own.rate / results[delay, most, kind].rate:.2f}x {name}"
            for kind, name in KINDS.items()
            if kind != "goroutines"
        )
        yield f"{most:,} RPCs at once, handler {handler}: goroutines serve {others}, with {own.threads} threads."
    client = max(sample.client_cpu for sample in results.values() if sample.calls > 1000)
    yield f"The client, the same for all, took {client * 1e6:.0f} µs of processor time per RPC at most."


def check() -> str | None:
    """Return what is missing for the demo."""
    try:
        import gmp
    except ImportError as error:
        return f"gmp cannot be imported ({error}); run make demo, which builds it"
    try:
        import gmp.grpc
        import gmp.protos.helloworld_pb2_grpc  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


def run(arguments: list[str]) -> None:
    rounds, seconds = (1, 0.5) if "--quick" in arguments else (ROUNDS, SECONDS)
    print("Two goroutines, as in the talk's hello_goroutine.go:\n", flush=True)
    hello_goroutine()
    print("\nThe Greeter on goroutines:\n", flush=True)
    greet()
    print("\nThe Greeter under load, for a minute and a half at most:\n", flush=True)
    results = measure(rounds, seconds)
    print_table([HEADINGS, *rows(results, seconds)])
    print(*summary(results), sep="\n")


def main(arguments: list[str] | None = None) -> Any:
    missing = check()
    if missing:
        return f"demo: {missing}"
    try:
        run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("\ninterrupted")
        return 130
    except PeerError as error:
        return f"\ndemo: {error}"
    return 0


if __name__ == "__main__":
    sys.exit(main())
