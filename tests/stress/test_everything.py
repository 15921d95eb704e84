"""A short run of everything.py, the stress test that `make stress` runs for a minute."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SEED = int(os.environ.get("GMP_SEED", "0") or 0) or random.SystemRandom().randrange(1, 1 << 32)
SECONDS = float(os.environ.get("GMP_STRESS_SECONDS", "3"))


@pytest.mark.timeout(SECONDS + 240)
def test_everything_at_once() -> None:
    script = str(Path(__file__).with_name("everything.py"))
    r = subprocess.run(
        [sys.executable, script, "--seed", str(SEED), "--seconds", str(SECONDS)], capture_output=True, text=True
    )
    assert r.returncode == 0, f"{r.stdout}\n{r.stderr}"
    assert f"SEED={SEED}" in r.stdout
