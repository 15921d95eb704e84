"""The child process that runs one contender: `worker.py SWITCH|SPAWN|… CONTENDER`.

Its first line of output says that it is ready (with the library's version) or what is missing. Then each line of input
`SHAPE OPS N` is a round, answered by a line of JSON: ns and CPU ns an operation, further figures; or the error. The end
of input ends it.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# An installed gmp goes before the source tree, which has no compiled part unless it was built in place.
HERE = str(Path(__file__).resolve().parent)
ROOT = str(Path(HERE).parent)
sys.path[:] = [ROOT, *(entry for entry in sys.path if entry not in (ROOT, HERE))]
from benchmarks import harness  # noqa: E402

# contender → (module it needs, distribution that carries the version)
NEEDS = {
    "gmp": ("gmp", "gmp-runtime"),
    "gmp-main": ("gmp", "gmp-runtime"),
    "gevent": ("gevent", "gevent"),
    "greenlet": ("greenlet", "greenlet"),
    "uvloop": ("uvloop", "uvloop"),
    "trio": ("trio", "trio"),
}


def version_of(contender: str) -> str:
    """Import what the contender needs; raises ImportError."""
    module, distribution = NEEDS.get(contender, ("sys", ""))
    loaded = __import__(module)
    if module == "gmp" and not hasattr(loaded, "go"):
        raise ImportError("gmp is not built here")
    if contender == "asyncio-eager" and sys.version_info < (3, 12):
        raise ImportError("eager tasks came with Python 3.12")
    try:
        return importlib.metadata.version(distribution) if distribution else sys.version.split()[0]
    except importlib.metadata.PackageNotFoundError:
        return "source tree"


def loop_of(contender: str) -> Callable[..., Any]:
    """What calls a contender's function: directly, or as a coroutine on an event loop made here, once."""
    if contender == "trio":
        import trio

        return trio.run
    if contender in ("asyncio", "asyncio-eager", "uvloop"):
        factory = None
        if contender == "uvloop":
            import uvloop

            factory = uvloop.new_event_loop
        runner = asyncio.Runner(loop_factory=factory)
        if contender == "asyncio-eager":
            runner.get_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
        return lambda run, *args: runner.run(run(*args))
    return lambda run, *args: run(*args)


def main(bench_file: str, contender: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(**fields: object) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    benches = {shape.name: bench for bench in harness.load(bench_file) for shape in bench.shapes}
    sys.path.remove(ROOT)
    sys.path.append(ROOT)
    try:
        answer(version=version_of(contender))
    except ImportError as error:
        answer(missing=str(error))
        return
    call = loop_of(contender)
    for line in sys.stdin:
        shape, ops, n = line.split()
        watch = harness.Watch()
        gc.collect()
        try:
            done = call(benches[shape].runs[contender], watch, int(ops), int(n)) or int(ops)
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}")
            break
        figures = {"ns": watch.wall / done * 1e9, "cpu_ns": watch.cpu / done * 1e9, "ops": done} | watch.figures
        answer(**figures)
    answers.flush()
    os._exit(0)  # a million pooled objects need no tidying up


if __name__ == "__main__":
    main(*sys.argv[1:])
