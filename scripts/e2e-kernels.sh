#!/usr/bin/env bash
# Adds kernelspecs for bash and TypeScript (Deno) to the virtual environment in folder $1, which already has ipykernel.
set -euo pipefail
venv=$1

"$venv/bin/python" -m bash_kernel.install --sys-prefix >/dev/null 2>&1
mkdir -p "$venv/share/jupyter/kernels/deno"
cat >"$venv/share/jupyter/kernels/deno/kernel.json" <<SPEC
{
  "argv": ["deno", "jupyter", "--kernel", "--conn", "{connection_file}"],
  "display_name": "Deno",
  "language": "typescript"
}
SPEC
