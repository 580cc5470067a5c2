#!/usr/bin/env bash
# Starts the gateway (built before) with a real Python kernel; arguments are the gateway's.
# Its own defaults here come through the environment, so that any flag may override them.
set -euo pipefail
cd "$(dirname "$0")/.."

ipykernel=ipykernel==7.4.0
if ! .venv/bin/python -c 'import ipykernel' 2>/dev/null; then
    echo "making .venv with $ipykernel" >&2
    "${PYTHON:-python3}" -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check "$ipykernel"
fi

export PATH="$PWD/.venv/bin:$PATH"
export JUPYTER_PATH="$PWD/.venv/share/jupyter${JUPYTER_PATH:+:$JUPYTER_PATH}"
export KERNELMUX_IP=${KERNELMUX_IP:-127.0.0.1}
export KERNELMUX_PORT=${KERNELMUX_PORT:-8888}
export KERNELMUX_DATA_DIR=${KERNELMUX_DATA_DIR:-$PWD/.data}
exec target/release/kernelmux-gateway "$@"
