#!/usr/bin/env bash
# Prints the path of mdbook, which builds the book of docs/. If the user's cache does not have it for this version and
# compiler, builds it there, which takes a minute of CPU time.
set -euo pipefail
version=0.5.4

cache=${XDG_CACHE_HOME:-$HOME/.cache}/kernelmux
root=$cache/mdbook-$version-$(rustc -vV | sha256sum | cut -c1-16)
if [ ! -x "$root/bin/mdbook" ]; then
    mkdir -p "$cache"
    # Another checkout may be building it.
    exec 9>"$root.lock"
    flock 9
fi
if [ ! -x "$root/bin/mdbook" ]; then
    echo "building mdbook $version in the cache" >&2
    build=$(mktemp -d)
    trap 'rm -rf "$build"' EXIT
    # Without the server, which doubles the number of crates, and without optimization, which doubles the time.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 "${CARGO:-cargo}" install --quiet --locked --version "$version" --no-default-features --features search \
        --target-dir "$build" --root "$build/installed" mdbook >&2
    rm -rf "$root"
    mv "$build/installed" "$root"
fi
echo "$root/bin/mdbook"
