#!/usr/bin/env bash
# Tests kernels as pods, also with JupyterLab, on the cluster of KUBECONFIG. Without KUBECONFIG, starts a cluster on
# this machine (as root), which keeps running unless CI is set. KERNELMUX_TEST_IMAGE names an image with ipykernel that
# the cluster can pull, and KERNELMUX_TEST_AGENT_IMAGE one with kernelmux-agent; the cluster of this machine has both.
# The arguments are passed to cargo nextest, and select what to build.
set -euo pipefail
cd "$(dirname "$0")/.."

dev_cluster=provider-k8s/dev-cluster/dev-cluster
if [ -z "${KUBECONFIG:-}" ]; then
    if [ "$(id -u)" != 0 ]; then
        reason="kernels as pods need a cluster: KUBECONFIG is not set, and only root can start one"
        if [ -n "${CI:-}" ]; then
            echo "not tested: $reason" >&2
            exit 1
        fi
        echo "skipped: $reason"
        exit 0
    fi
    if [ -n "${CI:-}" ]; then
        trap '$dev_cluster down' EXIT
    fi
    # This machine can connect to the addresses of the pods.
    export KERNELMUX_TEST_POD_ADDRESSES=1
fi
KUBECONFIG=$($dev_cluster up)
export KUBECONFIG KERNELMUX_TEST_KUBERNETES=1

# Kernels have agents in the tests that have an image of them.
if [ -n "${KERNELMUX_TEST_POD_ADDRESSES:-}" ] && [ -z "${KERNELMUX_TEST_AGENT_IMAGE:-}" ]; then
    archive=$(mktemp)
    deploy/gateway-image.py target/debug/kernelmux-agent "$archive"
    $dev_cluster load "$archive"
    rm "$archive"
    export KERNELMUX_TEST_AGENT_IMAGE=localhost/kernelmux/agent:dev
fi

# More threads do not help, because starting Python takes a core for a second.
scripts/run-tests.py k8s-rust nextest "$@" --test-threads "${KERNELMUX_TEST_THREADS:-4}" \
    --filterset "(package(provider-k8s) | package(k8s)) & kind(test)"
target/e2e-venv/bin/python scripts/run-tests.py k8s-e2e pytest tests/e2e -m kubernetes
