"""A TCP proxy that fails as networks do: it cuts, delays, swallows and goes silent, as told."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

CHUNK = 65536
_RESET = struct.pack("ii", 1, 0)


@dataclass
class Faults:
    """What the proxy does to what passes from now on.

    `cut_answer_after`: bytes of an answer that still pass before the connection is reset.
    `silent`: connections are taken and nothing passes. `refuse`: connections are reset at once.
    `delay`: seconds before each chunk of an answer.
    """

    cut_answer_after: int | None = None
    silent: bool = False
    refuse: bool = False
    delay: float = 0.0


class FaultProxy:
    """Listens on `port` (0: any) of loopback and passes on to `target`: a port, or a Unix socket."""

    def __init__(self, target: int | str, port: int = 0) -> None:
        self.target = target
        self.port = port
        self.faults = Faults()
        self.cuts = 0
        self.accepted = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._forgotten = asyncio.Event()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> int:
        """Reset every connection there is; how many."""
        for task in self._tasks:
            task.cancel()
        return len(self._tasks)

    def forget(self) -> None:
        """Pass nothing more on any connection there is, without a word to either side."""
        self._forgotten.set()
        self._forgotten = asyncio.Event()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.faults.refuse:
            _reset(writer)
            return
        try:
            await self._between(reader, writer)
        finally:
            _reset(writer)

    async def _between(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await self._open()
        except OSError:
            return
        forgotten = self._forgotten
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, far_writer, forgotten))
                both.create_task(self._answer(far_reader, writer, forgotten))
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            _reset(far_writer)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.target, str):
            return await asyncio.open_unix_connection(self.target)
        return await asyncio.open_connection("127.0.0.1", self.target)

    async def _silence(self, forgotten: asyncio.Event) -> None:
        """As long as nothing may pass."""
        while self.faults.silent or forgotten.is_set():
            await asyncio.sleep(0.02)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, forgotten: asyncio.Event
    ) -> None:
        while data := await reader.read(CHUNK):
            await self._silence(forgotten)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError("the client is gone")

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, forgotten: asyncio.Event
    ) -> None:
        while data := await reader.read(CHUNK):
            await self._silence(forgotten)
            if self.faults.delay:
                await asyncio.sleep(self.faults.delay)
            left = self.faults.cut_answer_after
            if left is not None:
                writer.write(data[:left])
                with suppress(OSError):
                    await writer.drain()
                self.cuts += 1
                raise ConnectionResetError("cut")
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError("the server is gone")


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: no goodbye, as a crash or a middlebox would."""
    with suppress(OSError):
        sock = writer.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.close()
