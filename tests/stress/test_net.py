"""Connections that end in every way while other goroutines block: each byte that arrives belongs to its connection.

Every direction of every connection carries a stream of its own: an 8-byte word, drawn by chance, over and over.  A reader checks
each byte, so that one from another connection, an older one with the same descriptor included, shows; so does a lost or a
doubled one, as words are drawn without repetition within.  GMP_SEED repeats a run as far as threads allow.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket as so
import ssl
import struct
import time
from pathlib import Path
from typing import Any

import pytest

import gmp
from gmp import go, net
from gmp.net import Conn

SEED = int(os.environ.get("GMP_SEED", "0") or 0) or random.SystemRandom().randrange(1 << 32)
SECONDS = float(os.environ.get("GMP_STRESS_SECONDS", "2"))
WAIT = 60.0
CLIENTS = 24
HEADER = struct.Struct("!8s8sIIBB")
WAYS = ("clean", "clean", "close", "reset", "deadline", "half")
# What a connection may end with when one of its ends does as it likes.
USUAL = {errno.EBADF, errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN}


class Wrong(Exception):
    """No OSError: nothing swallows it."""


def word(r: random.Random) -> bytes:
    return bytes(r.sample(range(256), 8))


def stream(key: bytes, start: int, n: int) -> bytes:
    first = start % 8
    return (key * (n // 8 + 2))[first : first + n]


def quiet(e: BaseException) -> bool:
    return isinstance(e, (TimeoutError, ssl.SSLError)) or (isinstance(e, OSError) and e.errno in USUAL)


def pump(conn: Conn, key: bytes, total: int, seed: int) -> int:
    """Writes a stream; returns how much of it is known to be written."""
    r = random.Random(seed)
    done = 0
    try:
        while done < total:
            n = min(r.choice((1, 7, 64, 1500, 70_000)), total - done)
            if r.random() < 0.5:
                done += conn.write(stream(key, done, n))
            else:
                done += conn.write_part(stream(key, done, n))
            if r.random() < 0.05:
                gmp.gosched()
    except OSError as e:
        if not quiet(e):
            raise
    return done


def drain(conn: Conn, key: bytes, seed: int, patient: bool) -> int:
    """Reads and checks a stream to its end; returns its length, -1 when it ended by an error."""
    r = random.Random(seed)
    got = 0
    buffer = bytearray(3000)
    while True:
        try:
            size = r.choice((0, 1, 5, 64, 4096, 65536))
            data = conn.read(size) if size else bytes(buffer[: conn.read_into(buffer)])
        except TimeoutError:
            if not patient:
                return -1
            conn.set_read_deadline(None if r.random() < 0.3 else r.random() * 0.002)
            continue
        except OSError as e:
            if not quiet(e):
                raise
            return -1
        if not data:
            return got
        if data != stream(key, got, len(data)):
            raise Wrong(f"{conn!r} at {got}: {data[:40]!r} is not of the stream of {key!r}")
        got += len(data)


def end(conn: Conn, how: str, r: random.Random) -> None:
    """What an end does to its connection while its reader and its writer are at work."""
    gmp.sleep(r.random() * 0.003)
    if how == "reset":
        with contextlib.suppress(OSError):
            s = so.socket(fileno=os.dup(conn.fileno()))
            s.setsockopt(so.SOL_SOCKET, so.SO_LINGER, struct.pack("ii", 1, 0))
            s.close()
    if how in ("reset", "close"):
        conn.close()
    elif how == "deadline":
        for _ in range(5):
            with contextlib.suppress(OSError):
                conn.set_read_deadline(r.choice((0, 0.0001, 0.001, 5)))
            gmp.sleep(r.random() * 0.001)
        with contextlib.suppress(OSError):
            conn.set_deadline(None)
    elif how == "half":
        with contextlib.suppress(OSError):
            conn.shutdown(so.SHUT_RD)


def talk(conn: Conn, how: str, other: str, out: tuple[bytes, int], into: tuple[bytes, int], r: random.Random) -> None:
    """One end's part: write a stream, read another one, and end as `how` says."""
    writer = go(pump, conn, out[0], out[1], r.getrandbits(32))
    reader = go(drain, conn, into[0], r.getrandbits(32), how in ("clean", "deadline"))
    end(conn, how, r)
    written = writer.result(WAIT)
    if how in ("clean", "deadline"):
        with contextlib.suppress(OSError):
            conn.close_write()
    got = reader.result(WAIT)
    conn.close()
    if how in ("clean", "deadline") and other in ("clean", "deadline") and (written, got) != (out[1], into[1]):
        raise Wrong(f"{written} of {out[1]} bytes written, {got} of {into[1]} read ({how}, {other})")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
def test_each_byte_belongs_to_its_connection(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    print(f"GMP_SEED={SEED}")  # shown when the test fails
    rng = random.Random(f"{SEED}{kind}")
    options: dict[str, Any] = {}
    dial_options: dict[str, Any] = {}
    address: Any = "127.0.0.1:0"
    if kind == "unix":
        address = tmp_path / "s"
        options["network"] = dial_options["network"] = "unix"
    if kind == "tls":
        certificate = str(request.getfixturevalue("certificate"))
        options["ssl"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        options["ssl"].load_cert_chain(certificate)
        dial_options.update(ssl=ssl.create_default_context(cafile=certificate), server_hostname="localhost")
    listener = net.listen(address, **options)
    until = time.monotonic() + SECONDS
    served: list[gmp.Goroutine[None]] = []
    talked = 0

    def serve_one(conn: Conn, seed: int) -> None:
        with conn:
            try:
                header = conn.read_exactly(HEADER.size)
            except EOFError:
                return
            except OSError as e:
                if not quiet(e):
                    raise
                return
            up, down, up_size, down_size, mine, theirs = HEADER.unpack(header)
            talk(conn, WAYS[mine], WAYS[theirs], (down, down_size), (up, up_size), random.Random(seed))

    def serve() -> None:
        r = random.Random(rng.random())
        for conn in listener:
            served.append(go(serve_one, conn, r.getrandbits(32)))
            if len(served) > 1000:
                served[:] = [g for g in served if not g.done or g.result() is not None]

    def client(seed: int) -> None:
        nonlocal talked
        r = random.Random(seed)
        while talked == 0 or time.monotonic() < until:
            up, down = word(r), word(r)
            up_size, down_size = (r.choice((0, 1, 100, 5_000, 200_000)) for _ in range(2))
            mine, theirs = r.randrange(len(WAYS)), r.randrange(len(WAYS))
            with net.dial(listener.addr if kind != "unix" else address, timeout=WAIT, **dial_options) as conn:
                conn.write(HEADER.pack(up, down, up_size, down_size, theirs, mine))
                talk(conn, WAYS[mine], WAYS[theirs], (up, up_size), (down, down_size), r)
            talked += 1

    def churn(seed: int) -> None:
        """Takes the descriptor numbers that become free, and lets go of them: written to, a stray one would show."""
        r = random.Random(seed)
        while time.monotonic() < until:
            pairs = [so.socketpair() for _ in range(r.randrange(1, 8))]
            for a, b in pairs:
                a.send(b"\0stray")
                b.send(b"\0stray")
            gmp.sleep(r.random() * 0.002)
            for a, b in pairs:
                for s in (a, b):
                    if s.recv(100) != b"\0stray":
                        raise Wrong("another connection's bytes on a new descriptor")
                    s.close()

    def block(seed: int) -> None:
        """Keeps its thread, so that the others change theirs."""
        r = random.Random(seed)
        while time.monotonic() < until:
            time.sleep(r.random() * 0.002)
            gmp.sleep(r.random() * 0.001)

    server = go(serve)
    clients = [go(client, rng.getrandbits(32)) for _ in range(CLIENTS if kind != "tls" else 8)]
    others = [go(f, rng.getrandbits(32)) for f in (churn, churn, block, block, block, block)]
    try:
        for g in clients + others:
            g.result(SECONDS + 2 * WAIT)
    finally:
        listener.close()
    server.result(WAIT)
    for g in served:
        g.result(WAIT)
