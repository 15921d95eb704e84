#!/bin/sh
# apt.sh [windows|test|fuzz]: install the Debian packages that a build needs and that are missing; with "windows" also the cross compiler
# and Wine, with "test" HTTP/2 clients, with "fuzz" clang.  Does nothing where nothing is missing, on other systems, and for other users
# than root.
set -u
python=${PYTHON:-python3}
need=""
command -v make >/dev/null || need="$need make"
command -v "${CC:-cc}" >/dev/null || need="$need gcc"
echo '#include <stdio.h>' | "${CC:-cc}" -E - >/dev/null 2>&1 || need="$need libc6-dev"
command -v "$python" >/dev/null || need="$need python3"
headers='import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
"$python" -c "$headers" 2>/dev/null || need="$need python3-dev"
"$python" -c 'import venv, ensurepip' 2>/dev/null || need="$need python3-venv"
pkg-config --exists "libnghttp2 >= 1.52" 2>/dev/null || need="$need pkg-config libnghttp2-dev"
pkg-config --exists "openssl >= 3.0" 2>/dev/null || need="$need pkg-config libssl-dev"
if [ "${1:-}" = windows ]; then
    command -v x86_64-w64-mingw32-gcc >/dev/null || need="$need gcc-mingw-w64-x86-64-posix"
    command -v wine >/dev/null || need="$need wine wine64"
fi
if [ "${1:-}" = fuzz ]; then
    command -v clang >/dev/null || need="$need clang"
fi
if [ "${1:-}" = test ]; then
    command -v h2load >/dev/null || need="$need nghttp2-client"
    command -v curl >/dev/null || need="$need curl"
fi

[ -n "$need" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "apt.sh: missing here:$need" >&2
    exit 0
fi
echo "installing$need"
apt-get -qq update
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $need >/dev/null
