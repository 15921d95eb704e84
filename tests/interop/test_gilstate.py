"""Goroutines that park, block and migrate in the middle of foreign C frames: PyGILState_*, ctypes, sqlite3, sorted, re ..."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import importlib.util
import re
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gmp
from gmp import Chan, go

N = 20


@pytest.fixture(scope="module")
def gilstate(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A C extension that calls Python by PyGILState_Ensure and Release."""
    cc = shutil.which("cc") or shutil.which("gcc")
    include = sysconfig.get_path("include")
    if cc is None or not (Path(include) / "Python.h").exists():
        pytest.skip("no C compiler, or no Python.h")
    out = tmp_path_factory.mktemp("gilstate") / f"gilstate{sysconfig.get_config_var('EXT_SUFFIX')}"
    source = Path(__file__).with_name("gilstate.c")
    platinclude = sysconfig.get_path("platinclude")
    command = [cc, "-shared", "-fPIC", "-pthread", f"-I{include}", f"-I{platinclude}", str(source), "-o", str(out)]
    subprocess.run(command, check=True)
    spec = importlib.util.spec_from_file_location("gilstate", out)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Waits:
    """Things to do in the middle of somebody else's C frames.  Each checks that the goroutine is itself afterwards."""

    def __init__(self) -> None:
        self.ping: Chan[Chan[int]] = Chan()
        self.server = go(self.serve)
        self.local = threading.local()

    def serve(self) -> None:
        for n, back in enumerate(self.ping):
            back.send(n)

    def close(self) -> None:
        self.ping.close()
        self.server.join(30)

    def chan(self) -> None:
        back: Chan[int] = Chan()
        self.ping.send(back)
        back.recv(30)

    def sleep(self) -> None:
        gmp.sleep(0.0005)

    def yield_(self) -> None:
        gmp.gosched()

    def block(self) -> None:
        time.sleep(0.001)  # loses its P, so that it parks elsewhere next time

    def spawn(self) -> None:
        assert go(lambda: 3).result(30) == 3

    def collect(self) -> None:
        gc.collect(0)

    def __call__(self, i: int) -> None:
        me = gmp._core._goid()
        steps: list[Callable[[], None]] = [self.chan, self.sleep, self.yield_, self.block, self.spawn, self.collect]
        try:
            raise LookupError(i)
        except LookupError:
            for step in steps[i % 6 :] + steps[: i % 6 : 2]:
                step()
            exc = sys.exc_info()[1]
            assert exc is not None
            assert exc.args == (i,)
        assert gmp._core._goid() == me


@pytest.fixture
def waits() -> Iterator[Waits]:
    w = Waits()
    yield w
    w.close()


def together(f: Callable[[int], object], n: int = N) -> None:
    for g in [go(f, i) for i in range(n)]:
        g.join(50)


@pytest.mark.parametrize("how", ["nogil", "nested"])
@pytest.mark.parametrize("depth", [1, 5])
def test_pygilstate(gilstate: Any, waits: Waits, how: str, depth: int) -> None:
    """Callbacks that park inside PyGILState_Ensure, one within the other."""
    call = getattr(gilstate, how)

    def level(i: int, left: int) -> int:
        waits(i + left)
        if left:
            assert call(lambda: level(i, left - 1)) == i * 100 + left - 1
        waits(i)
        return i * 100 + left

    together(lambda i: level(i, depth))
    level(3, depth)  # and on the main thread


def test_pygilstate_on_a_foreign_thread(gilstate: Any, waits: Waits) -> None:
    """The thread is made in C; its callback uses channels, as that thread, beside goroutines that wait for it."""

    def f(i: int) -> None:
        outside = threading.get_native_id()

        def callback() -> int:
            assert threading.get_native_id() != outside
            waits(i)
            assert gilstate.nogil(lambda: waits(i + 1)) is None
            return i

        assert gilstate.foreign(callback) == i

    together(f, 10)
    f(3)


def test_pygilstate_from_goroutine_then_thread(gilstate: Any) -> None:
    """A thread-state key left behind on an M by one goroutine must not mislead the next."""

    def f(i: int) -> None:
        for k in range(30):
            if (i + k) % 3 == 0:
                gilstate.nogil(lambda: time.sleep(0.0003))
            elif (i + k) % 3 == 1:
                gilstate.nested(gmp.gosched)
            else:
                gilstate.foreign(lambda: gmp.go(int).result(30))

    together(f, 10)


def test_ctypes_callback(waits: Waits) -> None:
    libc = ctypes.CDLL(None)
    compare_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))

    def f(i: int) -> None:
        numbers = (ctypes.c_int * 8)(*[(k * 5 + i) % 8 for k in range(8)])
        calls = 0

        def compare(a: Any, b: Any) -> int:
            nonlocal calls
            calls += 1
            if calls % 4 == 0:
                waits(i + calls)
            return int(a[0] - b[0])

        libc.qsort(numbers, len(numbers), ctypes.sizeof(ctypes.c_int), compare_type(compare))
        assert list(numbers) == list(range(8))
        assert calls > 0

    together(f)


def test_sqlite3_functions(waits: Waits) -> None:
    """Functions, aggregates, collations and row factories that park inside sqlite's frames."""

    class Sum:
        def __init__(self) -> None:
            self.total = 0

        def step(self, value: int) -> None:
            waits(value)
            self.total += value

        def finalize(self) -> int:
            gmp.sleep(0.0003)
            return self.total

    def collate(a: str, b: str) -> int:
        gmp.gosched()
        return (a > b) - (a < b)

    def slow(x: int) -> int:
        waits(x)
        return x * 2

    def f(i: int) -> None:
        with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as db:
            db.create_function("slow", 1, slow)
            db.create_aggregate("sums", 1, Sum)  # type: ignore[arg-type]
            db.create_collation("slowly", collate)
            db.execute("create table t(n int, s text)")
            db.executemany("insert into t values (?, ?)", [((k * 3) % 7, str((k * 3) % 7)) for k in range(7)])
            assert [r[0] for r in db.execute("select slow(n) from t order by s collate slowly")] == list(
                range(0, 14, 2)
            )
            assert db.execute("select sums(n) from t").fetchone() == (21,)

    together(f, 10)


def test_c_loops_of_the_library(waits: Waits) -> None:
    """sorted, re.sub, functools.reduce, map, max, json: each calls back from C frames of its own."""
    import json

    def f(i: int) -> None:
        def key(x: int) -> int:
            if x % 5 == 0:
                waits(i + x)
            return -x

        assert sorted(range(10), key=key) == list(range(9, -1, -1))
        assert max(range(10), key=key) == 0
        assert re.sub(r"\d", lambda m: str((key(int(m[0])), 1)[1]), "a1b5c0") == "a1b1c1"
        assert functools.reduce(lambda a, b: a + (key(b), b)[1], range(10)) == 45
        assert list(map(key, range(3))) == [0, -1, -2]

        class Odd:
            pass

        def default(o: object) -> str:
            waits(i)
            return "odd"

        assert json.dumps([Odd(), Odd()], default=default) == '["odd", "odd"]'

    together(f)


def test_generators(waits: Waits) -> None:
    """A generator's frame is parked in by one goroutine and resumed by another."""

    def numbers(i: int) -> Iterator[int]:
        for k in range(6):
            waits(i + k)
            yield k

    def f(i: int) -> None:
        gen = numbers(i)
        out = [next(gen), next(gen)]
        rest = go(lambda: [next(gen), next(gen)])
        out += rest.result(30)
        out += list(gen)
        assert out == list(range(6))
        inner = (x for x in numbers(i))
        assert next(inner) == 0
        inner.close()

    together(f)


def test_finalizers_in_a_collection() -> None:
    """__del__ and weakref callbacks that send, receive and park inside a garbage collection."""
    ch: Chan[int] = Chan()
    total = 0

    def consumer() -> None:
        nonlocal total
        for v in ch:
            total += v

    class Node:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            ch.send(1)
            gmp.gosched()
            gmp.sleep(0.0001)

    def f(i: int) -> None:
        refs = []

        def gone(ref: object) -> None:
            ch.send(100)

        for _ in range(5):
            Node()
            node = Node()
            refs.append(weakref.ref(node, gone))
            del node
            gc.collect()

    c = go(consumer)
    gc.collect()
    together(f, 10)
    deadline = time.monotonic() + 30
    while total < 10 * 5 * 2 and time.monotonic() < deadline:
        gc.collect()
        gmp.sleep(0.01)
    ch.close()
    c.join(30)
    # 100 nodes, and the callbacks of references that have not died before them.
    assert total >= 100


IMPORTS = {
    "parks": "import gmp\ngmp.sleep(0.05)\nvalue = 3\n",
    "channel": "import gmp\nch = gmp.Chan()\ngmp.go(ch.send, 3)\nvalue = ch.recv(30)\n",
    "yields": "import gmp\nfor _ in range(50): gmp.gosched()\nvalue = 3\n",
    "blocks and parks": "import gmp, time\ntime.sleep(0.02)\ngmp.sleep(0.02)\nvalue = 3\n",
}


@pytest.mark.parametrize("how", IMPORTS)
@pytest.mark.parametrize("n", [1, 2, 20])
def test_imports_that_park(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, n: int) -> None:
    """Goroutines import one module whose body parks: all get the whole module, none hangs."""
    name = f"gmp_test_parks_{n}_{how.replace(' ', '_')}"
    (tmp_path / f"{name}.py").write_text(IMPORTS[how])
    monkeypatch.syspath_prepend(tmp_path)
    gs = [go(lambda: int(importlib.import_module(name).value)) for _ in range(n)]
    assert [g.result(30) for g in gs] == [3] * n
    assert importlib.import_module(name).value == 3


def test_imports_in_a_circle_that_park(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two goroutines import two modules that import each other: CPython lets one see the other half done, nobody hangs."""
    for a, b in ("xy", "yx"):
        (tmp_path / f"gmp_circle_{a}.py").write_text(
            f"import gmp\ngmp.sleep(0.02)\nimport gmp_circle_{b}\ngmp.sleep(0.01)\nvalue = 3\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    gs = [go(importlib.import_module, f"gmp_circle_{name}") for name in "xyxy"]
    for g in gs:
        g.join(30)
    assert sys.modules["gmp_circle_x"].value == sys.modules["gmp_circle_y"].value == 3
