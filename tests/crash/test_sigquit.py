"""SIGQUIT prints every goroutine's stack and ends the process with status 2, whatever the main goroutine is doing."""

from __future__ import annotations

import os
import re
import signal

import pytest

# Whoever started the tests may have SIGQUIT ignored.
PRELUDE = """
import signal
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
import gmp, os, subprocess, sys, threading, time
from tests.waiting import parked, undisturbed, until
ch = gmp.Chan()
workers = []
def inner():
    ch.recv()
def worker():
    inner()
def spawn(n):
    for _ in range(n):
        workers.append(gmp.go(worker))
def settle():
    parked(*workers)
def ready():
    print("ready", flush=True)
def later():
    t = threading.Timer(0.3, ready)
    t.daemon = True
    t.start()
helping = []
def helper():                           # somebody who could wake main: no deadlock
    helping.append(1)
    time.sleep(60)
threading.Thread(target=helper, daemon=True).start()
until(lambda: helping)
"""

MAIN = {
    "parked": "later(); gmp.Chan().recv()",
    "asleep": "later(); gmp.sleep(60)",
    "blocked in C": "later(); time.sleep(60)",
    "in a lock": "later(); l = threading.Lock(); l.acquire(); l.acquire()",
    "waiting for a child": "later(); subprocess.run(['sleep', '60'], stdout=-3, stderr=-3)",
    "in a Python loop": "later()\nwhile True: pass",
    "yielding": "later()\nwhile True: gmp.gosched()",
    "joining a thread": "later(); t = threading.Thread(target=time.sleep, args=(60,)); t.start(); t.join()",
    "in a join": "later(); gmp.go(gmp.Chan().recv).join()",
    "behind a blocked goroutine": "g = gmp.go(time.sleep, 60); later(); g.join()",
    "behind a busy goroutine": "def spin():\n    while True: pass\ng = gmp.go(spin); later(); g.join()",
}


def quit(c) -> str:
    assert c.readline() == "ready\n", c.finish(5)
    os.kill(c.process.pid, signal.SIGQUIT)
    c.finish(20)
    c.expect(2)
    assert c.err.startswith("SIGQUIT: quit\n"), c
    return str(c.err)


def parts(text: str) -> list[str]:
    return text.split("\n\n")


@pytest.mark.parametrize("doing", MAIN)
def test_whatever_main_does(child, doing: str) -> None:
    err = quit(child.start(PRELUDE + "spawn(3)\nsettle()\n" + MAIN[doing]))
    assert "holds the GIL" not in err
    workers = [p for p in parts(err) if re.match(r"goroutine \d+ \[chan receive\]:\n", p) and "in worker" in p]
    assert len(workers) == 3, err
    for p in workers:
        lines = p.splitlines()
        assert re.fullmatch(r'  File "<string>", line \d+, in worker', lines[1]), p
        assert re.fullmatch(r'  File "<string>", line \d+, in inner', lines[2]), p
        assert re.fullmatch(r"created by spawn at <string>:\d+ in goroutine 1", lines[3]), p
        assert len(lines) == 4
    main = next(p for p in parts(err) if p.startswith("goroutine 1 ["))
    assert ", in <module>" in main, err
    assert "created by" not in main
    helper = [p for p in parts(err) if re.match(r"thread 0x[0-9a-f]{16} \[no goroutine\]:\n", p) and "in helper" in p]
    assert len(helper) == 1, err


def test_a_call_that_holds_the_gil(child) -> None:
    c = child.start(
        PRELUDE
        + """
import ctypes
spawn(3)
settle()
with undisturbed():
    spawn(1)
    ctypes.PyDLL(None).write(1, b"ready\\n", 6)  # which keeps the GIL
    sum(range(1 << 62))
"""
    )
    assert c.readline() == "ready\n"
    os.kill(c.process.pid, signal.SIGQUIT)
    c.finish(20)
    c.expect(2)
    assert "holds the GIL" in c.err
    assert (
        len(re.findall(r"^goroutine \d+ \[chan receive\]:\n  File .* in worker\n  File .* in inner\n", c.err, re.M))
        == 3
    )
    assert re.search(r"^goroutine \d+ \[runn\w+\]:\n  File .* in worker\ncreated by spawn at ", c.err, re.M), c
    assert re.search(r"^goroutine 1 \[running\]:\n  File .* in <module>\n", c.err, re.M), c


def test_goroutines_that_have_not_begun(child) -> None:
    """Also those that are queued without a G of their own."""
    c = child.start(PRELUDE + "spawn(500)\nready()\nwhile True: pass")
    err = quit(c)
    found = re.findall(
        r"^goroutine (\d+) \[(\w+)[^\]]*\]:\n(?:  File .*\n)*  File .* in (?:worker|inner)\ncreated by spawn", err, re.M
    )
    assert len({goid for goid, _ in found}) == 500, c


def test_waiting_time(child) -> None:
    err = quit(child.start(PRELUDE + "spawn(2)\nsettle()\ngmp._core._add_to_waits(185)\n" + MAIN["blocked in C"]))
    assert len(re.findall(r"^goroutine \d+ \[chan receive, 3 minutes\]:$", err, re.M)) == 2


def test_names_and_deep_stacks(child) -> None:
    err = quit(
        child.start(
            PRELUDE
            + """
def größe(n):
    if n:
        größe(n - 1)
    else:
        ch.recv()
workers.append(gmp.go(größe, 149))
def gen():
    yield ch.recv()
def nested():
    return [sorted([2, 1], key=lambda v: next(gen())) for _ in range(1)]
workers.append(gmp.go(nested))
gmp.go(len, ())                         # no Python function
workers.append(gmp.go(ch.recv))
settle()
"""
            + MAIN["parked"]
        )
    )
    deep = next(p for p in parts(err) if "größe" in p)
    assert "... 50 frames more ..." in deep
    assert deep.count(", in größe\n") == 100
    nested = next(p for p in parts(err) if ", in nested" in p)
    assert re.search(
        r"in nested\n(.*\n)?.*in <lambda>\n.*in gen\ncreated by <module>", nested.replace("in <listcomp>", "")
    )


def test_thousands(child) -> None:
    err = quit(child.start(PRELUDE + "spawn(5000)\nsettle()\n" + MAIN["parked"]))
    assert err.count("[chan receive]:\n") >= 5000


@pytest.mark.parametrize("ask", ["os.kill(os.getpid(), signal.SIGQUIT)", "signal.raise_signal(signal.SIGQUIT)"])
@pytest.mark.parametrize("where", ["main", "goroutine", "thread"])
def test_from_inside(child, where: str, ask: str) -> None:
    body = f"def f():\n    ready()\n    {ask}\n    time.sleep(60)\n"
    run = {
        "main": "f()",
        "goroutine": "gmp.go(f).join()",
        "thread": "threading.Thread(target=f).start(); gmp.sleep(60)",
    }
    c = child(PRELUDE + body + run[where])
    c.expect(2)
    assert ", in f" in c.err


def test_twice_at_once(child) -> None:
    c = child.start(PRELUDE + "spawn(20000)\nsettle()\n" + MAIN["parked"])
    assert c.readline() == "ready\n"
    for _ in range(20):
        os.kill(c.process.pid, signal.SIGQUIT)
    c.finish(20).expect(2)
    assert c.err.count("SIGQUIT: quit") == 1


# ---- when it is not ours ----


def test_switched_off(child) -> None:
    c = child.start(PRELUDE + MAIN["parked"], env={"GMPDEBUG": "sigquit=0"})
    assert c.readline() == "ready\n"
    os.kill(c.process.pid, signal.SIGQUIT)
    c.finish(20).expect(-signal.SIGQUIT)
    assert c.err == ""


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_handler_of_the_program(child, how: str) -> None:
    handler = (
        "import signal\nsignal.signal(signal.SIGQUIT, lambda *a: (print('mine', flush=True), handled.append(1)))\n"
    )
    prelude = PRELUDE.replace("import signal\nsignal.signal(signal.SIGQUIT, signal.SIG_DFL)\n", handler)
    if how == "after":
        prelude = PRELUDE + handler
    c = child.start(prelude + "handled = []\nlater()\nwhile not handled: gmp.sleep(1)\nprint('end')")
    assert c.readline() == "ready\n"
    os.kill(c.process.pid, signal.SIGQUIT)
    assert c.readline() == "mine\n"
    c.finish(20).expect(0, "end")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("action", ["SIG_IGN", "SIG_DFL"])
def test_ignored_or_default(child, when: str, action: str) -> None:
    line = f"signal.signal(signal.SIGQUIT, signal.{action})\n"
    prelude = (
        PRELUDE + line if when == "after" else PRELUDE.replace("signal.signal(signal.SIGQUIT, signal.SIG_DFL)\n", line)
    )
    end = "end = gmp.Chan(1)\nsignal.signal(signal.SIGUSR1, lambda *a: end.send(1))\n"
    c = child.start(prelude + end + "later()\nend.recv()\nprint('end', flush=True)")
    assert c.readline() == "ready\n"
    os.kill(c.process.pid, signal.SIGQUIT)
    if action == "SIG_IGN":
        os.kill(c.process.pid, signal.SIGUSR1)
    c.finish(20)
    if action == "SIG_IGN":
        c.expect(0, "end")
    elif when == "after":
        c.expect(-signal.SIGQUIT)
    else:
        c.expect(2)


def test_exec_does_not_inherit_it(child) -> None:
    child(
        PRELUDE
        + """
p = subprocess.Popen(["sleep", "60"], stdout=-3, stderr=-3)
gmp.sleep(0.1)
p.send_signal(signal.SIGQUIT)
print(p.wait())
"""
    ).expect(0, str(-signal.SIGQUIT))


# ---- forked children ----


@pytest.mark.parametrize("child_does", ["time.sleep(60)", "gmp.sleep(60)", "while True: pass"])
def test_in_a_forked_child(child, child_does: str) -> None:
    """Also before the child's own sysmon runs: it starts when it is needed."""
    c = child(
        PRELUDE
        + f"""
spawn(3)
settle()
r, w = os.pipe()
ready_r, ready_w = os.pipe()
pid = os.fork()
if pid == 0:
    os.dup2(w, 2)
    os.write(ready_w, b"x")
    {child_does}
os.close(w)
os.read(ready_r, 1)
time.sleep(0.2)
os.kill(pid, signal.SIGQUIT)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
text = os.read(r, 100000).decode()
assert "SIGQUIT: quit" in text and ", in <module>" in text and ", in worker" not in text, text
os._exit(0)
""",
        python=("-W", "ignore"),
    )
    c.expect(0, "2")


def test_at_the_end_of_the_interpreter(child) -> None:
    """While threading waits for the last thread, it still works."""
    err = quit(
        child.start(
            PRELUDE
            + """
def when_it_ends(main):
    def ends():
        frame = sys._current_frames()[main]
        while frame is not None and frame.f_code.co_name != "_shutdown":
            frame = frame.f_back
        return frame
    until(ends, turn=lambda: time.sleep(0.01))
    ready()
threading.Thread(target=when_it_ends, args=(threading.get_ident(),), daemon=True).start()
threading.Thread(target=time.sleep, args=(60,)).start()
"""
        )
    )
    assert "in _shutdown" in err
