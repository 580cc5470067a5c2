"""The page of a share link in Chromium: its contents, its live updates, and hostile outputs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from harness.gateway import Gateway
from harness.waiting import eventually
from playwright.sync_api import Page, Request, expect

# Sets a mark if it runs as a script, in the page or in a frame.
MARK = "window.top.hacked = 1; window.hacked = 1; alert(1)"
ELSEWHERE = "http://attacker.invalid/"
HOSTILE_HTML = f"""
<script>{MARK}</script><script src="{ELSEWHERE}a.js"></script>
<img src=x onerror="{MARK}"><svg onload="{MARK}"></svg><body onload="{MARK}">
<iframe src="{ELSEWHERE}b"></iframe><iframe srcdoc="<script>{MARK}</script>"></iframe>
<iframe src="javascript:{MARK}"></iframe><object data="{ELSEWHERE}c"></object>
<link rel="stylesheet" href="{ELSEWHERE}d.css"><style>@import url({ELSEWHERE}e.css);</style>
<img src="{ELSEWHERE}f.png"><base href="{ELSEWHERE}"><meta http-equiv="refresh" content="0;url={ELSEWHERE}g">
<form action="{ELSEWHERE}h"><input autofocus onfocus="{MARK}"></form>
</body></html><a id="link" href="javascript:{MARK}">a link</a><p>the end of the HTML</p>
"""
HOSTILE_SVG = f"""<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20" onload="{MARK}">
<script>{MARK}</script><image href="{ELSEWHERE}i.png"/><rect width="40" height="20" fill="red"/></svg>"""
HOSTILE_TEXT = f"<img src=x onerror='{MARK}'><script>{MARK}</script>"


def run(gateway: Gateway, kernel: str, code: str, cell: str) -> str:
    body = {"code": code, "cellId": cell, "allow_stdin": True}
    started = gateway.rest("POST", f"api/kernels/{kernel}/executions", json=body)
    assert started.status_code == 202, started.text
    return str(started.json()["msg_id"])


def share(gateway: Gateway, kernel: str, **body: Any) -> dict[str, Any]:
    made = gateway.rest("POST", f"api/kernels/{kernel}/shares", json=body)
    assert made.status_code == 201, made.text
    return dict(made.json())


def open_share(gateway: Gateway, page: Page, kernel: str, **body: Any) -> dict[str, Any]:
    made = share(gateway, kernel, **body)
    page.goto(gateway.url.rstrip("/") + made["url"])
    return made


def test_outputs_are_shown_and_updated(gateway: Gateway, page: Page) -> None:
    page.set_viewport_size({"width": 380, "height": 700})
    with gateway.kernel() as kernel:
        shown = """
import time
from IPython.display import HTML, Image, SVG, display
print("plain", end=" "); print("\\x1b[1;31mred\\x1b[0m")
display(HTML("<table><tr><th>head</th></tr><tr><td>7</td></tr></table>"))
display(SVG("<svg xmlns='http://www.w3.org/2000/svg' width='30' height='10'></svg>"))
"""
        run(gateway, kernel, shown, "a")
        run(gateway, kernel, "1/0", "b")
        open_share(gateway, page, kernel, path="work/model.ipynb")
        expect(page).to_have_title("work/model.ipynb")
        cells = page.locator(".cell")
        expect(cells).to_have_count(2)
        expect(cells.nth(0).locator(".outputs pre").first).to_have_text("plain red\n")
        expect(cells.nth(0).locator(".outputs .bold.f1")).to_have_text("red")
        expect(cells.nth(0).locator("iframe").content_frame.locator("td")).to_have_text("7")
        expect(cells.nth(0).locator("img")).to_have_attribute("src", re.compile("^data:image/svg"))
        expect(cells.nth(1)).to_contain_text("ZeroDivisionError")
        expect(cells.nth(1).locator(".status")).to_have_text("failed")
        expect(page.locator("#state")).to_have_text(re.compile("idle · for"))

        # A progress bar is one line, and moves.
        bar = 'import time\nfor i in range(10_000):\n    print(f"\\rstep {i}", end="")\n    time.sleep(0.01)'
        run(gateway, kernel, bar, "c")
        line = cells.nth(2).locator(".outputs pre")
        expect(line).to_have_text(re.compile(r"^step \d+$"))
        first = line.inner_text()
        expect(line).not_to_have_text(first)
        expect(cells.nth(2).locator(".status")).to_have_text("running")
        expect(page.locator("#state")).to_have_text(re.compile("busy · for"))
        # Nothing is wider than a phone's screen.
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        gateway.rest("POST", f"api/kernels/{kernel}/interrupt")
        expect(cells.nth(2).locator(".status")).to_have_text("failed")
        run(gateway, kernel, 'input("name? ")', "d")
        expect(cells.nth(3)).to_contain_text("The cell asks: name?")


def test_hostile_outputs_run_nothing_and_load_nothing(gateway: Gateway, page: Page) -> None:
    requested: list[str] = []
    failed: list[Request] = []
    dialogs: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("requestfailed", lambda request: failed.append(request))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    with gateway.kernel() as kernel:
        code = f"""
# {HOSTILE_TEXT}
import sys
from IPython.display import publish_display_data as publish
publish({{"text/html": {HOSTILE_HTML!r}}})
publish({{"image/svg+xml": {HOSTILE_SVG!r}}})
publish({{"text/markdown": {HOSTILE_TEXT + f"[x](javascript:{MARK})"!r}}})
publish({{"image/png": {'x" onerror="' + MARK!r}}})
publish({{{HOSTILE_TEXT!r}: "an unknown type"}})
print({HOSTILE_TEXT!r})
print({HOSTILE_TEXT!r}, file=sys.stderr)
print("\\x1b[38;2;1;2;3;url(x)m" + {HOSTILE_TEXT!r})
raise type({HOSTILE_TEXT!r}, (Exception,), {{}})({HOSTILE_TEXT!r})
"""
        run(gateway, kernel, code, HOSTILE_TEXT)
        open_share(gateway, page, kernel, path=HOSTILE_TEXT)
        cell = page.locator(".cell")
        expect(cell.locator(".status")).to_have_text("failed")
        expect(page.locator("#title")).to_have_text(HOSTILE_TEXT)
        frame = cell.locator("iframe").first.content_frame
        expect(frame.get_by_text("the end of the HTML")).to_be_visible()
        frame.locator("#link").click()
        expect(cell.locator(".code")).to_contain_text(HOSTILE_TEXT)
        # A later cell shows that the page still works, and gives the hostile outputs time to run and load.
        run(gateway, kernel, "print('later')", "later")
        expect(page.locator(".cell").nth(1)).to_contain_text("later")
        # Frames without scripts cannot be inspected. A script in a frame would have marked this window.
        assert page.evaluate("window.hacked") is None
        assert dialogs == []
        # For a request that the policy forbids, Chromium reports a request, and then that it was not sent.
        blocked = {request.url for request in failed if request.failure == "csp"}
        assert {url for url in requested if "attacker" in url} <= blocked
        assert page.locator("#cells script, #cells object, #cells embed").count() == 0
        assert page.url.startswith(gateway.url)


def test_the_page_reconnects_and_ends_with_its_link(gateway: Gateway, start_gateway: Any, page: Page) -> None:
    own = start_gateway()
    with own.kernel() as kernel:
        run(own, kernel, "print('one')", "a")
        made = open_share(own, page, kernel)
        expect(page.locator(".cell")).to_contain_text("one")
        own.stop(9)
        expect(page.locator("#state")).to_have_text("connection lost, trying again")
        own.start()
        run(own, kernel, "print('two')", "a")
        expect(page.locator(".cell .outputs")).to_have_text("two\n", timeout=30_000)
        assert own.rest("DELETE", f"api/kernels/{kernel}/shares/{made['id']}").status_code == 204
        expect(page.locator("#state")).to_have_text("this link has expired or was revoked")
        expect(page.locator(".cell")).to_have_count(0)
        page.reload()
        expect(page.locator("h1")).to_have_text("This link does not work")
        eventually(lambda: made["token"] not in own.output, "the log has no link", 1)


@pytest.mark.parametrize("wrong", ["x", "0" * 64])
def test_a_wrong_link_is_refused(gateway: Gateway, page: Page, wrong: str) -> None:
    answer = page.goto(f"{gateway.url}live/{wrong}")
    assert answer is not None and answer.status == 403
    expect(page.locator("h1")).to_have_text("This link does not work")
