"""gmp.ffi and gmp.lib: the binding lives in gmp._core's shared object and shares its state."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.waiting import until


def test_loaded_on_first_use_only() -> None:
    code = "import sys, gmp; print('gmp._cffi' in sys.modules); import gmp._ffi; gmp._ffi.lib; print('gmp._cffi' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30).stdout
    assert out.split() == ["False", "True"]


def test_one_mapping() -> None:
    from gmp import _core
    from gmp._ffi import lib

    assert lib.gmp_num_cpu() >= 1
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "_core." in line}
    assert mapped == {str(Path(_core.__file__).resolve())}


def test_state_is_shared() -> None:
    import gmp
    from gmp._ffi import lib

    ch = gmp.Chan()
    before, before_py = lib.gmp_num_goroutine(), gmp.runtime.num_goroutine()
    goroutines = [gmp.go(ch.recv) for _ in range(10)]
    assert lib.gmp_num_goroutine() == before + 10
    assert gmp.runtime.num_goroutine() == before_py + 10
    for _ in goroutines:
        ch.send(None)
    for g in goroutines:
        g.join()
    until(lambda: lib.gmp_num_goroutine() == before)  # they may have their last steps to do


def test_clock() -> None:
    from gmp._ffi import lib

    a, b, c = time.monotonic_ns(), lib.gmp_nanotime(), time.monotonic_ns()
    assert a <= b <= c


@pytest.mark.parametrize("code", [0, -1, -2, -9, -1000, 7])
def test_strerror(code: int) -> None:
    from gmp._ffi import ffi, lib

    assert ffi.string(lib.gmp_strerror(code)).decode().isprintable()


def test_unknown_name() -> None:
    import gmp._ffi

    with pytest.raises(AttributeError, match="no attribute 'no_such_thing'"):
        gmp._ffi.no_such_thing  # noqa: B018
