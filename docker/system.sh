#!/usr/bin/env bash
# What an image needs besides Python packages, for both Dockerfiles: Debian packages and a user without rights.
# Run as root: docker/system.sh (or --print: the commands, not run)
set -euo pipefail

PACKAGES=(libnuma1 wget)  # vLLM's CPU build links against libnuma; KubeRay's probes call wget
USER_ID=10001

run() { if [ "${1:-}" = --print ]; then echo "${*:2}"; else "${@:2}"; fi; }

MODE=${1:---run}
run "$MODE" apt-get update -qq
run "$MODE" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}"
run "$MODE" rm -rf /var/lib/apt/lists
run "$MODE" useradd --create-home --uid "$USER_ID" --shell /bin/bash wavgate
