#!/usr/bin/env bash
# Makes the environment of the end-to-end tests: target/e2e-venv, from tests/e2e/requirements.txt.
# Does nothing when it is there already. As root on Debian it also installs Chromium.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/e2e-venv
python=${PYTHON:-python3}
stamp=$(cat tests/e2e/requirements.txt tests/e2e/constraints.txt scripts/e2e-env.sh | sha256sum | cut -d' ' -f1)

if [ "$(cat "$venv/stamp" 2>/dev/null || true)" != "$stamp" ]; then
    echo "making $venv" >&2
    rm -rf "$venv"
    mkdir -p target
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/e2e/requirements.txt

    # Two kernels of other languages beside ipykernel's python3.
    "$venv/bin/python" -m bash_kernel.install --sys-prefix >/dev/null 2>&1
    mkdir -p "$venv/share/jupyter/kernels/deno"
    cat >"$venv/share/jupyter/kernels/deno/kernel.json" <<SPEC
{
  "argv": ["deno", "jupyter", "--kernel", "--conn", "{connection_file}"],
  "display_name": "Deno",
  "language": "typescript"
}
SPEC
    echo "$stamp" >"$venv/stamp"
fi

if [ -z "${CHROMIUM:-}" ] && ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing Chromium" >&2
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            chromium fonts-dejavu-core </dev/null >/dev/null
    else
        echo "no Chromium: the browser tests will be skipped (install the package chromium, or set CHROMIUM)" >&2
    fi
fi
