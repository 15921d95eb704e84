"""urllib3 (2.0 or newer) on goroutines: pools whose connections park.

    pool = gmp.net.urllib3.PoolManager(maxsize=100)
    pool.request("GET", "https://example.org/")

PoolManager and ProxyManager are urllib3's own, with the pool classes of this module; use(manager) gives them to another
one.  An ssl_context of your own should have sslsocket_class = gmp.net.SSLSocket; otherwise a request that waits for TLS
blocks its thread, which delays nobody but costs a thread.
"""

from __future__ import annotations

import ssl
import sys
from socket import gaierror
from typing import Any, TypeVar

import urllib3
from urllib3.connection import HTTPConnection as _HTTPConnection
from urllib3.connection import HTTPSConnection as _HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.ssl_ import create_urllib3_context, resolve_cert_reqs, resolve_ssl_version
from urllib3.util.timeout import _DEFAULT_TIMEOUT

from gmp.net._socket import create_connection, socket
from gmp.net._ssl_socket import SSLSocket

T = TypeVar("T", bound=urllib3.PoolManager)


class HTTPConnection(_HTTPConnection):
    """urllib3's, on gmp.net.socket."""

    def _new_conn(self) -> socket:
        host = self._dns_host.strip("[]")
        timeout = {} if self.timeout is _DEFAULT_TIMEOUT else {"timeout": self.timeout}
        try:
            s = create_connection(
                (host, self.port), source_address=self.source_address, options=self.socket_options or (), **timeout
            )
        except gaierror as e:
            raise NameResolutionError(self.host, self, e) from e
        except TimeoutError as e:
            raise ConnectTimeoutError(
                self, f"Connection to {self.host} timed out. (connect timeout={self.timeout})"
            ) from e
        except OSError as e:
            raise NewConnectionError(self, f"Failed to establish a new connection: {e}") from e
        sys.audit("http.client.connect", self, self.host, self.port)
        return s


class HTTPSConnection(HTTPConnection, _HTTPSConnection):
    """urllib3's, on gmp.net.SSLSocket."""

    ssl_context: Any

    def connect(self) -> None:
        if self.ssl_context is None:  # as urllib3 makes one, but for the class of its sockets
            context = create_urllib3_context(
                ssl_version=resolve_ssl_version(self.ssl_version),
                ssl_minimum_version=self.ssl_minimum_version,
                ssl_maximum_version=self.ssl_maximum_version,
                cert_reqs=resolve_cert_reqs(self.cert_reqs),
            )
            if not (self.ca_certs or self.ca_cert_dir or self.ca_cert_data):
                context.load_default_certs()
            if isinstance(context, ssl.SSLContext):  # not pyOpenSSL's
                context.sslsocket_class = SSLSocket
            self.ssl_context = context
        super().connect()


class HTTPConnectionPool(urllib3.HTTPConnectionPool):
    ConnectionCls = HTTPConnection


class HTTPSConnectionPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = HTTPSConnection


POOLS = {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}


def use(manager: T) -> T:
    """Let a PoolManager make pools of this module from now on; returns it."""
    manager.pool_classes_by_scheme = POOLS
    return manager


class PoolManager(urllib3.PoolManager):
    """urllib3.PoolManager whose requests park the goroutine."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        use(self)


class ProxyManager(urllib3.ProxyManager):
    """urllib3.ProxyManager whose requests park the goroutine."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        use(self)
