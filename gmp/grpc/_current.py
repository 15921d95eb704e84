"""What gmp.context.current() is while a goroutine serves a call of either server."""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc

from gmp import context


def context_of(call: grpc.ServicerContext) -> tuple[context.Context, Callable[[], None]]:
    """A gmp.context that ends with the call: at its deadline, when it is cancelled, and when it is answered.  And its cancel."""
    left = call.time_remaining()
    if left is None or left > 1e9:
        ctx, cancel = context.with_cancel(context.background())
    else:
        ctx, cancel = context.with_deadline(context.background(), time.monotonic() + left)

    def end() -> None:
        if ctx.remaining() != 0:  # at the deadline the context ends by itself, as DeadlineExceeded
            cancel()

    if not call.add_callback(end):
        end()
    return ctx, cancel
