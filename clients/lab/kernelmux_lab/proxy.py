"""The addresses that pages may use: `/kernelmux/api/…`, `/kernelmux/notebook` and `/kernelmux/ended`.

Under the first, the allowed requests are passed on to the gateway, only for kernels of this server, and with the
gateway's token, which never reaches the browser.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlencode

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import ensure_async, url_path_join
from tornado.web import HTTPError, authenticated

from .gateway import Gateway
from .records import Records
from .sessions import SessionKeeper

AUTH_RESOURCE = "kernels"

# Longest body of a request, in bytes. The gateway has the same bound.
MAX_BODY = 1 << 20

# The largest page of the gateway's list of executions.
MAX_PAGE = 500

_KERNEL = r"(?P<kernel_id>[0-9a-fA-F-]{36})"
_ID = r"(?P<item>[^/]{1,256})"

# Requests that are passed on: the rest of the path, the methods and the query parameters.
ALLOWED: tuple[tuple[str, frozenset[str], frozenset[str]], ...] = (
    ("", frozenset({"GET"}), frozenset()),
    (
        "/executions",
        frozenset({"GET", "POST"}),
        frozenset({"latest", "outputs", "outputs_since", "cellId", "session", "status", "since", "until", "before", "limit"}),
    ),
    (f"/executions/{_ID}", frozenset({"GET"}), frozenset()),
    ("/comms", frozenset({"GET"}), frozenset()),
    ("/progress", frozenset({"GET"}), frozenset()),
    ("/shares", frozenset({"GET", "POST"}), frozenset()),
    (f"/shares/{_ID}", frozenset({"DELETE"}), frozenset()),
)


class Handler(APIHandler):
    """A handler that needs the gateway."""

    auth_resource = AUTH_RESOURCE

    def initialize(self, gateway: Gateway, records: Records, keeper: SessionKeeper) -> None:
        self.gateway = gateway
        self.records = records
        self.keeper = keeper

    async def require_kernelmux(self) -> None:
        if not await self.gateway.is_kernelmux():
            raise HTTPError(404, "The gateway behind this server is not kernelmux")


class KernelProxy(Handler):
    """Passes a request for one of this server's kernels on to the gateway."""

    def initialize(  # type: ignore[override]
        self, methods: frozenset[str], parameters: frozenset[str], share_url: str, **common: Any
    ) -> None:
        super().initialize(**common)
        self.methods = methods
        self.parameters = parameters
        self.share_url = share_url

    @authenticated
    @authorized("read")
    async def get(self, kernel_id: str, item: str = "") -> None:
        await self.forward(kernel_id)

    # Running code in a kernel and sharing links to its outputs both require the right to use kernels.
    @authenticated
    @authorized("execute")
    async def post(self, kernel_id: str, item: str = "") -> None:
        await self.forward(kernel_id)

    @authenticated
    @authorized("write")
    async def delete(self, kernel_id: str, item: str = "") -> None:
        await self.forward(kernel_id)

    async def forward(self, kernel_id: str) -> None:
        if self.request.method not in self.methods:
            raise HTTPError(405)
        await self.require_kernelmux()
        if not (self.records.owns(kernel_id) or kernel_id in self.kernel_manager):
            raise HTTPError(404, f"Kernel does not exist: {kernel_id}")
        path = self.request.path[len(url_path_join(self.base_url, "kernelmux", "")) :]
        query = {
            name: self.get_query_argument(name) for name in self.request.query_arguments if name in self.parameters
        }
        body = self.json_body() if self.request.method == "POST" else None
        response = await self.gateway.request(
            str(self.request.method), f"{path}?{urlencode(query)}" if query else path, body
        )
        self.set_status(response.code)
        answer = response.body or b""
        if path.endswith("/shares") and self.request.method == "POST":
            answer = self.with_share_url(answer)
        if response.code != 204:
            self.set_header("Content-Type", "application/json")
        self.finish(answer)

    def json_body(self) -> Any:
        if len(self.request.body) > MAX_BODY:
            raise HTTPError(413, "The body is too large")
        try:
            return json.loads(self.request.body or b"{}")
        except ValueError as error:
            raise HTTPError(400, "The body is not JSON") from error

    def with_share_url(self, answer: bytes) -> bytes:
        """Completes the link to a shared page with the gateway's address for users, which the gateway does not know."""
        model = json.loads(answer)
        model["url"] = url_path_join(self.share_url or self.gateway.url, model["url"])
        return json.dumps(model).encode()


class NotebookHandler(Handler):
    """The newest ended kernel of a notebook, and the kernel that is being started for it."""

    @authenticated
    @authorized("read")
    async def get(self) -> None:
        await self.require_kernelmux()
        path = self.get_query_argument("path")
        # jupyter_server notices that a kernel has ended only when it lists kernels.
        running = {model["id"] for model in await self.kernel_manager.list_kernels()}
        starting = self.keeper.starting.get(path)
        kernels = [id for id in self.records.kernels_of(path) if id != starting]
        self.finish(
            {
                "previous": next((id for id in kernels if id not in running), None),
                "starting": starting,
                "profile": self.keeper.profiles.get(path),
            }
        )

    @authenticated
    @authorized("write")
    async def put(self) -> None:
        """Chooses the resource profile of the notebook's next kernels."""
        await self.require_kernelmux()
        body = self.get_json_body() or {}
        path, profile = body.get("path"), body.get("profile")
        if not isinstance(path, str) or not isinstance(profile, (str, type(None))):
            raise HTTPError(400, "path and profile are needed")
        if profile is None:
            self.keeper.profiles.pop(path, None)
        else:
            self.keeper.profiles[path] = profile
        self.set_status(204)
        self.finish()


class EndedHandler(Handler):
    """The executions of a notebook's kernel, with outputs of those that ended after the document was saved.

    A page makes this request before it connects to the kernel. The request replaces four requests that would
    depend on one another.
    """

    @authenticated
    @authorized("read")
    async def get(self) -> None:
        await self.require_kernelmux()
        path = self.get_query_argument("path")
        allowed = self.authorizer.is_authorized(self, self.current_user, "read", "contents")
        if not await ensure_async(allowed):
            raise HTTPError(403)
        try:
            session = await self.session_manager.get_session(path=path)
        except HTTPError:
            # The notebook has no kernel.
            self.finish({"kernel": None, "executions": []})
            return
        file = await ensure_async(self.contents_manager.get(path, content=False))
        kernel_id = session["kernel"]["id"]
        # The kernel belongs to this server, because the session does.
        query = {"latest": "cell", "limit": MAX_PAGE, "outputs": "small", "outputs_since": _utc(file["last_modified"])}
        page = await self.gateway.json("GET", f"api/kernels/{kernel_id}/executions?{urlencode(query)}")
        self.finish({"kernel": kernel_id, "executions": page["executions"]})


def _utc(time: datetime) -> str:
    return time.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def handlers(base_url: str, share_url: str, **common: Any) -> list[tuple[str, type[Handler], dict[str, Any]]]:
    """The routes of the extension."""
    root = url_path_join(base_url, "kernelmux")
    routes: list[tuple[str, type[Handler], dict[str, Any]]] = [
        (
            url_path_join(root, "api/kernels", f"{_KERNEL}{rest}$"),
            KernelProxy,
            {"methods": methods, "parameters": parameters, "share_url": share_url, **common},
        )
        for rest, methods, parameters in ALLOWED
    ]
    routes.append((url_path_join(root, "notebook"), NotebookHandler, common))
    routes.append((url_path_join(root, "ended"), EndedHandler, common))
    return routes


__all__ = ["handlers"]
