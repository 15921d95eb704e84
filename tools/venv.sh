#!/bin/sh
# venv.sh DIR [PYTHON]: make a virtual environment with pip in DIR, on any machine that can be talked into it.
# Debian splits venv's bundled pip into a package of its own, so the plain way may fail; the others follow in turn.
set -u
dir=$1
python=${2:-python3}

say() { echo "venv.sh: $*" >&2; }

if ! "$python" -c 'import sys' 2>/dev/null; then
    say "$python is not a Python that runs here: name one with PYTHON=..."
    exit 1
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

has_pip() { "$dir/bin/python" -m pip --version >/dev/null 2>&1; }

plain() { "$python" -m venv --clear "$dir" >/dev/null 2>&1 && has_pip; }

by_virtualenv() {
    { "$python" -m virtualenv --quiet --clear "$dir" || virtualenv --quiet --clear -p "$python" "$dir"; } >/dev/null 2>&1 && has_pip
}

# Any pip on the machine can fetch the current pip, which is one file that runs under every Python.
by_other_pip() {
    "$python" -m venv --clear --without-pip "$dir" >/dev/null 2>&1 || return 1
    tmp=$(mktemp -d) || return 1
    for pip in "$python -m pip" "python3 -m pip" pip3 pip; do
        $pip download --quiet --no-deps --only-binary :all: --dest "$tmp" pip >/dev/null 2>&1 && break
    done
    "$dir/bin/python" "$(echo "$tmp"/pip-*.whl)/pip" install --quiet --no-index "$tmp"/pip-*.whl >/dev/null 2>&1
    rm -rf "$tmp"
    has_pip
}

by_apt() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "installing python$version-venv"
    apt-get -qq update >/dev/null 2>&1
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y "python$version-venv" >/dev/null 2>&1 ||
        DEBIAN_FRONTEND=noninteractive apt-get -qq install -y python3-venv >/dev/null 2>&1
    plain
}

plain || by_virtualenv || by_other_pip || by_apt || {
    rm -rf "$dir"
    say "$python cannot make a virtual environment with pip: on Debian and Ubuntu, apt-get install python3-venv"
    exit 1
}
