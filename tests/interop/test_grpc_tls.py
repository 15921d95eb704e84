"""TLS and mTLS of gmp.grpc.server against grpcio's clients and Python's ssl module.

Where grpcio's server does it too (compat_server) both are held to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gc
import ipaddress
import itertools
import logging
import os
import random
import socket
import ssl
import struct
import threading
import time
from typing import NamedTuple

import pytest

import gmp

grpc = pytest.importorskip("grpc")
pytest.importorskip("cryptography")

from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from cryptography.x509.oid import NameOID  # noqa: E402

import gmp.grpc  # noqa: E402

if not gmp.grpc.is_native:
    pytest.skip("built without libnghttp2", allow_module_level=True)

try:
    gmp._core.GrpcTls(None)
except RuntimeError as error:
    if "built without OpenSSL" not in str(error):
        raise
    pytest.skip("built without OpenSSL", allow_module_level=True)

SERVICE = "test.Tls"
LONG = 20.0
SLOW = 10 if os.environ.get("GMP_SANITIZE") else 1  # times fewer rounds
MAKERS = {"native": gmp.grpc.server, "compat": gmp.grpc.compat_server}

uu, us = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
su, ss = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler


# -- certificates ------------------------------------------------------------------------------------------------------


class Identity(NamedTuple):
    key: bytes
    cert: bytes
    private: ec.EllipticCurvePrivateKey
    name: x509.Name

    @property
    def pair(self):
        return self.key, self.cert


def identity(name, issuer=None, days=1, san=(), is_ca=False):
    """An Identity for a common name or an x509.Name, in PEM, signed by issuer or itself."""
    if isinstance(name, str):
        organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, 'Ä, Org+"x')
        name = x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, name)])
    private = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.name if issuer else name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(3))
        .not_valid_after(now + datetime.timedelta(days))
        .add_extension(x509.BasicConstraints(is_ca, None), True)
    )
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), False)
    cert = builder.sign(issuer.private if issuer else private, hashes.SHA256())
    key = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Identity(key, cert.public_bytes(serialization.Encoding.PEM), private, name)


LOCAL = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
CA = identity("ca", is_ca=True)
OTHER_CA = identity("another ca", is_ca=True)
SERVER = identity("server", CA, san=LOCAL)
NEXT = identity("the next server", CA, san=LOCAL)
CLIENT = identity(
    "client",
    CA,
    san=[
        x509.DNSName("a.example"),
        x509.UniformResourceIdentifier("spiffe://x.y/z"),
        x509.RFC822Name("me@example.com"),
        x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("fe80::1")),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4")),
        x509.DNSName("b.example"),
    ],
)


def common_name(pem):
    """Of what ssl's getpeercert(binary_form=True) returns, or PEM."""
    cert = x509.load_pem_x509_certificate(pem) if pem.startswith(b"-----") else x509.load_der_x509_certificate(pem)
    return cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value


# -- servers and clients -----------------------------------------------------------------------------------------------


@pytest.fixture(params=MAKERS)
def make(request):
    """Each of the two servers in turn."""
    return MAKERS[request.param]


def credentials(server=SERVER, roots=None):
    return gmp.grpc.ssl_server_credentials([server.pair], roots and roots.cert, roots is not None)


@contextlib.contextmanager
def serving(creds=None, make=gmp.grpc.server, address="127.0.0.1:0", **handlers_and_options):
    """A server with TLS.  Yields it, and its port."""
    handlers = {k: v for k, v in handlers_and_options.items() if isinstance(v, grpc.RpcMethodHandler)}
    server = make(**{k: v for k, v in handlers_and_options.items() if k not in handlers})
    handlers.setdefault("Call", uu(lambda request, context: request))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_secure_port(address, creds or credentials())
    server.start()
    try:
        yield server, port
    finally:
        assert server.stop(None).wait(LONG)


@contextlib.contextmanager
def connected(port, client=None, roots=CA, host="localhost", options=()):
    creds = grpc.ssl_channel_credentials(roots.cert, client and client.key, client and client.cert)
    options = [("grpc.use_local_subchannel_pool", 1), *options]
    with grpc.secure_channel(port if isinstance(port, str) else f"{host}:{port}", creds, options=options) as channel:
        yield channel


def path(method="Call"):
    return f"/{SERVICE}/{method}"


def unary(channel, method="Call"):
    return channel.unary_unary(path(method))


def call(port, data=b"x", **kwargs):
    with connected(port, **kwargs) as channel:
        return unary(channel)(data, timeout=LONG)


def failure(port, **kwargs):
    with pytest.raises(grpc.RpcError) as caught:
        call(port, **kwargs)
    return caught.value.code()


def until(condition, timeout=LONG):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def context_of_client(alpn=("h2",), roots=CA, client=None, tmp_path=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=roots.cert.decode())
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if client is not None:
        file = tmp_path / "client.pem"
        file.write_bytes(client.key + client.cert)
        context.load_cert_chain(file)
    return context


def connect(port):
    sock = socket.create_connection(("127.0.0.1", port), timeout=LONG)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
ACK = b"\0\0\0\4\1\0\0\0\0"


def handshake(port, context=None, name="localhost", **kwargs):
    """A connection that has sent its preface and seen the server's settings."""
    sock = (context or context_of_client()).wrap_socket(
        connect(port), server_hostname=name, suppress_ragged_eofs=False, **kwargs
    )
    sock.sendall(PREFACE)
    got = b""
    while len(got) < 9:
        more = sock.recv(65536)
        assert more, "the server closed the connection"
        got += more
    assert got[3] == 4  # SETTINGS
    return sock


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "gmp.grpc" and r.levelno == logging.WARNING]


def warned(caplog, *texts):
    until(lambda: any(all(t in line for t in texts) for line in warnings_of(caplog)))


# -- calls -------------------------------------------------------------------------------------------------------------

KINDS = {
    "UU": uu(lambda request, context: request * 2),
    "US": us(lambda request, context: (request for _ in range(30))),
    "SU": su(lambda requests, context: b"".join(requests)),
    "SS": ss(lambda requests, context: (request * 2 for request in requests)),
}


def test_all_kinds_of_calls(make):
    with serving(make=make, **KINDS) as (_, port), connected(port) as channel:
        requests = [b"%d" % i for i in range(100)]
        assert unary(channel, "UU")(b"ab", timeout=LONG) == b"abab"
        assert list(channel.unary_stream(path("US"))(b"ab", timeout=LONG)) == [b"ab"] * 30
        assert channel.stream_unary(path("SU"))(iter(requests), timeout=LONG) == b"".join(requests)
        answers = channel.stream_stream(path("SS"))(iter(requests), timeout=LONG)
        assert list(answers) == [request * 2 for request in requests]


def test_all_kinds_of_calls_of_aio_clients():
    async def main(port):
        creds = grpc.ssl_channel_credentials(CA.cert)
        requests = [b"%d" % i for i in range(100)]
        async with grpc.aio.secure_channel(f"localhost:{port}", creds) as channel:
            many = (channel.unary_unary(path("UU"))(request, timeout=LONG) for request in requests * 5)
            assert await asyncio.gather(*many) == [request * 2 for request in requests * 5]
            assert [a async for a in channel.unary_stream(path("US"))(b"ab", timeout=LONG)] == [b"ab"] * 30
            assert await channel.stream_unary(path("SU"))(iter(requests), timeout=LONG) == b"".join(requests)
            answers = channel.stream_stream(path("SS"))(iter(requests), timeout=LONG)
            assert [a async for a in answers] == [request * 2 for request in requests]

    with serving(**KINDS) as (_, port):
        try:
            asyncio.run(main(port))
        finally:
            gc.collect()


def test_large_messages_both_ways_at_once():
    data = random.Random(1).randbytes(20 << 20)
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with serving(options=options, Both=ss(lambda requests, context: requests)) as (_, port):
        with connected(port, options=options) as channel:
            futures = [unary(channel).future(data, timeout=LONG) for _ in range(3)]
            for answer in channel.stream_stream(path("Both"))(iter([data] * 3), timeout=LONG):
                assert answer == data
            assert all(f.result() == data for f in futures)


def test_a_slow_reader_holds_up_nobody():
    """The server has more to send than the socket takes, on a connection that also receives."""
    with serving(Much=us(lambda request, context: (bytes(1 << 16) for _ in range(200)))) as (_, port):
        with connected(port) as slow, connected(port) as channel:
            answers = slow.unary_stream(path("Much"))(b"", timeout=LONG)
            next(answers)
            for _ in range(50):
                assert unary(channel)(b"x", timeout=LONG) == b"x"
                assert unary(slow)(b"y", timeout=LONG) == b"y"
            assert sum(len(a) for a in answers) == 199 << 16


def test_many_connections_at_once():
    with serving() as (server, port), contextlib.ExitStack() as stack:
        channels = [stack.enter_context(connected(port)) for _ in range(100)]
        futures = [unary(c).future(b"%d" % i, timeout=LONG) for i, c in enumerate(channels)]
        assert [f.result() for f in futures] == [b"%d" % i for i in range(100)]
        assert server.stats()["connections"] == 100


def test_unix_sockets(tmp_path):
    address = f"unix:{tmp_path}/s"
    with serving(address=address):
        assert call(address, options=[("grpc.ssl_target_name_override", "localhost")]) == b"x"


# -- who is there ------------------------------------------------------------------------------------------------------

CLIENTS = {
    "names": CLIENT,
    "chain": CLIENT._replace(cert=CLIENT.cert + CA.cert),
    "no names": identity("plain", CA),
    "no subject": identity(x509.Name([]), CA),
    "two common names": identity(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "one"), x509.NameAttribute(NameOID.COMMON_NAME, "zwei ü")]),
        CA,
    ),
    "two uris": identity(
        "u", CA, san=[x509.UniformResourceIdentifier("spiffe://x.y/z"), x509.UniformResourceIdentifier("https://x/")]
    ),
    "no spiffe": identity("u", CA, san=[x509.UniformResourceIdentifier("spiffe://x.y")]),
}


def auth_seen_by(make, client, **kwargs):
    seen = []

    def handler(request, context):
        seen.append((dict(context.auth_context()), context.peer_identities(), context.peer_identity_key()))
        return b""

    with serving(credentials(roots=CA if client else None), make=make, Call=uu(handler)) as (_, port):
        call(port, client=client, **kwargs)
    [(auth, identities, key)] = seen
    # OpenSSL has other key exchanges than grpcio's BoringSSL.
    assert auth.pop("ssl_negotiated_key_exchange_group")
    return {k: list(v) for k, v in auth.items()}, identities and list(identities), key


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest.mark.parametrize("client", [None, *CLIENTS])
def test_auth_context_is_grpcios(client, host):
    client = client and CLIENTS[client]
    theirs = auth_seen_by(gmp.grpc.compat_server, client, host=host)
    assert auth_seen_by(gmp.grpc.server, client, host=host) == theirs
    assert theirs[0]["transport_security_type"] == [b"ssl"]
    assert ("x509_pem_cert" in theirs[0]) == (client is not None)


def test_auth_context_outlives_the_connection():
    kept = []

    def handler(request, context):
        kept.append(context)
        return b""

    with serving(credentials(roots=CA), Call=uu(handler)) as (server, port):
        call(port, client=CLIENT)
        until(lambda: server.stats()["connections"] == 0)
    [context] = kept
    assert context.auth_context()["x509_pem_cert"] == [CLIENT.cert]
    assert context.peer_identities()[0] == b"a.example"


def test_no_client_certificate_is_asked_for_unless_required():
    creds = gmp.grpc.ssl_server_credentials([SERVER.pair], CA.cert)
    seen = []

    def handler(request, context):
        seen.append(context.peer_identities())
        return b""

    with serving(creds, Call=uu(handler)) as (_, port):
        call(port, client=CLIENT)
    assert seen == [None]


REFUSED = {
    "none": (None, "peer did not return a certificate"),
    "wrong ca": (identity("client", OTHER_CA), "certificate verify failed: "),
    "expired": (identity("client", CA, days=-1), "certificate verify failed: certificate has expired"),
    "self-signed": (identity("client"), "certificate verify failed: "),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_clients_without_a_good_certificate_are_refused(kind, caplog):
    client, said = REFUSED[kind]
    with serving(credentials(roots=CA)) as (_, port), connected(port, client=CLIENT) as good:
        assert unary(good)(b"x", timeout=LONG) == b"x"
        assert failure(port, client=client) is grpc.StatusCode.UNAVAILABLE
        warned(caplog, "TLS handshake failed", said, "ipv4:127.0.0.1:")
        assert unary(good)(b"x", timeout=LONG) == b"x"


def test_an_intermediate_certificate_may_be_the_root(make):
    between = identity("between", CA, is_ca=True)
    client = identity("client", between)
    with serving(credentials(roots=between), make=make) as (_, port):
        assert call(port, client=client) == b"x"
    with serving(credentials(roots=CA), make=make) as (_, port):
        assert failure(port, client=client) is grpc.StatusCode.UNAVAILABLE
        assert call(port, client=client._replace(cert=client.cert + between.cert)) == b"x"


def many_certificates(n):
    return b"".join(identity(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{i:064}")])).cert for i in range(n))


def test_very_many_roots():
    """Their names, which clients are told, are more than TLS has room for."""
    roots = CA._replace(cert=many_certificates(1200) + CA.cert)
    with serving(credentials(roots=roots)) as (_, port):
        assert call(port, client=CLIENT) == b"x"
        assert failure(port, client=identity("client", OTHER_CA)) is grpc.StatusCode.UNAVAILABLE


def test_a_very_long_chain():
    """The server's first flight is larger than its buffer, and about as large as clients take."""
    der = len(ssl.PEM_cert_to_DER_cert(many_certificates(1).decode())) + 8
    server = SERVER._replace(cert=SERVER.cert + many_certificates(100_500 // der))
    context = context_of_client()
    with serving(credentials(server)) as (_, port):
        with handshake(port, context) as sock:
            assert common_name(sock.getpeercert(True)) == "server"


def test_clients_that_do_not_trust_the_server(caplog):
    with serving() as (_, port):
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(port, context_of_client(roots=OTHER_CA))
        warned(caplog, "TLS handshake failed", "unknown ca")
        assert failure(port, roots=OTHER_CA) is grpc.StatusCode.UNAVAILABLE
        assert call(port) == b"x"


# -- the protocol ------------------------------------------------------------------------------------------------------


def test_versions_ciphers_and_protocol():
    with serving() as (_, port):
        with handshake(port) as sock:
            assert (sock.version(), sock.selected_alpn_protocol(), sock.compression()) == ("TLSv1.3", "h2", None)
        context = context_of_client()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with handshake(port, context) as sock:
            assert (sock.version(), sock.selected_alpn_protocol()) == ("TLSv1.2", "h2")
            assert sock.cipher()[0].startswith("ECDHE-ECDSA-")
        with handshake(port, context_of_client(alpn=("http/1.1", "h2"))) as sock:
            assert sock.selected_alpn_protocol() == "h2"
        context = context_of_client()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE-ECDSA-AES256-SHA:@SECLEVEL=0")  # CBC: HTTP/2 bans it
        with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
            handshake(port, context)


@pytest.mark.parametrize("alpn", [(), ("http/1.1",), ("h2c", "h")])
def test_clients_that_do_not_offer_http2_are_refused(alpn, caplog):
    with serving() as (_, port):
        with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
            handshake(port, context_of_client(alpn))
        warned(caplog, "does not offer HTTP/2")


def test_tls_1_1_is_refused(caplog):
    context = context_of_client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with serving() as (_, port):
        with pytest.raises(ssl.SSLError):
            handshake(port, context)
        warned(caplog, "unsupported protocol")


@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_are_resumed_until_the_certificates_change(version, mutual, tmp_path):
    creds = credentials(roots=CA if mutual else None)
    context = context_of_client(client=CLIENT if mutual else None, tmp_path=tmp_path)
    context.minimum_version = context.maximum_version = version
    with serving(creds) as (_, port):
        with handshake(port, context) as sock:
            assert not sock.session_reused
            session = sock.session
        with handshake(port, context, session=session) as sock:
            assert sock.session_reused
        creds.update(gmp.grpc.ssl_server_certificate_configuration([NEXT.pair], CA.cert))
        with handshake(port, context, session=session) as sock:
            assert not sock.session_reused


def test_the_server_name_picks_the_certificate():
    a = identity("a", CA, san=[x509.DNSName("a.example"), *LOCAL])
    b = identity("b", CA, san=[x509.DNSName("b.example"), x509.DNSName("*.b.example")])
    creds = gmp.grpc.ssl_server_credentials([a.pair, b.pair])
    context = context_of_client()
    context.check_hostname = False
    with serving(creds) as (_, port):
        for name, expected in {
            "a.example": "a",
            "b.example": "b",
            "x.b.example": "b",
            "c.example": "a",
            None: "a",
        }.items():
            with handshake(port, context, name) as sock:
                assert common_name(sock.getpeercert(True)) == expected
        assert call(port) == b"x"


def test_the_end_is_announced():
    """close_notify: the client can tell the end from a cut line.  With suppress_ragged_eofs off ssl raises if it is missing."""
    with serving() as (server, port):
        with handshake(port) as sock:
            sock.sendall(ACK)
            server.stop(None)
            received = b""
            while data := sock.recv(65536):
                received += data
            assert b"\0\0\x08\7\0\0\0\0\0" in received  # GOAWAY


def test_a_client_that_says_goodbye():
    with serving() as (server, port):
        sock = handshake(port)
        with contextlib.suppress(ssl.SSLError):  # the server's last frames cross our close_notify
            sock.unwrap()
        until(lambda: server.stats()["connections"] == 0)
        sock.close()


# -- certificates that change ------------------------------------------------------------------------------------------


def served(port):
    with handshake(port) as sock:
        return common_name(sock.getpeercert(True))


def configuration(server, roots=None):
    return gmp.grpc.ssl_server_certificate_configuration([server.pair], roots and roots.cert)


def test_update(make):
    creds = credentials()
    with serving(creds, make=make) as (_, port), connected(port) as old:
        assert unary(old)(b"x", timeout=LONG) == b"x"
        assert served(port) == "server"
        creds.update(configuration(NEXT))
        assert served(port) == "the next server"
        assert unary(old)(b"x", timeout=LONG) == b"x"
    with serving(creds, make=make) as (_, port):
        assert served(port) == "the next server"


def test_update_of_the_roots():
    other = identity("client", OTHER_CA)
    creds = credentials(roots=CA)
    with serving(creds) as (_, port):
        assert call(port, client=CLIENT) == b"x"
        assert failure(port, client=other) is grpc.StatusCode.UNAVAILABLE
        creds.update(configuration(SERVER, OTHER_CA))
        assert call(port, client=other) == b"x"
        assert failure(port, client=CLIENT) is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(ValueError, match="without providing root certificates"):
            creds.update(configuration(SERVER))


BROKEN = {
    "no PEM": ((b"x", b"y"), "the certificate chain has no certificate in PEM"),
    "no key": ((b"", SERVER.cert), "the private key is none in PEM"),
    "not its key": ((NEXT.key, SERVER.cert), "the private key does not fit the certificate"),
    "cut": ((SERVER.key, SERVER.cert + CA.cert[:200]), "a certificate of the chain is broken"),
    "encrypted": (
        (
            SERVER.private.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            ),
            SERVER.cert,
        ),
        "the private key is encrypted",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_bad_certificates_change_nothing(kind):
    pair, said = BROKEN[kind]
    bad = gmp.grpc.ssl_server_certificate_configuration([pair])
    creds = credentials()
    with serving(creds) as (_, port):
        with pytest.raises(ValueError, match=f"pair 0: {said}"):
            creds.update(bad)
        assert served(port) == "server"
    server = gmp.grpc.server()
    with pytest.raises(RuntimeError, match=f"Failed to bind to address localhost:0: pair 0: {said}"):
        server.add_secure_port("localhost:0", gmp.grpc.ssl_server_credentials([pair]))
    server.stop(None)


def test_bad_roots():
    server = gmp.grpc.server()
    with pytest.raises(RuntimeError, match="root_certificates has no certificate in PEM"):
        server.add_secure_port("localhost:0", gmp.grpc.ssl_server_credentials([SERVER.pair], b"", True))
    server.stop(None)


def test_the_fetcher_is_asked_at_each_new_connection(make, caplog):
    answers: list[object] = [None]
    calls = []

    def fetch():
        calls.append(1)
        answer = answers[-1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    creds = gmp.grpc.dynamic_ssl_server_credentials(configuration(SERVER), fetch)
    with serving(creds, make=make) as (_, port):
        assert served(port) == "server"
        assert len(calls) == 1
        answers.append(configuration(NEXT))
        assert served(port) == "the next server"
        answers.append(None)
        assert served(port) == "the next server"
        assert len(calls) == 3
        for bad in (
            ValueError("no certificate today"),
            gmp.grpc.ssl_server_certificate_configuration([(b"x", b"y")]),
            42,
        ):
            answers.append(bad)
            caplog.clear()
            if make is gmp.grpc.server or not isinstance(bad, gmp.grpc._credentials.CertificateConfiguration):
                assert served(port) == "the next server"
                until(lambda: any("certificates stay as they were" in r.getMessage() for r in caplog.records))
        assert call(port) == b"x"


def test_a_fetcher_that_waits_holds_up_only_new_connections():
    go_on = gmp.Chan()
    calls = []

    def fetch():
        calls.append(1)
        if len(calls) > 1:
            go_on.recv_ok(timeout=LONG)

    creds = gmp.grpc.dynamic_ssl_server_credentials(configuration(SERVER), fetch)
    with serving(creds) as (server, port), connected(port) as channel:
        assert unary(channel)(b"x", timeout=LONG) == b"x"
        got = []
        threads = [threading.Thread(target=lambda: got.append(call(port))) for _ in range(10)]
        for t in threads:
            t.start()
        until(lambda: server.stats()["connections"] >= 11)
        for _ in range(20):
            assert unary(channel)(b"x", timeout=LONG) == b"x"
        assert got == []
        go_on.close()
        for t in threads:
            t.join(LONG)
        assert got == [b"x"] * 10
        assert 2 <= len(calls) <= 11


def test_stopping_while_a_fetcher_waits():
    go_on = gmp.Chan()
    creds = gmp.grpc.dynamic_ssl_server_credentials(configuration(SERVER), go_on.recv_ok)
    with serving(creds) as (server, port), connect(port) as sock:
        until(lambda: server.stats()["connections"] == 1)
        assert server.stop(None).wait(LONG)
        assert sock.recv(10) == b""
    go_on.close()


def test_updates_while_calls_are_under_way():
    creds = credentials()
    stop = threading.Event()
    errors, names = [], set()

    def client(seed):
        rng = random.Random(seed)
        try:
            while not stop.is_set():
                with connected(port) as channel:
                    for _ in range(rng.randrange(20)):
                        data = rng.randbytes(rng.randrange(30_000))
                        assert unary(channel, "Twice")(data, timeout=LONG) == data * 2
        except Exception as error:
            errors.append(error)

    with serving(creds, Twice=uu(lambda request, context: request * 2)) as (_, port):
        threads = [threading.Thread(target=client, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        for i in range(max(200 // SLOW, 10)):
            creds.update(configuration((SERVER, NEXT)[i % 2]))
            if i % 10 < 2:
                names.add(served(port))
        stop.set()
        for t in threads:
            t.join(LONG)
    assert errors == []
    assert names == {"server", "the next server"}


# -- hostile clients ---------------------------------------------------------------------------------------------------


def client_hello():
    """The first flight of a client, as bytes."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context_of_client().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


GARBAGE = {
    "HTTP/2 without TLS": (PREFACE, "speaks HTTP/2 without TLS"),
    "HTTP/1.1": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "http request"),
    "zeros": (bytes(1000), "wrong version number"),
    "a record of rubbish": (b"\x16\x03\x01\x00\x50" + b"\xff" * 0x50, ""),
    "a huge record": (b"\x16\x03\x01\xff\xff" + b"\1" * 70000, ""),
    "alert": (b"\x15\x03\x01\0\2\2\x28", "unexpected message"),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_ends_its_own_connection_only(kind, caplog):
    data, said = GARBAGE[kind]
    with serving() as (server, port), connected(port) as channel:
        assert unary(channel)(b"x", timeout=LONG) == b"x"
        with connect(port) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(data)
                while sock.recv(65536):
                    pass
        warned(caplog, "TLS handshake failed", said)
        assert unary(channel)(b"x", timeout=LONG) == b"x"
        until(lambda: server.stats()["connections"] == 1)


def test_one_line_a_second(caplog):
    with serving() as (server, port):
        n, begin = 200, time.monotonic()
        for _ in range(n):
            with connect(port) as sock:
                sock.sendall(PREFACE)
        until(lambda: server.stats()["connections"] == 0)
        assert len(warnings_of(caplog)) <= 2 + time.monotonic() - begin
        time.sleep(1.1)
        with connect(port) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        warned(caplog, "http request", "more warnings were left out before")


def test_slow_handshakes_time_out_and_disturb_nobody(caplog):
    """Half a ClientHello, and nothing at all."""
    hello = client_hello()
    with serving(options=[("grpc.server_handshake_timeout_ms", 700)]) as (server, port), connected(port) as channel:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(port)) for _ in range(60)]
            for i, sock in enumerate(socks):
                sock.sendall(hello[: i * 5])
            for _ in range(50):
                assert unary(channel)(b"x", timeout=LONG) == b"x"
            for sock in socks:
                with contextlib.suppress(ConnectionError):
                    assert sock.recv(10) == b""
        warned(caplog, "TLS handshake failed: it took too long")
        until(lambda: server.stats()["connections"] == 1)


def test_a_handshake_byte_by_byte():
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context_of_client().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with serving() as (_, port), connect(port) as sock:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                for byte in outgoing.read():
                    sock.sendall(bytes((byte,)))
                incoming.write(sock.recv(65536))
        client.write(PREFACE)
        for byte in outgoing.read():
            sock.sendall(bytes((byte,)))
        while True:
            try:
                assert client.read(9)[3] == 4  # SETTINGS
                break
            except ssl.SSLWantReadError:
                incoming.write(sock.recv(65536))


def test_a_client_whose_data_is_spoilt(caplog):
    with serving() as (server, port):
        with handshake(port) as sock:
            raw = socket.socket(fileno=os.dup(sock.fileno()))
            with raw:
                raw.sendall(b"\x17\x03\x03\0\x20" + bytes(32))
                warned(caplog, "TLS failed", "bad record mac")
        until(lambda: server.stats()["connections"] == 0)


def test_thousands_of_handshakes():
    """Full and resumed ones, a third of them cut off at any point, beside calls that go on."""
    n, workers = max(2400 // SLOW, 60), 4
    errors, done = [], itertools.count()
    hello = client_hello()

    def work(seed):
        rng = random.Random(seed)
        context, session = context_of_client(), None
        try:
            for _ in range(n // workers):
                what = rng.randrange(6)
                if what == 0:
                    with connect(port) as sock:
                        sock.sendall(hello[: rng.randrange(len(hello))])
                        if rng.randrange(2):  # a reset
                            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif what == 1:
                    with connect(port) as sock:
                        sock.sendall(hello)
                        sock.recv(rng.randrange(1, 2000))
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", rng.randrange(2), 0))
                else:
                    with handshake(port, context, session=session if what > 3 else None) as sock:
                        session = sock.session
                        next(done)
        except Exception as error:
            errors.append(error)

    with serving() as (server, port), connected(port) as channel:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(workers)]
        for t in threads:
            t.start()
        while any(t.is_alive() for t in threads):
            assert unary(channel)(b"x", timeout=LONG) == b"x"
            time.sleep(0.002)
        assert errors == []
        assert next(done) > n // 2
        until(lambda: server.stats()["connections"] == 1)


# -- processes ---------------------------------------------------------------------------------------------------------


NO_FORK = pytest.mark.skipif(SLOW > 1, reason="a fork may find the lock of the sanitizer's own heap taken")


@pytest.fixture
def pem(tmp_path):
    """A folder with key, cert and ca."""
    for name, data in {"key": SERVER.key, "cert": SERVER.cert, "ca": CA.cert}.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


COMMON = """
    import os, pathlib, signal, socket, ssl, struct, sys, threading, time
    folder = pathlib.Path(sys.argv[1])
    key, cert, ca = ((folder / name).read_bytes() for name in ("key", "cert", "ca"))
    import grpc, gmp, gmp.grpc

    def start(credentials):
        handlers = {"M": grpc.unary_unary_rpc_method_handler(lambda request, context: request + b"!"),
                    "Much": grpc.unary_stream_rpc_method_handler(lambda request, context: iter(lambda: bytes(1 << 16), None))}
        server = gmp.grpc.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("S", handlers),))
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        return server, port

    def handshake(port):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=ca.decode())
        context.set_alpn_protocols(["h2"])
        sock = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20), server_hostname="localhost")
        sock.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + b"\\0\\0\\0\\4\\0\\0\\0\\0\\0")
        assert len(sock.recv(9)) > 0
        sock.close()
"""


@NO_FORK
def test_fork_while_handshakes_are_under_way(child, pem):
    """The child finds OpenSSL's locks free, and serves with the same credentials."""
    child(
        COMMON
        + """
    credentials = gmp.grpc.ssl_server_credentials([(key, cert)])
    server, port = start(credentials)
    load = os.fork()
    if load == 0:  # in a process of its own: Python's ssl module has no gate, and a fork may find its locks taken
        def hammer():
            while True:
                try:
                    handshake(port)
                except Exception:
                    os._exit(0)

        threads = [threading.Thread(target=hammer, daemon=True) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    for i in range(int(sys.argv[2])):
        pid = os.fork()
        if pid == 0:
            signal.alarm(40)
            other, its_port = start(credentials)
            handshake(its_port)
            handshake(its_port)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert server.stop(None).wait(10)
    print("forked")
        """,
        str(pem),
        "30",
        timeout=55,
    ).expect(0, "forked")


@NO_FORK
def test_exit_while_handshakes_are_under_way(child, pem):
    """The process ends while native goroutines are inside OpenSSL, which takes itself down at exit."""
    for _ in range(3):
        child(
            COMMON
            + """
    server, port = start(gmp.grpc.ssl_server_credentials([(key, cert)]))
    pid = os.fork()
    if pid == 0:  # the load comes from another process
        while True:
            try:
                handshake(port)
            except Exception:
                os._exit(0)
    time.sleep(0.3)
    print("leaving", flush=True)
    sys.exit(3)
            """,
            str(pem),
        ).expect(3, "leaving")


def test_no_sigpipe(child, pem):
    """Clients that go in the middle of what they are sent."""
    child(
        COMMON
        + """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    server, port = start(gmp.grpc.ssl_server_credentials([(key, cert)]))
    credentials = grpc.ssl_channel_credentials(ca)
    for i in range(20):
        with grpc.secure_channel(f"localhost:{port}", credentials, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stream = channel.unary_stream("/S/Much")(b"", timeout=20)
            for _ in range(i):
                next(stream)
    while server.stats()["connections"]:
        time.sleep(0.01)
    assert server.stop(None).wait(10)
    print("alive")
        """,
        str(pem),
    ).expect(0, "alive")


def test_several_processes(child, pem):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = (
        COMMON.partition("    def start")[0]
        + """
    def factory():
        handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"%d" % os.getpid())
        server = gmp.grpc.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Tls", {"Call": handler}),))
        return server

    credentials = gmp.grpc.ssl_server_credentials([(key, cert)])
    gmp.grpc.serve(factory, f"127.0.0.1:{sys.argv[2]}", processes=2, credentials=credentials)
    print("done")
    """
    )
    serving = child.start(script, str(pem), str(port))
    pids = set()

    def ask():
        with contextlib.suppress(grpc.RpcError):  # not there yet
            pids.add(call(port))
        return len(pids) == 2

    until(ask)
    serving.process.terminate()
    serving.finish(30).expect(0, "done")


def test_openssl_is_loaded_when_it_is_used(child, pem):
    """Not by `import gmp.grpc`, nor by a server without TLS."""
    child(
        """
    import pathlib, sys
    sys.modules["_ssl"] = None
    import gmp, gmp.grpc

    def loaded():
        return "libssl" in pathlib.Path("/proc/self/maps").read_text()

    key, cert = ((pathlib.Path(sys.argv[1]) / name).read_bytes() for name in ("key", "cert"))
    server = gmp.grpc.server()
    server.add_insecure_port("127.0.0.1:0")
    credentials = gmp.grpc.ssl_server_credentials([(key, cert)])
    print(loaded())
    server.add_secure_port("127.0.0.1:0", credentials)
    print(loaded())
    server.stop(None)
        """,
        str(pem),
    ).expect(0, "False\nTrue")


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [[5], [(b"key",)], [b"12"], [(b"key", b"chain", b"more")]])
def test_pairs_that_are_none(pairs):
    with pytest.raises(TypeError, match="must be pairs of bytes"):
        gmp.grpc.ssl_server_credentials(pairs)


def test_arguments_are_checked_as_grpcios_are():
    for function in (gmp.grpc.ssl_server_credentials, grpc.ssl_server_credentials):
        for bad in ([], None, ()):
            with pytest.raises(ValueError, match="At least one private key-certificate chain pair is required!"):
                function(bad)
        with pytest.raises(ValueError, match="Illegal to require client auth without providing root certificates!"):
            function([SERVER.pair], None, True)
        with pytest.raises(TypeError, match=r"'private_key' has incorrect type \(expected bytes, got str\)"):
            function([(SERVER.key.decode(), SERVER.cert)])
        with pytest.raises(TypeError, match=r"'certificate_chain' has incorrect type \(expected bytes, got str\)"):
            function([(SERVER.key, SERVER.cert.decode())])
        assert isinstance(function([SERVER.pair]), grpc.ServerCredentials)
        assert function(
            private_key_certificate_chain_pairs=[SERVER.pair], root_certificates=CA.cert, require_client_auth=True
        )
    for module in (gmp.grpc, grpc):
        with pytest.raises(ValueError, match="At least one private key"):
            module.ssl_server_certificate_configuration([])
        config = module.ssl_server_certificate_configuration(
            private_key_certificate_chain_pairs=[SERVER.pair], root_certificates=CA.cert
        )
        assert module.dynamic_ssl_server_credentials(
            initial_certificate_configuration=config,
            certificate_configuration_fetcher=lambda: None,
            require_client_authentication=True,
        )


def test_grpcios_credentials_are_refused_with_the_remedy():
    server = gmp.grpc.server()
    with pytest.raises(TypeError, match=r"gmp\.grpc\.ssl_server_credentials\(\).*compat_server"):
        server.add_secure_port("localhost:0", grpc.ssl_server_credentials([SERVER.pair]))
    with pytest.raises(TypeError, match=r"not builtins\.str"):
        server.add_secure_port("localhost:0", "secret")
    server.stop(None)


def test_compat_server_takes_both_kinds():
    for creds in (credentials(), grpc.ssl_server_credentials([SERVER.pair])):
        with serving(creds, make=gmp.grpc.compat_server) as (_, port):
            assert call(port) == b"x"


def test_ports_with_and_without_tls():
    server = gmp.grpc.server()
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                SERVICE, {"Call": uu(lambda request, context: context.peer_identity_key() or b"-")}
            ),
        )
    )
    plain, secure = server.add_insecure_port("127.0.0.1:0"), server.add_secure_port("127.0.0.1:0", credentials())
    server.start()
    later = server.add_secure_port("127.0.0.1:0", credentials(NEXT))
    with grpc.insecure_channel(f"127.0.0.1:{plain}") as channel:
        assert unary(channel)(b"", timeout=LONG) == b"-"
    assert call(secure) == b"-"
    assert served(later) == "the next server"
    assert server.stop(None).wait(LONG)
