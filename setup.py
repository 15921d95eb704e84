"""Builds gmp: one shared object, gmp._core, from csrc/*.c and csrc/*.S and the cffi binding of csrc/gmp.h.

Read from the environment:
    DEBUG=1                                assertions of the core, -O1 -g
    SANITIZE=address,undefined | thread    what gcc's and clang's -fsanitize= take
    WERROR=1                               compiler warnings are errors
    GMP_NO_NGHTTP2=1                       no native gRPC server, as where libnghttp2 is missing
    GMP_NO_OPENSSL=1                       no TLS in it, as where libssl's headers are missing

Metadata stands in pyproject.toml, the version in csrc/gmp.h.  A build that cannot work ends with one sentence (see fail()).
The checks below run before anything else is imported, so that old or foreign interpreters get as far as the sentence.
"""

import os
import platform
import struct
import sys
import sysconfig

OLDEST, NEWEST = (3, 11), (3, 15)
NGHTTP2 = "1.52"
OPENSSL = "3.0"
PLATFORMS = ("linux-x86_64", "linux-aarch64")


def fail(sentence):
    """End the build with one sentence and no traceback."""
    sys.stderr.flush()
    sys.exit("error: gmp-runtime: " + sentence)


def check_interpreter():
    here = "Python %d.%d" % sys.version_info[:2]
    supported = "CPython %d.%d to %d.%d" % (OLDEST + NEWEST)
    if platform.python_implementation() != "CPython":
        fail("needs %s, and this is %s." % (supported, platform.python_implementation()))
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        fail("needs %s, and this is %s." % (supported, here))
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        fail("needs a CPython with the GIL, and this is the free-threaded build of %s." % here)


def check_platform():
    name = sysconfig.get_platform()
    if name not in PLATFORMS or struct.calcsize("P") != 8:
        bits = "" if struct.calcsize("P") == 8 else ", 32-bit"
        fail("runs on Linux on x86-64 and arm64 (64-bit), and this is %s%s." % (name, bits))


check_interpreter()
check_platform()

import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)

CDEF = re.compile(r"^/\* cdef begin \*/$(.*?)^/\* cdef end \*/$", re.MULTILINE | re.DOTALL)
DEBUG = os.environ.get("DEBUG", "") not in ("", "0")
SANITIZE = os.environ.get("SANITIZE", "")
VARIANT = "-".join(["debug"] * DEBUG + ([SANITIZE.replace(",", "+")] if SANITIZE else []))


def version():
    header = Path("csrc/gmp.h").read_text(encoding="utf-8")
    return re.search(r'^#define GMP_VERSION "(.+?)"', header, re.MULTILINE)[1]


def compile_args():
    args = ["-std=gnu11", "-O2", "-g1", "-fno-semantic-interposition", "-fno-plt"]
    if DEBUG or SANITIZE:
        args = ["-std=gnu11", "-O1", "-g", "-fno-omit-frame-pointer"]
    if DEBUG:
        args += ["-DGMP_DEBUG", "-UNDEBUG"]
    if SANITIZE:
        args += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"]
    if os.environ.get("WERROR", "") not in ("", "0"):
        args += ["-Werror"]
    # Address space of a goroutine's C stack.  Before 3.14 CPython counts calls instead of looking at the stack: 1,000 of the
    # common ones have to fit.
    args.append(f"-DGMP_PYTHON_STACK_KIB={1024 if sys.version_info < (3, 14) else 256}")
    return [*args, "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra", "-Wno-unused-parameter"]


def link_args():
    args = ["-pthread", "-Wl,-z,now", "-Wl,-z,noexecstack"]
    return args + ([f"-fsanitize={SANITIZE}"] if SANITIZE else [])


def shared_library(name, flags):
    """Return the path of lib<name> as the linker finds it and the name that programs ask for it by; None for a static one."""
    compiler = shlex.split(os.environ.get("CC", "") or sysconfig.get_config_var("CC") or "cc")
    folders = [f for f in flags if f.startswith("-L")]
    found = subprocess.run([*compiler, *folders, f"-print-file-name=lib{name}.so"], capture_output=True, text=True)
    places = [Path(f[2:], f"lib{name}.so") for f in folders] + [Path(found.stdout.strip() or "?")]
    for path in places:
        if path.is_file():
            real = path.resolve()
            soname = re.match(r".*?\.so\.\d+", real.name)
            return real, soname[0] if soname else real.name
    return None


def copy_library(name, flags, folder, package):
    found = shared_library(name, flags)
    if found is None:
        return
    real, soname = found
    shutil.copy(real, folder / soname)
    for notice in sorted(Path("/usr/share/doc").glob(f"{package}/copyright")):
        shutil.copy(notice, folder / f"lib{name}.LICENSE")


class Build(build):
    """Starts from an empty build_lib: a module that was deleted from the tree must not live on in the wheel."""

    def run(self):
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildExt(build_ext):
    """Adds to setuptools: assembly, the generated cffi binding, parallel and incremental compilation."""

    def run(self):
        self.check_tools()
        if TLS:
            self.extensions[0].extra_compile_args += tls_macros()
        super().run()
        if H2 and not self.inplace:
            self.bundle()

    def bundle(self):
        """Put the libraries into the wheel, which then works where they are not installed.

        libnghttp2 lies beside the extension, which looks for it there.  OpenSSL has a folder of its own, where h2_tls.c looks when the
        system has none: the system's gets security fixes, and one process should have one.
        """
        package = Path(self.build_lib, "gmp")
        copy_library("nghttp2", H2[1], package, "libnghttp2-*")
        if TLS:
            (package / "_openssl").mkdir(exist_ok=True)
            for name in ("ssl", "crypto"):
                copy_library(name, TLS[1], package / "_openssl", "libssl3*")

    def check_tools(self):
        from distutils.ccompiler import new_compiler
        from distutils.sysconfig import customize_compiler

        compiler = new_compiler(compiler=self.compiler)
        customize_compiler(compiler)
        cc = compiler.compiler_so[0]
        if shutil.which(cc) is None:
            fail(f"needs a C compiler, and {cc} was not found: install gcc or clang, or name one in CC.")
        include = sysconfig.get_path("include")
        if not Path(include, "Python.h").exists():
            v = "%d.%d" % sys.version_info[:2]
            fail(f"needs the C headers of Python {v}, and {include} has no Python.h: install python{v}-dev.")
        try:
            import cffi  # noqa: F401
        except ImportError:
            fail("needs cffi to build: pip install cffi, or build without --no-build-isolation.")

    def build_extension(self, ext):
        self.compiler.src_extensions = [*self.compiler.src_extensions, ".S"]
        binding = self.write_binding()
        sources = [binding, *ext.sources]
        macros = ext.define_macros
        flags = repr((self.compiler.compiler_so, ext.extra_compile_args, ext.include_dirs, macros, sys.version))
        headers = max(Path(p).stat().st_mtime for p in [*ext.depends, sysconfig.get_config_h_filename()])
        stamp = Path(self.build_temp, "flags")
        same_flags = stamp.exists() and stamp.read_text() == flags

        def compile_one(source):
            [obj] = self.compiler.object_filenames([source], output_dir=self.build_temp)
            newest = max(headers, Path(source).stat().st_mtime)
            if self.force or not same_flags or not Path(obj).exists() or Path(obj).stat().st_mtime <= newest:
                self.compiler.compile(
                    [source],
                    output_dir=self.build_temp,
                    macros=macros,
                    include_dirs=ext.include_dirs,
                    extra_postargs=ext.extra_compile_args,
                    debug=self.debug,
                )
            return obj

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            objects = [*pool.map(compile_one, sources)]
        stamp.write_text(flags)
        # What is left for setuptools is to link, always: it looks at the sources only, and here it sees none.
        self.force = True
        ext.sources, ext.extra_objects, kept = [], objects, ext.sources
        super().build_extension(ext)
        ext.sources, ext.extra_objects = kept, []

    def write_binding(self):
        """Generate the C half of gmp._cffi, and return its path.  The file changes only when its content does."""
        import cffi

        header = Path("csrc/gmp.h").read_text(encoding="utf-8")
        declarations = CDEF.search(header)
        if declarations is None:
            fail("csrc/gmp.h has lost its cdef markers.")
        ffi = cffi.FFI()
        ffi.cdef(declarations[1])
        ffi.set_source("gmp._cffi", '#include "gmp.h"')
        path = Path(self.build_temp, "_cffi.c")
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".tmp")
        ffi.emit_c_code(str(fresh))
        if path.exists() and fresh.read_bytes() == path.read_bytes():
            fresh.unlink()
        else:
            fresh.replace(path)
        return str(path)

    def get_source_files(self):
        return [*super().get_source_files(), *(d for ext in self.extensions for d in ext.depends)]


class BuildPy(build_py):
    """Adds gmp/include/gmp.h, and gmp.protos, the Python code of protos/*.proto.  Without grpcio-tools the wheel goes without."""

    def run(self):
        super().run()
        root = Path("." if self.editable_mode else self.build_lib)
        (root / "gmp/include").mkdir(exist_ok=True)
        shutil.copy("csrc/gmp.h", root / "gmp/include/gmp.h")
        self.generate(root)

    def generate(self, root):
        protos = sorted(str(p) for p in Path("protos").glob("*.proto"))
        if not protos:
            return
        try:
            import grpc_tools
        except ImportError as e:
            print(f"warning: gmp-runtime: building without gmp.protos, grpcio-tools cannot be imported: {e}")
            return
        package = root / "gmp" / "protos"
        package.mkdir(parents=True, exist_ok=True)
        out = [f"--{kind}_out={root}" for kind in ("python", "pyi", "grpc_python")]
        wellknown = Path(grpc_tools.__file__).parent / "_proto"
        # "virtual=disk" makes the generated code import its neighbours as gmp.protos.X.
        command = [sys.executable, "-m", "grpc_tools.protoc", "-Igmp/protos=protos", f"-I{wellknown}", *out]
        command += [f"gmp/{p}" for p in protos]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            fail(f"protoc refused protos/: {done.stderr.strip()}")
        names = ", ".join(Path(p).name for p in protos)
        (package / "__init__.py").write_text(f'"""Generated at build by grpcio-tools from {names}."""\n')


def library(package, oldest, variable, consequence, remedy):
    """Return the compiler's and the linker's flags for a library, or None and a warning: gmp is built without it."""
    config = os.environ.get("PKG_CONFIG", "pkg-config")
    if os.environ.get(variable, "") not in ("", "0"):
        missing = f"{variable} is set"
    elif shutil.which(config) is None:
        missing = f"{config} was not found"
    else:
        found = subprocess.run([config, "--cflags", "--libs", f"{package} >= {oldest}"], capture_output=True, text=True)
        if found.returncode == 0:
            flags = shlex.split(found.stdout)
            return [f for f in flags if f[:2] in ("-I", "-D")], [f for f in flags if f[:2] not in ("-I", "-D")]
        missing = f"{config} finds no {package} {oldest} or newer"
    print(
        f"warning: gmp-runtime: {missing}: building without {consequence}; apt-get install {remedy} pkg-config",
        file=sys.stderr,
    )
    return None


def tls_macros():
    """The names that h2_tls.c loads OpenSSL by: those of the version whose headers it is compiled with."""
    found = {name: shared_library(name, TLS[1]) for name in ("ssl", "crypto")}
    return [f'-DGMP_LIB{name.upper()}="{at[1]}"' for name, at in found.items() if at is not None]


def build_options():
    """Variants keep their objects apart, so that a sanitizer build does not spoil the next ordinary one."""
    return {"build": {"build_base": f"build/{VARIANT}"}} if VARIANT else {}


def sources(pattern):
    return sorted(str(p) for p in Path("csrc").glob(pattern))


H2 = library(
    "libnghttp2",
    NGHTTP2,
    "GMP_NO_NGHTTP2",
    "the native gRPC server, gmp.grpc.server will use grpcio's",
    "libnghttp2-dev",
)
TLS = H2 and library("openssl", OPENSSL, "GMP_NO_OPENSSL", "TLS for the native gRPC server", "libssl-dev")
if H2:
    LEFT_OUT = {"csrc/py_nogrpc.c", "csrc/h2_notls.c" if TLS else "csrc/h2_tls.c"}
else:
    LEFT_OUT = {*sources("py_grpc*.c"), "csrc/py_tls.c", *sources("h2_*.c")}
CFLAGS = (H2[0] if H2 else []) + (TLS[0] if TLS else [])

setup(
    version=version(),
    cmdclass={"build": Build, "build_ext": BuildExt, "build_py": BuildPy},
    options=build_options(),
    ext_modules=[
        Extension(
            "gmp._core",
            sources=[s for s in sources("*.c") if s not in LEFT_OUT] + sources("*.S"),
            depends=sources("*.h"),
            include_dirs=["csrc"],
            extra_compile_args=compile_args() + CFLAGS + shlex.split(os.environ.get("GMP_CFLAGS", "")),
            extra_link_args=link_args() + ([*H2[1], "-Wl,-rpath,$ORIGIN"] if H2 else []),
        )
    ],
)
