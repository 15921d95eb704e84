"""Print requirements of pyproject.toml, one a line: of the build (`build`), or the runtime's with the extras named.

    python tools/requires.py build
    python tools/requires.py grpc test

pip can install a project's extras only together with the project; the development environment needs them before.
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))


def extra(name: str) -> list[str]:
    found = []
    for requirement in PROJECT["project"]["optional-dependencies"][name]:
        if itself := re.fullmatch(rf"{PROJECT['project']['name']}\[(.+)\]", requirement):
            found += [r for inner in itself[1].split(",") for r in extra(inner)]
        else:
            found.append(requirement)
    return found


def main(names: list[str]) -> None:
    if names == ["build"]:
        lines = PROJECT["build-system"]["requires"]
    else:
        lines = PROJECT["project"]["dependencies"] + [r for name in names for r in extra(name)]
    print(*dict.fromkeys(lines), sep="\n")


main(sys.argv[1:])
