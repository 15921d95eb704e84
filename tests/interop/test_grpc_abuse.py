"""gmp.grpc.server under clients that mean harm, or are broken: it goes on serving others, in bounded memory, and says what it did.

Each test abuses a running server over loopback sockets, frame by frame, while an ordinary grpcio client keeps calling it.  At the end no
connection, stream, handler, goroutine or descriptor is left of the abuse, and where a connection was closed for it the log has one line.
"""

from __future__ import annotations

import contextlib
import gc
import gzip
import itertools
import os
import re
import resource
import socket
import ssl
import struct
import threading
import time
from pathlib import Path

import pytest

import gmp

grpc = pytest.importorskip("grpc")
hpack = pytest.importorskip("hpack")
hyperframe = pytest.importorskip("hyperframe.frame")
h2_connection = pytest.importorskip("h2.connection")
h2_events = pytest.importorskip("h2.events")

import gmp.grpc  # noqa: E402

if not gmp.grpc.is_native:
    pytest.skip("built without libnghttp2", allow_module_level=True)

LONG = 30.0
MB = 1 << 20
SLOW = bool(os.environ.get("GMP_SANITIZE"))

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 1, 1, 4, 8, 32
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, _, STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM = (
    range(8)
)
CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 8, 9, 11
INITIAL_WINDOW_SIZE = 4

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
REQUEST = ((":method", "POST"), (":scheme", "http"), (":path", "/test.Abuse/Call"), (":authority", "x"))
GRPC = (*REQUEST, ("content-type", "application/grpc"), ("te", "trailers"))


def until(condition, timeout=LONG, what=""):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"waited too long {what}"
        time.sleep(0.005)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def open_sockets():
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return count


# -- a client that sends what it likes ---------------------------------------------------------------------------------


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def message(data, compressed=0, size=None):
    return struct.pack(">BI", compressed, len(data) if size is None else size) + data


def headers_of(path, *extra):
    return (*GRPC[:2], (":path", path), *GRPC[3:], *extra)


class Wire:
    """A connection of our own."""

    def __init__(self, port, greet=True, settings=b"", receive_buffer=None):
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(LONG)
        try:
            self.sock.connect(("127.0.0.1", port))
        except OSError:
            self.sock.close()
            raise
        self.peer = f"ipv4:127.0.0.1:{self.sock.getsockname()[1]}"
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.buffer = b""
        self.ended = False
        if greet:
            self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, data):
        """Send, as far as the server lets us: it may have closed already."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(data)

    def try_send(self, data, patience):
        """Send for so many seconds at most.  False: not all of it went out."""
        self.sock.settimeout(patience)
        try:
            self.sock.sendall(data)
        except TimeoutError:
            return False
        except OSError:
            pass
        finally:
            self.sock.settimeout(LONG)
        return True

    def headers(self, stream, headers=GRPC, flags=END_HEADERS):
        return frame(HEADERS, flags, stream, self.encoder.encode(headers))

    def call(self, stream, path="/test.Abuse/Call", body=bytes(5), extra=()):
        return self.headers(stream, headers_of(path, *extra)) + frame(DATA, END_STREAM, stream, body)

    def frames(self, answer_pings=True):
        """What comes, until the server ends the connection."""
        while True:
            while len(self.buffer) < 9 or len(self.buffer) < 9 + int.from_bytes(self.buffer[:3], "big"):
                try:
                    data = self.sock.recv(65536)
                except ConnectionResetError:
                    data = b""
                if not data:
                    self.ended = True
                    return
                self.buffer += data
            found, length = hyperframe.Frame.parse_frame_header(memoryview(self.buffer[:9]))
            found.parse_body(memoryview(self.buffer[9 : 9 + length]))
            self.buffer = self.buffer[9 + length :]
            if answer_pings and isinstance(found, hyperframe.PingFrame) and "ACK" not in found.flags:
                self.send(frame(PING, ACK, 0, found.opaque_data))
            yield found

    def goaway(self):
        """The error of the GOAWAY that the connection ends with, or None."""
        error = None
        for found in self.frames():
            if isinstance(found, hyperframe.GoAwayFrame):
                error = found.error_code
        return error

    def answers(self, *streams):
        """How these calls end: by stream a dictionary of all headers, or the error it was reset with."""
        ends, headers = {}, {stream: {} for stream in streams}
        for found in self.frames():
            if isinstance(found, hyperframe.HeadersFrame):
                decoded = dict(self.decoder.decode(found.data))
                headers.setdefault(found.stream_id, {}).update(decoded)
                if "END_STREAM" in found.flags:
                    ends.setdefault(found.stream_id, headers[found.stream_id])
            elif isinstance(found, hyperframe.RstStreamFrame):
                ends.setdefault(found.stream_id, found.error_code)
            elif isinstance(found, hyperframe.GoAwayFrame) and found.error_code:
                raise AssertionError(f"GOAWAY {found.error_code} {found.additional_data!r}")
            if ends.keys() >= set(streams):
                return [ends[stream] for stream in streams]
        raise AssertionError(f"the connection has ended; answered so far: {ends}")

    def answer(self, stream=1):
        return self.answers(stream)[0]

    def status(self, stream=1):
        return int(self.answer(stream)["grpc-status"])


# -- the server, and who else uses it ----------------------------------------------------------------------------------


class Bystander:
    """A well-behaved client in a thread: calls all the time."""

    def __init__(self, channel):
        self.method = channel.unary_unary("/test.Abuse/Call")
        self.calls = 0
        self.failure = None
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        while not self.stop.is_set():
            try:
                assert self.method(b"%d" % self.calls, timeout=LONG) == b"%d" % self.calls
            except BaseException as error:
                self.failure = error
                return
            self.calls += 1
            self.stop.wait(0.005)

    def goes_on(self):
        """It gets answers now."""
        seen = self.calls
        until(lambda: self.calls >= seen + 3 or self.failure, what="for the other client's calls")
        if self.failure:
            raise self.failure


class Attacked:
    def __init__(self, server, port, channel, log):
        self.server, self.port, self.channel, self.log = server, port, channel, log
        self.bystander = Bystander(channel)
        self.most_resident = 0

    def wire(self, **kwargs):
        return Wire(self.port, **kwargs)

    def lines(self):
        return [record.getMessage() for record in self.log.records if record.name == "gmp.grpc"]

    def says(self, pattern, peer=None):
        """The log has one line, and it is this."""
        until(lambda: self.lines(), what="for the log")
        (line,) = self.lines()
        assert re.search(pattern, line), line
        if peer is not None:
            assert f" {peer}: " in line

    def stat(self, name):
        return self.server.stats()[name]


@pytest.fixture
def attacked(caplog):
    """attacked(options, memory, **handlers): a server under attack, as a context manager."""

    @contextlib.contextmanager
    def start(options=(), memory=100 * MB, quiet=False, **handlers):
        handlers.setdefault("Call", grpc.unary_unary_rpc_method_handler(lambda request, context: request))
        server = gmp.grpc.server(options=options)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Abuse", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                it = Attacked(server, port, channel, caplog)
                it.bystander.thread.start()
                try:
                    it.bystander.goes_on()
                    gc.collect()
                    sockets, goroutines, before = open_sockets(), gmp.runtime.num_goroutine(), resident()
                    yield it
                    until(lambda: it.stat("connections") == 1, what="for connections to go")
                    it.bystander.goes_on()
                    until(lambda: open_sockets() <= sockets, what="for descriptors to be closed")
                finally:
                    it.bystander.stop.set()
                    it.bystander.thread.join(LONG)
                until(lambda: it.stat("streams") == 0 and it.stat("running") == 0, what="for calls to end")
                until(lambda: gmp.runtime.num_goroutine() <= goroutines, what="for goroutines to end")
                if not SLOW:
                    assert max(resident(), it.most_resident) - before < memory
                if quiet:
                    assert it.lines() == []
        finally:
            assert server.stop(None).wait(LONG)

    return start


def streams(n):
    return range(1, 2 * n, 2)


# -- resets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", [False, True])
def test_rapid_reset(attacked, slow):
    started = []

    def handler(request, context):
        started.append(1)
        if slow:
            gmp.sleep(0.3)
        return request

    with attacked(Slow=grpc.unary_unary_rpc_method_handler(handler)) as it:
        with it.wire() as wire:
            for i in range(10):
                batch = (
                    wire.call(s, "/test.Abuse/Slow") + frame(RST_STREAM, 0, s, b"\0\0\0\x08")
                    for s in streams(5000)[i * 500 : i * 500 + 500]
                )
                wire.send(b"".join(batch))
                it.bystander.goes_on()
            assert wire.goaway() == ENHANCE_YOUR_CALM
            it.says(r"closed .*: \d+ streams reset in \d+\.\d s \(rapid reset\)$", wire.peer)
        assert it.stat("abuse") == {"rapid reset": 1}
        assert len(started) <= 2000


def test_rapid_reset_over_tls(caplog, certificate):
    pem = certificate.read_bytes()
    server = gmp.grpc.server()
    port = server.add_secure_port("127.0.0.1:0", gmp.grpc.ssl_server_credentials([(pem, pem)]))
    server.start()
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols(["h2"])
    with Wire(port) as wire:
        pass  # an abuser that speaks no TLS
    with Wire(port, greet=False) as wire:
        peer = wire.peer
        wire.sock = context.wrap_socket(wire.sock, server_hostname="localhost")
        wire.send(PREFACE + frame(SETTINGS, 0, 0))
        for i in range(10):
            batch = (
                wire.call(s) + frame(RST_STREAM, 0, s, b"\0\0\0\x08")
                for s in itertools.islice(streams(5000), i * 500, i * 500 + 500)
            )
            wire.send(b"".join(batch))
        assert wire.goaway() == ENHANCE_YOUR_CALM
    until(lambda: any(f"closed {peer}: " in r.getMessage() and "rapid reset" in r.getMessage() for r in caplog.records))
    until(lambda: server.stats()["connections"] == 0)
    assert server.stop(None).wait(LONG)


def test_resets_that_the_server_is_made_to_send(attacked):
    with attacked() as it:
        with it.wire() as wire:
            overflow = struct.pack(">I", 2**31 - 1)
            for i in range(6):
                wire.send(
                    b"".join(
                        wire.headers(s) + frame(WINDOW_UPDATE, 0, s, overflow)
                        for s in streams(3000)[i * 500 : i * 500 + 500]
                    )
                )
            assert wire.goaway() == ENHANCE_YOUR_CALM
            it.says("rapid reset", wire.peer)


def test_cancelling_many_calls_is_no_abuse(attacked):
    """A client that goes away cancels all that it has under way; one that is late cancels what is due."""
    go_on = gmp.Chan()

    def park(request, context):
        gmp.select(gmp.recv(go_on), timeout=LONG)
        return request

    with attacked(quiet=True, Park=grpc.unary_unary_rpc_method_handler(park)) as it:
        with it.wire() as wire:
            wire.send(b"".join(wire.call(s, "/test.Abuse/Park") for s in streams(3000)))
            until(lambda: it.stat("running") >= 3000)
            time.sleep(1.1)
            wire.send(b"".join(frame(RST_STREAM, 0, s, b"\0\0\0\x08") for s in streams(3000)))
            wire.send(wire.call(9001))
            assert wire.status(9001) == 0
            go_on.close()


def test_handlers_of_cancelled_calls_count(attacked):
    """Calls that were cancelled and still run are as many as max_concurrent_streams at most."""
    go_on = gmp.Chan()

    def park(request, context):
        gmp.select(gmp.recv(go_on), timeout=LONG)
        return request

    options = [("grpc.max_concurrent_streams", 10)]
    with attacked(options, Park=grpc.unary_unary_rpc_method_handler(park)) as it:
        with it.wire() as wire:
            for s in streams(10):
                wire.send(wire.call(s, "/test.Abuse/Park"))
                until(lambda s=s: it.stat("running") >= (s + 1) // 2)
                wire.send(frame(RST_STREAM, 0, s, b"\0\0\0\x08"))
            wire.send(wire.call(101))
            assert wire.answer(101) == REFUSED_STREAM
            it.says(r"refused calls of .*: 10 cancelled calls are still running", wire.peer)
            go_on.close()
            until(lambda: it.stat("running") <= 1)
            stream = itertools.count(103, 2)

            def served():
                s = next(stream)
                wire.send(wire.call(s))
                return wire.answer(s) != REFUSED_STREAM

            until(served)


def test_calls_beyond_the_limit_of_streams(attacked):
    with attacked([("grpc.max_concurrent_streams", 10)], quiet=True) as it:
        with it.wire() as wire:
            wire.send(b"".join(wire.headers(s) for s in streams(20)))
            assert wire.answers(*range(21, 41, 2)) == [REFUSED_STREAM] * 10
            wire.send(b"".join(frame(DATA, END_STREAM, s, message(b"")) for s in streams(10)))
            assert [a["grpc-status"] for a in wire.answers(*streams(10))] == ["0"] * 10


# -- floods ------------------------------------------------------------------------------------------------------------

FLOODS = {
    "settings": frame(SETTINGS, 0, 0),
    "ping": frame(PING, 0, 0, bytes(8)),
    "ping_ack": frame(PING, ACK, 0, bytes(8)),
    "priority": frame(PRIORITY, 0, 5, struct.pack(">IB", 0, 9)),
    "window_update": frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)),
    "window_update_of_a_stream": frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 1)),
    "empty_data": frame(DATA, 0, 1),
    "padding": frame(DATA, PADDED, 1, b"\x04" + bytes(4)),
    "headers_of_a_closed_stream": frame(HEADERS, END_HEADERS, 1, hpack.Encoder().encode((("x", "y"),))),
    "reset_of_a_closed_stream": frame(RST_STREAM, 0, 1, b"\0\0\0\x08"),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_flood(attacked, kind):
    """30,000 frames that ask for nothing."""
    with attacked([("grpc.http2.max_ping_strikes", 0)]) as it:
        with it.wire() as wire:
            if "closed_stream" in kind:
                wire.send(wire.call(1))
                assert wire.status() == 0
            else:
                wire.send(wire.headers(1))
            for _ in range(30):
                wire.send(FLOODS[kind] * 1000)
            assert wire.goaway() == ENHANCE_YOUR_CALM
            it.says(r"closed .*\(frame flood\)$", wire.peer)
        assert it.stat("abuse") == {"frame flood": 1}


def test_pings_are_struck(attacked):
    with attacked() as it:
        with it.wire() as wire:
            wire.send(FLOODS["ping"] * 10)
            assert wire.goaway() == ENHANCE_YOUR_CALM
            it.says(r"pings less than .* s apart, and no data \(too many pings\)$", wire.peer)


def test_unknown_frames_are_ignored(attacked):
    with attacked(quiet=True) as it:
        with it.wire() as wire:
            for _ in range(20):
                wire.send(frame(0x77, 0xFF, 0, bytes(100)) * 1000)
            wire.send(wire.call(1))
            assert wire.status() == 0


def test_what_reading_costs_is_earned(attacked):
    """A client that gives windows back, frame by frame, for what it reads is no flood."""

    def numbers(request, context):
        for _ in range(20_000):
            yield b"x"

    with attacked(quiet=True, Numbers=grpc.unary_stream_rpc_method_handler(numbers)) as it:
        with it.wire() as wire:
            wire.send(wire.call(1, "/test.Abuse/Numbers"))
            total = 0
            for found in wire.frames():
                if isinstance(found, hyperframe.DataFrame):
                    total += found.data.count(b"x")
                    update = struct.pack(">I", max(found.flow_controlled_length, 1))
                    updates = frame(WINDOW_UPDATE, 0, 0, update) + frame(WINDOW_UPDATE, 0, 1, update)
                    wire.send(updates)
                if getattr(found, "stream_id", 0) == 1 and "END_STREAM" in found.flags:
                    break
            assert total == 20_000


@pytest.mark.parametrize("size", [0, 10, 16000])
def test_continuation_flood(attacked, size):
    with attacked() as it:
        with it.wire() as wire:
            wire.send(frame(HEADERS, 0, 1, wire.encoder.encode(GRPC)))
            literal = (
                b"\x00\x01x" + b"\x7f" + bytes((0xFF & (size - 127 & 0x7F) | 0x80, max(size - 127, 0) >> 7))
                if size > 200
                else b""
            )
            part = literal + b"v" * (size if literal else 0) or b"\x10\x01x\x01v" * (size // 5)
            for _ in range(100):
                wire.send(frame(CONTINUATION, 0, 1, part) * 50)
            assert wire.goaway() in (ENHANCE_YOUR_CALM, PROTOCOL_ERROR, COMPRESSION_ERROR)
            it.says(r"\((header flood|protocol error)\)$", wire.peer)


# -- headers -----------------------------------------------------------------------------------------------------------


def blocks(wire, stream, headers, flags=0):
    """HEADERS and CONTINUATIONs."""
    data = wire.encoder.encode(headers)
    parts = [data[i : i + 16384] for i in range(0, len(data), 16384)]
    out = [frame(HEADERS, flags | (END_HEADERS if len(parts) == 1 else 0), stream, parts[0])]
    for i, part in enumerate(parts[1:], 2):
        out.append(frame(CONTINUATION, END_HEADERS if i == len(parts) else 0, stream, part))
    return b"".join(out)


@pytest.mark.parametrize(
    "extra", [[(f"k{i}", "v") for i in range(3000)], [("big", "v" * 40_000)]], ids=["many", "large"]
)
def test_metadata_beyond_the_limit_ends_the_call_only(attacked, extra):
    with attacked(quiet=True) as it:
        with it.wire() as wire:
            wire.send(blocks(wire, 1, (*GRPC, *extra)) + wire.call(3))
            first, second = wire.answers(1, 3)
            assert first["grpc-status"] == "8"
            assert second["grpc-status"] == "0"


def test_hpack_bomb(attacked):
    """One entry of 4 KB, named by a byte each 15,000 times."""
    with attacked() as it:
        with it.wire() as wire:
            entry = b"\x40\x01x\x7f" + bytes((0x80 | (3900 - 127) & 0x7F, (3900 - 127) >> 7)) + b"v" * 3900
            head = wire.encoder.encode(GRPC)
            wire.send(frame(HEADERS, 0, 1, head + entry) + frame(CONTINUATION, END_HEADERS, 1, b"\xbe" * 15_000))
            assert wire.goaway() in (ENHANCE_YOUR_CALM, PROTOCOL_ERROR, COMPRESSION_ERROR)
            it.says(r"\((header flood|protocol error)\)$", wire.peer)


def test_many_bombs(attacked):
    """Each within what ends a call only."""
    with attacked(memory=150 * MB) as it:
        with it.wire() as wire:
            big = tuple((f"k{i}", "v" * 1000) for i in range(40))
            for s in streams(300):
                wire.send(blocks(wire, s, (*GRPC, *big)))
            assert {a["grpc-status"] for a in wire.answers(*streams(300))} == {"8"}


def test_a_header_of_more_than_64_kb(attacked):
    """More than nghttp2 takes: the connection ends."""
    with attacked() as it:
        with it.wire() as wire:
            wire.send(blocks(wire, 1, (*GRPC, ("x", "\x00" * 70_000))))
            assert wire.goaway() in (COMPRESSION_ERROR, ENHANCE_YOUR_CALM)
            it.says("COMPRESSION_ERROR|header", wire.peer)


BAD_REQUESTS = {
    "no_method": [h for h in GRPC if h[0] != ":method"],
    "no_path": [h for h in GRPC if h[0] != ":path"],
    "no_scheme": [h for h in GRPC if h[0] != ":scheme"],
    "empty_path": headers_of(""),
    "two_paths": (*GRPC[:3], (":path", "/other"), *GRPC[3:]),
    "unknown_pseudo": ((":strange", "x"), *GRPC),
    "pseudo_at_the_end": (*GRPC, (":path", "/x")),
    "a_response": ((":status", "200"), *GRPC[4:]),
    "upper_case": (*GRPC, ("Upper", "x")),
    "connection": (*GRPC, ("connection", "close")),
    "te": (*REQUEST, ("content-type", "application/grpc"), ("te", "gzip")),
    "a_line_break": (*GRPC, ("x", "a\r\nb: c")),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_malformed_request_is_reset(attacked, name):
    with attacked(quiet=True) as it:
        with it.wire() as wire:
            wire.send(wire.headers(1, BAD_REQUESTS[name]) + frame(DATA, END_STREAM, 1, message(b"")) + wire.call(3))
            first, second = wire.answers(1, 3)
            assert first == PROTOCOL_ERROR
            assert second["grpc-status"] == "0"


def test_malformed_requests_without_end(attacked):
    with attacked() as it:
        with it.wire() as wire:
            for i in range(30):
                wire.send(
                    b"".join(
                        wire.headers(s, BAD_REQUESTS["no_path"]) for s in streams(30_000)[i * 1000 : i * 1000 + 1000]
                    )
                )
            assert wire.goaway() == ENHANCE_YOUR_CALM
            it.says(r"\((frame flood|rapid reset)\)$", wire.peer)


def test_requests_that_are_not_grpc(attacked):
    with attacked(quiet=True) as it:
        with it.wire() as wire:
            wire.send(wire.headers(1, (*REQUEST, ("content-type", "text/html")), END_HEADERS | END_STREAM))
            wire.send(wire.headers(3, REQUEST, END_HEADERS | END_STREAM))
            wire.send(wire.headers(5, ((":method", "GET"), *GRPC[1:]), END_HEADERS | END_STREAM))
            wire.send(
                wire.headers(7, (*REQUEST, ("content-type", "application/grpcnonsense")), END_HEADERS | END_STREAM)
            )
            wire.send(
                wire.headers(9, (*REQUEST, ("content-type", "application/grpc+proto")))
                + frame(DATA, 1, 9, message(b""))
            )
            answers = wire.answers(1, 3, 5, 7, 9)
            assert [a[":status"] for a in answers] == ["415", "415", "405", "415", "200"]
            assert answers[4]["grpc-status"] == "0"


@pytest.mark.parametrize("value", ["", "1", "S", "-1S", "1.5S", "1s", "1 S", "\xff\xff", "0x1S", "9" * 5000 + "S"])
def test_a_timeout_that_is_none(attacked, value):
    with attacked(quiet=True) as it:
        with it.wire() as wire:
            wire.send(wire.call(1, extra=(("grpc-timeout", value.encode("latin-1")),)) + wire.call(3))
            assert [a["grpc-status"] for a in wire.answers(1, 3)] == ["13", "0"]


@pytest.mark.parametrize("value", ["99999999H", "999999999S"])
def test_a_timeout_of_ages(attacked, value):
    with attacked(quiet=True) as it:
        with it.wire() as wire:
            wire.send(wire.call(1, extra=(("grpc-timeout", value),)))
            assert wire.status() == 0


def test_unknown_encoding(attacked):
    with attacked(quiet=True) as it:
        with it.wire() as wire:
            wire.send(wire.call(1, extra=(("grpc-encoding", "zstd"),)))
            wire.send(wire.call(3, body=message(b"x", compressed=1)))
            wire.send(wire.call(5, body=message(b"x", compressed=7)))
            assert [int(a["grpc-status"]) for a in wire.answers(1, 3, 5)] == [12, 13, 13]


# -- messages ----------------------------------------------------------------------------------------------------------


def test_oversized_frame(attacked):
    with attacked() as it:
        with it.wire() as wire:
            wire.send(wire.headers(1) + frame(DATA, 0, 1, bytes(16385)))
            assert wire.goaway() == FRAME_SIZE_ERROR
            it.says(r"FRAME_SIZE_ERROR.*\(protocol error\)$", wire.peer)


def test_a_message_that_is_announced_larger_than_allowed(attacked):
    with attacked(quiet=True) as it:
        with it.wire() as wire:
            wire.send(wire.headers(1) + frame(DATA, 0, 1, message(b"x", size=2**32 - 1)))
            wire.send(wire.headers(3) + frame(DATA, 0, 3, message(b"x", size=4 * MB + 1)))
            assert [a["grpc-status"] for a in wire.answers(1, 3)] == ["8", "8"]


@pytest.mark.parametrize("limit", [4 * MB, -1])
def test_messages_that_are_announced_and_never_come(attacked, limit):
    """What a prefix says takes no memory."""
    with attacked([("grpc.max_receive_message_length", limit)], quiet=True) as it:
        with it.wire() as wire:
            body = message(b"x", size=4 * MB if limit >= 0 else 2**32 - 1)
            wire.send(b"".join(wire.headers(s) + frame(DATA, 0, s, body) for s in streams(3000)))
            until(lambda: it.stat("streams") >= 3000)
            it.most_resident = resident()
            it.bystander.goes_on()


def test_messages_that_nobody_completes_take_bounded_memory(attacked):
    with attacked([("gmp.max_buffered_bytes", 8 * MB)]) as it:
        with it.wire() as wire:
            part = [
                frame(DATA, 0, s, (message(b"", size=3 * MB) if i == 0 else b"") + bytes(16000))
                for s in streams(60)
                for i in range(14)
            ]
            for s in streams(60):
                wire.send(wire.headers(s))
            for data in part:
                wire.send(data)
            until(lambda: it.stat("abuse"))
            it.says(
                r"refused calls of .*: \d+ bytes of requests are waiting to be read \(buffered requests\)$", wire.peer
            )
            wire.send(b"".join(frame(RST_STREAM, 0, s, b"\0\0\0\x08") for s in streams(60)))
            wire.send(wire.call(1001))
            assert wire.status(1001) == 0


def test_a_message_cut_at_the_end(attacked):
    with attacked(quiet=True) as it:
        with it.wire() as wire:
            for s, body in ((1, b"\0"), (3, b"\0\0\0\0"), (5, message(b"abc", size=10)), (7, message(b"a") + b"\0\0")):
                wire.send(wire.call(s, body=body))
            statuses = [int(a["grpc-status"]) for a in wire.answers(1, 3, 5, 7)]
            assert statuses[:3] == [13, 13, 13]
            assert statuses[3] in (0, 13)


@pytest.mark.parametrize("path", ["Call", "Stream"])
def test_a_message_that_inflates(attacked, path):
    bomb = gzip.compress(bytes(300 * MB), 9) if not SLOW else gzip.compress(bytes(30 * MB), 9)
    started = []

    def handler(requests, context):
        for request in requests:
            started.append(request)
        return b""

    with attacked(quiet=True, Stream=grpc.stream_unary_rpc_method_handler(handler)) as it:
        with it.wire() as wire:
            wire.send(wire.headers(1, headers_of("/test.Abuse/" + path, ("grpc-encoding", "gzip"))))
            body = message(bomb, compressed=1)
            parts = [body[i : i + 16000] for i in range(0, len(body), 16000)]
            wire.send(frame(DATA, 0, 1, parts[0]))
            credit = iter(parts[1:-1])
            for part in credit:
                wire.send(frame(DATA, 0, 1, part))
            wire.send(frame(DATA, END_STREAM, 1, parts[-1]))
            assert wire.status() == 8
    assert started == []


def test_a_message_that_does_not_inflate(attacked):
    with attacked() as it:
        with it.wire() as wire:
            wire.send(wire.call(1, body=message(b"nonsense", compressed=1), extra=(("grpc-encoding", "gzip"),)))
            wire.send(
                wire.call(
                    3, body=message(gzip.compress(b"x" * 100)[:-12], compressed=1), extra=(("grpc-encoding", "gzip"),)
                )
            )
            assert [int(a["grpc-status"]) for a in wire.answers(1, 3)] == [13, 13]


# -- those that wait ---------------------------------------------------------------------------------------------------


def test_windows_that_never_open(attacked):
    """2,000 streams with a window of zero, and handlers that would send without end."""
    ended = []

    def flood(request, context):
        try:
            while True:
                yield bytes(10_000)
        finally:
            ended.append(1)

    with attacked(memory=200 * MB, quiet=True, Flood=grpc.unary_stream_rpc_method_handler(flood)) as it:
        with it.wire(settings=struct.pack(">HI", INITIAL_WINDOW_SIZE, 0)) as wire:
            for i in range(20):
                wire.send(b"".join(wire.call(s, "/test.Abuse/Flood") for s in streams(2000)[i * 100 : i * 100 + 100]))
            until(lambda: it.stat("running") >= 2000)
            it.bystander.goes_on()
            it.most_resident = resident()
        until(lambda: len(ended) == 2000)


def test_a_message_that_is_cut_short_was_not_sent(attacked):
    """connections() counts what went out whole: of two messages the window has room for one and a half."""

    def replies(request, context):
        yield bytes(40_000)
        yield bytes(40_000)

    with attacked(quiet=True, Replies=grpc.unary_stream_rpc_method_handler(replies)) as it:
        with it.wire() as wire:
            wire.send(wire.call(1, "/test.Abuse/Replies"))

            def counts():
                [mine] = [c for c in it.server.connections() if c["remote"] == wire.peer]
                return tuple(mine[name] for name in ("streams", "streams_succeeded", "streams_failed", "messages_sent"))

            received = 0
            for found in wire.frames():
                received += len(found.data) if isinstance(found, hyperframe.DataFrame) else 0
                if received == 65535:
                    break
            assert counts() == (1, 0, 0, 1)
            wire.send(frame(RST_STREAM, 0, 1, b"\0\0\0\x08"))
            until(lambda: counts() == (0, 0, 1, 1))


def test_silent_connections(attacked):
    with attacked([("grpc.server_handshake_timeout_ms", 300)]) as it:
        begin = time.monotonic()
        wires = [it.wire(greet=False) for _ in range(50)]
        assert all(wire.goaway() is None for wire in wires)
        assert it.stat("abuse") == {"handshake timeout": 50}
        until(it.lines)
        assert re.search(r"closed .*: no HTTP/2 settings within 0\.3 s \(handshake timeout\)$", it.lines()[0])
        assert len(it.lines()) <= 1 + time.monotonic() - begin
        for wire in wires:
            wire.sock.close()


def test_preface_byte_by_byte(attacked):
    with attacked([("grpc.server_handshake_timeout_ms", 500)]) as it:
        with it.wire(greet=False) as wire:
            for i in range(len(PREFACE)):
                wire.send(PREFACE[i : i + 1])
                time.sleep(0.05)
            assert wire.goaway() is None
            it.says("handshake timeout", wire.peer)


def test_a_slow_client_is_served(attacked):
    with attacked(quiet=True) as it:
        with it.wire(greet=False) as wire:
            everything = PREFACE + frame(SETTINGS, 0, 0) + wire.call(1)
            for i in range(len(everything)):
                wire.send(everything[i : i + 1])
                time.sleep(0.001)
            assert wire.status() == 0


def test_headers_that_never_end(attacked):
    with attacked([("gmp.header_timeout_ms", 300)]) as it:
        with it.wire() as wire:
            block = wire.encoder.encode(GRPC)
            wire.send(frame(HEADERS, 0, 1, block[:4]))
            assert wire.goaway() == ENHANCE_YOUR_CALM
            it.says(r"headers not complete within 0\.3 s \(header timeout\)$", wire.peer)


def test_a_body_that_never_ends(attacked):
    """Other calls on the same connection go on; its deadline ends it."""
    with attacked(quiet=True) as it:
        with it.wire() as wire:
            wire.send(wire.headers(1, headers_of("/test.Abuse/Call", ("grpc-timeout", "300m"))))
            wire.send(frame(DATA, 0, 1, b"\0\0\0\0\x09abc") + wire.call(3))
            answers = wire.answers(1, 3)
            assert [a["grpc-status"] for a in answers] == ["4", "0"]


def test_a_peer_that_has_vanished(attacked):
    """It does not answer pings, as one whose machine is gone."""
    options = [
        ("grpc.keepalive_time_ms", 200),
        ("grpc.keepalive_timeout_ms", 200),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    ended = threading.Event()

    def wait(request, context):
        context.add_callback(ended.set)
        while context.is_active():
            gmp.sleep(0.01)
        return b""

    with attacked(options, Wait=grpc.unary_unary_rpc_method_handler(wait)) as it:
        with it.wire() as wire:
            wire.send(wire.call(1, "/test.Abuse/Wait"))
            for _ in wire.frames(answer_pings=False):
                pass
            it.says(r"a ping was not answered within 0\.2 s \(keepalive timeout\)$", wire.peer)
            assert ended.wait(LONG)


def test_a_client_that_never_reads(attacked):
    with attacked(
        [("gmp.write_timeout_ms", 500)], Big=grpc.unary_unary_rpc_method_handler(lambda request, context: bytes(3 * MB))
    ) as it:
        with it.wire(settings=struct.pack(">HI", INITIAL_WINDOW_SIZE, 2**31 - 1), receive_buffer=4096) as wire:
            wire.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**30)))
            wire.send(b"".join(wire.call(s, "/test.Abuse/Big") for s in streams(10)))
            it.says(r"nothing could be written for 0\.5 s \(write timeout\)$", wire.peer)


@pytest.mark.parametrize("kind", ["pings", "settings", "answers", "resets"])
def test_answers_that_are_not_read_do_not_pile_up(attacked, kind):
    """The server stops reading from who does not read."""
    options = [
        ("gmp.write_timeout_ms", 2000),
        ("grpc.http2.max_ping_strikes", 0),
        ("gmp.max_useless_frames", 0),
        ("gmp.max_rapid_resets", 0),
    ]
    with attacked(options, memory=60 * MB) as it:
        with it.wire(receive_buffer=4096) as wire:
            stream = itertools.count(1, 2)

            def batch():
                if kind == "pings":
                    return FLOODS["ping"] * 1000
                if kind == "settings":
                    return FLOODS["settings"] * 1000
                headers = (*REQUEST, ("content-type", "text/html")) if kind == "answers" else BAD_REQUESTS["no_path"]
                return b"".join(wire.headers(next(stream), headers, END_HEADERS | END_STREAM) for _ in range(1000))

            end = time.monotonic() + LONG
            while it.stat("abuse") == {} and wire.try_send(batch(), 0.5) and time.monotonic() < end:
                pass
            it.most_resident = resident()
            until(lambda: it.stat("abuse"))
            it.says(r"\((frame flood|write timeout)\)$", wire.peer)


def test_thousands_of_idle_connections(attacked):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = 3000 if not SLOW else 300
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(2 * want + 500, hard)), hard))
    try:
        n = min(want, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 300) // 2)
        with attacked(memory=250 * MB, quiet=True) as it:
            wires = [it.wire() for _ in range(n)]
            until(lambda: it.stat("connections") == n + 1)
            it.bystander.goes_on()
            it.most_resident = resident()
            wires[-1].send(wires[-1].call(1))
            assert wires[-1].status() == 0
            for wire in wires:
                wire.sock.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- what is no HTTP/2 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1", b"POST /test.Abuse/Call HTTP/1.1", b"PRI / HTTP/1.1"])
def test_http_1(attacked, request_line):
    with attacked() as it:
        with it.wire(greet=False) as wire:
            wire.send(request_line + b"\r\nhost: x\r\n\r\n")
            answer = b"".join(iter(lambda: wire.sock.recv(4096), b""))
            head, _, body = answer.partition(b"\r\n\r\n")
            if not request_line.startswith(b"PRI"):
                assert head.startswith(b"HTTP/1.1 505 ")
                assert int(re.search(rb"content-length: (\d+)", head)[1]) == len(body)
                assert b"HTTP/2" in body
            it.says(r"\(not HTTP/2\)$", wire.peer)


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", bytes(100), b"\xff" * 30, PREFACE[:-1] + b"x"]
)
def test_garbage(attacked, garbage):
    with attacked() as it:
        with it.wire(greet=False) as wire:
            wire.send(garbage)
            assert wire.goaway() == PROTOCOL_ERROR
            it.says(r"\(not HTTP/2\)$", wire.peer)


def test_no_settings_after_the_preface(attacked):
    with attacked() as it:
        with it.wire(greet=False) as wire:
            wire.send(PREFACE + FLOODS["ping"])
            assert wire.goaway() == PROTOCOL_ERROR
            it.says(r"protocol error", wire.peer)


# -- frames out of place -----------------------------------------------------------------------------------------------

OUT_OF_PLACE = {
    "data_on_an_idle_stream": frame(DATA, 0, 9, b"x"),
    "data_on_stream_0": frame(DATA, 0, 0, b"x"),
    "headers_on_stream_0": frame(HEADERS, END_HEADERS, 0, b"\x83"),
    "headers_on_an_even_stream": frame(HEADERS, END_HEADERS, 2, b"\x83"),
    "rst_of_an_idle_stream": frame(RST_STREAM, 0, 9, bytes(4)),
    "window_of_an_idle_stream": frame(WINDOW_UPDATE, 0, 9, struct.pack(">I", 1)),
    "window_of_zero": frame(WINDOW_UPDATE, 0, 0, bytes(4)),
    "window_overflow": frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1)),
    "settings_on_a_stream": frame(SETTINGS, 0, 1),
    "settings_of_odd_size": frame(SETTINGS, 0, 0, b"abc"),
    "settings_ack_for_nothing": frame(SETTINGS, ACK, 0) * 3,
    "settings_ack_with_data": frame(SETTINGS, ACK, 0, bytes(6)),
    "settings_of_a_bad_value": frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 2**31)),
    "ping_of_odd_size": frame(PING, 0, 0, b"abc"),
    "ping_on_a_stream": frame(PING, 0, 1, bytes(8)),
    "push_promise": frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2) + b"\x83"),
    "continuation_alone": frame(CONTINUATION, END_HEADERS, 1, b"\x83"),
    "goaway_on_a_stream": frame(GOAWAY, 0, 1, bytes(8)),
    "padding_longer_than_the_frame": frame(DATA, PADDED, 1, b"\xff" + bytes(4)),
    "hpack_nonsense": frame(HEADERS, END_HEADERS, 3, b"\xff\xff\xff\xff\xff\xff"),
    "another_frame_within_headers": frame(HEADERS, 0, 3, b"\x83") + FLOODS["ping"],
    "priority_of_odd_size": frame(PRIORITY, 0, 3, b"abc"),
}


@pytest.mark.parametrize("name", OUT_OF_PLACE)
def test_frame_out_of_place(attacked, name):
    with attacked() as it:
        with it.wire() as wire:
            wire.send(wire.headers(1) + OUT_OF_PLACE[name])
            allowed = {PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, COMPRESSION_ERROR, STREAM_CLOSED}
            assert wire.goaway() in allowed
            it.says(r"closed .*_(ERROR|CLOSED)\b.*\(protocol error\)$", wire.peer)


@pytest.mark.parametrize("kind", ["priority", "headers"])
def test_a_stream_that_depends_on_itself(attacked, kind):
    """An error in RFC 7540, nothing in RFC 9113: the stream, or the connection, ends, or the call is served."""
    with attacked() as it:
        with it.wire() as wire:
            itself = struct.pack(">IB", 1, 9)
            if kind == "priority":
                wire.send(frame(PRIORITY, 0, 1, itself) + wire.call(1))
            else:
                head = frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, itself + wire.encoder.encode(GRPC))
                wire.send(head + frame(DATA, END_STREAM, 1, message(b"")))
            ends = None
            for found in wire.frames():
                if isinstance(found, hyperframe.GoAwayFrame | hyperframe.RstStreamFrame):
                    ends = found.error_code
                    break
                if isinstance(found, hyperframe.HeadersFrame) and "END_STREAM" in found.flags:
                    ends = NO_ERROR
                    break
            assert ends in (NO_ERROR, PROTOCOL_ERROR)


def test_frames_on_closed_streams(attacked):
    """Ignored, or the stream's or the connection's end: as the RFC has it, STREAM_CLOSED."""
    with attacked() as it:
        for late in (
            frame(DATA, 0, 1, b"x"),
            frame(DATA, END_STREAM, 1),
            FLOODS["window_update_of_a_stream"],
            frame(RST_STREAM, 0, 1, bytes(4)),
        ):
            with it.wire() as wire:
                wire.send(wire.call(1))
                assert wire.status() == 0
                wire.send(late + wire.call(3))
                for found in wire.frames():
                    if isinstance(found, hyperframe.GoAwayFrame):
                        assert found.error_code == STREAM_CLOSED
                        break
                    if found.stream_id == 3 and "END_STREAM" in found.flags:
                        break
                    if isinstance(found, hyperframe.RstStreamFrame):
                        assert found.error_code in (STREAM_CLOSED, NO_ERROR)
                else:
                    raise AssertionError("no answer")


def test_stream_numbers_that_go_back(attacked):
    """Those that were passed over are closed: nghttp2 ignores what comes for them."""
    with attacked(quiet=True) as it:
        with it.wire() as wire:
            wire.send(wire.call(5))
            assert wire.status(5) == 0
            wire.send(wire.call(3) + wire.call(7))
            for found in wire.frames():
                assert not isinstance(found, hyperframe.GoAwayFrame) or found.error_code in (
                    PROTOCOL_ERROR,
                    STREAM_CLOSED,
                )
                if found.stream_id == 7 and "END_STREAM" in found.flags:
                    break


def test_padding_is_given_back(attacked):
    """Padding counts for the window: more of it than the windows hold, and the call still ends well."""
    with attacked(quiet=True) as it:
        with it.wire() as wire:
            wire.send(wire.headers(1, headers_of("/test.Abuse/Call")))
            size = 20_000
            data = message(bytes(size))
            for i in range(len(data)):  # 5 MB of padding
                last = i == len(data) - 1
                wire.send(frame(DATA, PADDED | (END_STREAM if last else 0), 1, b"\xff" + data[i : i + 1] + bytes(255)))
            assert wire.status() == 0


def test_goaway_of_the_client(attacked):
    go_on = gmp.Chan()

    def handler(request, context):
        gmp.select(gmp.recv(go_on), timeout=LONG)
        return request

    with attacked(quiet=True, Wait=grpc.unary_unary_rpc_method_handler(handler)) as it:
        with it.wire() as wire:
            wire.send(
                wire.call(1, "/test.Abuse/Wait")
                + frame(GOAWAY, 0, 0, struct.pack(">II", 0, ENHANCE_YOUR_CALM) + b"bye")
            )
            until(lambda: it.stat("running") >= 1)
            go_on.close()
            assert wire.status() == 0
            assert wire.goaway() in (None, NO_ERROR)
            assert wire.ended


def test_a_client_of_the_h2_package(attacked):
    """One that keeps the rules, by another implementation of them."""
    with attacked(quiet=True) as it:
        connection = h2_connection.H2Connection()
        connection.initiate_connection()
        with it.wire(greet=False) as wire:
            connection.send_headers(1, GRPC)
            connection.send_data(1, message(b"hello"), end_stream=True)
            wire.send(connection.data_to_send())
            seen, trailers = b"", {}
            while not trailers:
                for event in connection.receive_data(wire.sock.recv(65536)):
                    if isinstance(event, h2_events.DataReceived):
                        seen += event.data
                    elif isinstance(event, h2_events.TrailersReceived):
                        trailers = {bytes(k): bytes(v) for k, v in ((_b(k), _b(v)) for k, v in event.headers)}
                wire.send(connection.data_to_send())
            assert seen == message(b"hello")
            assert trailers[b"grpc-status"] == b"0"


def _b(text):
    return text if isinstance(text, bytes) else text.encode()


# -- many at once, and the log -----------------------------------------------------------------------------------------


def test_many_abusers_one_line_a_second(attacked):
    with attacked() as it:
        begin = time.monotonic()
        wires = [it.wire(greet=False) for _ in range(40)]
        for wire in wires:
            wire.send(b"GET / HTTP/1.1\r\n\r\n")
        for wire in wires:
            assert wire.sock.recv(100).startswith(b"HTTP/1.1 505")
            wire.sock.close()
        until(lambda: it.stat("abuse") == {"not HTTP/2": 40})
        assert 'gmp_grpc_abuse_total{reason="not HTTP/2"} 40' in it.server.metrics()
        until(it.lines)
        assert len(it.lines()) <= 1 + time.monotonic() - begin


def test_stop_while_under_attack(attacked):
    server = gmp.grpc.server()
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    stop = threading.Event()

    def attack():
        while not stop.is_set():
            with contextlib.suppress(OSError), Wire(port) as wire:
                for i in range(10):
                    wire.send(
                        b"".join(
                            wire.call(s) + frame(RST_STREAM, 0, s, b"\0\0\0\x08")
                            for s in streams(5000)[i * 500 : i * 500 + 500]
                        )
                    )

    threads = [threading.Thread(target=attack) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: server.stats()["resets"] > 2000)
    assert server.stop(0.2).wait(LONG)
    stop.set()
    for thread in threads:
        thread.join(LONG)
    stats = server.stats()
    assert stats["connections"] == stats["streams"] == stats["running"] == 0


def test_out_of_descriptors(child):
    """accept() fails: those who are connected are served, the log says it once, and it goes on when there are some again."""
    child(
        """
        import logging, resource, socket, sys, threading, time
        import grpc, gmp, gmp.grpc

        lines = []
        class Keep(logging.Handler):
            def emit(self, record):
                lines.append(record.getMessage())
        logging.getLogger("gmp.grpc").addHandler(Keep())

        server = gmp.grpc.server()
        echo = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("S", {"Call": echo}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        call = channel.unary_unary("/S/Call")
        assert call(b"x", timeout=20) == b"x"

        resource.setrlimit(resource.RLIMIT_NOFILE, (120, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        taken = []
        try:
            while True:
                taken.append(socket.create_connection(("127.0.0.1", port)))
        except OSError:
            pass
        for _ in range(100):
            assert call(b"y", timeout=20) == b"y"
            time.sleep(0.01)
        assert len(lines) == 1 and "Too many open files" in lines[0] and "(accept)" in lines[0], lines
        for sock in taken:
            sock.close()
        end = time.monotonic() + 20
        while server.stats()["connections"] > 1:
            assert time.monotonic() < end
            time.sleep(0.01)
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as other:
            assert other.unary_unary("/S/Call")(b"z", timeout=20) == b"z"
        channel.close()
        assert server.stop(None).wait(20)
        print("ok")
        """
    ).expect(0, "ok")
