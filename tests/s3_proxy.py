"""A connection to the store that can fail: a small TCP proxy."""

import asyncio
import re
from contextlib import suppress

CHUNK = 65536


class Proxy:
    """Passes bytes on to ``to_port``, unless a fault is set. Each fault is used up as it happens."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.cut_down_after: list[int] = []  # bytes of answers after which a connection is cut, one entry a cut
        self.lose_answer_to: re.Pattern[bytes] | None = None
        self.lost = 0
        self.replace_up: tuple[bytes, bytes] | None = None
        self.replace_down: tuple[bytes, bytes] | None = None
        self.replacements = 0  # how many are left

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Take no connections any more, and cut those that are there."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        try:
            with suppress(OSError):
                await self._pass_on(reader, writer)
        finally:
            self._pipes.discard(task)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        doomed = asyncio.Event()
        pipes = [
            asyncio.create_task(self._up(reader, to_writer, doomed)),
            asyncio.create_task(self._down(to_reader, writer, doomed)),
        ]
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pipe in pipes:
                pipe.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)
            to_writer.close()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event) -> None:
        while data := await reader.read(CHUNK):
            if self.lose_answer_to is not None and self.lose_answer_to.match(data):
                self.lose_answer_to = None
                doomed.set()
            data, self.replace_up = self._replaced(data, self.replace_up)
            await self.flowing.wait()
            writer.write(data)
            await writer.drain()

    async def _down(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event
    ) -> None:
        passed = 0
        while data := await reader.read(CHUNK):
            await self.flowing.wait()
            if doomed.is_set():
                self.lost += 1
                return
            data, self.replace_down = self._replaced(data, self.replace_down)
            writer.write(data)
            await writer.drain()
            passed += len(data)
            if self.cut_down_after and passed > self.cut_down_after[0]:
                self.cut_down_after.pop(0)
                return

    def _replaced(self, data: bytes, pair: tuple[bytes, bytes] | None) -> tuple[bytes, tuple[bytes, bytes] | None]:
        if pair is None or pair[0] not in data:
            return data, pair
        self.replacements -= 1
        return data.replace(*pair), pair if self.replacements > 0 else None
