"""Timers: sleep, after, Timer, Ticker, after_func.  Go: package time.

Times are seconds, of the monotonic clock; what a timer's channel delivers is time.time() of the moment it fired.  A Timer or
Ticker that nobody refers to any more goes, whether it was stopped or not; one of after_func stays until it has fired.  In the
child of a fork nothing fires that was started in the parent.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

from gmp import _core, _excepthook
from gmp._core import Chan, go, sleep

__all__ = ["Ticker", "Timer", "after", "after_func", "sleep"]


class Timer:
    """Sends the time to its channel `c`, once, after so many seconds.

        timeout = Timer(5)
        match select(recv(answers), recv(timeout.c)).index: ...

    c looks unbuffered; it is not for sending or closing.  Go: time.Timer, time.NewTimer.
    """

    __slots__ = ("__weakref__", "_timer", "c")

    c: Chan[float]  # None for a timer of after_func, which has no channel
    _timer: Chan[float] | _core.FuncTimer

    def __init__(self, seconds: float) -> None:
        self.c = self._timer = _core.timer_chan()
        _core.timer_start(self._timer, seconds, False, "Timer()")

    def stop(self) -> bool:
        """Keep it from firing.  Returns whether it would have fired, or what it sent was not received yet.

        After stop nothing comes from c until reset; a function that was started goes on.  Go: (*time.Timer).Stop.
        """
        return _core.timer_stop(self._timer)

    def reset(self, seconds: float) -> bool:
        """Let it fire after so many seconds from now, whatever it did before.  Returns what stop would.

        Nothing that was sent before comes from c.  Go: (*time.Timer).Reset.
        """
        if isinstance(self._timer, _core.FuncTimer):
            _start_dispatcher()
        return _core.timer_start(self._timer, seconds, False, "Timer.reset()")


class Ticker:
    """Sends the time to its channel `c` every so many seconds, until stop.

    Ticks that nobody receives in time are dropped.  Raises ValueError when seconds is not above 0.  Go: time.Ticker.
    """

    __slots__ = ("__weakref__", "c")

    def __init__(self, seconds: float) -> None:
        self.c: Chan[float] = _core.timer_chan()
        _core.timer_start(self.c, seconds, True, "Ticker()")

    def stop(self) -> None:
        """No more ticks.  The channel is not closed.  Go: (*time.Ticker).Stop."""
        _core.timer_stop(self.c)

    def reset(self, seconds: float) -> None:
        """Go on with another period; the next tick comes after that.  Go: (*time.Ticker).Reset."""
        _core.timer_start(self.c, seconds, True, "Ticker.reset()")


def after(seconds: float) -> Chan[float]:
    """A channel that delivers the time, once, after so many seconds.  Go: time.After."""
    c = _core.timer_chan()
    _core.timer_start(c, seconds, False, "after()")
    return c


def after_func(seconds: float, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Timer:
    """Start fn(*args, **kwargs) as a goroutine after so many seconds, with a copy of the caller's context variables.

    The Timer that is returned can stop that, and start it over by reset; its c is None.  Go: time.AfterFunc.
    """
    if not callable(fn):
        raise TypeError(f"after_func() argument 2 must be callable, not {type(fn).__name__}")
    timer = Timer.__new__(Timer)
    timer.c = None  # type: ignore[assignment]
    timer._timer = _core.FuncTimer((contextvars.copy_context(), fn, args, kwargs))
    _start_dispatcher()
    _core.timer_start(timer._timer, seconds, False, "after_func()")
    return timer


def _start_dispatcher() -> None:
    if not _core._set_dispatching(True):
        try:
            go(_dispatch)
        except BaseException:
            _core._set_dispatching(False)
            raise


def _dispatch() -> None:
    """The goroutine that starts what is due.  It is the runtime's own: no count and no stack trace shows it."""
    for _ in _core._dispatch():
        for context, fn, args, kwargs in _core._take_due():
            try:
                context.run(go, fn, *args, **kwargs)
            except BaseException as e:  # no memory for a goroutine
                _excepthook.report(e, _core._goid(), "after_func", None)
            del context, fn, args, kwargs  # not kept until the next one is due
