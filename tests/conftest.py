"""What every test gets: a time limit that shows what hung, and a check that nothing is left behind.

The limit has three stages, each for a runtime more broken than the one before; none of them needs gmp to be sound.
    1. at the limit     SIGALRM in the main thread: prints all stacks and fails the test; the run goes on
    2. 5 s later        a daemon thread prints them, if the main thread did not react
    3. 10 s later       faulthandler's own C thread, which needs no GIL, prints all thread stacks and ends the process
The end of the interpreter has 30 s, under the last stage alone.
The limit is 60 s, times GMP_TEST_SLOWDOWN, or what @pytest.mark.timeout(seconds) says.  When GMP_TEST_BUDGET seconds of the
whole run are used up, no further test starts and the run has failed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

import pytest

LIMIT = 60.0
SLOWDOWN = float(os.environ.get("GMP_TEST_SLOWDOWN", "0") or 0) or (5.0 if os.environ.get("GMP_SANITIZE") else 1.0)
MAX_THREADS = 600  # that a test may leave the runtime with: the most that ran at once in any test, with room
BUDGET = float(os.environ.get("GMP_TEST_BUDGET", "0") or 0)


class TestTimeout(BaseException):
    """The test took longer than its limit.  No Exception: a test that catches those must not swallow it."""

    __test__ = False


class Watchdog:
    def __init__(self, stderr: TextIO) -> None:
        self.stderr = stderr
        self.started = time.monotonic()
        self.test = ""
        self.limit = 0.0
        self.deadline = 0.0  # of stage 2; 0: nothing runs
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None

    def arm(self, test: str, limit: float) -> None:
        self.test, self.limit = test, limit
        faulthandler.dump_traceback_later(limit + 10, exit=True, file=self.stderr)
        signal.signal(signal.SIGALRM, self.on_alarm)
        signal.setitimer(signal.ITIMER_REAL, limit)
        with self.changed:
            self.deadline = time.monotonic() + limit + 5
            self.changed.notify()
        if self.thread is None:
            self.thread = threading.Thread(target=self.watch, name="test watchdog", daemon=True)
            self.thread.start()

    def disarm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.deadline = 0.0
        faulthandler.cancel_dump_traceback_later()

    def on_alarm(self, signum: int, frame: FrameType | None) -> NoReturn:
        self.dump()
        raise TestTimeout(f"{self.test} ran longer than {self.limit:g} s; the stacks are on stderr")

    def watch(self) -> None:
        while True:
            with self.changed:
                if not self.deadline:
                    self.changed.wait()
                    continue
                late = time.monotonic() - self.deadline
                if late < 0:
                    self.changed.wait(-late)
                    continue
                self.deadline = 0.0
            self.dump()

    def dump(self) -> None:
        print(f"\n+++ {self.test}: time limit of {self.limit:g} s +++", file=self.stderr)
        print(goroutine_stacks(), file=self.stderr, flush=True)
        faulthandler.dump_traceback(file=self.stderr, all_threads=True)
        print("+++", file=self.stderr, flush=True)


def goroutine_stacks() -> str:
    """Every goroutine's stack as the runtime tells it, or why it cannot.  gmp is not imported for this."""
    gmp = sys.modules.get("gmp")
    if gmp is None:
        return "gmp is not imported"
    try:
        return str(gmp.runtime.stack(all=True))
    except Exception as e:
        return f"gmp.runtime.stack(all=True) failed: {e!r}"


def num_goroutine() -> int | None:
    runtime = getattr(sys.modules.get("gmp"), "runtime", None)
    try:
        return int(runtime.num_goroutine()) if runtime is not None else None
    except Exception:
        return None


WATCHDOG = pytest.StashKey[Watchdog]()


def pytest_configure(config: pytest.Config) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})  # whoever started this process may have blocked it
    # The real stderr: by the time it is needed, descriptor 2 may be captured.
    config.stash[WATCHDOG] = Watchdog(os.fdopen(os.dup(2), "w", encoding="utf-8"))


def pytest_report_header(config: pytest.Config) -> str:
    try:
        import gmp
    except ImportError as e:
        return f"gmp: cannot be imported: {e}"
    return f"gmp: {gmp.__file__}"


def pytest_unconfigure(config: pytest.Config) -> None:
    watchdog = config.stash[WATCHDOG]
    watchdog.disarm()
    faulthandler.dump_traceback_later(30 * SLOWDOWN, exit=True, file=watchdog.stderr)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    watchdog = item.config.stash[WATCHDOG]
    mark = item.get_closest_marker("timeout")
    limit = float(mark.args[0]) if mark else LIMIT
    watchdog.arm(item.nodeid, limit * SLOWDOWN)
    try:
        return (yield)  # type: ignore[return-value]
    finally:
        watchdog.disarm()
        if BUDGET and nextitem is not None and time.monotonic() - watchdog.started > BUDGET:
            item.session.shouldfail = f"the run's time budget of {BUDGET:g} s is used up"


@pytest.fixture(autouse=True)
def no_goroutine_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test ends with no more goroutines than it began with, and the runtime with a bounded number of threads.

    Goroutines on their way out get ten seconds.
    """
    before = num_goroutine()
    yield
    gmp = sys.modules.get("gmp")
    if gmp is not None:
        threads = gmp.runtime.stats()["threads"]
        assert threads <= MAX_THREADS, f"the runtime keeps {threads} threads"
    if before is None or request.node.get_closest_marker("leaks"):
        return
    deadline = time.monotonic() + 10.0 * SLOWDOWN
    while (now := num_goroutine()) is not None and now > before:
        if time.monotonic() > deadline:
            pytest.fail(f"{now - before} goroutine(s) left behind:\n{goroutine_stacks()}", pytrace=False)
        time.sleep(0.005)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost and 127.0.0.1 with its key, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl command to make a certificate with")
    here = tmp_path_factory.mktemp("tls")
    command = f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem -out cert.pem"
    command += " -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    made = subprocess.run(command.split(), cwd=here, capture_output=True, text=True, timeout=60)
    if made.returncode != 0:
        pytest.skip(f"openssl makes no certificate: {made.stderr}")
    both = here / "both.pem"
    both.write_bytes((here / "cert.pem").read_bytes() + (here / "key.pem").read_bytes())
    return both


def open_files() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """A stricter check, on request: no file descriptor, no OS thread and no object of a gmp type is left behind either.

    Things the runtime makes once and keeps (a netpoller, idle threads) must exist before: warm up first.
    """
    gc.collect()
    files, threads, objects = open_files(), threading.active_count(), count_gmp_objects()
    yield
    gc.collect()
    left = {fd: name for fd, name in open_files().items() if files.get(fd) != name}
    assert not left, f"open files left behind: {left}"
    assert threading.active_count() <= threads, f"threads left behind: {threading.enumerate()}"
    more = {k: n - objects.get(k, 0) for k, n in count_gmp_objects().items() if n > objects.get(k, 0)}
    assert not more, f"objects left behind: {more}"


def count_gmp_objects() -> dict[str, int]:
    counts: dict[str, int] = {}
    for o in gc.get_objects():
        kind: type[Any] = type(o)
        if kind.__module__.partition(".")[0] == "gmp":
            counts[kind.__qualname__] = counts.get(kind.__qualname__, 0) + 1
    return counts


class Child:
    """A script run by the same Python with the same gmp, in a process group of its own."""

    def __init__(
        self, script: str, *args: str, python: tuple[str, ...] = (), env: dict[str, str] | None = None
    ) -> None:
        # A crashing child is part of a test: it leaves no core file behind.
        script = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n" + textwrap.dedent(script)
        self.process = subprocess.Popen(
            [sys.executable, *python, "-c", script, *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONFAULTHANDLER": "", **(env or {})},
            start_new_session=True,
        )
        self.out = self.err = ""

    def finish(self, timeout: float = 30.0) -> Child:
        """Wait for its end; past the timeout it is killed and the test fails, with its output shown."""
        try:
            self.out, self.err = self.process.communicate(timeout=timeout * SLOWDOWN)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGABRT)
                time.sleep(0.2)
            self.kill()
            self.out, self.err = self.process.communicate()
            pytest.fail(f"the child still ran after {timeout:g} s\n{self}", pytrace=False)
        self.kill()  # what it may have started
        return self

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def readline(self) -> str:
        """The next line it prints.  The test's own time limit holds."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def expect(self, code: int = 0, out: str | None = None) -> Child:
        """Check its exit code (negative: the signal that ended it) and its standard output, blanks around it apart."""
        if self.process.poll() is None:
            self.finish()
        if self.process.returncode != code or (out is not None and self.out.strip() != out):
            want = f"exit code {code}" + ("" if out is None else f" and output {out!r}")
            pytest.fail(f"expected {want}\n{self}", pytrace=False)
        return self

    def __str__(self) -> str:
        return f"exit code {self.process.returncode}\n--- stdout\n{self.out}\n--- stderr\n{self.err}\n---"


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    """child(script, *args, python=(options,), env={}) starts one and waits for it; child.start(...) does not wait."""
    started: list[Child] = []

    def start(script: str, *args: str, python: tuple[str, ...] = (), env: dict[str, str] | None = None) -> Child:
        started.append(Child(script, *args, python=python, env=env))
        return started[-1]

    def run(
        script: str, *args: str, timeout: float = 30.0, python: tuple[str, ...] = (), env: dict[str, str] | None = None
    ) -> Child:
        return start(script, *args, python=python, env=env).finish(timeout)

    run.start = start  # type: ignore[attr-defined]
    yield run
    for c in started:
        c.kill()
        for pipe in (c.process.stdout, c.process.stderr):
            if pipe is not None:
                pipe.close()
        c.process.wait()
