"""What a handler is given as its context: grpcio's ServicerContext over the C half, gmp._core.GrpcCall.

The C half has what nearly every call uses, and what is asked millions of times; here is the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import grpc

from gmp import context
from gmp._core import GrpcCall
from gmp.grpc._current import context_of

_LOGGER = logging.getLogger(__name__)

_INSECURE = (("transport_security_type", b"insecure"), ("security_level", b"TSI_SECURITY_NONE"))
_IDENTITIES = ("x509_subject_alternative_name", "x509_common_name")


class Metadatum(NamedTuple):
    """An entry of invocation_metadata(): bytes for keys that end in -bin."""

    key: str
    value: str | bytes


class HandlerCallDetails(NamedTuple):
    """What interceptors and generic handlers are asked with."""

    method: str
    invocation_metadata: tuple[Metadatum, ...]


grpc.HandlerCallDetails.register(HandlerCallDetails)


class Context(GrpcCall, grpc.ServicerContext):  # type: ignore[misc]
    """One per call; made by the server."""

    def _context(self) -> context.Context:
        """What gmp.context.current() is in the call's goroutines: made when it is first asked for."""
        found: context.Context | None = self.__dict__.get("_ctx")
        if found is None:
            ctx, cancel = context_of(self)
            found = self.__dict__.setdefault("_ctx", ctx)
            if found is not ctx:
                cancel()  # another goroutine was quicker
        return found

    def peer_identities(self) -> Sequence[bytes] | None:
        key = self.peer_identity_key()
        return None if key is None else self.auth_context()[key]

    def peer_identity_key(self) -> str | None:
        names = dict(self._tls_peer())
        return next((key for key in _IDENTITIES if key in names), None)

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        context: dict[str, list[bytes]] = {}
        for name, value in self._tls_peer() or _INSECURE:
            context.setdefault(name, []).append(value)
        return context

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        if not self._start(initial_metadata):
            self._raise_rpc_error()

    def abort(self, code: Any, details: str) -> NoReturn:
        if code == grpc.StatusCode.OK:
            _LOGGER.error("abort() called with StatusCode.OK; returning UNKNOWN")
            code, details = grpc.StatusCode.UNKNOWN, ""
        self.set_code(code)
        self.set_details(details)
        self._aborted = True
        raise Exception

    def abort_with_status(self, status: Any) -> NoReturn:
        self.set_trailing_metadata(status.trailing_metadata)
        self.abort(status.code, status.details)

    def _raise_rpc_error(self) -> NoReturn:
        """Raise what tells the handler that the call has ended; if the handler lets it through, that is no error."""
        error = grpc.RpcError()
        self.__dict__.setdefault("_rpc_errors", []).append(error)
        try:
            raise error
        finally:
            del error  # this frame is in its traceback

    def _forget_rpc_errors(self) -> None:
        """Their tracebacks hold the call: so it goes when its goroutine ends, and is counted, not with the next collection of garbage."""
        self.__dict__.pop("_rpc_errors", None)

    def _is_rpc_error(self, error: BaseException) -> bool:
        return any(error is known for known in self.__dict__.get("_rpc_errors", ()))


class TooLarge(ValueError):
    """A message is larger than the limit once it is decompressed."""


def undecompressed(error: BaseException) -> tuple[Any, bytes]:
    """Return the status for a message that could not be decompressed, and log why."""
    if isinstance(error, TooLarge):
        return grpc.StatusCode.RESOURCE_EXHAUSTED, str(error).encode()
    _LOGGER.error("Exception decompressing message!", exc_info=error)
    return grpc.StatusCode.INTERNAL, b"Exception decompressing request!"


class RequestIterator:
    """The requests of a streaming method.  Its next() parks."""

    def __init__(self, call: Context, deserializer: Callable[[bytes], Any] | None) -> None:
        self._call = call
        self._deserializer = deserializer

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        call = self._call
        try:
            data = call._recv()
        except Exception as error:
            data = None
            call._finish(None, *undecompressed(error))
        if data is False and call._cancelled:
            call._raise_rpc_error()
        if not isinstance(data, bytes):
            raise StopIteration
        request = data if self._deserializer is None else deserialize(data, self._deserializer)
        if request is None:
            call._finish(None, grpc.StatusCode.INTERNAL, b"Exception deserializing request!")
            raise StopIteration
        return request

    next = __next__


def deserialize(data: bytes, deserializer: Callable[[bytes], Any]) -> Any:
    try:
        return deserializer(data)
    except Exception:
        _LOGGER.exception("Exception deserializing message!")
        return None
