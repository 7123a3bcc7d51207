"""A worker that runs one pod and kills itself at a chosen moment: `killed_worker.py FOLDER LAUNCH.json POINT`.

POINT is `NAME:before` or `NAME:after`, of a function that the worker calls on its way.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from yards import local, silent

from runyard.executors.base import Launch
from runyard.executors.local import executor, folder, starter

PLACES: dict[str, tuple[Any, str]] = {
    "start": (executor.LocalExecutor, "start"),
    "make": (folder, "make"),
    "spawn": (starter, "_spawn"),
    "claimed": (executor.LocalExecutor, "_claimed"),
    "follow": (executor.LocalExecutor, "follow"),
    "until_ended": (executor.LocalExecutor, "_until_ended"),
    "ended": (executor.LocalExecutor, "_ended"),
    "kill": (executor.LocalExecutor, "_kill"),
    "put_away": (folder, "put_away"),
    "remove_tree": (folder, "remove_tree"),
}
POINTS = [f"{name}:{when}" for name in PLACES for when in ("before", "after")]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def set_trap(point: str) -> None:
    name, _, when = point.partition(":")
    place, attribute = PLACES[name]
    real = getattr(place, attribute)

    def trapped(*arguments: Any, **more: Any) -> Any:
        if when == "before":
            die()
        answer = real(*arguments, **more)
        if asyncio.iscoroutine(answer):
            return finish(answer)
        die()
        return answer

    async def finish(answer: Any) -> Any:
        result = await answer
        die()
        return result

    setattr(place, attribute, trapped)


async def work(tasks: Path, asked: Launch) -> None:
    worker = local(tasks)
    pod = await worker.start(asked, silent)
    await worker.follow(pod, owner="one", report=silent)
    await worker.delete(pod)


if __name__ == "__main__":
    set_trap(sys.argv[3])
    asyncio.run(work(Path(sys.argv[1]), Launch.model_validate_json(Path(sys.argv[2]).read_text())))
