"""The wheel as users get it: what is in it, where it installs, and what a build says that cannot work.

`make test` hands over the wheel under test (GMP_WHEEL) and an interpreter that has the build's requirements
(GMP_BUILD_PYTHON); without them they are made here, which takes half a minute.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIP = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def run(*command: str | Path, check: bool = True, **kwargs: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=240, **kwargs)  # type: ignore[call-overload]
    assert done.returncode == 0 or not check, f"{command} failed:\n{done.stdout}{done.stderr}"
    return done


def make_venv(folder: Path) -> Path:
    run(ROOT / "tools/venv.sh", folder, sys.executable)
    return folder / "bin/python"


@pytest.fixture(scope="module")
def build_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("GMP_BUILD_PYTHON"):
        return Path(given)
    folder = tmp_path_factory.mktemp("build-env")
    python = make_venv(folder)
    requirements = run(python, ROOT / "tools/requires.py", "build").stdout
    (folder / "requirements.txt").write_text(requirements)
    run(python, *PIP, "-r", folder / "requirements.txt")
    return python


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, as clean as a fresh clone."""
    names = "setup.py pyproject.toml MANIFEST.in Makefile csrc gmp protos tools tests benchmarks".split()
    ignore = shutil.ignore_patterns("build", "__pycache__", "*.so", "*.pyc")
    tree = tmp_path_factory.mktemp("tree")
    for path in [*map(ROOT.joinpath, names), *ROOT.glob("*.md")]:
        if path.is_dir():
            shutil.copytree(path, tree / path.name, ignore=ignore)
        elif path.exists():
            shutil.copy(path, tree)
    shutil.rmtree(tree / "gmp/protos", ignore_errors=True)
    return tree


@pytest.fixture(scope="module")
def wheel(build_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("GMP_WHEEL"):
        return Path(given)
    out = tmp_path_factory.mktemp("wheel")
    return Path(run(build_python, ROOT / "tools/build.py", out).stdout.split()[-1])


@pytest.fixture(scope="module")
def sdist(build_python: Path, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    run(build_python, "-c", code, cwd=tree)
    return next(out.iterdir())


HELLO = """
import gmp
from gmp._ffi import ffi, lib
got = []
ch = gmp.Chan()
gmp.go(lambda: ch.send("hello from a goroutine"))
print(ch.recv())
print(ffi.string(lib.gmp_version()).decode())
"""


def _is_native() -> bool:
    from gmp import _core

    return hasattr(_core, "GrpcServer")


def _has_tls() -> bool:
    from gmp import _core

    try:
        return bool(_core.GrpcTls(None))
    except (AttributeError, RuntimeError):
        return False


def test_wheel_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        [info] = [n for n in names if n.endswith(".dist-info/METADATA")]
        description = z.read(info).decode()
    assert [n for n in names if n.endswith(".so")] == ["gmp/_core" + str(sysconfig.get_config_var("EXT_SUFFIX"))]
    bundled = [n for n in names if n.startswith("gmp/libnghttp2.so")]
    assert len(bundled) == _is_native()
    bundled = sorted(n.partition(".so")[0] for n in names if n.startswith("gmp/_openssl/") and ".so." in n)
    assert bundled == (["gmp/_openssl/libcrypto", "gmp/_openssl/libssl"] if _has_tls() else [])
    expected = {"__init__.py", "py.typed", "_core.pyi", "_ffi.py"}
    stubs = ("__init__.py", "helloworld_pb2.py", "helloworld_pb2.pyi", "helloworld_pb2_grpc.py")
    expected |= {f"protos/{n}" for n in stubs}
    assert expected <= {n.removeprefix("gmp/") for n in names}
    assert not [n for n in names if not n.startswith(("gmp/", "gmp_runtime-"))]
    assert [n for n in names if n.endswith((".c", ".h", ".S", ".o", ".pyc"))] == ["gmp/include/gmp.h"]
    assert "Requires-Python: <3.16,>=3.11" in description
    assert "Requires-Dist: cffi>=1.17" in description
    assert {"grpc", "greenlet", "dev"} <= {
        line.partition(": ")[2] for line in description.splitlines() if line.startswith("Provides-Extra")
    }


def test_one_version() -> None:
    import gmp
    from gmp._ffi import ffi, lib

    assert ffi.string(lib.gmp_version()).decode() == metadata.version("gmp-runtime") == gmp.__version__


def test_only_what_is_public_is_exported() -> None:
    from gmp import _core
    from gmp._ffi import lib

    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    listing = run("nm", "-D", "--defined-only", _core.__file__).stdout
    public = {name for name in dir(lib) if name.startswith("gmp_")}
    assert {line.split()[-1] for line in listing.splitlines()} == {"PyInit__core", "PyInit__cffi"} | public


def test_stack_is_not_executable() -> None:
    from gmp import _core

    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    headers = run("readelf", "-lW", _core.__file__).stdout
    [stack] = [line for line in headers.splitlines() if "GNU_STACK" in line]
    assert "RWE" not in stack


@pytest.mark.parametrize("language", ["c", "c++"])
def test_public_header_stands_alone(language: str, tmp_path: Path) -> None:
    cc = os.environ.get("CC", "cc").split()
    probe = run(*cc, f"-x{language}", "-fsyntax-only", "/dev/null", check=False)
    if probe.returncode:
        pytest.skip(f"no {language} compiler")
    source = tmp_path / "user"
    source.write_text('#include "gmp.h"\nint main(void) { return gmp_version() == 0; }\n')
    run(*cc, f"-x{language}", "-Wall", "-Werror", "-fsyntax-only", f"-I{ROOT / 'csrc'}", source)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_wheel_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    python = make_venv(tmp_path / "env")
    run(python, *PIP, wheel)
    installed = run(python, "-m", "pip", "list", "--format=freeze").stdout.split()
    assert {line.partition("==")[0].lower() for line in installed} - {"pip", "setuptools", "wheel"} == {
        "gmp-runtime",
        "cffi",
        "pycparser",
    }
    said = run(python, "-c", HELLO, cwd=tmp_path).stdout
    assert said.splitlines() == ["hello from a goroutine", metadata.version("gmp-runtime")]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_sdist_installs(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as t:
        names = {n.partition("/")[2] for n in t.getnames()}
    assert {"setup.py", "pyproject.toml", "csrc/gmp.h", "csrc/asm_arm64.S", "protos/helloworld.proto"} <= names
    assert {"Makefile", "csrc/Makefile", "tools/venv.sh", "tests/conftest.py", "benchmarks/__init__.py"} <= names
    assert not [n for n in names if n.endswith((".so", ".o", ".pyc", "_pb2.py"))]
    python = make_venv(tmp_path / "env")
    run(python, *PIP, sdist)
    assert run(python, "-c", HELLO, cwd=tmp_path).stdout.startswith("hello from a goroutine\n")
    assert list((tmp_path / "env").glob("lib/*/site-packages/gmp/protos/helloworld_pb2_grpc.py"))


# ---- builds that cannot work: one sentence, no traceback ---------------------------------------------------------------

NEEDS = "error: gmp-runtime: needs CPython 3.11 to 3.15, and this is "
RUNS = "error: gmp-runtime: runs on Linux on x86-64 and arm64 (64-bit), and this is "
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
FAKES = {
    "python 3.10": ("sys.version_info = (3, 10, 12, 'final', 0)", NEEDS + "Python 3.10."),
    "python 3.16": ("sys.version_info = (3, 16, 0, 'alpha', 1)", NEEDS + "Python 3.16."),
    "pypy": ("platform.python_implementation = lambda: 'PyPy'", NEEDS + "PyPy."),
    "free-threaded": (
        "sysconfig.get_config_var = lambda name: 1 if name == 'Py_GIL_DISABLED' else None",
        f"error: gmp-runtime: needs a CPython with the GIL, and this is the free-threaded build of Python {VERSION}.",
    ),
    "windows": ("sysconfig.get_platform = lambda: 'win-amd64'", RUNS + "win-amd64."),
    "macos": ("sysconfig.get_platform = lambda: 'macosx-14.0-arm64'", RUNS + "macosx-14.0-arm64."),
    "riscv": ("sysconfig.get_platform = lambda: 'linux-riscv64'", RUNS + "linux-riscv64."),
    "32-bit": (
        "sysconfig.get_platform = lambda: 'linux-i686'; struct.calcsize = lambda f: 4",
        RUNS + "linux-i686, 32-bit.",
    ),
    "no headers": (
        "import setuptools; sysconfig.get_path = lambda *a, **kw: '/nowhere'",
        f"error: gmp-runtime: needs the C headers of Python {VERSION}, and /nowhere has no Python.h: "
        f"install python{VERSION}-dev.",
    ),
    "no cffi": (
        "sys.modules['cffi'] = None",
        "error: gmp-runtime: needs cffi to build: pip install cffi, or build without --no-build-isolation.",
    ),
}


def setup_py(python: Path, tree: Path, fake: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    code = f"""
import platform, runpy, struct, sys, sysconfig
sys.argv = ["setup.py", *{args!r}]
{fake}
runpy.run_path("setup.py", run_name="__main__")
"""
    return run(python, "-c", code, cwd=tree, env={**os.environ, **env}, check=False)


def assert_one_sentence(done: subprocess.CompletedProcess[str], sentence: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert [line for line in done.stderr.splitlines() if "error" in line or "Traceback" in line] == [sentence]
    assert done.stderr.splitlines()[-1] == sentence


@pytest.mark.parametrize("condition", FAKES)
def test_build_refuses(condition: str, build_python: Path, tree: Path) -> None:
    fake, sentence = FAKES[condition]
    assert_one_sentence(setup_py(build_python, tree, fake, "--quiet", "build_ext"), sentence)


def test_build_without_compiler(build_python: Path, tree: Path) -> None:
    done = setup_py(build_python, tree, "", "--quiet", "build_ext", CC="/nonexistent/cc")
    assert_one_sentence(
        done,
        "error: gmp-runtime: needs a C compiler, and /nonexistent/cc was not found: install gcc or clang, or name one in CC.",
    )


@pytest.mark.parametrize("name", ["python3.10", "python3.9", "pypy3"])
def test_real_interpreters_are_refused(name: str, tree: Path) -> None:
    done = run(name, "setup.py", "build_ext", cwd=tree, check=False) if shutil.which(name) else None
    if done is None or "not found" in done.stderr:
        pytest.skip(f"no {name} on PATH")
    assert_one_sentence(done, NEEDS + (f"Python {name[6:]}." if name.startswith("python") else "PyPy."))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_pip_shows_the_sentence(build_python: Path, tree: Path, tmp_path: Path) -> None:
    done = run(
        *(build_python, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", tmp_path, tree),
        check=False,
        env={**os.environ, "CC": "/nonexistent/cc"},
    )
    assert done.returncode
    assert "error: gmp-runtime: needs a C compiler, and /nonexistent/cc was not found" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


WITHOUT_NGHTTP2 = """
import warnings
import gmp.grpc
with warnings.catch_warnings(record=True) as caught:
    server = gmp.grpc.server()
print(gmp.grpc.is_native, type(server).__module__, *(w.message for w in caught))
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_build_without_libnghttp2(build_python: Path, tree: Path, tmp_path: Path) -> None:
    """Says what is missing, and yields gmp without the native server."""
    pytest.importorskip("grpc")
    env = {"PKG_CONFIG": "/nonexistent/pkg-config"}
    folders = ("--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp"))
    done = setup_py(build_python, tree, "", "--quiet", "build_ext", *folders, **env)
    assert done.returncode == 0, done.stderr
    said = "warning: gmp-runtime: /nonexistent/pkg-config was not found: building without the native gRPC server"
    assert said in done.stderr
    assert "apt-get install libnghttp2-dev" in done.stderr
    done = setup_py(build_python, tree, "", "--quiet", "build_py", *folders[:2], **env)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "lib/gmp").glob("libnghttp2*"))
    said = run(
        sys.executable, "-P", "-c", WITHOUT_NGHTTP2, env={**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    ).stdout
    assert said.startswith("False grpc._server gmp was built without libnghttp2: "), said
    assert "libnghttp2-dev" in said


WITHOUT_OPENSSL = """
import gmp.grpc
server = gmp.grpc.server()
credentials = gmp.grpc.ssl_server_credentials([(b"key", b"certificate")])
print(gmp.grpc.is_native, server.add_insecure_port("127.0.0.1:0") > 0)
try:
    server.add_secure_port("127.0.0.1:0", credentials)
except RuntimeError as error:
    print(error)
server.stop(None)
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_build_without_openssl(build_python: Path, tree: Path, tmp_path: Path) -> None:
    """Says what is missing, and yields the native server without TLS."""
    pytest.importorskip("grpc")
    if not _is_native():
        pytest.skip("built without libnghttp2")
    env = {"GMP_NO_OPENSSL": "1"}
    folders = ("--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp"))
    done = setup_py(build_python, tree, "", "--quiet", "build_ext", *folders, **env)
    assert done.returncode == 0, done.stderr
    assert "warning: gmp-runtime: GMP_NO_OPENSSL is set: building without TLS for the native gRPC server" in done.stderr
    assert "apt-get install libssl-dev" in done.stderr
    done = setup_py(build_python, tree, "", "--quiet", "build_py", *folders[:2], **env)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "lib/gmp/_openssl").exists()
    said = run(
        sys.executable, "-P", "-c", WITHOUT_OPENSSL, env={**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    ).stdout
    assert said.splitlines() == [
        "True True",
        "gmp was built without OpenSSL: for TLS install libssl-dev and pkg-config and build gmp again",
    ]


def test_build_without_grpcio_tools(build_python: Path, tree: Path, tmp_path: Path) -> None:
    done = setup_py(build_python, tree, "sys.modules['grpc_tools'] = None", "build_py", "--build-lib", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "warning: gmp-runtime: building without gmp.protos, grpcio-tools cannot be imported" in done.stdout
    assert (tmp_path / "gmp/__init__.py").exists()
    assert not (tmp_path / "gmp/protos").exists()


def test_deleted_modules_leave_the_build(build_python: Path, tree: Path, tmp_path: Path) -> None:
    stale = tmp_path / "lib/gmp/deleted.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    skip_c = "import setuptools.command.build_ext as b; b.build_ext.build_extensions = lambda self: None"
    done = setup_py(build_python, tree, skip_c, "--quiet", "build", "--build-lib", str(tmp_path / "lib"))
    assert done.returncode == 0, done.stderr
    assert not stale.exists()
    assert (tmp_path / "lib/gmp/__init__.py").exists()
