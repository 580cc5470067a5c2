"""jupyter_server's and JupyterLab's clients, and kernels of several languages, through the gateway."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.gateway import Gateway, clean_env
from harness.lab import Lab
from harness.wire import KernelSocket, parent_of, text_of
from playwright.sync_api import Page

# jupyter_server's gateway client is a singleton that the environment configures, so it runs in a separate process.
MANAGER = """
import asyncio, json, sys
from jupyter_server.gateway.managers import GatewayKernelManager, GatewayKernelSpecManager

async def main():
    manager = GatewayKernelManager()
    await manager.start_kernel(kernel_name="python3")
    first = manager.kernel_id
    assert await manager.is_alive()
    client = manager.client()
    await client.start_channels()
    await client.wait_for_ready(timeout=60)

    async def run(code):
        msg_id = client.execute(code)
        text = ""
        while True:
            msg = await client.get_iopub_msg(timeout=30)
            if msg["parent_header"].get("msg_id") != msg_id:
                continue
            if msg["msg_type"] == "stream":
                text += msg["content"]["text"]
            if msg["msg_type"] == "status" and msg["content"]["execution_state"] == "idle":
                break
        while True:
            reply = await client.get_shell_msg(timeout=30)
            if reply["parent_header"].get("msg_id") == msg_id:
                return text, reply["content"]["status"]

    assert await run("x = 6; print(x * 7)") == ("42\\n", "ok")
    await manager.refresh_model()
    assert manager.execution_state == "idle", manager.execution_state
    await manager.interrupt_kernel()
    await manager.restart_kernel()
    assert manager.kernel_id == first
    assert await run("print('x' in globals())") == ("False\\n", "ok")
    client.stop_channels()
    # A second manager attaches to the same kernel by its id.
    other = GatewayKernelManager()
    await other.start_kernel(kernel_id=first)
    assert other.kernel["id"] == first
    await manager.shutdown_kernel()
    assert await other.refresh_model() is None
    print("done")

asyncio.run(main())
"""


def run_python(gateway: Gateway, home: Path, code: str, *args: str) -> str:
    """Runs code in a new process whose gateway client uses `gateway`, and returns its output."""
    env = clean_env(home, JUPYTER_GATEWAY_URL=gateway.url.rstrip("/"))
    env.pop("JUPYTER_PATH")
    ended = subprocess.run(
        [sys.executable, "-c", code, *args],
        env=env,
        capture_output=True,
        text=True,
        timeout=150,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stdout


def test_jupyter_server_gateway_client_manages_a_kernel(open_gateway: Gateway, tmp_path: Path) -> None:
    assert "done" in run_python(open_gateway, tmp_path / "home", MANAGER)


@pytest.mark.parametrize(
    "name,language,code,expected",
    [
        ("python3", "python", "print('on'); 6 * 7", "42"),
        ("bash", "bash", "echo $((6 * 7))", "42"),
        ("deno", "typescript", "const f = (x: number) => x * 7; f(6)", "42"),
    ],
)
def test_kernels_of_several_languages(gateway: Gateway, name: str, language: str, code: str, expected: str) -> None:
    with gateway.kernel(name) as kernel_id, gateway.socket(kernel_id, name) as client:
        info = client.request("kernel_info_request")
        (reply,) = [
            m for m in client.finish(info) if m["header"]["msg_type"] == "kernel_info_reply"
        ]
        assert reply["content"]["language_info"]["name"] == language
        expect_output(client, code, expected)
        complete = client.request("complete_request", {"code": "ec", "cursor_pos": 2})
        client.finish(complete)
        assert gateway.rest("POST", f"api/kernels/{kernel_id}/restart").status_code == 200
        expect_output(client, code, expected)


def expect_output(client: KernelSocket, code: str, expected: str) -> None:
    """Runs code and waits for the expected output, which Deno may publish after its idle status."""
    msg_id = client.execute(code)
    client.until(
        lambda m: parent_of(m) == msg_id and expected in text_of([m]), 60, f"{expected} of {code}"
    )


def test_interrupt_in_bash(gateway: Gateway) -> None:
    with gateway.kernel("bash") as kernel_id, gateway.socket(kernel_id, "bash") as client:
        msg_id = client.execute("echo on; sleep 600")
        client.until(lambda m: "on" in m["content"].get("text", ""))
        assert gateway.rest("POST", f"api/kernels/{kernel_id}/interrupt").status_code == 204
        client.finish(msg_id)
        assert "42" in client.run("echo $((6 * 7))")


SERVICES = """
async ([url, token]) => {
  const own = window.jupyterapp.serviceManager;
  const settings = {
    ...own.serverSettings, baseUrl: url, wsUrl: url.replace('http', 'ws'), appUrl: url,
    token, appendToken: true, init: {cache: 'no-store', credentials: 'omit'},
  };
  const Manager = own.kernels.constructor;
  const kernels = new Manager({serverSettings: settings, standby: 'never'});
  await kernels.ready;
  const kernel = await kernels.startNew({name: 'python3'});
  const run = async code => {
    const texts = [];
    const future = kernel.requestExecute({code});
    future.onIOPub = m => {
      if (m.header.msg_type === 'stream') texts.push(m.content.text);
      if (m.header.msg_type === 'execute_result') texts.push(m.content.data['text/plain']);
    };
    await future.done;
    return texts.join('');
  };
  const result = {};
  result.first = await run("x = 6; print(x * 7)");
  await run(
    "def opened(comm, msg):\\n" +
    "    comm.send({}, buffers=[bytes(b)[::-1] for b in msg['buffers']])\\n" +
    "get_ipython().kernel.comm_manager.register_target('reverse', opened)");
  const comm = kernel.createComm('reverse');
  const answered = new Promise(resolve => {
    comm.onMsg = m => resolve(m.buffers.map(b => Array.from(new Uint8Array(b.buffer ?? b, b.byteOffset ?? 0, b.byteLength))));
  });
  comm.open({}, {}, [new Uint8Array([1, 2, 255]).buffer]);
  result.buffers = await answered;
  await kernel.interrupt();
  await kernel.restart();
  result.restarted = await run("print('x' in globals())");
  result.protocol = kernel._ws ? kernel._ws.protocol : '';
  await kernel.shutdown();
  kernels.dispose();
  return result;
}
"""


def test_jupyterlab_services_connects_directly_from_another_origin(
    start_gateway: Callable[..., Gateway], make_home: Callable[[str], Path], page: Page
) -> None:
    """@jupyterlab/services in a page connects to the gateway without jupyter_server, over the v1 subprotocol."""

    # The page's own server needs a gateway too, which this test does not use.
    first = start_gateway()
    lab = Lab(make_home("lab-services"), first.url.rstrip("/"), first.token)
    try:
        gateway = start_gateway("--allow-origin", lab.url)
        page.goto(f"{lab.url}/lab?token=e2e-lab-token&reset")
        page.wait_for_function("() => window.jupyterapp?.serviceManager?.isReady", timeout=60_000)
        result = page.evaluate(SERVICES, [gateway.url, gateway.token])
        assert result["first"] == "42\n"
        assert result["buffers"] == [[255, 2, 1]]
        assert result["restarted"] == "False\n"
        assert result["protocol"] == "v1.kernel.websocket.jupyter.org"
    finally:
        lab.close()
