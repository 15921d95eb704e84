"""Everything that knows grpcio's private interface.

grpcio's server, grpc/_server.py, runs handlers in a thread pool and waits on objects of the threading module.  Here its code is executed
a second time, as a module of our own in which two names mean something else:

    threading  Condition and RLock are those of _sync.py, and the Thread that serves is a goroutine.
    cygrpc     CompletionQueue.poll lets other goroutines run before it waits.

grpc._server itself is not touched: servers made by grpc.server stay what they are.

How an RPC runs:
 1. The serving goroutine polls.  A new call arrives and becomes _Goroutines.submit(), which starts a goroutine and does no more: the
    server's lock is held.
 2. The RPC's goroutine asks for its request and parks in Condition.wait.  So does each step of a request iterator, and each message
    that is sent before the last.
 3. The serving goroutine gets the event, calls Condition.notify and polls again, that is, lets the goroutine go on first.  As long as
    there is anything to do, no thread is woken or waited for.

Rejected:
* Putting our names into grpc._server itself: ordinary servers use it.
* Serving in a thread of its own: every event is handed to another thread, which fights with the first for the GIL; and if that
  thread also ran goroutines, one that blocks it would stop the serving of all.
* Setting attributes of a finished server: conditions are made for each call, where one cannot get at them.
* Blocking in the non-blocking sends of grpcio (health's Watch): they are called inside threading.RLocks, see _Sender.

What is used of grpcio: the functions in _USED and their arguments, `condition` and `statused` of a call's state, the order of the arguments
of submit() (a function, code to run, event, state, behaviour ...), `experimental_non_blocking`, and the two names above.  _load checks.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import threading
import time
from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import gmp
from gmp import context
from gmp.grpc._context import context_of
from gmp.grpc._sync import Condition, RLock

_LOGGER = logging.getLogger(__name__)

_KNOWN = "1.75 to 1.85"  # tested; others are served as long as they pass the check

_IN_POOL = "rpc_event state behavior argument_thunk request_deserializer response_serializer"
_USED = {  # functions and a class of grpc._server, and their arguments
    "create_server": "thread_pool generic_rpc_handlers interceptors options maximum_concurrent_rpcs compression xds",
    "_serve": "state",
    "_abort": "state call code details",
    "_select_thread_pool_for_behavior": "behavior default_thread_pool",
    "_call_behavior": "rpc_event state behavior argument request_deserializer send_response_callback",
    "_unary_response_in_pool": _IN_POOL,
    "_stream_response_in_pool": _IN_POOL,
    "_Context": "rpc_event state request_deserializer",
}

_server: ModuleType | None = None
_server_lock = threading.Lock()


class UnknownShapeError(Exception):
    """Something of grpcio's is not as it was."""


def create_server(
    handlers: Sequence[Any],
    interceptors: Sequence[Any],
    options: Sequence[Any],
    maximum_concurrent_rpcs: int | None,
    compression: Any,
    xds: bool,
) -> Any:
    """What grpc.server does, with goroutines for the thread pool."""
    module = _load()
    pool = _Goroutines(module, counted=maximum_concurrent_rpcs is not None)
    return module.create_server(pool, handlers, interceptors, options, maximum_concurrent_rpcs, compression, xds)


def _load() -> ModuleType:
    """Return our copy of grpc._server, made at the first call."""
    global _server
    with _server_lock:
        if _server is None:
            try:
                _server = _copy()
            except Exception as error:
                import grpc

                raise RuntimeError(
                    f"gmp.grpc cannot serve with the installed grpcio {getattr(grpc, '__version__', '(no version)')}: {error}; "
                    f"install grpcio {_KNOWN} or a newer gmp-runtime"
                ) from error
        return _server


def _copy() -> ModuleType:
    """Execute grpc/_server.py again, put our names into the copy and check that it is what we know."""
    from grpc import _server as original
    from grpc._cython import cygrpc

    spec = importlib.util.find_spec("grpc._server")
    if spec is None or spec.loader is None:
        raise UnknownShapeError("grpc._server cannot be loaded again")
    copy = importlib.util.module_from_spec(spec)  # not entered in sys.modules
    spec.loader.exec_module(copy)
    for name, arguments in _USED.items():
        function = getattr(copy, name, None)
        if function is None or list(inspect.signature(function).parameters) != arguments.split():
            raise UnknownShapeError(f"grpc._server.{name} is not the function it was")
    if copy.threading is not threading or copy.cygrpc is not cygrpc:
        raise UnknownShapeError("grpc._server no longer uses threading and cygrpc")

    # A call's context is still made by grpc._server, and both modules compare such constants by identity.
    for name, value in vars(original).items():
        if name[0] == "_" and name[1] != "_" and isinstance(value, str):
            setattr(copy, name, value)

    def thread(target: Callable[..., object], args: tuple[Any, ...] = ()) -> Any:
        return (_Serving if target is copy._serve else threading.Thread)(target=target, args=args)

    select = copy._select_thread_pool_for_behavior

    def select_thread_pool(behavior: Any, default: _Goroutines) -> Any:
        pool = select(behavior, default)
        return default if pool is default else _Threads(pool)

    vars(copy)["_select_thread_pool_for_behavior"] = select_thread_pool
    vars(copy)["threading"] = _changed(threading, Condition=Condition, RLock=RLock, Thread=thread)
    vars(copy)["cygrpc"] = _changed(cygrpc, CompletionQueue=_completion_queue(cygrpc))

    state = copy._RPCState()
    if type(state.condition) is not Condition or state.statused is not False:
        raise UnknownShapeError("the state of a call is not what it was")
    return copy


def _changed(module: ModuleType, **names: object) -> ModuleType:
    """Return a module with the same names, but those that are given."""
    other = ModuleType(module.__name__)
    vars(other).update(vars(module), **names)
    return other


_GUEST_WAIT = 0.002  # seconds


def _is_guest() -> bool:
    """Does this goroutine run on a thread that is neither the scheduler's own nor the main one?

    Such a thread is one that waits in gmp itself.  It cannot go on as long as its guest blocks it.
    """
    ident = get_ident()
    for thread in threading.enumerate():
        if thread.ident == ident:
            return thread is not threading.main_thread() and not isinstance(thread, threading._DummyThread)
    return False


def _completion_queue(cygrpc: ModuleType) -> type:
    """Make the completion queue that the serving goroutine polls."""
    gosched = gmp.gosched
    wait: Callable[[Any, float | None], Any] = cygrpc.CompletionQueue.poll
    nothing = cygrpc.CompletionType.queue_timeout

    class CompletionQueue(cygrpc.CompletionQueue):  # type: ignore[misc, name-defined]
        def poll(self, deadline: float | None = None) -> Any:
            gosched()  # what the last event made ready
            event = wait(self, 0)
            if event.completion_type == nothing:
                if _is_guest():
                    deadline = time.time() + _GUEST_WAIT  # the next gosched takes us elsewhere
                event = wait(self, deadline)  # in C, without the GIL: the scheduler takes the P if it needs it
            return event

    return CompletionQueue


class _Serving:
    """The part of threading.Thread that grpcio's start() uses, for the goroutine that serves."""

    def __init__(self, target: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.daemon = True
        self._call = (target, *args)

    def start(self) -> None:
        gmp.go(*self._call)


class _Started:
    """The future of an RPC whose end nobody waits for."""

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        pass

    def end(self) -> None:
        pass


class _Ending(_Started):
    """The future of an RPC that counts against maximum_concurrent_rpcs."""

    def __init__(self) -> None:
        self._done = False
        self._callbacks: list[Callable[[Any], object]] = []

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        self._callbacks.append(callback)
        if self._done:
            self.end()

    def end(self) -> None:
        self._done = True
        while self._callbacks:
            try:
                callback = self._callbacks.pop()
            except IndexError:  # add_done_callback in another thread was faster
                break
            callback(self)


class _Goroutines:
    """What grpcio takes for its thread pool.  submit() never raises, blocks, parks, nor runs the function at once."""

    def __init__(self, server: ModuleType, counted: bool) -> None:
        self._server = server
        self._status = server.cygrpc.StatusCode
        self._counted = counted

    def submit(self, run: Callable[..., object], code: Callable[..., object], *args: Any) -> _Started:
        args = _unblocked(args)
        event, state = args[:2]
        rpc = _Ending() if self._counted else _STARTED
        try:
            gmp.go(self._run, rpc, run, code, args)
        except BaseException:  # no memory for a goroutine
            _LOGGER.exception("an RPC was refused: no goroutine could be started")
            self._fail(event, state, self._status.resource_exhausted, "no goroutine could be started")
            rpc.end()
        return rpc

    def _run(
        self, rpc: _Started, run: Callable[..., object], code: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        try:
            run(self._serve, code, args)
        except BaseException as error:  # grpcio has answered for every Exception; this is SystemExit and the like
            self._fail(args[0], args[1], self._status.unknown, f"Exception calling application: {error!r}")
            raise
        finally:
            rpc.end()

    def _serve(self, code: Callable[..., object], args: tuple[Any, ...]) -> None:
        context._current.set(_Call(self._server, args))
        code(*args)

    def _fail(self, event: Any, state: Any, status: Any, details: str) -> None:
        with state.condition:
            if not state.statused:
                self._server._abort(state, event.call, status, details.encode())


class _Call:
    """What gmp.context.current() finds in a handler's goroutines."""

    def __init__(self, server: ModuleType, args: tuple[Any, ...]) -> None:
        self._server = server
        self._args = args[:2]
        self._ctx: context.Context | None = None

    def _context(self) -> context.Context:
        if self._ctx is None:
            self._ctx, _ = context_of(self._server._Context(*self._args, None))
        return self._ctx


class _Threads:
    """The pool that a handler brings along as its `experimental_thread_pool`."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def submit(self, run: Callable[..., object], code: Callable[..., object], *args: Any) -> Any:
        return self._pool.submit(run, code, *_unblocked(args))


def _unblocked(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of submit() with a behaviour that may send from anywhere."""
    if getattr(args[2], "experimental_non_blocking", False):
        return (*args[:2], _NonBlocking(args[2]), *args[3:])
    return args


class _NonBlocking:
    """A behaviour that returns at once and goes on sending responses through a function: health's Watch."""

    experimental_non_blocking = True

    def __init__(self, behavior: Callable[..., object]) -> None:
        self._behavior = behavior

    def __call__(self, request: Any, context: Any, send_response: Callable[[Any], object]) -> object:
        return self._behavior(request, context, _Sender(send_response))


class _Sender:
    """Sends responses in the order of the calls, without making the caller wait.

    grpcio's own function waits until the response is written.  Health calls it inside a threading.RLock that every other call of the
    service needs: neither parking nor blocking would do there.  So a goroutine sends, one at a time.
    """

    def __init__(self, send: Callable[[Any], object]) -> None:
        self._send = send
        self._responses: deque[Any] = deque()
        self._sending = allocate_lock()  # held by the goroutine that sends, from before it starts

    def __call__(self, response: Any) -> None:
        self._responses.append(response)
        if self._sending.acquire(False):
            try:
                gmp.go(self._send_all)
            except BaseException:
                self._sending.release()
                raise

    def _send_all(self) -> None:
        while True:
            try:
                while self._responses:
                    self._send(self._responses.popleft())
            except Exception:
                _LOGGER.exception("a response could not be sent")
            finally:
                self._sending.release()
            if not self._responses or not self._sending.acquire(False):
                return


_STARTED = _Started()
