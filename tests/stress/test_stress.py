"""Everything at once, by chance: seeded, so that GMP_SEED repeats a run as far as threads allow."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import threading
import time

import pytest

import gmp
from gmp import Chan, ChanClosed, go, recv, select, send
from gmp.sync import Mutex, WaitGroup
from tests.waiting import until

SEED = int(os.environ.get("GMP_SEED", "0") or 0) or random.SystemRandom().randrange(1 << 32)
SECONDS = float(os.environ.get("GMP_STRESS_SECONDS", "2"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    print(f"GMP_SEED={SEED}")  # shown when the test fails
    return random.Random(f"{SEED}{request.node.name}")


@pytest.mark.parametrize("cap", [0, 1, 7])
def test_nothing_is_lost_or_doubled(rng: random.Random, cap: int) -> None:
    """Goroutines and threads send and receive on a few channels, plainly, by select, with timeouts: each value arrives once."""
    chans: list[Chan[int]] = [Chan(cap) for _ in range(3)]
    quit_: Chan[None] = Chan()
    sent: list[list[int]] = []
    received: list[list[int]] = []
    stop = False

    def sender(seed: int, base: int) -> None:
        r = random.Random(seed)
        mine: list[int] = []
        sent.append(mine)
        n = base
        while not stop:
            n += 1
            how = r.randrange(4)
            ch = r.choice(chans)
            try:
                if how == 0:
                    ch.send(n, 0.5)
                elif how == 1:
                    ch.send(n, r.random() * 0.001)
                elif how == 2:
                    if (
                        select(*[send(c, n) for c in r.sample(chans, 3)], default=r.random() < 0.5, timeout=0.01).index
                        < 0
                    ):
                        continue
                else:
                    ch.send(n, 0)
            except TimeoutError:
                gmp.gosched()
                continue
            mine.append(n)
            if r.random() < 0.05:
                gmp.sleep(r.random() * 0.001)

    def receiver(seed: int) -> None:
        r = random.Random(seed)
        mine: list[int] = []
        received.append(mine)
        while True:
            how = r.randrange(4)
            try:
                if how == 0:
                    s = select(*[recv(c) for c in r.sample(chans, 3)], recv(quit_), timeout=0.5)
                    if s.index == 3:
                        return
                    mine.append(s.value)
                elif how == 1:
                    mine.append(r.choice(chans).recv(r.random() * 0.002))
                elif how == 2:
                    mine.append(r.choice(chans).recv(0))
                else:
                    s = select(recv(r.choice(chans)), default=True)
                    if s.ok:
                        mine.append(s.value)
            except TimeoutError:
                if quit_.closed:
                    return
                gmp.gosched()

    seeds = iter(lambda: rng.randrange(1 << 30), None)
    receivers = [go(receiver, next(seeds)) for _ in range(20)]
    rthreads = [threading.Thread(target=receiver, args=(next(seeds),)) for _ in range(2)]
    senders = [go(sender, next(seeds), i * 10_000_000) for i in range(20)]
    sthreads = [threading.Thread(target=sender, args=(next(seeds), (100 + i) * 10_000_000)) for i in range(2)]
    for t in rthreads + sthreads:
        t.start()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end or sum(map(len, sent)) <= 100:
        gmp.sleep(0.05)
        gc.collect()
    stop = True
    for g in senders:
        g.join(30)
    for t in sthreads:
        t.join(30)
    quit_.close()
    for g in receivers:
        g.join(30)
    for t in rthreads:
        t.join(30)
    rest = []
    for c in chans:
        with contextlib.suppress(TimeoutError):
            while True:
                rest.append(c.recv(0))
    out = sorted(v for mine in sent for v in mine)
    assert sorted([v for mine in received for v in mine] + rest) == out


def test_random_trees(rng: random.Random) -> None:
    """Goroutines start goroutines that return, raise, time out, use locals, collect garbage."""

    class Expected(Exception): ...

    local = threading.local()
    count = 0

    def node(seed: int, depth: int) -> int:
        nonlocal count
        count += 1
        r = random.Random(seed)
        assert not hasattr(local, "x")
        local.x = seed
        total = 1
        children = [go(node, r.randrange(1 << 30), depth - 1) for _ in range(r.randrange(4))] if depth else []
        action = r.randrange(12)
        if action == 0:
            gmp.gosched()
        elif action == 1:
            gmp.sleep(r.random() * 0.003)
        elif action == 2:
            with pytest.raises(TimeoutError):
                Chan[int]().recv(r.random() * 0.002)
        elif action == 3:
            gc.collect(0)
        elif action == 4:
            time.sleep(r.random() * 0.002)
        elif action == 5:
            ch: Chan[int] = Chan()
            g = go(ch.send, 1)
            assert select(recv(ch), recv(None)).value == 1
            g.join()
        elif action == 6:
            cycle: list[object] = []
            cycle.append(cycle)
        for g in children:
            try:
                total += g.result(30)
            except Expected as e:
                total += int(str(e))
        assert local.x == seed
        if action == 7:
            raise Expected(str(total))
        return total

    end = time.monotonic() + SECONDS
    rounds = 0
    while time.monotonic() < end:
        count = 0
        try:
            total = go(node, rng.randrange(1 << 30), 6).result(60)
        except Expected as e:
            total = int(str(e))
        assert total == count
        rounds += 1
    assert rounds > 0


def test_locks_and_groups(rng: random.Random) -> None:
    mutexes = [Mutex() for _ in range(3)]
    values = [0] * 3
    done = [0] * 3
    wg = WaitGroup()
    stop = False

    def worker(seed: int) -> None:
        r = random.Random(seed)
        while not stop:
            i = r.randrange(3)
            try:
                mutexes[i].lock(r.choice([None, 0, 0.0005, 0.01]))
            except TimeoutError:
                gmp.gosched()
                continue
            v = values[i]
            if r.random() < 0.3:
                gmp.gosched()
            elif r.random() < 0.02:
                time.sleep(0.0005)
            values[i] = v + 1
            done[i] += 1  # under the same lock
            mutexes[i].unlock()

    for _ in range(30):
        wg.go(worker, rng.randrange(1 << 30))
    threads = [threading.Thread(target=worker, args=(rng.randrange(1 << 30),)) for _ in range(3)]
    for t in threads:
        t.start()
    gmp.sleep(SECONDS)
    until(lambda: sum(done) > 100)
    stop = True
    wg.wait(30)
    for t in threads:
        t.join(30)
    assert values == done
    assert not any(m.locked() for m in mutexes)


def test_closing(rng: random.Random) -> None:
    """Channels are closed while many wait on them in every way: each waiter ends, each in a way that fits."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        a: Chan[int] = Chan(rng.randrange(3))
        b: Chan[int] = Chan(rng.randrange(3))
        results: list[str] = []

        def use(seed: int, a: Chan[int] = a, b: Chan[int] = b, results: list[str] = results) -> None:
            r = random.Random(seed)
            try:
                for _ in range(r.randrange(1, 20)):
                    match r.randrange(5):
                        case 0:
                            a.send(1)
                        case 1:
                            if not a.recv_ok()[1]:
                                results.append("closed")
                                return
                        case 2:
                            s = select(recv(a), send(b, 2))
                            if not s.ok:
                                results.append("closed")
                                return
                        case 3:
                            for _ in zip(range(3), b, strict=False):
                                pass
                        case _:
                            select(recv(a), recv(b), timeout=0.0005)
            except (ChanClosed, TimeoutError) as e:
                results.append(type(e).__name__)
            else:
                results.append("end")

        gs = [go(use, rng.randrange(1 << 30)) for _ in range(30)]
        for _ in range(rng.randrange(5)):
            gmp.gosched()
        a.close()
        if rng.random() < 0.5:
            gmp.gosched()
        b.close()
        for g in gs:
            g.join(30)
        assert len(results) == 30


def test_many_parked(rng: random.Random) -> None:
    """20,000 wait at once, woken in random order."""
    n = 20_000
    chans: list[Chan[int]] = [Chan() for _ in range(n)]
    gs = [go(c.recv) for c in chans]
    order = list(range(n))
    rng.shuffle(order)
    for i in order:
        chans[i].send(i)
    assert [g.result() for g in gs] == list(range(n))


def test_exceptions_in_a_storm(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every failure is seen once: collected or reported."""
    reported: list[int] = []
    monkeypatch.setattr(gmp, "excepthook", lambda args: reported.append(args.exc_value.args[0]))

    def fail(i: int) -> None:
        if i % 3 == 0:
            gmp.gosched()
        elif i % 3 == 1:
            gmp.sleep(0.0002)
        raise ValueError(i)

    collected: list[int] = []
    total = 0
    end = time.monotonic() + SECONDS / 2
    while time.monotonic() < end:
        for _ in range(100):
            total += 1
            g = go(fail, total)
            if rng.random() < 0.5:
                try:
                    g.join(30)
                except ValueError as e:
                    collected.append(e.args[0])
            del g
    until(lambda: len(collected) + len(reported) >= total, turn=lambda: (gmp.sleep(0.01), gc.collect()))
    assert sorted(collected + reported) == list(range(1, total + 1))
