#!/usr/bin/env bash
# Builds the wheel of kernelmux-lab, with the prebuilt JupyterLab extension in it, into target/wheels and prints its
# path. Needs Node and npm. Uses the network only to install missing packages. Does nothing if nothing has changed.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/debian-packages.sh Node "the lab extension" npm nodejs npm >&2
scripts/cached-venv.sh target/lab-tools clients/lab/build-requirements.txt
wheels=$PWD/target/wheels
mkdir -p "$wheels"
# Several tests may need the wheel at the same time.
exec 9>"$wheels/lab.lock"
flock 9
cd clients/lab
sources=$(find . -path ./node_modules -prune -o -path ./lib -prune -o -path ./kernelmux_lab/labextension -prune -o \
    \( -name __pycache__ -o -name '.*_cache' \) -prune -o -type f -print | LC_ALL=C sort)
stamp=$(xargs -d '\n' sha256sum <<<"$sources" | sha256sum)
if [ "$(cat "$wheels/lab.stamp" 2>/dev/null || true)" != "$stamp" ]; then
    if ! cmp -s package-lock.json node_modules/.lock-installed; then
        npm ci --no-audit --no-fund --loglevel=error >&2
        cp package-lock.json node_modules/.lock-installed
    fi
    rm -rf lib "$wheels"/kernelmux_lab-*.whl
    npm run --silent build >&2
    ../../target/lab-tools/bin/python -m hatchling build -t wheel -d "$wheels" >&2
    echo "$stamp" >"$wheels/lab.stamp"
fi
ls "$wheels"/kernelmux_lab-*.whl
