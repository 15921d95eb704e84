"""Deadlines, cancellation and request values, handed down a tree of calls.  Go: package context.

    from gmp import context, recv, select

    with context.with_timeout(context.current(), 2.5) as ctx:
        answer = gmp.Chan(1)
        gmp.go(ask_database, ctx, answer)
        match select(recv(answer), recv(ctx.done())):
            case gmp.Selected(index=0, value=value): ...
            case _: raise ctx.err()                     # Canceled or DeadlineExceeded

A context ends once: when it is cancelled, when its deadline has come, or when the one that it was derived from ends.  Then its channel
done() is closed and err() tells why.  Ending asks; nothing is interrupted: the code that was given the context looks at it.

Each function that derives a context returns a pair (ctx, cancel), as in Go.  cancel() must be called in the end, or the parent
keeps the context; `with` does that, and makes the context the current() one for the block and for goroutines that are started in it.

In a handler of gmp.grpc, current() is the RPC's: it ends with the client's deadline, its cancellation, its connection, and when the
handler has returned.
"""

from __future__ import annotations

import threading
import time as _time
from collections.abc import Callable
from contextvars import ContextVar, Token, copy_context
from typing import Any, Generic, TypeVar

from gmp._core import Chan, ChanClosed, go
from gmp.time import Timer
from gmp.time import after_func as _timer

__all__ = [
    "Canceled",
    "Context",
    "DeadlineExceeded",
    "Derived",
    "after_func",
    "background",
    "cause",
    "current",
    "todo",
    "with_cancel",
    "with_cancel_cause",
    "with_deadline",
    "with_timeout",
    "with_value",
    "without_cancel",
]


class Canceled(Exception):
    """The context was cancelled.  Go: context.Canceled."""

    def __init__(self, message: str = "context canceled") -> None:
        super().__init__(message)


class DeadlineExceeded(TimeoutError):
    """The context's deadline has passed.  Go: context.DeadlineExceeded."""

    def __init__(self, message: str = "context deadline exceeded") -> None:
        super().__init__(message)


class Context:
    """What a function is given by its caller.  Made by the functions of this module.  Go: context.Context."""

    __slots__ = ("__weakref__", "_parent", "_source")

    def __init__(self, parent: Context | None, source: _Ending | None) -> None:
        self._parent = parent
        self._source = source  # the nearest context upwards, or this, that can end; None: there is none

    def done(self) -> Chan[None] | None:
        """The channel that is closed when the context ends; None, which select never picks, if it cannot end."""
        return None if self._source is None else self._source.channel()

    def err(self) -> Exception | None:
        """None until the context has ended, then Canceled or DeadlineExceeded."""
        return None if self._source is None else self._source.error

    def deadline(self) -> float | None:
        """When it will end at the latest, as time.monotonic() counts (seconds); None: never."""
        return None if self._source is None else self._source.when

    def remaining(self) -> float | None:
        """Seconds until the deadline, 0 when it has passed; None: there is none.  Fit for a timeout= argument."""
        when = self.deadline()
        return None if when is None else max(0.0, when - _time.monotonic())

    def value(self, key: object) -> Any:
        """What with_value stored under key, here or further up; None if nothing."""
        found: Context | None = self
        while found is not None:
            if type(found) is _Value and (found.key is key or found.key == key):
                return found.stored
            found = found._parent
        return None

    def check(self) -> None:
        """Raise err() if the context has ended."""
        error = self.err()
        if error is not None:
            raise error

    def __repr__(self) -> str:
        names: list[str] = []
        found: Context | None = self
        while found is not None:
            names.append(found._name())
            found = found._parent
        return ".".join(reversed(names))

    def _name(self) -> str:
        return "without_cancel" if self._parent is not None else "background"


class _Value(Context):
    __slots__ = ("key", "stored")

    def __init__(self, parent: Context, key: object, stored: object) -> None:
        super().__init__(parent, parent._source)
        self.key = key
        self.stored = stored

    def _name(self) -> str:
        return f"with_value({self.key!r})"


# Guards the trees of contexts.  Nothing parks, and no code of others runs, while it is held; but a signal handler may come.
_lock = threading.RLock()


class _Ending(Context):
    """A context that can end.  It holds its children until they, or it, have ended."""

    __slots__ = ("_channel", "_children", "_own", "_timer", "error", "when", "why")

    def __init__(self, parent: Context, when: float | None) -> None:
        super().__init__(parent, self)
        self._children: dict[_Ending | _Callback, None] = {}
        self._channel: Chan[None] | None = None  # made when first asked for
        self._timer: Timer | None = None
        self._own = when is not None  # a deadline of its own, not its parent's
        self.when = when if when is not None else parent.deadline()
        self.error: Exception | None = None
        self.why: BaseException | None = None

    def _name(self) -> str:
        if not self._own or self.when is None:
            return "with_cancel"
        return f"with_deadline({self.when - _time.monotonic():.3f} s from now)"

    def channel(self) -> Chan[None]:
        channel = self._channel
        if channel is None:
            fresh: Chan[None] = Chan()
            with _lock:
                if self._channel is None:
                    self._channel = fresh
                channel = self._channel
            if self.error is not None:
                _close(channel)
        return channel

    def adopt(self, child: _Ending | _Callback) -> bool:
        """End child when this ends.  False: it has."""
        with _lock:
            self._children[child] = None
            return self.error is None

    def forget(self, child: _Ending | _Callback) -> bool:
        """Returns whether it was a child."""
        with _lock:
            return self._children.pop(child, self) is None

    def expire(self) -> None:
        self.end(DeadlineExceeded(), None)

    def end(self, error: Exception, why: BaseException | None) -> None:
        """End this and all that was derived from it.  The first one counts."""
        above = None if self._parent is None else self._parent._source
        if above is not None:
            above.forget(self)
        ending: list[_Ending | _Callback] = [self]
        while ending:  # a loop: the tree may be deep
            ctx = ending.pop()
            if isinstance(ctx, _Callback):
                ctx.start()
                continue
            with _lock:
                if ctx.error is not None:
                    continue
                ctx.why = error if why is None else why
                ctx.error = error
                ending += ctx._children
                ctx._children = {}
                channel, timer, ctx._timer = ctx._channel, ctx._timer, None
            if channel is not None:
                _close(channel)
            if timer is not None:
                timer.stop()

    def end_at_deadline(self) -> None:
        assert self.when is not None
        timer = _timer(max(0.0, self.when - _time.monotonic()), self.expire)
        with _lock:
            if self.error is None:
                self._timer = timer
                return
        timer.stop()


def _close(channel: Chan[None]) -> None:
    try:
        channel.close()
    except ChanClosed:  # somebody else was quicker
        pass


class _Callback:
    """What after_func hangs on a context."""

    __slots__ = ("_call",)

    def __init__(self, *call: Any) -> None:
        self._call = (copy_context(), *call)

    def start(self) -> None:
        variables, fn, args, kwargs = self._call
        variables.run(go, fn, *args, **kwargs)


_C = TypeVar("_C", bound=Callable[..., None])


class Derived(tuple[Context, _C], Generic[_C]):
    """A pair (context, cancel).  As a context manager it makes the context current() for its block, and cancels it at the end."""

    _token: Token[Any] | None = None

    def __enter__(self) -> Context:
        if self._token is not None:
            raise RuntimeError("this context is entered already: derive another one")
        self._token = _current.set(self[0])
        return self[0]

    def __exit__(self, *exc: object) -> None:
        token, self._token = self._token, None
        try:
            if token is not None:
                _current.reset(token)
        finally:
            self[1]()


_background = Context(None, None)
_current: ContextVar[Any] = ContextVar("gmp.context")  # a Context, or a call of gmp.grpc, whose _context() is one


def background() -> Context:
    """The context that never ends, has no deadline and no values: the root of all others.  Go: context.Background."""
    return _background


todo = background
"""For code that has not been given a context yet.  Go: context.TODO."""


def current() -> Context:
    """The context of this goroutine: that of the innermost `with`, else of the RPC that it serves, else background().

    Goroutines inherit it from the one that starts them.  Go hands contexts from function to function instead.
    """
    found = _current.get(_background)
    if isinstance(found, Context):
        return found
    context: Context = found._context()
    return context


def _parent(parent: object, name: str) -> Context:
    if not isinstance(parent, Context):
        raise TypeError(f"{name}() argument 1 must be a gmp.context.Context, not {type(parent).__name__}")
    return parent


def _derive(parent: Context, when: float | None) -> _Ending:
    limit = parent.deadline()
    if limit is not None and when is not None and limit <= when:
        when = None  # the parent's comes first
    ctx = _Ending(parent, when)
    above = parent._source
    if above is not None and not above.adopt(ctx):
        assert above.error is not None
        ctx.end(above.error, above.why)
    elif when is not None:
        if when <= _time.monotonic():
            ctx.expire()
        else:
            ctx.end_at_deadline()
    return ctx


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}() argument 2 must be a number of seconds, not {type(value).__name__}")
    if value != value:
        raise ValueError(f"{name}() argument 2 must be a number of seconds, not nan")
    return float(value)


def _cancel(ctx: _Ending, why: BaseException | None = None) -> None:
    if ctx.error is None:
        ctx.end(Canceled(), why)


def with_cancel(parent: Context) -> Derived[Callable[[], None]]:
    """A context that ends when the returned cancel() is called.  Go: context.WithCancel."""
    ctx = _derive(_parent(parent, "with_cancel"), None)
    return Derived((ctx, lambda: _cancel(ctx)))


def with_cancel_cause(parent: Context) -> Derived[Callable[[BaseException | None], None]]:
    """The same with cancel(exception), which cause() will tell.  Go: context.WithCancelCause."""
    ctx = _derive(_parent(parent, "with_cancel_cause"), None)

    def cancel(why: BaseException | None = None) -> None:
        if why is not None and not isinstance(why, BaseException):
            raise TypeError(f"cancel() argument 1 must be an exception or None, not {type(why).__name__}")
        _cancel(ctx, why)

    return Derived((ctx, cancel))


def with_deadline(parent: Context, when: float) -> Derived[Callable[[], None]]:
    """A context that ends at `when` (seconds, as time.monotonic() counts), if not before.  Go: context.WithDeadline."""
    ctx = _derive(_parent(parent, "with_deadline"), _number(when, "with_deadline"))
    return Derived((ctx, lambda: _cancel(ctx)))


def with_timeout(parent: Context, seconds: float) -> Derived[Callable[[], None]]:
    """A context that ends in so many seconds, if not before.  Go: context.WithTimeout."""
    ctx = _derive(_parent(parent, "with_timeout"), _time.monotonic() + _number(seconds, "with_timeout"))
    return Derived((ctx, lambda: _cancel(ctx)))


def with_value(parent: Context, key: object, value: object) -> Context:
    """A context whose value(key) is value.  Keys are compared by ==: use objects of your own.  Go: context.WithValue."""
    if key is None:
        raise ValueError("with_value() argument 2, the key, must not be None")
    return _Value(_parent(parent, "with_value"), key, value)


def without_cancel(parent: Context) -> Context:
    """A context with parent's values that does not end with it.  Go: context.WithoutCancel."""
    return Context(_parent(parent, "without_cancel"), None)


def after_func(ctx: Context, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Callable[[], bool]:
    """Start fn(*args, **kwargs) as a goroutine when ctx ends; now if it has.

    Returns stop(), which keeps fn from being started, and tells whether it did.  Go: context.AfterFunc.
    """
    source = _parent(ctx, "after_func")._source
    if not callable(fn):
        raise TypeError(f"after_func() argument 2 must be callable, not {type(fn).__name__}")
    callback = _Callback(fn, args, kwargs)
    if source is None:
        pending = [callback]
        return lambda: bool(pending) and pending.pop() is callback
    if not source.adopt(callback) and source.forget(callback):
        callback.start()
    return lambda: source.forget(callback)


def cause(ctx: Context) -> BaseException | None:
    """Why ctx has ended: what cancel() was given, else err(); None while it has not.  Go: context.Cause."""
    source = _parent(ctx, "cause")._source
    return None if source is None or source.error is None else source.why
