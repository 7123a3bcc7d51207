"""Workers are killed at every turn: outcome, logs and the number of times a step ran stay the same."""

import asyncio
import contextlib
import os
import random
import signal
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from yard import Work

from runyard.records.logs import load_seal
from runyard.records.runs import read_plan, read_result
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult
from runyard.store.posix import PosixStore

POINTS = [
    "schedule.begin",
    "schedule.referred",
    "schedule.started",
    "schedule.said",
    "fetch.begin",
    "fetch.ended",
    "fetch.verified",
    "fetch.sealed",
    "delete.begin",
    "delete.deleted",
]


@dataclass
class Site:
    """A state folder, a server, and workers that come and go by `work`."""

    client: Client
    state: Path
    store: PosixStore
    work: Work

    def ran(self) -> list[str]:
        """One line for each time that a step ran."""
        path = self.state / "ran"
        return sorted(path.read_text().splitlines()) if path.exists() else []

    def left(self) -> list[str]:
        """Command lines of processes that belong to tasks of this site."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    where = os.readlink(entry / "cwd")
                    if f"{self.state}/tasks" in words + where:
                        found.append(words)
        return found


@pytest.fixture
def site(client: Client, work: Work, tmp_path: Path) -> Site:
    return Site(client, tmp_path, PosixStore(tmp_path / "store"), work)


def pipeline(state: Path, *, width: int) -> dict[str, object]:
    """Tasks with outputs, archives, a retry that fails and a failure that is ignored."""
    mark = f'echo "$RUNYARD_TASK $RUNYARD_ATTEMPT" >> {state}/ran; '
    runtime = {"containers": [{"image": "none"}]}
    tasks: list[dict[str, object]] = []
    for n in range(width):
        steps = [
            {
                "run": f"{mark} i=0; while [ $i -lt 200 ]; do echo {n}-line-$i; i=$((i+1)); done\n"
                f"echo V={n} > $RUNYARD_OUTPUT"
            },
            {"run": f"echo {n} > made-{n}"},
            {"save_to_workspace": {"contents": [{"paths": ["made-*"]}]}},
        ]
        tasks.append({"name": f"make {n}", "runtime": runtime, "steps": steps})
    needs = [f"make {n}" for n in range(width)]
    tasks.append(
        {
            "name": "use",
            "runtime": runtime,
            "depends": needs,
            "environment": {"V": {"from_output": "make 0.V"}},
            "steps": ["restore_workspace", {"run": mark + 'cat made-*; test "$V" = 0'}],
        }
    )
    retry = {"limit": 1, "backoff": "50ms"}
    tasks.append(
        {
            "name": "bad",
            "runtime": runtime,
            "retry": retry,
            "steps": [{"run": mark + "exit 4"}],
            "ignore_failure": True,
        }
    )
    return {"runs": [{"name": "faults", "tasks": tasks}]}


async def start(site: Site, file: object) -> WorkflowHandle[object, RunResult]:
    return await site.client.start_workflow(
        WORKFLOW,
        {"file": file, "executor": "local"},
        id=f"fault-{uuid.uuid4().hex[:10]}",
        task_queue=RUNS_QUEUE,
        result_type=RunResult,
    )


async def check(site: Site, handle: WorkflowHandle[object, RunResult], *, width: int) -> None:
    """What must hold however often workers died."""
    result = await handle.result()
    assert result.result == "success"
    assert result.counts == {"success": width + 1, "failed": 1}
    assert site.ran() == sorted([f"make {n} 1" for n in range(width)] + ["use 1", "bad 1", "bad 2"])
    plan = await read_plan(site.store, handle.id)
    kept = {view.name: view for view in (await read_result(site.store, handle.id)).tasks}
    for task in plan.tasks:
        seal = await load_seal(site.store, task.id, kept[task.name].attempt)
        assert seal is not None, task.name
        assert all(step.complete for step in seal.steps), task.name
        if task.name.startswith("make"):
            n = task.name.split()[1]
            log = (site.store.folder / "data" / f"logs/{task.id}/data/1/steps/0.log").read_text()
            assert log == "".join(f"{n}-line-{i}\n" for i in range(200))
    assert site.left() == []
    tasks = site.state / "tasks"
    assert not tasks.exists() or [path for path in tasks.iterdir() if not path.name.startswith(".")] == []


@pytest.mark.promise(9)
@pytest.mark.promise(2)
@pytest.mark.promise(3)
@pytest.mark.promise(5)
@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_that_dies_between_two_effects_changes_nothing(site: Site, point: str) -> None:
    dying = await site.work(f"{point}:2")
    handle = await start(site, pipeline(site.state, width=2))
    await dying.wait()
    assert dying.returncode == -signal.SIGKILL
    await site.work()
    await check(site, handle, width=2)


@pytest.mark.promise(9)
@pytest.mark.promise(4)
@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(1_200)])])
async def test_a_worker_that_is_killed_at_random_moments_changes_nothing(site: Site, kills: int) -> None:
    width = 58 if kills == 50 else 10
    chance = random.Random(kills)
    process = await site.work()
    handle = await start(site, pipeline(site.state, width=width))
    for _ in range(kills):
        await asyncio.sleep(chance.uniform(0.05, 1.0))  # the moment is what is random, nothing waits for it
        process.kill()
        await process.wait()
        process = await site.work()
    await check(site, handle, width=width)


@pytest.mark.promise(7)
async def test_a_cancel_while_no_worker_lives_is_carried_out_by_the_next(site: Site) -> None:
    worker = await site.work()
    runtime = {"containers": [{"image": "none"}]}
    steps = [{"run": f"echo begun >> {site.state}/ran; sleep 600"}]
    handle = await start(
        site, {"runs": [{"name": "long", "tasks": [{"name": "a", "runtime": runtime, "steps": steps}]}]}
    )
    while not site.ran():
        await asyncio.sleep(0.05)
    worker.kill()
    await worker.wait()
    await handle.cancel()
    await site.work()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    kept = await read_result(site.store, handle.id)
    assert [view.status for view in kept.tasks] == ["cancelled"]
    assert site.left() == []
