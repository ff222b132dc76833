#!/usr/bin/env bash
# Tries the install and a short training run on bare machines, one after the other, and prints a table.
#
#   docker/matrix.sh [ROW ...]     default: all rows; docker/matrix.sh --list names them
#   MATRIX_RUN="make install" docker/matrix.sh      something quicker than a training run
#
# Each machine is a Debian root of its own under $MATRIX_TMP (default: /tmp), made by mmdebstrap and removed at the
# end, with a fresh clone of this checkout's last commit. Needs root, mmdebstrap, git, unshare, and up to 9 GB of
# disk. Packages come from where apt and pip of this machine get theirs; $MATRIX_SHOW names more files and folders
# that the row `settings` shows in its root (local indexes, pip's files), $MATRIX_PYTHON a CPython 3.12 for `slim`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
TMP=${MATRIX_TMP:-/tmp} BASIC=python3,python3-venv,git,make,ca-certificates TABLE=() LOG=${MATRIX_LOG:-/dev/stderr}
TRAIN=${MATRIX_RUN:-make train ARGS='"experiment=smoke run.name=matrix"' && test -d runs/matrix/final}

mirror() { cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | grep -m1 -oE 'https?://\S+/debian/?(\s|$)' || true; }

make_root() {  # suite, packages with commas -> ROOT
    ROOT=$(mktemp -d "$TMP/bare-$1-XXXX")
    chmod 755 "$ROOT"
    mmdebstrap --quiet --variant=minbase --include="$2" "$1" "$ROOT" $(mirror) \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Check-Date "false"' >>"$LOG" 2>&1
    cp -L /etc/resolv.conf /etc/hosts "$ROOT/etc/"
    cp -L /etc/ssl/certs/ca-certificates.crt "$ROOT/etc/ssl/certs/"  # what this machine trusts, a company's own authority with it
    git clone --quiet . "$ROOT/src"
}

drop_root() { rm -rf --one-file-system "$ROOT"; }

inside() {  # commands, run in ROOT/src; NET=no, SYS=no, READONLY=yes (the home), FOLDER, SHOW, SETTINGS (NAME=VALUE ...)
    local net=()
    [ "${NET:-yes}" = yes ] || net=(--net)
    SYS=${SYS:-yes} READONLY=${READONLY:-no} SHOW=${SHOW:-} unshare --mount "${net[@]}" bash -euc '
        root=$1 folder=$2 commands=$3; shift 3
        [ "$(readlink /proc/self/ns/net)" = "$(readlink /proc/1/ns/net 2>/dev/null)" ] || ip link set lo up 2>/dev/null || true
        shown="/proc /dev $SHOW"; [ "$SYS" = no ] || shown="$shown /sys"
        for path in $shown; do
            if [ -d "$path" ]; then mkdir -p "$root$path"; else mkdir -p "$root${path%/*}"; touch "$root$path"; fi
            mount --rbind --make-rslave "$path" "$root$path"
        done
        mount -t tmpfs tmpfs "$root/dev/shm"
        if [ "$READONLY" = yes ]; then mount --bind "$root/root" "$root/root"; mount -o remount,bind,ro "$root/root"; fi
        exec chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8 "$@" \
            bash -ec "cd \"$folder\"; $commands"
    ' matrix "$ROOT" "${FOLDER:-/src}" "$1" ${SETTINGS:-}
}

try() {  # what it is, expected (ok, or a part of the last line that refuses), commands
    local start=$SECONDS said status=ok last
    said=$(mktemp)
    echo "--- $1" >>"$LOG"
    inside "$3" >"$said" 2>&1 </dev/null || status="exit $?"
    cat "$said" >>"$LOG"
    if [ "$2" != ok ] && [ "$status" != ok ] && grep -v '^make: ' "$said" | tail -1 | grep -q -e "$2"; then status=refused; fi
    last=$({ grep -E "^install: (uv,|pip,|.*  ->|failed)" "$said" || true; } | tail -1 | sed -E 's/^install: //' | cut -c1-150)
    TABLE+=("$(printf '%-46s %-8s %5d s  %s' "$1" "$status" $((SECONDS - start)) "$last")")
    echo "${TABLE[-1]}"
    rm -f "$said"
}

own_authority() {  # and nothing but the index, no libsndfile: any company
    make_root bookworm "$BASIC"
    try "Debian 12, Python 3.11, no libnuma" "apt-get install libnuma1" "make train"
    chroot "$ROOT" bash -c 'apt-get update -qq && apt-get install -y -qq libnuma1' >>"$LOG" 2>&1
    SYS=no try "the same without /sys" "mount /sys" "make train"
    NET=no try "the same without a network" "failed: " "make train; rm -rf .venv"
    try "Debian 12, the index only, own authority" ok "$TRAIN"
    drop_root
}

settings() {  # this machine's own pip settings, and what is tried after an install
    make_root bookworm "$BASIC,libnuma1"
    export SHOW=${MATRIX_SHOW:-} SETTINGS
    SETTINGS=$(env | grep '^PIP_' | tr '\n' ' ' || true)
    try "Debian 12, this machine's pip settings" ok "$TRAIN"
    NET=no try "no network after the install" ok "rm -rf runs; $TRAIN"
    READONLY=yes try "home read-only after the install" ok "rm -rf runs; $TRAIN"
    git clone --quiet . "$ROOT/a second clone"
    FOLDER="/a second clone" try "a second clone beside it, path with spaces" ok "$TRAIN"
    READONLY=yes try "home read-only from the start" ok "rm -rf .venv; make install"
    unset SHOW SETTINGS
    drop_root
}

trixie() {
    make_root trixie "$BASIC,libnuma1"
    try "Debian 13, Python 3.13" ok "$TRAIN"
    drop_root
}

slim() {  # the packages of python:3.12-slim and the interpreter below /usr/local
    [ -n "${MATRIX_PYTHON:-}" ] || { TABLE+=("python:3.12-slim: not tried, MATRIX_PYTHON is not set"); return; }
    make_root bookworm ca-certificates,netbase,tzdata,libssl3,libsqlite3-0,libffi8,libbz2-1.0,liblzma5,libreadline8,zlib1g,git,make,libnuma1
    cp -a "$("$MATRIX_PYTHON" -c 'import sys; print(sys.base_prefix)')/." "$ROOT/usr/local/"
    try "python:3.12-slim's packages" ok "$TRAIN"
    drop_root
}

pip_alone() {
    make_root bookworm "$BASIC,libnuma1"
    SETTINGS=WAVGATE_INSTALLER=pip try "pip alone (WAVGATE_INSTALLER=pip)" ok "$TRAIN"
    drop_root
}

uv_alone() {  # an interpreter without pip and venv, and a uv
    make_root bookworm "${BASIC/python3-venv,/},libnuma1"
    python3 -m pip install --quiet --target "$ROOT/opt/uv" uv && ln -s /opt/uv/bin/uv "$ROOT/usr/local/bin/uv"
    try "uv alone, no pip, no venv module" ok "$TRAIN"
    drop_root
}

ROWS=(own_authority settings trixie slim pip_alone uv_alone)
if [ "${1:-}" = --list ]; then echo "${ROWS[*]}"; exit 0; fi
[ $# = 0 ] || ROWS=("$@")
trap '[ -z "${ROOT:-}" ] || drop_root' EXIT
for row in "${ROWS[@]}"; do "$row"; done
printf '\n%s\n' "${TABLE[@]}"
for line in "${TABLE[@]}"; do [[ $line != *" exit "* ]] || exit 1; done
