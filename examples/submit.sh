#!/usr/bin/env bash
# Send this checkout to a running Ray cluster as a job: examples/submit.sh cluster=gpu8 run.root=/shared/runs
#
# RAY_ADDRESS   the job port (default: the dashboard of this machine's cluster)
# The token: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export RAY_AUTH_MODE=token RAY_ADDRESS="${RAY_ADDRESS:-http://127.0.0.1:8265}"
PATH="$PWD/.venv/bin:$PATH"

exec ray job submit --working-dir . \
    --runtime-env-json '{"excludes": [".git", ".venv*", "runs", "tests", "docs"], "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600"}}' \
    -- python -m actors.driver "$@"
