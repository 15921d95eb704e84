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
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

import gmp

grpc = pytest.importorskip("grpc")

import gmp.grpc  # noqa: E402

if not gmp.grpc.is_native:
    pytest.skip("built without libnghttp2", allow_module_level=True)

SERVICE = "test.Native"
LONG = 40.0
MAKERS = {"native": gmp.grpc.server, "compat": gmp.grpc.compat_server}

uu, us = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
su, ss = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler


@pytest.fixture(params=MAKERS)
def make(request):
    """Each of the two servers in turn."""
    return MAKERS[request.param]


@contextlib.contextmanager
def serving(make=gmp.grpc.server, address="127.0.0.1:0", channel_options=None, **handlers_and_options):
    handlers = {k: v for k, v in handlers_and_options.items() if isinstance(v, grpc.RpcMethodHandler)}
    server = make(**{k: v for k, v in handlers_and_options.items() if k not in handlers})
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port(address)
    server.start()
    target = address if address.startswith("unix") else f"{address.rpartition(':')[0]}:{port}"
    try:
        with grpc.insecure_channel(
            target, options=[("grpc.use_local_subchannel_pool", 1), *(channel_options or ())]
        ) as channel:
            yield server, channel
    finally:
        assert server.stop(None).wait(LONG)


def path(method="Call"):
    return f"/{SERVICE}/{method}"


def unary(channel, method="Call"):
    return channel.unary_unary(path(method))


def until(condition, timeout=LONG):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def failure(call, *args, **kwargs):
    """Call, and return how it failed: code and details."""
    with pytest.raises(grpc.RpcError) as caught:
        result = call(*args, timeout=LONG, **kwargs)
        if hasattr(result, "__next__"):
            list(result)
    return caught.value.code(), caught.value.details()


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


# -- addresses ---------------------------------------------------------------------------------------------------------


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
        return True
    except OSError:
        return False


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "[::1]:0", "[::]:0"])
def test_addresses(make, address):
    if "::" in address and not has_ipv6():
        pytest.skip("no IPv6 here")
    with serving(make, address=address, Call=uu(lambda request, context: context.peer().encode())) as (_, channel):
        peer = unary(channel)(b"", timeout=LONG).decode()
        assert peer.startswith(("ipv4:127.0.0.1:", "ipv6:%5B::1%5D:"))


def test_unix_sockets(make, tmp_path):
    with serving(make, address=f"unix:{tmp_path}/sock", Call=uu(lambda request, context: context.peer().encode())) as (
        _,
        channel,
    ):
        assert unary(channel)(b"", timeout=LONG).startswith(b"unix:")


def test_a_port_that_is_taken(make):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RuntimeError, match=r"Failed to bind to address 127\.0\.0\.1:"):
            make().add_insecure_port(f"127.0.0.1:{taken.getsockname()[1]}")


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1", "127.0.0.1:http-ish", "no.such.name.invalid:0"])
def test_addresses_that_are_none(address):
    with pytest.raises(RuntimeError, match="Failed to bind"):
        gmp.grpc.server().add_insecure_port(address)


@pytest.mark.parametrize(
    ("address", "error", "text"),
    [
        ("127.0.0.1:99999", RuntimeError, "a port is 65535 at most"),
        (50051, TypeError, "an address must be a str"),
    ],
)
def test_addresses_that_are_wrong(address, error, text):
    with pytest.raises(error, match=text):
        gmp.grpc.server().add_insecure_port(address)


def test_an_address_may_be_bytes(make):
    server = make()
    assert server.add_insecure_port(b"127.0.0.1:0") > 0
    server.stop(None)


@pytest.mark.parametrize("started", [True, False])
def test_no_port_after_the_end(started):
    """It would listen, and nobody would ever answer."""
    server = gmp.grpc.server()
    if started:
        server.start()
    assert server.stop(None).wait(LONG)
    with pytest.raises(RuntimeError, match="the server has stopped"):
        server.add_insecure_port("127.0.0.1:0")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            {"options": [("grpc.max_receive_message_length", "4MB")]},
            TypeError,
            "grpc.max_receive_message_length must be",
        ),
        ({"options": [("grpc.keepalive_time_ms", None)]}, TypeError, "grpc.keepalive_time_ms must be an int"),
        ({"options": [("grpc.http2.lookahead_bytes", 1.5)]}, TypeError, "grpc.http2.lookahead_bytes must be an int"),
        ({"options": [("grpc.max_concurrent_streams", 2**40)]}, ValueError, "grpc.max_concurrent_streams must be"),
        ({"options": [("grpc.default_compression_algorithm", 3)]}, ValueError, "grpc.default_compression_algorithm"),
        ({"options": [("grpc.so_reuseport",)]}, TypeError, "options must be pairs"),
        ({"options": [5]}, TypeError, "options must be pairs"),
        ({"maximum_concurrent_rpcs": "10"}, TypeError, "maximum_concurrent_rpcs must be an int"),
        ({"maximum_concurrent_rpcs": -1}, ValueError, "maximum_concurrent_rpcs must be 0 or more"),
        ({"compression": "gzip"}, TypeError, "compression must be a grpc.Compression"),
    ],
)
def test_arguments_that_are_wrong_are_named(arguments, error, text):
    with pytest.raises(error, match=text):
        gmp.grpc.server(**arguments)


def test_options_that_nobody_knows_are_ignored(make):
    server = make(options=[("some.thing", 1), (b"grpc.max_receive_message_length", 10)])
    server.stop(None)


def test_a_call_made_before_the_server_runs(make):
    """wait_for_ready: the port is bound before anybody accepts."""
    with socket.socket() as kept:  # from others; who does not listen gets no connections
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(("127.0.0.1", 0))
        port = kept.getsockname()[1]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_reconnect_backoff_ms", 100)]) as channel:
            call = unary(channel).future(b"x", wait_for_ready=True, timeout=LONG)
            time.sleep(0.2)
            server = make((grpc.method_handlers_generic_handler(SERVICE, {"Call": uu(lambda r, c: r)}),))
            server.add_insecure_port(f"127.0.0.1:{port}")
            server.start()
            assert call.result() == b"x"
            assert server.stop(None).wait(LONG)


# -- the life of a server ----------------------------------------------------------------------------------------------


def test_start_and_stop_in_any_order(make):
    server = make()
    assert server.stop(None).wait(LONG)
    server = make()
    server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(ValueError, match="Cannot start already-started server!"):
        server.start()
    events = [server.stop(10), server.stop(5), server.stop(None), server.stop(1)]
    assert all(event.wait(LONG) for event in events)
    assert not server.wait_for_termination(1)


def test_times_that_are_odd(make):
    server = make()
    server.start()
    assert server.wait_for_termination(-1)
    assert server.wait_for_termination(0)
    assert server.stop(-1).wait(LONG)


def test_times_that_are_none():
    server = gmp.grpc.server()
    server.start()
    with pytest.raises(TypeError, match=r"wait_for_termination\(\): timeout must be a number of seconds"):
        server.wait_for_termination("5")
    with pytest.raises(TypeError, match=r"stop\(\): grace must be a number of seconds"):
        server.stop("5")
    assert server.stop(float("nan")).wait(LONG)


def test_handlers_added_while_it_runs():
    with serving(Call=uu(lambda request, context: b"1")) as (server, channel):
        assert failure(unary(channel, "Later"), b"")[0] is grpc.StatusCode.UNIMPLEMENTED
        later = {"Later": uu(lambda request, context: b"2")}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, later),))
        assert unary(channel, "Later")(b"", timeout=LONG) == b"2"
        with pytest.raises(AttributeError):
            server.add_generic_rpc_handlers((object(),))


def test_generic_handlers_that_look_at_metadata():
    """Such a handler decides call by call; nothing of it is remembered."""

    class Choosing(grpc.GenericRpcHandler):
        def service(self, details):
            which = dict(details.invocation_metadata).get("which")
            return uu(lambda request, context: which.encode()) if which else None

    server_side = Choosing()
    with serving(handlers=(server_side,), Call=uu(lambda request, context: b"default")) as (_, channel):
        for which in ("a", "b", None, "c", None):
            metadata = (("which", which),) if which else ()
            assert unary(channel)(b"", metadata=metadata, timeout=LONG) == (which or "default").encode()


def test_keepalive_of_a_client_that_pings_too_often():
    options = [
        ("grpc.keepalive_time_ms", 100),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]

    def handler(request, context):
        while context.is_active():
            gmp.sleep(0.05)
        return b""

    server_options = [("grpc.http2.min_recv_ping_interval_without_data_ms", 60_000), ("grpc.http2.max_ping_strikes", 1)]
    with serving(options=server_options, Call=uu(handler), channel_options=options) as (_, channel):
        code, details = failure(unary(channel), b"")
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "too_many_pings" in details or "ENHANCE_YOUR_CALM" in details or "Too many pings" in details, details


def test_connections_of_a_certain_age_are_replaced():
    options = [("grpc.max_connection_age_ms", 200), ("grpc.max_connection_age_grace_ms", 5000)]
    with serving(options=options, Call=uu(lambda request, context: context.peer().encode())) as (server, channel):
        peers = set()
        end = time.monotonic() + LONG
        while len(peers) < 3 and time.monotonic() < end:
            peers.add(unary(channel)(b"", timeout=LONG))
            time.sleep(0.01)
        assert len(peers) == 3
        until(lambda: server.stats()["connections"] <= 2)


def test_idle_connections_are_closed():
    with serving(options=[("grpc.max_connection_idle_ms", 100)], Call=uu(lambda r, c: r)) as (server, channel):
        assert unary(channel)(b"x", timeout=LONG) == b"x"
        until(lambda: server.stats()["connections"] == 0)
        assert unary(channel)(b"y", timeout=LONG) == b"y"


def test_a_client_that_says_nothing_is_dropped():
    with serving(options=[("grpc.server_handshake_timeout_ms", 200)], Call=uu(lambda r, c: r)) as (_, channel):
        host, port = channel._channel.target().decode().rpartition("/")[2].split(":")
        with socket.create_connection((host, int(port)), timeout=LONG) as sock:
            while sock.recv(1000):  # the server's settings, then the end
                pass


def test_garbage_is_answered_by_closing():
    with serving(Call=uu(lambda r, c: r)) as (_, channel):
        host, port = channel._channel.target().decode().rpartition("/")[2].split(":")
        for garbage in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            os.urandom(500),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        ):
            with socket.create_connection((host, int(port)), timeout=LONG) as sock:
                sock.sendall(garbage)
                with contextlib.suppress(ConnectionResetError):
                    while sock.recv(1000):
                        pass
        assert unary(channel)(b"x", timeout=LONG) == b"x"


# -- what it tells about itself ----------------------------------------------------------------------------------------


class Passing(grpc.ServerInterceptor):
    def intercept_service(self, continuation, details):
        return continuation(details)


def test_metrics_of_all_servers_are_well_formed():
    """prometheus_client reads them; the figures of several servers are added up; a strange path is escaped."""
    parser = pytest.importorskip("prometheus_client.parser")
    strange = 'a"b\\c'
    gc.collect()

    def handled(text):
        families = {f.name: f for f in parser.text_string_to_metric_families(text)}
        assert families["gmp_goroutines"].samples[0].value >= 1
        assert families["gmp_switches"].type == "counter"
        assert families["gmp_grpc_seconds"].type == "histogram"
        found = {s.labels["method"]: s.value for s in families["gmp_grpc_handled"].samples if s.labels["code"] == "OK"}
        for s in families["gmp_grpc_seconds"].samples:
            if s.name.endswith("_count") and s.labels["method"] in found:
                assert s.value >= found[s.labels["method"]]
        return found

    calls = {"Call": uu(lambda r, c: r), strange: uu(lambda r, c: r)}
    with serving(**calls) as (_, one), serving(**calls) as (_, other):
        for channel in (one, other, other):
            unary(channel)(b"x", timeout=LONG)
            unary(channel, strange)(b"x", timeout=LONG)
        until(lambda: handled(gmp.runtime.metrics()).get(path(strange), 0) == 3)
        assert handled(gmp.runtime.metrics())[path()] >= 3


@pytest.mark.parametrize("interceptors", [(), (Passing(),)], ids=["plain", "intercepted"])
def test_stats_connections_access_log_and_metrics(interceptors, monkeypatch):
    log, reported = [], []

    def handler(request, context):
        if request == b"abort":
            context.abort(NOT_FOUND, "")
        gmp.sleep(0.01)
        return request

    def endless(request, context):
        while context.is_active():
            yield b"x"
            gmp.sleep(0.001)

    with serving(Call=uu(handler), Endless=us(endless), interceptors=interceptors) as (server, channel):
        server.access_log(lambda *record: log.append(record))
        for _ in range(3):
            unary(channel)(b"x", timeout=LONG)
        failure(unary(channel), b"abort")
        failure(unary(channel, "Other"), b"")
        replies = channel.unary_stream(path("Endless"))(b"", timeout=LONG)
        assert next(replies) == b"x"
        replies.cancel()
        until(
            lambda: path("Endless") in server.stats()["methods"] and server.stats()["methods"][path("Endless")]["codes"]
        )
        until(lambda: len(log) == 6)
        until(lambda: server.connections()[0]["streams"] == 0)
        stats = server.stats()
        methods = stats["methods"]
        assert methods[path()]["codes"] == {"OK": 3, "NOT_FOUND": 1}
        assert sum(methods[path()]["latencies"].values()) == 4
        assert methods[path()]["seconds"] >= 0.03
        assert methods[path("Endless")]["codes"] == {"CANCELLED": 1}
        assert methods[""]["codes"] == {"UNIMPLEMENTED": 1}
        assert stats["calls"] == 6
        [connection] = server.connections()
        assert connection["remote"].startswith("ipv4:127.0.0.1:")
        assert connection["streams"] == 0
        metrics = server.metrics()
        assert f'gmp_grpc_handled_total{{method="{path()}",code="OK"}} 3\n' in metrics
        assert f'gmp_grpc_seconds_bucket{{method="{path()}",le="+Inf"}} 4\n' in metrics
        everything = gmp.runtime.metrics()
        assert f'gmp_grpc_handled_total{{method="{path()}",code="OK"}} ' in everything
        assert "\ngmp_goroutines " in everything
        assert len(log) == 6
        assert {(record[0], record[2]) for record in log} >= {
            (path(), grpc.StatusCode.OK),
            (path(), NOT_FOUND),
            (path("Other"), grpc.StatusCode.UNIMPLEMENTED),
        }
        assert all(record[1].startswith("ipv4:") and record[3] > 0 for record in log)
        monkeypatch.setattr(sys, "unraisablehook", lambda report: reported.append(report.exc_type))
        server.access_log(lambda *record: 1 / 0)
        assert unary(channel)(b"x", timeout=LONG) == b"x"  # a log that raises is reported, no more
        until(lambda: reported)
        server.access_log(None)
        assert reported == [ZeroDivisionError]


COUNTS = ("streams", "streams_started", "streams_succeeded", "streams_failed", "messages_received", "messages_sent")


def test_an_access_log_that_parks_delays_nobody():
    go_on, told = gmp.Chan(), gmp.Chan(100)

    def log(path, peer, code, seconds):
        go_on.recv_ok()
        told.send((path, code))

    def busy(request, context):
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            sum(range(1000))
        return b""

    with serving(Call=uu(lambda request, context: request), Busy=uu(busy)) as (server, channel):
        assert unary(channel)(b"x", timeout=LONG) == b"x"  # so the server knows the method
        assert unary(channel, "Busy")(b"x", timeout=LONG) == b""
        server.access_log(log)
        assert unary(channel)(b"y", timeout=LONG) == b"y"  # the answer is there before the log has had its say
        code = f"""if True:
            import grpc
            with grpc.insecure_channel("{server.connections()[0]["local"].removeprefix("ipv4:")}") as channel:
                busy = channel.unary_unary("{path("Busy")}").future(b"", timeout={LONG})
                calls = [channel.unary_unary("{path()}").future(b"", timeout=0.1) for _ in range(20)]
                assert busy.result() == b""
                assert all(call.exception() is None or call.code() is grpc.StatusCode.DEADLINE_EXCEEDED for call in calls)
        """  # calls that end before anybody has seen them: those are the dispatcher's
        subprocess.run([sys.executable, "-c", code], check=True, timeout=LONG)
        assert unary(channel)(b"z", timeout=LONG) == b"z"
        go_on.close()
        lines = [told.recv(timeout=LONG) for _ in range(23)]
        assert (path("Busy"), grpc.StatusCode.OK) in lines
        with pytest.raises(TypeError, match="a callable or None"):
            server.access_log(5)


def test_connections_count_known_traffic(certificate):
    go_on = gmp.Chan()

    def some(request, context):
        for _ in range(5):
            yield request

    def upload(requests, context):
        return b"%d" % sum(1 for _ in requests)

    def abort(request, context):
        context.abort(NOT_FOUND, "")

    def park(request, context):
        gmp.select(gmp.recv(go_on), timeout=LONG)
        return request

    pem = certificate.read_bytes()
    echo = uu(lambda request, context: request)
    handlers = {"Call": echo, "Some": us(some), "Upload": su(upload), "Abort": uu(abort), "Park": uu(park)}
    server = gmp.grpc.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    plain_port = server.add_insecure_port("127.0.0.1:0")
    secure_port = server.add_secure_port("127.0.0.1:0", gmp.grpc.ssl_server_credentials([(pem, pem)]))
    assert server.connections() == []
    assert server.channelz() == (
        "server new: 0 calls running, 0 succeeded, 0 failed; 0 connections accepted, 0 open; abuse: none\n"
    )
    server.start()
    options = [("grpc.use_local_subchannel_pool", 1)]
    plain = grpc.insecure_channel(f"127.0.0.1:{plain_port}", options)
    secure = grpc.secure_channel(f"localhost:{secure_port}", grpc.ssl_channel_credentials(pem), options)
    with plain, secure:

        def of(port):
            return next(c for c in server.connections() if c["local"] == f"ipv4:127.0.0.1:{port}")

        def counts():
            return tuple(of(plain_port)[name] for name in COUNTS)

        assert unary(plain)(b"x" * 100_000, timeout=LONG) == b"x" * 100_000
        before = of(plain_port)
        assert 100_000 < before["bytes_received"] < 110_000
        assert 100_000 < before["bytes_sent"] < 110_000
        for _ in range(2):
            unary(plain)(b"x", timeout=LONG)
        assert len(list(plain.unary_stream(path("Some"))(b"x", timeout=LONG))) == 5
        assert plain.stream_unary(path("Upload"))(iter([b"x"] * 7), timeout=LONG) == b"7"
        assert failure(unary(plain, "Abort"), b"x") == (NOT_FOUND, "")
        until(lambda: counts() == (0, 6, 6, 0, 3 + 1 + 7 + 1, 3 + 5 + 1))
        parked = unary(plain, "Park").future(b"x", timeout=LONG)
        until(lambda: counts() == (1, 7, 6, 0, 13, 9))
        parked.cancel()
        until(lambda: counts() == (0, 7, 6, 1, 13, 9))
        go_on.close()
        connection = of(plain_port)
        assert connection["security"] is None
        assert connection["keep_alives_sent"] == 0
        assert re.fullmatch(r"ipv4:127\.0\.0\.1:\d+", connection["remote"])
        assert 0 <= connection["idle"] <= connection["last_call"] <= connection["age"]

        assert unary(secure)(b"x", timeout=LONG) == b"x"
        connection = of(secure_port)
        cipher = connection["security"]["cipher"]
        assert connection["security"]["version"] == "TLSv1.3"
        assert cipher.startswith("TLS_")
        assert [connection[name] for name in ("streams_started", "messages_received", "messages_sent")] == [1, 1, 1]
        with socket.create_connection(("127.0.0.1", secure_port)) as silent:
            until(lambda: len(server.connections()) == 3)
            remote = f"ipv4:127.0.0.1:{silent.getsockname()[1]}"
            [connection] = [c for c in server.connections() if c["remote"] == remote]
            assert connection["security"] == {"version": "", "cipher": ""}
            assert connection["last_call"] is None
            assert connection["bytes_received"] == 0 == connection["streams_started"]
            until(lambda: sum(sum(m["codes"].values()) for m in server.stats()["methods"].values()) == 8)
            until(lambda: server.stats()["running"] == 0)
            first, *lines = server.channelz().splitlines()
            assert first == (
                "server started: 0 calls running, 6 succeeded, 2 failed; 3 connections accepted, 3 open; abuse: none"
            )
            securities = [line.split(", ")[1].split(":")[0] for line in lines]
            assert securities == ["no TLS", f"TLSv1.3 {cipher}", "TLS handshake"]
            assert "; streams 0 open, 7 started, 6 succeeded, 1 failed; messages 13 in, 9 out; bytes " in lines[0]
            assert ", last call none; " in lines[2]
    until(lambda: server.connections() == [])
    assert server.stop(None).wait(LONG)
    assert server.channelz().startswith("server stopped: ")


def test_keepalives_are_counted():
    options = [("grpc.keepalive_time_ms", 100), ("grpc.keepalive_permit_without_calls", 1)]
    with serving(Call=uu(lambda request, context: request), options=options) as (server, channel):
        unary(channel)(b"x", timeout=LONG)
        until(lambda: server.connections()[0]["keep_alives_sent"] >= 2)


def test_names_of_unix_sockets_may_be_anything(tmp_path):
    """A client's own socket may have a name that is no text, or more than one line."""
    with serving(Call=uu(lambda request, context: request), address=f"unix:{tmp_path}/server") as (server, channel):
        unary(channel)(b"x", timeout=LONG)
        with socket.socket(socket.AF_UNIX) as odd:
            odd.bind(os.fsencode(tmp_path) + b"/\xff a\nb%c")
            odd.connect(f"{tmp_path}/server")
            until(lambda: len(server.connections()) == 2)
            connections = server.connections()
            assert {c["remote"] for c in connections} == {"unix:", f"unix:{tmp_path}/%FF%20a%0Ab%25c"}
            assert {c["local"] for c in connections} == {f"unix:{tmp_path}/server"}
            assert len(server.channelz().splitlines()) == 3


def test_no_deadlock_is_reported_while_serving(child):
    child(
        """
        import grpc, gmp, gmp.grpc
        server = gmp.grpc.server()
        server.add_insecure_port("127.0.0.1:0")
        server.start()
        assert server.wait_for_termination(0.5)
        try:
            gmp.Chan().recv(timeout=1.5)
        except TimeoutError:
            print("served")
        server.stop(None)
        """
    ).expect(0, "served")


def test_fork_while_serving(child):
    child(
        """
        import os, grpc, gmp, gmp.grpc
        server = gmp.grpc.server()
        server.add_insecure_port("127.0.0.1:0")
        server.start()
        gmp.sleep(0.05)
        pid = os.fork()
        def greet(server):
            handler = grpc.unary_unary_rpc_method_handler(lambda request, context: request + b"!")
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("S", {"M": handler}),))
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                assert channel.unary_unary("/S/M")(b"x", timeout=10) == b"x!"
            assert server.stop(None).wait(10)

        if pid == 0:
            try:
                server.stop(None)
            except RuntimeError as error:
                print(error, flush=True)
            del server
            greet(gmp.grpc.server())
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        assert server.stop(None).wait(10)
        greet(gmp.grpc.server())
        """
    ).expect(0, "the server is the parent process's: make one in the child\n7")


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
            until(lambda: server.stats()["running"] == 300, timeout=50)
            # grpcio starts a call in C, without the GIL: a goroutine keeps its thread for that moment.  Not for the wait.
            until(lambda: gmp.runtime.stats()["threads"] - gmp.runtime.stats()["idle_threads"] < 100, timeout=50)
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
