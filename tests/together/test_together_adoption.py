"""A worker is killed with many pods in its care, and the next one has them all."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from lab import Lab
from lab_scene import LATE_CANCEL, Scene, counting, lines, open_scene
from lab_workers import counted_pods, kill, workers_of
from temporalio.client import Client

pytestmark = [pytest.mark.kubernetes, LATE_CANCEL]

PODS = 8


@pytest.fixture
async def scene(lab: Lab, client: Client, tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_scene(lab, client, tmp_path) as ready:
        yield ready


@pytest.mark.promise(2)
@pytest.mark.promise(4)
@pytest.mark.promise(5)
@pytest.mark.promise(9)
async def test_all_pods_of_a_killed_worker_are_adopted_by_the_next(scene: Scene) -> None:
    """The logs go on while nobody is there; no pod is made a second time."""
    counts = {f"task {n}": 100 + 10 * n for n in range(PODS)}
    async with workers_of(scene) as workers, counted_pods(scene) as pods:
        first = await workers.start()
        tasks = [counting(name, count, every_s=0.1) for name, count in counts.items()]
        handle = await scene.start(workers.executor, tasks)
        for name in counts:
            await scene.begun(handle, name)
        await kill(first)
        await workers.start()
        view = await scene.ended(handle)
        assert view.result == "success", view.tasks
        assert len(pods) == PODS
        for name, count in counts.items():
            seal = await scene.seal(handle, name)
            assert seal is not None
            assert seal.complete, seal.truncated
            assert await scene.log(handle, name) == lines(name, count)
        await scene.gone(handle)
