#!/usr/bin/env bash
# Installs Debian packages for the tests.
#
#     debian-packages.sh WHAT TESTS PROGRAM PACKAGE...
#
# WHAT describes the packages in messages, and TESTS the tests that need them. Does nothing if PROGRAM (a name on PATH,
# or alternatives separated by `|`) is installed. Installing needs root on Debian. Without root, prints that TESTS will
# be skipped.
set -euo pipefail
what=$1 tests=$2 programs=$3
shift 3

IFS='|' read -ra names <<<"$programs"
for name in "${names[@]}"; do
    if command -v "$name" >/dev/null; then
        exit
    fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing $what" >&2
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null
else
    echo "no $what: $tests will be skipped (install $*)" >&2
fi
