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


@pytest.fixture(params=["native", "compat", "grpcio"])
def make_server(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Each of gmp.grpc.server, gmp.grpc.compat_server and grpc.server with a thread pool in turn; what they take but the pool."""
    grpc = pytest.importorskip("grpc")
    import gmp.grpc

    if request.param == "grpcio":
        pool = futures.ThreadPoolExecutor(64)
        yield lambda **kwargs: grpc.server(pool, **kwargs)
        pool.shutdown()
        return
    if request.param == "native" and not gmp.grpc.is_native:
        pytest.skip("built without libnghttp2")
    yield {"native": gmp.grpc.server, "compat": gmp.grpc.compat_server}[request.param]


@pytest.fixture
def kind_of_server(request: pytest.FixtureRequest, make_server: Callable[..., Any]) -> str:
    """The name of what make_server makes."""
    return str(request.node.callspec.params["make_server"])


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
