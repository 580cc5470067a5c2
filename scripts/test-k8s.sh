#!/usr/bin/env bash
# Tests kernels as pods, and JupyterLab with them, on the cluster of KUBECONFIG, or on one that is brought up here (as
# root) and left up, but for CI.
# KERNELMUX_TEST_IMAGE names an image with ipykernel that the cluster can have; the one brought up here has its own.
# Its arguments are cargo's, that say what is built.
set -euo pipefail
cd "$(dirname "$0")/.."

dev_cluster=provider-k8s/dev-cluster/dev-cluster
if [ -z "${KUBECONFIG:-}" ]; then
    if [ "$(id -u)" != 0 ]; then
        reason="kernels as pods need a cluster: KUBECONFIG is not set, and only root can bring one up"
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
    # Here this machine is on the same network as the pods.
    export KERNELMUX_TEST_POD_ADDRESSES=1
fi
KUBECONFIG=$($dev_cluster up)
export KUBECONFIG KERNELMUX_TEST_KUBERNETES=1

# More threads only wait for each other: a Python takes a core for a second to start.
scripts/run-tests.py k8s-rust nextest "$@" --test-threads "${KERNELMUX_TEST_THREADS:-4}" \
    --filterset "(package(provider-k8s) | package(k8s)) & kind(test)"
target/e2e-venv/bin/python scripts/run-tests.py k8s-e2e pytest tests/e2e -m kubernetes
