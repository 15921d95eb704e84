"""How a call is served: which handler, what it is given, what becomes of what it returns or raises.

The C half (csrc/py_grpc.c) runs methods of one request and one response by itself, as long as all goes well.  Everything else comes here:
serve() runs in the call's goroutine, and failed() is told what went wrong in C.  Statuses, their texts and log lines are grpcio's.

A Service knows nothing of the Server that owns it, so that a forgotten server can be collected.
"""

from __future__ import annotations

import contextvars
import logging
import traceback
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import GeneratorType
from typing import Any

import grpc
from grpc import _utilities

import gmp
from gmp import context
from gmp._core import _grpc_setup
from gmp.grpc._context import (
    Context,
    HandlerCallDetails,
    Metadatum,
    RequestIterator,
    TooLarge,
    deserialize,
    undecompressed,
)

_LOGGER = logging.getLogger(__name__)

_STATUS = grpc.StatusCode
_WBITS = {1: zlib.MAX_WBITS, 2: zlib.MAX_WBITS | 16}  # of grpc.Compression.Deflate and Gzip


class Service:
    """The handlers and interceptors of a server."""

    def __init__(self, handlers: Iterable[Any], interceptors: Iterable[Any], max_send: int) -> None:
        self.generic = list(handlers)
        self.registered: dict[str, Any] = {}
        self.interceptors = tuple(interceptors)
        self.max_send = max_send
        self.core: Any = None  # the GrpcServer, while it runs: learns which handlers never change

    # -- finding the handler -------------------------------------------------------------------------------------------

    def _look_up(self, details: Any) -> Any:
        handler = self.registered.get(details.method)
        if handler is not None:
            return handler
        for generic in self.generic:
            handler = generic.service(details)
            if handler is not None:
                return handler
        return None

    def _intercept(self, index: int, details: Any) -> Any:
        if index == len(self.interceptors):
            return self._look_up(details)
        return self.interceptors[index].intercept_service(lambda details: self._intercept(index + 1, details), details)

    def _is_constant(self, path: str) -> bool:
        """Whether the handler for path is always the same: it stands in a dictionary."""
        if self.interceptors:
            return False
        if path in self.registered:
            return True
        for generic in self.generic:
            if type(generic) is not _utilities.DictionaryGenericHandler:
                return False
            if generic.service(HandlerCallDetails(path, ())) is not None:
                return True
        return False

    def _learn(self, path: str, handler: Any) -> None:
        core = self.core
        if core is None:
            return
        if not self._is_constant(path):
            core.learn(path, None, None, None, None, False)
            return
        behavior = None
        if not handler.request_streaming and not handler.response_streaming:
            behavior = handler.unary_unary
            if _pool_of(behavior):
                behavior = None
        core.learn(
            path,
            handler,
            behavior,
            handler.request_deserializer,
            handler.response_serializer,
            not handler.request_streaming,
        )

    def _find(self, call: Context) -> Any:
        """Return the call's handler, or None: then it is answered."""
        path = call._path
        try:
            details = HandlerCallDetails(path, call.invocation_metadata())
            handler = self._intercept(0, details)
        except Exception as error:
            _LOGGER.exception("Exception servicing handler: %s", error)
            call._reject(_STATUS.UNKNOWN, b"Error in service handler!")
            return None
        if handler is None:
            call._reject(_STATUS.UNIMPLEMENTED, b"Method not found!")
            return None
        self._learn(path, handler)
        return handler

    # -- serving -------------------------------------------------------------------------------------------------------

    def serve(self, call: Context, handler: Any) -> None:
        """Serve the call from its beginning.  In its goroutine."""
        try:
            if handler is None:
                handler = self._find(call)
                if handler is None:
                    return
            if not call._enter():
                call._reject(_STATUS.RESOURCE_EXHAUSTED, b"Concurrent RPC limit exceeded!")
                return
            behavior = _behavior(handler)
            pool = _pool_of(behavior)
            if pool is None:
                self._run(call, handler, behavior)
            else:
                pool.submit(contextvars.copy_context().run, self._run_in_pool, call, handler, behavior)
        finally:
            if not call.is_active():
                run_callbacks(call)

    def _run_in_pool(self, call: Context, handler: Any, behavior: Any) -> None:
        try:
            self._run(call, handler, behavior)
        finally:
            if not call.is_active():
                run_callbacks(call)

    def _run(self, call: Context, handler: Any, behavior: Any) -> None:
        try:
            argument: Any
            if handler.request_streaming:
                argument = RequestIterator(call, handler.request_deserializer)
            else:
                argument = self._request(call, handler.request_deserializer)
                if argument is None:
                    return
            if not handler.response_streaming:
                self._unary(call, behavior, argument, handler.response_serializer)
            elif getattr(behavior, "experimental_non_blocking", False):
                self._non_blocking(call, behavior, argument, handler.response_serializer)
            else:
                self._stream(call, behavior, argument, handler.response_serializer)
        except Exception:
            traceback.print_exc()
        finally:
            call._leave()
            call._forget_rpc_errors()

    def _request(self, call: Context, deserializer: Any) -> Any:
        """Return the only request, or None: then the call is answered, or over."""
        try:
            data = call._recv()
        except Exception as error:
            call._finish(None, *undecompressed(error))
            return None
        if data is False:
            return None
        if data is None:
            text = f'"{call._path}" requires exactly one request message.'
            call._finish(None, _STATUS.UNIMPLEMENTED, text.encode())
            return None
        request = data if deserializer is None else deserialize(data, deserializer)
        if request is None:
            call._finish(None, _STATUS.INTERNAL, b"Exception deserializing request!")
        return request

    def _unary(self, call: Context, behavior: Any, argument: Any, serializer: Any) -> None:
        try:
            response = behavior(argument, call)
        except BaseException as error:
            self._raised(call, error)
            return
        data = self._serialize(call, response, serializer)
        if data is not None:
            self._status(call, data)

    def _stream(self, call: Context, behavior: Any, argument: Any, serializer: Any) -> None:
        try:
            responses = behavior(argument, call)
        except BaseException as error:
            self._raised(call, error)
            return
        send = call._send
        try:
            while True:
                try:
                    response = next(responses)
                except StopIteration:
                    response = None
                except BaseException as error:
                    self._raised(call, error, "Exception iterating responses: {}")
                    return
                if response is None:
                    self._status(call, None)
                    return
                data = self._serialize(call, response, serializer)
                if data is None:
                    return
                if not send(data):
                    return
        finally:
            if isinstance(responses, GeneratorType):
                responses.close()

    def _non_blocking(self, call: Context, behavior: Any, argument: Any, serializer: Any) -> None:
        def send(response: Any) -> None:
            """Send a response, or end the call (None).  Never parks: it may be called inside of any lock."""
            if response is None:
                self._status(call, None)
                gmp.go(run_callbacks, call)
                return
            data = self._serialize(call, response, serializer)
            if data is not None:
                call._send(data, False)

        try:
            behavior(argument, call, send)
        except BaseException as error:
            self._raised(call, error)

    def _serialize(self, call: Context, response: Any, serializer: Any) -> bytes | None:
        """Return the response's bytes, or None: then the call is answered."""
        try:
            data = response if serializer is None else serializer(response)
        except Exception:
            _LOGGER.exception("Exception serializing message!")
            data = None
        if not isinstance(data, bytes):
            call._finish(None, _STATUS.INTERNAL, b"Failed to serialize response!")
            return None
        if 0 <= self.max_send < len(data):
            self._too_large(call, len(data))
            return None
        return data

    def _too_large(self, call: Context, size: int) -> None:
        text = f"SERVER: Sent message larger than max ({size} vs. {self.max_send})"
        call._finish(None, _STATUS.RESOURCE_EXHAUSTED, text.encode())

    def _status(self, call: Context, data: bytes | None) -> None:
        try:
            call._finish(data, None, None)
        except Exception:
            _LOGGER.exception("the status could not be sent")

    def _raised(self, call: Context, error: BaseException, format: str = "Exception calling application: {}") -> None:
        """The handler has raised: the client is told, unless that is how the handler learnt that the client has gone."""
        if not isinstance(error, Exception):
            call._finish(None, _STATUS.UNKNOWN, format.format(repr(error)).encode(errors="replace"))
            raise error
        if call._aborted:
            call._finish(None, _STATUS.UNKNOWN, b"RPC Aborted")
        elif not call._is_rpc_error(error):
            try:
                details = format.format(error)
            except Exception:
                details = "Calling application raised unprintable Exception!"
                traceback.print_exc()
            _LOGGER.error(details, exc_info=error)
            call._finish(None, _STATUS.UNKNOWN, details.encode(errors="replace"))

    # -- what goes wrong in C ------------------------------------------------------------------------------------------

    def failed(self, call: Context, stage: str, error: BaseException | None) -> None:
        """Take over from the C half, which has got as far as `stage` of a call with one request and one response."""
        if stage == "callbacks":
            run_callbacks(call)
        elif stage == "busy":
            call._reject(_STATUS.RESOURCE_EXHAUSTED, b"Concurrent RPC limit exceeded!")
        elif stage == "handler":
            assert error is not None
            self._raised(call, error)
        elif stage == "no request":
            text = f'"{call._path}" requires exactly one request message.'
            call._finish(None, _STATUS.UNIMPLEMENTED, text.encode())
        elif stage == "too large":
            call._finish(None, _STATUS.RESOURCE_EXHAUSTED, str(error).encode())
        elif stage == "message":
            assert error is not None
            call._finish(None, *undecompressed(error))
        elif stage == "status":
            _LOGGER.error("the status could not be sent", exc_info=error)
        else:
            doing, text = {
                "request": ("deserializing", "Exception deserializing request!"),
                "response": ("serializing", "Failed to serialize response!"),
            }[stage]
            if error is not None:
                _LOGGER.error(f"Exception {doing} message!", exc_info=error)
            call._finish(None, _STATUS.INTERNAL, text.encode())
            if error is not None and not isinstance(error, Exception):
                raise error


def run_callbacks(call: Context) -> None:
    for callback in call._take_callbacks():
        try:
            callback()
        except Exception:
            _LOGGER.exception("Exception calling callback!")


def _behavior(handler: Any) -> Callable[..., Any]:
    if handler.request_streaming:
        found = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        found = handler.unary_stream if handler.response_streaming else handler.unary_unary
    return found  # type: ignore[no-any-return]


def _pool_of(behavior: Any) -> ThreadPoolExecutor | None:
    pool = getattr(behavior, "experimental_thread_pool", None)
    return pool if isinstance(pool, ThreadPoolExecutor) else None


def check_handlers(handlers: Sequence[Any]) -> None:
    for handler in handlers:
        if getattr(handler, "service", None) is None:
            raise AttributeError(
                f'"{handler}" must conform to grpc.GenericRpcHandler type but does not have "service" method!'
            )


def _decompress(encoding: int, data: bytes, most: int) -> bytes:
    machine = zlib.decompressobj(_WBITS[encoding])
    plain = machine.decompress(data, 0 if most < 0 else most + 1)
    if 0 <= most < len(plain):
        raise TooLarge(f"SERVER: Received message larger than max ({len(plain)} and more, decompressed, vs. {most})")
    if not machine.eof:
        raise ValueError("a compressed message ends too early")
    return plain


def _compress(encoding: int, data: bytes) -> bytes:
    machine = zlib.compressobj(wbits=_WBITS[encoding])
    return machine.compress(data) + machine.flush()


_grpc_setup({code: code.value[0] for code in _STATUS}, Metadatum, _decompress, _compress, context._current)
