"""Connections that come and go: servers that start late, restart, drain, or let connections grow old; thousands at once; all addresses.

Each on gmp.grpc.server, gmp.grpc.compat_server and grpcio's own server where all three have the behaviour.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import socket
import struct
import threading
import time

import pytest

import gmp

grpc = pytest.importorskip("grpc")

import gmp.grpc  # noqa: E402

LONG = 30.0
SERVICE = "test.Lifecycle"
PATH = f"/{SERVICE}/"
STATUS = grpc.StatusCode
uu, us = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
ss = grpc.stream_stream_rpc_method_handler
OWN = ("grpc.use_local_subchannel_pool", 1)
QUICK = [OWN, ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100)]
QUICK += [("grpc.max_reconnect_backoff_ms", 200)]

needs_native = pytest.mark.skipif(not gmp.grpc.is_native, reason="built without libnghttp2")


def echo(request, context):
    return request


def each(requests, context):
    yield from requests


def peer(request, context):
    return context.peer().encode()


def start(make_server, address="127.0.0.1:0", options=(), **more):
    server = make_server(options=options)
    handlers = {"Echo": uu(echo), "Each": ss(each), "Peer": uu(peer), **more}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port(address)
    server.start()
    return server, port


@contextlib.contextmanager
def serving(make_server, address="127.0.0.1:0", options=(), **more):
    server, port = start(make_server, address, options, **more)
    try:
        yield server, port
    finally:
        assert server.stop(None).wait(LONG)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def until(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def run_aio(main):
    try:
        return asyncio.run(main)
    finally:
        gc.collect()


# -- servers that start late, and again --------------------------------------------------------------------------------


@pytest.mark.parametrize("connect", [grpc.insecure_channel, gmp.grpc.insecure_channel], ids=["grpcio", "goroutines"])
def test_a_client_waits_for_the_server(make_server, connect):
    port = free_port()
    with connect(f"127.0.0.1:{port}", options=QUICK) as channel:
        call = channel.unary_unary(PATH + "Echo")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=LONG)
        assert caught.value.code() is STATUS.UNAVAILABLE
        futures = [call.future(b"%d" % i, timeout=LONG, wait_for_ready=True) for i in range(20)]
        stream = channel.stream_stream(PATH + "Each")(iter([b"1", b"2"]), timeout=LONG, wait_for_ready=True)
        time.sleep(0.2)
        assert not any(future.done() for future in futures)
        with serving(make_server, f"127.0.0.1:{port}"):
            assert [future.result() for future in futures] == [b"%d" % i for i in range(20)]
            assert list(stream) == [b"1", b"2"]


def test_an_asyncio_client_waits_for_the_server(make_server):
    port = free_port()
    started = []

    async def main():
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=QUICK) as channel:
            calls = [channel.unary_unary(PATH + "Echo")(b"x", timeout=LONG, wait_for_ready=True) for _ in range(20)]
            await asyncio.sleep(0.2)
            started.append(start(make_server, f"127.0.0.1:{port}")[0])
            assert await asyncio.gather(*calls) == [b"x"] * 20

    run_aio(main())
    assert started[0].stop(None).wait(LONG)


@pytest.mark.parametrize("grace", [None, 5.0])
def test_a_channel_outlives_restarts(make_server, grace):
    server, port = start(make_server)
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=QUICK) as channel:
        call = channel.unary_unary(PATH + "Echo")
        for i in range(5):
            assert call(b"%d" % i, timeout=LONG, wait_for_ready=True) == b"%d" % i
            assert server.stop(grace).wait(LONG)
            if i % 2:
                with pytest.raises(grpc.RpcError) as caught:
                    call(b"", timeout=LONG)
                assert caught.value.code() is STATUS.UNAVAILABLE
            server, _ = start(make_server, f"127.0.0.1:{port}")
        assert call(b"last", timeout=LONG, wait_for_ready=True) == b"last"
    assert server.stop(None).wait(LONG)


@needs_native
def test_a_rolling_restart_loses_no_call():
    """The next server listens before the last one stops; a client that keeps calling sees nothing of it.  (grpcio's server loses some.)"""
    make_server = gmp.grpc.server
    server, port = start(make_server)
    done, failed, stop = [0], [], threading.Event()

    def keep_calling():
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=QUICK) as channel:
            call = channel.unary_unary(PATH + "Echo")
            while not stop.is_set():
                try:
                    call(b"x", timeout=LONG, wait_for_ready=True)
                    done[0] += 1
                except grpc.RpcError as error:
                    failed.append(error)
                    return

    threads = [threading.Thread(target=keep_calling) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        before = done[0]
        until(lambda before=before: done[0] > before + 50 or failed)
        following, _ = start(make_server, f"127.0.0.1:{port}")
        assert server.stop(LONG).wait(LONG)
        server = following
    stop.set()
    for thread in threads:
        thread.join(LONG)
    assert server.stop(None).wait(LONG)
    assert failed == []


# -- stop(grace) -------------------------------------------------------------------------------------------------------


def test_streams_under_way_end_in_their_own_time(make_server):
    server, port = start(make_server)
    feeds = [gmp.Chan(10) for _ in range(10)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=QUICK) as channel:
        streams = [channel.stream_stream(PATH + "Each")(iter(feed), timeout=LONG) for feed in feeds]
        for feed, stream in zip(feeds, streams):
            feed.send(b"before")
            assert next(stream) == b"before"
        ended = server.stop(LONG)
        with pytest.raises(grpc.RpcError) as caught:  # the goaway is there after a while
            until(lambda: channel.unary_unary(PATH + "Echo")(b"", timeout=LONG) is None)
        # grpcio's server cancels a call that comes between its stop and the client's notice.
        assert caught.value.code() in (STATUS.UNAVAILABLE, STATUS.CANCELLED)
        for i in range(20):
            for feed, stream in zip(feeds, streams):
                feed.send(b"%d" % i)
                assert next(stream) == b"%d" % i
        assert not ended.is_set()
        for feed, stream in zip(feeds, streams):
            feed.close()
            assert list(stream) == []
            assert stream.code() is STATUS.OK
        assert ended.wait(LONG)


def test_streams_beyond_the_grace_end(make_server):
    server, port = start(make_server)
    feed = gmp.Chan(10)
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=QUICK) as channel:
        stream = channel.stream_stream(PATH + "Each")(iter(feed), timeout=LONG)
        feed.send(b"before")
        assert next(stream) == b"before"
        assert server.stop(0.2).wait(LONG)
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() in (STATUS.UNAVAILABLE, STATUS.CANCELLED)
        feed.close()


@needs_native
def test_what_is_said_when_the_server_stops():
    """Two GOAWAYs: one that refuses nothing yet, and, when the client has had time to see it, one with the last call's number."""
    pytest.importorskip("h2")
    import h2.config
    import h2.connection

    go_on = gmp.Chan()

    def slow(request, context):
        go_on.recv_ok()
        return request

    server, port = start(gmp.grpc.server, Slow=uu(slow))
    sock = socket.create_connection(("127.0.0.1", port), LONG)
    conn = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="latin1"))
    conn.initiate_connection()
    seen = []

    def send_request(method, body=b""):
        stream = conn.get_next_available_stream_id()
        fields = {":method": "POST", ":scheme": "http", ":path": PATH + method, ":authority": "x", "te": "trailers"}
        conn.send_headers(stream, [*fields.items(), ("content-type", "application/grpc")])
        conn.send_data(stream, struct.pack(">BI", 0, len(body)) + body, end_stream=True)
        sock.sendall(conn.data_to_send())
        return stream

    def read_until(condition):
        while not condition():
            data = sock.recv(65536)
            # h2 takes no more streams after a GOAWAY, so they are looked at before
            at = 0
            while at < len(data):
                size, kind = int.from_bytes(data[at : at + 3]), data[at + 3]
                if kind == 7:
                    last, code = struct.unpack_from(">II", data, at + 9)
                    seen.append(("goaway", last, code))
                elif kind == 6 and not data[at + 4] & 1:
                    sock.sendall(b"\0\0\x08\x06\x01\0\0\0\0" + data[at + 9 : at + 17])
                elif kind == 1:
                    seen.append(("headers", int.from_bytes(data[at + 5 : at + 9])))
                at += 9 + size
            if not data:
                seen.append("closed")
                return

    first = send_request("Slow", b"1")
    until(lambda: server.stats()["running"] == 1)
    ended = server.stop(LONG)
    read_until(lambda: sum(event[0] == "goaway" for event in seen) == 2)
    assert [event for event in seen if event[0] == "goaway"] == [("goaway", 2**31 - 1, 0), ("goaway", first, 0)]
    assert not ended.is_set()
    go_on.close()
    read_until(lambda: False)
    assert seen[2:] == [("headers", first), ("headers", first), "closed"]
    assert ended.wait(LONG)
    sock.close()


# -- connections of a certain age --------------------------------------------------------------------------------------

AGE = [("grpc.max_connection_age_ms", 150), ("grpc.max_connection_age_grace_ms", 20_000)]


def test_no_call_fails_as_connections_grow_old(make_server, kind_of_server):
    """Unary calls one after the other and streams of a second, while connections are replaced all the time."""

    def slowly(request, context):
        for i in range(10):
            time.sleep(0.05)
            yield b"%d" % i

    seen, failed = set(), []
    end = time.monotonic() + 2.5
    with serving(make_server, options=AGE, Slowly=us(slowly)) as (_, port):

        def work(method):
            # Only a call that was refused before it began is made again, by the client itself: that is what the GOAWAY is for.
            with grpc.insecure_channel(f"127.0.0.1:{port}", options=QUICK) as channel:
                while time.monotonic() < end:
                    try:
                        if method == "Peer":
                            seen.add(channel.unary_unary(PATH + method)(b"", timeout=LONG, wait_for_ready=True))
                        else:
                            got = list(channel.unary_stream(PATH + method)(b"", timeout=LONG, wait_for_ready=True))
                            assert got == [b"%d" % i for i in range(10)]
                    except (grpc.RpcError, AssertionError) as error:
                        failed.append(error)
                        return

        threads = [threading.Thread(target=work, args=(m,)) for m in ("Peer", "Peer", "Slowly", "Slowly")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
    assert failed == []
    assert len(seen) > 6


def test_no_call_of_an_asyncio_client_fails_as_connections_grow_old(make_server):
    async def main(port):
        end = time.monotonic() + 2.0
        seen = set()

        async def work():
            while time.monotonic() < end:
                seen.add(await channel.unary_unary(PATH + "Peer")(b"", timeout=LONG, wait_for_ready=True))

        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=QUICK) as channel:
            await asyncio.gather(*(work() for _ in range(20)))
        return len(seen)

    with serving(make_server, options=AGE) as (_, port):
        assert run_aio(main(port)) > 3


@needs_native
def test_grpclib_s_client_as_connections_grow_old():
    """At a GOAWAY it drops the connection and the calls on it, whoever the server is; the next call connects again."""
    pytest.importorskip("grpclib")
    import grpclib.client
    import grpclib.const
    import grpclib.exceptions

    class Codec:
        __content_subtype__ = "proto"

        def encode(self, message, message_type):
            return message

        def decode(self, data, message_type):
            return data

    async def main(port):
        channel = grpclib.client.Channel("127.0.0.1", port, codec=Codec())
        method = grpclib.client.UnaryUnaryMethod(channel, PATH + "Peer", bytes, bytes)
        end = time.monotonic() + 1.5
        seen = set()
        while time.monotonic() < end:
            with contextlib.suppress(grpclib.exceptions.StreamTerminatedError):
                seen.add(await method(b"", timeout=LONG))
        channel.close()
        await asyncio.sleep(0)
        return len(seen)

    with serving(gmp.grpc.server, options=AGE) as (_, port):
        assert run_aio(main(port)) > 3


# -- thousands of connections ------------------------------------------------------------------------------------------

CONNECTIONS = 3000


@needs_native
def test_thousands_of_connections_with_a_call_on_each():
    hpack = pytest.importorskip("hpack")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = 2 * CONNECTIONS + 500
    if hard != resource.RLIM_INFINITY and hard < need:
        pytest.skip(f"needs {need} descriptors, and the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, need), hard))
    go_on = gmp.Chan()

    def hold(request, context):
        go_on.recv_ok()
        return request * 3

    fields = {":method": "POST", ":scheme": "http", ":path": PATH + "Hold", ":authority": "x", "te": "trailers"}
    fields["content-type"] = "application/grpc"
    head = hpack.Encoder().encode(fields.items())

    def frame(kind, flags, stream, body=b""):
        return len(body).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + body

    def request(i):
        body = struct.pack(">BII", 0, 4, i)
        return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(1, 4, 1, head) + frame(0, 1, 1, body)

    sockets = []
    try:
        with serving(gmp.grpc.server, Hold=uu(hold)) as (server, port):
            for i in range(CONNECTIONS):
                sockets.append(socket.create_connection(("127.0.0.1", port), LONG))
                sockets[-1].sendall(request(i))
            until(lambda: server.stats()["running"] == CONNECTIONS)
            stats = server.stats()
            assert (stats["connections"], stats["streams"]) == (CONNECTIONS, CONNECTIONS)
            assert gmp.runtime.stats()["threads"] < 100
            go_on.close()
            for i, sock in enumerate(sockets):
                wanted, got = struct.pack(">BI", 0, 12) + struct.pack(">I", i) * 3, b""
                while wanted not in got:
                    data = sock.recv(65536)
                    assert data, (i, got)
                    got += data
            until(lambda: server.stats()["streams"] == 0)
    finally:
        for sock in sockets:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_hundred_channels(make_server):
    with serving(make_server) as (_, port):
        channels = [grpc.insecure_channel(f"127.0.0.1:{port}", options=[OWN]) for _ in range(100)]
        futures = [c.unary_unary(PATH + "Peer").future(b"", timeout=LONG, wait_for_ready=True) for c in channels]
        assert len({future.result() for future in futures}) == 100
        for channel in channels:
            channel.close()


# -- addresses ---------------------------------------------------------------------------------------------------------


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def ask_peer(target):
    with grpc.insecure_channel(target, options=[OWN]) as channel:
        return channel.unary_unary(PATH + "Peer")(b"", timeout=LONG).decode()


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("address", ["[::1]:0", "[::]:0", "ipv6:[::1]:0", "*:0"])
def test_ipv6(make_server, kind_of_server, address):
    if kind_of_server != "native" and not address.startswith("["):
        pytest.skip("grpcio takes no such address")
    with serving(make_server, address) as (_, port):
        assert ask_peer(f"[::1]:{port}").startswith("ipv6:%5B::1%5D:")
        if "::1" not in address:
            assert ask_peer(f"127.0.0.1:{port}").startswith("ipv4:127.0.0.1:")


@pytest.mark.parametrize("scheme", ["unix:", "unix://", "unix-abstract:"])
def test_unix_sockets(make_server, scheme, tmp_path):
    address = (
        f"unix-abstract:gmp-{os.getpid()}-{time.monotonic_ns()}" if "abstract" in scheme else f"{scheme}{tmp_path}/s"
    )
    with serving(make_server, address) as (_, port):
        assert port == 1
        assert ask_peer(address).startswith("unix:")
        with grpc.insecure_channel(address, options=[OWN]) as channel:
            feed = [b"%d" % i for i in range(100)]
            assert list(channel.stream_stream(PATH + "Each")(iter(feed), timeout=LONG)) == feed
    if "abstract" in scheme:
        return
    assert not os.path.exists(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:  # a server that was killed leaves its file behind
        dead.bind(str(tmp_path / "s"))
    with serving(make_server, address):
        assert ask_peer(address).startswith("unix:")


@needs_native
def test_a_unix_socket_s_next_server_takes_over(tmp_path):
    address = f"unix:{tmp_path}/s"
    with contextlib.ExitStack() as following:
        with serving(gmp.grpc.server, address):
            assert ask_peer(address).startswith("unix:")
            following.enter_context(serving(gmp.grpc.server, address))
        assert ask_peer(address).startswith("unix:")  # the file was not removed by the first one
    assert not os.path.exists(tmp_path / "s")


def test_a_file_that_is_no_socket_stays(make_server, tmp_path):
    (tmp_path / "s").write_text("precious")
    with pytest.raises(RuntimeError, match="Failed to bind"):
        start(make_server, f"unix:{tmp_path}/s")
    assert (tmp_path / "s").read_text() == "precious"


def test_an_asyncio_client_on_unix_sockets(make_server, tmp_path):
    async def main(address):
        async with grpc.aio.insecure_channel(address) as channel:
            calls = [channel.unary_unary(PATH + "Echo")(b"%d" % i, timeout=LONG) for i in range(50)]
            return await asyncio.gather(*calls)

    with serving(make_server, f"unix:{tmp_path}/s"):
        assert run_aio(main(f"unix:{tmp_path}/s")) == [b"%d" % i for i in range(50)]


def test_one_server_on_many_addresses(make_server, tmp_path):
    server = make_server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Peer": uu(peer)}),))
    targets = [f"unix:{tmp_path}/a", f"unix:{tmp_path}/b"]
    for target in targets:
        assert server.add_insecure_port(target) == 1
    targets += [f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}" for _ in range(3)]
    server.start()
    assert [ask_peer(target).partition(":")[0] for target in targets] == ["unix"] * 2 + ["ipv4"] * 3
    assert server.stop(None).wait(LONG)
