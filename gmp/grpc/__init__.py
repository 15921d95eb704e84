"""gmp.grpc: gRPC servers whose handlers run as goroutines, and channels on which a goroutine's calls park.

    import gmp.grpc

    server = gmp.grpc.server()
    helloworld_pb2_grpc.add_GreeterServicer_to_server(Greeter(), server)
    server.add_insecure_port("127.0.0.1:50051")
    server.start()
    server.wait_for_termination()

Generated servicers, interceptors, health and reflection are grpcio's and used unchanged, and so are clients.  Each RPC is a goroutine that
runs ordinary blocking code; one that waits costs no thread.

server() is a server of our own: HTTP/2 in C, by native goroutines.  compat_server() is grpcio's, with goroutines in place of its
thread pool.  insecure_channel() and secure_channel() are grpcio's, too, for generated stubs and interceptors alike: a goroutine that waits
for a response parks, so that thousands may call at once.

serve() runs a server in several processes on one port.

Interceptors of others (OpenTelemetry, grpc-interceptor ...) are given to server() by hand: instrumentation that replaces grpc.server and
grpc.insecure_channel by its own does not see these here.

    __init__.py  server(), compat_server(), insecure_channel(), secure_channel()
    _server.py   the native server: start, stop, figures     _call.py  serving a call       _context.py  what a handler sees of it
    _ports.py    addresses and sockets                       _processes.py  serve()         _current.py  gmp.context.current() there
    _credentials.py  TLS: ssl_server_credentials() and its kin
    _compat.py   everything that knows grpcio's private interface
    _sync.py     the lock and the condition variable that grpcio's server code waits on there

A handler that parks (gmp.sleep, a channel, the request iterator, a yield of a streaming response) may go on in another OS thread, so
it must not hold a threading.RLock while it does; gmp.sync has locks that belong to goroutines.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

try:
    import grpc as _grpc  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "grpc":
        raise
    raise ImportError(
        "gmp.grpc needs grpcio, which is not installed: pip install gmp-runtime[grpc]", name="grpc"
    ) from None

from gmp import _core
from gmp.grpc import _compat
from gmp.grpc._credentials import (
    dynamic_ssl_server_credentials,
    ssl_server_certificate_configuration,
    ssl_server_credentials,
)
from gmp.grpc._processes import serve

if TYPE_CHECKING:
    import grpc

__all__ = [
    "compat_server",
    "dynamic_ssl_server_credentials",
    "insecure_channel",
    "is_native",
    "secure_channel",
    "serve",
    "server",
    "ssl_server_certificate_configuration",
    "ssl_server_credentials",
]

is_native: bool = hasattr(_core, "GrpcServer")
"""Whether this build has the native server: it was built with libnghttp2."""

# A server of grpcio refuses calls at random when more than 1,000 wait to be accepted, and any more when it is 3,000: sensible where
# each needs a thread.  maximum_concurrent_rpcs is the limit to set here.
_OPTIONS = {"grpc.server.max_pending_requests": 1_000_000, "grpc.server.max_pending_requests_hard_limit": 1_000_000}


def server(
    handlers: Sequence[grpc.GenericRpcHandler] | None = None,
    interceptors: Sequence[grpc.ServerInterceptor] | None = None,
    options: Sequence[tuple[str, Any]] | None = None,
    maximum_concurrent_rpcs: int | None = None,
    compression: grpc.Compression | None = None,
    xds: bool = False,
) -> grpc.Server:
    """Return a server that runs every RPC in a goroutine of its own.

    Takes what grpc.server takes, apart from the thread pool.  Where gmp was built without libnghttp2 this is compat_server(), and a
    RuntimeWarning says so once.

    options, (name, value), with the defaults (milliseconds 2**31 - 1: never):

        grpc.max_receive_message_length     4 MiB; also of what a compressed message inflates to; -1: any
        grpc.max_send_message_length        -1: any
        grpc.max_concurrent_streams         100,000 a connection, and again as many cancelled ones whose handlers still run; 0: any
        grpc.max_metadata_size, grpc.absolute_max_metadata_size     8 and 16 KiB: the larger one is the limit
        grpc.http2.lookahead_bytes          256 KiB of a call are received before its handler asks for them
        grpc.keepalive_time_ms, grpc.keepalive_timeout_ms, grpc.keepalive_permit_without_calls     two hours, 20 s, 0
        grpc.http2.min_recv_ping_interval_without_data_ms, grpc.http2.max_ping_strikes             5 minutes, 2
        grpc.max_connection_idle_ms, grpc.max_connection_age_ms, grpc.max_connection_age_grace_ms  never
        grpc.server_handshake_timeout_ms    2 minutes, until the client's HTTP/2 settings have come
        grpc.so_reuseport                   1
        grpc.default_compression_algorithm  0

    and against clients that are broken or mean harm; 0: no limit.  What is beyond ends the connection, or fails the call:

        gmp.max_rapid_resets        1,000 calls reset in their first second, unanswered; a tenth of it per second goes on
        gmp.max_useless_frames      10,000 frames that ask for nothing (SETTINGS, PING, empty DATA ...), likewise
        gmp.max_buffered_bytes      512 MiB of a connection's requests that no handler has taken; beyond it calls fail
        gmp.header_timeout_ms       20 s from a call's first header frame to its last
        gmp.write_timeout_ms        2 minutes in which the client takes nothing that is sent

    The logger "gmp.grpc" is told of each such connection (WARNING; of a kind one line a second), and stats()["abuse"] counts them.
    """
    if not is_native:
        warnings.warn(
            "gmp was built without libnghttp2: gmp.grpc.server is grpcio's server on goroutines; for the native one install "
            "libnghttp2-dev and pkg-config and build gmp again",
            RuntimeWarning,
            stacklevel=2,
        )
        return compat_server(handlers, interceptors, options, maximum_concurrent_rpcs, compression, xds)
    if xds:
        raise ValueError("the native server does not know xDS: use gmp.grpc.compat_server")
    from gmp.grpc._server import Server

    return Server(
        () if handlers is None else handlers,
        () if interceptors is None else interceptors,
        () if options is None else options,
        maximum_concurrent_rpcs,
        compression,
    )


def compat_server(
    handlers: Sequence[grpc.GenericRpcHandler] | None = None,
    interceptors: Sequence[grpc.ServerInterceptor] | None = None,
    options: Sequence[tuple[str, Any]] | None = None,
    maximum_concurrent_rpcs: int | None = None,
    compression: grpc.Compression | None = None,
    xds: bool = False,
) -> grpc.Server:
    """Return grpcio's own server with goroutines in place of its thread pool.

    For what the native server does not do.  Raises RuntimeError if the installed grpcio is not of a known shape.
    """
    return _compat.create_server(
        () if handlers is None else handlers,
        () if interceptors is None else interceptors,
        _with_defaults(() if options is None else options),
        maximum_concurrent_rpcs,
        compression,
        xds,
    )


def insecure_channel(
    target: str, options: Sequence[tuple[str, Any]] | None = None, compression: grpc.Compression | None = None
) -> grpc.Channel:
    """Return what grpc.insecure_channel does, with calls that park the goroutine instead of holding its thread.

    All four kinds of calls and their futures do, and so does taking responses from a stream; an iterator of requests runs in a
    goroutine of its own.  Threads may call, too.  Raises RuntimeError if the installed grpcio is not of a known shape.
    """
    return _compat.create_channel(target, () if options is None else options, None, compression)


def secure_channel(
    target: str,
    credentials: grpc.ChannelCredentials,
    options: Sequence[tuple[str, Any]] | None = None,
    compression: grpc.Compression | None = None,
) -> grpc.Channel:
    """Return what grpc.secure_channel does, with calls that park the goroutine: see insecure_channel."""
    if getattr(credentials, "_credentials", None) is None:
        raise TypeError(
            f"secure_channel() argument 2 must be from grpc.ssl_channel_credentials or alike, not {type(credentials).__name__}; "
            "without credentials there is insecure_channel"
        )
    return _compat.create_channel(target, () if options is None else options, credentials, compression)


def _with_defaults(options: Sequence[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    given = {name for name, _ in options}
    return (*options, *(default for default in _OPTIONS.items() if default[0] not in given))
