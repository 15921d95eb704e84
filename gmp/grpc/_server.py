"""The native server: grpc.Server on the HTTP/2 engine of csrc/h2_*.c.

    Server      what users hold: ports, handlers, start, stop
    _State      what its goroutines share with it; they do not hold the Server, which therefore ends when it is forgotten
    _call.py    serving a call       _context.py  what a handler sees of it

A server's goroutines: one that dispatches, one per call; connections are native ones.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import grpc

import gmp
from gmp._core import GrpcServer
from gmp.grpc._call import Service, check_handlers
from gmp.grpc._context import Context
from gmp.grpc._ports import bind, files, remove

_LOGGER = logging.getLogger(__name__)

_MS = 1_000_000  # ns
_NEVER_MS = 2**31 - 1
_DEFAULTS: dict[str, Any] = {
    "grpc.max_receive_message_length": 4 << 20,
    "grpc.max_send_message_length": -1,
    "grpc.max_concurrent_streams": 0,
    "grpc.http2.lookahead_bytes": 256 << 10,
    "grpc.max_metadata_size": 8 << 10,
    "grpc.absolute_max_metadata_size": 16 << 10,
    "grpc.keepalive_time_ms": 7_200_000,
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.keepalive_permit_without_calls": 0,
    "grpc.http2.min_recv_ping_interval_without_data_ms": 300_000,
    "grpc.http2.min_ping_interval_without_data_ms": 300_000,
    "grpc.http2.max_ping_strikes": 2,
    "grpc.max_connection_idle_ms": _NEVER_MS,
    "grpc.max_connection_age_ms": _NEVER_MS,
    "grpc.max_connection_age_grace_ms": _NEVER_MS,
    "grpc.server_handshake_timeout_ms": 120_000,
    "grpc.so_reuseport": 1,
    "grpc.default_compression_algorithm": 0,
}


_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def _never(ms: int) -> int:
    return 0 if ms >= _NEVER_MS or ms <= 0 else ms * _MS


class _State:
    def __init__(self, core: Any) -> None:
        self.core = core
        self.lock = (
            threading.RLock()
        )  # guards what follows; nothing parks while it is held, but a signal handler may come
        self.stage = "new"
        self.events: list[threading.Event] = []
        self.terminated: gmp.Chan[None] = gmp.Chan()  # closed
        self.files: list[tuple[str, int]] = []  # of Unix sockets

    def dispatch(self) -> None:
        """Run in a goroutine, until the last connection has gone."""
        try:
            self.core.dispatch()
        finally:
            self.end()

    def drain(self) -> None:
        self.core.drain()
        remove(self.files)

    def end(self) -> None:
        with self.lock:
            self.stage = "stopped"
            events, self.events = self.events, []
        for event in events:
            event.set()
        self.terminated.close()

    def kill_after(self, grace: float) -> None:
        with contextlib.suppress(TimeoutError):
            self.terminated.recv_ok(timeout=max(grace, 0))
            return
        self.core.kill()


class Server(grpc.Server):  # type: ignore[misc]
    """A gRPC server.  gmp.grpc.server() makes one."""

    def __init__(
        self,
        handlers: Sequence[Any],
        interceptors: Sequence[Any],
        options: Sequence[tuple[str, Any]],
        maximum_concurrent_rpcs: int | None,
        compression: Any,
    ) -> None:
        check_handlers(handlers)
        known = {**_DEFAULTS, **dict(options)}
        self._service = Service(handlers, interceptors, known["grpc.max_send_message_length"])
        self._reuse_port = bool(known["grpc.so_reuseport"])
        self._core = GrpcServer(
            Context,
            self._service.serve,
            self._service.failed,
            **_arguments(known, maximum_concurrent_rpcs, compression),
        )
        self._service.core = self._core
        self._state = _State(self._core)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[Any]) -> None:
        handlers = list(generic_rpc_handlers)
        check_handlers(handlers)
        self._service.generic.extend(handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        if self._state.stage == "started":
            _LOGGER.warning("Cannot register method handlers once server has started")
            return
        for name, handler in method_handlers.items():
            self._service.registered[f"/{service_name}/{name}"] = handler

    def add_insecure_port(self, address: str) -> int:
        """Listen on host:port, [ipv6]:port or unix:path.  Returns the port; RuntimeError when it cannot be had."""
        try:
            sockets = bind(address, self._reuse_port)
        except (OSError, ValueError) as error:
            raise RuntimeError(f"Failed to bind to address {address}: {error}") from error
        port = 1 if sockets[0].family == socket.AF_UNIX else int(sockets[0].getsockname()[1])
        self._state.files += files(sockets)
        for sock in sockets:
            fd = sock.detach()
            try:
                self._core.listen(fd)
            except OSError:
                os.close(fd)
                raise
        return port

    def add_secure_port(self, address: str, server_credentials: Any) -> int:
        raise RuntimeError(
            "gmp.grpc.server cannot serve TLS: use gmp.grpc.compat_server, which takes grpc.ssl_server_credentials"
        )

    def start(self) -> None:
        state = self._state
        with state.lock:
            if state.stage != "new":
                raise ValueError("Cannot start already-started server!")
            state.stage = "started"
        self._core.start()
        gmp.go(state.dispatch)

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Park until the server has stopped.  True when the timeout (seconds) came first."""
        try:
            self._state.terminated.recv_ok(timeout=timeout)
        except TimeoutError:
            return True
        return False

    def stop(self, grace: float | None) -> threading.Event:
        """Stop: take no more calls, and end those under way after `grace` seconds; at once, and wait for it, when None.

        The event is set when all calls have ended.
        """
        state = self._state
        event = threading.Event()
        with state.lock:
            stage = state.stage
            if stage in ("new", "stopped"):
                state.stage = "stopped"
                event.set()
            else:
                state.stage = "grace"
                state.events.append(event)
        if event.is_set():
            if stage == "new":
                state.drain()
                state.terminated.close()
            return event
        state.drain()
        if grace is not None:
            gmp.go(state.kill_after, grace)
            return event
        state.core.kill()
        state.terminated.recv_ok()
        return event

    # -- what grpc.Server does not have --------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Numbers: connections and streams that are open, calls that run; since the start: accepted, calls, resets; and methods.

        methods: by path ("" for unknown ones) the codes its calls ended with, their number by latency (up to so many
        seconds, not cumulative), and the sum of their latencies.  A call counts when it has ended.
        """
        methods = {}
        for path, (codes, buckets, seconds) in self._core.methods().items():
            methods[path] = {
                "codes": {_CODES[i]: n for i, n in enumerate(codes) if n},
                "latencies": {_bound(i, len(buckets)): n for i, n in enumerate(buckets) if n},
                "seconds": seconds,
            }
        return {**self._core.stats(), "methods": methods}

    def connections(self) -> list[dict[str, Any]]:
        """The open connections: peer, age (seconds), streams under way, idle (seconds since something was received)."""
        names = ("peer", "age", "streams", "idle")
        return [dict(zip(names, values, strict=True)) for values in self._core.connections()]

    def access_log(self, log: Callable[[str, str, grpc.StatusCode, float], object] | None) -> None:
        """Have log(path, peer, code, seconds) called at the end of each call, in the call's goroutine; None: no longer."""
        if log is None:
            self._core.access_log(None)
        else:
            self._core.access_log(
                lambda path, peer, code, seconds: log(path, peer, getattr(grpc.StatusCode, _CODES[code]), seconds)
            )

    def metrics(self) -> str:
        """Return stats() as text in Prometheus's format."""
        stats = self.stats()
        lines = []
        for name, kind in (("connections", "gauge"), ("streams", "gauge"), ("running", "gauge"), ("resets", "counter")):
            lines += [f"# TYPE gmp_grpc_{name} {kind}", f"gmp_grpc_{name} {stats[name]}"]
        lines.append("# TYPE gmp_grpc_handled_total counter")
        for path, method in stats["methods"].items():
            for code, n in method["codes"].items():
                lines.append(f'gmp_grpc_handled_total{{method="{_escaped(path)}",code="{code}"}} {n}')
        lines.append("# TYPE gmp_grpc_seconds histogram")
        for path, method in stats["methods"].items():
            label, total = f'method="{_escaped(path)}"', 0
            for bound, n in method["latencies"].items():
                total += n
                if bound != math.inf:
                    lines.append(f'gmp_grpc_seconds_bucket{{{label},le="{bound:g}"}} {total}')
            lines.append(f'gmp_grpc_seconds_bucket{{{label},le="+Inf"}} {total}')
            lines.append(f"gmp_grpc_seconds_sum{{{label}}} {method['seconds']:.9f}")
            lines.append(f"gmp_grpc_seconds_count{{{label}}} {total}")
        return "\n".join(lines) + "\n"

    def __del__(self) -> None:
        state = getattr(self, "_state", None)
        if state is not None:
            with contextlib.suppress(RuntimeError):  # in the child of a fork it is none
                state.core.kill()
                remove(state.files)
            self._service.core = None


def _bound(i: int, n: int) -> float:
    return math.inf if i == n - 1 else 2.0 ** (i + 1) / 1e6


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _arguments(known: Mapping[str, Any], maximum: int | None, compression: Any) -> dict[str, Any]:
    return {
        "maximum": -1 if maximum is None else maximum,
        "compression": int(known["grpc.default_compression_algorithm"] if compression is None else compression),
        "max_recv": known["grpc.max_receive_message_length"],
        "max_send": known["grpc.max_send_message_length"],
        "max_streams": known["grpc.max_concurrent_streams"],
        "stream_window": min(max(known["grpc.http2.lookahead_bytes"], 1024), 2**31 - 1),
        "max_headers": max(known["grpc.max_metadata_size"], known["grpc.absolute_max_metadata_size"]),
        "keepalive_time": _never(known["grpc.keepalive_time_ms"]),
        "keepalive_timeout": known["grpc.keepalive_timeout_ms"] * _MS,
        "min_ping_interval": max(
            known["grpc.http2.min_recv_ping_interval_without_data_ms"],
            0,
        )
        * _MS,
        "max_ping_strikes": known["grpc.http2.max_ping_strikes"],
        "permit_without_calls": bool(known["grpc.keepalive_permit_without_calls"]),
        "max_idle": _never(known["grpc.max_connection_idle_ms"]),
        "max_age": _never(known["grpc.max_connection_age_ms"]),
        "max_age_grace": _never(known["grpc.max_connection_age_grace_ms"]),
        "handshake_timeout": _never(known["grpc.server_handshake_timeout_ms"]),
    }
