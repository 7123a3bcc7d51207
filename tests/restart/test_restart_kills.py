"""Workers die at every turn of a restart: no step of a kept task runs again, and what is kept stays protected."""

import asyncio
import random
import signal
from pathlib import Path

import pytest
from restarts import Scene, file, run_step, tasks_of
from yard import Work

from runyard.client import Run, Runyard
from runyard.store.base import ObjectStore
from runyard.store.posix import PosixStore

POINTS = [
    "prepare.claimed:3",
    "prepare.planned",
    "fetch.sealed:2",
    *(
        pytest.param(point, marks=pytest.mark.soak)
        for point in (
            "prepare.claimed:1",
            "prepare.requested",
            "schedule.begin",
            "schedule.started",
            "fetch.ended",
            "delete.begin",
        )
    ),
]
SAVE = {"save_to_workspace": {"contents": [{"paths": ["made-*"]}]}}


@pytest.fixture
def killed(runs: Runyard, tmp_path: Path) -> Scene:
    return Scene(runs, tmp_path)


def pipeline(scene: Scene) -> dict[str, object]:
    makers = [
        scene.task(f"make-{n}", run_step(f"echo {n} > made-{n}; echo V={n} >> $RUNYARD_OUTPUT"), SAVE)
        for n in range(4)
    ]
    use = scene.task(
        "use",
        "restore_workspace",
        run_step('test "$(cat made-*)" = "$(printf "0\\n1\\n2\\n3")" -a "$V" = 2'),
        fails=True,
        depends=[f"make-{n}" for n in range(4)],
        environment={"V": {"from_output": "make-2.V"}},
    )
    return file(*makers, use, scene.task("publish", depends=["use"]))


async def failed_once(scene: Scene, work: Work) -> Run:
    worker = await work()
    first = await scene.runs.start(pipeline(scene))
    assert (await first.result()).result == "failed"
    assert sorted(scene.ran()) == ["make-0", "make-1", "make-2", "make-3", "use"]
    worker.kill()
    await worker.wait()
    scene.forget()
    scene.mend()
    return first


async def check(scene: Scene, store: ObjectStore, first: Run, again: Run) -> None:
    assert (await again.result()).result == "success"
    assert scene.ran() == ["use", "publish"], "nothing that is kept ran, nothing ran twice"
    found = tasks_of(await again.describe())
    for name in ("make-0", "make-1", "make-2", "make-3"):
        assert found[name].kept_from == first.id
        for kind in ("logs", "archives"):
            runs = [info.key async for info in store.list(f"{kind}/{found[name].id}/runs/")]
            assert runs == sorted(f"{kind}/{found[name].id}/runs/{run.id}" for run in (first, again))


@pytest.mark.promise(8)
@pytest.mark.promise(9)
@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_that_dies_in_a_restart_runs_no_kept_task(
    killed: Scene, work: Work, store: PosixStore, point: str
) -> None:
    first = await failed_once(killed, work)
    dying = await work(point)
    again = await killed.runs.restart(first.id)
    await dying.wait()
    assert dying.returncode == -signal.SIGKILL
    await work()
    await check(killed, store, first, again)


@pytest.mark.promise(8)
@pytest.mark.soak
async def test_workers_that_die_at_random_moments_of_a_restart_run_no_kept_task(
    killed: Scene, work: Work, store: PosixStore
) -> None:
    chance = random.Random(8)
    first = await failed_once(killed, work)
    again = await killed.runs.restart(first.id)
    for _ in range(20):
        worker = await work()
        await asyncio.sleep(chance.uniform(0.0, 0.5))  # the moment is what is random, nothing waits for it
        worker.kill()
        await worker.wait()
    await work()
    await check(killed, store, first, again)
