#!/usr/bin/env bash
# Installs Enterprise Gateway into the virtual environment $1, without what only its server needs.
set -euo pipefail
"$1/bin/pip" install --quiet --disable-pip-version-check --no-deps jupyter_enterprise_gateway==3.3.0
