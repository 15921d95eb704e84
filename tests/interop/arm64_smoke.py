"""Run by tools/arm64.sh under an emulator that has no pytest: the parts of gmp that depend on the processor and the system.

Every check has a generous limit: an emulated machine is slow.
"""

import faulthandler
import platform
import socket
import sys
import threading
import time

import gmp
import gmp.native
from gmp import net, sync

LIMIT = 120


def goroutines() -> None:
    started = [gmp.go(lambda n=n: n * n) for n in range(2000)]
    assert sum(g.result(timeout=LIMIT) for g in started) == sum(n * n for n in range(2000))
    failed = gmp.go(lambda: 1 // 0)
    try:
        failed.result(timeout=LIMIT)
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("an exception was lost")


def channels() -> None:
    there, back = gmp.Chan(), gmp.Chan(8)

    def doubles() -> None:
        for value in there:
            back.send(2 * value)
        back.close()

    gmp.go(doubles)
    gmp.go(lambda: [there.send(n) for n in range(500)] and there.close())
    assert list(back) == [2 * n for n in range(500)]


def select() -> None:
    a, b = gmp.Chan(), gmp.Chan()
    gmp.go(lambda: [a.send(n) for n in range(50)])
    gmp.go(lambda: [b.send(-n) for n in range(50)])
    got = [gmp.select(gmp.recv(a), gmp.recv(b)) for _ in range(100)]
    assert sorted(s.value for s in got if s.index == 0) == list(range(50))
    assert sum(s.value for s in got) == 0
    assert gmp.select(gmp.recv(a), default=True).index == -1


def recursion() -> None:
    def deep(n: int) -> int:
        return 0 if n == 0 else 1 + deep(n - 1)

    def too_deep(n: int) -> int:
        return too_deep(n + 1)

    assert gmp.go(deep, 800).result(timeout=LIMIT) == 800
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    for fn in (lambda: too_deep(0), lambda: repr(nested)):
        try:
            gmp.go(fn).result(timeout=LIMIT)
        except RecursionError:
            continue
        raise AssertionError("no RecursionError")
    while nested:
        nested = nested.pop()  # not by the destructor, level in level


def sleeping() -> None:
    begin = time.monotonic()
    done = sync.WaitGroup()
    for _ in range(200):
        done.go(gmp.sleep, 0.05)
    done.wait(timeout=LIMIT)
    assert 0.05 <= time.monotonic() - begin < LIMIT


def threads() -> None:
    out: gmp.Chan[int] = gmp.Chan()
    others = [threading.Thread(target=lambda n=n: out.send(n), daemon=True) for n in range(8)]
    for t in others:
        t.start()
    assert sorted(out.recv(timeout=LIMIT) for _ in others) == list(range(8))
    for t in others:
        t.join(LIMIT)
    # One that blocks its thread, unpatched: the others go on.
    blocked, freed = gmp.Chan(1), threading.Event()
    gmp.go(lambda: (freed.wait(LIMIT), blocked.send(freed.is_set())))
    gmp.go(freed.set)
    assert blocked.recv(timeout=LIMIT)


def sockets() -> None:
    with net.listen("127.0.0.1:0") as listener:

        def serve() -> None:
            with listener.accept() as conn:
                while data := conn.read(64):
                    conn.write(data)

        server = gmp.go(serve)
        with net.dial(listener.addr, timeout=LIMIT) as conn:
            for n in range(50):
                message = b"%063d\n" % n
                conn.write(message)
                assert conn.read_exactly(64) == message
        server.result(timeout=LIMIT)
    left, right = socket.socketpair()
    with left, right:
        gmp.go(lambda: (time.sleep(0.01), right.send(b"x")))
        net.wait_read(left, timeout=LIMIT)
        assert left.recv(1) == b"x"


def native() -> None:
    """There is no compiler here: functions of gmp.h that take one pointer serve as goroutines."""
    close, yields = (gmp.ffi.addressof(gmp.lib, name) for name in ("gmp_chan_close", "gmp_yield"))
    started = [gmp.native.go(yields, stack=gmp.native.STACK_2K) for _ in range(500)]
    for g in started:
        g.join(timeout=LIMIT)
    ch = gmp.native.Chan(4)
    gmp.go(lambda: [ch.send(n) for n in range(4)]).result(timeout=LIMIT)
    gmp.native.go(close, ch).join(timeout=LIMIT)
    assert list(ch) == [0, 1, 2, 3]


def main() -> None:
    faulthandler.dump_traceback_later(LIMIT * 5, exit=True)
    for check in (goroutines, channels, select, recursion, sleeping, threads, sockets, native):
        begin = time.monotonic()
        check()
        print(f"{check.__name__:<12} ok  {time.monotonic() - begin:.2f} s", flush=True)
    stats = gmp.runtime.stats()
    print(f"Python {sys.version.split()[0]} on {platform.machine()}, gmp {gmp.__version__}, guards: {stats['guards']}")


main()
