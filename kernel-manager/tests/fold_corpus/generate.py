#!/usr/bin/env python3
"""Generates the corpus: the outputs of JupyterLab and nbclient for the messages in cases.py. See README.md."""

import argparse
import asyncio
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from cases import FILES

HERE = Path(__file__).parent

FIELDS = {
    "stream": {"name", "text"},
    "display_data": {"data", "metadata"},
    "execute_result": {"data", "metadata", "execution_count"},
    "error": {"ename", "evalue", "traceback"},
}

BUNDLE = [
    "npx", "esbuild", "jupyterlab.mjs", "--bundle", "--platform=node", "--format=esm", "--external:jsdom",
    "--loader:.svg=text", "--loader:.css=empty", "--main-fields=module,main", "--outfile=bundle.mjs",
    "--log-level=error",
    "--banner:js=import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);",
]


def jupyterlab(folder, cases):
    """The contents of JupyterLab's output area after each case's messages."""
    for name in ("package.json", "package-lock.json", "jupyterlab.mjs"):
        if (HERE / name).exists():
            (folder / name).write_text((HERE / name).read_text())
    if not (folder / "node_modules").exists():
        subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=folder, check=True, stdout=sys.stderr)
    subprocess.run(BUNDLE, cwd=folder, check=True)
    made = subprocess.run(
        ["node", "bundle.mjs"], cwd=folder, input=json.dumps(cases), check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(made.stdout)


class Channel:
    def __init__(self, messages):
        self.messages = messages

    async def get_msg(self, timeout=None):
        if self.messages:
            return self.messages.pop(0)
        await asyncio.sleep(3600)


class Client:
    """A fake kernel client for nbclient that has received all messages already."""

    def __init__(self, messages):
        iopub = [message for message in messages if message["channel"] == "iopub"]
        shell = [message for message in messages if message["channel"] == "shell"]
        self.iopub_channel = Channel([self.wire(message) for message in iopub])
        self.shell_channel = Channel([self.wire(message) for message in shell])

    @staticmethod
    def wire(message):
        content = json.loads(message["raw"]) if "raw" in message else message["content"]
        header = {"msg_id": "1", "msg_type": message["msg_type"]}
        parent = {"msg_id": "theirs" if message.get("parent") == "other" else "ours"}
        return {"header": header, "parent_header": parent, "msg_type": header["msg_type"], "content": content}

    def execute(self, *args, **kwargs):
        return "ours"

    async def is_alive(self):
        return True


def nbclient_outputs(messages):
    """nbclient's outputs, with joined streams, after the messages; `None` if it fails."""
    end = [
        {"channel": "iopub", "msg_type": "status", "content": {"execution_state": "idle"}},
        {"channel": "shell", "msg_type": "execute_reply", "content": {"status": "ok", "execution_count": None}},
    ]
    cell = new_code_cell("x")
    client = NotebookClient(new_notebook(cells=[cell]), coalesce_streams=True, allow_errors=True)
    client.kc = Client(messages + end)
    client.km = client
    try:
        asyncio.run(client.async_execute_cell(cell, 0))
        return json.loads(json.dumps(cell.outputs))
    except Exception as error:  # Any failure is a result of nbclient.
        print(f"  nbclient: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", file=sys.stderr)
        return None


def as_nbformat(outputs):
    """Removes fields that nbformat does not have, and returns whether there were any."""
    kept = [
        {key: value for key, value in output.items() if key == "output_type" or key in FIELDS[output["output_type"]]}
        for output in outputs
    ]
    cell = new_code_cell("", outputs=[nbformat.from_dict(output) for output in kept])
    nbformat.validate(new_notebook(cells=[cell]))
    return kept, kept != outputs


def well_formed(value):
    """Replaces lone surrogates with U+FFFD, as browsers show them."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [well_formed(item) for item in value]
    if isinstance(value, dict):
        return {well_formed(key): well_formed(item) for key, item in value.items()}
    return value


def write(name, cases, made):
    differing = 0
    with open(HERE / f"{name}.json", "w", encoding="utf-8") as file:
        file.write("[\n")
        for index, ((about, messages), jupyterlab) in enumerate(zip(cases.items(), made)):
            outputs, cut = as_nbformat(jupyterlab["outputs"])
            case = {"about": about, "messages": messages, "outputs": outputs}
            for flag in ("clear_pending", "input_pending"):
                if jupyterlab[flag]:
                    case[flag] = True
            if cut:
                case["differs_from_jupyterlab"] = "JupyterLab keeps fields that nbformat does not have"
            theirs = well_formed(nbclient_outputs(messages))
            if theirs != outputs:
                differing += 1
                case["nbclient"] = theirs
            file.write(("," if index else "") + json.dumps(case) + "\n")
        file.write("]\n")
    print(f"{name}: {len(cases)} cases, nbclient differs in {differing}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder of the npm packages; a temporary one by default")
    parser.add_argument("--replays", type=Path, help="check these replays of the tests instead of writing the corpus")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if arguments.replays:
            return check(folder, json.loads(arguments.replays.read_text()))
        print(f"nbclient {nbclient.__version__}, nbformat {nbformat.__version__}", file=sys.stderr)
        made = iter(jupyterlab(folder, [messages for cases in FILES.values() for messages in cases.values()]))
        for name, cases in FILES.items():
            write(name, cases, [next(made) for _ in cases])
    return 0


def check(folder, replays):
    """Checks that JupyterLab shows the fold's outputs after each replay, whatever it showed before."""
    made = jupyterlab(folder, [replay["messages"] for replay in replays])
    wrong = 0
    for replay, jupyterlab_made in zip(replays, made):
        outputs, _ = as_nbformat(jupyterlab_made["outputs"])
        if outputs != replay["outputs"] or jupyterlab_made["clear_pending"] != replay["clear_pending"]:
            wrong += 1
            print(f"{replay['about']}:\n  wanted {replay['outputs']}\n  shown  {outputs}", file=sys.stderr)
    print(f"{len(replays)} replays, {wrong} wrong", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
