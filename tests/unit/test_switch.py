"""Switching thread states: what CPython believes of the current one, who gets the GIL, and the way without shortcuts."""

from __future__ import annotations

import ctypes
import random
import sys
import sysconfig
import threading
import time

import pytest

import gmp
from gmp import Chan, go
from gmp.sync import WaitGroup

api = ctypes.pythonapi
for _name in ("PyThreadState_Get", "PyGILState_GetThisThreadState"):
    getattr(api, _name).restype = ctypes.c_void_p
DEBUG = bool(sysconfig.get_config_var("Py_DEBUG"))


def check_current() -> int:
    """The current thread state; what PyGILState_* sees is the same."""
    ts = api.PyThreadState_Get()
    assert api.PyGILState_GetThisThreadState() == ts
    assert api.PyGILState_Check() == 1
    return int(ts)


@pytest.mark.skipif(DEBUG, reason="debug builds of CPython switch by PyThreadState_Swap")
def test_switches_keep_the_gil() -> None:
    assert gmp.runtime.stats()["switch_keeps_gil"] is True


def test_current_thread_state_after_every_kind_of_switch() -> None:
    rng = random.Random(7)
    ch: Chan[int] = Chan()
    seen: dict[int, int] = {}
    started = WaitGroup()
    started.add(20)

    def f(i: int) -> None:
        own = check_current()
        started.done()
        started.wait()  # no two of them run one after the other, in the same thread state
        for _ in range(50):
            what = rng.randrange(5)
            if what == 0:
                gmp.gosched()
            elif what == 1:
                gmp.sleep(0.0001)
            elif what == 2:
                time.sleep(0.0005)  # another thread goes on with the others, perhaps also with this one
            elif what == 3:
                gmp.select(gmp.send(ch, i), gmp.recv(ch), default=True)
            else:
                sorted(range(3), key=lambda k: gmp.gosched() or -k)
            assert check_current() == own
        seen[i] = own

    main = check_current()
    gs = [go(f, i) for i in range(20)]
    for g in gs:
        g.join()
        assert check_current() == main
    assert len(set(seen.values())) == 20


def test_a_thread_and_goroutines_that_only_switch_share_the_interpreter() -> None:
    stop = False
    counts = [0, 0]

    def thread() -> None:
        while not stop:
            counts[0] += 1

    def goroutine() -> None:
        while not stop:
            counts[1] += 1
            gmp.gosched()

    t = threading.Thread(target=thread)
    t.start()
    gs = [go(goroutine) for _ in range(2)]
    deadline = time.monotonic() + 30
    while min(counts) < 20_000 and time.monotonic() < deadline:
        gmp.sleep(0.01)
    stop = True
    t.join()
    for g in gs:
        g.join()
    assert min(counts) >= 20_000, counts


def test_pending_calls_run_beside_goroutines_that_only_switch() -> None:
    """Py_AddPendingCall from a thread: whoever runs next does it, also when every goroutine is a new one."""
    ran = threading.Event()
    callback = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: ran.set() or 0)
    for _ in range(20):
        ran.clear()
        t = threading.Thread(target=lambda: api.Py_AddPendingCall(callback, None))
        t.start()
        deadline = time.monotonic() + 30
        while not ran.is_set() and time.monotonic() < deadline:
            go(gmp.gosched).join()
        t.join()
        assert ran.is_set()


PROGRAM = """
import sys, threading, time, gmp

assert gmp.runtime.stats()["switch_keeps_gil"] is (sys.argv[1] == "kept")
local = threading.local()
a, b = gmp.Chan(), gmp.Chan()

def f(i):
    local.i = i
    for k in range(200):
        b.send(a.recv() + 1)
        if k % 50 == i % 50:
            time.sleep(0.001)
        assert local.i == i

gs = [gmp.go(f, i) for i in range(20)]
feeder = gmp.go(lambda: [a.send(n) for n in range(4000)])
assert sorted(b.recv() for _ in range(4000)) == list(range(1, 4001))
for g in gs:
    g.join()
print("ok")
"""


@pytest.mark.parametrize("how", ["kept", "cpython"])
def test_both_ways(how: str, child) -> None:  # type: ignore[no-untyped-def]
    if how == "kept" and DEBUG:
        pytest.skip("debug builds of CPython switch by PyThreadState_Swap")
    if how == "cpython" and sys.version_info < (3, 12):
        pytest.skip("up to 3.11 PyThreadState_Swap keeps the GIL")
    c = child(PROGRAM, how, env={"GMP_SWAP": how} if how == "cpython" else {})
    c.expect(out="ok")
