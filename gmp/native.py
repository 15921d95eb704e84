"""C functions as goroutines: on 2 KiB stacks or larger ones, in parallel on all CPUs, without the GIL.

    import gmp.native

    ch = gmp.native.Chan(10)                        # of 64-bit ints, shared with C code
    g = gmp.native.go(lib.worker, ch)               # void worker(void *arg), arg is the gmp_chan * of gmp.h
    total = sum(ch)                                 # until the worker closes it
    g.join()

The function may come from cffi, ctypes, numba or anywhere else, as long as its machine code does not touch Python.  What it
may call is in gmp.h (get_include()): channels, locks, timers, sockets, all of which park the goroutine.  Python code reaches
the same functions as gmp.lib, by cffi.

A user's own extension or cffi module can call them too: see get_include().
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from gmp import _core
from gmp._core import NativeChan as Chan
from gmp._core import NativeGoroutine as Goroutine

__all__ = ["Chan", "Goroutine", "STACK_2K", "STACK_256K", "STACK_64K", "get_include", "go", "gomaxprocs"]

STACK_2K = 1  # two to a page: for leaf functions, see gmp.h
STACK_64K = 2  # these two grow by page faults
STACK_256K = 3


def _address(o: Any, what: str) -> int:
    """The address that o stands for: a pointer or function of cffi, ctypes or numba, an int, a Chan, or None."""
    if o is None:
        return 0
    if isinstance(o, int):
        if not -(1 << 63) <= o < 1 << 64:
            raise OverflowError(f"native.go() {what} {o} does not fit 64 bits")
        return o & ((1 << 64) - 1)
    if isinstance(o, Chan):
        return o.pointer
    if isinstance(o, (ctypes._CFuncPtr, ctypes._Pointer, ctypes.c_void_p, ctypes.c_char_p)):  # type: ignore[attr-defined]
        return ctypes.cast(o, ctypes.c_void_p).value or 0
    if isinstance(o, (ctypes._SimpleCData, ctypes.Array, ctypes.Structure, ctypes.Union)):
        return ctypes.addressof(o)
    address = getattr(o, "address", None)  # numba.cfunc
    if isinstance(address, int):
        return address
    if type(o).__module__ == "_cffi_backend":
        return int(_ffi().cast("uintptr_t", o))
    raise TypeError(
        f"native.go() {what} must be a pointer of cffi or ctypes, a numba.cfunc, an int, a gmp.native.Chan or None, "
        f"not {type(o).__name__}"
    )


def _ffi() -> Any:
    import gmp

    return gmp.ffi


def go(function: Any, arg: Any = None, *, stack: int = STACK_64K) -> Goroutine:
    """Start the C function void function(void *arg) as a goroutine of its own and return a handle to join.

    function: a function pointer of cffi or ctypes, a numba.cfunc, or an address (int).  arg: what it is given, a pointer of
    cffi or ctypes, a gmp.native.Chan, an int, or None.  Both are kept alive until the goroutine has ended.  stack: STACK_2K
    (leaf functions), STACK_64K or STACK_256K.

    It runs beside Python, on any CPU; it may go on on another OS thread after each call that waits.  When it calls into
    Python the process ends with a message.  Raises TypeError and ValueError for what cannot be such an argument, MemoryError
    when memory for the stack is refused, RuntimeError at interpreter shutdown.  Go: the go statement.
    """
    if function is None or isinstance(function, Chan):
        raise TypeError(f"native.go() function must be a pointer to a C function, not {type(function).__name__}")
    fn = _address(function, "function")
    if fn == 0:
        raise ValueError("native.go() function is a null pointer")
    if stack not in (STACK_2K, STACK_64K, STACK_256K):
        raise ValueError(f"native.go() stack must be STACK_2K, STACK_64K or STACK_256K of gmp.native, not {stack!r}")
    return _core._native_go(fn, _address(arg, "arg"), stack, (function, arg))


def gomaxprocs(n: int = 0) -> int:
    """Set on how many CPUs native goroutines run at once (1 to 256), and return how many there were; 0 sets nothing.

    Python code runs on one CPU whatever this says.  At first $GMPMAXPROCS, else the CPUs this process may use, or its cgroup's
    quota.  Raises ValueError outside that range.  Go: runtime.GOMAXPROCS.
    """
    import gmp

    if not isinstance(n, int):
        raise TypeError(f"gomaxprocs() n must be an int, not {type(n).__name__}")
    if not 0 <= n <= 256:
        raise ValueError(f"gomaxprocs() n must be 1 to 256, or 0 to ask, not {n}")
    old: int = gmp.lib.gmp_gomaxprocs(n)
    if old < 0:
        raise ValueError(f"gomaxprocs({n}): {gmp.ffi.string(gmp.lib.gmp_strerror(old)).decode()}")
    return old


def get_include() -> str:
    """The folder that has gmp.h, for a compiler's -I.

    An extension module or cffi module that calls the functions of gmp.h needs only this header to be built: it is linked
    against nothing, and finds them in the one runtime that gmp has loaded when gmp.native was imported before it.
    """
    return str(Path(__file__).parent / "include")


def _export() -> None:
    """Let libraries that are loaded from now on find the functions of gmp.h in gmp._core."""
    mode = os.RTLD_GLOBAL | os.RTLD_NOW | getattr(os, "RTLD_NOLOAD", 0)
    ctypes.CDLL(_core.__file__, mode)


_export()
