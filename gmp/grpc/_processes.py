"""serve(): one port, several processes.

The parent forks the workers and does nothing else: it never runs a server.  Each worker makes a server and binds the port for
itself, with SO_REUSEPORT, so that the kernel deals out the connections.  The parent holds the port by a socket that is bound and
does not listen.

    _Parent    starts, watches, replaces and stops workers; handles SIGTERM, SIGINT, SIGHUP
    _Worker    what it knows of one
    _work      a worker's life, from fork to exit

Two pipes tie them together: a worker writes a byte to its own when it serves, and finds the end of the parent's when that has died.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import gmp
from gmp.grpc._ports import bind

_LOGGER = logging.getLogger("gmp.grpc")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_SETTLED = 5.0  # seconds after which a worker's death is no failure of its start
_PATIENCE = 5.0  # seconds that a worker gets beyond the grace
_MOST_DELAY = 30.0  # seconds between two tries to start a worker


def serve(
    factory: Callable[[], Any] | str,
    address: str | None = None,
    *,
    processes: int | None = None,
    credentials: Any = None,
    grace: float = 30.0,
) -> None:
    """Serve with several processes on one port until SIGTERM or SIGINT: for more than one core with the GIL.

        def factory():
            server = gmp.grpc.server()
            add_GreeterServicer_to_server(Greeter(), server)
            return server

        gmp.grpc.serve(factory, "[::]:50051", processes=4)

    factory: makes a server that is not started; called in each worker.  As a str, "package.module:name", it is imported there, and so read
        anew at a restart.
    address: where to serve, as add_insecure_port takes it; not a Unix socket.  None: factory has added the ports, with fixed numbers.
    processes: how many; None: as many as there are CPUs.
    credentials: for add_secure_port.
    grace: seconds that calls under way get when a worker stops.

    SIGHUP replaces the workers one by one: a new one serves before an old one stops taking connections and lets its calls end.  A worker
    that dies is replaced.  SIGTERM and SIGINT stop them all; a second one does so at once.  Connections stay with the process that took
    them: the server's option grpc.max_connection_age_ms lets clients spread again.  Call it in the main thread, before other threads
    exist.

    Raises ValueError and TypeError for bad arguments, RuntimeError when the address cannot be had or no worker comes to serve.
    """
    if processes is None:
        processes = gmp.runtime.num_cpu()
    if isinstance(processes, bool) or not isinstance(processes, int):
        raise TypeError(f"serve(): processes must be an int or None, not {type(processes).__name__}")
    if processes < 1:
        raise ValueError(f"serve(): processes must be 1 or more, not {processes}")
    if isinstance(factory, str):
        module, colon, name = factory.partition(":")
        if not (module and colon and name):
            raise ValueError(f"serve(): factory must be like 'package.module:name', not {factory!r}")
    elif not callable(factory):
        raise TypeError(f"serve(): factory must be callable or a str, not {type(factory).__name__}")
    if isinstance(grace, bool) or not isinstance(grace, (int, float)) or not grace >= 0:
        raise ValueError(f"serve(): grace must be 0 or more seconds, not {grace!r}")
    if address is not None and not isinstance(address, str):
        raise TypeError(f"serve(): address must be a str, like '[::]:50051', or None, not {type(address).__name__}")
    if credentials is not None and address is None:
        raise ValueError("serve(): credentials need an address")
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("serve() handles signals: call it in the main thread")
    held: list[socket.socket] = []
    if address is not None:
        if address.startswith("unix"):
            raise ValueError(
                "serve(): processes cannot share a Unix socket; serve it from one process, with gmp.grpc.server"
            )
        try:
            held = bind(address, reuse_port=True, listen=False)
        except (OSError, ValueError) as error:
            raise RuntimeError(f"Failed to bind to address {address}: {error}") from error
        address = f"{address.rpartition(':')[0]}:{held[0].getsockname()[1]}"
    try:
        _Parent(factory, address, credentials, float(grace), processes).run()
    finally:
        for sock in held:
            sock.close()


class _Worker:
    def __init__(self, pid: int, ready: int) -> None:
        self.pid = pid
        self.ready = ready  # where it tells that it serves; -1: it has, or has died
        self.serves = False
        self.started = time.monotonic()
        self.kill_at: float | None = None  # it was told to stop

    def close(self) -> None:
        if self.ready >= 0:
            os.close(self.ready)
            self.ready = -1


class _Parent:
    def __init__(self, factory: Any, address: str | None, credentials: Any, grace: float, processes: int) -> None:
        self.job = (factory, address, credentials, grace)
        self.grace = grace
        self.processes = processes
        self.workers: dict[int, _Worker] = {}
        self.old: list[_Worker] = []  # to be replaced, after SIGHUP
        self.stopping = False
        self.proven = False  # a worker has served
        self.failures = 0  # workers in a row that died early
        self.start_at = 0.0  # no new worker before
        self.error: str | None = None
        self.caught: list[int] = []

    def run(self) -> None:
        with self.signals() as wakeup:
            self.alive_r, self.alive_w = os.pipe()
            try:
                while not (self.stopping and not self.workers):
                    self.start_missing()
                    self.wait(wakeup)
                    self.heed_signals()
                    self.reap()
                    self.stop_old()
                    self.kill_late()
            finally:
                for worker in self.workers.values():  # an error of ours
                    self.kill(worker, signal.SIGKILL)
                    os.waitpid(worker.pid, 0)
                os.close(self.alive_r)
                os.close(self.alive_w)
        if self.error is not None:
            raise RuntimeError(self.error)

    @contextlib.contextmanager
    def signals(self) -> Iterator[int]:
        """Have signals noted down; what is yielded becomes readable then."""
        r, w = os.pipe()
        os.set_blocking(r, False)
        os.set_blocking(w, False)
        before = {s: signal.signal(s, lambda signum, frame: self.caught.append(signum)) for s in _SIGNALS}
        old_fd = signal.set_wakeup_fd(w, warn_on_full_buffer=False)
        self.inherited = [r, w]
        try:
            yield r
        finally:
            signal.set_wakeup_fd(old_fd)
            for s, handler in before.items():
                signal.signal(s, handler if handler is not None else signal.SIG_DFL)
            os.close(r)
            os.close(w)

    def wait(self, wakeup: int) -> None:
        now = time.monotonic()
        times = [w.kill_at for w in self.workers.values() if w.kill_at is not None]
        if len(self.staying()) < self.wanted():
            times.append(self.start_at)
        timeout = None if not times else max(0.0, min(times) - now)
        pending = {w.ready: w for w in self.workers.values() if w.ready >= 0}
        for fd in select.select([wakeup, *pending], [], [], timeout)[0]:
            if fd == wakeup:
                with contextlib.suppress(BlockingIOError):
                    os.read(wakeup, 4096)
            elif os.read(fd, 1):
                self.proven = pending[fd].serves = True
                self.failures = 0
                pending[fd].close()
                _LOGGER.info("worker %d serves", pending[fd].pid)
            else:
                pending[fd].close()  # it is about to die

    def staying(self) -> list[_Worker]:
        """Workers that are not on their way out."""
        return [w for w in self.workers.values() if w.kill_at is None]

    def wanted(self) -> int:
        if self.stopping:
            return 0
        return self.processes + (1 if self.old else 0)

    # -- workers come --------------------------------------------------------------------------------------------------

    def start_missing(self) -> None:
        while len(self.staying()) < self.wanted() and time.monotonic() >= self.start_at:
            ready_r, ready_w = os.pipe()
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if pid == 0:
                for fd in (self.alive_w, ready_r, *self.inherited, *(w.ready for w in self.workers.values())):
                    if fd >= 0:
                        os.close(fd)
                _work(*self.job, ready_w, self.alive_r)
            os.close(ready_w)
            self.workers[pid] = _Worker(pid, ready_r)

    # -- and go --------------------------------------------------------------------------------------------------------

    def heed_signals(self) -> None:
        while self.caught:
            signum = self.caught.pop(0)
            if signum == signal.SIGHUP and not self.stopping:
                self.old = self.staying()
                self.start_at = 0.0
                _LOGGER.info("replacing %d workers", len(self.old))
            elif signum in (signal.SIGTERM, signal.SIGINT):
                if self.stopping:
                    for worker in self.workers.values():
                        self.kill(worker, signal.SIGKILL)
                self.stop_all()

    def stop_all(self) -> None:
        self.stopping = True
        self.old = []
        for worker in self.staying():
            self.stop(worker)

    def stop_old(self) -> None:
        """One for each new one that serves, beyond those that are to be there."""
        ready = [w for w in self.staying() if w.serves]
        while self.old and len(ready) > self.processes:
            worker = self.old.pop(0)
            if worker in ready:
                ready.remove(worker)
                self.stop(worker)

    def stop(self, worker: _Worker) -> None:
        worker.kill_at = time.monotonic() + self.grace + _PATIENCE
        self.kill(worker, signal.SIGTERM)

    def kill_late(self) -> None:
        for worker in self.workers.values():
            if worker.kill_at is not None and time.monotonic() >= worker.kill_at:
                _LOGGER.warning("worker %d did not stop in time: killed", worker.pid)
                self.kill(worker, signal.SIGKILL)
                worker.kill_at += _PATIENCE

    def kill(self, worker: _Worker, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signum)

    def reap(self) -> None:
        for pid in list(self.workers):
            try:
                found, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has waited for it
                found, status = pid, 0
            if found:
                worker = self.workers.pop(pid)
                self.died(worker, os.waitstatus_to_exitcode(status))

    def died(self, worker: _Worker, code: int) -> None:
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        worker.close()
        if worker in self.old:
            self.old.remove(worker)
        if worker.kill_at is not None:
            _LOGGER.info("worker %d has stopped (%s)", worker.pid, how)
            return
        if not self.proven:
            self.error = f"no worker came to serve: the first one ended with {how}; what went wrong is on stderr"
            self.stop_all()
            return
        early = time.monotonic() - worker.started < _SETTLED
        self.failures = self.failures + 1 if early else 0
        if self.failures:
            if self.old:
                _LOGGER.error("a new worker ended with %s: the %d old ones that are left stay", how, len(self.old))
                self.old = []
            delay = min(0.1 * 2.0 ** min(self.failures, 20), _MOST_DELAY)
            self.start_at = time.monotonic() + delay
            _LOGGER.error(
                "worker %d ended with %s soon after its start: the next one in %.1f s", worker.pid, how, delay
            )
        else:
            _LOGGER.error("worker %d ended with %s: starting another one", worker.pid, how)


def _work(factory: Any, address: str | None, credentials: Any, grace: float, ready: int, alive: int) -> NoReturn:
    """Be a worker."""
    code = 1
    try:
        asked: gmp.Chan[None] = gmp.Chan()

        def stop(*_: object) -> None:
            with contextlib.suppress(gmp.ChanClosed):
                asked.close()

        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's: the terminal sends it to all
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        server = _make(factory)
        if address is not None:
            if credentials is None:
                server.add_insecure_port(address)
            else:
                server.add_secure_port(address, credentials)
        server.start()
        os.write(ready, b"1")
        os.close(ready)
        gmp.go(_outlive, alive, stop)
        gmp.go(_after, server.wait_for_termination, stop)
        asked.recv_ok()
        server.stop(grace)
        server.wait_for_termination()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _make(factory: Any) -> Any:
    if isinstance(factory, str):
        module, _, name = factory.partition(":")
        factory = getattr(importlib.import_module(module), name)
    server = factory()
    if not all(hasattr(server, name) for name in ("add_insecure_port", "start", "stop", "wait_for_termination")):
        raise TypeError(
            f"serve(): factory must return a server, as gmp.grpc.server() does, not {type(server).__name__}"
        )
    return server


def _after(wait: Callable[[], object], stop: Callable[[], None]) -> None:
    wait()
    stop()


def _outlive(alive: int, stop: Callable[[], None]) -> None:
    """Stop when the parent has died: its end of the pipe is closed then."""
    from gmp import net

    os.set_blocking(alive, False)
    net.wait_read(alive)
    stop()
