#!/bin/bash
# arm64.sh [PART...]: gmp as AArch64 on another machine, under qemu-user.  PART: c, bti, python; all without one.
#   c        the C tests on a plain ARMv8.0 CPU, and with pointer authentication
#   bti      the C tests as a library all of whose pages demand landing pads, and a control that must die for want of one
#   python   the wheel, cross-built for this Debian's python3 (without the gRPC server's libraries), and tests/interop/arm64_smoke.py
# Needs Debian or Ubuntu; installs what is missing when run by root.  qemu accepts guards of stacks by madvise and ignores them:
# the core notices and uses mprotect.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD
cross=aarch64-linux-gnu
export QEMU_LD_PREFIX=/usr/$cross
sysroot=$here/.venvs/arm64-sysroot
limit="timeout --kill-after=20 900"

missing=""
command -v $cross-gcc >/dev/null || missing="$missing gcc-$cross"
[ -e /usr/$cross/include/stdio.h ] || missing="$missing libc6-dev-arm64-cross"
command -v qemu-aarch64 >/dev/null || missing="$missing qemu-user"
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "arm64.sh: install$missing first" >&2
        exit 1
    fi
    apt-get -qq update
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >/dev/null
fi

run_c() {
    echo "== C tests, cortex-a57"
    $limit make --no-print-directory -s -C csrc test CC=$cross-gcc RUN="qemu-aarch64 -cpu cortex-a57"
    echo "== C tests, pointer authentication"
    $limit make --no-print-directory -s -C csrc test CC=$cross-gcc EXTRA=-mbranch-protection=standard \
        BUILD=build/arm64-pac RUN="qemu-aarch64 -cpu max,pauth-impdef=on"
}

# A program's start files are not ready for landing pads everywhere, a library needs none: so the tests are one.
run_bti() {
    local b=build/arm64-bti
    echo "== C tests, landing pads enforced"
    mkdir -p csrc/$b
    cat >csrc/$b/main.c <<'X'
int test_main(int argc, char **argv);
int
main(int argc, char **argv)
{
    return test_main(argc, argv);
}
X
    cat >csrc/$b/control.c <<'X'
__asm__(".globl no_pad\nno_pad: ret\n");
void no_pad(void);
int
test_main(int argc, char **argv)
{
    (void)argv;
    void (*volatile fn)(void) = no_pad;
    if (argc > 1)
        fn();
    return 0;
}
X
    # The linker warns of an object whose note does not promise landing pads: of ours there may be none.
    $cross-gcc -shared -nostartfiles -mbranch-protection=standard -Wl,-z,force-bti -o csrc/$b/libcontrol.so -fPIC csrc/$b/control.c \
        2>/dev/null
    $cross-gcc -o csrc/$b/control csrc/$b/main.c csrc/$b/libcontrol.so -Wl,-rpath,"$here/csrc/$b"
    qemu-aarch64 -cpu max,pauth-impdef=on csrc/$b/control
    if { qemu-aarch64 -cpu max,pauth-impdef=on csrc/$b/control without; } >/dev/null 2>&1; then
        echo "arm64.sh: a missing landing pad goes unnoticed here" >&2
        exit 1
    fi
    make --no-print-directory -s -C csrc H2= TLS= BUILD=$b CC=$cross-gcc RUNNER=$b/libtests.so \
        EXTRA="-mbranch-protection=standard -mno-outline-atomics -Dmain=test_main -fvisibility=default" \
        LDFLAGS="-shared -nostartfiles -Wl,-z,force-bti -Wl,--fatal-warnings" $b/libtests.so
    $cross-readelf -n csrc/$b/libtests.so | grep -q 'AArch64 feature:.*BTI'
    $cross-gcc -o csrc/$b/test csrc/$b/main.c csrc/$b/libtests.so -Wl,-rpath,"$here/csrc/$b"
    # Programs of their own, which the tests start.
    make --no-print-directory -s -C csrc H2= TLS= BUILD=build/arm64-pac CC=$cross-gcc EXTRA=-mbranch-protection=standard \
        build/arm64-pac/examples/sieve build/arm64-pac/examples/echo
    mkdir -p csrc/$b/examples
    cp csrc/build/arm64-pac/examples/{sieve,echo} csrc/$b/examples/
    GMP_TEST_SLOW=1 GMP_TEST_RUN="qemu-aarch64 -cpu max,pauth-impdef=on" $limit qemu-aarch64 -cpu max,pauth-impdef=on csrc/$b/test
}

run_python() {
    echo "== Python"
    local version site host=/usr/bin/python3 venv=.venvs/arm64
    mkdir -p .venvs
    version=$(tools/foreign-python.sh "$sysroot" arm64)
    if [ "$("$host" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != "$version" ]; then
        echo "arm64.sh: $host is not the Python $version that was unpacked" >&2
        exit 1
    fi
    [ "${version#3.}" -ge 11 ] || { echo "arm64.sh: Python $version is too old for gmp: skipped"; return; }
    make --no-print-directory -s VENV=$venv PYTHON=$host $venv/build-env/.deps
    # sysconfig of the target: its compiler, suffix and platform.  Its pyconfig.h is found after everything else.
    GMP_NO_NGHTTP2=1 _PYTHON_HOST_PLATFORM=linux-aarch64 _PYTHON_SYSCONFIGDATA_NAME=_sysconfigdata__$cross \
        PYTHONPATH=$sysroot/usr/lib/python$version CFLAGS="-mbranch-protection=standard -idirafter $sysroot/usr/include" \
        $venv/build-env/bin/python tools/build.py $venv/wheel >$venv/wheel.path
    site=$venv/site
    rm -rf $site
    $venv/build-env/bin/python -m pip install --quiet --disable-pip-version-check --target $site --no-deps --only-binary :all: \
        --platform manylinux2014_aarch64 --python-version "$version" cffi pycparser
    $venv/build-env/bin/python -m zipfile -e "$(tail -n 1 $venv/wheel.path)" $site
    for cpu in cortex-a57 max,pauth-impdef=on; do
        PYTHONPATH=$here/$site PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 $limit qemu-aarch64 -L "$sysroot" -cpu $cpu \
            "$sysroot/usr/bin/python$version" tests/interop/arm64_smoke.py
    done
}

for part in "${@:-c bti python}"; do
    for p in $part; do run_"$p"; done
done
echo "arm64: ok"
