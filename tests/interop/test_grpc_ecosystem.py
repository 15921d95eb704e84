"""What people put on a gRPC server, unchanged: OpenTelemetry, grpc-interceptor, metrics, health, reflection, rich errors; and
what others' clients make of it.  Each on gmp.grpc.server, gmp.grpc.compat_server and grpcio's own server, with the same expectations.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import threading
import time

import pytest

import gmp

grpc = pytest.importorskip("grpc")

import gmp.grpc  # noqa: E402
from gmp.protos import helloworld_pb2, helloworld_pb2_grpc  # noqa: E402

LONG = 30.0
SERVICE = "test.Ecosystem"
PATH = f"/{SERVICE}/"
STATUS = grpc.StatusCode
uu, us = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
su, ss = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler


@contextlib.contextmanager
def serving(make_server, handlers=None, add=None, connect=grpc.insecure_channel, **options):
    """Start a server of the handlers, and of what add(server) adds; yields a channel and the port."""
    server = make_server(**options)
    if handlers:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if add:
        add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with connect(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield channel, port
    finally:
        assert server.stop(None).wait(LONG)


def code_of(call, *args, **kwargs):
    with pytest.raises(grpc.RpcError) as caught:
        result = call(*args, timeout=LONG, **kwargs)
        if hasattr(result, "__next__"):
            list(result)
    return caught.value.code(), caught.value.details()


def until(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


# -- OpenTelemetry -----------------------------------------------------------------------------------------------------


@pytest.fixture
def telemetry():
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")
    pytest.importorskip("opentelemetry.instrumentation.grpc", reason="its instrumentation of grpc is not installed")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    class Telemetry:
        exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("test")

        def spans(self, n):
            """By name; the server may end its span after the client has its response."""
            until(lambda: len(self.exporter.get_finished_spans()) >= n)
            found = collections.defaultdict(list)
            for span in self.exporter.get_finished_spans():
                found[span.name].append(span)
            return found

    yield Telemetry()
    Telemetry.provider.shutdown()


def test_opentelemetry_server_spans(make_server, telemetry):
    """Status, attributes and events of the spans, for calls that end in each way."""
    from opentelemetry.instrumentation.grpc import server_interceptor
    from opentelemetry.trace import SpanKind

    class Refused(Exception):
        pass

    def fails(request, context):
        raise Refused("no")

    def aborts(request, context):
        context.abort(STATUS.FAILED_PRECONDITION, "not now")

    def sets(request, context):
        context.set_details("nothing there")
        context.set_code(STATUS.NOT_FOUND)
        return b""

    def streams(request, context):
        with telemetry.tracer.start_as_current_span("inside"):
            yield from (b"1", b"2")

    def breaks(request, context):
        yield b"1"
        context.abort(STATUS.ABORTED, "broken")

    handlers = {
        "Good": uu(lambda request, context: request),
        "Fails": uu(fails),
        "Aborts": uu(aborts),
        "Sets": uu(sets),
        "Streams": us(streams),
        "Breaks": us(breaks),
        "Join": su(lambda requests, context: b"".join(requests)),
        "Each": ss(lambda requests, context: (request for request in requests)),
    }
    interceptors = [server_interceptor(tracer_provider=telemetry.provider)]
    with serving(make_server, handlers, interceptors=interceptors) as (channel, _):
        assert channel.unary_unary(PATH + "Good")(b"x", timeout=LONG) == b"x"
        assert code_of(channel.unary_unary(PATH + "Fails"), b"")[0] is STATUS.UNKNOWN
        assert code_of(channel.unary_unary(PATH + "Aborts"), b"") == (STATUS.FAILED_PRECONDITION, "not now")
        assert code_of(channel.unary_unary(PATH + "Sets"), b"") == (STATUS.NOT_FOUND, "nothing there")
        assert list(channel.unary_stream(PATH + "Streams")(b"", timeout=LONG)) == [b"1", b"2"]
        assert code_of(channel.unary_stream(PATH + "Breaks"), b"") == (STATUS.ABORTED, "broken")
        assert channel.stream_unary(PATH + "Join")(iter([b"a", b"b"]), timeout=LONG) == b"ab"
        assert list(channel.stream_stream(PATH + "Each")(iter([b"a", b"b"]), timeout=LONG)) == [b"a", b"b"]
        assert code_of(channel.unary_unary(PATH + "Unknown"), b"")[0] is STATUS.UNIMPLEMENTED
        spans = telemetry.spans(9)
    assert sorted(name.rpartition("/")[2] for name in spans) == sorted([*handlers, "inside"])
    codes = {"Fails": 0, "Aborts": 9, "Sets": 5, "Breaks": 10}  # Fails: the instrumentation does not know better
    for method in handlers:
        (span,) = spans[PATH + method]
        attributes = dict(span.attributes)
        assert span.kind is SpanKind.SERVER
        assert (attributes["rpc.system"], attributes["rpc.method"], attributes["rpc.service"]) == (
            "grpc",
            method,
            SERVICE,
        )
        assert attributes["rpc.grpc.status_code"] == codes.get(method, 0)
        assert attributes["rpc.user_agent"].startswith("grpc-python/")
        assert (attributes["net.peer.ip"], attributes["net.peer.name"]) == ("127.0.0.1", "localhost")
        assert int(attributes["net.peer.port"]) > 0
        assert {event.name for event in span.events} == (
            {"exception"} if method in ("Fails", "Aborts", "Breaks") else set()
        )
    (inside,), (around,) = spans["inside"], spans[PATH + "Streams"]
    assert inside.parent.span_id == around.context.span_id


def test_opentelemetry_spans_of_many_calls_at_once_nest(make_server, telemetry):
    """Each call's spans are its own, though handlers park in the middle: the client's, the server's, and those made in the handler."""
    from opentelemetry.instrumentation.grpc import client_interceptor, grpcext, server_interceptor

    def work(request, context):
        with telemetry.tracer.start_as_current_span("outer") as outer:
            outer.set_attribute("n", int(request))
            gmp.sleep(0.01)
            with telemetry.tracer.start_as_current_span("inner") as inner:
                time.sleep(0.001)
                inner.set_attribute("n", int(request))
            gmp.gosched()
        return request

    def stream(requests, context):
        for request in requests:
            with telemetry.tracer.start_as_current_span("step") as step:
                step.set_attribute("n", int(request))
                gmp.sleep(0.005)
                yield request

    n, m = 60, 20
    interceptors = [server_interceptor(tracer_provider=telemetry.provider)]
    handlers = {"Work": uu(work), "Stream": ss(stream)}
    with serving(make_server, handlers, interceptors=interceptors, connect=gmp.grpc.insecure_channel) as (plain, _):
        channel = grpcext.intercept_channel(plain, client_interceptor(tracer_provider=telemetry.provider))
        call, streaming = channel.unary_unary(PATH + "Work"), channel.stream_stream(PATH + "Stream")

        def client(i):
            with telemetry.tracer.start_as_current_span("client") as span:
                span.set_attribute("n", i)
                assert call(b"%d" % i, timeout=LONG) == b"%d" % i

        def stream_client(i):
            with telemetry.tracer.start_as_current_span("stream client") as span:
                span.set_attribute("n", i)
                assert list(streaming(iter([b"%d" % i] * 3), timeout=LONG)) == [b"%d" % i] * 3

        goroutines = [gmp.go(client, i) for i in range(n)] + [gmp.go(stream_client, i) for i in range(m)]
        for goroutine in goroutines:
            goroutine.result(timeout=LONG)
        spans = telemetry.spans(5 * n + 6 * m)
    by_id = {span.context.span_id: span for found in spans.values() for span in found}

    def above(span):
        chain = []
        while span.parent is not None:
            span = by_id[span.parent.span_id]
            chain.append(span)
        return chain

    assert [len(spans[name]) for name in ("inner", "outer", "client")] == [n] * 3
    for inner in spans["inner"]:
        outer, server, client, first = above(inner)
        assert [outer.name, server.name, client.name, first.name] == ["outer", PATH + "Work", PATH + "Work", "client"]
        assert [server.kind.name, client.kind.name] == ["SERVER", "CLIENT"]
        assert inner.attributes["n"] == outer.attributes["n"] == first.attributes["n"]
        assert len({span.context.trace_id for span in (inner, outer, server, client, first)}) == 1
    assert len(spans["step"]) == 3 * m
    for step in spans["step"]:
        server, client, first = above(step)
        assert [server.name, client.name, first.name] == [PATH + "Stream", PATH + "Stream", "stream client"]
        assert step.attributes["n"] == first.attributes["n"]


# -- interceptors ------------------------------------------------------------------------------------------------------


def test_grpc_interceptor(make_server):
    pytest.importorskip("grpc_interceptor")
    from grpc_interceptor import ServerInterceptor
    from grpc_interceptor.exceptions import InvalidArgument, NotFound

    seen = []

    class Statuses(ServerInterceptor):
        """Exceptions as statuses, as the package's own guide has it."""

        def intercept(self, method, request_or_iterator, context, method_name):
            seen.append(method_name)
            try:
                response = method(request_or_iterator, context)
            except (NotFound, InvalidArgument) as error:
                context.abort(error.status_code, error.details)
            return self.guarded(response, context) if hasattr(response, "__next__") else response

        def guarded(self, responses, context):
            try:
                yield from responses
            except (NotFound, InvalidArgument) as error:
                context.abort(error.status_code, error.details)

    def find(request, context):
        if not request:
            raise NotFound("nothing by that name")
        return request

    def each(requests, context):
        for request in requests:
            if not request:
                raise InvalidArgument("empty")
            yield request

    handlers = {"Find": uu(find), "Each": ss(each)}
    with serving(make_server, handlers, interceptors=[Statuses()]) as (channel, _):
        find, each = channel.unary_unary(PATH + "Find"), channel.stream_stream(PATH + "Each")
        assert find(b"x", timeout=LONG) == b"x"
        assert code_of(find, b"") == (STATUS.NOT_FOUND, "nothing by that name")
        assert list(each(iter([b"1", b"2"]), timeout=LONG)) == [b"1", b"2"]
        assert code_of(each, iter([b"1", b""])) == (STATUS.INVALID_ARGUMENT, "empty")
        assert code_of(channel.unary_unary(PATH + "Nope"), b"")[0] is STATUS.UNIMPLEMENTED
    assert seen == [PATH + "Find"] * 2 + [PATH + "Each"] * 2


def test_grpc_interceptor_s_own_exception_handling(make_server):
    pytest.importorskip("grpc_interceptor")
    from grpc_interceptor import ExceptionToStatusInterceptor
    from grpc_interceptor.exceptions import ResourceExhausted

    def call(request, context):
        if request == b"known":
            raise ResourceExhausted("full")
        raise ValueError("unexpected")

    def stream(request, context):
        yield b"1"
        raise ResourceExhausted("full")

    interceptor = ExceptionToStatusInterceptor(status_on_unknown_exception=STATUS.INTERNAL)
    handlers = {"Call": uu(call), "Stream": us(stream)}
    with serving(make_server, handlers, interceptors=[interceptor]) as (channel, _):
        assert code_of(channel.unary_unary(PATH + "Call"), b"known") == (STATUS.RESOURCE_EXHAUSTED, "full")
        code, details = code_of(channel.unary_unary(PATH + "Call"), b"")
        assert code is STATUS.INTERNAL
        assert "unexpected" in details
        assert code_of(channel.unary_stream(PATH + "Stream"), b"") == (STATUS.RESOURCE_EXHAUSTED, "full")


class Metrics(grpc.ServerInterceptor):
    """Counts as Prometheus' interceptors do: wraps each handler in one of the same kind, and its iterators of messages."""

    KINDS = {  # noqa: RUF012
        (False, False): ("unary_unary", uu),
        (False, True): ("unary_stream", us),
        (True, False): ("stream_unary", su),
        (True, True): ("stream_stream", ss),
    }

    def __init__(self):
        self.lock, self.counts = threading.Lock(), collections.Counter()

    def count(self, *what):
        with self.lock:
            self.counts[what] += 1

    def counted(self, messages, *what):
        for message in messages:
            self.count(*what)
            yield message

    def intercept_service(self, continuation, details):
        handler = continuation(details)
        method = details.method.rpartition("/")[2]
        if handler is None:
            self.count("unknown", method)
            return None
        name, make = self.KINDS[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, name)

        def wrapped(request_or_iterator, context):
            self.count("started", method)
            context.add_callback(lambda: self.count("ended", method))
            if handler.request_streaming:
                request_or_iterator = self.counted(request_or_iterator, "received", method)
            response = behaviour(request_or_iterator, context)
            if handler.response_streaming:
                return self.counted(response, "sent", method)
            code = context.code() if hasattr(context, "code") else None
            self.count("handled", method, (code or STATUS.OK).name)
            return response

        return make(wrapped, handler.request_deserializer, handler.response_serializer)


class Tags(grpc.ServerInterceptor):
    """Refuses without a token, as an authenticating interceptor does: by another handler in place of the method's."""

    def intercept_service(self, continuation, details):
        if ("token", "secret") in [(m.key, m.value) for m in details.invocation_metadata]:
            return continuation(details)

        def refuse(request, context):
            context.abort(STATUS.UNAUTHENTICATED, "who are you?")

        return uu(refuse)


def test_interceptors_that_wrap_handlers(make_server):
    def sets(request, context):
        context.set_code(STATUS.NOT_FOUND)
        return b""

    handlers = {
        "Good": uu(lambda request, context: request),
        "Sets": uu(sets),
        "Three": us(lambda request, context: iter([b"1", b"2", b"3"])),
        "Join": su(lambda requests, context: b"".join(requests)),
        "Each": ss(lambda requests, context: (request for request in requests)),
    }
    metrics, known = Metrics(), {"metadata": (("token", "secret"),)}
    with serving(make_server, handlers, interceptors=[metrics, Tags()]) as (channel, _):
        for _ in range(20):
            assert channel.unary_unary(PATH + "Good")(b"x", timeout=LONG, **known) == b"x"
        assert code_of(channel.unary_unary(PATH + "Good"), b"") == (STATUS.UNAUTHENTICATED, "who are you?")
        assert code_of(channel.unary_unary(PATH + "Sets"), b"", **known)[0] is STATUS.NOT_FOUND
        assert len(list(channel.unary_stream(PATH + "Three")(b"", timeout=LONG, **known))) == 3
        assert channel.stream_unary(PATH + "Join")(iter([b"a", b"b"]), timeout=LONG, **known) == b"ab"
        assert len(list(channel.stream_stream(PATH + "Each")(iter([b"a"] * 4), timeout=LONG, **known))) == 4
        assert code_of(channel.unary_unary(PATH + "Nope"), b"", **known)[0] is STATUS.UNIMPLEMENTED
        until(lambda: sum(n for what, n in metrics.counts.items() if what[0] == "ended") == 25)
    assert metrics.counts == {
        ("started", "Good"): 21,
        ("handled", "Good", "OK"): 20,
        ("ended", "Good"): 21,
        **{("started", method): 1 for method in ("Sets", "Three", "Join", "Each")},
        **{("ended", method): 1 for method in ("Sets", "Three", "Join", "Each")},
        ("handled", "Sets", "NOT_FOUND"): 1,
        ("handled", "Join", "OK"): 1,
        ("sent", "Three"): 3,
        ("sent", "Each"): 4,
        ("received", "Join"): 2,
        ("received", "Each"): 4,
        ("unknown", "Nope"): 1,
    }


# -- grpcio's own packages, and clients that are not grpcio's ----------------------------------------------------------


class Greeter(helloworld_pb2_grpc.GreeterServicer):
    def SayHello(self, request, context):
        return helloworld_pb2.HelloReply(message=f"Hello, {request.name}!")


@contextlib.contextmanager
def lib_channel(port):
    """A channel of grpclib's, and what runs coroutines."""
    client = pytest.importorskip("grpclib.client")
    loop = asyncio.new_event_loop()

    def run(coroutine):
        return loop.run_until_complete(asyncio.wait_for(coroutine, LONG))

    async def connect():
        return client.Channel("127.0.0.1", port)

    channel = run(connect())
    try:
        yield channel, run
    finally:
        channel.close()
        run(asyncio.sleep(0))
        loop.close()
        del channel
        gc.collect()


def test_health_by_grpclib(make_server):
    health = pytest.importorskip("grpc_health.v1.health")
    client = pytest.importorskip("grpclib.client")
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpclib.const import Status
    from grpclib.exceptions import GRPCError

    servicer = health.HealthServicer()
    types = (health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse)
    Serving = health_pb2.HealthCheckResponse

    with serving(make_server, add=lambda server: health_pb2_grpc.add_HealthServicer_to_server(servicer, server)) as (
        _,
        port,
    ):
        with lib_channel(port) as (channel, run):
            check = client.UnaryUnaryMethod(channel, "/grpc.health.v1.Health/Check", *types)
            watch = client.UnaryStreamMethod(channel, "/grpc.health.v1.Health/Watch", *types)
            assert run(check(types[0]())).status == Serving.SERVING
            with pytest.raises(GRPCError) as caught:
                run(check(types[0](service="x")))
            assert caught.value.status is Status.NOT_FOUND

            async def follow():
                seen = []
                async with watch.open(timeout=LONG) as stream:
                    await stream.send_message(types[0](service="x"), end=True)
                    for status in (None, Serving.SERVING, Serving.NOT_SERVING, Serving.SERVING):
                        if status is not None:
                            servicer.set("x", status)
                        seen.append((await stream.recv_message()).status)
                    await stream.cancel()
                return seen

            assert run(follow()) == [Serving.SERVICE_UNKNOWN, Serving.SERVING, Serving.NOT_SERVING, Serving.SERVING]


def reflected(call, symbol):
    """As grpcurl does: ask for a symbol's file and what that needs, and make classes of it."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    pool, waiting, have = descriptor_pool.DescriptorPool(), {}, set()
    questions = [{"file_containing_symbol": symbol}]
    while questions:
        (reply,) = call([questions.pop()])
        for data in reply.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            waiting[file.name] = file
            questions += [{"file_by_filename": name} for name in file.dependency if name not in waiting]
    while waiting:
        for name, file in list(waiting.items()):
            if have.issuperset(file.dependency):
                pool.Add(file)
                have.add(name)
                del waiting[name]
    service = pool.FindServiceByName(symbol)
    return {
        method.name: (
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        for method in service.methods
    }


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
def test_reflection_as_grpcurl_does(make_server, version):
    reflection = pytest.importorskip("grpc_reflection.v1alpha.reflection")
    from grpc_reflection.v1alpha import reflection_pb2

    names = ("helloworld.Greeter", reflection.SERVICE_NAME)

    def add(server):
        helloworld_pb2_grpc.add_GreeterServicer_to_server(Greeter(), server)
        if version == "v1alpha":
            reflection.enable_server_reflection(names, server)
        else:  # the same messages under another name; grpcio-reflection has no servicer for it
            servicer = reflection.ReflectionServicer(names)
            handler = ss(
                servicer.ServerReflectionInfo,
                reflection_pb2.ServerReflectionRequest.FromString,
                reflection_pb2.ServerReflectionResponse.SerializeToString,
            )
            service = "grpc.reflection.v1.ServerReflection"
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": handler}),)
            )

    with serving(make_server, add=add) as (channel, _):
        ask = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )

        def call(questions):
            requests = [reflection_pb2.ServerReflectionRequest(**question) for question in questions]
            return list(ask(iter(requests), timeout=LONG))

        (reply,) = call([{"list_services": ""}])
        assert sorted(service.name for service in reply.list_services_response.service) == sorted(names)
        (reply,) = call([{"file_containing_symbol": "no.such.Thing"}])
        assert reply.error_response.error_code == STATUS.NOT_FOUND.value[0]
        request_type, reply_type = reflected(call, "helloworld.Greeter")["SayHello"]
        say = channel.unary_unary("/helloworld.Greeter/SayHello", request_type.SerializeToString, reply_type.FromString)
        assert say(request_type(name="reflection"), timeout=LONG).message == "Hello, reflection!"


def test_rich_errors(make_server):
    """grpcio-status: details of several types, by abort_with_status and by hand, in unary calls and streams; read by both clients."""
    rpc_status = pytest.importorskip("grpc_status.rpc_status")
    from google.protobuf import any_pb2
    from google.rpc import code_pb2, error_details_pb2, status_pb2

    violations = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=f"f{i}", description="ü" * 50) for i in range(20)
        ]
    )
    wanted = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="no good: ü")
    for detail in (violations, error_details_pb2.RetryInfo(), error_details_pb2.DebugInfo(detail="x" * 1000)):
        packed = any_pb2.Any()
        packed.Pack(detail)
        wanted.details.append(packed)

    def unary(request, context):
        context.abort_with_status(rpc_status.to_status(wanted))

    def by_hand(request, context):
        context.set_trailing_metadata((("grpc-status-details-bin", wanted.SerializeToString()),))
        context.set_code(STATUS.INVALID_ARGUMENT)
        context.set_details(wanted.message)
        return b""

    def stream(request, context):
        yield b"1"
        context.abort_with_status(rpc_status.to_status(wanted))

    with serving(make_server, {"Unary": uu(unary), "ByHand": uu(by_hand), "Stream": us(stream)}) as (channel, port):
        for method in ("Unary", "ByHand"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(PATH + method)(b"", timeout=LONG)
            assert rpc_status.from_call(caught.value) == wanted
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.unary_stream(PATH + "Stream")(b"", timeout=LONG))
        assert rpc_status.from_call(caught.value) == wanted

        client = pytest.importorskip("grpclib.client")
        from grpclib.exceptions import GRPCError

        with lib_channel(port) as (other, run):
            method = client.UnaryUnaryMethod(other, PATH + "Unary", status_pb2.Status, status_pb2.Status)
            with pytest.raises(GRPCError) as error:
                run(method(status_pb2.Status()))
            assert error.value.message == "no good: ü"
            assert violations in error.value.details
