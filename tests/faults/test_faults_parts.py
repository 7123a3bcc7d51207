"""Parts of the node, the store and workers go away and come back: it changes the time a run takes, and no more.

Each part is away for some seconds here, and for as long as the design says in `make soak`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from lab import Lab
from lab_scene import LATE_CANCEL, Place, Scene, counting, lines, open_scene
from temporalio.client import Client

from runyard.reasons import Reason

pytestmark = [pytest.mark.kubernetes, LATE_CANCEL]

LONG = [pytest.mark.soak, pytest.mark.timeout(600)]
AWAY = [
    ("kubelet", 5),
    ("apiserver", 6),
    ("containerd", 3),
    ("minio", 6),
    pytest.param("kubelet", 30, marks=LONG),
    pytest.param("apiserver", 30, marks=LONG),
    pytest.param("containerd", 30, marks=LONG),
    pytest.param("minio", 60, marks=LONG),
]


@pytest.fixture
async def scene(lab: Lab, client: Client, tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_scene(lab, client, tmp_path) as ready:
        yield ready


@contextlib.asynccontextmanager
async def away(lab: Lab, part: str) -> AsyncIterator[None]:
    """Killed at once, and started again in the end whatever happens: other tests need it."""
    await lab.stop(part, kill=True)
    try:
        yield
    finally:
        await lab.start(part)


@pytest.mark.promise(9)
@pytest.mark.promise(4)
@pytest.mark.parametrize(("part", "away_s"), AWAY)
async def test_a_part_that_is_away_for_a_while_costs_time_only(scene: Scene, part: str, away_s: int) -> None:
    spot = (await scene.serve({"": Place()}))[""]
    through, within = 20 * (away_s + 4), 60
    after = [{"task": "through", "conditions": ["on_success"]}]
    tasks = [
        counting("through", through),
        counting("within", within, code=7, ignore_failure=True),
        counting("after", 3, depends=after),
    ]
    handle = await scene.start(spot.executor, tasks)
    await scene.begun(handle, "through")
    await scene.begun(handle, "within")
    async with away(scene.lab, part):
        await asyncio.sleep(away_s)  # this is how long it is away: nothing is waited for
    view = await scene.ended(handle, within_s=away_s + 120)
    assert view.result == "success", view.tasks
    ends = {task.name: (task.status, task.reason, task.exit_code) for task in view.tasks}
    assert ends["within"] == ("failed", Reason.EXIT_CODE, 7)
    assert {name: end[0] for name, end in ends.items() if name != "within"} == dict.fromkeys(
        ("through", "after"), "success"
    )
    for name, count in (("through", through), ("within", within), ("after", 3)):
        seal = await scene.seal(handle, name)
        assert seal is not None
        assert seal.complete, f"{name}: {seal.truncated}"
        assert await scene.log(handle, name) == lines(name, count)
    await scene.gone(handle)
