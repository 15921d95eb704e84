"""gmp.runtime: counts and stacks."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading

import gmp
from gmp import Chan, go
from gmp.sync import Mutex, WaitGroup
from tests.waiting import parked, undisturbed, until


def test_num_goroutine() -> None:
    before = gmp.runtime.num_goroutine()
    assert before >= 1  # main
    ch: Chan[None] = Chan()
    gs = [go(ch.recv) for _ in range(1000)]
    assert gmp.runtime.num_goroutine() == before + 1000
    parked(*gs)
    assert gmp.runtime.num_goroutine() == before + 1000
    for _ in gs:
        ch.send(None)
    for g in gs:
        g.join()
    until(lambda: gmp.runtime.num_goroutine() == before)  # one that is joined may have its last steps to do


def test_num_cpu() -> None:
    assert gmp.runtime.num_cpu() >= 1


def test_stats() -> None:
    stats = gmp.runtime.stats()
    assert set(stats) >= {
        "goroutines", "procs", "threads", "idle_threads", "runnable", "timers", "switches", "handoffs",
        "stacks", "stacks_in_use", "stacks_unguarded", "stack_bytes", "guards",
    }  # fmt: skip
    assert stats["procs"] == 1
    assert stats["goroutines"] == gmp.runtime.num_goroutine()
    assert stats["guards"] in ("madvise", "mprotect", "none")
    switches = stats["switches"]
    ch: Chan[int] = Chan()
    g = go(lambda: [ch.send(i) for i in range(100)])
    for _ in range(100):
        ch.recv()
    g.join()
    assert gmp.runtime.stats()["switches"] > switches
    gs = [go(ch.recv) for _ in range(100)]
    parked(*gs)
    assert gmp.runtime.stats()["stacks_in_use"] >= 100
    assert gmp.runtime.stats()["stacks"] >= 100
    sleeper = go(ch.recv, 100)
    parked(sleeper)
    assert gmp.runtime.stats()["timers"] >= 1
    for i in range(101):
        ch.send(i)
    for g in gs:
        g.join()
    sleeper.join()


def test_stacks_are_used_again() -> None:
    ch: Chan[None] = Chan()
    gs = [go(ch.recv) for _ in range(500)]
    parked(*gs)
    for _ in gs:
        ch.send(None)
    for g in gs:
        g.join()
    carved = gmp.runtime.stats()["stacks"]
    for _ in range(10):
        for g in [go(int) for _ in range(400)]:
            g.join()
    assert gmp.runtime.stats()["stacks"] <= carved + 200


def test_own_stack() -> None:
    def inner() -> str:
        return gmp.runtime.stack()

    def outer() -> str:
        return inner()

    text = go(outer).result()
    assert re.match(r"goroutine \d+ \[running\]", text)
    assert "in outer" in text
    assert text.index("in outer") < text.index("in inner")
    assert "test_own_stack" not in text
    assert "in test_own_stack" in gmp.runtime.stack()


def heads(text: str) -> dict[str, str]:
    """{name of the function: status}"""
    return {m[2].rpartition(".")[2]: m[1] for m in re.finditer(r"^goroutine \d+ \[([^]]*)\] (\S+):$", text, re.M)}


def test_all_stacks() -> None:
    ch: Chan[int] = Chan()
    nothing: Chan[int] = Chan()
    mutex, wg = Mutex(), WaitGroup()
    mutex.lock()
    wg.add(1)
    stop = threading.Event()

    def receiver() -> None:
        ch.recv()

    def sender() -> None:
        nothing.send(1)

    def selector() -> None:
        gmp.select(gmp.recv(nothing), gmp.recv(ch), timeout=60)

    def sleeper() -> None:
        while not stop.is_set():
            gmp.sleep(0.2)

    def locker() -> None:
        mutex.lock()

    def waiter() -> None:
        wg.wait()

    def joiner(g: gmp.Goroutine[None]) -> None:
        g.join()

    def blocker() -> None:
        stop.wait()

    gs = []
    for f in (sender, sleeper, locker, waiter, blocker):
        gs.append(go(f))  # not in a function of its own, as a comprehension is before 3.12
    gs.append(go(joiner, gs[2]))
    gs.append(go(receiver))
    expected = {
        "main": "running",
        "receiver": "chan receive",
        "sender": "chan send",
        "sleeper": "sleep",
        "locker": "sync.Mutex.Lock",
        "waiter": "sync.WaitGroup.Wait",
        "joiner": "join",
        "blocker": "running",
    }
    text = ""

    def all_wait() -> bool:
        nonlocal text
        text = gmp.runtime.stack(all=True)
        return {k: v for k, v in heads(text).items() if k in expected} == expected

    until(all_wait)
    assert text.startswith("goroutine ")
    assert "] main:" in text.splitlines()[0]  # the caller comes first
    for name in ("receiver", "sender", "sleeper", "locker", "waiter", "joiner"):
        part = text[text.index(f"{name}:\n") :].partition("\n\n")[0]
        assert f"in {name}" in part
        assert re.search(r"^created by test_all_stacks at .*test_runtime\.py:\d+ in goroutine \d+$", part, re.M), part
    assert nothing.recv() == 1
    sel = go(selector)
    parked(sel)
    assert heads(gmp.runtime.stack(all=True))["selector"] == "select"
    assert "[select]" in gmp.runtime.stack(True)
    nothing.send(1)  # selector
    sel.join()
    ch.send(1)
    mutex.unlock()
    wg.done()
    stop.set()
    for g in gs:
        g.join()


def test_stack_of_a_goroutine_that_has_not_run() -> None:
    with undisturbed():
        g = go(int)
        text = gmp.runtime.stack(all=True)
    assert f"goroutine {g.id} [" in text
    g.join()


def test_goroutines_that_are_queued_without_a_stack_are_listed() -> None:
    """In a long queue a new goroutine gets its stack when it runs; it is listed from the beginning, once."""

    def queued() -> None: ...

    parts: list[str] = []
    gs: list[gmp.Goroutine[None]] = []

    def all_queued() -> bool:
        """False when this goroutine had run for 10 ms: then one of them has left the queue."""
        for g in gs:
            g.join()
        gs.clear()
        with undisturbed():  # stack() lists all goroutines before it lets go of the GIL
            for _ in range(700):  # more than the local queue holds
                gs.append(go(queued))
            text = gmp.runtime.stack(all=True)
        parts[:] = [part for part in text.split("\n\n") if part.partition("\n")[0].endswith(".queued:")]
        return sum(part.partition("]")[0].endswith("[runnable") for part in parts) == 700

    until(all_queued)
    assert len(parts) == 700
    assert {int(part.split()[1]) for part in parts} == {g.id for g in gs}
    for part in parts:
        assert re.search(r"^created by .*all_queued at .*test_runtime\.py:\d+ in goroutine \d+$", part, re.M), part
    for g in gs:
        g.join()
    assert "queued" not in heads(gmp.runtime.stack(all=True))


def test_waiting_time(child) -> None:
    child("""
        import gmp
        from tests.waiting import parked
        def waiter():
            ch.recv()
        ch = gmp.Chan()
        g = gmp.go(waiter)
        parked(g)
        assert "[chan receive] waiter:" in gmp.runtime.stack(all=True)
        gmp._core._add_to_waits(65)
        assert "[chan receive, 1 minutes] waiter:" in gmp.runtime.stack(all=True)
        gmp._core._add_to_waits(3600)
        text = gmp.runtime.stack(all=True)
        assert "[chan receive, 61 minutes] waiter:" in text, text
        assert "[running] main:" in text
        ch.send(1)
    """).expect(0)


def test_created_by_line_numbers() -> None:
    def start() -> gmp.Goroutine[object]:
        x = 1
        x += 1
        g = go(ch.recv)  # marked
        return g

    ch: Chan[object] = Chan()
    g = start()
    line = start.__code__.co_firstlineno + 3
    assert f"test_runtime.py:{line}" in gmp.runtime.stack(all=True)
    assert "created by test_created_by_line_numbers.<locals>.start at" in gmp.runtime.stack(all=True)
    ch.send(None)
    g.join()


def test_stack_all_while_goroutines_come_and_go() -> None:
    stop = False

    def churn() -> None:
        while not stop:
            for g in [go(int) for _ in range(5)]:
                g.join()

    gs = [go(churn) for _ in range(5)]
    threads = [threading.Thread(target=churn) for _ in range(2)]
    for t in threads:
        t.start()
    for _ in range(100):
        assert "main" in gmp.runtime.stack(all=True)
        gmp.gosched()
    stop = True
    for t in threads:
        t.join()
    for g in gs:
        g.join()


def test_stack_from_a_thread() -> None:
    out: list[str] = []
    t = threading.Thread(target=lambda: out.extend([gmp.runtime.stack(), gmp.runtime.stack(all=True)]))
    t.start()
    t.join()
    assert out[0].startswith("goroutine ")
    assert "] main:" in out[1]


def test_parent_frames_are_not_kept_alive() -> None:
    """`created by` is kept as code and offset, not as a frame."""
    import weakref

    class Thing: ...

    ch: Chan[None] = Chan()

    def start() -> weakref.ref[Thing]:
        thing = Thing()
        gs.append(go(ch.recv))
        return weakref.ref(thing)

    gs: list[gmp.Goroutine[None]] = []
    ref = start()
    gc.collect()
    assert ref() is None
    ch.send(None)
    gs[0].join()


def test_idle_process_uses_no_cpu() -> None:
    """With everything parked there are no wake-ups: a second costs next to nothing."""
    code = (
        "import gmp, time, resource\n"
        "from tests.waiting import parked\n"
        "ch = gmp.Chan(); g = gmp.go(ch.recv); parked(g)\n"
        "a = resource.getrusage(resource.RUSAGE_SELF)\n"
        "gmp.sleep(1)\n"
        "b = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime, b.ru_nvcsw - a.ru_nvcsw)\n"
        "ch.send(1)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    cpu, switches = out.split()
    assert float(cpu) < 0.1
    assert int(switches) < 200
