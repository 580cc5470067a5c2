#!/usr/bin/env bash
# Makes a virtual environment in the user's cache, which all checkouts share, and a link to it.
#
#     cached-venv.sh LINK REQUIREMENTS [SETUP]
#
# SETUP is a script that is run in the new environment, with its folder as argument. An environment is named for its
# contents, so another version of the requirements gets another one.
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
    # Another checkout may be making the same one.
    exec 9>"$venv.lock"
    flock 9
fi
if [ ! -e "$venv/complete" ]; then
    echo "making $(basename "$link") in the cache" >&2
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
