"""What happens to an exception that a goroutine raised and nobody collects by result() or join()."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType
from typing import NamedTuple


class ExceptHookArgs(NamedTuple):
    """What gmp.excepthook is called with."""

    exc_type: type[BaseException]
    exc_value: BaseException
    exc_traceback: TracebackType | None
    goroutine_id: int
    name: str
    created_by: str | None  # "module.function at file:line"


def excepthook(args: ExceptHookArgs, /) -> None:
    """Print the exception, the goroutine and where it was created to sys.stderr.

    Assign another function of one argument to gmp.excepthook to have it called instead, as with threading.excepthook.
    """
    stderr = sys.stderr if sys.stderr is not None else sys.__stderr__
    if stderr is None:
        return
    lines = [f"Exception in goroutine {args.goroutine_id} ({args.name}):\n"]
    lines += traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback)
    if args.created_by is not None:
        lines.append(f"created by {args.created_by}\n")
    stderr.write("".join(lines))
    stderr.flush()


def report(exc: BaseException, goroutine_id: int, name: str | None, created_by: str | None) -> None:
    """Call gmp.excepthook; called by the core, once for each exception."""
    import gmp

    args = ExceptHookArgs(type(exc), exc, exc.__traceback__, goroutine_id, name or "", created_by)
    hook = getattr(gmp, "excepthook", excepthook)
    try:
        hook(args)
    except BaseException:
        if hook is excepthook:
            raise
        stderr = sys.stderr if sys.stderr is not None else sys.__stderr__
        if stderr is not None:
            stderr.write("Exception in gmp.excepthook:\n" + traceback.format_exc())
        excepthook(args)
