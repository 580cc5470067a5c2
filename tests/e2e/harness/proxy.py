"""A TCP proxy that can break, hold or silence its connections."""

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
        # Set when a silenced connection ends on both sides.
        self.over = asyncio.Event()

    def abort(self, reset: bool, far: bool = True) -> None:
        if far:
            self.over.set()
        for writer in (self.near, self.far if far else None):
            if writer is None:
                continue
            sock = writer.get_extra_info("socket")
            if reset and sock is not None and sock.fileno() >= 0:
                # With a linger time of zero, closing sends a reset instead of a FIN.
                linger = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            else:
                writer.close()


class Proxy:
    """Listens on a free port of 127.0.0.1 and forwards to `target`.

    cut      closes every connection with a reset (or a FIN) and resets new ones until heal
    hold     closes every connection with a reset (or a FIN), accepts new ones and forwards them at heal
    silence  keeps all connections open, including new ones, and discards their data
    heal     forwards new connections again and resets the silenced ones, as a network does that lost their state;
             with reset_target=False only on the client's side, so that the target's side stays half-open
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
                await self._discard(link, reader)
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
            # The proxy was closed. asyncio would log the cancellation as an error.
            pass
        finally:
            self._links.discard(link)

    @staticmethod
    async def _discard(link: _Link, reader: asyncio.StreamReader) -> None:
        while await reader.read(1 << 16):
            pass
        # A silent network does not forward the end of a connection either.
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
            # A silent network does not forward the end of a connection either.
            await link.over.wait()
        writer.close()

    async def _set_mode(self, mode: str, effect: str) -> None:
        self._mode = mode
        self._healed.clear()
        for link in list(self._links):
            if effect == "silent":
                link.silent = True
            elif effect == "reset":
                link.abort(reset=True)
            elif effect == "fin":
                link.abort(reset=False)

    def cut(self, reset: bool = True) -> None:
        self._call(self._set_mode("cut", "reset" if reset else "fin"))

    def hold(self, reset: bool = True) -> None:
        self._call(self._set_mode("hold", "reset" if reset else "fin"))

    def silence(self) -> None:
        self._call(self._set_mode("silent", "silent"))

    def heal(self, reset_target: bool = True) -> None:
        async def work() -> None:
            self._mode = "open"
            self._healed.set()
            for link in list(self._links):
                if link.silent:
                    link.abort(reset=True, far=reset_target)

        self._call(work())

    def connections(self) -> int:
        """The number of connections that are being forwarded."""
        return sum(1 for link in list(self._links) if link.far is not None and not link.silent)

    def close(self) -> None:
        async def work() -> None:
            if self._server is not None:
                self._server.close()
            await self._set_mode("cut", "reset")
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._call(work())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()
