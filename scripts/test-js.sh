#!/usr/bin/env bash
# Checks and tests the JavaScript client, also against the gateway that KERNELMUX_GATEWAY names. Needs Node; as root on
# Debian it installs it. Where Node cannot be had, this is skipped, but with CI set it fails.
set -euo pipefail
cd "$(dirname "$0")/../clients/js"

if ! command -v npm >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing Node" >&2
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm </dev/null >/dev/null
    else
        echo "no Node: the JavaScript client is not tested (install the packages nodejs and npm)" >&2
        [ -z "${CI:-}" ]
        exit
    fi
fi

# Again only when the lock file changed.
if ! cmp -s package-lock.json node_modules/.lock-installed; then
    npm ci --no-audit --no-fund --loglevel=error
    cp package-lock.json node_modules/.lock-installed
fi
npm run --silent check
CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-../../target}" ../../scripts/run-tests.py js node test/*.test.js
