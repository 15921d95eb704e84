"""A goroutine with an OS thread of its own: go(..., lock_os_thread=True), runtime.lock_os_thread and unlock_os_thread."""

from __future__ import annotations

import concurrent.futures as cf
import contextlib
import ctypes
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import gmp
from gmp import Chan, go, runtime
from gmp.sync import Mutex, WaitGroup
from tests.waiting import until

from_anywhere = pytest.mark.parametrize("where", ["main", "goroutine", "thread"])


def run_in(where: str, fn: Callable[[], Any]) -> Any:
    if where == "main":
        return fn()
    if where == "goroutine":
        return go(fn).result()
    with cf.ThreadPoolExecutor(1) as pool:
        return pool.submit(fn).result(50)


def tid() -> int:
    return threading.get_native_id()


def park(r: random.Random, ch: Chan[int], mutex: Mutex) -> None:
    match r.randrange(7):
        case 0:
            gmp.sleep(r.random() * 0.001)
        case 1:
            gmp.gosched()
        case 2:
            with contextlib.suppress(TimeoutError):
                ch.send(1, 0.001)
        case 3:
            with contextlib.suppress(TimeoutError):
                ch.recv(0.001)
        case 4:
            with mutex:
                gmp.sleep(0.0001)
        case 5:
            time.sleep(0.0002)
        case 6:
            go(gmp.gosched).join()


def beside(n: int, fn: Callable[[int], Any], option: bool = True) -> list[Any]:
    """fn(i) in n goroutines with threads of their own, beside as many that move about."""
    ch: Chan[int] = Chan(1)
    mutex = Mutex()
    stop = False

    def bystander(seed: int) -> None:
        r = random.Random(seed)
        while not stop:
            park(r, ch, mutex)

    others = [go(bystander, i) for i in range(n)]
    tasks = [go(fn, i, lock_os_thread=True) if option else go(fn, i) for i in range(n)]
    try:
        return [t.result() for t in tasks]
    finally:
        stop = True
        for g in others:
            g.join()


# ---- the option ----


def test_fn_does_not_get_the_option() -> None:
    def f(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    assert go(f, lock_os_thread=True).result() == ((), {})
    assert go(f, 1, 2, a=3, lock_os_thread=True, b=4).result() == ((1, 2), {"a": 3, "b": 4})
    assert go(f, *range(9), lock_os_thread=False, b=4).result() == (tuple(range(9)), {"b": 4})
    name = "_".join(["lock", "os", "thread"])  # not interned
    assert go(f, 1, **{"x": 1, name: True}).result() == ((1,), {"x": 1})
    assert go(f, 1, lock_os_thread_=True).result() == ((1,), {"lock_os_thread_": True})


def test_many_at_once_get_their_arguments() -> None:
    """More than fit the queue: those that get their G late, too."""
    tasks = [go(divmod, i, 7, lock_os_thread=i % 3 == 0) for i in range(100)]
    assert [t.result() for t in tasks] == [divmod(i, 7) for i in range(100)]


def test_the_option_must_have_a_truth() -> None:
    class Neither:
        def __bool__(self) -> bool:
            raise ValueError("neither")

    with pytest.raises(ValueError, match="neither"):
        go(print, 1, 2, lock_os_thread=Neither())  # type: ignore[call-overload]


def test_calls_take_no_arguments() -> None:
    with pytest.raises(TypeError):
        runtime.lock_os_thread(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        runtime.unlock_os_thread(True)  # type: ignore[call-arg]


def test_exceptions_are_reported_as_ever() -> None:
    def f() -> None:
        gmp.sleep(0.001)
        raise ValueError("locked")

    for g in [go(f, lock_os_thread=True) for _ in range(5)]:
        with pytest.raises(ValueError, match="locked"):
            g.result()


# ---- the thread ----


@from_anywhere
def test_always_on_the_same_thread(where: str) -> None:
    def f(i: int) -> int:
        r, mine = random.Random(i), tid()
        ch: Chan[int] = Chan(1)
        mutex = Mutex()
        for _ in range(60):
            park(r, ch, mutex)
            assert tid() == mine
        return mine

    ids = run_in(where, lambda: beside(8, f))
    assert len(set(ids)) == 8, "two goroutines at a time on one thread"


@from_anywhere
def test_nobody_else_on_the_thread(where: str) -> None:
    mine: dict[int, int] = {}

    def f(i: int) -> None:
        runtime.lock_os_thread()
        me = tid()
        assert mine.setdefault(me, i) == i
        for _ in range(60):
            gmp.sleep(0.0005)
            assert tid() == me
        del mine[me]
        runtime.unlock_os_thread()

    def other(n: int) -> None:
        for _ in range(n):
            assert tid() not in mine
            gmp.gosched()

    def run() -> None:
        tasks = [go(f, i) for i in range(6)]
        others = [go(other, 300) for _ in range(6)]
        for t in tasks + others:
            t.result()

    run_in(where, run)
    assert mine == {}


def test_counted() -> None:
    def f() -> None:
        runtime.unlock_os_thread()  # Go: does nothing
        for _ in range(3):
            runtime.lock_os_thread()
        mine = tid()
        for _ in range(2):
            runtime.unlock_os_thread()
            gmp.sleep(0.001)
            assert tid() == mine
        runtime.unlock_os_thread()
        runtime.unlock_os_thread()

    for g in [go(f) for _ in range(10)]:
        g.result()


def test_unlocked_threads_serve_others_again() -> None:
    def f() -> None:
        runtime.lock_os_thread()
        gmp.sleep(0.0001)
        runtime.unlock_os_thread()

    for g in [go(f) for _ in range(20)]:
        g.result()
    before = runtime.stats()["threads"]
    for _ in range(200):
        go(f).join()
    assert runtime.stats()["threads"] <= before + 20  # of 200


def test_threads_end_with_their_goroutines() -> None:
    def f(wait: bool) -> int:
        if wait:
            gmp.sleep(0.0001)
        return tid()

    before = runtime.stats()["threads"]
    ids = [go(f, i % 2 == 0, lock_os_thread=True).result() for i in range(300)]
    assert len(set(ids)) > 100  # numbers are reused by the kernel, sooner or later
    until(lambda: runtime.stats()["threads"] <= before + 4, turn=lambda: time.sleep(0.01))


def test_main_and_threads_may_lock_too() -> None:
    def f() -> None:
        mine = tid()
        runtime.lock_os_thread()
        g = go(lambda: tid())
        assert g.result() != mine
        gmp.sleep(0.002)
        assert tid() == mine
        runtime.unlock_os_thread()
        gmp.sleep(0.001)

    f()
    run_in("thread", f)
    f()


def test_many_locked_goroutines_talk() -> None:
    n, rounds = 20, 30
    chans: list[Chan[int]] = [Chan() for _ in range(n)]

    def f(i: int) -> None:
        for x in chans[i]:
            if i + 1 < n:
                chans[i + 1].send(x + 1)
            else:
                out.send(x + 1)
        if i + 1 < n:
            chans[i + 1].close()

    out: Chan[int] = Chan()
    tasks = [go(f, i, lock_os_thread=True) for i in range(n)]
    for k in range(rounds):
        chans[0].send(k)
        assert out.recv() == k + n
    chans[0].close()
    for t in tasks:
        t.join()


def test_blocked_ones_hold_nobody_up() -> None:
    inside: list[int] = []
    release = threading.Event()

    def f(i: int) -> None:
        inside.append(i)
        release.wait()

    tasks = [go(f, i, lock_os_thread=True) for i in range(20)]
    until(lambda: len(inside) == 20)
    assert go(lambda: 1).result() == 1
    release.set()
    for t in tasks:
        t.join()


# ---- what needs it ----


def test_sqlite_with_its_thread_check() -> None:
    def f(i: int) -> int:
        db = sqlite3.connect(":memory:")  # check_same_thread
        db.execute("create table t (x int)")
        for k in range(20):
            db.execute("insert into t values (?)", (k,))
            gmp.sleep(0.0005 * (i % 3))
        (total,) = db.execute("select sum(x) from t").fetchone()
        db.close()
        return int(total)

    assert beside(8, f) == [190] * 8


def test_rlock_held_across_a_park() -> None:
    rlock = threading.RLock()
    inside = 0

    def f(i: int) -> None:
        nonlocal inside
        for _ in range(10):
            with rlock:
                inside += 1
                with rlock:
                    gmp.sleep(0.0005)
                assert inside == 1
                inside -= 1

    beside(5, f)


def test_threading_local_is_the_goroutines() -> None:
    local = threading.local()

    def f(i: int) -> bool:
        assert not hasattr(local, "x")
        local.x = i
        for _ in range(10):
            gmp.sleep(0.0005)
            assert local.x == i
        return True

    assert all(beside(5, f))


def test_c_library_that_checks_its_thread() -> None:
    """As Tk does: a handle that remembers pthread_self(), and thread-specific data behind it."""
    libc = ctypes.CDLL(None)
    libc.pthread_self.restype = ctypes.c_void_p
    key = ctypes.c_uint()
    assert libc.pthread_key_create(ctypes.byref(key), None) == 0
    libc.pthread_getspecific.restype = ctypes.c_void_p
    libc.pthread_setspecific.argtypes = [ctypes.c_uint, ctypes.c_void_p]

    def f(i: int) -> None:
        owner = libc.pthread_self()
        assert libc.pthread_getspecific(key) is None
        libc.pthread_setspecific(key, 1000 + i)
        for _ in range(20):
            gmp.sleep(0.0003)
            assert libc.pthread_self() == owner
            assert libc.pthread_getspecific(key) == 1000 + i
        libc.pthread_setspecific(key, None)

    beside(6, f)
    libc.pthread_key_delete(key)


def test_callbacks_come_back_on_the_thread() -> None:
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
    libc = ctypes.CDLL(None)

    def f(i: int) -> list[int]:
        mine = tid()

        def cmp(a: Any, b: Any) -> int:
            gmp.sleep(0.0001)
            assert tid() == mine
            return int(a[0] - b[0])

        array = (ctypes.c_int * 8)(5, 1, 4, 2, 8, 7, 6, 3)
        libc.qsort(array, 8, ctypes.sizeof(ctypes.c_int), compare(cmp))
        return list(array)

    assert beside(4, f) == [[1, 2, 3, 4, 5, 6, 7, 8]] * 4


# ---- in trouble ----


def test_deadlock_of_locked_goroutines_is_noticed(child: Callable[..., Any]) -> None:
    child("""
        import gmp
        a, b = gmp.Chan(), gmp.Chan()
        gmp.go(lambda: (a.recv(), b.send(1)), lock_os_thread=True)
        gmp.go(lambda: gmp.sleep(0.01), lock_os_thread=True)
        gmp.runtime.lock_os_thread()
        try:
            b.recv()
        except gmp.Deadlock as e:
            print(str(e).count("[chan receive]"), "chan send" in str(e))
    """).expect(0, out="1 False")


def test_ctrl_c_reaches_a_locked_main(child: Callable[..., Any]) -> None:
    child("""
        import gmp, os, signal, threading, time
        from tests.waiting import me, parked
        def interrupt(main):
            parked(main, turn=lambda: time.sleep(0.01))
            os.kill(os.getpid(), signal.SIGINT)
        gmp.go(interrupt, me(), lock_os_thread=True)
        gmp.runtime.lock_os_thread()
        try:
            gmp.Chan().recv()
        except KeyboardInterrupt:
            print(threading.get_native_id() == os.getpid())
    """).expect(0, out="True")


def test_fork_from_a_locked_goroutine(child: Callable[..., Any]) -> None:
    child("""
        import gmp, os, sys, threading
        def f():
            ch = gmp.Chan()
            pid = os.fork()
            if pid == 0:
                mine = threading.get_native_id()
                g = gmp.go(lambda: (gmp.sleep(0.01), ch.send(threading.get_native_id())))
                assert ch.recv() != mine
                g.join()
                h = gmp.go(lambda: gmp.sleep(0.01), lock_os_thread=True)
                h.join()
                assert threading.get_native_id() == mine
                gmp.runtime.unlock_os_thread()
                gmp.sleep(0.01)
                os._exit(7)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print([g.result() for g in [gmp.go(f, lock_os_thread=True) for _ in range(5)]])
    """).expect(0, out="[7, 7, 7, 7, 7]")


@pytest.mark.parametrize("how", ["parked", "blocked", "ending", "busy"])
def test_exit_beside_locked_goroutines(child: Callable[..., Any], how: str) -> None:
    child(
        """
        import gmp, sys, time
        how = sys.argv[1]
        ch = gmp.Chan()
        def f(i):
            if how == "parked":
                ch.recv()
            elif how == "blocked":
                time.sleep(60)
            elif how == "ending":
                while True:
                    gmp.go(gmp.gosched, lock_os_thread=True).join()
            else:
                while True:
                    pass
        for i in range(5):
            gmp.go(f, i, lock_os_thread=True)
        gmp.sleep(0.1)
        print("end")
        """,
        how,
    ).expect(0, out="end")


def test_waitgroup_counts_locked_ones() -> None:
    wg = WaitGroup()
    done: list[int] = []

    def f(i: int) -> None:
        runtime.lock_os_thread()
        gmp.sleep(0.001)
        done.append(i)

    for i in range(20):
        wg.go(f, i)
    wg.wait()
    assert sorted(done) == list(range(20))
