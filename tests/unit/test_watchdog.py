"""tests/conftest.py itself: a test that hangs is shown and ended, a leak is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"


def run_pytest(folder: Path, body: str, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "test_child.py").write_text(body)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    timeout(s): x\n    leaks(why): x\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(folder)]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("GMP_TEST", "PYTEST_"))}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50, env={**inherited, **env})


def test_hanging_test_is_shown_and_failed(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        """
import time, threading, pytest

@pytest.mark.timeout(1)
def test_hangs():
    threading.Event().wait()

def test_next():
    pass
""",
        GMP_TEST_SLOWDOWN="1",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "TestTimeout: test_child.py::test_hangs ran longer than 1 s" in done.stdout
    assert "+++ test_child.py::test_hangs: time limit of 1 s +++" in done.stderr
    assert "in test_hangs" in done.stderr


@pytest.mark.slow
def test_test_that_holds_the_gil_ends_the_run(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        """
import pytest

@pytest.mark.timeout(1)
def test_hangs():
    sum(range(1 << 62))
""",
        GMP_TEST_SLOWDOWN="1",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Timeout" in done.stderr
    assert "in test_hangs" in done.stderr


def test_budget(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        """
import time

def test_long():
    time.sleep(0.2)

def test_never_run():
    raise AssertionError
""",
        GMP_TEST_BUDGET="0.1",
    )
    assert done.returncode == 1
    assert "time budget of 0.1 s is used up" in done.stdout
    assert "AssertionError" not in done.stdout


def test_goroutine_leak_is_found(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        """
import gmp, pytest

keep = gmp.Chan()

def test_leaks():
    gmp.go(keep.recv)

@pytest.mark.leaks("to see that it is allowed")
def test_may_leak():
    gmp.go(keep.recv)

def test_clean():
    gmp.go(print).join()
""",
        GMP_TEST_SLOWDOWN="0.1",
    )
    assert "1 goroutine(s) left behind" in done.stdout, done.stdout + done.stderr
    assert "3 passed, 1 error" in done.stdout


@pytest.mark.slow
def test_hanging_interpreter_is_ended(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        """
import atexit, threading

def test_passes():
    atexit.register(threading.Event().wait)
""",
        GMP_TEST_SLOWDOWN="0.05",
    )
    assert done.returncode == 1
    assert "1 passed" in done.stdout
    assert "Timeout (0:00:01.5" in done.stderr
