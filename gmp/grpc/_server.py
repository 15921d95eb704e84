"""The native server: grpc.Server on the HTTP/2 engine of csrc/h2_*.c.

    Server      what users hold: ports, handlers, start, stop
    _State      what its goroutines share with it; they do not hold the Server, which therefore ends when it is forgotten
    _call.py    serving a call       _context.py  what a handler sees of it

A server's goroutines: one that dispatches, one per call; connections are native ones.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import grpc

import gmp
from gmp._core import GrpcServer
from gmp.grpc import _metrics
from gmp.grpc._call import Service, check_handlers
from gmp.grpc._context import Context
from gmp.grpc._credentials import ServerCredentials
from gmp.grpc._ports import bind, files, remove

_LOGGER = logging.getLogger(__name__)
_ABUSE = logging.getLogger("gmp.grpc")

_MS = 1_000_000  # ns
_NEVER_MS = 2**31 - 1
_DEFAULTS: dict[str, Any] = {
    "grpc.max_receive_message_length": 4 << 20,
    "grpc.max_send_message_length": -1,
    "grpc.max_concurrent_streams": 100_000,
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
    "gmp.max_rapid_resets": 1_000,
    "gmp.max_useless_frames": 10_000,
    "gmp.max_buffered_bytes": 512 << 20,
    "gmp.header_timeout_ms": 20_000,
    "gmp.write_timeout_ms": 120_000,
}


_COMPRESSIONS = (0, 1, 2)  # grpc.Compression's


def _int(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"server(): {name} must be an int, not {type(value).__name__}") from None


def _seconds(name: str, value: Any) -> float:
    """As grpcio, take those below 0 for 0."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number of seconds or None, not {value!r}")
    return max(0.0, float(value))  # in this order: 0.0 for NaN


def _checked(options: Iterable[Any]) -> dict[str, Any]:
    """Return the values of the options that are known; others are ignored, as grpcio does."""
    known = dict(_DEFAULTS)
    for option in options.items() if isinstance(options, Mapping) else options:
        if not isinstance(option, Sequence) or len(option) != 2 or not isinstance(option[0], (str, bytes)):
            raise TypeError(f"server(): options must be pairs of a name and a value, not {option!r}")
        name = option[0].decode() if isinstance(option[0], bytes) else option[0]
        if name not in known:
            continue
        value = known[name] = _int(f"the option {name}", option[1])
        most = 2**63 - 1 if name == "gmp.max_buffered_bytes" else 2**31 - 1
        if not -(2**31) <= value <= most:
            raise ValueError(f"server(): the option {name} must be from {-(2**31)} to {most}, not {value}")
    if known["grpc.default_compression_algorithm"] not in _COMPRESSIONS:
        raise ValueError(
            "server(): the option grpc.default_compression_algorithm must be 0, 1 or 2, as grpc.Compression's members are"
        )
    return known


def _never(ms: int) -> int:
    return 0 if ms >= _NEVER_MS or ms <= 0 else ms * _MS


_servers: weakref.WeakSet[Server] = weakref.WeakSet()


def _all_metrics() -> str:
    figures = []
    for server in list(_servers):
        with contextlib.suppress(RuntimeError):  # the parent's, in the child of a fork
            figures.append((server._core.stats(), server._core.methods()))
    return _metrics.text(figures)


gmp.runtime._metrics_of_others.append(_all_metrics)


class _State:
    def __init__(self, core: Any) -> None:
        self.core = core
        self.lock = (
            threading.RLock()
        )  # guards what follows; nothing parks while it is held, but a signal handler may come
        self.stage = "new"
        self.events: list[threading.Event] = []
        self.terminated: gmp.Chan[None] = gmp.Chan()  # closed
        self.dynamic: list[ServerCredentials] = []  # whose certificates are asked for at each new connection
        self.files: list[tuple[str, int]] = []  # of Unix sockets

    def dispatch(self) -> None:
        """Run in a goroutine, until the last connection has gone."""
        try:
            self.core.dispatch()
        finally:
            self.end()

    def notice(self) -> None:
        """Run in a goroutine when the engine has something to say."""
        while line := self.core.warning():
            _ABUSE.warning("%s", line)
        for credentials in self.dynamic:
            credentials._serve_waiting()

    def drain(self) -> None:
        self.core.drain()
        remove(self.files)

    def end(self) -> None:
        with self.lock:
            self.stage = "stopped"
            events, self.events = self.events, []
        self.core.on_notice(None)
        for event in events:
            event.set()
        self.terminated.close()

    def kill_after(self, grace: float) -> None:
        with contextlib.suppress(TimeoutError):
            self.terminated.recv_ok(timeout=grace)
            return
        self.core.kill()


class Server(grpc.Server):  # type: ignore[misc]
    """A gRPC server.  gmp.grpc.server() makes one."""

    def __init__(
        self,
        handlers: Sequence[Any],
        interceptors: Sequence[Any],
        options: Iterable[Any],
        maximum_concurrent_rpcs: int | None,
        compression: Any,
    ) -> None:
        check_handlers(handlers)
        known = _checked(options)
        if maximum_concurrent_rpcs is not None and _int("maximum_concurrent_rpcs", maximum_concurrent_rpcs) < 0:
            raise ValueError(
                f"server(): maximum_concurrent_rpcs must be 0 or more, or None, not {maximum_concurrent_rpcs}"
            )
        if compression is not None and compression not in _COMPRESSIONS:
            raise TypeError(f"server(): compression must be a grpc.Compression or None, not {compression!r}")
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
        _servers.add(self)
        self._core.on_notice(self._state.notice)

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
        return self._listen(address, None)

    def add_secure_port(self, address: str, server_credentials: Any) -> int:
        """The same with TLS: what gmp.grpc.ssl_server_credentials() returns."""
        if not isinstance(server_credentials, ServerCredentials):
            raise TypeError(
                "add_secure_port takes what gmp.grpc.ssl_server_credentials() or dynamic_ssl_server_credentials() returns, not "
                f"{type(server_credentials).__module__}.{type(server_credentials).__qualname__}: the keys in grpcio's objects can be "
                "seen by grpcio only; they have the same arguments (or use gmp.grpc.compat_server, which takes those too)"
            )
        try:
            tls = server_credentials._native()
        except ValueError as error:
            raise RuntimeError(f"Failed to bind to address {address}: {error}") from error
        port = self._listen(address, tls)
        if server_credentials._fetcher is not None and server_credentials not in self._state.dynamic:
            self._state.dynamic.append(server_credentials)
        return port

    def _listen(self, address: str, tls: Any) -> int:
        if self._state.stage in ("grace", "stopped"):
            raise RuntimeError(f"Failed to bind to address {address}: the server has stopped; make another one")
        try:
            sockets = bind(address, self._reuse_port)
        except (OSError, ValueError) as error:
            raise RuntimeError(f"Failed to bind to address {address}: {error}") from error
        port = 1 if sockets[0].family == socket.AF_UNIX else int(sockets[0].getsockname()[1])
        self._state.files += files(sockets)
        for sock in sockets:
            fd = sock.detach()
            try:
                self._core.listen(fd, tls)
            except OSError:
                os.close(fd)
                raise
        return port

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
        if timeout is not None:
            timeout = _seconds("wait_for_termination(): timeout", timeout)
        try:
            self._state.terminated.recv_ok(timeout=timeout)
        except TimeoutError:
            return True
        return False

    def stop(self, grace: float | None) -> threading.Event:
        """Stop: take no more calls, and end those under way after `grace` seconds; at once, and wait for it, when None.

        The event is set when all calls have ended.
        """
        if grace is not None:
            grace = _seconds("stop(): grace", grace)
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
        """Numbers: connections and streams that are open, calls that run; since the start: accepted, calls, resets, abuse; and methods.

        abuse: why connections were closed, or calls refused, and how often.

        methods: by path ("" for unknown ones) the codes its calls ended with, their number by latency (up to so many
        seconds, not cumulative), and the sum of their latencies.  A call counts when it has ended.
        """
        methods = {}
        for path, (codes, buckets, seconds) in self._core.methods().items():
            methods[path] = {
                "codes": {_metrics.CODES[i]: n for i, n in enumerate(codes) if n},
                "latencies": {_metrics.bound(i, len(buckets)): n for i, n in enumerate(buckets) if n},
                "seconds": seconds,
            }
        return {**self._core.stats(), "methods": methods}

    def connections(self) -> list[dict[str, Any]]:
        """The open connections, and what went over each of them since it was opened; named as in channelz where it has that.

        local, remote: addresses, as context.peer() has them; security: None or TLS's {"version", "cipher"}, empty during its handshake.
        streams: calls under way; streams_started, streams_succeeded (their end was sent, whatever the status), streams_failed (reset,
        or the connection was lost).  messages_sent, messages_received; bytes_sent, bytes_received: HTTP/2's, without what TLS adds;
        keep_alives_sent: pings.  Seconds: age; idle (since something was received), last_call (since the last call began, or None).
        """
        return self._core.connections()

    def channelz(self) -> str:
        """Return as text what the server and its connections have done so far, a connection a line."""
        stats, connections = self.stats(), self.connections()
        codes = [method["codes"] for method in stats["methods"].values()]
        ended, well = sum(sum(n.values()) for n in codes), sum(n.get("OK", 0) for n in codes)
        abuse = ", ".join(f"{n} {why}" for why, n in stats["abuse"].items()) or "none"
        lines = [
            f"server {self._state.stage}: {stats['running']} calls running, {well} succeeded, {ended - well} failed; "
            f"{stats['accepted']} connections accepted, {len(connections)} open; abuse: {abuse}"
        ]
        for c in sorted(connections, key=operator.itemgetter("age"), reverse=True):
            security = (
                "no TLS" if c["security"] is None else " ".join(c["security"].values()).strip() or "TLS handshake"
            )
            last = "none" if c["last_call"] is None else f"{c['last_call']:.1f} s ago"
            lines.append(
                f"{c['remote']} to {c['local']}, {security}: "
                f"open for {c['age']:.1f} s, idle for {c['idle']:.1f} s, last call {last}; "
                f"streams {c['streams']} open, {c['streams_started']} started, {c['streams_succeeded']} succeeded, "
                f"{c['streams_failed']} failed; messages {c['messages_received']} in, {c['messages_sent']} out; "
                f"bytes {c['bytes_received']} in, {c['bytes_sent']} out; keepalives {c['keep_alives_sent']}"
            )
        return "\n".join(lines) + "\n"

    def access_log(self, log: Callable[[str, str, grpc.StatusCode, float], object] | None) -> None:
        """Have log(path, peer, code, seconds) called when a call has ended; None: no longer.

        It may park: the client has its answer already, and it runs in the call's goroutine, or in one of its own where that one has gone
        or never was.
        """
        if log is not None and not callable(log):
            raise TypeError(f"access_log() takes a callable or None, not {type(log).__name__}")
        if log is None:
            self._core.access_log(None)
        else:
            self._core.access_log(
                lambda path, peer, code, seconds: log(
                    path, peer, getattr(grpc.StatusCode, _metrics.CODES[code]), seconds
                )
            )

    def metrics(self) -> str:
        """Return stats() as text in Prometheus's format.  gmp.runtime.metrics() has all servers, and the scheduler."""
        return _metrics.text([(self._core.stats(), self._core.methods())])

    def __del__(self) -> None:
        state = getattr(self, "_state", None)
        if state is not None:
            with contextlib.suppress(RuntimeError):  # in the child of a fork it is none
                state.core.kill()
                remove(state.files)
            if state.stage == "new":
                state.core.on_notice(None)
            self._service.core = None


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
        "max_resets": max(known["gmp.max_rapid_resets"], 0),
        "max_frames": max(known["gmp.max_useless_frames"], 0),
        "max_buffered": max(known["gmp.max_buffered_bytes"], 0),
        "header_timeout": _never(known["gmp.header_timeout_ms"]),
        "write_timeout": _never(known["gmp.write_timeout_ms"]),
    }
