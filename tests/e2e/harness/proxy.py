"""A TCP proxy between two hops that can be cut, go silent and heal."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any


class _Link:
    """One proxied connection: two sockets and two pumps."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter | None) -> None:
        self.near = near
        self.far = far
        self.silent = False
        self.over = asyncio.Event()

    def abort(self, reset: bool, far: bool = True) -> None:
        if far:
            self.over.set()
        for writer in (self.near, self.far if far else None):
            if writer is None:
                continue
            sock = writer.get_extra_info("socket")
            if reset and sock is not None and sock.fileno() >= 0:
                # Linger of zero seconds: close() sends a reset and not a FIN.
                linger = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            else:
                writer.close()


class Proxy:
    """Listens on a free port of 127.0.0.1 and forwards to `target`.

    cut      ends every connection with a reset (or a FIN); new ones are refused until heal
    hold     ends every connection with a reset (or a FIN); new ones are taken, and forwarded at heal
    silence  keeps every connection and every new one open, and swallows what is sent into them
    heal     forwards new connections again; the swallowed ones are reset, as a network does
             that has forgotten them, or only towards who connected: the target is never told
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self._links: set[_Link] = set()
        self._mode = "open"
        self._healed = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self.port = 0
        self._call(self._listen())

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        link = _Link(near, None)
        self._links.add(link)
        try:
            if self._mode == "cut":
                link.abort(reset=True)
                return
            if self._mode == "hold":
                await self._healed.wait()
            link.silent = self._mode == "silent"
            if link.silent:
                await self._swallow(link, reader)
                return
            far_reader, link.far = await asyncio.open_connection(*self.target)
            for writer in (near, link.far):
                writer.get_extra_info("socket").setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
                )
            await asyncio.gather(
                self._pump(link, reader, link.far), self._pump(link, far_reader, near)
            )
        except OSError:
            link.abort(reset=False)
        except asyncio.CancelledError:
            # Closed. asyncio logs a handler that ends in this way.
            pass
        finally:
            self._links.discard(link)

    @staticmethod
    async def _swallow(link: _Link, reader: asyncio.StreamReader) -> None:
        while await reader.read(1 << 16):
            pass
        # A silent network passes no end either.
        await link.over.wait()

    @staticmethod
    async def _pump(
        link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                if not link.silent:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        if link.silent:
            # A silent network passes no end either.
            await link.over.wait()
        writer.close()

    async def _set(self, mode: str, end: str) -> None:
        self._mode = mode
        self._healed.clear()
        for link in list(self._links):
            if end == "silent":
                link.silent = True
            elif end == "reset":
                link.abort(reset=True)
            elif end == "fin":
                link.abort(reset=False)

    def cut(self, reset: bool = True) -> None:
        self._call(self._set("cut", "reset" if reset else "fin"))

    def hold(self, reset: bool = True) -> None:
        self._call(self._set("hold", "reset" if reset else "fin"))

    def silence(self) -> None:
        self._call(self._set("silent", "silent"))

    def heal(self, tell_target: bool = True) -> None:
        async def work() -> None:
            self._mode = "open"
            self._healed.set()
            for link in list(self._links):
                if link.silent:
                    link.abort(reset=True, far=tell_target)

        self._call(work())

    def connections(self) -> int:
        """Connections that are forwarded now."""
        return sum(1 for link in list(self._links) if link.far is not None and not link.silent)

    def close(self) -> None:
        async def work() -> None:
            if self._server is not None:
                self._server.close()
            await self._set("cut", "reset")
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._call(work())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()
