"""gmp.native: C functions as goroutines, channels that C and Python share, the C interface from a user's own modules."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import os
import random
import shlex
import subprocess
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gmp
import gmp.native
from gmp.native import STACK_2K, STACK_64K, STACK_256K, Chan

WORKERS = r"""
#include <gmp.h>

/* All of them: void f(void *arg). */
void w_nothing(void *arg) { (void)arg; }
void w_store(void *arg) { *(int64_t *)arg = 42; }
void w_exit(void *arg) { *(int64_t *)arg = 1; gmp_exit(); *(int64_t *)arg = 2; }
void w_sleep(void *arg) { (void)arg; gmp_sleep(20 * 1000 * 1000); }
void w_spin(void *arg) { while (!*(volatile int64_t *)arg) ; }
static void fill(volatile char *to, int n) { while (--n >= 0) to[n] = (char)n; }
void w_overrun(void *arg) /* as if it had gone a little too deep: a stack is aligned to its size */
{
    uintptr_t low = (uintptr_t)&arg & ~(uintptr_t)2047;
    fill((char *)low, 16);
    gmp_sleep(1000);
}
void w_overflow(void *arg) { char big[300 * 1024]; fill(big, sizeof big); *(char *)arg = big[17]; }
void w_crash(void *arg) { *(volatile int *)arg = 1; }

typedef struct Pair { gmp_chan *in, *out; int64_t n; } Pair;
void w_squares(void *arg)
{
    Pair *p = arg;
    int64_t v;
    while (gmp_chan_recv(p->in, &v, sizeof v, -1) == GMP_OK) {
        v *= v;
        gmp_chan_send(p->out, &v, sizeof v, -1);
    }
    gmp_chan_close(p->out);
}
void w_count(void *arg)
{
    Pair *p = arg;
    for (int64_t i = 0; i < p->n; i++)
        gmp_chan_send(p->out, &i, sizeof i, -1);
}
void w_select(void *arg) /* sends what comes from one channel to the other until it is closed; counts timeouts */
{
    Pair *p = arg;
    int64_t v;
    for (;;) {
        gmp_case cases[1] = {{p->in, &v, sizeof v, 0, 0}};
        int r = gmp_select(cases, 1, 1000 * 1000);
        if (r == GMP_ETIMEDOUT) {
            p->n++;
            continue;
        }
        if (r != 0 || cases[0].result != GMP_OK)
            return;
        gmp_chan_send(p->out, &v, sizeof v, -1);
    }
}
"""


def build(name: str, source: str, folder: Path, *flags: str) -> Path:
    """A shared library of C code that is linked against nothing of gmp's."""
    c, so = folder / f"{name}.c", folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    c.write_text(source)
    cc = shlex.split(os.environ.get("CC") or "cc")
    command = [
        *cc,
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Werror",
        "-shared",
        "-fPIC",
        f"-I{gmp.native.get_include()}",
        *flags,
    ]
    subprocess.run([*command, "-o", str(so), str(c)], check=True)
    return so


class Pair(ctypes.Structure):
    _fields_ = (("into", ctypes.c_void_p), ("out", ctypes.c_void_p), ("n", ctypes.c_int64))


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(build("workers", WORKERS, tmp_path_factory.mktemp("native"))))


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 10
    while gmp._core._native_count() and time.monotonic() < deadline:
        gmp.sleep(0.001)
    assert gmp._core._native_count() == 0


@pytest.mark.parametrize("stack", [STACK_2K, STACK_64K, STACK_256K])
def test_ctypes_function(workers: ctypes.CDLL, stack: int) -> None:
    n = ctypes.c_int64()
    g = gmp.native.go(workers.w_store, n, stack=stack)
    g.join(10)
    assert g.done
    assert n.value == 42


def test_other_kinds_of_pointers(workers: ctypes.CDLL) -> None:
    ffi = gmp.ffi
    address = ctypes.cast(workers.w_store, ctypes.c_void_p).value
    assert address is not None
    cell = ffi.new("int64_t *")
    gmp.native.go(ffi.cast("void (*)(void *)", address), cell).join(10)
    assert cell[0] == 42
    n = ctypes.c_int64()
    gmp.native.go(address, ctypes.addressof(n)).join(10)
    assert n.value == 42
    n.value = 0
    gmp.native.go(ctypes.c_void_p(address), ctypes.pointer(n)).join(10)
    assert n.value == 42

    class Cfunc:  # as numba.cfunc has it
        address = ctypes.cast(workers.w_store, ctypes.c_void_p).value

    n.value = 0
    gmp.native.go(Cfunc(), n).join(10)
    assert n.value == 42


def test_join(workers: ctypes.CDLL) -> None:
    stop = ctypes.c_int64()
    g = gmp.native.go(workers.w_spin, stop)
    assert not g.done
    assert "running" in repr(g)
    with pytest.raises(TimeoutError):
        g.join(0)
    with pytest.raises(TimeoutError):
        g.join(timeout=0.01)
    joiners = [gmp.go(g.join) for _ in range(10)]
    thread = threading.Thread(target=g.join)
    thread.start()
    stop.value = 1
    for j in joiners:
        j.join(10)
    thread.join()
    assert "ended" in repr(g)


def test_a_function_that_exits(workers: ctypes.CDLL) -> None:
    n = ctypes.c_int64()
    gmp.native.go(workers.w_exit, n).join(10)
    assert n.value == 1


def test_arguments_live_as_long_as_the_goroutine(workers: ctypes.CDLL) -> None:
    import gc
    import weakref

    class Cell(ctypes.Structure):
        _fields_ = (("n", ctypes.c_int64),)

    cell = Cell(0)
    ref, address = weakref.ref(cell), ctypes.addressof(cell)
    gmp.native.go(workers.w_spin, cell)  # nobody holds the handle
    del cell
    gc.collect()
    assert ref() is not None
    ctypes.c_int64.from_address(address).value = 1
    deadline = time.monotonic() + 10
    while ref() is not None and time.monotonic() < deadline:
        for g in [gmp.native.go(workers.w_nothing) for _ in range(100)]:
            g.join(10)
    assert ref() is None


def test_they_run_beside_python(workers: ctypes.CDLL) -> None:
    """A busy native goroutine takes nothing from Python's P; two of them share CPUs with it."""
    stop = ctypes.c_int64()
    gs = [gmp.native.go(workers.w_spin, stop) for _ in range(2)]
    ch: gmp.Chan[int] = gmp.Chan()
    echo = gmp.go(lambda: [ch.send(ch.recv() + 1) for _ in range(1000)])
    for i in range(1000):
        ch.send(i)
        assert ch.recv() == i + 1
    echo.join()
    stop.value = 1
    for g in gs:
        g.join(10)


def test_thousands(workers: ctypes.CDLL) -> None:
    gs = [gmp.native.go(workers.w_sleep, stack=STACK_2K) for _ in range(5000)]
    for g in gs:
        g.join(30)


# ---- channels ----


@pytest.mark.parametrize("cap", [0, 1, 100])
def test_squares(workers: ctypes.CDLL, cap: int) -> None:
    a, b = Chan(cap), Chan(cap)
    pair = Pair(a.pointer, b.pointer, 0)
    g = gmp.native.go(workers.w_squares, pair)

    def feed() -> None:
        for i in range(2000):
            a.send(i)
        a.close()

    gmp.go(feed)
    assert list(b) == [i * i for i in range(2000)]
    g.join(10)
    assert b.closed


def test_many_producers_on_both_sides(workers: ctypes.CDLL) -> None:
    out = Chan(3)
    pair = Pair(None, out.pointer, 500)
    native = [gmp.native.go(workers.w_count, pair) for _ in range(4)]

    def send() -> None:
        for i in range(500):
            out.send(i)

    python = [gmp.go(send) for _ in range(4)]
    threads = [threading.Thread(target=send) for _ in range(2)]
    for t in threads:
        t.start()
    assert sum(out.recv() for _ in range(10 * 500)) == 10 * sum(range(500))
    for g in [*native, *python]:
        g.join(10)
    for t in threads:
        t.join()


def test_select_on_both_kinds(workers: ctypes.CDLL) -> None:
    words, objects = Chan(), gmp.Chan[str]()
    pair = Pair(None, words.pointer, 200)
    g = gmp.native.go(workers.w_count, pair)
    sender = gmp.go(lambda: [objects.send(str(i)) for i in range(200)])
    seen: tuple[list[int], list[str]] = ([], [])
    for _ in range(400):
        match gmp.select(gmp.recv(words), gmp.recv(objects), timeout=10):
            case (0, n, True):
                seen[0].append(n)
            case (1, s, True):
                seen[1].append(s)
    assert seen == (list(range(200)), [str(i) for i in range(200)])
    g.join(10)
    sender.join(10)
    assert gmp.select(gmp.recv(words), default=True).index == -1
    words.close()
    assert gmp.select(gmp.recv(words)) == (0, None, False)
    with pytest.raises(gmp.ChanClosed):
        gmp.select(gmp.send(words, 1))


def test_select_in_c(workers: ctypes.CDLL) -> None:
    a, b = Chan(), Chan()
    pair = Pair(a.pointer, b.pointer, 0)
    g = gmp.native.go(workers.w_select, pair)
    for i in range(300):
        assert gmp.select(gmp.send(a, i), gmp.recv(b)).index == 0
        assert b.recv(10) == i
    while pair.n == 0:  # timeouts of its select
        gmp.sleep(0.001)
    a.close()
    g.join(10)


def test_parked_c_goroutines_are_no_deadlock(workers: ctypes.CDLL) -> None:
    ch = Chan()
    pair = Pair(None, ch.pointer, 1)
    gmp.native.go(workers.w_sleep)
    gmp.native.go(workers.w_count, pair)
    assert ch.recv() == 0


def test_numbers() -> None:
    ch = Chan(1)
    for n in (0, 1, -1, 2**63 - 1, -(2**63), True):
        ch.send(n)
        assert ch.recv() == n
    assert (ch.cap, len(ch), ch.closed, bool(ch)) == (1, 0, False, True)
    assert ch.pointer != Chan().pointer
    with pytest.raises(TimeoutError):
        ch.recv(timeout=0)
    for bad in (2**63, -(2**63) - 1):
        with pytest.raises(OverflowError, match="64 bits"):
            ch.send(bad)
        with pytest.raises(OverflowError, match="64 bits"):
            gmp.select(gmp.send(ch, bad))
    bad_values: tuple[Any, ...] = (1.0, "1", None)
    for value in bad_values:
        with pytest.raises(TypeError, match="carries ints"):
            ch.send(value)
    assert ch.recv_ok.__self__ is ch
    ch.close()
    assert ch.recv_ok() == (None, False)
    with pytest.raises(gmp.ChanClosed):
        ch.send(1)
    with pytest.raises(gmp.ChanClosed):
        ch.close()
    with pytest.raises(ValueError, match="0 or more"):
        Chan(-1)


def test_stress(workers: ctypes.CDLL) -> None:
    """Chains of C and Python stages, at random; every number comes out once, and the old Ps setting comes back."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    procs = gmp.native.gomaxprocs()
    try:
        for _ in range(10):
            gmp.native.gomaxprocs(rng.choice([1, 2, 4, 16]))
            chans = [Chan(rng.choice([0, 1, 7, 200])) for _ in range(rng.randrange(2, 6))]
            pairs, stages = [], []

            def stage(a: Chan, b: Chan, blocks: bool) -> None:
                for i, n in enumerate(a):
                    if blocks and i % 50 == 0:
                        time.sleep(0.001)
                    b.send(n)
                b.close()

            for a, b in itertools.pairwise(chans):
                if rng.random() < 0.5:
                    stages.append(gmp.go(stage, a, b, rng.random() < 0.3))
                else:
                    pairs.append(Pair(a.pointer, b.pointer, 0))
                    gmp.native.go(workers.w_squares, pairs[-1], stack=rng.choice([STACK_2K, STACK_64K, STACK_256K]))
            power = 2 ** len(pairs)
            n = rng.randrange(1, 1500)
            feeder = gmp.go(lambda first=chans[0], n=n: [first.send(i % 2) for i in range(n)] and first.close())
            assert sum(chans[-1]) == n // 2, (seed, power)
            for g in [feeder, *stages]:
                g.join(10)
    finally:
        gmp.native.gomaxprocs(procs)


# ---- users' own modules ----

EXTENSION = r"""
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <gmp.h>

static void add_up(void *arg)
{
    gmp_chan **ch = arg;
    int64_t v, sum = 0;
    while (gmp_chan_recv(ch[0], &v, sizeof v, -1) == GMP_OK)
        sum += v;
    gmp_chan_send(ch[1], &sum, sizeof sum, -1);
}

static PyObject *total(PyObject *self, PyObject *arg) /* sum of range(n), by goroutines that C code starts and waits for */
{
    int64_t n = PyLong_AsLongLong(arg), sum = 0, i;
    gmp_chan *ch[2];
    (void)self;
    if (gmp_chan_new(&ch[0], sizeof n, 16) != GMP_OK || gmp_chan_new(&ch[1], sizeof n, 0) != GMP_OK)
        return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS /* what waits lets go of the GIL first */
    gmp_go(add_up, ch, GMP_STACK_64K);
    for (i = 0; i < n; i++)
        gmp_chan_send(ch[0], &i, sizeof i, -1);
    gmp_chan_close(ch[0]);
    gmp_chan_recv(ch[1], &sum, sizeof sum, -1);
    while (gmp_chan_free(ch[0]) != GMP_OK || gmp_chan_free(ch[1]) != GMP_OK)
        gmp_yield();
    Py_END_ALLOW_THREADS
    return PyLong_FromLongLong(sum);
}

static PyMethodDef methods[] = {{"total", total, METH_O, NULL}, {0}};
static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, .m_name = "ext", .m_size = -1, .m_methods = methods};
PyMODINIT_FUNC PyInit_ext(void) { return PyModule_Create(&def); }
"""


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_c_extension(tmp_path: Path) -> None:
    so = build(
        "ext", EXTENSION, tmp_path, f"-I{sysconfig.get_path('include')}", f"-I{sysconfig.get_path('platinclude')}"
    )
    ext = load("ext", so)
    assert ext.total(1000) == sum(range(1000))
    gs = [gmp.go(ext.total, 300) for _ in range(10)]
    assert [g.result(30) for g in gs] == [sum(range(300))] * 10


def test_a_cffi_module(tmp_path: Path) -> None:
    import cffi

    ffi = cffi.FFI()
    ffi.cdef("void w_squares(void *); typedef struct { void *in, *out; int64_t n; } Pair;")
    ffi.set_source("squares", WORKERS, include_dirs=[gmp.native.get_include()], extra_compile_args=["-Wno-unused"])
    ffi.emit_c_code(str(tmp_path / "squares.c"))
    includes = {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
    so = build("squares", (tmp_path / "squares.c").read_text(), tmp_path, "-Wno-error", *(f"-I{i}" for i in includes))
    squares = load("squares", so)
    a, b = Chan(5), Chan(5)
    pair = squares.ffi.new(
        "Pair *", {"in": squares.ffi.cast("void *", a.pointer), "out": squares.ffi.cast("void *", b.pointer)}
    )
    g = gmp.native.go(squares.ffi.addressof(squares.lib, "w_squares"), pair)
    a.send(12)
    assert b.recv(10) == 144
    a.close()
    g.join(10)


def test_lib() -> None:
    """gmp.lib has the same functions, for Python."""
    ffi, lib = gmp.ffi, gmp.lib
    out = ffi.new("gmp_chan **")
    assert lib.gmp_chan_new(out, 8, 1) == lib.GMP_OK
    assert lib.gmp_chan_send(out[0], ffi.new("int64_t *", 5), 8, 0) == lib.GMP_OK
    assert lib.gmp_chan_send(out[0], ffi.new("int64_t *", 6), 8, 1000) == lib.GMP_ETIMEDOUT
    got = ffi.new("int64_t *")
    assert lib.gmp_chan_recv(out[0], got, 8, -1) == lib.GMP_OK
    assert got[0] == 5
    assert lib.gmp_chan_send(out[0], got, 4, 0) == lib.GMP_EINVAL
    assert lib.gmp_chan_free(out[0]) == lib.GMP_OK
    stats = ffi.new("gmp_stats *")
    assert lib.gmp_get_stats(stats, ffi.sizeof("gmp_stats")) == lib.GMP_OK
    assert stats.procs >= 1


def test_gomaxprocs() -> None:
    old = gmp.native.gomaxprocs()
    assert gmp.native.gomaxprocs(3) == old
    assert gmp.native.gomaxprocs(old) == 3
    bad: tuple[tuple[Any, type[Exception]], ...] = ((-1, ValueError), (257, ValueError), ("2", TypeError))
    for n, error in bad:
        with pytest.raises(error, match="gomaxprocs"):
            gmp.native.gomaxprocs(n)


# ---- what must not be ----


def test_bad_arguments(workers: ctypes.CDLL) -> None:
    bad: tuple[tuple[tuple[Any, ...], type[Exception], str], ...] = (
        ((None,), TypeError, "function"),
        ((0,), ValueError, "null"),
        ((len,), TypeError, "function"),
        (("f",), TypeError, "function"),
        ((lambda: None,), TypeError, "function"),
        ((Chan(),), TypeError, "function"),
        ((workers.w_nothing, "x"), TypeError, "arg"),
        ((workers.w_nothing, 1.5), TypeError, "arg"),
        ((workers.w_nothing, 2**64), OverflowError, "64 bits"),
    )
    for args, error, words in bad:
        with pytest.raises(error, match=words):
            gmp.native.go(*args)
    for stack in (0, 4, -1, "64K"):
        with pytest.raises(ValueError, match="stack"):
            gmp.native.go(workers.w_nothing, stack=stack)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        gmp.native.Goroutine()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("callback", "called into Python"),
        ("cffi callback", "called into Python"),
        ("crash", "touched the address"),
        ("overrun", "2 KiB stack"),
        ("overflow", "stack overflow in native goroutine"),
    ],
)
def test_ends_with_a_message(workers: ctypes.CDLL, what: str, words: str, child) -> None:  # type: ignore[no-untyped-def]
    c = child(
        """
        import ctypes, sys, gmp.native
        what, path = sys.argv[1:]
        lib = ctypes.CDLL(path)
        if what == "callback":
            f = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda arg: print("ran"))
        elif what == "cffi callback":
            f = gmp.ffi.callback("void(void *)", lambda arg: print("ran"))
        else:
            f = getattr(lib, "w_" + what)
        stack = gmp.native.STACK_2K if what == "overrun" else gmp.native.STACK_256K
        gmp.native.go(f, 8, stack=stack).join(10)
        """,
        what,
        workers._name,
    )
    c.expect(-6)
    assert "fatal error: gmp: " in c.err
    assert words in c.err
    assert "ran" not in c.out
