"""gmp.ffi and gmp.lib: the C interface of csrc/gmp.h, bound by cffi.

The binding is a second module inside gmp._core's shared object.  Loading that file again under another module name gives
the same mapping, so both modules work on the one copy of the runtime's state.  It is loaded at first use: most programs
never need it, and it brings in cffi's own C library.
"""

from __future__ import annotations

import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

__all__ = ["ffi", "lib"]

ffi: Any
lib: Any


def _load() -> Any:
    name = "gmp._cffi"
    if name in sys.modules:
        return sys.modules[name]
    from gmp import _core

    path = _core.__file__
    spec = spec_from_file_location(name, path, loader=ExtensionFileLoader(name, path))
    if spec is None or spec.loader is None:  # pragma: no cover
        raise ImportError(f"cannot load {name} from {path}", name=name, path=path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    # The C half made a "lib" object that is no module of its own; it is what "from gmp._cffi import lib" finds.
    return module


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _load()
    globals().update(ffi=module.ffi, lib=module.lib)
    return globals()[name]
