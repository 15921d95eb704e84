"""faulthandler works beside goroutines: dumps on request, by the clock, by a signal and at a crash."""

from __future__ import annotations

import os
import signal
import sys

import pytest

PRELUDE = """
import gmp, ctypes, faulthandler, os, signal, sys, tempfile, threading, time
from tests.waiting import parked
ch = gmp.Chan()
def inner():
    ch.recv()
def worker():
    inner()
def spawn(n):
    gs = [gmp.go(worker) for _ in range(n)]
    parked(*gs)
dump = tempfile.TemporaryFile("w+")
def dumped():
    dump.seek(0)
    return dump.read()
"""


@pytest.mark.parametrize("n", [0, 3, 1000])
def test_dump_all_threads(child, n: int) -> None:
    """Goroutines show as threads, parked ones too; a hundred at most, as faulthandler has it."""
    c = child(
        PRELUDE
        + f"""
spawn({n})
def f():
    faulthandler.dump_traceback(all_threads=True)
f()
gmp.go(f).join()
t = threading.Thread(target=f)
t.start()
t.join()
for _ in range({n}):
    ch.send(1)
print("end")
"""
    ).expect(0, "end")
    assert c.err.count(" in inner\n") >= min(n, 90) * 3
    if n < 100:
        assert c.err.count("Current thread 0x") == 3
        assert c.err.count(" in f\n") == 3


def test_dump_one_goroutine(child) -> None:
    c = child(
        PRELUDE
        + """
spawn(3)
def f():
    faulthandler.dump_traceback(all_threads=False)
gmp.go(f).join()
print("end")
"""
    ).expect(0, "end")
    assert "in inner" not in c.err
    assert c.err.count(" in f\n") == 1


@pytest.mark.parametrize(
    "main",
    ["gmp.sleep(0.5)", "time.sleep(0.5)", "spin(0.5)", "gmp.go(spin, 0.5).join()", "gmp.go(time.sleep, 0.5).join()"],
)
def test_dump_later(child, main: str) -> None:
    c = child(
        PRELUDE
        + f"""
def spin(seconds):
    t = time.monotonic()
    while time.monotonic() - t < seconds:
        pass
spawn(5)
faulthandler.dump_traceback_later(0.3, file=dump)
while not dumped():
    {main}
faulthandler.cancel_dump_traceback_later()  # waits for its end
print(dumped())
"""
    ).expect(0)
    assert "Timeout (0:00:00.300000)!" in c.out
    assert c.out.count(" in inner\n") == 5


def test_dump_later_and_exit(child) -> None:
    c = child(PRELUDE + "spawn(5)\nfaulthandler.dump_traceback_later(0.3, exit=True)\nsum(range(1 << 62))\n").expect(1)
    assert c.err.count(" in inner\n") == 5


@pytest.mark.parametrize("where", ["parked", "blocked", "goroutine"])
def test_registered_signal(child, where: str) -> None:
    run = {"parked": "gmp.sleep(.5)", "blocked": "time.sleep(.5)", "goroutine": "gmp.go(time.sleep, .5).join()"}[where]
    c = child.start(
        PRELUDE
        + f"""
spawn(3)
faulthandler.register(signal.SIGUSR1, file=dump)
print("ready", flush=True)
while dumped().count(" in inner\\n") < 3:
    {run}
print("end")
"""
    )
    assert c.readline() == "ready\n"
    os.kill(c.process.pid, signal.SIGUSR1)
    c.finish(20).expect(0, "end")


CRASHES = {
    "segfault": ("ctypes.string_at(8)", signal.SIGSEGV, "Segmentation fault"),
    "sigsegv": ("faulthandler._sigsegv()", signal.SIGSEGV, "Segmentation fault"),
    "abort": ("faulthandler._sigabrt()", signal.SIGABRT, "Aborted"),
    "division": ("faulthandler._sigfpe()", signal.SIGFPE, "Floating"),
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("where", ["main", "goroutine", "migrated", "thread"])
@pytest.mark.parametrize("crash", CRASHES)
def test_crash(child, crash: str, where: str, order: str) -> None:
    call, sig, title = CRASHES[crash]
    enable = "import faulthandler; faulthandler.enable()\n"
    run = {
        "main": "crash()",
        "goroutine": "gmp.go(crash).join()",
        "migrated": "gmp.go(lambda: (time.sleep(0.05), gmp.sleep(0.01), crash())).join()",
        "thread": "threading.Thread(target=crash).start(); gmp.sleep(60)",
    }[where]
    script = f"def crash():\n    {call}\nspawn(3)\n{run}\n"
    c = child((enable if order == "before" else "") + PRELUDE + (enable if order == "after" else "") + script)
    c.expect(-sig)
    assert f"Fatal Python error: {title}" in c.err, c
    assert ", in crash\n" in c.err or " in crash\n" in c.err, c
    assert c.err.count(" in inner\n") == 3, c


@pytest.mark.parametrize("faulthandler", [True, False])
def test_crash_among_a_thousand(child, faulthandler: bool) -> None:
    """faulthandler shows a hundred threads, perhaps not the one that matters: gmp adds that."""
    enable = "faulthandler.enable()\n" if faulthandler else ""
    script = """
def crash():
    ctypes.string_at(8)
first = gmp.Chan()
g = gmp.go(lambda: (first.recv(), crash()))
print(g.id, flush=True)
spawn(1000)
first.send(1)
g.join()
"""
    c = child(PRELUDE + enable + script).expect(-signal.SIGSEGV)
    assert ("Fatal Python error" in c.err) == faulthandler
    assert f"A fault in\ngoroutine {int(c.out)} [running]:\n" in c.err, c
    assert ", in crash\n" in c.err[c.err.index("A fault in") :], c


def test_crash_without_faulthandler(child) -> None:
    c = child(PRELUDE + "spawn(1)\ngmp.go(ctypes.string_at, 8).join()\n").expect(-signal.SIGSEGV)
    assert c.err == ""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="faulthandler shows C stacks from 3.14 on")
def test_c_stack(child) -> None:
    """The unwinder stops at the bottom of a goroutine's stack."""
    c = child(
        PRELUDE
        + """
def f():
    faulthandler.dump_c_stack()
f()
gmp.go(f).join()
gmp.go(lambda: (time.sleep(0.05), gmp.sleep(0.01), f())).join()
print("end")
"""
    ).expect(0, "end")
    assert c.err.count("C stack") == 3
