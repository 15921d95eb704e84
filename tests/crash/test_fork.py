"""os.fork from main and from a goroutine, subprocess, multiprocessing."""

from __future__ import annotations

import sys

import pytest

WARNINGS = ("-W", "ignore::DeprecationWarning")  # 3.12+: fork in a process with threads

BODY = """
    import gmp, os, sys, threading, time
    from tests.waiting import parked
    ch = gmp.Chan()
    parked(*[gmp.go(ch.recv) for _ in range(50)])
    def check():
        "All of gmp works, and nothing of before the fork is left."
        back = gmp.Chan()
        gs = [gmp.go(lambda i=i: back.send(i)) for i in range(100)]
        assert sorted(back.recv() for _ in range(100)) == list(range(100))
        for g in gs: g.join()
        gmp.sleep(0.01)
        for g in [gmp.go(time.sleep, 0.1) for _ in range(5)]: g.join()
        out = []
        t = threading.Thread(target=lambda: out.append(gmp.go(lambda: 3).result())); t.start(); t.join()
        assert out == [3]
        try:
            gmp.Chan().recv(0.01)
        except TimeoutError:
            pass
        assert gmp.runtime.stack(all=True)
    def fork():
        pid = os.fork()
        if pid == 0:
            try:
                assert gmp.runtime.num_goroutine() <= 2, gmp.runtime.stack(all=True)
                check()
                code = 11
            except BaseException:
                import traceback
                traceback.print_exc()
                code = 1
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def test_fork_in_main(child) -> None:
    child(BODY + "    for _ in range(3): print(fork())\n    check()\n    ch.close()\n", python=WARNINGS).expect(
        0, "11\n11\n11"
    )


def test_fork_in_a_goroutine(child) -> None:
    child(
        BODY + "    for _ in range(3): print(gmp.go(fork).result())\n    check()\n    ch.close()\n", python=WARNINGS
    ).expect(0, "11\n11\n11")


def test_fork_in_a_thread(child) -> None:
    child(
        BODY
        + "    t = threading.Thread(target=lambda: (ch.send(1), print(fork())))\n    t.start(); t.join()\n    check()\n",
        python=WARNINGS,
    ).expect(0, "11")


def test_fork_where_main_was_moved_to(child) -> None:
    """A goroutine keeps the main thread; the main goroutine, and others, fork on the one where it went on."""
    c = child(
        BODY
        + """
    keepers = [gmp.go(time.sleep, 60) for _ in range(2)]
    for _ in range(100):
        gmp.sleep(0.02)
        if threading.get_native_id() != os.getpid():
            break
    print(fork())
    for g in [gmp.go(fork) for _ in range(10)]:
        assert g.result() == 11
    os._exit(0)
""",
        python=(*WARNINGS, "-X", "dev"),
        timeout=60,
    )
    c.expect(0, "11")
    assert "atfork" not in c.err, c.err


def test_child_ends_by_itself(child) -> None:
    """By sys.exit in the child of main; by the end of its only goroutine in the child of a goroutine."""
    child(
        """
        import gmp, os, sys
        from tests.waiting import parked
        parked(*[gmp.go(gmp.Chan().recv) for _ in range(50)])
        pid = os.fork()
        if pid == 0:
            gmp.go(int).join()
            sys.exit(12)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """,
        python=WARNINGS,
    ).expect(0, "12")


def test_fork_while_others_are_busy(child) -> None:
    child(
        """
        import gmp, os, time, threading
        stop = False
        def churn():
            ch = gmp.Chan(1)
            while not stop:
                gmp.go(ch.send, 1); ch.recv(); gmp.sleep(0.0001)
        gs = [gmp.go(churn) for _ in range(4)]
        ts = [threading.Thread(target=churn) for _ in range(2)]
        for t in ts: t.start()
        codes = []
        for _ in range(15):
            pid = os.fork()
            if pid == 0:
                gmp.go(gmp.sleep, 0.001).join()
                os._exit(13)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        stop = True
        for t in ts: t.join()
        for g in gs: g.join()
        print(set(codes))
        """,
        python=WARNINGS,
        timeout=60,
    ).expect(0, "{13}")


def test_deadlock_in_the_child(child) -> None:
    child(
        """
        import gmp, os
        gmp.go(int).join()
        pid = os.fork()
        if pid == 0:
            try:
                gmp.Chan().recv()
            except gmp.Deadlock:
                os._exit(14)
            os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """,
        python=WARNINGS,
    ).expect(0, "14")


def test_subprocess_from_goroutines(child) -> None:
    child(
        """
        import gmp, subprocess, sys, time
        def run(i):
            return subprocess.run([sys.executable, "-S", "-c", f"print({i} * 2)"], capture_output=True, text=True, check=True).stdout
        print([int(g.result()) for g in [gmp.go(run, i) for i in range(8)]])
        p = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        g = gmp.go(p.communicate, "hello")
        assert g.result() == ("hello", None)
        p = gmp.go(subprocess.Popen, ["sleep", "60"]).result()
        g = gmp.go(p.wait)
        gmp.sleep(0.05)
        p.terminate()
        assert g.result() == -15
        """,
        timeout=60,
    ).expect(0, str([2 * i for i in range(8)]))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(child, tmp_path, method: str) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        """
import multiprocessing as mp, sys
import gmp

def work(n):
    ch = gmp.Chan()
    gs = [gmp.go(ch.send, i) for i in range(n)]
    return sum(ch.recv() for _ in gs)

def queue_worker(q):
    q.put(gmp.go(work, 4).result())

if __name__ == "__main__":
    ctx = mp.get_context(sys.argv[1])
    parked = [gmp.go(gmp.Chan().recv) for _ in range(10)]
    gmp.gosched()
    with ctx.Pool(2) as pool:
        assert pool.map(work, [3, 4, 5]) == [3, 6, 10]
        assert gmp.go(pool.apply, work, (6,)).result() == 15
    q = ctx.Queue()
    p = ctx.Process(target=queue_worker, args=(q,))
    p.start()
    assert gmp.go(q.get, True, 60).result() == 6
    p.join()
    assert p.exitcode == 0
    print("ok")
"""
    )
    child(
        f"""
        import runpy, sys
        sys.argv = [{str(script)!r}, {method!r}]
        import subprocess
        r = subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", *sys.argv])
        sys.exit(r.returncode)
        """,
        timeout=100,
    ).expect(0, "ok")


def test_process_pool_and_gmp_wait(child) -> None:
    if sys.platform == "win32":
        pytest.skip("fork")
    child(
        """
        import concurrent.futures as cf, gmp, multiprocessing as mp
        with cf.ProcessPoolExecutor(2, mp_context=mp.get_context("fork")) as pool:
            gs = [gmp.go(lambda i=i: gmp.wait(pool.submit(pow, i, 2))) for i in range(10)]
            print([g.result() for g in gs])
        """,
        python=WARNINGS,
        timeout=60,
    ).expect(0, str([i * i for i in range(10)]))
