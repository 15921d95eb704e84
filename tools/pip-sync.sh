#!/bin/sh
# pip-sync.sh VENV NAME: install what tools/requires.py says for NAME into VENV, unless it says what it said last time.
set -eu
wanted=$("$1/bin/python" "$(dirname "$0")/requires.py" "$2")
have=$1/.requires-$2
if [ "$wanted" != "$(cat "$have" 2>/dev/null)" ]; then
    echo "installing the requirements of '$2' into $1"
    echo "$wanted" >"$have.new"
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --prefer-binary --requirement "$have.new"
    mv "$have.new" "$have"
fi
