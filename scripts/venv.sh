# Puts .venv, with a Python kernel, on PATH and JUPYTER_PATH; creates it if needed. To be sourced in the project's
# folder.
ipykernel=ipykernel==7.4.0
if ! .venv/bin/python -c 'import ipykernel' 2>/dev/null; then
    echo "creating .venv with $ipykernel" >&2
    "${PYTHON:-python3}" -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check "$ipykernel"
fi

export PATH="$PWD/.venv/bin:$PATH"
export JUPYTER_PATH="$PWD/.venv/share/jupyter${JUPYTER_PATH:+:$JUPYTER_PATH}"
