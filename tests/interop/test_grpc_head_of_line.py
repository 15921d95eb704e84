"""One HTTP/2 connection with a slow handler, a stream that nobody reads and a 64 MB upload on it: quick calls are not held up by them.

The client is the package h2, because grpcio's gives a stream that is not read the whole connection's window.  All three are under way
when the last quick call has ended, by construction: the handler waits for us, the stream's window stays as it is, and the end of the
upload is sent afterwards.
"""

from __future__ import annotations

import socket
import struct
import threading

import pytest

grpc = pytest.importorskip("grpc")
pytest.importorskip("h2")

import h2.config  # noqa: E402
import h2.connection  # noqa: E402
import h2.events  # noqa: E402
import h2.settings  # noqa: E402

LONG = 60.0
QUICK, AT_ONCE = 1000, 100
PIECE = bytes(1 << 20)
UPLOAD = 64  # of them
WINDOW = 1 << 16
SPARE = 1 << 12  # of the connection's window, which the upload leaves to the quick calls


def message(data):
    return struct.pack(">BI", 0, len(data)) + data


class Client:
    """A connection.  step() sends what is due and takes in what came."""

    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=LONG)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW})
        self.h2.increment_flow_control_window((1 << 30) - 65535)  # the connection's: never an obstacle
        self.got, self.status = {}, {}  # by stream

    def begin(self, method, *, data=None):
        stream = self.h2.get_next_available_stream_id()
        fields = {":method": "POST", ":scheme": "http", ":path": f"/T/{method}", ":authority": "x"}
        self.h2.send_headers(stream, [*fields.items(), ("content-type", "application/grpc"), ("te", "trailers")])
        self.got[stream] = b""
        if data is not None:
            self.h2.send_data(stream, message(data), end_stream=True)
        return stream

    def flush(self):
        self.sock.sendall(self.h2.data_to_send())

    def step(self):
        self.flush()
        data = self.sock.recv(1 << 18)
        assert data, "the server has closed the connection"
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                self.got[event.stream_id] += event.data  # and the stream's window is not opened again
            elif isinstance(event, h2.events.TrailersReceived | h2.events.ResponseReceived) and event.stream_ended:
                self.status[event.stream_id] = dict(event.headers)["grpc-status"]
            elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                raise AssertionError(f"{event}")


class Upload:
    """The stream's requests, as far as the server's windows let them out."""

    def __init__(self, client):
        self.client, self.stream = client, client.begin("Upload")
        self.pieces, self.rest = 0, b""

    def send(self, pieces):
        """Send what may be sent now, up to so many pieces, the last one with the end."""
        h2 = self.client.h2
        while self.rest or self.pieces < pieces:
            if not self.rest:
                self.rest = memoryview(message(PIECE))
                self.pieces += 1
            room = min(h2.local_flow_control_window(self.stream), h2.outbound_flow_control_window - SPARE)
            n = min(room, h2.max_outbound_frame_size, len(self.rest))
            if n <= 0:
                return
            last = self.pieces == UPLOAD and n == len(self.rest)
            h2.send_data(self.stream, bytes(self.rest[:n]), end_stream=last)
            self.rest = self.rest[n:]


@pytest.mark.timeout(180)
def test_quick_calls_pass_a_slow_handler_a_stalled_reader_and_an_upload(make_server):
    release, uploading = threading.Event(), threading.Event()

    def slow(request, context):
        assert release.wait(LONG)
        return b"slow"

    def flood(request, context):
        while context.is_active():
            yield PIECE[: WINDOW // 4]

    def upload(requests, context):
        total = 0
        for request in requests:
            uploading.set()
            total += len(request)
        return b"%d" % total

    server = make_server()
    handlers = {
        "Quick": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
        "Slow": grpc.unary_unary_rpc_method_handler(slow),
        "Flood": grpc.unary_stream_rpc_method_handler(flood),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("T", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = Client(port)
    try:
        waiting, unread, up = client.begin("Slow", data=b""), client.begin("Flood", data=b""), Upload(client)
        up.send(2)
        while len(client.got[unread]) < WINDOW or up.rest:
            client.step()
            up.send(2)
        client.flush()
        assert uploading.wait(LONG)
        calls = {}
        while (done := sum(call in client.status for call in calls)) < QUICK:
            while len(calls) < min(QUICK, done + AT_ONCE) and client.h2.outbound_flow_control_window > 64:
                data = b"%d" % len(calls)
                calls[client.begin("Quick", data=data)] = data
            up.send(min(UPLOAD - 1, 2 + len(calls) * UPLOAD // QUICK))
            client.step()
        for call, data in calls.items():
            assert (client.status[call], client.got[call]) == ("0", message(data))
        assert waiting not in client.status
        assert unread not in client.status
        assert len(client.got[unread]) == WINDOW
        assert up.stream not in client.status
        release.set()
        while up.stream not in client.status or waiting not in client.status:
            up.send(UPLOAD)
            client.step()
        assert client.got[waiting] == message(b"slow")
        assert client.got[up.stream] == message(b"%d" % (UPLOAD * len(PIECE)))
        assert unread not in client.status
    finally:
        release.set()
        client.sock.close()
        assert server.stop(0).wait(LONG)
