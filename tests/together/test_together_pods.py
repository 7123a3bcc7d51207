"""What one pod leaves and another uses, on a real kubelet and a real bucket: caches, kept tasks, a checkout."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from lab import Lab
from lab_scene import LATE_CANCEL, Place, Scene, open_scene
from snapshot.snapshot_scene import init
from temporalio.client import Client

from runyard.client import Run, Runyard
from runyard.client.cleanup import clean
from runyard.records.runs import read_plan
from runyard.spec.cleanup import Retention
from runyard.spec.run import TaskView
from runyard.store import paths

pytestmark = [pytest.mark.kubernetes, LATE_CANCEL]

TASK = {"containers": [{"image": "lab.local/task:1"}]}
SAVE = {"save_to_workspace": {"contents": [{"paths": ["made"]}]}}


@pytest.fixture
async def scene(lab: Lab, client: Client, tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_scene(lab, client, tmp_path) as ready:
        yield ready


async def yard_of(scene: Scene, *, retention: Retention | None = None) -> Runyard:
    """A client whose runs go to pods of the scene's namespace."""
    spot = (await scene.serve({"": Place()}, retention=retention))[""]
    settings = scene.settings.model_copy(update={"executor": spot.executor})
    return Runyard(scene.client, scene.store, settings=settings)


def task(name: str, *steps: object, **fields: object) -> dict[str, object]:
    written = [{"run": step} if isinstance(step, str) and " " in step else step for step in steps]
    return {"name": name, "runtime": TASK, "steps": written, **fields}


async def ended(scene: Scene, run: Run, result: str) -> dict[str, TaskView]:
    async with asyncio.timeout(120):
        found = await run.result()
    view = await run.describe()
    assert found.result == result, view.tasks
    async with asyncio.timeout(60):
        while (await scene.core.list_namespaced_pod(scene.namespace)).items:
            await asyncio.sleep(0.2)
    return {each.name: each for each in view.tasks}


async def text(run: Run, name: str, step: int) -> str:
    return "".join([f"{line}\n" async for line in run.logs(name, step=step)])


async def keys(scene: Scene, prefix: str = "") -> set[str]:
    return {info.key async for info in scene.store.list(prefix)}


async def test_a_cache_of_one_run_is_restored_in_another(scene: Scene) -> None:
    yard = await yard_of(scene)
    use = 'mkdir -p kept; cat kept/* 2>&1 || :; echo "made by $RUNYARD_RUN_ID" >kept/by'
    steps = [{"restore_cache": {"keys": ["deps-1", "deps-"]}}, use]
    file = {
        "runs": [
            {
                "name": "r",
                "tasks": [
                    task("a", *steps, {"save_cache": {"key": "deps-1", "contents": [{"paths": ["kept/**"]}]}})
                ],
            }
        ]
    }
    first = await yard.start(file, project="p", run_id=f"first-{scene.bucket}")
    await ended(scene, first, "success")
    assert "No such file" in await text(first, "a", 1)
    second = await yard.start(file, project="p", run_id=f"second-{scene.bucket}")
    await ended(scene, second, "success")
    assert await text(second, "a", 1) == f"made by {first.id}\n"
    other = await yard.start(file, project="q")
    await ended(scene, other, "success")
    assert "No such file" in await text(other, "a", 1), "caches are of a project"


@pytest.mark.promise(6)
@pytest.mark.promise(8)
async def test_a_restart_shares_what_it_keeps_until_both_runs_are_cleaned(scene: Scene) -> None:
    yard = await yard_of(scene, retention=Retention(logs_s=0, archives_s=0, runs_s=0))
    make = task("make", 'echo "by $RUNYARD_RUN_ID" | tee made', SAVE)
    good = 'test "$GOOD" = yes && cat made'
    check = task("check", "restore_workspace", good, depends=["make"])
    file = {"runs": [{"name": "r", "tasks": [make, check]}]}
    first = await yard.start(file, environment={"GOOD": "no"})
    await ended(scene, first, "failed")
    ids = {each.name: each.id for each in (await read_plan(scene.store, first.id)).tasks}
    before = await keys(scene, f"logs/{ids['make']}/") | await keys(scene, f"archives/{ids['make']}/")

    second = await yard.restart(first.id, environment={"GOOD": "yes"})
    tasks = await ended(scene, second, "success")
    assert (tasks["make"].kept_from, tasks["make"].id) == (first.id, ids["make"])
    assert await text(second, "check", 1) == f"by {first.id}\n", "the archive of the first run's pod"
    assert await text(second, "make", 0) == f"by {first.id}\n"
    after = await keys(scene, f"logs/{ids['make']}/") | await keys(scene, f"archives/{ids['make']}/")
    refers = {paths.log_runid(ids["make"], second.id), paths.archive_runid(ids["make"], second.id)}
    assert after - before == refers, "not a byte was copied"

    report = await (await clean(yard, now=True)).result()
    assert {"logs", "archives", "runs"} <= set(report.deleted), report
    assert await keys(scene, "logs/") == set()
    assert await keys(scene, "archives/") == set()
    assert await keys(scene, "runs/") == set()


async def test_a_direct_run_of_a_dirty_checkout(scene: Scene, tmp_path: Path) -> None:
    yard = await yard_of(scene)
    checkout = init(tmp_path / "checkout", file="one\n", **{"folder/other": "two\n", ".gitignore": "*.o\n"})
    (checkout / "file").write_text("changed\n")
    (checkout / "new").write_text("new\n")
    (checkout / "x.o").write_text("ignored\n")
    look = task(
        "look", "clone", 'cat file folder/other new; ls; echo "on $RUNYARD_GIT_BRANCH"; git status --short || :'
    )
    run = await yard.start({"runs": [{"name": "r", "tasks": [look]}]}, local=checkout)
    await ended(scene, run, "success")
    said = (await text(run, "look", 1)).splitlines()
    assert said[:3] == ["changed", "two", "new"]
    assert said[3:6] == ["file", "folder", "new"]
    assert "on main" in said


@pytest.mark.promise(5)
async def test_pods_of_a_terminated_run_are_gone_within_a_minute(scene: Scene) -> None:
    """No code of the run goes on, and no cleanup runs: whoever serves the executor looks."""
    yard = await yard_of(scene)
    run = await yard.start({"runs": [{"name": "r", "tasks": [task("a", "sleep 600")]}]})
    async with asyncio.timeout(60):
        while not (await scene.core.list_namespaced_pod(scene.namespace)).items:
            await asyncio.sleep(0.1)
    await scene.client.get_workflow_handle(run.id).terminate("somebody in the UI")
    async with asyncio.timeout(60):
        while (await scene.core.list_namespaced_pod(scene.namespace)).items:
            await asyncio.sleep(0.2)
    async with asyncio.timeout(60):  # a Secret goes with its pod, by the cluster's own collector at the latest
        while (await scene.core.list_namespaced_secret(scene.namespace)).items:
            await asyncio.sleep(0.2)
