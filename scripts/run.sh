#!/usr/bin/env bash
# Starts the built gateway with a Python kernel. Arguments are passed to the gateway.
# The script's defaults are environment variables, so that any flag overrides them.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/venv.sh
export KERNELMUX_IP=${KERNELMUX_IP:-127.0.0.1}
export KERNELMUX_PORT=${KERNELMUX_PORT:-8888}
export KERNELMUX_DATA_DIR=${KERNELMUX_DATA_DIR:-$PWD/.data}
exec "${CARGO_TARGET_DIR:-target}/release/kernelmux-gateway" "$@"
