"""gmp.grpc.insecure_channel and secure_channel: grpcio's channels on which goroutines park."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time

import pytest

import gmp
from gmp import go

grpc = pytest.importorskip("grpc")

import gmp.grpc  # noqa: E402
from gmp.protos import helloworld_pb2, helloworld_pb2_grpc  # noqa: E402

SERVICE = "test.Calls"
LONG = 40.0

uu, us = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
su, ss = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler


@contextlib.contextmanager
def serving(**handlers):
    """Start a server with the given method handlers, yield it and a channel to it, stop it."""
    server = gmp.grpc.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with gmp.grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield server, channel
    finally:
        assert server.stop(None).wait(LONG)


def path(method="Call"):
    return f"/{SERVICE}/{method}"


def until(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "waited too long"
        gmp.sleep(0.002)


def echo(request, context):
    context.set_trailing_metadata((("echo", "yes"),))
    return request


def count(request, context):
    for i in range(int(request)):
        yield b"%d" % i


def total(requests, context):
    return b"%d" % sum(map(int, requests))


def double(requests, context):
    for request in requests:
        yield request * 2


def fail(request, context):
    context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")


ALL = {"Echo": uu(echo), "Count": us(count), "Total": su(total), "Double": ss(double), "Fail": uu(fail)}


def test_generated_stubs_work():
    class Greeter(helloworld_pb2_grpc.GreeterServicer):
        def SayHello(self, request, context):
            return helloworld_pb2.HelloReply(message=f"Hello, {request.name}!")

    server = gmp.grpc.server()
    helloworld_pb2_grpc.add_GreeterServicer_to_server(Greeter(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with gmp.grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = helloworld_pb2_grpc.GreeterStub(channel)
        names = [f"goroutine {i}" for i in range(200)]
        calls = [go(lambda n=n: stub.SayHello(helloworld_pb2.HelloRequest(name=n)).message) for n in names]
        assert [c.result() for c in calls] == [f"Hello, {n}!" for n in names]
    server.stop(None)


@pytest.mark.parametrize("where", ["main", "goroutine", "thread"])
def test_every_kind_of_call(where):
    def calls():
        assert channel.unary_unary(path("Echo"))(b"x") == b"x"
        response, call = channel.unary_unary(path("Echo")).with_call(b"x", metadata=(("a", "b"),))
        assert response == b"x"
        assert call.code() is grpc.StatusCode.OK
        assert ("echo", "yes") in call.trailing_metadata()
        future = channel.unary_unary(path("Echo")).future(b"f")
        assert (future.result(), future.done(), future.exception(), future.code()) == (
            b"f",
            True,
            None,
            grpc.StatusCode.OK,
        )
        assert list(channel.unary_stream(path("Count"))(b"5")) == [b"0", b"1", b"2", b"3", b"4"]
        assert channel.stream_unary(path("Total"))(iter([b"1", b"2", b"3"])) == b"6"
        response, call = channel.stream_unary(path("Total")).with_call(iter([b"1"]))
        assert (response, call.code()) == (b"1", grpc.StatusCode.OK)
        assert channel.stream_unary(path("Total")).future(iter([b"4", b"5"])).result() == b"9"
        assert list(channel.stream_stream(path("Double"))(iter([b"a", b"b"]))) == [b"aa", b"bb"]
        call = channel.unary_stream(path("Count"))(b"1")
        assert call.initial_metadata() is not None
        assert next(call) == b"0"
        with pytest.raises(StopIteration):
            next(call)
        assert call.details() == ""

    with serving(**ALL) as (_, channel):
        if where == "main":
            calls()
        elif where == "goroutine":
            go(calls).result()
        else:
            failed = []
            thread = threading.Thread(target=lambda: failed.append(go(calls).result()))
            thread.start()
            thread.join()
            assert failed == [None]


def test_errors_are_grpcios_own():
    from grpc import _channel

    with serving(**ALL) as (_, channel):
        for call in (channel.unary_unary(path("Fail")), channel.unary_unary(path("Fail")).with_call):
            with pytest.raises(_channel._InactiveRpcError) as e:
                call(b"")
            assert (e.value.code(), e.value.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing")
        future = channel.unary_unary(path("Fail")).future(b"")
        assert future.exception().code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError):
            future.result()
        with pytest.raises(grpc.RpcError) as e:
            channel.stream_unary(path("None"))(iter([b"1"]))
        assert e.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.RpcError) as e:
            list(channel.unary_stream(path("None"))(b"1"))
        assert e.value.code() is grpc.StatusCode.UNIMPLEMENTED

        def bad(request):
            raise ValueError(request)

        with pytest.raises(grpc.RpcError) as e:
            channel.unary_unary(path("Echo"), request_serializer=bad)(1)
        assert e.value.code() is grpc.StatusCode.INTERNAL


def test_timeouts_and_cancellation():
    started, seen = queue.Queue(), queue.Queue()
    release = gmp.Chan()

    def park(request, context):
        context.add_callback(lambda: seen.put(context.code() or "ended"))
        started.put(request)
        release.recv_ok(timeout=LONG)
        return request

    with serving(Park=uu(park)) as (_, channel):
        call = channel.unary_unary(path("Park"))
        with pytest.raises(grpc.RpcError) as e:
            call(b"", timeout=0.05)
        assert e.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with pytest.raises(grpc.FutureTimeoutError):
            call.future(b"").result(timeout=0.05)
        future = call.future(b"")
        waiter = go(future.result)
        until(lambda: started.qsize() >= 2)
        assert not waiter.done
        assert future.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            waiter.result()
        release.close()


def test_waiting_calls_hold_no_threads():
    """5,000 goroutines wait for responses, 200 for messages of streams, and 100 iterate over requests of theirs."""
    release, more = gmp.Chan(), gmp.Chan()
    running = []

    def park(request, context):
        running.append(1)
        release.recv_ok()
        return request

    def stream(request, context):
        running.append(1)
        yield request
        release.recv_ok()
        yield request

    def requests():
        yield b"1"
        more.recv_ok()
        yield b"2"

    with serving(Park=uu(park), Stream=us(stream), Total=su(total)) as (_, channel):
        call, read, send = (
            channel.unary_unary(path("Park")),
            channel.unary_stream(path("Stream")),
            channel.stream_unary(path("Total")),
        )
        calls = [go(call, b"%d" % i) for i in range(5_000)]
        readers = [go(lambda i=i: list(read(b"%d" % i))) for i in range(200)]
        senders = [go(lambda: send(requests())) for _ in range(100)]
        until(lambda: len(running) == 5_200)
        # grpcio starts a call in C, without the GIL: a goroutine keeps its thread for that moment.  Not for the wait.
        until(lambda: gmp.runtime.stats()["threads"] - gmp.runtime.stats()["idle_threads"] < 20)
        assert threading.active_count() < 20
        for _ in range(10):
            gmp.sleep(0.001)
        release.close()
        more.close()
        assert [c.result() for c in calls] == [b"%d" % i for i in range(5_000)]
        assert [r.result() for r in readers] == [[b"%d" % i] * 2 for i in range(200)]
        assert [s.result() for s in senders] == [b"3"] * 100


def test_a_stream_of_requests_may_park():
    jobs = gmp.Chan()
    with serving(**ALL) as (_, channel):
        responses = channel.stream_stream(path("Double"))(iter(jobs))
        for i in range(100):
            jobs.send(b"%d" % i)
            assert next(responses) == b"%d" % i * 2
        jobs.close()
        assert list(responses) == []


def test_a_streamed_request_that_is_not_bytes_fails_the_call():
    with serving(**ALL) as (_, channel):
        for call in (channel.stream_unary(path("Total")), lambda it: list(channel.stream_stream(path("Double"))(it))):
            with pytest.raises(grpc.RpcError) as caught:
                go(call, iter([b"1", "two"])).result(LONG)
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert "serializing" in caught.value.details()
        assert channel.stream_unary(path("Total"))(iter([b"1", b"2"])) == b"3"


def test_interceptors_and_callbacks():
    log = []

    class Log(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
        def intercept_unary_unary(self, continuation, details, request):
            response = continuation(details, request)
            log.append((details.method, response.result()))
            return response

        def intercept_unary_stream(self, continuation, details, request):
            log.append(details.method)
            return continuation(details, request)

    with serving(**ALL) as (_, channel):
        intercepted = grpc.intercept_channel(channel, Log())
        assert intercepted.unary_unary(path("Echo"))(b"x") == b"x"
        assert list(intercepted.unary_stream(path("Count"))(b"2")) == [b"0", b"1"]
        assert log == [(path("Echo"), b"x"), path("Count")]
        called = gmp.Chan(1)
        channel.unary_unary(path("Echo")).future(b"y").add_done_callback(lambda f: called.send(f.result()))
        assert called.recv(timeout=LONG) == b"y"


def test_it_waits_for_a_server_that_is_not_there_yet():
    server = gmp.grpc.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, ALL),))
    port = server.add_insecure_port("127.0.0.1:0")
    with gmp.grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = go(lambda: channel.unary_unary(path("Echo"))(b"x", wait_for_ready=True, timeout=LONG))
        gmp.sleep(0.05)
        assert not call.done
        server.start()
        assert call.result() == b"x"
    server.stop(None)


def test_closing_the_channel_ends_its_calls():
    started = gmp.Chan(1)
    release = gmp.Chan()

    def park(request, context):
        started.send(None)
        release.recv_ok()
        return request

    with serving(Park=uu(park)) as (_, channel):
        call = go(lambda: channel.unary_unary(path("Park"))(b""))
        started.recv(timeout=LONG)
        channel.close()
        with pytest.raises(grpc.RpcError) as e:
            call.result()
        assert e.value.code() is grpc.StatusCode.CANCELLED
        with pytest.raises(ValueError, match=r"[Cc]hannel closed|closed channel"):
            channel.unary_unary(path("Park"))(b"")
        release.close()


def test_a_signal_handler_that_raises_cancels_the_call():
    started, ended = gmp.Chan(1), gmp.Chan(1)

    def park(request, context):
        assert context.add_callback(lambda: ended.send(None))
        started.send(None)
        with contextlib.suppress(TimeoutError):
            gmp.context.current().done().recv_ok(timeout=LONG)
        return request

    def handler(*_):
        raise InterruptedError

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with serving(Park=uu(park)) as (_, channel):
            go(lambda: (started.recv(), os.kill(os.getpid(), signal.SIGUSR1)))
            with pytest.raises(InterruptedError):
                channel.unary_unary(path("Park"))(b"", timeout=LONG)
            ended.recv(timeout=LONG)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"secure_channel\(\) argument 2 must be from grpc.ssl_channel_credentials"):
        gmp.grpc.secure_channel("127.0.0.1:1", None)
    with pytest.raises(TypeError, match="must be a str such as"):
        gmp.grpc.insecure_channel(None)


def test_a_grpcio_of_another_shape_is_refused(monkeypatch):
    from gmp.grpc import _compat

    monkeypatch.setattr(_compat, "_copies", {})
    monkeypatch.setitem(_compat._CLIENT, "_event_handler", "other arguments")
    with pytest.raises(RuntimeError, match=r"grpc._channel._event_handler is not what it was; install grpcio"):
        gmp.grpc.insecure_channel("127.0.0.1:1")
