"""Keeps kernels and sessions across restarts of the server."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tornado.web import HTTPError

from .gateway import Gateway
from .records import Records

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp

# The environment of the kernel that is being started in this context.
_starting: ContextVar[dict[str, str] | None] = ContextVar("kernelmux_starting", default=None)

_COLUMNS = ("session_id", "path", "name", "type", "kernel_id")


def notebook_path(session_path: str | None, name: str | None) -> str:
    """The path of a new session's notebook.

    JupyterLab requests a session with a random path in the notebook's folder, and corrects the path later.
    """
    if session_path and name:
        return str(PurePosixPath(session_path).with_name(PurePosixPath(name).name))
    return session_path or ""


class SessionKeeper:
    """Records the server's kernels and sessions, and restores them.

    jupyter_server offers no hooks for this, so methods of its managers are replaced on the instances.
    """

    def __init__(self, app: ServerApp, gateway: Gateway, records: Records) -> None:
        self._sessions: Any = app.session_manager
        self._kernels: Any = app.kernel_manager
        self._log = app.log
        self._gateway = gateway
        self._records = records
        # Sessions of the server's previous run that have not been restored yet.
        self._pending = list(records.sessions)
        # The kernels that are being started, by notebook.
        self.starting: dict[str, str] = {}
        # The resource profile chosen for a notebook's next kernels.
        self.profiles: dict[str, str] = {}

    def install(self, *, keep_kernels: bool) -> None:
        """Starts recording. With `keep_kernels`, kernels outlive the server."""
        sessions, kernels = self._sessions, self._kernels
        for name in ("save_session", "update_session", "delete_session"):
            setattr(sessions, name, self._recorded(getattr(sessions, name)))
        sessions.start_kernel_for_session = self._with_kernel_id(sessions.start_kernel_for_session)
        sessions.get_kernel_env = self._with_env(sessions.get_kernel_env)
        kernels.start_kernel = self._recording_kernels(kernels.start_kernel)
        if keep_kernels:
            # jupyter_server calls this method only when it ends.
            kernels.shutdown_all = self._leave_running

    def _recorded(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(method)
        async def recorded(*args: Any, **kwargs: Any) -> Any:
            result = await method(*args, **kwargs)
            self._record()
            return result

        return recorded

    def _record(self) -> None:
        rows = self._sessions.cursor.execute("SELECT * FROM session").fetchall()
        sessions = [{column: row[column] for column in _COLUMNS} for row in rows]
        known = {session["session_id"] for session in sessions}
        pending = [session for session in self._pending if session["session_id"] not in known]
        self._records.set_sessions(sessions + pending)

    def _with_kernel_id(self, method: Callable[..., Awaitable[str]]) -> Callable[..., Awaitable[str]]:
        """Chooses the id of a new kernel before it starts, so that the page can show the steps of its start."""

        @functools.wraps(method)
        async def start(session_id: str, **kwargs: Any) -> str:
            if not await self._known_to_be_kernelmux():
                return await method(session_id=session_id, **kwargs)
            path = notebook_path(kwargs.get("path"), kwargs.get("name"))
            env = {"KERNEL_ID": str(uuid.uuid4()), "KERNEL_SESSION_PATH": path}
            if path in self.profiles:
                env["KERNEL_PROFILE"] = self.profiles[path]
            token = _starting.set(env)
            self.starting[path] = env["KERNEL_ID"]
            # Recorded before the start, so that a page may request the cause if the start fails.
            self._records.add_kernel(env["KERNEL_ID"], path=path)
            try:
                return await method(session_id=session_id, **kwargs)
            finally:
                _starting.reset(token)
                self.starting.pop(path, None)

        return start

    async def _known_to_be_kernelmux(self) -> bool:
        try:
            return await self._gateway.is_kernelmux()
        except HTTPError:
            return False

    def _with_env(self, method: Callable[..., dict[str, str]]) -> Callable[..., dict[str, str]]:
        @functools.wraps(method)
        def env(*args: Any, **kwargs: Any) -> dict[str, str]:
            return {**method(*args, **kwargs), **(_starting.get() or {})}

        return env

    def _recording_kernels(self, method: Callable[..., Awaitable[str]]) -> Callable[..., Awaitable[str]]:
        @functools.wraps(method)
        async def start(*args: Any, **kwargs: Any) -> str:
            kernel_id = await method(*args, **kwargs)
            self._records.add_kernel(kernel_id, name=kwargs.get("kernel_name"))
            return kernel_id

        return start

    async def _leave_running(self, now: bool = False) -> None:
        count = len(self._kernels.list_kernel_ids())
        self._log.info("kernelmux: %d kernels keep running", count)

    async def adopt(self) -> None:
        """Takes over the recorded kernels that still run, and their sessions.

        Raises:
            HTTPError: if the gateway does not answer.
        """
        if not self._pending or not await self._gateway.is_kernelmux():
            return
        running = {model["id"]: model for model in await self._gateway.json("GET", "api/kernels")}
        adopted = 0
        for session in self._pending:
            kernel_id = session["kernel_id"]
            if kernel_id not in running:
                continue
            if kernel_id not in self._kernels:
                await self._kernels.start_kernel(kernel_id=kernel_id, kernel_name=running[kernel_id]["name"])
                adopted += 1
            if not await self._has_session(session["session_id"]):
                await self._sessions.save_session(**session)
        self._pending = []
        self._record()
        if adopted:
            self._log.info("kernelmux: found %d kernels that kept running", adopted)

    async def _has_session(self, session_id: str) -> bool:
        try:
            await self._sessions.get_session(session_id=session_id)
        except HTTPError:
            return False
        return True
