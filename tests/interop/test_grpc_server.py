"""gmp.grpc.server itself against grpcio's clients: its arguments and addresses, its life, what it tells about itself.

Where grpcio's own server has the behaviour too (through compat_server) both are held to it: what is written here is what grpcio does.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import socket
import subprocess
import sys
import time

import pytest

import gmp

grpc = pytest.importorskip("grpc")

import gmp.grpc  # noqa: E402
from tests.serving import LONG, SERVICE, failure, path, serving, su, unary, us, uu  # noqa: E402
from tests.waiting import until  # noqa: E402

if not gmp.grpc.is_native:
    pytest.skip("built without libnghttp2", allow_module_level=True)

NOT_FOUND = grpc.StatusCode.NOT_FOUND


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
