"""Everything that knows grpcio's private interface.

grpcio's server, grpc/_server.py, runs handlers in a thread pool and waits on objects of the threading module; so does its client,
grpc/_channel.py.  Here their code is executed a second time, as modules of our own in which some names mean something else:

    threading  Condition and RLock are those of _sync.py, and the Thread that serves is a goroutine.
    cygrpc     CompletionQueue.poll lets other goroutines run before it waits; the thread that iterates over a client's requests
               is a goroutine.
    _common    wait sleeps until it is woken, instead of having a look every 100 ms (client).

grpc._server and grpc._channel themselves are not touched: what grpc.server and grpc.insecure_channel make stays what it is.

How an RPC is called: a blocking call is a future that is waited for; one thread of grpcio's for each channel brings the events of all
its calls and calls Condition.notify.  It ends when there are none; so that it need not start for each of a few calls, one of a channel
waits in C instead, as grpcio's do.

How an RPC is served:
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

What is used of grpcio: the functions in _SERVER and _CLIENT and their arguments, `condition` and `statused` of a call's state, the order of
the arguments of submit() (a function, code to run, event, state, behaviour ...), `experimental_non_blocking`, the names above; of a
client's future `_state` and `_call`, and `due` of its state.  _load checks.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import operator
import os
import threading
import time
from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import gmp
from gmp import context
from gmp.grpc._current import context_of
from gmp.grpc._sync import Condition, RLock

_LOGGER = logging.getLogger(__name__)

_KNOWN = "1.75 to 1.85"  # tested; others are served as long as they pass the check

_IN_POOL = "rpc_event state behavior argument_thunk request_deserializer response_serializer"
_SERVER = {  # functions and classes of grpc._server, and their arguments
    "create_server": "thread_pool generic_rpc_handlers interceptors options maximum_concurrent_rpcs compression xds",
    "_serve": "state",
    "_abort": "state call code details",
    "_select_thread_pool_for_behavior": "behavior default_thread_pool",
    "_call_behavior": "rpc_event state behavior argument request_deserializer send_response_callback",
    "_unary_response_in_pool": _IN_POOL,
    "_stream_response_in_pool": _IN_POOL,
    "_Context": "rpc_event state request_deserializer",
}

_CALL = "metadata credentials wait_for_ready compression"
_CLIENT = {  # of grpc._channel
    "Channel": "target options credentials compression",
    "_RPCState": "due initial_metadata trailing_metadata code details",
    "_InactiveRpcError": "state",
    "_MultiThreadedRendezvous": "state call response_deserializer deadline",
    "_UnaryUnaryMultiCallable._blocking": f"self request timeout {_CALL}",
    "_UnaryUnaryMultiCallable.future": f"self request timeout {_CALL}",
    "_StreamUnaryMultiCallable._blocking": f"self request_iterator timeout {_CALL}",
    "_StreamUnaryMultiCallable.future": f"self request_iterator timeout {_CALL}",
    "_end_unary_response_blocking": "state call with_call deadline",
    "_consume_request_iterator": "request_iterator state call request_serializer event_handler",
}

_copies: dict[str, ModuleType] = {}  # by name of the original
_copies_lock = threading.Lock()


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
    module = _load("grpc._server", _SERVER, _change_server)
    pool = _Goroutines(module, counted=maximum_concurrent_rpcs is not None)
    return module.create_server(pool, handlers, interceptors, options, maximum_concurrent_rpcs, compression, xds)


def create_channel(target: str, options: Sequence[tuple[str, Any]], credentials: Any, compression: Any) -> Any:
    """What grpc.insecure_channel and grpc.secure_channel do; credentials: grpcio's, or None."""
    if not isinstance(target, str):
        raise TypeError(f"the target of a channel must be a str such as 'localhost:50051', not {type(target).__name__}")
    module = _load("grpc._channel", _CLIENT, _change_client)
    return module.Channel(target, options, None if credentials is None else credentials._credentials, compression)


def _load(name: str, used: dict[str, str], change: Callable[[ModuleType, ModuleType], None]) -> ModuleType:
    """Return our copy of grpcio's module, made at the first call."""
    with _copies_lock:
        if name not in _copies:
            try:
                _copies[name] = _copy(name, used, change)
            except Exception as error:
                import grpc

                raise RuntimeError(
                    f"gmp.grpc cannot work with the installed grpcio {getattr(grpc, '__version__', '(no version)')}: {error}; "
                    f"install grpcio {_KNOWN} or a newer gmp-runtime"
                ) from error
        return _copies[name]


def _copy(name: str, used: dict[str, str], change: Callable[[ModuleType, ModuleType], None]) -> ModuleType:
    """Execute a module again, check that it is what we know and put our names into the copy."""
    original = importlib.import_module(name)
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise UnknownShapeError(f"{name} cannot be loaded again")
    copy = importlib.util.module_from_spec(spec)  # not entered in sys.modules
    spec.loader.exec_module(copy)
    for function, arguments in used.items():
        try:
            found = inspect.signature(operator.attrgetter(function)(copy))
        except (AttributeError, TypeError):
            found = inspect.Signature()
        if list(found.parameters) != arguments.split():
            raise UnknownShapeError(f"{name}.{function} is not what it was")
    if copy.threading is not threading or copy.cygrpc is not original.cygrpc:
        raise UnknownShapeError(f"{name} no longer uses threading and cygrpc")
    change(copy, original)
    return copy


def _change_server(copy: ModuleType, original: ModuleType) -> None:
    # A call's context is still made by grpc._server, and both modules compare such constants by identity.
    for name, value in vars(original).items():
        if name[0] == "_" and name[1] != "_" and isinstance(value, str):
            setattr(copy, name, value)

    def thread(target: Callable[..., object], args: tuple[Any, ...] = ()) -> Any:
        return (_Runner if target is copy._serve else threading.Thread)(target=target, args=args)

    select = copy._select_thread_pool_for_behavior

    def select_thread_pool(behavior: Any, default: _Goroutines) -> Any:
        pool = select(behavior, default)
        return default if pool is default else _Threads(pool)

    vars(copy)["_select_thread_pool_for_behavior"] = select_thread_pool
    vars(copy)["threading"] = _changed(threading, Condition=Condition, RLock=RLock, Thread=thread)
    vars(copy)["cygrpc"] = _changed(copy.cygrpc, CompletionQueue=_completion_queue(copy.cygrpc))

    state = copy._RPCState()
    if type(state.condition) is not Condition or state.statused is not False:
        raise UnknownShapeError("the state of a call is not what it was")


def _change_client(copy: ModuleType, original: ModuleType) -> None:
    names = vars(copy)
    cygrpc = copy.cygrpc

    def thread(target: Callable[..., object], args: tuple[Any, ...] = ()) -> Any:
        goroutine = target.__name__ == "consume_request_iterator" and not _counts_threads()
        return (_Runner if goroutine else cygrpc.ForkManagedThread)(target=target, args=args)

    class State(original._RPCState):  # type: ignore[misc, name-defined]
        """A subclass, so that errors are of grpcio's own class, which asks for its state."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.condition = Condition()

    class Channel(copy.Channel):  # type: ignore[misc, name-defined]
        def _process_python_options(self, python_options: Any) -> None:
            """None: the only one there is would have a stream's reader wait in C."""
            self._alone = allocate_lock()

        def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
            call = super().unary_unary(*args, **kwargs)
            call._alone = self._alone
            return call

    consume = copy._consume_request_iterator

    def consume_bytes(
        requests: Any, state: Any, call: Any, serializer: Callable[[Any], Any] | None, handler: Any
    ) -> None:
        """What is no bytes is an error of serialization: else it would end the iterating goroutine, and the call would hang."""

        def serialize(request: Any) -> bytes:
            data = request if serializer is None else serializer(request)
            if not isinstance(data, bytes):
                raise TypeError(f"a serialized request must be bytes, not {type(data).__name__}")
            return data

        consume(requests, state, call, serialize, handler)

    names["_consume_request_iterator"] = consume_bytes
    names["threading"] = _changed(threading, Condition=Condition)
    names["cygrpc"] = _changed(cygrpc, ForkManagedThread=thread)
    names["_common"] = _changed(copy._common, wait=_wait)
    names["_RPCState"] = State
    names["_InactiveRpcError"] = original._InactiveRpcError
    names["Channel"] = Channel
    copy._StreamUnaryMultiCallable._blocking = _blocking
    in_c = copy._UnaryUnaryMultiCallable._blocking

    def blocking(self: Any, *args: Any) -> tuple[Any, Any]:
        """One call of a channel may wait in C: that starts no thread of grpcio's, which costs as much as the call itself."""
        if self._alone.acquire(False):
            try:
                return in_c(self, *args)  # type: ignore[no-any-return]
            finally:
                self._alone.release()
        return _blocking(self, *args)

    copy._UnaryUnaryMultiCallable._blocking = blocking


def _blocking(self: Any, request: Any, *args: Any) -> tuple[Any, Any]:
    """Make the call and park until it has ended: of the classes for calls with one response."""
    future = self.future(request, *args)
    state = future._state
    try:
        with state.condition:
            while state.due:
                state.condition.wait()
    except BaseException:  # a signal handler, or the goroutine is to end
        future.cancel()
        raise
    return state, future._call


def _wait(
    wait: Callable[[float | None], bool],
    is_complete: Callable[[], bool],
    timeout: float | None = None,
    spin_cb: object = None,
) -> bool:
    """grpc._common.wait for a Condition that signals reach.  True when the timeout came first."""
    end = None if timeout is None else time.monotonic() + timeout
    while not is_complete():
        left = None if end is None else end - time.monotonic()
        if left is not None and left < 0:
            return True
        wait(left)
    return False


def _counts_threads() -> bool:
    """Whether grpcio prepares for fork, and so has to know what iterates over requests as a thread."""
    return os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower() in ("1", "t", "true", "y", "yes")


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


class _Runner:
    """The part of threading.Thread that grpcio uses, for what is a goroutine here."""

    def __init__(self, target: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.daemon = True
        self._call = (target, *args)

    def setDaemon(self, daemon: bool) -> None:
        pass

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
