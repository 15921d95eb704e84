"""All asleep: Deadlock in the main goroutine with every goroutine's stack.  Never while somebody could still wake one."""

from __future__ import annotations

import pytest

WAITS = {
    "chan receive": "gmp.Chan().recv()",
    "chan send": "gmp.Chan().send(1)",
    "select": "gmp.select(gmp.recv(gmp.Chan()), gmp.send(gmp.Chan(), 1))",
    "select (no cases)": "gmp.select()",
    "nil": "gmp.select(gmp.recv(None))",
    "mutex": "m = gmp.sync.Mutex(); m.lock(); m.lock()",
    "waitgroup": "wg = gmp.sync.WaitGroup(); wg.add(1); wg.wait()",
    "join": "gmp.go(gmp.Chan().recv).join()",
    "iteration": "list(gmp.Chan())",
    "future": "import concurrent.futures as cf; gmp.wait(cf.Future())",
    "executor": "gmp.Executor().submit(gmp.Chan().recv).result()",
    "mutex with": "m = gmp.sync.Mutex(); m.lock()\nwith m: pass",
}


@pytest.mark.parametrize("what", WAITS)
def test_main_waits_for_nothing(child, what: str) -> None:
    wait = WAITS[what].replace("\n", "\n            ")
    c = child(f"""
        import gmp
        try:
            {wait}
        except gmp.Deadlock as e:
            print("caught")
            assert str(e).startswith("fatal error: all goroutines are asleep - deadlock!"), e
            assert "] main:" in str(e), e
        ch = gmp.Chan()                       # life goes on
        gmp.go(ch.send, 5)
        assert ch.recv() == 5
        print("end")
    """)
    c.expect(0, "caught\nend")


def test_uncaught(child) -> None:
    c = child("""
        import gmp
        def worker(ch):
            def inner():
                ch.recv()
            inner()
        def spawn():
            for _ in range(3):
                gmp.go(worker, ch)
        ch = gmp.Chan()
        spawn()
        gmp.Chan().send(1)
    """)
    c.expect(1)
    assert c.err.count("fatal error: all goroutines are asleep - deadlock!") == 1
    assert "gmp.Deadlock" in c.err
    assert c.err.count("[chan receive] worker:") == 3
    assert c.err.count("in inner") == 3
    assert c.err.count("created by spawn at <string>:") == 3
    assert "[chan send] main:" in c.err or "[running] main:" in c.err


def test_goroutines_that_deadlock_while_main_runs_are_not_reported(child) -> None:
    child("""
        import gmp, time
        gs = [gmp.go(gmp.Chan().recv) for _ in range(3)]
        gmp.sleep(0.05)
        time.sleep(0.05)
        print("end")
    """).expect(0, "end")


@pytest.mark.parametrize(
    "waker",
    {
        "sleeping goroutine": "gmp.go(lambda: (gmp.sleep(0.3), ch.send(1)))",
        "blocked goroutine": "gmp.go(lambda: (time.sleep(0.3), ch.send(1)))",
        "busy goroutine": "gmp.go(lambda: (sum(range(6_000_000)), ch.send(1)))",
        "goroutine with a timeout": "gmp.go(lambda: (gmp.select(timeout=0.3) if False else wait03(), ch.send(1)))",
        "sleeping thread": "threading.Thread(target=lambda: (time.sleep(0.5), ch.send(1))).start()",
        "daemon thread": "threading.Thread(target=lambda: (time.sleep(0.5), ch.send(1)), daemon=True).start()",
        "thread in a lock": "threading.Thread(target=lambda: (lock.acquire(timeout=0.5), ch.send(1))).start()",
        "timer thread": "threading.Timer(0.5, ch.send, (1,)).start()",
        "thread asleep in gmp": "threading.Thread(target=lambda: (gmp.sleep(0.3), ch.send(1))).start()",
        "_thread": "_thread.start_new_thread(lambda: (time.sleep(0.5), ch.send(1)), ())",
        "pool": "cf.ThreadPoolExecutor(1).submit(lambda: (time.sleep(0.5), ch.send(1)))",
        "asyncio": "threading.Thread(target=lambda: asyncio.run(later())).start()",
        "pthread": "start_pthread()",
    }.items(),
    ids=lambda p: p[0],
)
def test_not_while_somebody_could_wake_it(child, waker: tuple[str, str]) -> None:
    child(
        f"""
        import gmp, threading, time, _thread, asyncio, concurrent.futures as cf, ctypes
        ch, lock = gmp.Chan(), threading.Lock()
        lock.acquire()
        def wait03():
            try:
                gmp.select(timeout=0.3)
            except TimeoutError:
                pass
        async def later():
            await asyncio.sleep(0.5)
            ch.send(1)
        @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
        def body(arg):
            ctypes.CDLL(None).usleep(500_000)
            ch.send(1)
        def start_pthread():
            libc = ctypes.CDLL(None)
            tid = ctypes.c_ulong()
            assert libc.pthread_create(ctypes.byref(tid), None, body, None) == 0
        {waker[1]}
        ch.recv()
        print("ok")
        """
    ).expect(0, "ok")


def test_after_the_thread_has_ended(child) -> None:
    """A thread that could have helped ends without doing so: found out sooner or later."""
    child("""
        import gmp, threading, time
        threading.Thread(target=time.sleep, args=(0.3,)).start()
        try:
            gmp.Chan().recv()
        except gmp.Deadlock:
            print("deadlock")
    """).expect(0, "deadlock")


def test_threads_that_wait_in_gmp_help_nobody(child) -> None:
    child("""
        import gmp, threading
        ch = gmp.Chan()
        ts = [threading.Thread(target=ch.recv) for _ in range(3)]
        for t in ts:
            t.start()
        try:
            gmp.Chan().recv()
        except gmp.Deadlock as e:
            assert str(e).count("[chan receive] thread:") == 3, e
            print("deadlock")
        for t in ts:
            ch.send(1)
    """).expect(0, "deadlock")


def test_timeouts_are_no_deadlock(child) -> None:
    child("""
        import gmp
        for call in (lambda: gmp.Chan().recv(0.2), lambda: gmp.select(timeout=0.2), lambda: gmp.go(gmp.Chan().recv).join(0.2)):
            try:
                call()
            except TimeoutError:
                print("timeout")
    """).expect(0, "timeout\ntimeout\ntimeout")


def test_again_and_again(child) -> None:
    child("""
        import gmp
        n = 0
        for _ in range(200):
            try:
                gmp.Chan().recv()
            except gmp.Deadlock:
                n += 1
        print(n)
    """).expect(0, "200")
