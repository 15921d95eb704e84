#!/bin/bash
# pythons.sh [VERSION...]: run the suite on every supported CPython of this machine, each in an environment of its own under
# .venvs/, with the wheel built for it.  Prints one line a version at the end; fails if one of them failed.
#
# Looks at python3.N on PATH, at pyenv's versions and at the paths in $GMP_PYTHONS.  VERSION, such as 3.14 or 3.13.0, picks.
# Another patch release of one minor version counts as another version: CPython's private structs differ between them.
set -u
cd "$(dirname "$0")/.." || exit
supported="3.11 3.12 3.13 3.14 3.15"

candidates() {
    local p v root
    for p in ${GMP_PYTHONS:-}; do echo "$p"; done
    for v in $supported; do type -ap "python$v"; done
    root=${PYENV_ROOT:-$HOME/.pyenv}
    for p in "$root"/versions/*/bin/python3; do [ -x "$p" ] && echo "$p"; done
}

# "version path", or nothing when it is no Python that can be built for.  A virtual environment counts as its base.
describe='
import os, platform, sys, sysconfig
version = "%d.%d.%d" % sys.version_info[:3]
if platform.python_implementation() == "CPython" and (3, 11) <= sys.version_info[:2] <= (3, 15):
    path = getattr(sys, "_base_executable", sys.executable)
    flags = sys.abiflags
    headers = os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
    print(version + flags, path if headers and "t" not in flags else "-")
'

declare -A path
unbuildable=""
while read -r candidate; do
    read -r version executable < <("$candidate" -c "$describe" 2>/dev/null) || continue
    if [ "$executable" = - ]; then
        case $version in *t*) why="free-threaded" ;; *) why="no Python.h" ;; esac
        unbuildable="$unbuildable$version $why: $candidate"$'\n'
    elif [ -z "${path[$version]:-}" ]; then
        path[$version]=$executable
    fi
done < <(candidates)

wanted() {
    [ $# -gt 1 ] || return 0
    local version=$1 pick
    shift
    for pick; do case $version in "$pick" | "$pick".*) return 0 ;; esac; done
    return 1
}

table="" status=0
mkdir -p .venvs
for version in $(printf '%s\n' "${!path[@]}" | sort -V); do
    wanted "$version" "$@" || continue
    echo "=== CPython $version (${path[$version]})"
    log=.venvs/$version.log
    if ${MAKE:-make} pytest VENV=".venvs/$version" PYTHON="${path[$version]}" PYTEST_ARGS="${PYTEST_ARGS:-}" 2>&1 | tee "$log"
        [ "${PIPESTATUS[0]}" = 0 ]; then
        result=passed
    else
        result=FAILED status=1
    fi
    summary=$(grep -E '^=+ .*(passed|failed|error).* =+$' "$log" | tail -n 1 | sed 's/^=* //; s/ =*$//')
    table="$table$(printf '%-10s %-7s %s' "$version" "$result" "${summary:-no tests ran: see $log}")"$'\n'
done

for minor in $supported; do
    wanted "$minor.0" "$@" || continue
    case " ${!path[*]}" in
    *" $minor."*) ;;
    *) table="$table$(printf '%-10s %-7s %s' "$minor" skipped "not found: put python$minor on PATH or its path into GMP_PYTHONS")"$'\n' ;;
    esac
done
[ -n "$unbuildable" ] && table="$table"$'not built for:\n'"$unbuildable"

echo
printf '%s' "$table"
exit $status
