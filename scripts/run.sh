#!/usr/bin/env bash
# Starts the gateway (built before) with a real Python kernel; arguments are the gateway's.
# Its own defaults here come through the environment, so that any flag may override them.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/venv.sh
export KERNELMUX_IP=${KERNELMUX_IP:-127.0.0.1}
export KERNELMUX_PORT=${KERNELMUX_PORT:-8888}
export KERNELMUX_DATA_DIR=${KERNELMUX_DATA_DIR:-$PWD/.data}
exec "${CARGO_TARGET_DIR:-target}/release/kernelmux-gateway" "$@"
