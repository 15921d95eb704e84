"""Echo: a TCP server sends back what it gets, a handler for each of n connections.

The clients are the Go twin's (`twin load`), in a process and on CPUs of their own, the same for all servers: on Linux one
thread with an epoll set, which takes less processor time a message than any of the servers does. Each of the n writes
64 bytes and waits for them to come back. An operation is one message there and back; the time is the clients'.
"""

from __future__ import annotations

import asyncio
import subprocess

from benchmarks import gotwin
from benchmarks.harness import Bench, Target, Watch

SIZE = 4096  # of a read

ECHO = Bench("echo")
ECHO.shape(
    "echo_100",
    title="TCP echo, 100 connections",
    n=100,
    ops=100_000,
    needs_twin=True,
    targets=(Target(1.0, "uvloop"), Target(1 / 1.4, "gevent")),
)


def command(port: int, n: int, ops: int) -> list[str]:
    return [gotwin.build(), "load", f"127.0.0.1:{port}", str(n), str(ops)]


@ECHO.contender("gmp")
def _(watch: Watch, ops: int, n: int) -> None:
    from gmp import go
    from gmp.net import Conn, listen

    def handle(conn: Conn) -> None:
        with conn:
            while data := conn.read(SIZE):
                conn.write(data)

    def serve() -> None:
        for conn in listener:
            go(handle, conn)

    listener = listen("127.0.0.1:0")
    server = go(serve)
    with watch:
        out = subprocess.run(command(int(listener.addr[1]), n, ops), stdout=subprocess.PIPE, check=True).stdout
    watch.wall = int(out) / 1e9
    listener.close()
    server.join()


@ECHO.contender("gevent")
def _(watch: Watch, ops: int, n: int) -> None:
    from gevent import socket, subprocess
    from gevent.server import StreamServer

    def handle(conn: socket.socket, address: object) -> None:
        while data := conn.recv(SIZE):
            conn.sendall(data)

    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    with watch:
        out = subprocess.check_output(command(server.server_port, n, ops))
    watch.wall = int(out) / 1e9
    server.stop()


@ECHO.contender("asyncio", "uvloop")
async def _(watch: Watch, ops: int, n: int) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(SIZE):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=n)
    with watch:
        clients = await asyncio.create_subprocess_exec(
            *command(server.sockets[0].getsockname()[1], n, ops), stdout=subprocess.PIPE
        )
        out, _ = await clients.communicate()
    watch.wall = int(out) / 1e9
    server.close()
