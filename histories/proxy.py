"""TCP connections that can be cut, held and slowed: a proxy in front of a server.

What was sent through a connection that is held arrives when it is released, also where the sender
has given up meanwhile: as TCP does with what it sends again after a partition.
"""

from __future__ import annotations

import asyncio
import contextlib

CHUNK = 1 << 16


class Proxy:
    """One address in front of another.

    Attributes:
        port: of the proxy, on the loopback address; it stays.
        target: port of the server behind it; None: connections are refused.
        delay: seconds that each chunk of bytes takes in either direction.
    """

    def __init__(self, target: int | None = None) -> None:
        self.target, self.delay, self.port = target, 0.0, 0
        self._server: asyncio.Server | None = None
        self._open = {"there": asyncio.Event(), "back": asyncio.Event()}
        self._is_cut = False
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: set[asyncio.Task[None]] = set()
        self.release()

    async def start(self) -> None:
        """Listen on a free port."""
        await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Cut all connections and stop listening."""
        self.cut()
        tasks = [*self._tasks, *self._listening]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Faults

    def cut(self) -> None:
        """Close all connections and refuse new ones."""
        self._is_cut = True
        if self._server is not None:
            self._server.close()
        self.drop()

    def drop(self) -> None:
        """Close all connections; new ones are accepted."""
        for writer in list(self._connections):
            writer.transport.abort()

    def hold(self, *directions: str) -> None:
        """Hold what is sent ``there`` (to the server), or ``back``, or both."""
        for one in directions:
            self._open[one].clear()

    def release(self) -> None:
        """End all faults."""
        if self._is_cut:
            task = asyncio.ensure_future(self._listen())
            self._listening.add(task)
            task.add_done_callback(self._listening.discard)
        self._is_cut, self.delay = False, 0.0
        for one in self._open.values():
            one.set()

    # Connections

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections.add(writer)
        try:
            if self._is_cut or self.target is None:
                return
            onward, back = await asyncio.open_connection("127.0.0.1", self.target)
            self._connections.add(back)
            try:
                await asyncio.gather(
                    self._relay(reader, back, "there"), self._relay(onward, writer, "back")
                )
            finally:
                self._connections.discard(back)
                back.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._connections.discard(writer)
            writer.transport.abort()

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str
    ) -> None:
        while data := await reader.read(CHUNK):
            if self.delay:
                await asyncio.sleep(self.delay)
            await self._open[direction].wait()
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            await self._open[direction].wait()
            writer.write_eof()
