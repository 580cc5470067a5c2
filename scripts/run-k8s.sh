#!/usr/bin/env bash
# Starts the gateway (built before) with kernels as pods; arguments are the gateway's.
# Without KUBECONFIG, brings a cluster up here (as root). With it, that cluster must have the namespace, and an image for
# the kernelspecs on JUPYTER_PATH.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${KUBECONFIG:-}" ]; then
    export JUPYTER_PATH="$PWD/provider-k8s/dev-cluster/share/jupyter"
fi
KUBECONFIG=$(provider-k8s/dev-cluster/dev-cluster up)
export KUBECONFIG
export KERNELMUX_KUBERNETES_NAMESPACE=${KERNELMUX_KUBERNETES_NAMESPACE:-kernels}
export KERNELMUX_IP=${KERNELMUX_IP:-127.0.0.1}
export KERNELMUX_PORT=${KERNELMUX_PORT:-8888}
export KERNELMUX_DATA_DIR=${KERNELMUX_DATA_DIR:-$PWD/.data-k8s}
exec "${KERNELMUX_GATEWAY:-target/release/kernelmux-gateway}" "$@"
