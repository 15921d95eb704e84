"""For tests of gRPC: the servers that are held to one another, and the interop protocol's generated modules."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

HERE = Path(__file__).parent


SERVERS = ("native", "compat", "grpcio")


@pytest.fixture
def servers_by_kind() -> Iterator[Callable[[str], Callable[..., Any]]]:
    """gmp.grpc.server, gmp.grpc.compat_server and grpc.server with a thread pool, by name: what they take but the pool."""
    grpc = pytest.importorskip("grpc")
    import gmp.grpc

    pools: list[futures.ThreadPoolExecutor] = []

    def find(kind: str) -> Callable[..., Any]:
        if kind == "grpcio":
            pools.append(futures.ThreadPoolExecutor(64))
            return lambda **kwargs: grpc.server(pools[-1], **kwargs)
        if kind == "native" and not gmp.grpc.is_native:
            pytest.skip("built without libnghttp2")
        return {"native": gmp.grpc.server, "compat": gmp.grpc.compat_server}[kind]

    yield find
    for pool in pools:
        pool.shutdown()


@pytest.fixture(params=SERVERS)
def kind_of_server(request: pytest.FixtureRequest) -> str:
    """The name of what make_server makes."""
    return str(request.param)


@pytest.fixture
def make_server(kind_of_server: str, servers_by_kind: Callable[[str], Callable[..., Any]]) -> Callable[..., Any]:
    """Each of the servers in turn."""
    return servers_by_kind(kind_of_server)


@pytest.fixture(params=["native", "compat"])
def make(request: pytest.FixtureRequest, servers_by_kind: Callable[[str], Callable[..., Any]]) -> Callable[..., Any]:
    """Each of gmp's two servers in turn."""
    return servers_by_kind(request.param)


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def interop(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """pb2 and pb2_grpc of interop.proto."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools compiles interop.proto")
    folder = tmp_path_factory.mktemp("interop")
    shutil.copy(HERE / "interop.proto", folder)
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-I.",
        "--python_out=.",
        "--grpc_python_out=.",
        "interop.proto",
    ]
    subprocess.run(command, cwd=folder, check=True, timeout=60)
    pb2 = _load("interop_pb2", folder / "interop_pb2.py")
    return SimpleNamespace(pb2=pb2, pb2_grpc=_load("interop_pb2_grpc", folder / "interop_pb2_grpc.py"))
