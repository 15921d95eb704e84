"""Goroutine stacks as text, in Go's form with Python's frames."""

from __future__ import annotations

import traceback
from types import FrameType

from gmp import _core


def format_goroutine(entry: tuple[object, ...]) -> str:
    """One goroutine as _core._goroutines lists it: its head line, its frames, innermost last, and where it was created."""
    goid, parent, status, minutes, name, created, frame = entry
    waited = f", {minutes} minutes" if minutes else ""
    lines = [f"goroutine {goid} [{status}{waited}] {name}:\n"]
    if frame is not None:
        lines += traceback.format_list(traceback.extract_stack(frame))  # type: ignore[arg-type]
    if created is not None:
        lines.append(f"created by {created}" + (f" in goroutine {parent}\n" if parent else "\n"))
    return "".join(lines)


def format_all(frame: FrameType | None) -> str:
    """All goroutines, the calling one first and from this frame on, a blank line between two."""
    me = _core._goid()
    entries = sorted({e[0]: e for e in _core._goroutines()}.values(), key=lambda e: (e[0] != me, e[0]))
    return "\n".join(format_goroutine((*e[:6], frame) if e[0] == me else e) for e in entries)
