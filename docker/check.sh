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
WORK=$(mktemp -d "${CHECK_TMP:-/tmp}/bare-image-XXXX")
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot TMPDIR="$WORK"
BUILDAH=(buildah --root "$WORK/storage" --runroot "$WORK/run")
trap '"${BUILDAH[@]}" rm --all >/dev/null 2>&1 || true; rm -rf --one-file-system "$WORK"' EXIT

say() { echo "check: $*" >&2; }

make_root() {
    local mirror
    mirror=$(cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | grep -m1 -oE 'https?://\S+/debian/?(\s|$)' || true)
    say "a bare Debian root with pip"
    mmdebstrap --quiet --variant=minbase --include=python3,python3-pip,ca-certificates,util-linux bookworm "$WORK/root" $mirror \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Check-Date "false"'
    cp -L /etc/resolv.conf /etc/hosts "$WORK/root/etc/"
    cp -L /etc/ssl/certs/ca-certificates.crt "$WORK/root/etc/ssl/certs/"
    ln -sf python3 "$WORK/root/usr/bin/python" # the official image has this name too
}

build() {
    local base=${CHECK_BASE:-} more=()
    if [ -z "$base" ]; then
        make_root
        base=localhost/bare
        tar -C "$WORK/root" --exclude=./dev --exclude=./proc --exclude=./sys -cf "$WORK/root.tar" .
        rm -rf "$WORK/root"
        "${BUILDAH[@]}" from --name bare scratch >/dev/null
        "${BUILDAH[@]}" add --quiet bare "$WORK/root.tar" / >/dev/null
        "${BUILDAH[@]}" config --env PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin bare
        "${BUILDAH[@]}" commit --quiet --rm bare "$base" >/dev/null
        rm "$WORK/root.tar"
    fi
    if [ -n "${CHECK_WHEELS:-}" ]; then
        printf '[global]\nfind-links = /wheels\n' >"$WORK/pip.conf"
        more=(--secret "id=pip,src=$WORK/pip.conf" --volume "$CHECK_WHEELS:/wheels:ro")
    else
        : >"$WORK/pip.conf"
        more=(--secret "id=pip,src=$WORK/pip.conf")
    fi
    say "building docker/Dockerfile.cpu on $base"
    "${BUILDAH[@]}" build --from "$base" "${more[@]}" --file docker/Dockerfile.cpu --tag wavgate:cpu .
}

in_container() { # name, command: as the image's own user
    local name=$1 token=$TOKEN
    shift
    "${BUILDAH[@]}" run --env RAY_AUTH_TOKEN="$token" --env RAY_HEAD=127.0.0.1:6379 --volume "$WORK/src:/src:ro" \
        --volume "$WORK/shared:/shared" "$name" -- "$@"
}

train() {
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
    in_container head ray stop --force >/dev/null 2>&1 || true
    wait
    say "built, and trained as user 10001"
}

wait_for() { # nodes; a bounded number of questions, each of which takes seconds
    local question="import ray; ray.init('auto', logging_level=50); print('nodes', sum(n['Alive'] for n in ray.nodes()))"
    for _ in $(seq 60); do
        in_container head python3 -c "$question" 2>/dev/null | grep -qx "nodes $1" && return
    done
    tail -20 "$WORK"/*.log >&2
    say "no cluster of $1 nodes"
    exit 1
}

gpu_line() {
    make_root
    mkdir -p "$WORK/root/opt/wavgate/actors"
    cp -r pyproject.toml constraints.txt docker "$WORK/root/opt/wavgate/"
    cp actors/dependencies.py "$WORK/root/opt/wavgate/actors/"
    local settings line
    mapfile -t settings < <(sed -n 's/^ENV WAVGATE_EXTRA/WAVGATE_EXTRA/p' docker/Dockerfile | tr ' ' '\n')
    line=$(sed -n 's/^RUN .*pip.conf //p' docker/Dockerfile)
    say "$line"
    unshare --mount bash -euc '
        for path in /proc /sys /dev; do mount --rbind --make-rslave "$path" "$1$path"; done
        exec chroot "$1" /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/root "${@:3}" bash -ec "cd /opt/wavgate; $2"
    ' check "$WORK/root" "$line" "${settings[@]}"
    say "the GPU image's dependencies install and import; the base itself and CUDA were not tried"
}

if [ "${1:-}" = gpu ]; then gpu_line; exit; fi
build
# a network of its own: no port of another Ray on this machine is met
export -f train in_container wait_for say
export WORK
ADDRESS=$(ip -4 -o address show scope global | awk 'NR == 1 { print $4 }') # the containers' /etc/hosts names it
export ADDRESS
unshare --net bash -euc 'ip link set lo up; [ -z "$ADDRESS" ] || ip address add "${ADDRESS%/*}/32" dev lo; BUILDAH=(buildah --root "$WORK/storage" --runroot "$WORK/run"); train'
