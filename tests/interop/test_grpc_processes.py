"""gmp.grpc.serve: several processes on one port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time

import pytest

grpc = pytest.importorskip("grpc")

import gmp.grpc  # noqa: E402

LONG = 40.0

SCRIPT = """
import logging, os, sys, time
import grpc, gmp, gmp.grpc
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
uu = grpc.unary_unary_rpc_method_handler
mark = sys.argv[2]

def pid(request, context):
    return b"%d" % os.getpid()

def slow(request, context):
    with open(mark + ".slow", "ab") as f:
        f.write(b"x")
    gmp.sleep(float(request))
    return b"%d" % os.getpid()

def factory():
    if os.path.exists(mark):
        raise ZeroDivisionError("as the test wants")
    server = gmp.grpc.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("T", {"Pid": uu(pid), "Slow": uu(slow)}),))
    return server
"""
MAIN = """
print(os.getpid(), flush=True)
gmp.grpc.serve(factory, sys.argv[1], processes=3, grace=float(sys.argv[3]) if len(sys.argv) > 3 else 10)
print("done", flush=True)
"""


def until(condition):
    end = time.monotonic() + LONG
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"waited too long {[x.cell_contents for x in condition.__closure__ or ()]}"
        time.sleep(0.01)


@contextlib.contextmanager
def free_port():
    """Nobody else gets it meanwhile: it is bound, but who does not listen gets no connections."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        s.bind(("127.0.0.1", 0))
        yield s.getsockname()[1]


def ask(target, method="Pid", request=b"", timeout=LONG):
    """One call on a connection of its own."""
    with grpc.insecure_channel(target, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        return int(channel.unary_unary(f"/T/{method}")(request, timeout=timeout, wait_for_ready=True))


def pids(target, n=3):
    """The processes that serve, when there are n of them."""
    found: set[int] = set()
    return until(lambda: found.add(ask(target)) or (len(found) >= n and found))


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(workers):
    """Wait until all have ended."""
    until(lambda: not any(map(alive, workers)))


@pytest.fixture
def running(child, tmp_path):
    """Start the service: its parent process, where to call it, and the file that makes new workers fail."""

    def start(*args):
        target = f"127.0.0.1:{ports.enter_context(free_port())}"
        mark = tmp_path / "fail"
        c = child.start(SCRIPT + MAIN, target, str(mark), *args)
        assert int(c.readline()) == c.process.pid
        return c, target, mark

    with contextlib.ExitStack() as ports:
        yield start


def slow_calls(mark, n):
    """Wait until n calls of Slow have begun."""
    until(lambda: os.path.exists(f"{mark}.slow") and os.path.getsize(f"{mark}.slow") >= n)


def test_every_process_serves_and_all_stop(running):
    c, target, _ = running()
    workers = pids(target)
    assert c.process.pid not in workers
    c.process.send_signal(signal.SIGTERM)
    c.finish()
    c.expect(0, "done")
    assert not any(map(alive, workers))


def test_calls_under_way_end_before_the_end(running):
    c, target, mark = running()
    pids(target)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask(target, "Slow", b"0.5"))) for _ in range(6)]
    for t in threads:
        t.start()
    slow_calls(mark, 6)
    c.process.send_signal(signal.SIGINT)
    for t in threads:
        t.join()
    assert len(answers) == 6
    c.finish()
    c.expect(0, "done")


def test_grace_and_the_second_signal(running):
    c, target, mark = running("0.2")
    pids(target)
    failures = []

    def call():
        try:
            ask(target, "Slow", b"35")
        except grpc.RpcError as e:
            failures.append(e.code())

    t = threading.Thread(target=call)
    t.start()
    slow_calls(mark, 1)
    c.process.send_signal(signal.SIGTERM)
    c.finish()
    c.expect(0, "done")
    t.join()
    assert failures in ([grpc.StatusCode.UNAVAILABLE], [grpc.StatusCode.CANCELLED])

    c, target, mark = running("100")
    workers = pids(target)
    t = threading.Thread(target=call)
    t.start()
    slow_calls(mark, 2)
    c.process.send_signal(signal.SIGTERM)
    until(lambda: "has stopped" in c.process.stderr.readline())  # those without a call
    c.process.send_signal(signal.SIGTERM)
    c.finish()
    c.expect(0, "done")
    assert not any(map(alive, workers))
    t.join()


def test_hangup_replaces_all_and_no_call_fails(running):
    c, target, _ = running()
    before = pids(target)
    stop = threading.Event()
    failures, answered = [], []

    def call():
        with grpc.insecure_channel(target, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            method = channel.unary_unary("/T/Slow")
            while not stop.is_set():
                try:
                    answered.append(int(method(b"0.01", timeout=LONG, wait_for_ready=True)))
                except grpc.RpcError as e:
                    failures.append(e)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for t in threads:
        t.start()
    for _ in range(2):
        c.process.send_signal(signal.SIGHUP)
        gone(before)
        before = pids(target)
    stop.set()
    for t in threads:
        t.join()
    assert not failures
    assert len(set(answered)) > 3
    c.process.send_signal(signal.SIGTERM)
    c.finish()
    c.expect(0, "done")


def test_a_worker_that_dies_is_replaced(running):
    c, target, _ = running()
    workers = pids(target)
    victim = workers.pop()
    os.kill(victim, signal.SIGKILL)
    again = pids(target)
    assert victim not in again
    assert workers < again
    c.process.send_signal(signal.SIGTERM)
    c.finish()
    c.expect(0, "done")
    assert f"worker {victim} ended with SIGKILL" in c.err


def test_a_restart_that_fails_leaves_the_old_ones(running):
    c, target, mark = running()
    before = pids(target)
    mark.touch()
    c.process.send_signal(signal.SIGHUP)
    assert c.process.stderr is not None
    lines = []
    until(lambda: lines.append(c.process.stderr.readline()) or "the 3 old ones that are left stay" in lines[-1])
    assert "ZeroDivisionError: as the test wants" in "".join(lines)
    assert pids(target) == before
    mark.unlink()
    c.process.send_signal(signal.SIGHUP)
    gone(before)
    c.process.send_signal(signal.SIGTERM)
    c.finish()
    c.expect(0, "done")


def test_a_factory_that_fails_at_first(running):
    c, target, mark = running()
    pids(target)
    c.process.send_signal(signal.SIGTERM)
    c.finish()
    mark.touch()
    c = running()[0]
    c.finish()
    assert c.process.returncode == 1
    assert "ZeroDivisionError: as the test wants" in c.err
    assert "RuntimeError: no worker came to serve: the first one ended with exit code 1" in c.err


def test_workers_end_when_the_parent_is_killed(running):
    c, target, _ = running()
    workers = pids(target)
    c.process.kill()
    c.process.wait()
    gone(workers)


def test_a_port_of_its_own_and_a_factory_by_name(child, tmp_path):
    (tmp_path / "my_service.py").write_text(SCRIPT)
    c = child.start(
        """
        import sys
        import gmp.grpc
        from gmp.grpc import _processes
        bind = _processes.bind
        def shown(*args, **kwargs):
            sockets = bind(*args, **kwargs)
            print(sockets[0].getsockname()[1], flush=True)
            return sockets
        _processes.bind = shown
        sys.path.insert(0, sys.argv[1])
        gmp.grpc.serve("my_service:factory", "127.0.0.1:0", processes=2)
        """,
        str(tmp_path),
        str(tmp_path / "fail"),
    )
    target = f"127.0.0.1:{int(c.readline())}"
    before = pids(target, 2)
    c.process.send_signal(signal.SIGHUP)
    gone(before)
    pids(target, 2)
    c.process.send_signal(signal.SIGTERM)
    c.finish()
    c.expect(0)


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"factory": 1}, TypeError, "factory must be callable or a str"),
        ({"factory": "nothing"}, ValueError, "'package.module:name'"),
        ({"processes": 0}, ValueError, "processes must be 1 or more"),
        ({"processes": "2"}, TypeError, "processes must be an int"),
        ({"grace": -1}, ValueError, "grace must be 0 or more"),
        ({"address": "unix:/tmp/x"}, ValueError, "cannot share a Unix socket"),
        ({"address": "127.0.0.1"}, RuntimeError, "no port in it"),
        ({"address": 50051}, TypeError, "address must be a str"),
        ({"credentials": 1, "address": None}, ValueError, "credentials need an address"),
    ],
)
def test_bad_arguments(kwargs, error, text):
    args = {"factory": gmp.grpc.server, "address": "127.0.0.1:0", "processes": 1, **kwargs}
    with pytest.raises(error, match=text):
        gmp.grpc.serve(args.pop("factory"), args.pop("address"), **args)


def test_only_in_the_main_thread():
    raised = []

    def call():
        try:
            gmp.grpc.serve(gmp.grpc.server, "127.0.0.1:0")
        except RuntimeError as e:
            raised.append(str(e))

    t = threading.Thread(target=call)
    t.start()
    t.join()
    assert raised == ["serve() handles signals: call it in the main thread"]


def test_an_address_that_is_taken():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        with pytest.raises(RuntimeError, match="Failed to bind to address"):
            gmp.grpc.serve(gmp.grpc.server, f"127.0.0.1:{s.getsockname()[1]}", processes=1)
