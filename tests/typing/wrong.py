"""Each line marked E must be refused by mypy --strict, and no other."""

from __future__ import annotations

from gmp import Chan, Goroutine, go, recv, select, sleep
from gmp.sync import Mutex


def square(n: int) -> int:
    return n * n


ch: Chan[int] = Chan()
ch.send("x")  # E
Chan("x")  # E
go(square, "x")  # E
go(square)  # E
go(None)  # E
go(square, 1, lock_os_thread="yes")  # E
ch.recv(timeout="1")  # E
select(ch)  # E
select(recv(3))  # E
sleep(None)  # E
Mutex().lock(blocking=True)  # E
text: str = go(square, 1).result()  # E
Goroutine[int]().result()  # at run time only


class Sub(Chan[int]): ...  # E
