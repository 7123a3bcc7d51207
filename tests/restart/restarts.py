"""Runs to restart: local processes that write down each time that one of their steps runs."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from runyard.client import Run, Runyard
from runyard.spec.run import RunView, TaskView

RUNTIME = {"containers": [{"image": "none"}]}


@dataclass
class Scene:
    """A client with a worker, and the folder in which tasks leave their marks."""

    runs: Runyard
    folder: Path

    def task(self, name: str, *steps: object, fails: bool = False, **fields: object) -> dict[str, object]:
        """It writes its name into `ran`; with ``fails`` it fails as long as the file `good` is not there."""
        mark = f"echo {name!r} >> {self.folder}/ran"
        check = [{"run": f"test -e {self.folder}/good"}] if fails else []
        return {"name": name, "runtime": RUNTIME, "steps": [{"run": mark}, *steps, *check], **fields}

    def mend(self) -> None:
        (self.folder / "good").touch()

    def ran(self) -> list[str]:
        path = self.folder / "ran"
        return path.read_text().split() if path.exists() else []

    def forget(self) -> None:
        (self.folder / "ran").unlink(missing_ok=True)

    async def ended(self, run: Run) -> dict[str, TaskView]:
        await run.result()
        return tasks_of(await run.describe())


def tasks_of(view: RunView) -> dict[str, TaskView]:
    return {task.name: task for task in view.tasks}


def file(*tasks: dict[str, object], name: str = "build", **fields: object) -> dict[str, object]:
    return {"runs": [{"name": name, "tasks": list(tasks), **fields}]}


def run_step(command: str) -> dict[str, object]:
    return {"run": command}


async def status(run: Run, name: str, *wanted: str) -> TaskView:
    while True:
        found = tasks_of(await run.describe()).get(name)
        if found and found.status in wanted:
            return found
        await asyncio.sleep(0.05)
