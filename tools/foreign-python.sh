#!/bin/bash
# foreign-python.sh DIR ARCH: unpack this Debian's own python3, with headers, for another architecture into DIR (a sysroot).
# Comes from the package sources that this machine is set up with; nothing is installed, and the machine's own package lists stay
# as they are.  Does nothing when DIR is there.  Prints the version, such as 3.11.
set -euo pipefail
root=$1 arch=$2

if [ ! -e "$root/version" ]; then
    state=$(mktemp -d)
    trap 'rm -rf "$state"' EXIT
    mkdir -p "$state"/lists/partial "$state"/archives/partial
    : >"$state/status"
    cat >"$state/apt.conf" <<X
Dir::State "$state"; Dir::State::lists "$state/lists"; Dir::State::status "$state/status"; Dir::Cache "$state";
Dir::Cache::archives "$state/archives"; APT::Architecture "$arch"; APT::Architectures { "$arch"; };
APT::Install-Recommends "false"; APT::Sandbox::User "root"; Acquire::Languages "none"; Debug::NoLocking "true";
X
    export APT_CONFIG=$state/apt.conf
    apt-get -qq update >&2 || true # a source without this architecture is none of our business
    apt-get -qq -y --download-only install python3 libpython3-dev libc6 >/dev/null
    rm -rf "$root.new"
    mkdir -p "$root".new/usr/{bin,sbin,lib,lib64}
    for d in bin sbin lib lib64; do ln -sfn usr/$d "$root.new/$d"; done # as on a machine: /lib is /usr/lib
    for deb in "$state"/archives/*.deb; do dpkg-deb -x "$deb" "$root.new"; done # keeps the links
    rm -rf "$root".new/usr/share/{doc,man,locale}
    for python in "$root".new/usr/bin/python3.[0-9]*; do
        case ${python##*/} in *-*) ;; *) echo "${python##*python}" >"$root.new/version" ;; esac
    done
    mv "$root.new" "$root"
fi
cat "$root/version"
