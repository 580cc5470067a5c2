#!/usr/bin/env bash
# Installs nats-server, which the tests of logs in NATS start. As root on Debian; does nothing when it is there already.
set -euo pipefail

if [ ! -x /usr/sbin/nats-server ] && ! command -v nats-server >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing nats-server" >&2
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            nats-server </dev/null >/dev/null
    else
        echo "no nats-server: the tests of logs in NATS will be skipped (install the package nats-server)" >&2
    fi
fi
