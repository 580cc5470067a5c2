#!/usr/bin/env bash
# Starts the built gateway with kernels as pods. Arguments are passed to the gateway.
# Without KUBECONFIG, starts a cluster on this machine (as root). The cluster of KUBECONFIG must have the namespace, and
# the images of the kernelspecs on JUPYTER_PATH.
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
