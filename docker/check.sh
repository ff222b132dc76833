#!/usr/bin/env bash
# Builds the CPU image without a container engine's daemon, and trains in it on a small cluster as user 10001.
#
#   docker/check.sh        builds docker/Dockerfile.cpu; head, worker and one submitted job in two containers of it
#   docker/check.sh gpu    the RUN line of docker/Dockerfile on a plain root, as far as a machine without GPU goes
#
# Needs root, Debian's buildah and mmdebstrap, and 12 GB of disk under $CHECK_TMP (default: /tmp). The base is a bare
# Debian root with pip, since no registry is asked; CHECK_BASE=python:3.11-slim builds on the real one.
# CHECK_WHEELS=FOLDER has torch's CPU wheel, where PyTorch's own index is out of reach.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. docker/bare.sh
MODE=${1:-all}
case "$MODE" in all | gpu | train) ;; *) echo "check: gpu, or nothing: got $MODE" >&2; exit 2 ;; esac
MINUTES=60 # at most, for the build, and for all that is run in the containers
WORK=${CHECK_WORK:-$(mktemp -d "${CHECK_TMP:-/tmp}/bare-image-XXXX")}
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot TMPDIR="$WORK"
BUILDAH=(buildah --root "$WORK/storage" --runroot "$WORK/run")
[ "$MODE" = train ] || trap clear_up EXIT

say() { echo "check: $*" >&2; }

clear_up() {
    "${BUILDAH[@]}" rm --all >/dev/null 2>&1 || true
    rm -rf --one-file-system "$WORK"
}

make_base() { # the image that the CPU image is built on
    say "a bare Debian root with pip"
    make_root "$WORK/root" bookworm python3,python3-pip,ca-certificates,util-linux
    ln -sf python3 "$WORK/root/usr/bin/python" # the official image has this name too
    tar -C "$WORK/root" --exclude=./dev --exclude=./proc --exclude=./sys -cf "$WORK/root.tar" .
    rm -rf "$WORK/root"
    "${BUILDAH[@]}" from --name bare scratch >/dev/null
    "${BUILDAH[@]}" add --quiet bare "$WORK/root.tar" / >/dev/null
    "${BUILDAH[@]}" config --env PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin bare
    "${BUILDAH[@]}" commit --quiet --rm bare localhost/bare >/dev/null
    rm "$WORK/root.tar"
}

build() {
    local base=${CHECK_BASE:-localhost/bare} wheels=()
    [ -n "${CHECK_BASE:-}" ] || make_base
    : >"$WORK/pip.conf"
    if [ -n "${CHECK_WHEELS:-}" ]; then
        printf '[global]\nfind-links = /wheels\n' >"$WORK/pip.conf"
        wheels=(--volume "$CHECK_WHEELS:/wheels:ro")
    fi
    say "building docker/Dockerfile.cpu on $base"
    timeout --kill-after=30 "${MINUTES}m" "${BUILDAH[@]}" build --from "$base" --secret "id=pip,src=$WORK/pip.conf" "${wheels[@]}" \
        --file docker/Dockerfile.cpu --tag wavgate:cpu .
}

in_container() { # name, command: as the image's own user
    "${BUILDAH[@]}" run --env RAY_AUTH_TOKEN="$TOKEN" --env RAY_HEAD=127.0.0.1:6379 --volume "$WORK/src:/src:ro" \
        --volume "$WORK/shared:/shared" "$1" -- "${@:2}"
}

train() { # in a network and processes of its own: train_apart
    ip link set lo up
    [ -z "$ADDRESS" ] || ip address add "${ADDRESS%/*}/32" dev lo
    TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
    git clone --quiet . "$WORK/src"
    mkdir -m 777 "$WORK/shared"
    for name in head worker; do "${BUILDAH[@]}" from --name "$name" wavgate:cpu >/dev/null; done
    in_container head id
    say "head and worker"
    in_container head /opt/wavgate/docker/entrypoint.sh head --num-cpus=4 >"$WORK/head.log" 2>&1 &
    wait_for 1
    in_container worker /opt/wavgate/docker/entrypoint.sh worker --num-cpus=1 >"$WORK/worker.log" 2>&1 &
    wait_for 2
    say "one job"
    in_container head bash -c 'cd /src && examples/submit.sh cluster.address=auto experiment=smoke learner.ranks=1 run.root=/shared/runs run.name=check'
    test -s "$WORK/shared/runs/check/final/model.safetensors"
    stat -c 'check: %n belongs to user %u' "$WORK/shared/runs/check/report.html"
    say "built, and trained as user 10001"
}

wait_for() { # nodes; a bounded number of questions, each of which takes seconds
    local question="import ray; ray.init('auto', logging_level=50); print('nodes', sum(n['Alive'] for n in ray.nodes()))"
    for _ in $(seq 60); do
        in_container head timeout 120 python3 -c "$question" 2>/dev/null | grep -qx "nodes $1" && return
    done
    tail -20 "$WORK"/*.log >&2
    say "no cluster of $1 nodes"
    exit 1
}

train_apart() { # a network of its own: no port of another Ray is met; processes of its own: none outlives it
    ADDRESS=$(ip -4 -o address show scope global | awk 'NR == 1 { print $4 }') # the containers' /etc/hosts names it
    export ADDRESS CHECK_WORK=$WORK
    timeout --kill-after=30 "${MINUTES}m" unshare --net --mount-proc --pid --fork --kill-child docker/check.sh train
}

gpu_line() {
    local settings line
    say "a bare Debian root with pip"
    make_root "$WORK/root" bookworm python3,python3-pip,ca-certificates,util-linux
    mkdir -p "$WORK/root/opt/wavgate/actors/checks"
    cp -r pyproject.toml constraints.txt docker "$WORK/root/opt/wavgate/"
    cp actors/checks/dependencies.py "$WORK/root/opt/wavgate/actors/checks/"
    mapfile -t settings < <(sed -n 's/^ENV WAVGATE_EXTRA/WAVGATE_EXTRA/p' docker/Dockerfile | tr ' ' '\n')
    line=$(sed -n 's/^RUN .*pip.conf //p' docker/Dockerfile)
    say "$line"
    inside "$WORK/root" /opt/wavgate "$line" "${settings[@]}"
    say "the GPU image's dependencies install and import; the base itself and CUDA were not tried"
}

case "$MODE" in
    train) train ;;
    gpu) gpu_line ;;
    *) build; train_apart ;;
esac
