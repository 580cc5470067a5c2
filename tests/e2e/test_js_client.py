"""The JavaScript client (clients/js) in a page in Chromium, without a build step and from another origin."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from harness.certificates import Authority
from harness.gateway import REPO, TOKEN, Gateway
from harness.proxy import Proxy
from playwright.sync_api import Browser, Page

SOURCES = REPO / "clients" / "js" / "src"

# A small notebook page: it follows the kernel from its last cursor and stores what it receives.
PAGE = b"""<!doctype html>
<title>client</title>
<script type="module">
  import { KernelConnection } from "/src/index.js";
  window.states = [];
  window.seqs = JSON.parse(localStorage.seqs ?? "[]");
  window.texts = JSON.parse(localStorage.texts ?? "{}");
  window.follow = async (options) => {
    window.kernel = new KernelConnection({ resume: localStorage.cursor ?? "start", ...options });
    kernel.on("state", ({ state, reason }) => states.push(`${state}: ${reason}`));
    kernel.on("gap", ({ first, last }) => seqs.push(`gap ${first} ${last}`));
    kernel.on("notRecovered", ({ reason }) => seqs.push(`not recovered: ${reason}`));
    try {
      for await (const entry of kernel.entries()) {
        seqs.push(entry.seq);
        const parent = entry.parent_header.msg_id;
        if (entry.header.msg_type === "stream") texts[parent] = (texts[parent] ?? "") + entry.content.text;
        localStorage.cursor = entry.cursor;
        localStorage.seqs = JSON.stringify(seqs);
        localStorage.texts = JSON.stringify(texts);
      }
    } catch (error) {
      window.error = error.code ?? String(error);
    }
  };
  window.run = async (code) => {
    const execution = kernel.execute(code);
    window.running = execution.msgId;
    let text = "";
    for await (const { header, content } of execution) {
      if (header.msg_type === "stream") window.text = text += content.text;
    }
    const reply = await execution.reply;
    return { id: execution.msgId, text, status: reply.content.status };
  };
  window.ready = true;
</script>
"""

# The test decides when the cell continues.
GATED = """
import pathlib, time
print("begun", flush=True)
while not pathlib.Path({gate!r}).exists():
    time.sleep(0.02)
for i in range(300):
    print(f"line {{i}}", flush=True)
"""
EXPECTED = "begun\n" + "".join(f"line {i}\n" for i in range(300))


class _Pages(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path != "/":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """Serves the page and the client, and yields their origin."""
    handler = functools.partial(_Pages, directory=str(SOURCES.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def gateway(
    built: None, make_home: Callable[[str], Path], site: str
) -> Iterator[Gateway]:
    """A gateway that allows the site's origin."""
    gateway = Gateway(make_home("gw"), "--allow-origin", site)
    gateway.start()
    yield gateway
    gateway.close()


@pytest.fixture
def proxy(gateway: Gateway, make_proxy: Callable[[int], Proxy]) -> Proxy:
    """A proxy between the page and the gateway."""
    return make_proxy(gateway.port)


class Client:
    """A page with the client."""

    def __init__(self, page: Page, site: str, proxy: Proxy, kernel_id: str) -> None:
        self.page = page
        self.site = site
        self.options = {
            "url": f"http://127.0.0.1:{proxy.port}",
            "kernelId": kernel_id,
            "token": TOKEN,
            "silenceMs": 2000,
        }

    def open(self, **options: Any) -> Client:
        """Opens the page, or reloads it, and follows the kernel."""
        self.page.goto(self.site)
        self.page.wait_for_function("() => window.ready")
        self.page.evaluate("options => { follow(options) }", {**self.options, **options})
        return self

    def wait(self, condition: str, timeout: float = 30.0) -> Any:
        return self.page.wait_for_function(f"() => {condition}", timeout=timeout * 1000).json_value()

    def start(self, code: str) -> None:
        """Runs code without waiting for its end, which sets `window.result`."""
        self.page.evaluate(
            "code => { window.result = null; run(code).then(r => (window.result = r)) }", code
        )

    def result(self, timeout: float = 60.0) -> dict[str, Any]:
        return dict(self.wait("window.result", timeout))

    def assert_no_gap(self) -> None:
        seqs = self.page.evaluate("seqs")
        assert seqs == list(range(1, len(seqs) + 1))


def test_a_cell_runs_over_tls(
    start_gateway: Callable[..., Gateway],
    make_proxy: Callable[[int], Proxy],
    browser: Browser,
    site: str,
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path / "certificates")
    certificate, key = authority.server()
    gateway = start_gateway("--tls-cert", str(certificate), "--tls-key", str(key), "--allow-origin", site)
    gateway.session.verify = str(authority.certificate)
    gate, proxy = tmp_path / "gate", make_proxy(gateway.port)
    # The browser does not know the tests' authority.
    context = browser.new_context(ignore_https_errors=True)
    try:
        client = Client(context.new_page(), site, proxy, gateway.start_kernel()["id"])
        client.options["url"] = f"https://127.0.0.1:{proxy.port}"
        client.open()
        client.start(GATED.format(gate=str(gate)))
        client.wait("window.text === 'begun\\n'")
        proxy.cut()
        client.wait("states.some(state => state.startsWith('waiting'))")
        gate.touch()
        proxy.heal()
        result = client.result()
        assert (result["text"], result["status"]) == (EXPECTED, "ok")
        client.assert_no_gap()
    finally:
        context.close()


@pytest.mark.parametrize("how", ["cut", "silent"])
def test_a_cell_is_complete_after_its_connection_was_lost(
    gateway: Gateway, proxy: Proxy, page: Page, site: str, tmp_path: Path, how: str
) -> None:
    gate = tmp_path / "gate"
    with gateway.kernel() as kernel_id:
        client = Client(page, site, proxy, kernel_id).open()
        client.start(GATED.format(gate=str(gate)))
        client.wait("window.text === 'begun\\n'")
        if how == "cut":
            proxy.cut()
        else:
            proxy.silence()
        client.wait("states.some(state => state.startsWith('waiting'))")
        if how == "silent":
            assert "received nothing" in str(page.evaluate("states.join()"))
        gate.touch()
        # Once the gateway sees the kernel idle, it has all of the output.
        gateway.wait_state(kernel_id, "idle")
        assert page.evaluate("window.text") == "begun\n"
        proxy.heal()
        result = client.result()
        assert (result["text"], result["status"]) == (EXPECTED, "ok")
        client.wait(f"texts['{result['id']}'].endsWith('line 299\\n')")
        assert page.evaluate(f"texts['{result['id']}']") == EXPECTED
        client.assert_no_gap()


def test_a_page_reloaded_during_a_cell_shows_all_of_its_output(
    gateway: Gateway, proxy: Proxy, page: Page, site: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with gateway.kernel() as kernel_id:
        client = Client(page, site, proxy, kernel_id).open()
        client.start(GATED.format(gate=str(gate)))
        running = client.wait("window.running")
        client.wait(f"texts['{running}'] === 'begun\\n'")
        client.open()
        gate.touch()
        client.wait(f"texts['{running}']?.endsWith('line 299\\n')")
        assert page.evaluate(f"texts['{running}']") == EXPECTED
        client.start("print(6 * 7)")
        assert client.result()["text"] == "42\n"
        client.assert_no_gap()


def test_a_cell_is_complete_over_a_repeatedly_cut_connection(
    gateway: Gateway, proxy: Proxy, page: Page, site: str, tmp_path: Path
) -> None:
    count = 3000
    with gateway.kernel() as kernel_id:
        client = Client(page, site, proxy, kernel_id).open(pauseMs=5)
        gate = tmp_path / "gate"
        # The cell waits for the second cut, so that it cannot end before.
        client.start(
            f"import pathlib, time\nfor i in range({count}):\n    print(i, end=';', flush=True)\n"
            f"    while i == 9 and not pathlib.Path({str(gate)!r}).exists(): time.sleep(.01)"
        )
        cuts = 0
        while not page.evaluate("window.result") and cuts < 200:
            page.wait_for_function("() => kernel.state === 'connected' || window.result")
            proxy.cut()
            proxy.heal()
            cuts += 1
            if cuts == 2:
                gate.touch()
        text = client.result()["text"]
        assert text == "".join(f"{i};" for i in range(count))
        assert cuts > 1
        client.assert_no_gap()


def test_permanent_errors_and_the_kernels_end_are_reported(
    gateway: Gateway, proxy: Proxy, page: Page, site: str
) -> None:
    with gateway.kernel() as kernel_id:
        client = Client(page, site, proxy, kernel_id)
        client.open(token="wrong")
        assert client.wait("window.error") == "unauthorized"
        client.open(kernelId="00000000-0000-0000-0000-000000000000")
        assert client.wait("window.error") == "not-found"
        # The kernel's end is not an error.
        client.open()
        client.start("print('last')")
        client.result()
    client.wait("states.at(-1).startsWith('ended')")
    assert page.evaluate("window.error") is None
    client.assert_no_gap()
