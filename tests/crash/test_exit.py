"""The interpreter ends: at once, with the right code, whatever goroutines and threads are doing."""

from __future__ import annotations

import time

import pytest


def test_exit_code_with_thousands_parked(child) -> None:
    child("""
        import gmp, sys
        ch = gmp.Chan()
        def f(n):
            try:
                ch.recv()
            finally:
                print("must not run")        # as with daemon threads: what waits at the end just stops
        gs = [gmp.go(f, i) for i in range(5000)]
        gmp.gosched()
        print("end")
        sys.exit(42)
    """).expect(42, "end")


@pytest.mark.parametrize(
    "wait", ["ch.recv()", "gmp.sleep(100)", "time.sleep(100)", "lock.acquire()", "gmp.select()", "spin()"]
)
def test_exit_while_others_wait_or_run(child, wait: str) -> None:
    t0 = time.monotonic()
    child(f"""
        import gmp, sys, time, threading
        ch, lock = gmp.Chan(), threading.Lock()
        lock.acquire()
        def spin():
            while True:
                pass
        def f():
            {wait}
        for _ in range(5):
            gmp.go(f)
        gmp.sleep(0.05)
        sys.exit(3)
    """).expect(3, "")
    assert time.monotonic() - t0 < 20


def test_exit_with_main_away_from_its_thread(child) -> None:
    """A goroutine keeps the main thread; the main goroutine goes on, and ends, elsewhere."""
    for python in ((), ("-X", "dev")):
        c = child(
            """
            import atexit, gmp, sys, threading, time
            atexit.register(lambda: print("atexit"))
            gs = [gmp.go(time.sleep, 100) for _ in range(3)]
            gmp.sleep(0.05)
            t = threading.Thread(target=lambda: (time.sleep(0.1), print("thread")), daemon=False)
            t.start()
            sys.exit(5)
            """,
            python=python,
        )
        c.expect(5, "thread\natexit")
        assert "Traceback" not in c.err


def test_uncaught_exception(child) -> None:
    c = child("""
        import gmp
        gs = [gmp.go(gmp.Chan().recv) for _ in range(100)]
        gmp.gosched()
        raise LookupError("out")
    """)
    c.expect(1)
    assert c.err.strip().endswith("LookupError: out")


def test_goroutine_that_was_never_run(child) -> None:
    child("""
        import gmp
        for _ in range(1000):
            gmp.go(print, "maybe")
    """).expect(0)


def test_exit_with_daemon_threads_on_channels(child) -> None:
    for _ in range(3):
        child("""
            import gmp, threading, sys
            a, b = gmp.Chan(), gmp.Chan()
            def ping():
                while True:
                    a.send(b.recv())
            def pong():
                while True:
                    b.send(a.recv())
            for f in (ping, pong, ping, pong):
                threading.Thread(target=f, daemon=True).start()
            b.send(1)
            gmp.sleep(0.05)
            sys.exit(7)
        """).expect(7, "")


def test_threads_are_waited_for(child) -> None:
    """Threads that are no daemons end first, and gmp works for them until then."""
    child("""
        import gmp, threading, time
        ch = gmp.Chan()
        def consumer():
            for v in ch:
                print(v)
        def producer():
            time.sleep(0.1)
            for i in range(3):
                ch.send(gmp.go(lambda i=i: i * i).result())
            ch.close()
        threading.Thread(target=consumer).start()
        threading.Thread(target=producer).start()
    """).expect(0, "0\n1\n4")


def test_sys_exit_in_a_goroutine_ends_only_that(child) -> None:
    child("""
        import gmp, sys
        gmp.go(sys.exit, 9)
        gmp.gosched()
        print("still here")
    """).expect(0, "still here")


def test_os_exit_in_a_goroutine(child) -> None:
    child("""
        import gmp, os
        gmp.go(os._exit, 9)
        gmp.Chan().recv(10)
    """).expect(9)


def test_abort_in_a_goroutine(child) -> None:
    child("""
        import gmp, os
        gmp.go(os.abort)
        gmp.Chan().recv(10)
    """).expect(-6)


def test_interpreter_dev_mode_is_silent(child) -> None:
    c = child(
        """
        import gmp, threading, time
        ch = gmp.Chan(3)
        gs = [gmp.go(ch.send, i) for i in range(100)]
        print(sum(ch.recv() for _ in range(100)))
        for g in gs: g.join()
        t = threading.Thread(target=lambda: gmp.go(time.sleep, 0.01).join()); t.start(); t.join()
        gmp.go(gmp.Chan().recv)
        gmp.sleep(0.01)
        """,
        python=("-X", "dev", "-W", "error"),
    )
    c.expect(0, "4950")
    assert c.err == ""


def test_nothing_used(child) -> None:
    in_thread = "import threading\nthreading.Thread(target=__import__, args=('gmp',)).start()"
    for code in ("import gmp", "import gmp.runtime, gmp.sync", in_thread):
        c = child(code, python=("-X", "dev", "-W", "error"))
        c.expect(0, "")
        assert c.err == ""


def test_imported_first_in_a_thread(child) -> None:
    child("""
        import threading
        def f():
            global gmp
            import gmp
            ch = gmp.Chan()
            gmp.go(ch.send, 1)
            print(ch.recv())
        t = threading.Thread(target=f); t.start(); t.join()
        ch = gmp.Chan()
        gmp.go(ch.send, 2)
        print(ch.recv())
    """).expect(0, "1\n2")


def test_reload_and_second_import(child) -> None:
    child("""
        import sys, gmp, importlib
        ch = gmp.Chan(1)
        ch.send(1)
        importlib.reload(gmp)
        assert ch.recv() == 1
        assert gmp.go(int).result() == 0
        print("ok")
    """).expect(0, "ok")


def test_subinterpreter_is_refused(child) -> None:
    child("""
        try:
            import _xxsubinterpreters as subs
        except ImportError:
            import _interpreters as subs
        import gmp
        try:
            i = subs.create("legacy")
        except Exception:
            i = subs.create(isolated=False)
        code = "try:\\n import gmp\\nexcept ImportError as e:\\n print('refused:', e)"
        try:
            r = (getattr(subs, "exec", None) or subs.run_string)(i, code)
            assert r is None, r
        finally:
            import sys
            sys.stdout.flush()
        print(gmp.go(int).result())
    """).expect(0)
