"""A way to the API server that can be made to fail: a TCP proxy before the real one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import yaml


class Unsteady:
    """`cut`: connections break, new ones work. `refuse`: none work. `freeze`: nothing moves, nobody is told.

    `forget`: what is connected never moves again, and nobody is told; new connections work.
    """

    def __init__(self, host: str, port: int, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._host, self._port = host, port
        self._writers: set[asyncio.StreamWriter] = set()
        self._forgotten: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = True
        self._moving = asyncio.Event()
        self._moving.set()
        self._lose = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def before(cls, real: Path, kubeconfig: Path) -> AsyncIterator["Unsteady"]:
        config = yaml.safe_load(real.read_text())
        cluster = config["clusters"][0]["cluster"]
        address = urlsplit(cluster["server"])
        way = cls(address.hostname or "", address.port or 443, kubeconfig)
        server = await asyncio.start_server(way._accept, "127.0.0.1", 0)
        cluster["server"] = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        kubeconfig.write_text(yaml.safe_dump(config))
        try:
            yield way
        finally:
            server.close()
            way._moving.set()
            way._break()
            await asyncio.gather(*way._tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def trouble(self, kind: str) -> AsyncIterator[None]:
        if kind == "freeze":
            self._moving.clear()
        elif kind == "forget":
            self._forgotten |= self._writers
        else:
            self._open = kind != "refuse"
            self._break()
        try:
            yield
        finally:
            self._open = True
            if kind == "freeze":  # what was frozen never comes back to life, as behind a router that forgot it
                self._break()
                self._moving.set()

    def lose_answers(self, count: int) -> None:
        """So many of the next answers break the connection instead."""
        self._lose = count

    def _break(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, back}
        for source, target, answers in ((reader, back, False), (there, writer, True)):
            task = asyncio.create_task(self._pump(source, target, answers=answers))
            self._tasks.add(task)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await self._moving.wait()
                if target in self._forgotten:
                    continue
                if answers and self._lose and len(data) > 1000:  # an answer, and no handshake
                    self._lose -= 1
                    self._break()
                    return
                target.write(data)
                await target.drain()
        target.close()
