"""http.client and http.server (any server of socketserver) on goroutines.

    class Handler(http.server.BaseHTTPRequestHandler): ...

    with gmp.net.http.HTTPServer(("127.0.0.1", 8000), Handler) as server:
        server.serve_forever()              # a goroutine for each connection

    connection = gmp.net.http.HTTPSConnection("example.org")
    connection.request("GET", "/")

For urllib3 and requests: gmp.net.urllib3, gmp.net.requests.
"""

from __future__ import annotations

import http.client
import http.server
import socketserver
import ssl
from typing import TYPE_CHECKING, Any

import gmp
from gmp import Chan
from gmp.net._listener import FIRST_PAUSE, LAST_PAUSE, SHORT
from gmp.net._socket import create_connection, socket
from gmp.net._ssl_socket import SSLSocket
from gmp.sync import WaitGroup

if TYPE_CHECKING:
    Server = socketserver.TCPServer
else:
    Server = object


class HTTPConnection(http.client.HTTPConnection):
    """http.client.HTTPConnection whose calls park the goroutine."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._create_connection = create_connection


class HTTPSConnection(http.client.HTTPSConnection):
    """http.client.HTTPSConnection whose calls park the goroutine.

    context: an ssl.SSLContext with sslsocket_class = gmp.net.SSLSocket; None: one that checks certificates.
    """

    def __init__(self, host: str, port: int | None = None, *, context: ssl.SSLContext | None = None, **kw: Any) -> None:
        if context is None:
            context = ssl.create_default_context()
            context.set_alpn_protocols(["http/1.1"])
            context.sslsocket_class = SSLSocket
        super().__init__(host, port, context=context, **kw)
        self._create_connection = create_connection


class GoMixIn(Server):
    """For the servers of socketserver and http.server: their socket parks, and every request has a goroutine of its own.

    As socketserver.ThreadingMixIn, whose options it has: block_on_close: server_close() waits for the handlers, unless they
    are daemon_threads.  serve_forever() waits in accept(); shutdown() ends it.  For a server of datagrams, too.
    """

    daemon_threads = False
    block_on_close = True

    def __init__(self, server_address: Any, RequestHandlerClass: Any, bind_and_activate: bool = True) -> None:
        super().__init__(server_address, RequestHandlerClass, bind_and_activate=False)
        self.socket.close()
        self.socket = socket(self.address_family, self.socket_type)
        self._handlers = WaitGroup()
        self._stop = False
        self._ended = Chan[None]()  # closed when serve_forever() has ended
        if bind_and_activate:
            try:
                self.server_bind()
                self.server_activate()
            except BaseException:
                self.server_close()
                raise

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Handle requests until shutdown() or server_close().  Nothing is polled: poll_interval means nothing."""
        pause = FIRST_PAUSE
        try:
            while not self._stop:
                try:
                    request, address = self.get_request()
                except OSError as e:
                    if self.socket.fileno() < 0:
                        break
                    if e.errno in SHORT:  # of descriptors or memory
                        gmp.sleep(pause)
                        pause = min(pause * 2, LAST_PAUSE)
                    continue
                pause = FIRST_PAUSE
                self._begin(request, address)
                self.service_actions()
        finally:
            self._stop = False
            ended, self._ended = self._ended, Chan[None]()
            ended.close()
            if isinstance(self.socket, socket) and self.socket.fileno() >= 0:
                self.socket._poller().set_read_deadline(None)

    def shutdown(self) -> None:
        """End serve_forever(), which runs in another goroutine, and wait until it has returned."""
        ended = self._ended
        self._stop = True
        if isinstance(self.socket, socket) and self.socket.fileno() >= 0:
            self.socket._poller().set_read_deadline(0)
        ended.recv_ok()

    def _begin(self, request: Any, address: Any) -> None:
        try:
            if self.verify_request(request, address):
                self.process_request(request, address)
            else:
                self.shutdown_request(request)
        except BaseException as e:
            if isinstance(e, Exception):
                self.handle_error(request, address)
            self.shutdown_request(request)
            if not isinstance(e, Exception):
                raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a goroutine for the request."""
        if self.block_on_close and not self.daemon_threads:
            self._handlers.go(self._handle, request, client_address)
        else:
            gmp.go(self._handle, request, client_address)

    def _handle(self, request: Any, address: Any) -> None:
        try:
            self.finish_request(request, address)
        except Exception:
            self.handle_error(request, address)
        finally:
            self.shutdown_request(request)

    def server_close(self) -> None:
        """Stop listening, and wait for the handlers (block_on_close)."""
        super().server_close()
        self._handlers.wait()


class HTTPServer(GoMixIn, http.server.HTTPServer):
    """http.server.HTTPServer with a goroutine for each connection.

    For TLS, with a context whose sslsocket_class is gmp.net.SSLSocket:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    """

    request_queue_size = 128
