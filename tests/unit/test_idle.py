"""An idle process costs nothing: no thread of it runs or wakes.  Idle threads end."""

from __future__ import annotations

import itertools
import os
import re
import sys
import textwrap
import time
from pathlib import Path

import pytest

import gmp
from tests.waiting import until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

PRELUDE = """
import gmp, os, socket, sys, threading, time
def ready():
    print("ready", flush=True)
def forever():
    gmp.sleep(1000)
"""

SHAPES = {
    "channels": """
        ch = gmp.Chan()
        for _ in range(1000):
            gmp.go(ch.recv)
        gmp.go(ready)
        forever()
    """,
    "selects": """
        for _ in range(100):
            gmp.go(gmp.select, gmp.recv(gmp.Chan()), gmp.send(gmp.Chan(), 1))
        gmp.go(ready)
        forever()
    """,
    "sockets": """
        import gmp.net
        pairs = [socket.socketpair() for _ in range(100)]
        for a, b in pairs:
            a.setblocking(False)
            gmp.go(gmp.net.wait_read, a.fileno())
        gmp.go(ready)
        gmp.net.wait_read(pairs[0][1].fileno())
    """,
    "a listener": """
        import gmp.net
        listener = gmp.net.listen("127.0.0.1:0")
        gmp.go(ready)
        listener.accept()
    """,
    "sockets with deadlines": """
        import gmp.net
        pairs = [socket.socketpair() for _ in range(100)]
        for i, (a, b) in enumerate(pairs):
            a.setblocking(False)
            gmp.go(gmp.net.wait_read, a.fileno(), 1000 + i)
        gmp.go(ready)
        forever()
    """,
    "one long timer": """
        gmp.go(ready)
        forever()
    """,
    "timers and tickers that nobody waits for": """
        timers = [gmp.time.Timer(1000 + i) for i in range(100)]
        ticker = gmp.time.Ticker(1000)
        gmp.time.after_func(1000, ready)
        gmp.go(ready)
        forever()
    """,
    "after a burst": """
        gmp._core._set_idle_threads(0.05, 4)
        for g in [gmp.go(time.sleep, 0.1) for _ in range(50)]:
            g.join()
        for g in [gmp.go(gmp.sleep, 0.01) for _ in range(10_000)]:
            g.join()
        while gmp.runtime.stats()["threads"] > 8:
            gmp.sleep(0.02)
        gmp.sleep(0.2)
        gmp.go(ready)
        forever()
    """,
    "blocked goroutines": """
        lock = threading.Lock()
        lock.acquire()
        for _ in range(10):
            gmp.go(lock.acquire)
        t = threading.Timer(0.3, ready)  # main is blocked, too: while another goroutine blocks its thread, sysmon looks for
        t.start()                        # signals now and then
        time.sleep(1000)
    """,
    "threads that wait in gmp": """
        ch = gmp.Chan()
        for _ in range(10):
            threading.Thread(target=ch.recv, daemon=True).start()
        from tests.waiting import until, waiting
        until(lambda: waiting("chan receive") == 10)
        gmp.go(ready)
        forever()
    """,
}


def usage(pid: int) -> dict[str, tuple[str, int, int]]:
    """{thread: (name, switches of its own will or not, ns on a CPU)}"""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines() if ":" in line)
        switches = int(fields["voluntary_ctxt_switches"]) + int(fields["nonvoluntary_ctxt_switches"])
        found[task.name] = (fields["Name"].strip(), switches, int((task / "schedstat").read_text().split()[0]))
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_runs(child, shape: str) -> None:
    c = child.start(PRELUDE + textwrap.dedent(SHAPES[shape]))
    assert c.readline() == "ready\n", c.finish(5)
    if not os.path.exists(f"/proc/{c.process.pid}/schedstat"):
        pytest.skip("no schedstat")
    now = usage(c.process.pid)

    def nothing_has_run() -> bool:
        nonlocal now
        before = now
        time.sleep(1)
        now = usage(c.process.pid)
        return now == before

    until(nothing_has_run)  # before that they all go to sleep
    assert len(now) <= (150 if os.environ.get("GMP_SANITIZE") else 30)  # a slow build looks blocked: more threads come
    c.kill()


def test_threads_end_and_come_again(child) -> None:
    """Their goroutines, callbacks that look for the thread's state included, run on new threads as on the old ones."""
    child(
        """
        import ctypes, gmp, sqlite3, threading, time
        from tests.waiting import until
        gmp._core._set_idle_threads(0.03, 1)
        db = sqlite3.connect(":memory:", check_same_thread=False)
        db.create_function("f", 1, lambda x: x + 1)
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda x: x + 1)
        def threads():
            return gmp.runtime.stats()["threads"]
        lock = gmp.sync.Mutex()
        def work(i):
            for _ in range(3):
                time.sleep(0.01)
                assert callback(i) == i + 1
                with lock:
                    assert db.execute("select f(?)", (i,)).fetchone() == (i + 1,)
                gmp.gosched()
                start.recv()
        start = gmp.Chan()
        gs = [gmp.go(work, i) for i in range(40)]   # they migrate from threads that end to others
        for _ in range(3):
            gmp.sleep(0.15)
            for g in gs:
                start.send(None)
        for g in gs:
            g.join()
        for _ in range(5):
            release = threading.Event()
            gs = [gmp.go(release.wait) for _ in range(30)]
            until(lambda: threads() >= 30)
            release.set()
            for g in gs:
                g.join()
            until(lambda: threads() <= 4)
        assert threading.active_count() < 50
        print("end")
        """
    ).expect(0, "end")


def test_thread_limit(child) -> None:
    """Past the limit goroutines wait for a blocking call to end, and one line says so."""
    c = child(
        """
        import gmp, threading, time
        from tests.waiting import until
        assert gmp.runtime.set_max_threads(5) == 10_000
        t0 = time.monotonic()
        gs = [gmp.go(time.sleep, 0.05) for _ in range(40)]
        n = 0
        def count():
            global n
            n += 1
        gs += [gmp.go(count) for _ in range(1000)]
        for g in gs:
            g.join()
        assert n == 1000
        assert time.monotonic() - t0 > 0.2              # no more than six at a time
        assert gmp.runtime.stats()["threads"] <= 6
        assert gmp.runtime.set_max_threads(10_000) == 5
        release = threading.Event()
        gs = [gmp.go(release.wait) for _ in range(40)]
        until(lambda: gmp.runtime.stats()["threads"] > 6)
        release.set()
        for g in gs:
            g.join()
        print("end")
        """
    ).expect(0, "end")
    assert c.err.count("\n") == 1
    assert c.err.startswith("gmp: the limit of 5 threads is reached, as many goroutines are blocked in calls; ")
    assert "gmp.runtime.set_max_threads(n)" in c.err


def test_thread_limit_bad_input() -> None:
    for bad in (0, -1, 1 << 31, 1 << 80):
        with pytest.raises(ValueError, match="must be 1 to"):
            gmp.runtime.set_max_threads(bad)
    for wrong in (1.5, "5", None):
        with pytest.raises(TypeError, match="must be an int"):
            gmp.runtime.set_max_threads(wrong)  # type: ignore[arg-type]


# ---- GMPDEBUG ----


def test_schedtrace(child) -> None:
    c = child.start(
        "import gmp, time\ngs = [gmp.go(gmp.Chan().recv) for _ in range(3)]\ntime.sleep(0.3)\ngmp.sleep(1000)",
        env={"GMPDEBUG": "schedtrace=50"},
    )
    times = []
    for _ in range(12):
        line = c.process.stderr.readline()
        m = re.fullmatch(
            r"SCHED (\d+)ms: gomaxprocs=1 idleprocs=[01] threads=\d+ spinningthreads=0 idlethreads=\d+ runqueue=\d+ \[\d+\] set=python\n",
            line,
        )
        assert m, line
        times.append(int(m[1]))
    assert all(b - a >= 49 for a, b in itertools.pairwise(times)), times


def test_schedtrace_while_the_gil_is_held(child) -> None:
    c = child("import ctypes, gmp\nctypes.PyDLL(None).usleep(900_000)", env={"GMPDEBUG": "schedtrace=20"}).expect(0)
    assert c.err.count("SCHED ") >= 3


def test_scheddetail(child) -> None:
    c = child.start(
        "import gmp, time\ngs = [gmp.go(gmp.Chan().recv) for _ in range(3)]\ngmp.go(time.sleep, 1000)\ngmp.sleep(1000)",
        env={"GMPDEBUG": "schedtrace=100,scheddetail=1"},
    )
    line = c.process.stderr.readline()
    while True:  # until all are where they wait
        assert line.startswith("SCHED "), line
        block = line
        while not (line := c.process.stderr.readline()).startswith("SCHED "):
            block += line
        assert "\n  P0: status=" in block
        if (
            "\n  G1: status=4(sleep) m=nil lockedm=0\n" in block
            and "\n  M0: p=nil curg=nil spinning=false blocked=true lockedg=1\n" in block
            and block.count(": status=4(chan receive) m=nil lockedm=nil\n") == 3
            and ": status=3() m=" in block  # in time.sleep
        ):
            break


@pytest.mark.parametrize(
    "value", ["schedtrace", "schedtrace=-5", "nonsense=1", "schedtrace=1,2", "=", "schedtrace=1e3"]
)
def test_gmpdebug_that_is_wrong(child, value: str) -> None:
    c = child("import gmp\nprint(gmp.go(int).result())", env={"GMPDEBUG": value}).expect(0, "0")
    warnings = [line for line in c.err.splitlines() if not line.startswith("SCHED")]
    assert len(warnings) == 1
    assert warnings[0].startswith('gmp: GMPDEBUG: "')
    assert "schedtrace=MILLISECONDS" in warnings[0]
