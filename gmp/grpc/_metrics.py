"""What servers count, and its text in Prometheus's format.

A method's counts come from C as a triple: calls by code (0 to 16), calls by latency (up to 2, 4, 8 ... µs, the last one for all that is
longer), and the sum of the latencies in seconds.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import grpc

CODES = {code.value[0]: code.name for code in grpc.StatusCode}

Counts = tuple[tuple[int, ...], tuple[int, ...], float]


def bound(i: int, n: int) -> float:
    """The longest latency (seconds) of the i-th of n buckets."""
    return math.inf if i == n - 1 else 2.0 ** (i + 1) / 1e6


def text(servers: Iterable[tuple[dict[str, Any], dict[str, Counts]]]) -> str:
    """The figures of all servers together, each of them (stats, counts by method)."""
    totals = {"connections": 0, "streams": 0, "running": 0, "accepted": 0, "resets": 0}
    methods: dict[str, Counts] = {}
    abuse: dict[str, int] = {}
    for stats, counts in servers:
        for name in totals:
            totals[name] += stats[name]
        for reason, n in stats["abuse"].items():
            abuse[reason] = abuse.get(reason, 0) + n
        for path, (codes, buckets, seconds) in counts.items():
            if path in methods:
                codes = tuple(map(operator.add, codes, methods[path][0]))
                buckets = tuple(map(operator.add, buckets, methods[path][1]))
                seconds += methods[path][2]
            methods[path] = codes, buckets, seconds
    lines: list[str] = []
    for name, kind, about in (
        ("connections", "gauge", "Open connections."),
        ("streams", "gauge", "Open HTTP/2 streams."),
        ("running", "gauge", "Calls that run."),
    ):
        lines += family(f"gmp_grpc_{name}", kind, about, [("", totals[name])])
    lines += family("gmp_grpc_accepted_total", "counter", "Connections taken.", [("", totals["accepted"])])
    lines += family("gmp_grpc_resets_total", "counter", "Calls that clients reset.", [("", totals["resets"])])
    closed = [(f'{{reason="{reason}"}}', n) for reason, n in abuse.items()]
    lines += family("gmp_grpc_abuse_total", "counter", "Connections closed, and calls refused, for this.", closed)
    handled = [
        (f'{{method="{_escaped(path)}",code="{CODES[i]}"}}', n)
        for path, (codes, _, _) in methods.items()
        for i, n in enumerate(codes)
        if n
    ]
    lines += family("gmp_grpc_handled_total", "counter", "Calls that have ended, by method and code.", handled)
    lines += family("gmp_grpc_seconds", "histogram", "How long calls took.", ())
    for path, (_, buckets, seconds) in methods.items():
        label, total = f'method="{_escaped(path)}"', 0
        for i, n in enumerate(buckets):
            total += n
            le = "+Inf" if i == len(buckets) - 1 else f"{bound(i, len(buckets)):g}"
            lines.append(f'gmp_grpc_seconds_bucket{{{label},le="{le}"}} {total}')
        lines.append(f"gmp_grpc_seconds_sum{{{label}}} {seconds:.9f}")
        lines.append(f"gmp_grpc_seconds_count{{{label}}} {total}")
    return "\n".join(lines) + "\n"


def family(name: str, kind: str, about: str, samples: Iterable[tuple[str, Any]]) -> list[str]:
    return [
        f"# HELP {name} {about}",
        f"# TYPE {name} {kind}",
        *(f"{name}{labels} {value}" for labels, value in samples),
    ]


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
