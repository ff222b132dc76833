#!/usr/bin/env bash
# A bare Debian root, and commands in it; docker/matrix.sh and docker/check.sh read this file.
set -euo pipefail

make_root() {  # folder, suite, packages with commas; packages come from where this machine's apt gets its own
    local mirror=()
    mapfile -t mirror < <(cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null |
        grep -m1 -oE 'https?://\S+/debian/?(\s|$)' | tr -d '[:space:]')
    mmdebstrap --quiet --variant=minbase --include="$3" "$2" "$1" "${mirror[@]}" \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Check-Date "false"'
    chmod 755 "$1"
    cp -L /etc/resolv.conf /etc/hosts "$1/etc/"
    cp -L /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"  # what this machine trusts, a company's own authority with it
}

# inside ROOT FOLDER COMMANDS [NAME=VALUE ...]
# Runs the commands in that folder of the root. They have processes of their own, all of which end with them.
# NET=no, SYS=no: without a network, without /sys; READONLY=yes: the home is; MINUTES: the longest;
# SHOW: files and folders of this machine that are shown there, with spaces between them.
inside() {
    local net=() show=()
    [ "${NET:-yes}" = yes ] || net=(--net)
    [ "${SYS:-yes}" = no ] || show=(/sys)
    read -ra show <<<"/dev ${show[*]} ${SHOW:-}"
    READONLY=${READONLY:-no} timeout --kill-after=30 "${MINUTES:-60}m" unshare --mount "${net[@]}" --pid --fork --kill-child bash -euc '
        root=$1 folder=$2 commands=$3 count=$4; shift 4
        ip link set lo up 2>/dev/null || true
        mkdir -p "$root/proc"
        mount -t proc proc "$root/proc"
        for path in "${@:1:count}"; do
            if [ -d "$path" ]; then mkdir -p "$root$path"; else mkdir -p "$root${path%/*}"; touch "$root$path"; fi
            mount --rbind --make-rslave "$path" "$root$path"
        done
        shift "$count"
        mount -t tmpfs tmpfs "$root/dev/shm"
        if [ "$READONLY" = yes ]; then
            mount --rbind "$root/root" "$root/root"
            mount -o remount,bind,ro "$root/root"
        fi
        exec chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8 "$@" \
            bash -ec "cd \"\$0\"; $commands" "$folder"
    ' bare "$1" "$2" "$3" "${#show[@]}" "${show[@]}" "${@:4}" </dev/null
}
