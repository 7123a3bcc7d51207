"""Room on this machine: at most so many pods run at once, whoever started them.

Several workers of one machine share the tasks folder, so the count is taken from the folder and not from
memory: a worker that was killed leaves no slot behind, and its pods still count. Who waits in this process
waits in one line (see runyard.executors.line), and only its head looks; it is woken when a nest that this
process started ends or a pod is deleted, and looks anyway every half second for what others do.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

from runyard.executors.base import Launch, Progress, Report
from runyard.executors.line import Line
from runyard.executors.local import folder

T = TypeVar("T")

_LOOK_S = 0.5
_UNCLAIMED_S = 60  # a pod that no nest has taken for so long holds no slot any more


@contextlib.asynccontextmanager
async def locked(tasks: Path) -> AsyncIterator[None]:
    """The tasks folder, alone. Its holders never wait for anything, so it is tried every few milliseconds."""
    handle = os.open(tasks / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.003)
        yield
    finally:
        os.close(handle)


class Room:
    def __init__(self, tasks: Path, slots: int) -> None:
        self._tasks = tasks
        self._slots = slots
        self._line = Line()
        self._freed = asyncio.Event()

    def look_again(self) -> None:
        """Something may have ended."""
        self._freed.set()

    async def take(self, launch: Launch, make: Callable[[], T], report: Report) -> T:
        """Call ``make`` once there is room. It must not wait, so that a cancel cannot come in between.

        Raises FileExistsError as soon as there is a pod of that name, whoever made it.
        """
        async with self._line.place(priority=launch.priority, owner=launch.run_owner) as place:
            while True:
                if not place.is_first.is_set():
                    report(_waiting(f"{self._slots} slots, others are before it"))
                    await place.first()
                self._freed.clear()
                async with locked(self._tasks):
                    if (self._tasks / launch.name).exists():
                        raise FileExistsError(launch.name)
                    used = in_use(self._tasks)
                    if used < self._slots:
                        place.serve()
                        return make()
                report(_waiting(f"{used} of {self._slots} slots are in use"))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._freed.wait()


def _waiting(why: str) -> Progress:
    return Progress(state="waiting", message=f"waits for room: {why}")


def in_use(tasks: Path) -> int:
    """Pods that run, or are about to."""
    return sum(1 for pod in folder.pods(tasks) if _holds(pod))


def _holds(pod: folder.PodFolder) -> bool:
    if pod.ended():
        return False
    seen = pod.nest()
    if seen is not None:
        return seen.running
    with contextlib.suppress(FileNotFoundError):
        return time.time() - pod.path.stat().st_mtime < _UNCLAIMED_S
    return False
