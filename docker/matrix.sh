#!/usr/bin/env bash
# Tries the install and a short training run on bare machines, one after the other, and prints a table.
#
#   docker/matrix.sh [ROW ...]     default: all rows; docker/matrix.sh --list names them
#   MATRIX_RUN="make install" docker/matrix.sh      something quicker than a training run
#
# Each machine is a Debian root of its own under $MATRIX_TMP (default: /tmp), removed at the end, with a fresh clone
# of this checkout's last commit. Needs root, mmdebstrap, git, unshare, and up to 9 GB of disk. Packages come from
# where apt and pip of this machine get theirs; $MATRIX_SHOW names more files and folders that the row `settings`
# shows in its root (local indexes, pip's files), $MATRIX_PYTHON a CPython 3.12 for `slim`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. docker/bare.sh
TMP=${MATRIX_TMP:-/tmp} BASIC=python3,python3-venv,git,make,ca-certificates TABLE=() LOG=${MATRIX_LOG:-/dev/stderr}
TRAIN=${MATRIX_RUN:-make train ARGS='"experiment=smoke run.name=matrix"' && test -d runs/matrix/final}
SETTINGS=() # NAME=VALUE: environment variables of a user there

machine() { # suite, packages with commas -> ROOT, the checkout in its /src
    ROOT=$(mktemp -d "$TMP/bare-$1-XXXX")
    make_root "$ROOT" "$1" "$2" >>"$LOG" 2>&1
    git clone --quiet . "$ROOT/src"
}

drop() { rm -rf --one-file-system "$ROOT"; }

try() { # what it is, expected (ok, or a part of the last line that refuses), commands [, their folder]
    local start=$SECONDS said status=ok last
    said=$(mktemp)
    echo "--- $1" >>"$LOG"
    inside "$ROOT" "${4:-/src}" "$3" "${SETTINGS[@]}" >"$said" 2>&1 || status="exit $?"
    cat "$said" >>"$LOG"
    if [ "$2" != ok ] && [ "$status" != ok ] && grep -v '^make: ' "$said" | tail -1 | grep -q -e "$2"; then status=refused; fi
    if [ "$2" != ok ] && [ "$status" = ok ]; then status="exit 0"; fi
    last=$({ grep -E "^install: (uv,|pip,|.*  ->|failed)" "$said" || true; } | tail -1 | sed -E 's/^install: //' | cut -c1-150)
    TABLE+=("$(printf '%-46s %-8s %5d s  %s' "$1" "$status" $((SECONDS - start)) "$last")")
    echo "${TABLE[-1]}"
    rm -f "$said"
}

own_authority() { # and nothing but the index, no libsndfile: any company
    machine bookworm "$BASIC"
    try "Debian 12, Python 3.11, no libnuma" "apt-get install libnuma1" "make train"
    chroot "$ROOT" bash -c 'apt-get update -qq && apt-get install -y -qq libnuma1' >>"$LOG" 2>&1
    SYS=no try "the same without /sys" "mount /sys" "make train"
    NET=no try "the same without a network" "failed: " "make train"
    try "Debian 12, the index only, own authority" ok "rm -rf .venv; $TRAIN"
    drop
}

settings() { # this machine's own pip settings, and what is tried after an install
    machine bookworm "$BASIC,libnuma1"
    mapfile -d '' -t SETTINGS < <(env -0 | grep -z '^PIP_')
    SHOW=${MATRIX_SHOW:-}
    try "Debian 12, this machine's pip settings" ok "$TRAIN"
    NET=no try "no network after the install" ok "rm -rf runs; $TRAIN"
    READONLY=yes try "home read-only after the install" ok "rm -rf runs; $TRAIN"
    git clone --quiet . "$ROOT/a second clone"
    try "a second clone beside it, path with spaces" ok "$TRAIN" "/a second clone"
    rm -rf "$ROOT/root/.cache" "$ROOT/a second clone"
    READONLY=yes try "home read-only from the start" ok "rm -rf .venv runs; $TRAIN"
    drop
}

trixie() {
    machine trixie "$BASIC,libnuma1"
    try "Debian 13, Python 3.13" ok "$TRAIN"
    drop
}

slim() { # the packages of python:3.12-slim and the interpreter below /usr/local
    [ -n "${MATRIX_PYTHON:-}" ] || { TABLE+=("python:3.12-slim: not tried, MATRIX_PYTHON is not set"); return; }
    machine bookworm ca-certificates,netbase,tzdata,libssl3,libsqlite3-0,libffi8,libbz2-1.0,liblzma5,libreadline8,zlib1g,git,make,libnuma1
    cp -a "$("$MATRIX_PYTHON" -c 'import sys; print(sys.base_prefix)')/." "$ROOT/usr/local/"
    chroot "$ROOT" ldconfig
    try "python:3.12-slim's packages" ok "$TRAIN"
    drop
}

pip_alone() {
    machine bookworm "$BASIC,libnuma1"
    SETTINGS=(WAVGATE_INSTALLER=pip)
    try "pip alone (WAVGATE_INSTALLER=pip)" ok "$TRAIN"
    drop
}

uv_alone() { # an interpreter without pip and venv, and a uv
    machine bookworm "${BASIC/python3-venv,/},libnuma1"
    python3 -m pip install --quiet --target "$ROOT/opt/uv" uv && ln -s /opt/uv/bin/uv "$ROOT/usr/local/bin/uv"
    try "uv alone, no pip, no venv module" ok "$TRAIN"
    drop
}

ROWS=(own_authority settings trixie slim pip_alone uv_alone)
if [ "${1:-}" = --list ]; then echo "${ROWS[*]}"; exit 0; fi
[ $# = 0 ] || ROWS=("$@")
trap '[ -z "${ROOT:-}" ] || drop' EXIT
for row in "${ROWS[@]}"; do
    SETTINGS=() SHOW='' # of the row before
    "$row"
done
printf '\n%s\n' "${TABLE[@]}"
for line in "${TABLE[@]}"; do [[ $line != *" exit "* ]] || exit 1; done
