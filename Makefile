# make demo       the Greeter on goroutines against thread pools and asyncio
# make test       the C tests, then pytest               make pytest SUITE=tests/unit PYTEST_ARGS=-x   some of it
# make bench      every benchmark, beside its peers
# make stress     all of it together for a minute; SEED=123 repeats a run, SECONDS=600 makes it longer
# make lint       ruff, mypy --strict, clang-format          make format   lets them write
# make pythons    the suite on every supported CPython of this machine; GMP_PYTHONS="/a/python3.14 ..." adds some,
#                 ONLY="3.14 3.15" picks some
# make asan ubsan tsan    under sanitizers
# make model      every interleaving of the core's protocols, within bounds (tests/model); the short run is part of make test
# make fuzz       libFuzzer on the gRPC engine (tests/fuzz; clang); SECONDS=3600 makes it longer.  make test replays its corpus
# make arm64      the C tests and a smoke test of the extension as AArch64, under qemu-user
# make kqueue     the C tests on the net poller for macOS and the BSDs (by libkqueue, else what the tests make of epoll)
# make windows    the C core for Windows, its tests under Wine       make macos    for macOS and FreeBSD: compiled and linked
# make wheel      dist/*.whl and dist/*.tar.gz
# make clean
#
# Needs Linux, a CPython 3.11 to 3.15 with headers, a C compiler, and libnghttp2 and OpenSSL for the gRPC server (tools/apt.sh installs
# them where it may); everything else goes into $(VENV).
# What is tested is the wheel as installed there, never the tree.  Both are rebuilt when a source changed.

PYTHON ?= python3
VENV ?= .venv
SUITE ?= tests
PYTEST_ARGS ?=
TEST_BUDGET ?= 1500
OUT ?= dist

PY := $(VENV)/bin/python
BUILDER := $(VENV)/build-env
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# With a safe path the current folder is not searched, so "import gmp" finds the installed wheel and not ./gmp.
RUN := env PYTHONSAFEPATH=1 $(abspath $(PY))

SOURCES := setup.py pyproject.toml MANIFEST.in $(wildcard csrc/*.[chS] gmp/*.py gmp/*.pyi gmp/py.typed \
	gmp/[!p]*/*.py protos/*.proto)

.PHONY: demo test ctest pytest stress bench lint format pythons asan ubsan tsan sanitized sanitized-pytest model arm64
.PHONY: fuzz kqueue windows macos wheel install clean FORCE
.DELETE_ON_ERROR:

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(RUN) -m benchmarks.demo $(DEMO_ARGS)

test: ctest pytest

ctest:
	@PYTHON=$(PYTHON) tools/apt.sh test
	$(MAKE) -C csrc test
	$(MAKE) -C csrc test NETPOLL=kqueue LOCK=sema T=test_netpoll

pytest: $(VENV)/.installed $(VENV)/.deps-test
	GMP_TEST_BUDGET=$(TEST_BUDGET) GMP_WHEEL="$$(cat $(VENV)/.wheel)" GMP_BUILD_PYTHON=$(abspath $(BUILDER)/bin/python) \
		timeout --kill-after=20 $$(($(TEST_BUDGET) + 120)) $(RUN) -m pytest $(SUITE) $(PYTEST_ARGS)

stress: $(VENV)/.installed
	$(RUN) tests/stress/everything.py --seed $(or $(SEED),0) --seconds $(or $(SECONDS),60)

bench: $(VENV)/.installed $(VENV)/.deps-bench
	$(RUN) -m pytest benchmarks --benchmark-sort=name $(BENCH_ARGS)

lint: $(VENV)/.deps-lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy --strict gmp
	$(VENV)/bin/clang-format --dry-run -Werror csrc/*.[ch]

format: $(VENV)/.deps-lint
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i csrc/*.[ch]

pythons:
	PYTHON="$(PYTHON)" PYTEST_ARGS="$(PYTEST_ARGS)" tools/pythons.sh $(ONLY)

# The C tests, then the unit tests on an extension built the same way.  Python itself is not instrumented, so the sanitizer's
# runtime has to be there before it.  ThreadSanitizer cannot be brought into a finished Python: it gets the C tests only.
asan:
	$(MAKE) sanitized SANITIZE=address,undefined RUNTIME=libasan.so
ubsan:
	$(MAKE) sanitized SANITIZE=undefined RUNTIME=libubsan.so
tsan:
	$(MAKE) -C csrc test SANITIZE=thread

model:
	$(MAKE) -C tests/model

fuzz:
	tools/apt.sh fuzz
	$(MAKE) -C tests/fuzz SECONDS=$(or $(SECONDS),60)

arm64:
	tools/arm64.sh

sanitized:
	$(MAKE) -C csrc test SANITIZE=$(SANITIZE)
	CC="$${CC:-cc}" SANITIZE=$(SANITIZE) DEBUG=1 $(MAKE) VENV=.venvs/$(basename $(RUNTIME)) sanitized-pytest

sanitized-pytest: $(VENV)/.installed $(VENV)/.deps-test
	env LD_PRELOAD="$$($$CC -print-file-name=$(RUNTIME))" PYTHONMALLOC=malloc \
		ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=0:detect_stack_use_after_return=0:$$ASAN_OPTIONS \
		UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:handle_segv=0:handle_sigbus=0:handle_abort=0:$$UBSAN_OPTIONS GMP_TEST_BUDGET=$(TEST_BUDGET) GMP_SANITIZE=$(SANITIZE) \
		$(RUN) -m pytest $(SUITE:tests=tests/unit) -m "not slow" $(PYTEST_ARGS)

# ---- other systems: the C core alone; csrc/HACKING.md says what that shows ----
kqueue:
	$(MAKE) -C csrc test NETPOLL=kqueue LOCK=sema

# Not inside the tree: a Wine folder has a link to /, and setuptools follows links.
WINEPREFIX ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/gmp-wine
windows:
	tools/apt.sh windows
	mkdir -p $(WINEPREFIX)
	WINEPREFIX=$(WINEPREFIX) WINEDEBUG=-all DISPLAY= $(MAKE) -C csrc test CC=x86_64-w64-mingw32-gcc

FOREIGN := aarch64-macos x86_64-macos x86_64-freebsd
macos: $(VENV)/.deps-cross
	@for target in $(FOREIGN); do \
		$(MAKE) -C csrc runner CC="$(abspath $(PY)) -m ziglang cc -target $$target" AR="$(abspath $(PY)) -m ziglang ar" \
			EXTRA=-Wno-unused-command-line-argument VARIANT=$$target || exit; \
	done

wheel: $(BUILDER)/.deps
	@PYTHON=$(PYTHON) tools/apt.sh
	$(BUILDER)/bin/python tools/build.py --sdist $(OUT)

clean:
	rm -rf build dist csrc/build tests/model/build tests/fuzz/build gmp/protos *.egg-info gmp/*.so .pytest_cache .mypy_cache .ruff_cache .benchmarks
	rm -rf .venv .venvs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the environment -------------------------------------------------------------------------------------------------
# $(VENV)          what users have: the wheel, its extras, test tools
# $(VENV)/build-env    what a build has: the requirements of [build-system]

# The path entry makes benchmarks/ importable, after everything that is installed.
$(PY):
	tools/venv.sh $(VENV) $(PYTHON)
	echo "$(CURDIR)" > "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tree.pth"

$(BUILDER)/bin/python: | $(PY)
	tools/venv.sh $(BUILDER) $(PY)

$(BUILDER)/.deps: pyproject.toml tools/requires.py | $(BUILDER)/bin/python
	@tools/pip-sync.sh $(BUILDER) build
	@touch $@

# Extras of the wheel and the tools around it: installed again only when what pyproject.toml asks for has changed.
$(VENV)/.deps-%: pyproject.toml tools/requires.py | $(PY)
	@tools/pip-sync.sh $(VENV) $*
	@touch $@

# The list makes a deleted source count as a change.
$(VENV)/.sources: FORCE | $(PY)
	@echo $(SOURCES) | cmp -s - $@ || echo $(SOURCES) > $@

$(VENV)/.wheel: $(SOURCES) $(VENV)/.sources $(BUILDER)/.deps
	@PYTHON=$(PYTHON) tools/apt.sh
	$(BUILDER)/bin/python tools/build.py $(VENV)/wheel > $@.new
	mv $@.new $@

$(VENV)/.installed: $(VENV)/.wheel $(VENV)/.deps-grpc
	$(PY) $(PIP_INSTALL) --force-reinstall --no-deps "$$(cat $<)"
	@touch $@
