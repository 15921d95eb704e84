"""TLS for servers: ssl_server_credentials and its kin, with grpcio's signatures, for the native server and for grpcio's.

grpcio's own objects hold keys that only its C core can see, so these are of our own.  ServerCredentials keeps what it was given and
makes of it

    what the native server takes   _core.GrpcTls, at the first add_secure_port; OpenSSL is loaded then
    what grpcio's servers take     grpc.ServerCredentials, at each use of `_credentials`

and a later certificate goes to all that were made.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc

import gmp.sync
from gmp import _core

_LOGGER = logging.getLogger(__name__)

_NO_PAIR = "At least one private key-certificate chain pair is required!"
_NO_ROOTS = "Illegal to require client auth without providing root certificates!"


class CertificateConfiguration:
    """Keys, certificates and roots.  ssl_server_certificate_configuration() makes one."""

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]], roots: bytes | None) -> None:
        self._pairs = tuple(_pair(pair) for pair in pairs)
        self._roots = None if roots is None else _bytes("root_certificates", roots)

    def _for_grpcio(self) -> Any:
        return grpc.ssl_server_certificate_configuration(self._pairs, self._roots)


def _pair(pair: Any) -> tuple[bytes, bytes]:
    if not isinstance(pair, Sequence) or isinstance(pair, (str, bytes)) or len(pair) != 2:
        raise TypeError("private_key_certificate_chain_pairs must be pairs of bytes: (private key, certificate chain)")
    return _bytes("private_key", pair[0]), _bytes("certificate_chain", pair[1])


def _bytes(name: str, value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"Argument '{name}' has incorrect type (expected bytes, got {type(value).__name__})")
    return value


class ServerCredentials(grpc.ServerCredentials):  # type: ignore[misc]
    """What add_secure_port takes.  ssl_server_credentials() and dynamic_ssl_server_credentials() make one."""

    def __init__(
        self,
        configuration: CertificateConfiguration,
        fetcher: Callable[[], CertificateConfiguration | None] | None,
        require: bool,
    ) -> None:
        self._configuration = configuration
        self._fetcher = fetcher
        self._require = bool(require)
        self._core: Any = None
        self._made_by = 0  # the process: OpenSSL's locks do not survive a fork for sure
        self._fetching = gmp.sync.Mutex()
        self._check(configuration)

    def update(self, certificate_configuration: CertificateConfiguration) -> None:
        """Serve connections to come with these certificates; those that are open stay as they are.

        ValueError when they are no good: then nothing has changed.
        """
        self._check(certificate_configuration)
        if self._core is not None and self._made_by == os.getpid():
            self._set(self._core, certificate_configuration)
        self._configuration = certificate_configuration

    def _check(self, configuration: CertificateConfiguration) -> None:
        if not isinstance(configuration, CertificateConfiguration):
            raise TypeError(
                "expected what gmp.grpc.ssl_server_certificate_configuration() returns, "
                f"not {type(configuration).__module__}.{type(configuration).__qualname__}"
            )
        if self._require and configuration._roots is None:
            raise ValueError(_NO_ROOTS)

    def _set(self, core: Any, configuration: CertificateConfiguration) -> None:
        core.set(configuration._pairs, configuration._roots if self._require else None)

    # -- the native server ---------------------------------------------------------------------------------------------

    def _native(self) -> Any:
        """Return the GrpcTls.  RuntimeError: there is no OpenSSL; ValueError: the certificates are no good."""
        if self._core is None or self._made_by != os.getpid():
            # Python's ssl module and we are to share one OpenSSL; so the module, if it can be had, decides which one it is.
            with contextlib.suppress(ImportError):
                import _ssl  # noqa: F401
            core = _core.GrpcTls(str(Path(_core.__file__).with_name("_openssl")))
            self._set(core, self._configuration)
            if self._fetcher is not None:
                core.hold()
            self._core, self._made_by = core, os.getpid()
        return self._core

    def _serve_waiting(self) -> None:
        """In a goroutine: let the fetcher, which may park, have its say, and then the connections that wait for it go on."""
        with self._fetching:
            core = self._core
            while core is not None and (mark := core.waiting()):
                try:
                    self._fetch()
                finally:
                    core.release(mark)

    def _fetch(self) -> None:
        try:
            assert self._fetcher is not None
            new = self._fetcher()
            if new is not None:
                self.update(new)
        except Exception:
            _LOGGER.exception("the certificate configuration fetcher failed; the certificates stay as they were")

    # -- grpcio's servers ----------------------------------------------------------------------------------------------

    @property
    def _credentials(self) -> Any:
        """For one port: grpcio's dynamic credentials tell their first certificates once."""
        told = self._configuration

        def fetch() -> Any:
            nonlocal told
            if self._fetcher is not None:
                self._fetch()
            if told is self._configuration:
                return None
            told = self._configuration
            return told._for_grpcio()

        return grpc.dynamic_ssl_server_credentials(told._for_grpcio(), fetch, self._require)._credentials


def ssl_server_certificate_configuration(
    private_key_certificate_chain_pairs: Iterable[tuple[bytes, bytes]], root_certificates: bytes | None = None
) -> CertificateConfiguration:
    """Return certificates for dynamic_ssl_server_credentials, its fetcher, and update(); grpcio's function of that name.

    The pairs are (private key, certificate chain), in PEM.  With more than one the client's choice of name (SNI) decides, else
    the first is taken.
    """
    pairs = tuple(private_key_certificate_chain_pairs or ())
    if not pairs:
        raise ValueError(_NO_PAIR)
    return CertificateConfiguration(pairs, root_certificates)


def ssl_server_credentials(
    private_key_certificate_chain_pairs: Iterable[tuple[bytes, bytes]],
    root_certificates: bytes | None = None,
    require_client_auth: bool = False,
) -> ServerCredentials:
    """Return credentials for add_secure_port; grpcio's function of that name, for the servers of gmp.grpc and for grpcio's.

    require_client_auth: clients need a certificate that root_certificates vouch for.  The result's update() replaces the
    certificates while the server runs.
    """
    configuration = ssl_server_certificate_configuration(private_key_certificate_chain_pairs, root_certificates)
    return ServerCredentials(configuration, None, require_client_auth)


def dynamic_ssl_server_credentials(
    initial_certificate_configuration: CertificateConfiguration,
    certificate_configuration_fetcher: Callable[[], CertificateConfiguration | None],
    require_client_authentication: bool = False,
) -> ServerCredentials:
    """Return credentials whose certificates are asked for again; grpcio's function of that name.

    The fetcher is called before the handshake of each new connection (once for several that come together) and returns certificates
    that are used from then on, or None: no others.  It runs in a goroutine and may wait; meanwhile new connections do.
    If it fails, or what it returns is no good, the old ones stay and the log says so.
    """
    if not callable(certificate_configuration_fetcher):
        raise TypeError("certificate_configuration_fetcher must be callable")
    return ServerCredentials(
        initial_certificate_configuration, certificate_configuration_fetcher, require_client_authentication
    )
