#!/usr/bin/env bash
# Checks and tests the JavaScript client and the JupyterLab extension, and tests the gateway with JupyterLab's client,
# @jupyterlab/services. The gateway under test is KERNELMUX_GATEWAY.
# Installs Node if needed, as root on Debian. Without Node, the tests are skipped, or fail if CI is set.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v npm >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing Node" >&2
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm </dev/null >/dev/null
    else
        echo "no Node: the JavaScript clients are not tested (install the packages nodejs and npm)" >&2
        [ -z "${CI:-}" ]
        exit
    fi
fi

CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export CARGO_TARGET_DIR
run_tests=$PWD/scripts/run-tests.py

# Installs packages if the lock file has changed.
install() {
    cmp -s package-lock.json node_modules/.lock-installed && return
    npm ci --no-audit --no-fund --loglevel=error
    cp package-lock.json node_modules/.lock-installed
}

cd clients/js
install
npm run --silent check
"$run_tests" js node test/*.test.js

cd ../lab
install
npm run --silent compile
"$run_tests" lab node test/*.test.mjs

cd ../../tests/e2e/services
install
"$run_tests" services node ./*.test.js
