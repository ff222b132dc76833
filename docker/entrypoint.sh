#!/usr/bin/env bash
# head | worker | any command, on one node of a Ray cluster.
#
#   head    [ray start options]   starts the cluster; the dashboard and job port listen on loopback unless
#                                 WAVGATE_DASHBOARD_HOST says otherwise
#   worker  [ray start options]   joins RAY_HEAD=host:6379
#   COMMAND ...                   runs it
#
# Token authentication is always on: the token is RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token,
# and must be the same on every node.
set -euo pipefail
umask 077  # the token file is for its owner
export RAY_AUTH_MODE=token OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" RAY_USAGE_STATS_ENABLED="${RAY_USAGE_STATS_ENABLED:-0}"

die() { echo "entrypoint: $*" >&2; exit 2; }

has_token() {
    [ -n "${RAY_AUTH_TOKEN:-}" ] || [ -s "${RAY_AUTH_TOKEN_PATH:-}" ] || [ -s "$HOME/.ray/auth_token" ]
}

case "${1:-}" in
    head)
        has_token || ray get-auth-token --generate >/dev/null  # an own cluster of one node needs no shared token
        exec ray start --head --block --disable-usage-stats \
            --dashboard-host="${WAVGATE_DASHBOARD_HOST:-127.0.0.1}" "${@:2}"
        ;;
    worker)
        [ -n "${RAY_HEAD:-}" ] || die "worker needs RAY_HEAD=host:6379"
        has_token || die "worker needs the head's token: RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        exec ray start --block --disable-usage-stats --address="$RAY_HEAD" "${@:2}"
        ;;
    "") die "head, worker or a command" ;;
    *) exec "$@" ;;
esac
