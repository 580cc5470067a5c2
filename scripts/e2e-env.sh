#!/usr/bin/env bash
# Installs what the tests need in addition to Rust: target/e2e-venv (Python, Jupyter, kernels) and, as root on Debian,
# Chromium and nats-server. Does nothing if everything is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/cached-venv.sh target/e2e-venv tests/e2e/requirements.txt scripts/e2e-kernels.sh
# Other versions of JupyterLab and Notebook, and other extensions.
for name in lab-oldest lab-others lab-nbmodel lab-documents; do
    scripts/cached-venv.sh "target/$name-venv" "tests/e2e/$name/requirements.txt"
done
# Enterprise Gateway's client and its integration tests.
eg=tests/e2e/enterprise-gateway
scripts/cached-venv.sh target/enterprise-gateway-venv "$eg/requirements.txt" "$eg/install.sh"
if [ -z "${CHROMIUM:-}" ]; then
    scripts/debian-packages.sh Chromium "the browser tests" "chromium|google-chrome" chromium fonts-dejavu-core
fi
PATH=$PATH:/usr/sbin scripts/debian-packages.sh nats-server "the tests of logs in NATS" nats-server nats-server
