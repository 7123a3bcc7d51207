"""The three pages of a worker: `/metrics`, `/healthz`, `/readyz`, served by the worker's own loop.

By the loop and not by a thread of prometheus_client's, since `/healthz` is to say that the loop turns. A web
framework for three pages without arguments would be a dependency of every worker.

Temporal's native part counts by itself and serves that on an address of its own. It gets a port of the loopback
interface, and `/metrics` adds what it answers: one target to scrape. The SDK's buffer of updates was turned down:
it has to be emptied in time or it loses some, and its updates would be counted a second time in Python.
"""

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable
from typing import Final

from runyard.errors import ConfigError
from workers.metrics import PrometheusMetrics

_ANSWER_S: Final = 5.0
_TEXT: Final = "text/plain; charset=utf-8"
_EXPOSITION: Final = "text/plain; version=0.0.4; charset=utf-8"
_ADDRESS: Final = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:]+)\]|(?P<host>[^:\s\[\]]*)):(?P<port>\d{1,5})")


def parse_address(address: str) -> tuple[str, int]:
    """HOST:PORT, [IPv6]:PORT, or :PORT for all interfaces. Raises ConfigError."""
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > 65535:
        raise ConfigError(f"metrics_address is HOST:PORT, for example 0.0.0.0:9464, not {address[:80]!r}")
    return found["six"] or found["host"] or "0.0.0.0", int(found["port"])


def choose_loopback() -> str:
    """An address for Temporal's native part, which cannot be asked which port it got. Free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextlib.asynccontextmanager
async def serve_pages(
    address: str, metrics: PrometheusMetrics, *, core: str, ready: Callable[[], bool]
) -> AsyncIterator[str]:
    """Serve while the block runs; yields the address. ``core`` is where Temporal's native part serves its own.

    Raises ConfigError where the address cannot be had.
    """
    host, port = parse_address(address)
    pages = _Pages(metrics, core, ready)
    try:
        server = await asyncio.start_server(pages.answer, host, port, limit=16 << 10)
    except OSError as error:
        raise ConfigError(f"the metrics cannot be served at {address}: {error.strerror or error}") from error
    async with server:
        name, number = server.sockets[0].getsockname()[:2]
        yield f"[{name}]:{number}" if ":" in name else f"{name}:{number}"


class _Pages:
    def __init__(self, metrics: PrometheusMetrics, core: str, ready: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._core = core
        self._ready = ready

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection. Whoever says nothing sensible in time is let go."""
        writer.transport.set_write_buffer_limits(0)  # `drain` then waits for all of it, within the time limit
        try:
            async with asyncio.timeout(2 * _ANSWER_S):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                method, path, *_ = [*head.partition("\r\n")[0].split(" "), "", ""]
                status, kind, body = await self._page(method, path.partition("?")[0])
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                    "Connection: close\r\n\r\n".encode()
                )
                writer.write(b"" if method == "HEAD" else body)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()  # the server's end waits for every connection
        finally:
            writer.close()

    async def _page(self, method: str, path: str) -> tuple[str, str, bytes]:
        if method not in ("GET", "HEAD"):
            return "405 Method Not Allowed", _TEXT, b"GET only\n"
        if path == "/metrics":
            return "200 OK", _EXPOSITION, self._metrics.render() + await _ask(self._core)
        if path == "/healthz":
            return "200 OK", _TEXT, b"ok\n"
        if path == "/readyz":
            ready = self._ready()
            return ("200 OK", _TEXT, b"ok\n") if ready else ("503 Service Unavailable", _TEXT, b"not polling\n")
        return "404 Not Found", _TEXT, b"/metrics, /healthz, /readyz\n"


async def _ask(core: str) -> bytes:
    """What Temporal's native part has counted; nothing where it does not answer: ours is shown all the same."""
    host, _, port = core.rpartition(":")
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(f"GET /metrics HTTP/1.0\r\nHost: {core}\r\n\r\n".encode())
                head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""
    return body if b" 200 " in head.partition(b"\r\n")[0] else b""
