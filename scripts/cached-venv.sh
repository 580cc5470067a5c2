#!/usr/bin/env bash
# Creates a virtual environment in the user's cache, which all checkouts share, and a link to it.
#
#     cached-venv.sh LINK REQUIREMENTS [SETUP]
#
# SETUP is a script that is run with the environment's folder as argument. The environment's name is a hash of all
# inputs, so changed requirements create a new one.
set -euo pipefail
link=$1 requirements=$2 setup=${3:-}

python=${PYTHON:-python3}
inputs=("$requirements" "$0")
[ -z "$setup" ] || inputs+=("$setup")
[ ! -e "$(dirname "$requirements")/constraints.txt" ] || inputs+=("$(dirname "$requirements")/constraints.txt")
stamp=$({ cat "${inputs[@]}"; "$python" -c 'import sys; print(sys.version, sys.base_prefix)'; } | sha256sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kernelmux
venv=$cache/$(basename "$link")-$stamp

mkdir -p "$cache" "$(dirname "$link")"
if [ ! -e "$venv/complete" ]; then
    # Another checkout may be creating the same environment.
    exec 9>"$venv.lock"
    flock 9
fi
if [ ! -e "$venv/complete" ]; then
    echo "creating $(basename "$link") in the cache" >&2
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
    [ -z "$setup" ] || "$setup" "$venv"
    touch "$venv/complete"
fi
if [ "$(readlink "$link" || true)" != "$venv" ]; then
    rm -rf "$link"
    ln -sfn "$venv" "$link"
fi
