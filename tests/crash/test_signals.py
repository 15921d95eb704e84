"""Ctrl-C raises KeyboardInterrupt in the main goroutine, whatever it waits for, and in no other."""

from __future__ import annotations

import os
import signal
import time

import pytest

ROUNDS = 2000
PRELUDE = """
import gmp, os, signal, sys, threading, time, concurrent.futures as cf
ch = gmp.Chan()
def note(name, f):
    # A goroutine that says so if it is hit.
    def run():
        try:
            f()
        except KeyboardInterrupt:
            print("WRONG goroutine", name, flush=True)
            raise
    return gmp.go(run)
def ready():
    print("ready", flush=True)
"""

WAITS = {
    "recv": "ch.recv()",
    "recv with timeout": "ch.recv(60)",
    "send": "ch.send(1)",
    "iteration": "list(ch)",
    "sleep": "gmp.sleep(60)",
    "select": "gmp.select(gmp.recv(ch), gmp.send(gmp.Chan(), 1))",
    "select with timeout": "gmp.select(gmp.recv(ch), timeout=60)",
    "empty select": "gmp.select(timeout=60)",
    "join": "note('joined', gmp.Chan().recv).join()",
    "result": "note('joined', gmp.Chan().recv).result(60)",
    "mutex": "m = gmp.sync.Mutex(); m.lock(); m.lock()",
    "waitgroup": "wg = gmp.sync.WaitGroup(); wg.add(1); wg.wait()",
    "future": "gmp.wait(cf.Future())",
    "executor": "gmp.Executor().submit(gmp.Chan().recv).result()",
    "time.sleep": "time.sleep(60)",
    "lock": "l = threading.Lock(); l.acquire(); l.acquire()",
    "busy loop": "spin()",  # a bare `while True: pass` in a try is outside of it for 3.11's compiler
    "gosched loop": "yielding()",
    "ping-pong": "note('echo', echo)\n    while True: ping.send(1); pong.recv()",
}
OTHERS = {
    "nobody": "",
    "parked": "[note('parked', gmp.Chan().recv) for _ in range(10)]",
    "asleep": "[note('asleep', lambda: gmp.sleep(60)) for _ in range(10)]",
    "blocked": "[note('blocked', lambda: time.sleep(60)) for _ in range(3)]",
    "busy": "[note('busy', spin) for _ in range(2)]",
    "yielding": "[note('yielding', yielding) for _ in range(3)]",
}


@pytest.mark.parametrize("others", ["parked", "blocked"])
@pytest.mark.parametrize("wait", WAITS)
def test_waiting(child, wait: str, others: str) -> None:
    interrupt(child, wait, others)


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("wait", ["recv", "sleep", "join", "waitgroup"])
def test_beside(child, wait: str, others: str) -> None:
    interrupt(child, wait, others)


def interrupt(child, wait: str, others: str) -> None:
    script = (
        PRELUDE
        + f"""
ping, pong = gmp.Chan(), gmp.Chan()
def echo():
    for v in ping:
        pong.send(v)
def spin():
    while True:
        pass
def yielding():
    while True:
        gmp.gosched()
def helper():                           # somebody who could wake main: no deadlock
    time.sleep(60)
threading.Thread(target=helper, daemon=True).start()
{OTHERS[others]}
t = threading.Timer(0.3, ready)
t.daemon = True
try:
    t.start()
    {WAITS[wait]}
except KeyboardInterrupt:
    print("interrupted", flush=True)
os._exit(0)
"""
    )
    c = child.start(script)
    assert c.readline() == "ready\n", c.finish(5)
    t0 = time.monotonic()
    os.kill(c.process.pid, signal.SIGINT)
    assert c.readline() == "interrupted\n", c.finish(5)
    assert time.monotonic() - t0 < 20
    c.expect(0)


def test_uncaught(child) -> None:
    c = child.start(PRELUDE + "note('x', gmp.Chan().recv)\nthreading.Timer(0.2, ready).start()\nch.recv(60)\n")
    assert c.readline() == "ready\n"
    os.kill(c.process.pid, signal.SIGINT)
    c.finish(20)
    assert c.process.returncode == -signal.SIGINT, c
    assert "KeyboardInterrupt" in c.err
    assert c.out == ""


def test_handlers_run_in_the_main_goroutine(child) -> None:
    """A handler of the user's runs there, may use gmp, and the wait goes on."""
    c = child.start(
        PRELUDE
        + """
me = gmp._core._goid()
def handler(signum, frame):
    assert gmp._core._goid() == me
    g = gmp.go(lambda: 7)
    print("handler", signum, g.result(), flush=True)
    if signum == signal.SIGTERM:
        gmp.go(ch.send, "end")
signal.signal(signal.SIGUSR1, handler)
signal.signal(signal.SIGTERM, handler)
threading.Timer(0.2, ready).start()
print(ch.recv(60))
"""
    )
    assert c.readline() == "ready\n"
    for sig in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM):
        os.kill(c.process.pid, sig)
        assert c.readline() == f"handler {int(sig)} 7\n"
    assert c.readline() == "end\n"
    c.expect(0)


def test_handler_does_not_stretch_the_timeout(child) -> None:
    child(
        PRELUDE
        + """
signal.signal(signal.SIGALRM, lambda *a: None)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
t0 = time.monotonic()
for call in (lambda: ch.recv(0.3), lambda: gmp.select(timeout=0.3), lambda: gmp.go(gmp.Chan().recv).join(0.3)):
    try:
        call()
    except TimeoutError:
        print("timeout")
gmp.sleep(0.3)
t = time.monotonic() - t0
signal.setitimer(signal.ITIMER_REAL, 0)
assert 1.2 <= t < 25, t
"""
    ).expect(0, "timeout\n" * 2 + "timeout")


def test_signal_from_a_goroutine(child) -> None:
    child(
        PRELUDE
        + """
from tests.waiting import me, parked
main = me()
g = note("sender", lambda: (parked(main), os.kill(os.getpid(), signal.SIGINT), gmp.sleep(0.05), print("sender done")))
try:
    ch.recv(60)
except KeyboardInterrupt:
    print("interrupted")
g.join()
"""
    ).expect(0, "interrupted\nsender done")


def test_raise_signal_while_main_yields(child) -> None:
    """The signal arrives while another goroutine runs on the main thread and main is runnable, not parked."""
    child(
        PRELUDE
        + """
yielding = False
def sender():
    while not yielding:
        gmp.gosched()
    for _ in range(10):
        gmp.gosched()
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        gmp.gosched()
g = note("sender", sender)
deadline = time.monotonic() + 25
try:
    while time.monotonic() < deadline:
        yielding = True
        gmp.gosched()
    print("never", flush=True)
except KeyboardInterrupt:
    print("interrupted" if time.monotonic() < deadline - 5 else "late", flush=True)
os._exit(0)
"""
    ).expect(0, "interrupted")


def test_many_interrupts(child) -> None:
    c = child.start(
        PRELUDE
        + """
for _ in range(5):
    note("p", gmp.Chan().recv)
n = 0
while n < 20:
    try:
        print("ready", flush=True)
        ch.recv(60)
    except KeyboardInterrupt:
        n += 1
print("end")
"""
    )
    for _ in range(20):
        assert c.readline() == "ready\n"
        time.sleep(0.005)
        os.kill(c.process.pid, signal.SIGINT)
    assert c.readline() == "end\n"
    c.expect(0)


def test_signal_module_in_goroutines(child) -> None:
    """As in threads: only the main goroutine may set handlers."""
    child(
        PRELUDE
        + """
try:
    gmp.go(signal.signal, signal.SIGUSR1, signal.SIG_IGN).result()
except ValueError:
    print("refused")
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
"""
    ).expect(0, "refused")


AWAY = {"time.sleep": "time.sleep(60)", "lock": "l = threading.Lock(); l.acquire(); l.acquire()", "recv": "ch.recv()"}


@pytest.mark.parametrize("wait", AWAY)
def test_main_is_away_from_its_thread(child, wait: str) -> None:
    """A goroutine blocks on the main thread, which gets the signals; the main goroutine waits on another."""
    c = child.start(
        PRELUDE
        + f"""
kept = []
for _ in range(100):
    kept.append(note("keeper", lambda: time.sleep(60)))
    gmp.sleep(0.05)                     # time to be moved
    if threading.get_native_id() != os.getpid():
        break
else:
    print("main stays at home")
t = threading.Timer(0.2, ready)
t.daemon = True
try:
    t.start()
    {AWAY[wait]}
except KeyboardInterrupt:
    print("interrupted", flush=True)
os._exit(0)
"""
    )
    assert c.readline() == "ready\n", str(c.finish(5))
    t0 = time.monotonic()
    os.kill(c.process.pid, signal.SIGINT)
    assert c.readline() == "interrupted\n", str(c.finish(5))
    assert time.monotonic() - t0 < 20
    c.expect(0)


NAPS = {
    "recv": "ch.recv()",
    "poll": "conn.read(1)",  # idle Ms wait in the net poller
    "timer": "gmp.sleep(60)",
}


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("wait", NAPS)
def test_signal_as_main_goes_to_sleep(child, wait: str, restart: bool) -> None:
    """The signal comes as everything goes idle, between the last look for signals and the sleep."""
    c = child.start(
        PRELUDE
        + f"""
import gmp.net, socket
with gmp.net.listen("127.0.0.1:0") as listener:
    conn = gmp.net.dial("127.0.0.1:%d" % listener.addr[1])
    other = listener.accept()
class Woken(Exception): ...
def handler(*args):
    raise Woken
def helper():                           # somebody who could wake main: no deadlock
    time.sleep(600)
threading.Thread(target=helper, daemon=True).start()
signal.signal(signal.SIGUSR1, handler)
signal.siginterrupt(signal.SIGUSR1, {not restart})
for i in range({ROUNDS}):
    try:
        os.write(1, b".")
        {NAPS[wait]}
    except Woken:
        pass
os.write(1, b"e")
os._exit(0)
"""
    )
    assert c.process.stdout is not None
    out, pid, spin = c.process.stdout.fileno(), c.process.pid, 0
    for i in range(ROUNDS):
        assert os.read(out, 1) == b".", str(c.finish(5))
        for _ in range(spin):
            pass
        spin = (spin * 7 + i) % 997
        os.kill(pid, signal.SIGUSR1)
    assert os.read(out, 1) == b"e"
    c.expect(0)


def test_signals_in_quick_succession(child) -> None:
    """The second one may be given to another thread, as the main thread has one to deal with."""
    c = child.start(
        PRELUDE
        + """
for _ in range(3):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
gs = [gmp.go(time.sleep, 600) for _ in range(3)]
gmp.sleep(0.1)
quit, seen = gmp.Chan(1), set()
def handler(signum, frame):
    seen.add(signum)
    if len(seen) == 3:
        quit.send(None)
for s in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
    signal.signal(s, handler)
for i in range(200):
    seen.clear()
    os.write(1, b".")
    quit.recv(50)
os.write(1, b"e")
os._exit(0)
"""
    )
    assert c.process.stdout is not None
    out = c.process.stdout.fileno()
    for _ in range(200):
        assert os.read(out, 1) == b".", str(c.finish(5))
        for s in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            os.kill(c.process.pid, s)
    assert os.read(out, 1) == b"e", str(c.finish(5))
    c.expect(0)
