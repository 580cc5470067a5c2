"""Generates the test vectors in vectors.json with Jupyter's Python packages.

    pip install jupyter_client jupyter_server
    python generate.py            # writes vectors.json to the folder of this file
    python generate.py --check    # fails if vectors.json is not up to date

The output does not depend on the machine: ids, dates and environments are fixed.
"""

import importlib
import json
import os
import site
import string
import sys
import tempfile
from pathlib import Path

import jupyter_client
import jupyter_core
import jupyter_server
from jupyter_client.connect import write_connection_file
from jupyter_client.jsonutil import json_default
from jupyter_client.session import Session
from jupyter_core import paths
from jupyter_server.services.kernels.connection.base import (
    serialize_binary_message,
    serialize_msg_to_ws_v1,
)

TARGET = Path(__file__).with_name("vectors.json")


def header(msg_type, msg_id="golden_1", **more):
    return {
        "msg_id": msg_id,
        "msg_type": msg_type,
        "username": "jovyan",
        "session": "3f0e5a1c-golden",
        "date": "2024-02-29T12:34:56.789012Z",
        "version": "5.4",
        **more,
    }


def case(name, channel, msg_type, content, **more):
    return {
        "name": name,
        "channel": channel,
        "scheme": "hmac-sha256",
        "key": "a0436f6c-1916-498b-8eb9-e81ab9368e84",
        "identities": [],
        "header": header(msg_type),
        "parent_header": {},
        "metadata": {},
        "content": content,
        "buffers": [],
        **more,
    }


EXECUTE = {
    "code": "print('x')",
    "silent": False,
    "store_history": True,
    "user_expressions": {},
    "allow_stdin": True,
    "stop_on_error": True,
}

CASES = [
    case("execute_request", "shell", "execute_request", EXECUTE, identities=[b"\x00k\x8bEg"]),
    case(
        "status with a topic and a parent",
        "iopub",
        "status",
        {"execution_state": "busy"},
        identities=[b"kernel.3f0e.status"],
        parent_header=header("execute_request", "golden_0", subshell_id=None),
    ),
    case(
        "unicode",
        "iopub",
        "stream",
        {"name": "stdout", "text": "Grüße, 世界 🐍\u2028\u0000\x7f\"\\/\n\t"},
        metadata={"ключ": "значение"},
    ),
    case(
        "bytes that are not UTF-8",
        "iopub",
        "stream",
        {"name": "stderr", "text": "before \udcff\udce4 after"},
    ),
    case(
        "numbers",
        "iopub",
        "display_data",
        {
            "data": {"application/json": {"z": 1.0, "a": -0.1, "big": 2**63, "tiny": 5e-324, "huge": 1.7976931348623157e308}},
            "metadata": {},
            "transient": {},
        },
    ),
    case(
        "buffers",
        "iopub",
        "comm_msg",
        {"comm_id": "c1", "data": {"method": "update", "buffer_paths": [["a"], ["b"], ["c"]]}},
        buffers=[bytes(range(256)), b"", b"<IDS|MSG>"],
    ),
    case("a long buffer", "shell", "comm_msg", {"comm_id": "c1", "data": {}}, buffers=[b"\xff\x00" * 5000]),
    case("control", "control", "shutdown_request", {"restart": True}, identities=[b"one", b"two"]),
    case("stdin", "stdin", "input_request", {"prompt": "Passwort: ", "password": True}),
    case("unsigned", "shell", "kernel_info_request", {}, key=""),
    *(
        case(scheme, "shell", "execute_request", EXECUTE, scheme=scheme)
        for scheme in [
            "hmac-md5",
            "hmac-sha1",
            "hmac-sha224",
            "hmac-sha384",
            "hmac-sha512",
            "hmac-sha3_224",
            "hmac-sha3_256",
            "hmac-sha3_384",
            "hmac-sha3_512",
            "hmac-blake2b",
            "hmac-blake2s",
        ]
    ),
    case("a key longer than the digest's block", "shell", "execute_request", EXECUTE, key="key" * 100),
    case("a key that is not ASCII", "shell", "execute_request", EXECUTE, key="Schlüssel"),
]


def message_vector(spec):
    session = Session(key=spec["key"].encode(), signature_scheme=spec["scheme"], session="golden")
    message = {part: spec[part] for part in ("header", "parent_header", "metadata", "content")}
    frames = session.serialize(message, ident=list(spec["identities"])) + spec["buffers"]
    parts_and_buffers = frames[len(spec["identities"]) + 2 :]
    # The rest does what jupyter_server does to forward a kernel's message to a browser.
    received = session.deserialize(frames[len(spec["identities"]) + 1 :])
    received["channel"] = spec["channel"]
    if received["buffers"]:
        text, binary = None, serialize_binary_message(received).hex()
    else:
        text, binary = json.dumps(received, default=json_default), None
    return {
        "name": spec["name"],
        "channel": spec["channel"],
        "scheme": spec["scheme"],
        "key": spec["key"],
        "identities": len(spec["identities"]),
        "buffers": len(spec["buffers"]),
        "frames": [frame.hex() for frame in frames],
        "websocket_v1": serialize_msg_to_ws_v1(parts_and_buffers, spec["channel"]).hex(),
        "legacy_text": text,
        "legacy_binary": binary,
    }


def connection_file_vector(**options):
    with tempfile.TemporaryDirectory() as folder:
        name, _ = write_connection_file(
            os.path.join(folder, "kernel.json"),
            shell_port=50001,
            iopub_port=50002,
            stdin_port=50003,
            hb_port=50004,
            control_port=50005,
            key=b"secret-key",
            kernel_name="python3",
            **options,
        )
        return {"options": options, "text": Path(name).read_text()}


PATH_CASES = [
    {},
    {"JUPYTER_PREFER_ENV_PATH": "1"},
    {"JUPYTER_PREFER_ENV_PATH": "no"},
    {"JUPYTER_PATH": "/a:/b/"},
    {"JUPYTER_DATA_DIR": "/data"},
    {"JUPYTER_DATA_DIR": "/data", "JUPYTER_RUNTIME_DIR": "/run/j"},
    {"XDG_DATA_HOME": "/xdg"},
    {"XDG_DATA_HOME": "/xdg", "PYTHONUSERBASE": "/base"},
    {"JUPYTER_PLATFORM_DIRS": "1"},
    {"JUPYTER_PLATFORM_DIRS": "1", "XDG_DATA_HOME": "/xdg", "XDG_DATA_DIRS": "/one:/two"},
    {"JUPYTER_PLATFORM_DIRS": "0", "XDG_DATA_DIRS": "/one:/two"},
    {"XDG_RUNTIME_DIR": "/run/user/1"},
]


def path_vector(variables, prefix):
    """Returns the directories of jupyter_core for a Python at `prefix` that is not a virtual environment."""
    saved = dict(os.environ), sys.prefix, sys.base_prefix, site.USER_BASE, site.ENABLE_USER_SITE
    try:
        os.environ.clear()
        os.environ.update(variables, HOME="/home/jovyan")
        sys.prefix = sys.base_prefix = prefix
        site.USER_BASE, site.ENABLE_USER_SITE = None, True
        importlib.reload(paths)
        return {
            "variables": variables,
            "home": "/home/jovyan",
            "prefix": prefix,
            "data_dir": paths.jupyter_data_dir(),
            "runtime_dir": paths.jupyter_runtime_dir(),
            "jupyter_path": paths.jupyter_path(),
        }
    finally:
        environment, sys.prefix, sys.base_prefix, site.USER_BASE, site.ENABLE_USER_SITE = saved
        os.environ.clear()
        os.environ.update(environment)
        importlib.reload(paths)


TEMPLATES = [
    "plain",
    "$HOME/bin:${PATH}",
    "$$HOME $${HOME}",
    "${NOT_SET} $NOT_SET",
    "${HOME $ $1 ${} ${1}",
    "$HOMEand ${HOME}and",
    "ä$HOMEä",
    "$_X1$_X1",
    "100%$",
    "${HO ME}",
]
TEMPLATE_VARIABLES = {"HOME": "/h", "PATH": "/p:$HOME", "_X1": "x"}


def vectors():
    return {
        "made_by": {
            "jupyter_client": jupyter_client.__version__,
            "jupyter_core": jupyter_core.__version__,
            "jupyter_server": jupyter_server.__version__,
        },
        "messages": [message_vector(spec) for spec in CASES],
        "connection_files": [
            connection_file_vector(ip="127.0.0.1"),
            connection_file_vector(ip="kernel-ipc", transport="ipc"),
            connection_file_vector(ip="0.0.0.0", signature_scheme="hmac-sha512", jupyter_session="/a/b.ipynb"),
        ],
        "paths": [path_vector(case, prefix) for case in PATH_CASES for prefix in ("/opt/python", "/usr")],
        "env_templates": [
            {
                "template": template,
                "variables": TEMPLATE_VARIABLES,
                "expanded": string.Template(template).safe_substitute(TEMPLATE_VARIABLES),
            }
            for template in TEMPLATES
        ],
    }


if __name__ == "__main__":
    text = json.dumps(vectors(), indent=1) + "\n"
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text() == text else "vectors.json differs: run generate.py")
    TARGET.write_text(text)
