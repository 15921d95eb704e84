"""Build the wheel (and with --sdist the source archive) into a folder, with the build tools of the running interpreter.

    python tools/build.py [--sdist] [FOLDER]        FOLDER: dist

Unlike `pip wheel` it makes no environment of its own each time, so that a rebuild costs only what changed.  One build at
a time: the tree's build/ folder is locked.  The last line printed is the wheel's path.
"""

import contextlib
import fcntl
import os
import sys
from pathlib import Path

from setuptools import build_meta

ROOT = Path(__file__).resolve().parents[1]


def main(args: list[str]) -> None:
    sdist = "--sdist" in args
    folder = Path(next((a for a in args if not a.startswith("-")), "dist")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    Path("build").mkdir(exist_ok=True)
    with open("build/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        settings = {"--global-option": [] if os.environ.get("VERBOSE") else ["--quiet"]}
        with contextlib.redirect_stdout(sys.stderr):
            made = [build_meta.build_sdist(str(folder), settings)] if sdist else []
            made.append(build_meta.build_wheel(str(folder), settings))
    print(*(folder / name for name in made), sep="\n")


main(sys.argv[1:])
