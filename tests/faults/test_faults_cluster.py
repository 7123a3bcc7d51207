"""What goes wrong on a real kubelet, as a run tells it: reason, sentence, remedy; and nothing is left behind.

All rows go on at once, those of one place as the tasks of one run: a fault of one must not reach another. Faults
that touch the whole node are in test_faults_node.py and test_faults_parts.py.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fault_rows import PLACES, ROWS, Row, task
from lab import Lab
from lab_scene import LATE_CANCEL, Handle, Scene, open_scene
from temporalio.client import Client

from runyard.cli import render
from runyard.spec.run import RunView, TaskView

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(400), LATE_CANCEL]


@pytest.fixture
async def scene(lab: Lab, client: Client, tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_scene(lab, client, tmp_path) as ready:
        await ready.core.create_namespaced_secret(
            ready.namespace, {"metadata": {"name": "present"}, "stringData": {"value": "x"}}
        )
        await ready.core.create_namespaced_config_map(
            ready.namespace, {"metadata": {"name": "present"}, "data": {"x": "y"}}
        )
        yield ready


@pytest.mark.promise(1)
@pytest.mark.promise(5)
async def test_each_fault_has_its_reason_sentence_and_remedy(scene: Scene) -> None:
    spots = await scene.serve(PLACES)
    runs = [run_of(scene, spot.executor, place) for place, spot in spots.items()]
    wrong = [each for found in await asyncio.gather(*runs) for each in found]
    assert wrong == []


async def run_of(scene: Scene, executor: str, place: str) -> list[str]:
    """One run with all rows of a place. What was not as the table says."""
    rows = {name: row for name, row in ROWS.items() if row.place == place}
    handle = await scene.start(executor, [task(name, row) for name, row in rows.items()])
    provoked = [provoke(scene, handle, name, row) for name, row in rows.items() if row.provoke]
    view, *_ = await asyncio.gather(scene.ended(handle, within_s=300), *provoked)
    wrong = [words for name, row in rows.items() for words in await differences(scene, handle, view, name, row)]
    try:
        await scene.gone(handle)
    except TimeoutError:
        wrong.append(f"{place}: left behind: {await scene.left(handle)}")
    return wrong


async def provoke(scene: Scene, handle: Handle, name: str, row: Row) -> None:
    assert row.provoke is not None
    await row.provoke(scene, await scene.begun(handle, name))


async def differences(scene: Scene, handle: Handle, view: RunView, name: str, row: Row) -> list[str]:
    (found,) = (each for each in view.tasks if each.name == name)
    wrong = []
    if found.status != "failed" or found.reason is not row.reason or row.says not in found.message:
        wrong.append(f"{name}: {found.status} {found.reason}: {found.message}")
    if row.remedy not in (shown := words_on(view, found)):
        wrong.append(f"{name}: the remedy is not in {shown!r}")
    seal = await scene.seal(handle, name, found.attempt)
    if seal is None or found.message not in seal.setup.text:
        wrong.append(f"{name}: the setup log does not say it: {seal and seal.setup.text}")
    if row.log and not (seal and seal.complete):
        wrong.append(f"{name}: the log is not whole: {seal and seal.truncated}")
    return wrong


def words_on(view: RunView, task: TaskView) -> str:
    """What `run show` says of a task that failed."""
    alone = view.model_copy(update={"tasks": [task]})
    return "\n".join("".join(span.text for span in line) for line in render.ending(alone))
