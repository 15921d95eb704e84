"""Builds the C twin in c/ on the tree's own csrc/: goroutines of gmp.h, and POSIX threads."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-O2", "-g", "-std=gnu11", "-pthread", "-Wl,-z,now"]


@functools.cache
def build() -> str:
    """The path of the twin's executable, built once a process. Raises FileNotFoundError without make or a C compiler.

    Child processes find it in the environment.
    """
    if built := os.environ.get("GMP_BENCH_CTWIN"):
        return built
    cc = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if cc is None or shutil.which("make") is None:
        raise FileNotFoundError("no C compiler or no make")
    folder = tempfile.mkdtemp(prefix="gmp-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    twin = os.path.join(folder, "twin")
    make = ["make", "-s", "-C", str(ROOT / "csrc"), f"CC={cc}", f"BUILD={folder}/core"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    sources = [str(p) for p in sorted((ROOT / "benchmarks" / "c").glob("*.c"))]
    subprocess.run(
        [cc, *FLAGS, f"-I{ROOT / 'csrc'}", "-o", twin, *sources, f"{folder}/core/libgmp.a"],
        check=True,
    )
    os.environ["GMP_BENCH_CTWIN"] = twin
    return twin
