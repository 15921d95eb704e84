"""gmp.grpc.server and grpcio's own, frame by frame: the same raw HTTP/2 requests, by the package h2, get the same answers.

Compared are headers, messages with their flags, trailers, and how the stream ends.  Two differences are none: an empty grpc-message is left
out here, and the order of header fields, which HTTP leaves open but among equal names.
At the end is what the gRPC and HTTP specifications ask for and grpcio does otherwise.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import gzip
import logging
import socket
import struct
import time
import zlib
from concurrent import futures

import pytest

grpc = pytest.importorskip("grpc")
pytest.importorskip("h2")

import h2.config  # noqa: E402
import h2.connection  # noqa: E402
import h2.events  # noqa: E402

import gmp.grpc  # noqa: E402

if not gmp.grpc.is_native:
    pytest.skip("built without libnghttp2", allow_module_level=True)

LONG = 20.0
SERVICE = "test.Wire"
STATUS, COMPRESSION = grpc.StatusCode, grpc.Compression
ACCEPTED = ("grpc-accept-encoding", "identity, deflate, gzip")
uu, us = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
su, ss = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler


class Answer:
    def __init__(self):
        self.head, self.body, self.trailers, self.end = None, b"", None, None

    @property
    def messages(self):
        found, at = [], 0
        while at < len(self.body):
            flag, size = struct.unpack_from(">BI", self.body, at)
            found.append((flag, self.body[at + 5 : at + 5 + size]))
            at += 5 + size
        return found

    def __repr__(self):
        return f"{self.head} {self.messages} {self.trailers} {self.end}"

    def comparable(self):
        def fields(headers):
            return headers and sorted((f for f in headers if f != ("grpc-message", "")), key=lambda field: field[0])

        messages = [(flag, inflated(data) if flag else data) for flag, data in self.messages]
        return fields(self.head), messages, fields(self.trailers), self.end


def inflated(data):
    return zlib.decompress(data, zlib.MAX_WBITS | 32)


class Raw:
    """A connection on which anything can be said."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), LONG)
        config = h2.config.H2Configuration(
            header_encoding="latin1", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.flush()
        self.answers = collections.defaultdict(Answer)

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def request(self, path, *messages, add=(), end=True, **fields):
        """Send a request, and its messages: bytes, or (flag, bytes).  fields replace the usual ones; None: left out."""
        stream = self.h2.get_next_available_stream_id()
        usual = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost", "te": "trailers"}
        usual["content-type"] = "application/grpc"
        usual.update(fields)
        headers = [(k, v) for k, v in usual.items() if v is not None]
        self.h2.send_headers(stream, [*headers, *add], end_stream=end and not messages)
        for message in messages:
            flag, data = message if isinstance(message, tuple) else (0, message)
            self.h2.send_data(stream, struct.pack(">BI", flag, len(data)) + data)
        if end and messages:
            self.h2.end_stream(stream)
        self.flush()
        return stream

    def answer(self, stream):
        answer = self.answers[stream]
        while answer.end is None:
            data = self.socket.recv(65536)
            if not data:
                answer.end = "closed"
                break
            for event in self.h2.receive_data(data):
                of = self.answers[getattr(event, "stream_id", None)]
                if isinstance(event, h2.events.ResponseReceived):
                    of.head = event.headers
                elif isinstance(event, h2.events.DataReceived):
                    of.body += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.TrailersReceived):
                    of.trailers = event.headers
                elif isinstance(event, h2.events.StreamEnded):
                    of.end = "end"
                elif isinstance(event, h2.events.StreamReset):
                    of.end = of.end or f"reset {int(event.error_code)}"
            with contextlib.suppress(OSError):
                self.flush()
        return answer

    def close(self):
        self.socket.close()


# -- the handlers ------------------------------------------------------------------------------------------------------


def metadata_seen(request, context):
    seen = [(m.key, m.value) for m in context.invocation_metadata()]
    return repr(sorted(seen, key=lambda m: m[0])).encode()


def metadata_both_ways(request, context):
    context.send_initial_metadata((("b", "2"), ("a", "1"), ("b", "3"), ("x-bin", b"\x00"), ("x-bin", b"")))
    context.set_trailing_metadata((("t", "2"), ("s", "1"), ("t", "3"), ("y-bin", b"\xff\xff")))
    context.set_details("fine 100% é\n")
    return request


def fails(error):
    def handler(request, context):
        raise error

    return handler


def aborts(code, details, initial=None, trailing=None):
    def handler(request, context):
        if initial:
            context.send_initial_metadata(initial)
        if trailing:
            context.set_trailing_metadata(trailing)
        context.abort(code, details)

    return handler


def sets(code, details, error=None):
    def handler(request, context):
        context.set_code(code)
        context.set_details(details)
        if error:
            raise error
        return request

    return handler


def cancels(request, context):
    context.cancel()
    return request


def compresses(size):
    def handler(request, context):
        context.set_compression(COMPRESSION.Gzip)
        return b"x" * size

    return handler


def compresses_some(request, context):
    context.set_compression(COMPRESSION.Deflate)
    yield b"x" * 1000
    context.disable_next_message_compression()
    yield b"y" * 1000
    yield b"z" * 1000


def three(request, context):
    yield from (b"1", b"22", b"")


def one_then(act):
    def handler(request, context):
        yield b"1"
        context.set_trailing_metadata((("t", "1"),))
        act(context)

    return handler


def fail_now(context):
    raise ValueError("in the middle")


def nothing(request, context):
    context.set_trailing_metadata((("t", "1"),))
    return iter(())


def with_none(request, context):
    yield b"1"
    yield None
    yield b"2"


def head_first(request, context):
    context.send_initial_metadata((("early", "1"),))
    yield b"1"


def has_deadline(request, context):
    return b"%d" % (context.time_remaining() < 1e9)


HANDLERS = {
    "Echo": uu(lambda request, context: request),
    "Seen": uu(metadata_seen),
    "Both": uu(metadata_both_ways),
    "Raises": uu(fails(ValueError("boom ü %"))),
    "Aborts": uu(aborts(STATUS.DATA_LOSS, "\t\nwhitespace\r\n ☺ 😈 %41\t\n", trailing=(("t", "1"),))),
    "AbortsLater": uu(aborts(STATUS.ABORTED, "", initial=(("a", "1"),))),
    "AbortsOK": uu(aborts(STATUS.OK, "not ok")),
    "SetsCode": uu(sets(STATUS.NOT_FOUND, "nothing there")),
    "SetsOK": uu(sets(STATUS.OK, "all is well")),
    "SetsCodeAndRaises": uu(sets(STATUS.NOT_FOUND, "", ValueError("x"))),
    "SetsDetailsAndRaises": uu(sets(None, "details", ValueError("x"))),
    "SetsNumber": uu(sets(3, "a number")),
    "SetsNonsense": uu(sets("x", "no code")),
    "ReturnsNone": uu(lambda request, context: None),
    "Cancels": uu(cancels),
    "Compressed": uu(compresses(1000)),
    "CompressedSmall": uu(compresses(1)),
    "CompressedEmpty": uu(compresses(0)),
    "CompressedStream": us(compresses_some),
    "Three": us(three),
    "OneThenFails": us(one_then(fail_now)),
    "OneThenAborts": us(one_then(lambda context: context.abort(STATUS.ABORTED, "in the middle"))),
    "OneThenCancels": us(one_then(lambda context: context.cancel())),
    "Nothing": us(nothing),
    "WithNone": us(with_none),
    "HeadFirst": us(head_first),
    "AList": us(lambda request, context: [b"1"]),
    "Join": su(lambda requests, context: b",".join(requests)),
    "Early": su(lambda requests, context: b"early"),
    "Each": ss(lambda requests, context: (b"<" + request + b">" for request in requests)),
    "HasDeadline": uu(has_deadline),
}


LENIENT = {  # what grpcio sends here is no HTTP/2
    "RaisesNothing": uu(fails(ValueError())),
    "Blanks": uu(aborts(STATUS.ABORTED, "  a  b ", trailing=(("blanks", " x  y "), ("blanks", "  "), ("blanks", "")))),
}


class Passing(grpc.ServerInterceptor):
    def intercept_service(self, continuation, details):
        return continuation(details)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)  # what the handlers raise
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module", params=["plain", "intercepted"])
def servers(request):
    """Ports of the native server and grpcio's.  With an interceptor the native one serves calls in Python, without in C."""
    pool = futures.ThreadPoolExecutor(8)
    options = {"interceptors": (Passing(),)} if request.param == "intercepted" else {}
    made = [gmp.grpc.server(**options), grpc.server(pool, **options)]
    ports = []
    for server in made:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {**HANDLERS, **LENIENT}),))
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        server.start()
    yield ports
    for server in made:
        assert server.stop(None).wait(LONG)
    pool.shutdown()


pytestmark = pytest.mark.leaks("the servers stay for the whole module")


def ask(port, method, *messages, **fields):
    raw = Raw(port)
    try:
        return raw.answer(
            raw.request(method if method.startswith("/") else f"/{SERVICE}/{method}", *messages, **fields)
        )
    finally:
        raw.close()


def case(name, *messages, **fields):
    extra = ",".join([*(f"{k}={v}" for k, v in fields.items()), *(str(m[0]) for m in messages if type(m) is tuple)])
    return pytest.param(name, messages, fields, id=f"{name}-{len(messages)}-{extra}")


GZIP = {"grpc-encoding": "gzip"}
ANY = {ACCEPTED[0]: ACCEPTED[1]}
METADATA = [
    *(("k", "1"), ("k", "2"), ("k", "a,b"), ("spaces", "a b"), ("empty", "")),
    *(("one-bin", "AAE"), ("padded-bin", "AAE="), ("empty-bin", ""), ("plus-bin", "+/+/")),
    *(("user-agent", "ua"), ("accept-encoding", "gzip"), ("content-length", "5"), ("cookie", "a=b"), ("cookie", "c=d")),
    *(("grpc-status", "3"), ("grpc-message", "x"), ("grpc-foo", "bar"), ("grpc-previous-rpc-attempts", "1")),
    *(("x-forwarded-for", "1.2.3.4"), ("grpc-timeout", "5S"), ("grpc-message-type", "foo"), ("date", "today")),
]
CASES = [
    *(case(name, b"abc", **ANY) for name in HANDLERS),
    *(case(name, b"1", b"2") for name in ("Echo", "Three", "Join", "Each")),
    case("Join"),
    case("Each"),
    case("Early", b"1", end=False),
    case("Raises", b"1", b"2", end=False),
    case("Nope", b"1"),
    case("Nope", end=False),
    *(case(path, b"") for path in ("/x/y", "/", "/" + SERVICE, "//", f"/{SERVICE}/Echo/")),
    *(case("Echo", b"1", **{"content-type": "application/grpc" + more}) for more in ("+proto", "+json", ";a=b")),
    case("Echo", b"1", **{":scheme": "https"}),
    *(
        case("HasDeadline", b"", **{"grpc-timeout": t})
        for t in ("1S", "00000001M", "99999999H", "10000000u", "123456789S")
    ),
    case("Echo", (1, gzip.compress(b"abc" * 10)), **GZIP),
    case("Echo", (0, b"plain"), **GZIP),
    case("Echo", (0, b"")),
    case("Echo", (1, gzip.compress(b"")), **GZIP),
    case("Echo", (1, zlib.compress(b"abc" * 10)), **{"grpc-encoding": "deflate"}),
    case("Join", (1, gzip.compress(b"one")), (0, b"two"), (1, gzip.compress(b"three")), **GZIP),
    case("Seen", b"", add=METADATA),
]


@pytest.mark.parametrize(("name", "messages", "fields"), CASES)
def test_the_same_answers(servers, name, messages, fields):
    for _ in range(10 if name == "OneThenCancels" else 1):  # a cancellation may overtake the message before it
        native, grpcios = (ask(port, name, *messages, **fields) for port in servers)
        if native.comparable() == grpcios.comparable():
            break
    assert native.comparable() == grpcios.comparable()


BAD = [
    case("HasDeadline", b"", **{"grpc-timeout": "-1S"}),
    case("HasDeadline", b"", **{"grpc-timeout": "1x"}),
    case("HasDeadline", b"", **{"grpc-timeout": "S"}),
    case("HasDeadline", b"", **{"grpc-timeout": "1"}),
    case("Echo", (1, b"zz")),
    case("Echo", (1, b"zz"), **{"grpc-encoding": "identity"}),
    case("Echo", (1, b"zz"), **GZIP),
    case("Join", (1, b"zz"), **GZIP),
    case("Echo", b"1", **{"bad-bin": "!!"}),
]  # the messages are each server's own


@pytest.mark.parametrize(("name", "messages", "fields"), BAD)
def test_bad_requests_fail_alike(servers, name, messages, fields):
    answers = [ask(port, name, *messages, **fields) for port in servers]
    assert [dict(answer.head).get("grpc-status") for answer in answers] == ["13", "13"]


@pytest.mark.parametrize("name", ["Echo", "Three"])
def test_a_call_without_its_request(servers, name):
    answers = [ask(port, name) for port in servers]
    assert [dict(answer.head)["grpc-status"] for answer in answers] == ["12", "12"]
    assert all("requires exactly one request message." in dict(answer.head)["grpc-message"] for answer in answers)


# -- grpcio does otherwise ---------------------------------------------------------------------------------------------


def test_other_requests_than_grpcs_get_an_http_status(servers):
    for kind in ("application/json", "application/grpcx", "", None):
        assert dict(ask(servers[0], "Echo", b"1", **{"content-type": kind}).head) == {":status": "415"}
    assert dict(ask(servers[0], "Echo", b"1", **{":method": "GET"}).head) == {":status": "405"}


def test_an_unknown_encoding_is_unimplemented(servers):
    for message in ((1, b"zz"), (0, b"zz")):
        answer = ask(servers[0], "Echo", message, **{"grpc-encoding": "snappy"})
        assert dict(answer.head)["grpc-status"] == "12"
        assert ACCEPTED in answer.head


def test_a_client_gets_no_encoding_that_it_does_not_take(servers):
    for accepts in ("identity", "deflate", "br"):
        answer = ask(servers[0], "Compressed", b"", **{"grpc-accept-encoding": accepts})
        assert answer.messages == [(0, b"x" * 1000)]
        assert "grpc-encoding" not in dict(answer.head)


def test_no_blanks_at_the_ends_of_a_value(servers):
    """HTTP/2 forbids them, and the package h2 ends the connection; grpcio sends them."""
    answer = ask(servers[0], "RaisesNothing", b"")
    assert dict(answer.head)["grpc-message"] == "Exception calling application:%20"
    answer = ask(servers[0], "Blanks", b"")
    assert dict(answer.head)["grpc-message"] == "%20 a  b%20"
    assert [value for name, value in answer.head if name == "blanks"] == ["x  y", "", ""]


def test_blanks_at_the_ends_of_a_request_s_value(servers):
    answer = ask(servers[0], "Seen", b"", add=[("k", " a b\t"), ("j", " ")])
    assert answer.messages == [(0, repr([("j", ""), ("k", "a b")]).encode())]


def test_an_unknown_flag_of_a_message_fails_the_call(servers):
    assert dict(ask(servers[0], "Echo", (2, b"zz")).head)["grpc-status"] == "13"


def test_binary_values_that_were_joined_are_taken_apart(servers):
    """PROTOCOL-HTTP2.md: values of the same name may be joined by commas, and those of -bin names are split before decoding."""
    answer = ask(servers[0], "Seen", b"", add=[("c-bin", "AAE,AgM="), ("c-bin", "BA"), ("d-bin", ","), ("k", "a,b")])
    seen = [
        ("c-bin", b"\x00\x01"),
        ("c-bin", b"\x02\x03"),
        ("c-bin", b"\x04"),
        ("d-bin", b""),
        ("d-bin", b""),
        ("k", "a,b"),
    ]
    assert answer.messages == [(0, repr(seen).encode())]


def test_what_the_engine_refuses_is_counted_with_its_code(request):
    gc.disable()
    request.addfinalizer(gc.enable)
    server = gmp.grpc.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Join": HANDLERS["Join"]}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert dict(ask(port, "Join", b"1", (2, b"zz")).head)["grpc-status"] == "13"
    # and soon: the call does not wait for the garbage collector
    end = time.monotonic() + LONG
    while (codes := server.stats()["methods"].get(f"/{SERVICE}/Join", {}).get("codes")) != {"INTERNAL": 1}:
        assert time.monotonic() < end, codes
        time.sleep(0.005)
    assert server.stop(None).wait(LONG)
