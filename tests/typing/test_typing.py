"""mypy --strict on a user's code: what is right passes, what is wrong does not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gmp

HERE = Path(__file__).parent


def mypy(path: Path, tmp_path: Path) -> str:
    pytest.importorskip("mypy")
    # From elsewhere, so that gmp is found as it is installed.
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    package = Path(gmp.__file__).parent.parent
    r = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--no-error-summary",
            "--cache-dir",
            str(tmp_path / "cache"),
            copy.name,
        ],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": "" if "site-packages" in str(package) else str(package)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    return r.stdout + r.stderr


def test_sample_passes(tmp_path: Path) -> None:
    assert mypy(HERE / "sample.py", tmp_path) == ""


def test_wrong_is_refused(tmp_path: Path) -> None:
    out = mypy(HERE / "wrong.py", tmp_path)
    found = {int(m[1]) for m in re.finditer(r"^wrong\.py:(\d+): error", out, re.M)}
    lines = (HERE / "wrong.py").read_text().splitlines()
    expected = {i for i, line in enumerate(lines, 1) if line.endswith("# E")}
    assert found == expected, out
