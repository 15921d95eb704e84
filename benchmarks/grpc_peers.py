"""The Greeter on goroutines and on its peers: each a server in a process of its own, which ends when its standard input does.

with Peer("goroutines", delay=0.05) as peer:
    sample = peer.measure(concurrency=1000, warm_up=0.3, seconds=1)

With tls=a folder that make_certificates() has filled both sides speak TLS.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

KINDS = {
    "threads-10": "ThreadPoolExecutor(10)",
    "threads-1000": "ThreadPoolExecutor(1000)",
    "aio": "grpc.aio",
    "compat": "goroutines in grpcio's server",
    "goroutines": "goroutines, gmp.grpc.server",
}
OTHERS = {  # for grpc_report.py
    "threads-100": "ThreadPoolExecutor(100)",
    "aio-uvloop": "grpc.aio on uvloop",
    "go-1": "grpc-go, one core",
    "go": "grpc-go",
    "nghttpd": "nghttpd, a file",
    "echo": "recv, send in a loop",
}
FULL = "-full"  # after a kind: with an interceptor, and a handler that looks at metadata and deadline
METHOD = "/helloworld.Greeter/SayHello"
HERE = Path(__file__).resolve()


class PeerError(Exception):
    """A server or a client process failed."""


@dataclass
class Sample:
    """What one or more rounds of load showed."""

    calls: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    stuck: int = 0  # calls that took longer than the whole round
    cpu: float = 0.0  # the server's, in seconds
    cpu_calls: float = 0.0  # the calls that took it, those of the warm-up included
    threads: int = 0
    rss: int = 0  # bytes
    client_cpu: float = 0.0  # seconds a call

    def add(self, other: Sample) -> None:
        self.calls += other.calls
        self.seconds += other.seconds
        self.latencies += other.latencies
        self.stuck += other.stuck
        self.cpu += other.cpu
        self.cpu_calls += other.cpu_calls
        self.threads = max(self.threads, other.threads)
        self.rss = max(self.rss, other.rss)
        self.client_cpu = max(self.client_cpu, other.client_cpu)

    @property
    def rate(self) -> float:
        return self.calls / self.seconds

    @property
    def cpu_per_call(self) -> float:
        return self.cpu / self.cpu_calls

    def percentile(self, share: float) -> float | None:
        """Seconds; None if the call in question did not end in its round."""
        latencies = sorted(self.latencies)
        index = min(len(latencies) + self.stuck - 1, int(share * (len(latencies) + self.stuck)))
        return latencies[index] if index < len(latencies) else None


class Peer:
    """A server process and the means to load and watch it."""

    def __init__(self, kind: str, delay: float, tls: Path | None = None) -> None:
        self.kind = kind
        self.tls = tls
        env = {k: v for k, v in os.environ.items() if k not in ("GRPC_TRACE", "GRPC_VERBOSITY")}
        command = [sys.executable, "-P", str(HERE), kind, str(delay), *([str(tls)] if tls else [])]
        if kind in ("go", "go-1"):
            from benchmarks.gotwin import build_grpc

            command = [build_grpc(), str(delay), *([str(tls)] if tls else [])]
            if kind == "go-1":
                env["GOMAXPROCS"] = "1"
        elif kind == "nghttpd":
            self._port = free_port()
            command = [nghttpd(), "--no-tls", "-a", "127.0.0.1", "-d", str(HERE.parent), str(self._port)]
        # In a session of its own: Ctrl-C is the parent's to handle.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=env
        )
        self.client: subprocess.Popen[bytes] | None = None
        self.ready = False
        self.h2load_rate: dict[str, float] = {}  # what it has done, by method: how many calls make a round

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for process in filter(None, (self.client, self.process)):
            process.kill()
            process.communicate()

    @property
    def port(self) -> int:
        """Wait for the server to be ready."""
        if not hasattr(self, "_port"):
            assert self.process.stdout
            line = self.process.stdout.readline()
            if not line.strip().isdigit():
                raise PeerError(f"the server on {self.kind} did not start")
            self._port = int(line)
        elif self.kind == "nghttpd" and not self.ready:  # it prints nothing
            for _ in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                    break
                time.sleep(0.05)
            self.ready = True
        return self._port

    def cpu(self) -> float:
        """Processor time that the server has used, in seconds."""
        clock = (~self.process.pid << 3) | 2  # another process's CPU clock: what clock_getcpuclockid(3) computes
        return time.clock_gettime(clock)

    def status(self) -> tuple[int, int]:
        """Threads and resident bytes of the server now."""
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines())
        return int(fields["Threads"]), int(fields["VmRSS"].split()[0]) * 1024

    def measure(self, concurrency: int, warm_up: float, seconds: float) -> Sample:
        """Keep `concurrency` calls under way from another process and tell how that went."""
        message = b"\x0a\x03gmp", b"\x0a\x0bHello, gmp!"
        arguments = [self.port, METHOD, message[0].hex(), message[1].hex(), concurrency, warm_up, seconds]
        arguments += [self.tls / "ca.pem"] if self.tls else []
        cpu = self.cpu()
        self.client = subprocess.Popen(
            [sys.executable, "-P", str(HERE.with_name("grpc_load.py")), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        threads = rss = 0
        while True:
            try:
                output, _ = self.client.communicate(timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                now = self.status()
                threads, rss = max(threads, now[0]), max(rss, now[1])
        if self.client.returncode:
            raise PeerError(f"the load on {self.kind} failed")
        self.client = None
        load = json.loads(output)
        cpu = self.cpu() - cpu
        cpu_calls = load["calls"] * (warm_up + seconds) / load["seconds"]
        return Sample(cpu=cpu, cpu_calls=cpu_calls, threads=threads, rss=rss, **load)


def make_certificates(folder: Path) -> Path:
    """Put ca.pem, cert.pem and key.pem (EC P-256) for localhost into the folder."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(1))
    builder = builder.not_valid_after(now + datetime.timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
    builder = builder.add_extension(x509.BasicConstraints(True, None), True)
    cert = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "ca.pem").write_bytes(cert)
    (folder / "cert.pem").write_bytes(cert)
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return folder


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def nghttpd() -> str:
    found = shutil.which("nghttpd") or shutil.which("nghttpd", path="/usr/sbin")
    if found is None:
        raise FileNotFoundError("no nghttpd: install nghttp2-server")
    return found


# -- the server's process ----------------------------------------------------------------------------------------------


def greeter(sleep: Callable[[float], object], delay: float, full: bool = False) -> Any:
    from gmp.protos import helloworld_pb2, helloworld_pb2_grpc

    class Greeter(helloworld_pb2_grpc.GreeterServicer):  # type: ignore[misc]
        def SayHello(self, request: Any, context: Any) -> Any:
            if full:
                assert context.time_remaining() > 0
                assert context.invocation_metadata()
            if delay:
                sleep(delay)
            return helloworld_pb2.HelloReply(message=f"Hello, {request.name}!")

    return Greeter()


def async_greeter(delay: float, full: bool = False) -> Any:
    import asyncio

    from gmp.protos import helloworld_pb2, helloworld_pb2_grpc

    class Greeter(helloworld_pb2_grpc.GreeterServicer):  # type: ignore[misc]
        async def SayHello(self, request: Any, context: Any) -> Any:
            if full:
                assert context.time_remaining() > 0
                assert context.invocation_metadata()
            if delay:
                await asyncio.sleep(delay)
            return helloworld_pb2.HelloReply(message=f"Hello, {request.name}!")

    return Greeter()


def open_port(server: Any, tls: str | None, ssl_server_credentials: Callable[..., Any]) -> int:
    if tls is None:
        return int(server.add_insecure_port("127.0.0.1:0"))
    pair = [(Path(tls, "key.pem").read_bytes(), Path(tls, "cert.pem").read_bytes())]
    return int(server.add_secure_port("127.0.0.1:0", ssl_server_credentials(pair)))


def streams() -> Any:
    """The service of grpc_report.py's streams: text messages of protobuf's StringValue, bytes of BytesValue."""
    import grpc
    from google.protobuf.wrappers_pb2 import BytesValue, StringValue

    reply = StringValue(value="0123456789abcdef")

    def count(request: Any, context: Any) -> Any:
        for _ in range(int(request.value)):
            yield reply

    def ping_pong(requests: Any, context: Any) -> Any:
        yield from requests

    def echo(request: Any, context: Any) -> Any:
        return request

    return streams_handler(grpc, StringValue, BytesValue, count, ping_pong, echo)


def async_streams() -> Any:
    import grpc
    from google.protobuf.wrappers_pb2 import BytesValue, StringValue

    reply = StringValue(value="0123456789abcdef")

    async def count(request: Any, context: Any) -> Any:
        for _ in range(int(request.value)):
            yield reply

    async def ping_pong(requests: Any, context: Any) -> Any:
        async for request in requests:
            yield request

    async def echo(request: Any, context: Any) -> Any:
        return request

    return streams_handler(grpc, StringValue, BytesValue, count, ping_pong, echo)


def streams_handler(grpc: Any, string: Any, data: Any, count: Any, ping_pong: Any, echo: Any) -> Any:
    def coded(message: Any) -> dict[str, Any]:
        return {"request_deserializer": message.FromString, "response_serializer": message.SerializeToString}

    return grpc.method_handlers_generic_handler(
        "bench.Streams",
        {
            "Count": grpc.unary_stream_rpc_method_handler(count, **coded(string)),
            "PingPong": grpc.stream_stream_rpc_method_handler(ping_pong, **coded(string)),
            "Echo": grpc.unary_unary_rpc_method_handler(echo, **coded(data)),
        },
    )


OPTIONS = (("grpc.max_receive_message_length", 64 << 20),)


def serve(kind: str, delay: float, tls: str | None) -> None:
    if kind == "echo":
        serve_echo()
        return

    import grpc

    from gmp.protos import helloworld_pb2_grpc

    full = kind.endswith(FULL)
    kind = kind.removesuffix(FULL)
    if kind in ("aio", "aio-uvloop"):
        import asyncio

        if kind == "aio":
            asyncio.run(serve_aio(delay, tls, full))
        else:
            import uvloop

            uvloop.run(serve_aio(delay, tls, full))
        return

    class Interceptor(grpc.ServerInterceptor):  # type: ignore[misc]
        def intercept_service(self, continuation: Any, details: Any) -> Any:
            return continuation(details)

    more: dict[str, Any] = {"options": OPTIONS, "interceptors": [Interceptor()] if full else []}
    credentials = grpc.ssl_server_credentials
    if kind in ("goroutines", "compat"):
        import gmp
        import gmp.grpc

        server = gmp.grpc.server(**more) if kind == "goroutines" else gmp.grpc.compat_server(**more)
        servicer = greeter(gmp.sleep, delay, full)
        credentials = gmp.grpc.ssl_server_credentials
    else:
        from concurrent.futures import ThreadPoolExecutor

        server = grpc.server(ThreadPoolExecutor(int(kind.removeprefix("threads-"))), **more)
        servicer = greeter(time.sleep, delay, full)
    helloworld_pb2_grpc.add_GreeterServicer_to_server(servicer, server)
    server.add_generic_rpc_handlers((streams(),))
    print(open_port(server, tls, credentials), flush=True)
    server.start()
    sys.stdin.read()


def serve_echo() -> None:
    """The floor of a ping-pong: a thread for each connection that sends every DATA frame back, and knows no more of HTTP/2."""

    def echo(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.recv(24, socket.MSG_WAITALL)  # the preface
        data = b""
        with contextlib.suppress(ConnectionResetError):  # the client ends so
            while chunk := sock.recv(1 << 16):
                data += chunk
                at, back = 0, b""
                while len(data) - at >= 9 and len(data) - at >= (size := 9 + int.from_bytes(data[at : at + 3])):
                    if data[at + 3] == 0:
                        back += data[at : at + size]
                    at += size
                data = data[at:]
                sock.sendall(back)

    def accept(listener: socket.socket) -> None:
        while True:
            threading.Thread(target=echo, args=listener.accept()[:1], daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()


async def serve_aio(delay: float, tls: str | None, full: bool) -> None:
    import asyncio

    import grpc.aio

    from gmp.protos import helloworld_pb2_grpc

    class Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            return await continuation(details)

    server = grpc.aio.server(options=OPTIONS, interceptors=[Interceptor()] if full else [])
    helloworld_pb2_grpc.add_GreeterServicer_to_server(async_greeter(delay, full), server)
    server.add_generic_rpc_handlers((async_streams(),))
    port = open_port(server, tls, grpc.ssl_server_credentials)
    await server.start()
    print(port, flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, ended.set)
    await ended.wait()


def main(arguments: Sequence[str]) -> None:
    kind, delay, *tls = arguments
    serve(kind, float(delay), tls[0] if tls else None)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
