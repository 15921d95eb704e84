"""gmp.grpc.server against grpcio's clients: the facts that handlers and clients rely on.

Where grpcio's own server has the behaviour too (through compat_server) both are held to it: what is written here is what grpcio does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import queue
import threading
import time

import pytest

import gmp

grpc = pytest.importorskip("grpc")

import gmp.grpc  # noqa: E402
from tests.serving import LONG, failure, path, serving, ss, su, unary, us, uu  # noqa: E402
from tests.waiting import until  # noqa: E402

if not gmp.grpc.is_native:
    pytest.skip("built without libnghttp2", allow_module_level=True)


def run_aio(main):
    try:
        asyncio.run(main)
    finally:
        gc.collect()


# -- the context -------------------------------------------------------------------------------------------------------

METHODS = """abort abort_with_status add_callback auth_context cancel code details disable_next_message_compression invocation_metadata
is_active peer peer_identities peer_identity_key send_initial_metadata set_code set_compression set_details set_trailing_metadata
time_remaining trailing_metadata""".split()


def test_context_has_what_a_servicer_context_has(make):
    seen = {}

    def handler(request, context):
        seen["context"] = context
        seen["missing"] = [m for m in METHODS if not callable(getattr(context, m, None))]
        seen["is"] = isinstance(context, grpc.ServicerContext)
        seen["active"] = context.is_active()
        seen["time"] = context.time_remaining()
        seen["code"] = context.code(), context.details(), context.trailing_metadata()
        context.set_code(grpc.StatusCode.OK)
        context.set_details("fine")
        context.set_trailing_metadata((("a", "b"),))
        seen["after"] = context.code(), context.details(), context.trailing_metadata()
        seen["auth"] = context.auth_context(), context.peer_identities(), context.peer_identity_key()
        context.user = "anything"  # a plain object: middleware leaves things on it
        seen["attribute"] = context.user
        seen["metadata"] = context.invocation_metadata()
        return b""

    with serving(make, Call=uu(handler)) as (_, channel):
        _, call = unary(channel).with_call(b"", metadata=(("k", "v"), ("k", "w"), ("b-bin", b"\x00\xff")))
        assert call.code() is grpc.StatusCode.OK
        assert call.details() == ""  # clients show none with OK
    assert seen["missing"] == []
    assert seen["is"]
    assert seen["active"]
    assert seen["time"] > 9e18
    assert seen["code"] == (None, None, None)
    assert seen["after"] == (grpc.StatusCode.OK, b"fine", (("a", "b"),))
    assert seen["auth"] == (
        {"transport_security_type": [b"insecure"], "security_level": [b"TSI_SECURITY_NONE"]},
        None,
        None,
    )
    assert seen["attribute"] == "anything"
    metadata = [m for m in seen["metadata"] if m.key != "user-agent"]
    assert isinstance(seen["metadata"], tuple)
    assert [tuple(m) for m in metadata] == [("k", "v"), ("k", "w"), ("b-bin", b"\x00\xff")]
    assert metadata[0].key == "k"
    assert metadata[0].value == "v"
    until(lambda: not seen["context"].is_active())
    assert not seen["context"].add_callback(lambda: None)


def test_initial_metadata_is_sent_once(make):
    errors = []

    def handler(request, context):
        context.send_initial_metadata((("first", "1"),))
        try:
            context.send_initial_metadata((("second", "2"),))
        except ValueError as error:
            errors.append(str(error))
        return b""

    with serving(make, Call=uu(handler)) as (_, channel):
        _, call = unary(channel).with_call(b"", timeout=LONG)
        assert dict(call.initial_metadata()) == {"first": "1"}
    assert errors == ["Initial metadata no longer allowed!"]


def test_metadata_of_many_entries_both_ways():
    pairs = (*((f"key-{i % 40}", f"value {i}") for i in range(100)), ("x-bin", os.urandom(1000)), ("empty", ""))

    def handler(request, context):
        mine = tuple(tuple(m) for m in context.invocation_metadata() if m.key != "user-agent")
        context.send_initial_metadata(mine)
        context.set_trailing_metadata(mine)
        return b""

    options = [("grpc.max_metadata_size", 1 << 20), ("grpc.absolute_max_metadata_size", 1 << 20)]
    with serving(options=options, Call=uu(handler), channel_options=options) as (_, channel):
        _, call = unary(channel).with_call(b"", metadata=pairs, timeout=LONG)
        assert sorted(tuple(m) for m in call.initial_metadata()) == sorted(pairs)
        assert sorted(tuple(m) for m in call.trailing_metadata()) == sorted(pairs)


@pytest.mark.parametrize("bad", [(("Upper", "x"),), (("ok", "line\nbreak"),), (("sp ace", "x"),), (("", "x"),)])
def test_invalid_metadata_of_a_handler(bad, caplog):
    """grpcio leaves the client of such a call waiting; here it gets INTERNAL."""
    raised = []

    def initial(request, context):
        try:
            context.send_initial_metadata(bad)
        except ValueError as error:
            raised.append(error)
        return b""

    def trailing(request, context):
        context.set_trailing_metadata(bad)
        return b""

    with serving(Initial=uu(initial), Trailing=uu(trailing)) as (_, channel), caplog.at_level(logging.CRITICAL + 1):
        assert unary(channel, "Initial")(b"", timeout=LONG) == b""
        assert len(raised) == 1
        assert failure(unary(channel, "Trailing"), b"")[0] is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("limit", [None, 200_000])
def test_one_call_s_large_metadata_leaves_the_others_alone(make, limit):
    """With a limit that allows it 150 KB: more CONTINUATION frames than nghttp2 takes by itself."""
    go_on = threading.Event()
    limits = [] if limit is None else [("grpc.max_metadata_size", limit), ("grpc.absolute_max_metadata_size", limit)]
    handlers = {
        "Call": uu(lambda request, context: b"done"),
        "Wait": uu(lambda request, context: go_on.wait(LONG) and b""),
    }
    with serving(make, options=limits, **handlers) as (_, channel):
        neighbour = unary(channel, "Wait").future(b"", timeout=LONG)
        metadata = [(f"k{i}", "x" * 5_000) for i in range(30 if limit else 20)]
        if limit is None:
            assert failure(unary(channel), b"", metadata=metadata)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        else:
            assert unary(channel)(b"", timeout=LONG, metadata=metadata) == b"done"
        go_on.set()
        assert neighbour.result() == b""


def test_metadata_beyond_the_limit():
    with serving(Call=uu(lambda request, context: b"")) as (_, channel):
        code, _ = failure(unary(channel), b"", metadata=(("big", "x" * 20_000),))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert unary(channel)(b"", timeout=LONG) == b""


@pytest.mark.parametrize("where", ["initial", "trailing", "details"])
def test_large_metadata_of_a_handler_reaches_a_client_that_takes_it(make, where):
    """nghttp2 by itself sends no more than 64 KiB, and does not say so."""
    large = "x" * 200_000

    def handler(request, context):
        if where == "initial":
            context.send_initial_metadata((("large", large),))
        elif where == "trailing":
            context.set_trailing_metadata((("large", large),))
        else:
            context.abort(grpc.StatusCode.ABORTED, large)
        return b""

    limits = [("grpc.max_metadata_size", 1_000_000), ("grpc.absolute_max_metadata_size", 1_000_000)]
    with serving(make, channel_options=limits, Call=uu(handler)) as (_, channel):
        if where == "details":
            assert failure(unary(channel), b"") == (grpc.StatusCode.ABORTED, large)
        else:
            _, call = unary(channel).with_call(b"", timeout=LONG)
            metadata = call.initial_metadata() if where == "initial" else call.trailing_metadata()
            assert ("large", large) in metadata


def test_metadata_that_is_too_large_to_be_sent_fails_the_call(caplog, capfd):
    def handler(request, context):
        context.set_trailing_metadata((("large", "x" * (9 << 20)),))
        return b""

    def says(request, context):
        context.send_initial_metadata((("large", "x" * (9 << 20)),))

    with serving(Call=uu(handler), Says=uu(says)) as (server, channel), caplog.at_level(logging.CRITICAL + 1):
        assert failure(unary(channel), b"") == (grpc.StatusCode.INTERNAL, "Failed to send the status!")
        assert server.stats()["methods"][path()]["codes"] == {"INTERNAL": 1}
        code, details = failure(unary(channel, "Says"), b"")
        assert code is grpc.StatusCode.UNKNOWN
        assert "the most is" in details


def test_what_was_yielded_before_a_cancel_arrives():
    def one_then_cancel(request, context):
        yield b"one"
        context.cancel()
        yield b"two"

    with serving(Call=us(one_then_cancel)) as (_, channel):
        for _ in range(20):
            calls = [channel.unary_stream(path())(b"", timeout=LONG) for _ in range(20)]
            for call in calls:
                assert next(call) == b"one"
                with pytest.raises(grpc.RpcError):
                    next(call)
                assert call.code() is grpc.StatusCode.CANCELLED


def test_names_that_are_grpcs_own_are_not_a_handlers_to_set(make):
    own = [("te", "x"), ("grpc-status", "7"), ("grpc-message", "x"), ("content-type", "text/plain")]

    def handler(request, context):
        context.send_initial_metadata((*own, ("a", "b")))
        context.set_trailing_metadata((*own, ("c", "d")))
        return b"fine"

    with serving(make, Call=uu(handler)) as (_, channel):
        response, call = unary(channel).with_call(b"", timeout=LONG)
        assert response == b"fine"
        assert call.code() is grpc.StatusCode.OK
        assert tuple(call.initial_metadata()) == (("a", "b"),)
        assert tuple(call.trailing_metadata()) == (("c", "d"),)


def test_callbacks_run_in_order_and_failures_are_logged(make, caplog):
    order = []
    ended = threading.Event()

    def handler(request, context):
        assert context.add_callback(lambda: order.append(1))
        assert context.add_callback(lambda: 1 / 0)
        assert context.add_callback(lambda: order.append(2))
        assert context.add_callback(ended.set)
        return b""

    with serving(make, Call=uu(handler)) as (_, channel), caplog.at_level(logging.CRITICAL + 1):
        unary(channel)(b"", timeout=LONG)
        assert ended.wait(LONG)
    assert order == [1, 2]


# -- how calls fail ----------------------------------------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no")


def raising(error, code=None, details=None):
    def handler(request, context):
        if code:
            context.set_code(code)
        if details:
            context.set_details(details)
        context.set_trailing_metadata((("why", "because"),))
        raise error

    return handler


def aborting(code, details):
    return lambda request, context: context.abort(code, details)


UNKNOWN, INTERNAL, NOT_FOUND = grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.NOT_FOUND
FAILURES = {
    "raises": (uu(raising(ValueError("oh: ä%"))), (UNKNOWN, "Exception calling application: oh: ä%")),
    "raises, a code was set": (
        uu(raising(ValueError("oh"), NOT_FOUND)),
        (NOT_FOUND, "Exception calling application: oh"),
    ),
    "raises, all was set": (uu(raising(ValueError("oh"), NOT_FOUND, "gone")), (NOT_FOUND, "gone")),
    "raises the unprintable": (
        uu(raising(Unprintable())),
        (UNKNOWN, "Calling application raised unprintable Exception!"),
    ),
    "aborts": (uu(aborting(NOT_FOUND, "not here")), (NOT_FOUND, "not here")),
    "aborts with OK": (uu(aborting(grpc.StatusCode.OK, "ignored")), (UNKNOWN, "")),
    "returns None": (uu(lambda request, context: None), (INTERNAL, "Failed to serialize response!")),
    "cannot be serialized": (
        uu(lambda request, context: b"", response_serializer=lambda x: 1 / 0),
        (INTERNAL, "Failed to serialize response!"),
    ),
    "cannot be parsed": (
        uu(lambda request, context: b"", request_deserializer=lambda x: 1 / 0),
        (INTERNAL, "Exception deserializing request!"),
    ),
    "generator raises": (
        us(lambda request, context: iter([b"x", 1 / 0])),
        (UNKNOWN, "Exception calling application: division by zero"),
    ),
    "stream cannot be serialized": (
        us(lambda request, context: iter([b"x"]), response_serializer=lambda x: 1 / 0),
        (INTERNAL, "Failed to serialize response!"),
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures(case, make, caplog):
    handler, expected = FAILURES[case]
    with serving(make, Call=handler) as (_, channel), caplog.at_level(logging.CRITICAL + 1):
        call = channel.unary_stream(path()) if handler.response_streaming else unary(channel)
        for _ in range(2):  # the second call takes another way through the server
            assert failure(call, b"x") == expected


def test_iterating_responses_fails(make, caplog):
    def generator(request, context):
        yield b"one"
        raise ValueError("later")

    with serving(make, Call=us(generator)) as (_, channel), caplog.at_level(logging.CRITICAL + 1):
        replies = channel.unary_stream(path())(b"", timeout=LONG)
        assert next(replies) == b"one"
        with pytest.raises(grpc.RpcError) as caught:
            next(replies)
        assert (caught.value.code(), caught.value.details()) == (UNKNOWN, "Exception iterating responses: later")


def test_a_code_without_an_exception(make):
    def handler(request, context):
        context.set_code(NOT_FOUND)
        context.set_details("but here is a message")
        return b"ignored by clients"

    def generator(request, context):
        yield b"one"
        context.set_code(NOT_FOUND)

    with serving(make, Call=uu(handler), Stream=us(generator)) as (_, channel):
        assert failure(unary(channel), b"") == (NOT_FOUND, "but here is a message")
        assert failure(channel.unary_stream(path("Stream")), b"") == (NOT_FOUND, "")


def test_unknown_methods_and_paths(make):
    with serving(make, Call=uu(lambda request, context: b"")) as (_, channel):
        expected = (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        assert failure(unary(channel, "Other"), b"") == expected
        assert failure(channel.unary_unary("/no/such"), b"") == expected
        assert failure(channel.unary_stream("/no/such"), b"") == expected
        assert failure(channel.stream_unary("/no/such"), iter([b"x"] * 100)) == expected


def test_a_unary_method_needs_exactly_one_request(make):
    with serving(make, Call=uu(lambda request, context: request)) as (_, channel):
        for _ in range(2):
            code, details = failure(channel.stream_unary(path()), iter(()))
            assert code is grpc.StatusCode.UNIMPLEMENTED
            assert details.replace("b'", "").replace("'", "") == f'"{path()}" requires exactly one request message.'


def test_messages_beyond_the_limits(make, caplog):
    options = [("grpc.max_receive_message_length", 1000), ("grpc.max_send_message_length", 2000)]
    handlers = {
        "Echo": uu(lambda request, context: request),
        "Big": uu(lambda request, context: bytes(3000)),
        "BigStream": us(lambda request, context: iter([bytes(3000)])),
        "Join": su(lambda requests, context: b"".join(requests)[:1]),
    }
    with serving(make, options=options, **handlers) as (_, channel), caplog.at_level(logging.CRITICAL + 1):
        exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
        for _ in range(2):
            assert unary(channel, "Echo")(bytes(1000), timeout=LONG) == bytes(1000)
            code, details = failure(unary(channel, "Echo"), bytes(1001))
            assert code is exhausted
            assert "1001 vs. 1000" in details
            code, details = failure(channel.stream_unary(path("Join")), iter([b"x", bytes(1001)]))
            assert code is exhausted
            for big in (unary(channel, "Big"), channel.unary_stream(path("BigStream"))):
                code, details = failure(big, b"")
                assert code is exhausted
                assert "3000 vs. 2000" in details


# -- compression -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate], ids=str)
def test_compressed_messages(make, algorithm):
    text = b"again and again " * 1000

    def handler(request, context):
        context.set_compression(algorithm)
        return request

    def stream(requests, context):
        for i, request in enumerate(requests):
            if i == 1:
                context.disable_next_message_compression()
            yield request

    with serving(make, Call=uu(handler), Stream=ss(stream), compression=algorithm) as (_, channel):
        for compression in (algorithm, grpc.Compression.NoCompression, None):
            assert unary(channel)(text, compression=compression, timeout=LONG) == text
            assert unary(channel)(b"", compression=compression, timeout=LONG) == b""
            replies = channel.stream_stream(path("Stream"))(iter([text] * 3), compression=compression, timeout=LONG)
            assert list(replies) == [text] * 3


@pytest.mark.parametrize("first", [None, grpc.Compression.Gzip, grpc.Compression.Deflate], ids=str)
def test_compression_that_is_set_after_the_initial_metadata(make, first):
    """The client knows what the initial metadata said, and that only."""
    text = b"text " * 1000

    def one(request, context):
        context.send_initial_metadata(())
        context.set_compression(grpc.Compression.Gzip)
        return text

    def many(request, context):
        for later in (None, grpc.Compression.Gzip, grpc.Compression.Deflate, grpc.Compression.NoCompression):
            if later is not None:
                context.set_compression(later)
            yield text

    with serving(make, compression=first, One=uu(one), Many=us(many)) as (_, channel):
        assert unary(channel, "One")(b"", timeout=LONG) == text
        assert list(channel.unary_stream(path("Many"))(b"", timeout=LONG)) == [text] * 4


def test_a_compressed_message_that_grows_beyond_the_limit(make, caplog):
    options = [("grpc.max_receive_message_length", 10_000)]
    with (
        serving(make, options=options, Call=uu(lambda r, c: r[:1])) as (_, channel),
        caplog.at_level(logging.CRITICAL + 1),
    ):
        for _ in range(2):
            assert unary(channel)(bytes(9_000), compression=grpc.Compression.Gzip, timeout=LONG) == b"\0"
            code, _ = failure(unary(channel), bytes(5_000_000), compression=grpc.Compression.Gzip)
            assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)


# -- streams -----------------------------------------------------------------------------------------------------------


def test_responses_are_not_made_much_faster_than_they_are_read():
    made = itertools.count()

    def generator(request, context):
        for i in range(10_000):
            next(made)
            yield i.to_bytes(4, "big") * 250

    options = [("grpc.http2.bdp_probe", 0)]
    with serving(Call=us(generator), channel_options=options) as (_, channel):
        replies = channel.unary_stream(path())(b"", timeout=60)
        assert next(replies)[:4] == bytes(4)
        time.sleep(0.3)
        assert next(made) < 2000  # the windows and 64 KiB, not ten megabytes
        assert [int.from_bytes(reply[:4], "big") for reply in replies] == list(range(1, 10_000))


def test_requests_are_not_taken_much_faster_than_they_are_read():
    go_on, sent = gmp.Chan(), itertools.count()

    def handler(requests, context):
        go_on.recv(timeout=LONG)
        return b"%d" % sum(len(request) for request in requests)

    def requests():
        for _ in range(3000):
            next(sent)
            yield bytes(1000)

    options = [("grpc.http2.lookahead_bytes", 65536)]
    with serving(options=options, Call=su(handler)) as (_, channel):
        call = channel.stream_unary(path()).future(requests(), timeout=60)
        time.sleep(0.5)
        assert next(sent) < 1500
        go_on.send(None)
        assert call.result() == b"3000000"


def test_a_message_larger_than_the_windows(make):
    big = os.urandom(3 << 20)
    with serving(make, Call=uu(lambda request, context: request), Stream=ss(lambda requests, context: requests)) as (
        _,
        channel,
    ):
        assert unary(channel)(big, timeout=LONG) == big
        assert list(channel.stream_stream(path("Stream"))(iter([big, b"", big[:1000]]), timeout=LONG)) == [
            big,
            b"",
            big[:1000],
        ]


def test_returning_early(make):
    """The handler answers without reading the requests; the client has more of them."""
    go_on = threading.Event()

    def requests():
        yield b"one"
        go_on.wait(LONG)
        yield b"two"

    handlers = {
        "One": su(lambda requests, context: next(requests)),
        "None": ss(lambda requests, context: iter([b"x", b"y"])),
    }
    with serving(make, **handlers) as (_, channel):
        assert channel.stream_unary(path("One"))(requests(), timeout=LONG) == b"one"
        assert list(channel.stream_stream(path("None"))(requests(), timeout=LONG)) == [b"x", b"y"]
        go_on.set()


def test_the_server_speaks_first(make):
    hold = threading.Event()

    def handler(requests, context):
        yield b"hello"
        yield from requests

    def requests():
        hold.wait(LONG)
        yield b"at last"

    with serving(make, Call=ss(handler)) as (_, channel):
        replies = channel.stream_stream(path())(requests(), timeout=LONG)
        assert next(replies) == b"hello"
        hold.set()
        assert list(replies) == [b"at last"]


def test_the_request_iterator_after_the_end(make):
    seen = []

    def handler(requests, context):
        seen.append(list(requests))
        seen.append(next(requests, "nothing"))
        return b""

    with serving(make, Call=su(handler)) as (_, channel):
        channel.stream_unary(path())(iter([b"1", b"2"]), timeout=LONG)
    assert seen == [[b"1", b"2"], "nothing"]


def test_a_generator_is_closed_when_the_client_goes():
    closed = threading.Event()

    def generator(request, context):
        try:
            while True:
                yield bytes(1000)
        finally:
            closed.set()

    with serving(Call=us(generator)) as (_, channel):
        replies = channel.unary_stream(path())(b"")
        next(replies)
        replies.cancel()
        assert closed.wait(LONG)


def test_thousands_of_messages_each_way():
    with serving(Call=ss(lambda requests, context: (r + b"!" for r in requests))) as (_, channel):
        replies = channel.stream_stream(path())((b"%d" % i for i in range(5000)), timeout=60)
        assert list(replies) == [b"%d!" % i for i in range(5000)]


# -- deadlines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unary", "stream"])
def test_the_deadline_wakes_who_waits_for_requests(kind):
    ended = queue.SimpleQueue()

    def handler(requests, context):
        try:
            for _ in requests:
                pass
        except grpc.RpcError:
            ended.put("told")
            raise
        ended.put("read to the end")
        return b""

    def generator(requests, context):
        yield handler(requests, context)

    hold = threading.Event()

    def requests():
        yield b"1"
        hold.wait(LONG)

    with serving(Call=su(handler), Stream=ss(generator)) as (_, channel):
        while ended.empty():  # it may take longer to connect, or to notice
            with pytest.raises(grpc.RpcError) as caught:
                if kind == "unary":
                    channel.stream_unary(path())(requests(), timeout=0.2)
                else:
                    list(channel.stream_stream(path("Stream"))(requests(), timeout=0.2))
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert ended.get() == "told"
        hold.set()


def test_time_remaining(make):
    seen = []

    def handler(request, context):
        seen.append(context.time_remaining())
        gmp.sleep(0.05)
        seen.append(context.time_remaining())
        return b""

    with serving(make, Call=uu(handler)) as (_, channel):
        unary(channel)(b"", timeout=100)
    assert 50 < seen[0] < 103  # grpcio rounds it up
    assert seen[1] < seen[0] - 0.04


# -- many calls on one connection --------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_no_head_of_line_blocking():
    """1,000 quick calls of grpcio's client end while a slow handler and an upload of 64 MB that its handler does not read share their
    connection.  More of it, frame by frame: test_grpc_head_of_line.py."""
    release = gmp.Chan()

    def slow(request, context):
        release.recv_ok()
        return b"slow"

    def upload(requests, context):
        release.recv_ok()
        return b"%d" % sum(map(len, requests))

    handlers = {"Quick": uu(lambda r, c: r), "Slow": uu(slow), "Upload": su(upload)}
    with serving(channel_options=[("grpc.http2.bdp_probe", 0)], **handlers) as (_, channel):
        waiting = unary(channel, "Slow").future(b"")
        uploading = channel.stream_unary(path("Upload")).future(bytes(1 << 20) for _ in range(64))
        time.sleep(0.1)
        calls = [unary(channel, "Quick").future(b"%d" % i, timeout=LONG) for i in range(1000)]
        assert [call.result() for call in calls] == [b"%d" % i for i in range(1000)]
        assert not waiting.done()
        assert not uploading.done()
        release.close()
        assert waiting.result() == b"slow"
        assert uploading.result() == b"%d" % (64 << 20)


def test_a_stalled_reader_does_not_stop_the_others():
    def flood(request, context):
        while True:
            yield bytes(10_000)

    options = [("grpc.http2.bdp_probe", 0)]
    with serving(Quick=uu(lambda r, c: r), Flood=us(flood)) as (server, channel):
        with contextlib.ExitStack() as stack:
            target = channel._channel.target().decode().rpartition("/")[2]
            other = stack.enter_context(
                grpc.insecure_channel(target, options=[*options, ("grpc.use_local_subchannel_pool", 1)])
            )
            floods = [other.unary_stream(path("Flood"))(b"") for _ in range(20)]
            for stream in floods:
                next(stream)
            for i in range(300):
                assert unary(channel, "Quick")(b"%d" % i, timeout=LONG) == b"%d" % i
            for stream in floods:
                stream.cancel()
        until(lambda: server.stats()["running"] == 0)


def test_many_connections():
    with serving(Call=uu(lambda request, context: context.peer().encode())) as (server, channel):
        target = channel._channel.target().decode().rpartition("/")[2]
        with contextlib.ExitStack() as stack:
            peers = set()
            for i in range(100):
                options = [("grpc.use_local_subchannel_pool", 1), ("n", i)]
                one = stack.enter_context(grpc.insecure_channel(target, options=options))
                peers.add(unary(one)(b"", timeout=LONG))
            assert len(peers) == 100
            assert server.stats()["connections"] == 100
        until(lambda: server.stats()["connections"] == 0)


def test_aio_clients_a_thousand_at_once():
    async def main(target):
        async with grpc.aio.insecure_channel(target) as channel:
            calls = [unary(channel)(b"%d" % i, timeout=LONG) for i in range(1000)]
            assert await asyncio.gather(*calls) == [b"%d" % i for i in range(1000)]

    def handler(request, context):
        gmp.sleep(0.05)
        return request

    with serving(Call=uu(handler)) as (_, channel):
        run_aio(main(channel._channel.target().decode().rpartition("/")[2]))


# -- packages round grpcio, clients in goroutines ----------------------------------------------------------------------


def test_rich_statuses(make):
    rpc_status = pytest.importorskip("grpc_status.rpc_status")
    from google.protobuf import any_pb2
    from google.rpc import error_details_pb2, status_pb2

    def handler(request, context):
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.DebugInfo(detail="all of it"))
        status = status_pb2.Status(code=NOT_FOUND.value[0], message="not here", details=[detail])
        context.abort_with_status(rpc_status.to_status(status))

    with serving(make, Call=uu(handler)) as (_, channel):
        with pytest.raises(grpc.RpcError) as caught:
            unary(channel)(b"", timeout=LONG)
        status = rpc_status.from_call(caught.value)
        assert (status.code, status.message) == (NOT_FOUND.value[0], "not here")
        info = error_details_pb2.DebugInfo()
        assert status.details[0].Unpack(info)
        assert info.detail == "all of it"


def test_channelz_is_served(make):
    channelz = pytest.importorskip("grpc_channelz.v1.channelz")
    from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

    server = make()
    channelz.add_channelz_servicer(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = channelz_pb2_grpc.ChannelzStub(channel)
        reply = stub.GetTopChannels(channelz_pb2.GetTopChannelsRequest(start_channel_id=0), timeout=LONG)
        assert isinstance(reply, channelz_pb2.GetTopChannelsResponse)
    assert server.stop(None).wait(LONG)


def test_hundreds_of_goroutines_wait_for_calls():
    """gmp.wait(stub.Method.future(...)) parks: no thread is held by any of them."""
    go_on = gmp.Chan()

    def handler(request, context):
        go_on.recv_ok()
        return request

    def client(channel, i):
        assert gmp.wait(unary(channel).future(b"%d" % i, timeout=60)) == b"%d" % i

    with serving(Call=uu(handler)) as (server, channel):
        try:
            clients = [gmp.go(client, channel, i) for i in range(300)]
            until(lambda: server.stats()["running"] == 300)
            # grpcio starts a call in C, without the GIL: a goroutine keeps its thread for that moment.  Not for the wait.
            until(lambda: gmp.runtime.stats()["threads"] - gmp.runtime.stats()["idle_threads"] < 100)
        finally:
            go_on.close()
        for goroutine in clients:
            goroutine.join(timeout=LONG)


def test_a_response_from_a_thread_without_a_p_is_sent_at_once():
    """Nobody would come by to flush it: all else is idle."""
    senders = queue.SimpleQueue()

    def watch(request, context, send):
        senders.put(send)

    watch.experimental_non_blocking = True
    with serving(Watch=us(watch)) as (_, channel):
        replies = channel.unary_stream(path("Watch"))(b"", timeout=60)
        send = senders.get(timeout=LONG)
        for i in range(30):
            thread = threading.Thread(target=send, args=(b"%d" % i,))
            thread.start()
            assert next(replies) == b"%d" % i
            thread.join(LONG)
        thread = threading.Thread(target=send, args=(None,))
        thread.start()
        assert list(replies) == []
        thread.join(LONG)


def test_a_response_after_a_long_computation_is_sent_at_once():
    """sysmon has taken the handler's P meanwhile."""

    def handler(request, context):
        end = time.monotonic() + 0.03
        while time.monotonic() < end:
            pass
        time.sleep(0.002)  # lets go of the GIL
        return request

    with serving(Call=uu(handler)) as (_, channel):
        for i in range(20):
            assert unary(channel)(b"%d" % i, timeout=LONG) == b"%d" % i
