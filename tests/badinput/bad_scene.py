"""Runs on local processes and what is left of them: the way in and out of every test of bad input."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from chunks import whole
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from yard import SANDBOX, Yard

from runyard.executors.open import open_executor
from runyard.records.logs import Seal, load_seal
from runyard.records.reader import LogReader
from runyard.records.runs import read_plan
from runyard.settings import Settings
from runyard.spec.run import RunResult, RunView, TaskView
from runyard.store.base import ObjectStore
from runyard.store.posix import PosixStore
from workers.serve import build_workers

Handle = WorkflowHandle[object, RunResult]
Task = dict[str, object]
PATIENCE_S = 60


def task(name: str, *steps: object, **fields: object) -> Task:
    """A text is a `run` step, anything else is written as it is."""
    written = [{"run": step} if isinstance(step, str) else step for step in steps]
    return {"name": name, "runtime": {"containers": [{"image": "alpine"}]}, "steps": written, **fields}


def file(*tasks: Task, **fields: object) -> dict[str, object]:
    return {"runs": [{"name": "build", "tasks": list(tasks), **fields}]}


@dataclass
class Played:
    """A run that has ended. ``cause`` is what Temporal shows of a failed one."""

    store: ObjectStore
    handle: Handle
    view: RunView
    cause: str

    def __getitem__(self, name: str) -> TaskView:
        return next(each for each in self.view.tasks if each.name == name)

    async def log(self, name: str, step: int | str = 0) -> bytes:
        reader = LogReader(self.store, await self._id(name), self[name].attempt)
        return await whole(reader.read(step))

    async def seal(self, name: str) -> Seal:
        seal = await load_seal(self.store, await self._id(name), self[name].attempt)
        assert seal is not None
        return seal

    async def _id(self, name: str) -> str:
        return next(each.id for each in (await read_plan(self.store, self.handle.id)).tasks if each.name == name)


async def end(yard: Yard, handle: Handle, *, patience_s: float = PATIENCE_S) -> Played:
    cause = ""
    try:
        await asyncio.wait_for(handle.result(), patience_s)
    except WorkflowFailureError as error:
        cause = str(error.cause)
    return Played(yard.store, handle, await yard.view(handle), cause)


async def play(yard: Yard, *tasks: Task, **fields: object) -> Played:
    return await end(yard, await yard.start(file(*tasks, **fields)))


async def until(true: Callable[[], object], what: str) -> None:
    """Wait for what another process does."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not true():
        assert asyncio.get_running_loop().time() < deadline, f"waited {PATIENCE_S} s in vain for {what}"
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def at_work(client: Client, settings: Settings) -> AsyncIterator[Yard]:
    """A worker with local processes, by these settings."""
    store, executor = PosixStore(settings.posix_folder), open_executor("local", settings)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(executor.close)
        for worker in build_workers(client, store, [executor], log_bytes=settings.log_bytes, runner=SANDBOX):
            await stack.enter_async_context(worker)
        yield Yard(client, store, executor)


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own in memory, for root only."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.getuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("mounting a small file system needs root on Linux")
    words = ["mount", "-t", "tmpfs", "-o", options, "runyard-test", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def everything_below(folder: Path) -> bytes:
    """The bytes of all files, and their names."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return b"\n".join(os.fsencode(path) + b"\n" + path.read_bytes() for path in found)
