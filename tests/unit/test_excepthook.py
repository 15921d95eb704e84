"""An exception that nobody collects is reported once, by the hook; one that somebody collects is not."""

from __future__ import annotations

import gc
import io
import sys
from collections.abc import Callable, Iterator

import pytest

import gmp
from tests.waiting import until


class Boom(Exception): ...


def boom() -> None:
    raise Boom("bang")


@pytest.fixture
def ended() -> Callable[[], None]:
    """Waits for the goroutines that the test has started: a report reads source files, and meanwhile others go on."""
    before = gmp.runtime.num_goroutine()

    def wait() -> None:
        until(lambda: gmp.runtime.num_goroutine() <= before, turn=lambda: gmp.sleep(0.0005))

    return wait


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[gmp.ExceptHookArgs]]:
    seen: list[gmp.ExceptHookArgs] = []
    monkeypatch.setattr(gmp, "excepthook", seen.append)
    yield seen
    gc.collect()


def test_dropped_handle_reports_at_once(reports, ended) -> None:
    g = gmp.go(boom)
    goid = g.id
    del g
    ended()
    (args,) = reports
    assert args.exc_type is Boom
    assert str(args.exc_value) == "bang"
    assert args.exc_traceback.tb_next.tb_frame.f_code.co_name == "boom" if args.exc_traceback.tb_next else True
    assert args.goroutine_id == goid
    assert args.name == "boom"
    assert "test_dropped_handle_reports_at_once at " in args.created_by
    assert __file__.rpartition("/")[2] in args.created_by


def test_held_handle_reports_when_dropped(reports, ended) -> None:
    g = gmp.go(boom)
    ended()
    assert g.done
    assert reports == []
    del g
    assert len(reports) == 1


def test_collected_is_not_reported(reports) -> None:
    for wait in ("join", "result"):
        g = gmp.go(boom)
        with pytest.raises(Boom):
            getattr(g, wait)()
        del g
    gc.collect()
    assert reports == []


def test_timeout_does_not_collect(reports, ended) -> None:
    ch: gmp.Chan[None] = gmp.Chan()

    def f() -> None:
        ch.recv()
        boom()

    g = gmp.go(f)
    with pytest.raises(TimeoutError):
        g.join(0.001)
    ch.send(None)
    ended()
    assert g.done
    del g
    assert len(reports) == 1


def test_joined_after_it_failed_by_one_of_two_holders(reports) -> None:
    g = gmp.go(boom)
    other = g
    with pytest.raises(Boom):
        g.join()
    del g, other
    assert reports == []


def test_system_exit_is_quiet(reports, ended) -> None:
    gmp.go(sys.exit, 3)
    ended()
    assert reports == []


def test_keyboard_interrupt_and_others_are_reported(reports, ended) -> None:
    for kind in (KeyboardInterrupt, GeneratorExit, gmp.ChanClosed):

        def f(kind=kind) -> None:
            raise kind("x")

        gmp.go(f)
        ended()
    assert [a.exc_type for a in reports] == [KeyboardInterrupt, GeneratorExit, gmp.ChanClosed]


def test_many(reports, ended) -> None:
    for _ in range(1000):
        gmp.go(boom)
    ended()
    assert len({a.goroutine_id for a in reports}) == 1000


def test_default_text(monkeypatch: pytest.MonkeyPatch, ended) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    gmp.go(boom)
    ended()
    text = out.getvalue()
    lines = text.splitlines()
    assert lines[0].startswith("Exception in goroutine ")
    assert "(boom)" in lines[0]
    assert lines[1] == "Traceback (most recent call last):"
    assert "Boom: bang" in text
    assert lines[-1].startswith("created by test_default_text at ")
    assert text.count("Traceback") == 1


def test_failing_hook_loses_nothing(monkeypatch: pytest.MonkeyPatch, ended) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)

    def bad(args: gmp.ExceptHookArgs) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(gmp, "excepthook", bad)
    gmp.go(boom)
    ended()
    assert "ZeroDivisionError" in out.getvalue()
    assert "Boom: bang" in out.getvalue()


def test_no_stderr(monkeypatch: pytest.MonkeyPatch, ended) -> None:
    """As under pythonw: nowhere to report to is no reason to fail."""
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "__stderr__", None)
    gmp.go(boom)
    ended()
    assert gmp.go(int).result() == 0


def test_hook_runs_in_the_goroutine_and_may_use_gmp(monkeypatch: pytest.MonkeyPatch) -> None:
    ch: gmp.Chan[str] = gmp.Chan()
    monkeypatch.setattr(gmp, "excepthook", lambda args: ch.send(args.name))
    gmp.go(boom)
    assert ch.recv(10) == "boom"


def test_exception_whose_str_fails(capsys: pytest.CaptureFixture[str], ended) -> None:
    class Nasty(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def f() -> None:
        raise Nasty

    gmp.go(f)
    ended()
    assert "Nasty" in capsys.readouterr().err


def test_reported_at_exit_when_the_handle_is_still_held(child) -> None:
    c = child("""
        import gmp
        from tests.waiting import until
        def boom(): raise ValueError("late")
        g = gmp.go(boom)
        until(lambda: g.done)
        print("end")
    """).expect(0, "end")
    assert c.err.count("ValueError: late") == 1
    assert "created by <module> at " in c.err


def test_hook_of_the_user_at_exit(child) -> None:
    child("""
        import gmp
        from tests.waiting import until
        def boom(): raise ValueError("late")
        gmp.excepthook = lambda args: print("hook", args.exc_value)
        g = gmp.go(boom)
        until(lambda: g.done)
    """).expect(0, "hook late")


def test_exception_with_a_reference_to_its_own_handle(reports, ended) -> None:
    """A cycle of handle and exception that nobody holds: collected, and reported once."""
    box: list[object] = []

    def f() -> None:
        exc = Boom()
        exc.handle = box.pop()  # type: ignore[attr-defined]
        raise exc

    box.append(gmp.go(f))
    ended()
    gc.collect()
    gc.collect()
    assert len(reports) == 1
