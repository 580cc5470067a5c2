#!/usr/bin/env bash
# Builds the wheel of kernelmux, with the programs of the gateway and its agents in it, and prints its path.
#
#     wheel.sh [FOLDER]
#
# KERNELMUX_GATEWAY_BINARY names the gateway's program, by default cargo's release build. The agent's program must be in
# the same folder. FOLDER is target/wheels by default.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-target/wheels}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [ -z "${KERNELMUX_GATEWAY_BINARY:-}" ]; then
    "${CARGO:-cargo}" build --release --locked --package kernelmux-gateway --package kernelmux-agent >&2
else
    KERNELMUX_GATEWAY_BINARY=$(realpath "$KERNELMUX_GATEWAY_BINARY")
    export KERNELMUX_GATEWAY_BINARY
fi
scripts/cached-venv.sh target/wheel-tools clients/kernelmux/build-requirements.txt
rm -f "$folder"/kernelmux-*.whl
(cd clients/kernelmux && ../../target/wheel-tools/bin/python -m hatchling build -t wheel -d "$folder" >&2)
ls "$folder"/kernelmux-*.whl
