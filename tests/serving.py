"""A server with some handlers and a channel to it, for the tests of gmp.grpc.server and compat_server."""

from __future__ import annotations

import contextlib

import pytest

import gmp.grpc

grpc = pytest.importorskip("grpc")

SERVICE = "test.Native"
LONG = 40.0

uu, us = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
su, ss = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler


@contextlib.contextmanager
def serving(make=gmp.grpc.server, address="127.0.0.1:0", channel_options=None, **handlers_and_options):
    handlers = {k: v for k, v in handlers_and_options.items() if isinstance(v, grpc.RpcMethodHandler)}
    server = make(**{k: v for k, v in handlers_and_options.items() if k not in handlers})
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port(address)
    server.start()
    target = address if address.startswith("unix") else f"{address.rpartition(':')[0]}:{port}"
    try:
        with grpc.insecure_channel(
            target, options=[("grpc.use_local_subchannel_pool", 1), *(channel_options or ())]
        ) as channel:
            yield server, channel
    finally:
        assert server.stop(None).wait(LONG)


def path(method="Call"):
    return f"/{SERVICE}/{method}"


def unary(channel, method="Call"):
    return channel.unary_unary(path(method))


def failure(call, *args, **kwargs):
    """Call, and return how it failed: code and details."""
    with pytest.raises(grpc.RpcError) as caught:
        result = call(*args, timeout=LONG, **kwargs)
        if hasattr(result, "__next__"):
            list(result)
    return caught.value.code(), caught.value.details()
