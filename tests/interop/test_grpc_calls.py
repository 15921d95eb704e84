"""gmp.grpc: what a client and a handler see of each other.  Servers and clients share this process; all is on the loopback.

Each test runs on both servers, server() and compat_server(), but for those that concern one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import os
import queue
import random
import subprocess
import sys
import textwrap
import threading
import time
from concurrent import futures

import pytest

import gmp

grpc = pytest.importorskip("grpc")

import gmp.grpc  # noqa: E402
from gmp.protos import helloworld_pb2, helloworld_pb2_grpc  # noqa: E402

MAKERS = {"native": gmp.grpc.server, "compat": gmp.grpc.compat_server}
SERVICE = "test.Calls"
LONG = 40.0  # seconds: more than anything here takes


@pytest.fixture(autouse=True, params=MAKERS)
def kind_of_server(request, monkeypatch):
    """What gmp.grpc.server is in the test."""
    only = request.node.get_closest_marker("server")
    if only and request.param not in only.args:
        pytest.skip("concerns the other server")
    if request.param == "native" and not gmp.grpc.is_native:
        pytest.skip("built without libnghttp2")
    monkeypatch.setattr(gmp.grpc, "server", MAKERS[request.param])
    monkeypatch.setenv("GMP_TEST_SERVER", "server" if request.param == "native" else "compat_server")
    return request.param


@contextlib.contextmanager
def serving(*, registered=False, make=None, **handlers_and_options):
    """Start a server with the given method handlers, yield it and a channel to it, stop it."""
    make = make or gmp.grpc.server
    handlers = {k: v for k, v in handlers_and_options.items() if isinstance(v, grpc.RpcMethodHandler)}
    server = make(**{k: v for k, v in handlers_and_options.items() if k not in handlers})
    if registered:
        server.add_registered_method_handlers(SERVICE, handlers)
    else:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield server, channel
    finally:
        assert server.stop(None).wait(LONG)


def path(method):
    return f"/{SERVICE}/{method}"


def unary(channel, method="Call"):
    return channel.unary_unary(path(method))


uu, us = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
su, ss = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler


def run(code):
    code = code.replace("gmp.grpc.server(", f"gmp.grpc.{os.environ['GMP_TEST_SERVER']}(")
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=50)


def run_aio(main):
    """asyncio.run, then drop what is left: grpc.aio's poller serves one loop after the other, but not two at once."""
    try:
        asyncio.run(main)
    finally:
        gc.collect()


def until(condition, timeout=LONG):
    """Wait until condition() is true."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


class Greeter(helloworld_pb2_grpc.GreeterServicer):
    def SayHello(self, request, context):
        return helloworld_pb2.HelloReply(message=f"Hello, {request.name}!")


# -- the kinds of calls ------------------------------------------------------------------------------------------------


def test_greeter_of_the_talk():
    server = gmp.grpc.server()
    helloworld_pb2_grpc.add_GreeterServicer_to_server(Greeter(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = helloworld_pb2_grpc.GreeterStub(channel)
        assert stub.SayHello(helloworld_pb2.HelloRequest(name="gmp"), timeout=LONG).message == "Hello, gmp!"
    assert server.stop(None).wait(LONG)


def every_kind():
    def stream_out(request, context):
        for i in range(request[0]):
            gmp.sleep(0.001 if i % 3 == 0 else 0)
            yield bytes([i])

    def both(requests, context):
        for request in requests:
            gmp.gosched()
            yield request + b"!"

    return {
        "UU": uu(lambda request, context: request[::-1]),
        "US": us(stream_out),
        "SU": su(lambda requests, context: b"".join(requests)),
        "SS": ss(both),
    }


@pytest.mark.parametrize("registered", [False, True], ids=["generic", "registered"])
def test_every_kind_of_call(registered):
    with serving(registered=registered, **every_kind()) as (_, channel):
        assert channel.unary_unary(path("UU"))(b"abc", timeout=LONG) == b"cba"
        assert list(channel.unary_stream(path("US"))(b"\x09", timeout=LONG)) == [bytes([i]) for i in range(9)]
        parts = [b"%d," % i for i in range(50)]
        assert channel.stream_unary(path("SU"))(iter(parts), timeout=LONG) == b"".join(parts)
        assert list(channel.stream_stream(path("SS"))(iter(parts), timeout=LONG)) == [p + b"!" for p in parts]
        assert channel.stream_unary(path("SU"))(iter(()), timeout=LONG) == b""
        assert list(channel.unary_stream(path("US"))(b"\x00", timeout=LONG)) == []


def test_ping_pong_on_one_stream():
    with serving(**every_kind()) as (_, channel):
        requests = queue.SimpleQueue()
        replies = channel.stream_stream(path("SS"))(iter(requests.get, None), timeout=LONG)
        for i in range(200):
            requests.put(b"%d" % i)
            assert next(replies) == b"%d!" % i
        requests.put(None)
        assert list(replies) == []
        assert replies.code() is grpc.StatusCode.OK


def test_aio_client_every_kind():
    async def main(target):
        async with grpc.aio.insecure_channel(target) as channel:
            assert await channel.unary_unary(path("UU"))(b"abc", timeout=LONG) == b"cba"
            replies = [r async for r in channel.unary_stream(path("US"))(b"\x05", timeout=LONG)]
            assert replies == [bytes([i]) for i in range(5)]

            async def parts():
                for i in range(20):
                    await asyncio.sleep(0)
                    yield b"%d," % i

            joined = b"".join(b"%d," % i for i in range(20))
            assert await channel.stream_unary(path("SU"))(parts(), timeout=LONG) == joined
            replies = [r async for r in channel.stream_stream(path("SS"))(parts(), timeout=LONG)]
            assert b"".join(replies) == joined.replace(b",", b",!")
            # many at once
            calls = [channel.unary_unary(path("UU"))(b"%d" % i, timeout=LONG) for i in range(200)]
            assert [await call for call in calls] == [(b"%d" % i)[::-1] for i in range(200)]

    server = gmp.grpc.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, every_kind()),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    run_aio(main(f"127.0.0.1:{port}"))
    assert server.stop(None).wait(LONG)


def test_large_messages_and_flow_control():
    big = os.urandom(1 << 20)

    def copies(request, context):
        for _ in range(8):
            yield request

    with serving(Call=us(copies)) as (_, channel):
        replies = channel.unary_stream(path("Call"))(big, timeout=LONG)
        for reply in replies:
            time.sleep(0.01)  # the sender waits for us
            assert reply == big


def test_serializers_run_and_their_failures_are_statuses():
    def broken(_):
        raise ValueError("cannot")

    good = uu(lambda request, context: request + 1, request_deserializer=int, response_serializer=lambda n: b"%d" % n)
    with serving(
        Good=good,
        BadIn=uu(lambda request, context: b"", request_deserializer=broken),
        BadOut=uu(lambda request, context: b"", response_serializer=broken),
    ) as (_, channel):
        assert unary(channel, "Good")(b"41", timeout=LONG) == b"42"
        for method in ("BadIn", "BadOut"):
            with pytest.raises(grpc.RpcError) as caught:
                unary(channel, method)(b"x", timeout=LONG)
            assert caught.value.code() is grpc.StatusCode.INTERNAL


# -- metadata ----------------------------------------------------------------------------------------------------------


def test_metadata_both_ways():
    seen = {}

    def handler(request, context):
        seen.update({m.key: m.value for m in context.invocation_metadata()})
        seen["peer"] = context.peer()
        context.send_initial_metadata((("first", "1"), ("first-bin", b"\x00\xff")))
        context.set_trailing_metadata((("last", "2"), ("last-bin", b"\x01\xfe")))
        return b""

    with serving(Call=uu(handler)) as (_, channel):
        metadata = (("key", "value"), ("blob-bin", bytes(range(256))))
        _, call = unary(channel).with_call(b"", metadata=metadata, timeout=LONG)
        assert dict(call.initial_metadata()) == {"first": "1", "first-bin": b"\x00\xff"}
        assert dict(call.trailing_metadata()) == {"last": "2", "last-bin": b"\x01\xfe"}
    assert seen["key"] == "value"
    assert seen["blob-bin"] == bytes(range(256))
    assert seen["peer"].startswith("ipv4:127.0.0.1:")


def test_initial_metadata_comes_before_the_first_response():
    go_on = gmp.Chan()

    def handler(request, context):
        context.send_initial_metadata((("early", "yes"),))
        go_on.recv(timeout=LONG)
        yield b"x"

    with serving(Call=us(handler)) as (_, channel):
        replies = channel.unary_stream(path("Call"))(b"", timeout=LONG)
        assert dict(replies.initial_metadata()) == {"early": "yes"}
        go_on.send(None)
        assert list(replies) == [b"x"]


def test_code_details_and_compression():
    def handler(request, context):
        context.set_compression(grpc.Compression.Gzip)
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("no such thing: ä")
        return b""

    with serving(Call=uu(handler), compression=grpc.Compression.Deflate) as (_, channel):
        with pytest.raises(grpc.RpcError) as caught:
            unary(channel)(b"", timeout=LONG)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "no such thing: ä"


# -- deadlines and cancellation ----------------------------------------------------------------------------------------


def test_deadline_ends_the_call_and_the_handler_sees_it():
    inactive = threading.Event()
    remaining = []

    def handler(request, context):
        remaining.append(context.time_remaining())
        while context.is_active():
            gmp.sleep(0.005)
        inactive.set()
        return b""

    with serving(Call=uu(handler)) as (_, channel):
        while not remaining:  # a machine that is busy with others may take longer to connect
            with pytest.raises(grpc.RpcError) as caught:
                unary(channel)(b"", timeout=0.5)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert inactive.wait(LONG)
    assert 0 <= remaining[0] < 1


@pytest.mark.parametrize("kind", ["UU", "US", "SU", "SS"])
def test_cancellation_is_noticed(kind):
    started, called, ended = threading.Event(), threading.Event(), threading.Event()

    def handler(request, context):
        assert context.add_callback(called.set)
        started.set()
        try:
            if kind[0] == "S":
                for _ in request:  # parks, and raises when the client goes
                    pass
            while context.is_active():
                gmp.sleep(0.005)
        finally:
            ended.set()
        return b""

    def generator(request, context):
        yield b"hello"
        handler(request, context)

    make = {"UU": uu, "US": us, "SU": su, "SS": ss}[kind]
    with serving(Call=make(generator if kind[1] == "S" else handler)) as (_, channel):
        if kind == "UU":
            call = unary(channel).future(b"")
        elif kind == "US":
            call = channel.unary_stream(path("Call"))(b"")
        else:
            hold = threading.Event()

            def requests():
                yield b"1"
                hold.wait(LONG)

            method = channel.stream_unary(path("Call")).future if kind == "SU" else channel.stream_stream(path("Call"))
            call = method(requests())
        if kind[1] == "S":
            assert next(call) == b"hello"
        assert started.wait(LONG)
        call.cancel()
        assert called.wait(LONG), "add_callback's function was not called"
        assert ended.wait(LONG)
        if kind[0] == "S":
            hold.set()


def test_current_context_is_the_calls():
    """It ends with the call: by its deadline, by the client's cancellation, and when the handler has returned."""
    contexts, errors = {}, {}  # by request

    def handler(request, servicer_context):
        contexts[request] = ctx = gmp.context.current()
        assert gmp.context.current() is ctx
        assert gmp.go(gmp.context.current).result() is ctx
        if request == b"quick":
            return request
        ctx.done().recv_ok(timeout=LONG)
        errors[request] = ctx.err()
        servicer_context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "")  # the client may not have noticed yet

    with serving(Call=uu(handler)) as (_, channel):
        assert unary(channel)(b"quick") == b"quick"
        ctx = contexts[b"quick"]
        assert ctx.deadline() is None
        until(lambda: ctx.err() is not None)
        assert isinstance(ctx.err(), gmp.context.Canceled)

        while b"late" not in contexts:  # a machine that is busy with others may not get to the handler in time
            with pytest.raises(grpc.RpcError, match="DEADLINE"):
                unary(channel)(b"late", timeout=0.5)
        assert contexts[b"late"].remaining() < 0.6  # grpcio rounds it up
        until(lambda: b"late" in errors)
        assert isinstance(errors[b"late"], gmp.context.DeadlineExceeded)

        call = unary(channel).future(b"cancelled", timeout=LONG)
        until(lambda: b"cancelled" in contexts)
        assert 0 < contexts[b"cancelled"].remaining() < 1.1 * LONG
        call.cancel()
        until(lambda: b"cancelled" in errors)
        assert isinstance(errors[b"cancelled"], gmp.context.Canceled)
    assert gmp.context.current() is gmp.context.background()


def test_current_context_of_streams():
    seen = queue.Queue()

    def handler(requests, servicer_context):
        ctx = gmp.context.current()
        for request in requests:
            assert gmp.context.current() is ctx
            yield request
        seen.put(ctx)

    with serving(Call=ss(handler)) as (_, channel):
        assert list(channel.stream_stream(path("Call"))(iter([b"1", b"2"]))) == [b"1", b"2"]
        ctx = seen.get(timeout=LONG)
        until(lambda: ctx.err() is not None)


def test_handler_may_cancel_and_callbacks_end():
    contexts = []

    def handler(request, context):
        contexts.append(context)
        if request == b"cancel":
            context.cancel()
        return b""

    with serving(Call=uu(handler)) as (_, channel):
        assert unary(channel)(b"", timeout=LONG) == b""
        until(lambda: not contexts[0].add_callback(lambda: None))
        with pytest.raises(grpc.RpcError) as caught:
            unary(channel)(b"cancel", timeout=LONG)
        assert caught.value.code() is grpc.StatusCode.CANCELLED


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unary", "stream"])
def test_abort(kind):
    def handler(request, context):
        context.set_trailing_metadata((("why", "because"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")
        raise AssertionError("abort returned")

    def generator(request, context):
        yield b"one"
        handler(request, context)

    with serving(Call=uu(handler), Stream=us(generator)) as (_, channel):
        with pytest.raises(grpc.RpcError) as caught:
            if kind == "unary":
                unary(channel)(b"", timeout=LONG)
            else:
                list(channel.unary_stream(path("Stream"))(b"", timeout=LONG))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.details() == "not today"
        assert ("why", "because") in [tuple(m) for m in caught.value.trailing_metadata()]


@pytest.mark.parametrize("kind", ["unary", "stream"])
def test_exception_becomes_unknown(kind, caplog):
    def handler(request, context):
        raise ValueError("broken on purpose")

    def generator(request, context):
        yield b"one"
        raise ValueError("broken on purpose")

    with serving(Call=uu(handler), Stream=us(generator)) as (_, channel), caplog.at_level(logging.CRITICAL):
        with pytest.raises(grpc.RpcError) as caught:
            if kind == "unary":
                unary(channel)(b"", timeout=LONG)
            else:
                list(channel.unary_stream(path("Stream"))(b"", timeout=LONG))
        assert caught.value.code() is grpc.StatusCode.UNKNOWN
        assert "broken on purpose" in caught.value.details()


def test_system_exit_in_a_handler_becomes_unknown_and_the_server_lives():
    """With grpcio's thread pool the client of such a call waits for ever."""
    code = """
        import sys, grpc, gmp.grpc

        def handler(request, context):
            if request == b"exit":
                sys.exit("leaving")
            return b"fine"

        server = gmp.grpc.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("S", {"M": grpc.unary_unary_rpc_method_handler(handler)}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/S/M")
            try:
                call(b"exit", timeout=20)
            except grpc.RpcError as error:
                print(error.code().name, error.details())
            print(call(b"", timeout=20))
        server.stop(None).wait(20)
    """
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0].startswith("UNKNOWN Exception calling application: SystemExit"), done.stdout
    assert "b'fine'" in done.stdout


def test_unknown_method():
    with serving(Call=uu(lambda request, context: b"")) as (_, channel):
        with pytest.raises(grpc.RpcError) as caught:
            unary(channel, "Other")(b"", timeout=LONG)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_maximum_concurrent_rpcs():
    go_on = gmp.Chan()

    def handler(request, context):
        go_on.recv(timeout=LONG)
        return b"done"

    def code(call):
        """Let one handler go on, then tell how the call ended."""
        while not call.done():
            with contextlib.suppress(TimeoutError):
                go_on.send(None, timeout=0.01)
        return call.code()

    ok, refused = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED
    with serving(Call=uu(handler), maximum_concurrent_rpcs=3) as (_, channel):
        for _ in range(5):
            calls = [unary(channel).future(b"", timeout=LONG) for _ in range(3)]
            until(lambda: unary(channel).future(b"", timeout=0.05).code() is refused)  # all three have arrived
            codes = [code(call) for call in calls]
            assert set(codes) <= {ok, refused}  # those of the last turn may have counted for another moment
            assert ok in codes
        until(lambda: code(unary(channel).future(b"", timeout=LONG)) is ok)


# -- interceptors, contexts --------------------------------------------------------------------------------------------

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


class Interceptor(grpc.ServerInterceptor):
    def __init__(self, name, log):
        self.name, self.log = name, log

    def intercept_service(self, continuation, details):
        self.log.append(f"{self.name} {details.method}")
        metadata = dict(details.invocation_metadata)
        if "id" in metadata:
            request_id.set(metadata["id"])
        if metadata.get("deny") == self.name:

            def denied(request, context):
                context.abort(grpc.StatusCode.PERMISSION_DENIED, f"denied by {self.name}")

            return uu(denied)
        return continuation(details)


def test_interceptors_and_one_context_per_rpc():
    log = []

    def handler(request, context):
        mine = request_id.get()
        gmp.sleep(random.random() / 100)
        assert request_id.get() == mine
        request_id.set("changed by " + mine)
        return mine.encode()

    interceptors = (Interceptor("outer", log), Interceptor("inner", log))
    with serving(Call=uu(handler), interceptors=interceptors) as (_, channel):
        assert unary(channel)(b"", timeout=LONG) == b"none"
        assert log == [f"outer {path('Call')}", f"inner {path('Call')}"]
        calls = {str(i): unary(channel).future(b"", metadata=(("id", str(i)),), timeout=LONG) for i in range(100)}
        assert all(call.result() == i.encode() for i, call in calls.items())
        with pytest.raises(grpc.RpcError) as caught:
            unary(channel)(b"", metadata=(("deny", "inner"),), timeout=LONG)
        assert caught.value.details() == "denied by inner"
        assert unary(channel)(b"", timeout=LONG) == b"none"


def test_interceptor_that_raises_and_one_that_parks():
    class Odd(grpc.ServerInterceptor):
        def intercept_service(self, continuation, details):
            metadata = dict(details.invocation_metadata)
            if "raise" in metadata:
                raise ValueError("interceptor")
            gmp.sleep(0.01)  # holds the server's lock
            return continuation(details)

    echo = uu(lambda request, context: request)
    with serving(Call=echo, interceptors=(Odd(),), maximum_concurrent_rpcs=100) as (_, channel):
        with pytest.raises(grpc.RpcError) as caught:
            unary(channel)(b"", metadata=(("raise", "1"),), timeout=LONG)
        assert caught.value.code() is grpc.StatusCode.UNKNOWN
        calls = [unary(channel).future(b"%d" % i, timeout=LONG) for i in range(20)]
        assert [call.result() for call in calls] == [b"%d" % i for i in range(20)]


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_stop_with_grace_lets_calls_finish():
    started, go_on = threading.Event(), gmp.Chan()

    def handler(request, context):
        started.set()
        go_on.recv(timeout=LONG)
        return b"finished"

    with serving(Call=uu(handler)) as (server, channel):
        call = unary(channel).future(b"", timeout=LONG)
        assert started.wait(LONG)
        begin = time.monotonic()
        stopped = server.stop(LONG)
        assert not stopped.is_set()
        go_on.send(None)
        assert call.result() == b"finished"
        assert stopped.wait(LONG)
        assert time.monotonic() - begin < LONG / 2
        with pytest.raises(grpc.RpcError):
            unary(channel)(b"", timeout=0.5)


def test_stop_cancels_when_the_grace_is_over():
    started, cancelled = threading.Event(), threading.Event()

    def handler(request, context):
        context.add_callback(cancelled.set)
        started.set()
        while context.is_active():
            gmp.sleep(0.01)
        return b""

    with serving(Call=uu(handler)) as (server, channel):
        call = unary(channel).future(b"", timeout=LONG)
        assert started.wait(LONG)
        stopped = server.stop(0.2)
        assert stopped.wait(LONG)
        assert cancelled.wait(LONG)
        assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


def test_wait_for_termination_and_stop_from_a_handler():
    servers = []

    def handler(request, context):
        servers[0].stop(1)
        return b"stopping"

    with serving(Call=uu(handler)) as (server, channel):
        servers.append(server)
        assert server.wait_for_termination(timeout=0.05)  # True: the timeout came first
        assert unary(channel)(b"", timeout=LONG) == b"stopping"
        assert not server.wait_for_termination(timeout=LONG)


def test_forgotten_server_stops():
    handler = grpc.method_handlers_generic_handler(SERVICE, {"Call": uu(lambda request, context: b"x")})
    server = gmp.grpc.server((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert unary(channel)(b"", timeout=LONG) == b"x"
        del server

        def gone():
            try:
                unary(channel)(b"", timeout=1)
            except grpc.RpcError:
                return True
            return False

        until(gone)


# -- health and reflection ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_pool", [False, True], ids=["goroutines", "pool"])
def test_health_check_and_watch(own_pool):
    health = pytest.importorskip("grpc_health.v1.health")
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    pool = futures.ThreadPoolExecutor(4) if own_pool else None
    servicer = health.HealthServicer(experimental_thread_pool=pool)
    server = gmp.grpc.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    status = health_pb2.HealthCheckResponse
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=LONG).status == status.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="x"), timeout=LONG)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND

        watches = [stub.Watch(health_pb2.HealthCheckRequest(service="x"), timeout=LONG) for _ in range(20)]
        assert [next(w).status for w in watches] == [status.SERVICE_UNKNOWN] * 20
        # changes from the main thread, another thread and a goroutine, while checks run
        checks = [stub.Check.future(health_pb2.HealthCheckRequest(), timeout=LONG) for _ in range(50)]
        servicer.set("x", status.SERVING)
        assert [next(w).status for w in watches] == [status.SERVING] * 20
        thread = threading.Thread(target=servicer.set, args=("x", status.NOT_SERVING))
        thread.start()
        thread.join(LONG)
        assert [next(w).status for w in watches] == [status.NOT_SERVING] * 20
        gmp.go(servicer.set, "x", status.SERVING)
        assert [next(w).status for w in watches] == [status.SERVING] * 20
        for call in checks:
            assert call.result().status == status.SERVING
        for watch in watches[1:]:
            watch.cancel()
        servicer.enter_graceful_shutdown()
        assert next(watches[0]).status == status.NOT_SERVING
        assert stub.Check(health_pb2.HealthCheckRequest(service="x"), timeout=LONG).status == status.NOT_SERVING
    assert server.stop(None).wait(LONG)
    if pool:
        pool.shutdown()


def test_reflection_lists_services():
    reflection = pytest.importorskip("grpc_reflection.v1alpha.reflection")
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    server = gmp.grpc.server()
    helloworld_pb2_grpc.add_GreeterServicer_to_server(Greeter(), server)
    reflection.enable_server_reflection(["helloworld.Greeter", reflection.SERVICE_NAME], server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="helloworld.Greeter"),
        ]
        listed, described = stub.ServerReflectionInfo(iter(requests), timeout=LONG)
        names = {s.name for s in listed.list_services_response.service}
        assert names == {"helloworld.Greeter", reflection.SERVICE_NAME}
        assert b"SayHello" in described.file_descriptor_response.file_descriptor_proto[0]
    assert server.stop(None).wait(LONG)


# -- beside other servers ----------------------------------------------------------------------------------------------


@pytest.mark.server("compat")
def test_ordinary_servers_stay_ordinary():
    import grpc._server

    def where(request, context):
        return type(context._state.condition).__module__.encode() + b" " + threading.current_thread().name.encode()

    pool = futures.ThreadPoolExecutor(2, thread_name_prefix="pool")
    handlers = {"Call": uu(where)}
    with serving(**handlers) as (_, ours), serving(make=lambda: grpc.server(pool), **handlers) as (_, ordinary):
        for _ in range(3):
            assert unary(ours)(b"", timeout=LONG).startswith(b"gmp.grpc._sync ")
            assert unary(ordinary)(b"", timeout=LONG).startswith(b"threading pool")
    assert grpc._server.threading is threading
    pool.shutdown()


def test_handlers_with_a_thread_pool_of_their_own():
    def where(request, context):
        yield threading.current_thread().name.encode()
        gmp.sleep(0.001)
        yield b"end"

    pool = futures.ThreadPoolExecutor(2, thread_name_prefix="own")
    where.experimental_thread_pool = pool
    with serving(Call=us(where)) as (_, channel):
        first, last = channel.unary_stream(path("Call"))(b"", timeout=LONG)
        assert first.startswith(b"own")
        assert last == b"end"
    pool.shutdown()


def test_blocking_calls_in_handlers_do_not_stop_others():
    """A lock blocks the OS thread; the scheduler serves on with another."""
    inside, release = [], threading.Event()

    def handler(request, context):
        if request == b"block":
            inside.append(1)
            release.wait(LONG)
        return request

    with serving(Call=uu(handler)) as (_, channel):
        blocked = [unary(channel).future(b"block", timeout=LONG) for _ in range(4)]
        until(lambda: len(inside) == 4)
        for _ in range(20):
            assert unary(channel)(b"quick", timeout=LONG) == b"quick"
        assert not any(call.done() for call in blocked)
        release.set()
        assert [call.result() for call in blocked] == [b"block"] * 4


def test_threads_that_wait_in_gmp_are_not_kept_by_the_server():
    """A thread that waits in gmp lends itself to goroutines; the serving one, idle as it is, must not block it."""
    with serving(Call=uu(lambda request, context: request)) as (_, channel):
        late = []

        def wait(ch):
            for begin in ch:
                late.append(time.monotonic() - begin)

        channels = [gmp.Chan() for _ in range(4)]
        threads = [threading.Thread(target=wait, args=(ch,)) for ch in channels]
        for thread in threads:
            thread.start()

        def in_time():
            late.clear()
            for i in range(40):
                assert unary(channel)(b"x", timeout=LONG) == b"x"
                time.sleep(0.005)
                channels[i % 4].send(time.monotonic())
            until(lambda: len(late) == 40)
            return sorted(late)[20] < 0.1 and max(late) < 0.5

        until(in_time)  # a machine that is busy with others may be late now and then, but not always
        for ch in channels:
            ch.close()
        for thread in threads:
            thread.join(LONG)


# -- stress ------------------------------------------------------------------------------------------------------------


def test_many_kinds_at_once():
    seed = int(os.environ.get("GMP_SEED") or random.randrange(1 << 32))
    print(f"GMP_SEED={seed}")
    rng = random.Random(seed)
    options = {"interceptors": (Interceptor("one", []),), "maximum_concurrent_rpcs": 10_000}
    with serving(**every_kind(), **options) as (_, channel):
        calls = []
        for i in range(400):
            data = b"%d" % i
            timeout = LONG if rng.random() < 0.8 else rng.random() / 50
            kind = rng.choice(("UU", "US", "SU", "SS"))
            if kind == "UU":
                call = channel.unary_unary(path("UU")).future(data, timeout=timeout)
                expected = data[::-1]
            elif kind == "SU":
                call = channel.stream_unary(path("SU")).future(iter([data] * 5), timeout=timeout)
                expected = data * 5
            elif kind == "US":
                call = channel.unary_stream(path("US"))(b"\x07", timeout=timeout)
                expected = [bytes([n]) for n in range(7)]
            else:
                call = channel.stream_stream(path("SS"))(iter([data] * 5), timeout=timeout)
                expected = [data + b"!"] * 5
            if rng.random() < 0.1:
                call.cancel()
            calls.append((kind, call, expected))
        finished = 0
        for kind, call, expected in calls:
            try:
                assert (list(call) if kind[1] == "S" else call.result()) == expected
                finished += 1
            except (grpc.RpcError, grpc.FutureCancelledError):
                assert call.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED), call.code()
        assert finished > 200


def test_goroutines_end_with_their_calls():
    with serving(**every_kind()) as (_, channel):
        assert unary(channel, "UU")(b"x", timeout=LONG) == b"x"
        until(lambda: gmp.runtime.num_goroutine() <= 3)
        before = gmp.runtime.num_goroutine()
        for _ in range(20):
            calls = [unary(channel, "UU").future(b"x", timeout=LONG) for _ in range(20)]
            streams = [channel.unary_stream(path("US"))(b"\x03", timeout=LONG) for _ in range(5)]
            assert all(call.result() == b"x" for call in calls)
            assert all(len(list(stream)) == 3 for stream in streams)
        until(lambda: gmp.runtime.num_goroutine() <= before)


# -- the end of the process ---------------------------------------------------------------------------------------------

ENDING = """
    import os, signal, sys, grpc, gmp, gmp.grpc

    def handler(request, context):
        if request == b"park":
            gmp.sleep(1000)
        return request

    handlers = {"M": grpc.unary_unary_rpc_method_handler(handler)}
    server = gmp.grpc.server((grpc.method_handlers_generic_handler("S", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    call = channel.unary_unary("/S/M")
    parked = call.future(b"park")
    call(b"", timeout=20)
"""
ENDINGS = {
    "exit": "sys.exit(7)",
    "ctrl-c": "signal.raise_signal(signal.SIGINT); server.wait_for_termination()",
    "ctrl-c, parked": "gmp.go(os.kill, os.getpid(), signal.SIGINT); gmp.Chan().recv()",
    "sigterm": """signal.signal(signal.SIGTERM, lambda *_: server.stop(0.1).wait())
    gmp.go(os.kill, os.getpid(), signal.SIGTERM)
    server.wait_for_termination()
    sys.exit(7)""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_process_ends_with_a_call_parked(ending):
    """A handler that parks for ever does not keep the process, as in Go."""
    begin = time.monotonic()
    done = run(ENDING + "\n    " + ENDINGS[ending])
    assert time.monotonic() - begin < LONG
    if ending.startswith("ctrl-c"):
        assert done.stderr.endswith("KeyboardInterrupt\n")
    else:
        assert (done.returncode, done.stderr) == (7, "")


# -- without grpcio, with a strange grpcio -----------------------------------------------------------------------------


@pytest.mark.server("native")
def test_import_gmp_does_not_import_grpc():
    done = run("import gmp, sys; print('grpc' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


@pytest.mark.server("native")
def test_without_grpcio():
    done = run(
        """
        import sys
        sys.modules["grpc"] = None
        import gmp
        try:
            import gmp.grpc
        except ImportError as error:
            print(error)
        """
    )
    assert done.stdout.strip().endswith("pip install gmp-runtime[grpc]"), done.stdout + done.stderr
    assert done.stdout.count("\n") == 1


@pytest.mark.server("compat")
@pytest.mark.parametrize(
    "change",
    [
        "del source._abort",
        "source._serve = lambda state, more: None",
        "source._RPCState = type('State', (), {'statused': False, 'condition': 1})",
        "source.cygrpc = None",
    ],
)
def test_grpcio_of_unknown_shape(change):
    done = run(
        f"""
        import importlib.util, grpc, grpc._server, gmp.grpc
        spec = importlib.util.find_spec("grpc._server")

        class Loader:
            def create_module(self, spec):
                return None
            def exec_module(self, source):
                spec.loader.exec_module(source)
                {change}

        grpc._server.__spec__ = importlib.util.spec_from_loader("grpc._server", Loader())
        try:
            gmp.grpc.server()
        except RuntimeError as error:
            print(error)
        """
    )
    sentence = f"gmp.grpc cannot work with the installed grpcio {grpc.__version__}: "
    assert done.stdout.startswith(sentence), done.stdout + done.stderr
    assert done.stdout.count("\n") == 1
