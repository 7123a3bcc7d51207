"""What the executor tests share: launches, and the small pair of main and agent."""

import asyncio
import hashlib
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runyard.dialogue import Assignment
from runyard.executors.base import Executor, Launch, Progress
from runyard.executors.local import process
from runyard.executors.local.executor import LocalExecutor
from runyard.executors.secrets import EnvironmentSecrets
from runyard.spec.plan import Container, FromSecret, Resources, RunStep, TaskPlan
from runyard.store.base import FolderTarget

SMALL_AGENT = Path(__file__).with_name("small_agent.py")

SECRETS = {"RUNYARD_SECRET_TOKEN": "s3cr3t-value"}

SMALL_MAIN = """\
cd "$HOME"
R=$RUNYARD_DIR receipt=
trap : PIPE
trap on_term TERM
on_term() {
  trap '' TERM
  note term
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
  wait
  ask done && note sealed
  exit 143
}
for f in req res; do mkfifo "$R/$f" 2>/dev/null || :; done
exec 8>"$R/req" 9<"$R/res"
note() { receipt="$receipt$*;"; printf '%s' "$receipt" >"$RUNYARD_RECEIPT"; }
ask() { { echo "$*" >&8; } 2>/dev/null && IFS= read -r got <&9 || got=125; return "$got"; }
ask hello 0 0 || { note agent lost; exit 125; }
sh -e -c "$STEP" 8>&- 9<&- & child=$!
ask begin || { note agent lost; exit 125; }
wait "$child"; rc=$?
child=
note 0 "$rc"
ask done || { note agent lost; exit 125; }
note sealed
exit "$rc"
"""

_names = itertools.count(1)


def silent(_: Progress) -> None:
    """Nobody listens."""


def launch(
    logs: Path,
    command: str = "true",
    *,
    name: str = "",
    owner: str = "one",
    environment: dict[str, str | FromSecret] | None = None,
    deadline_s: float | None = None,
    grace_s: float = 5,
    memory_bytes: int | None = None,
    digest: str = "",
    secrets: dict[str, str] | None = None,
) -> Launch:
    """A pod of one step, for the small pair; ``logs`` is the folder of this attempt's logs."""
    name = name or f"pod-{next(_names)}"
    step = RunStep(command=command)
    task = TaskPlan(
        id=name,
        name="task",
        containers=[Container(image="none")],
        steps=[step],
        resources=Resources(memory_bytes=memory_bytes),
    )
    return Launch(
        name=name,
        run_id="run",
        attempt=1,
        task=task,
        script=SMALL_MAIN,
        environment={"STEP": command, **(environment or {})},
        secrets=secrets or {},
        assignment=Assignment(
            run_id="run", task="task", attempt=1, steps=[step], logs=FolderTarget(folder=str(logs / name))
        ),
        digest=digest or hashlib.sha256(f"{name}{command}".encode()).hexdigest(),
        owner=owner,
        deadline_s=deadline_s,
        grace_s=grace_s,
    )


@dataclass
class Yard:
    """An executor, and another worker's view of the same pods."""

    executor: Executor
    again: Callable[[], Executor]
    folder: Path
    kind: str
    ask: Callable[..., Launch] = launch

    def launch(self, command: str = "true", **more: Any) -> Launch:
        return self.ask(self.folder, command, **more)


def local(folder: Path, *, slots: int = 4, keep_folders: bool = False) -> LocalExecutor:
    return LocalExecutor(
        folder / "tasks",
        slots=slots,
        secrets=EnvironmentSecrets(SECRETS),
        keep_folders=keep_folders,
        agent=SMALL_AGENT,
    )


async def clear(opened: list[LocalExecutor], tmp_path: Path) -> None:
    sweeper = opened[0] if opened else local(tmp_path)
    for pod in [seen.pod async for seen in sweeper.list()]:
        await sweeper.delete(pod)
    for executor in opened:
        await executor.close()
    assert leftover(tmp_path) == []


def leftover(folder: Path) -> list[int]:
    """Processes that work below this folder, by their environment."""
    return [row.pid for row in process.table() if str(folder) in _environ(row.pid)]


def _environ(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    return "\n".join(word for word in words if word.startswith("RUNYARD_"))


async def until(check: Callable[[], Awaitable[bool] | bool], *, guard_s: float = 20) -> None:
    """Until that is so; the guard is only there to end a test that would wait for ever."""
    async with asyncio.timeout(guard_s):
        while True:
            answer = check()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.005)
