"""The node itself is taken away: tainted, not ready, gone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from lab import Lab
from lab_scene import LATE_CANCEL, Handle, Place, Scene, answered, counting, open_scene
from temporalio.client import Client

from runyard.executors.kubernetes.verdict import Patience
from runyard.reasons import Reason

pytestmark = [pytest.mark.kubernetes, LATE_CANCEL]

NODE = "localhost"
SOON = [
    {"key": f"node.kubernetes.io/{word}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10}
    for word in ("not-ready", "unreachable")
]
"""Without these a pod stays five minutes on a node that does not answer."""


@pytest.fixture
async def scene(lab: Lab, client: Client, tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_scene(lab, client, tmp_path) as ready:
        yield ready


@contextlib.asynccontextmanager
async def tainted(scene: Scene, key: str) -> AsyncIterator[None]:
    await scene.core.patch_node(NODE, {"spec": {"taints": [{"key": key, "value": "yes", "effect": "NoExecute"}]}})
    try:
        yield
    finally:
        await scene.core.patch_node(NODE, {"spec": {"taints": None}})


@pytest.mark.promise(1)
async def test_a_taint_ends_what_runs_and_keeps_out_what_comes(scene: Scene) -> None:
    spot = (await scene.serve({"": Place()}))[""]
    after = [{"task": "runs", "conditions": ["on_failure"]}]
    comes = counting("comes", 1, depends=after, timeouts={"pending": "5s"})
    handle = await scene.start(spot.executor, [counting("runs", 2000), comes])
    await scene.begun(handle, "runs")
    async with tainted(scene, "faults"):
        view = await scene.ended(handle)
    ends = {task.name: task for task in view.tasks}
    assert ends["runs"].reason is Reason.NODE_LOST
    assert "Taint manager" in ends["runs"].message
    assert "infra" in Reason.NODE_LOST.remedy
    assert ends["comes"].reason is Reason.TIMEOUT_PENDING
    assert "untolerated taint" in ends["comes"].message
    seal = await scene.seal(handle, "runs")
    assert seal is not None
    assert seal.complete, seal.truncated
    await scene.gone(handle)


@contextlib.asynccontextmanager
async def witness(scene: Scene) -> AsyncIterator[None]:
    """A node that is well, and takes no pods: a cluster whose nodes are all silent gives none of them up."""
    name = "witness"
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "for a test"}
    await scene.core.create_node({"metadata": {"name": name}, "spec": {"unschedulable": True}})

    async def beat() -> None:
        while True:
            condition = {**ready, "lastHeartbeatTime": datetime.now(UTC).isoformat()}
            await scene.core.patch_node_status(name, {"status": {"conditions": [condition]}})
            await asyncio.sleep(5)

    beats = asyncio.create_task(beat())
    try:
        yield
    finally:
        beats.cancel()
        await asyncio.wait([beats])
        await scene.core.delete_node(name)


async def told(handle: Handle, words: bytes) -> None:
    """Until people see these words at the task, in Temporal's own view of its activity."""
    async with asyncio.timeout(120):
        while True:
            seen = (await handle.describe()).raw_description.pending_activities
            if any(words in detail.data for each in seen for detail in each.heartbeat_details.payloads):
                return
            await asyncio.sleep(0.5)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.promise(1)
@pytest.mark.promise(5)
@pytest.mark.parametrize("removed", [False, True])
async def test_a_node_that_does_not_answer_or_is_no_more(scene: Scene, removed: bool) -> None:
    """The pod is given up once its cluster has given up its node; the next attempt waits for the node."""
    place = Place(template={"spec": {"tolerations": SOON}}, patience=Patience(node_s=5))
    spot = (await scene.serve({"": place}))[""]
    task = counting("counts", 6000, every_s=0.1)
    handle = await scene.start(spot.executor, [task])
    await scene.begun(handle, "counts")
    await scene.lab.stop("kubelet", kill=True)
    try:
        if removed:
            await scene.core.delete_node(NODE)
            view = await scene.ended(handle, within_s=240)
        else:
            async with witness(scene):
                await told(handle, b"its node does not answer")
                view = await scene.ended(handle, within_s=240)
    finally:
        await scene.lab.start("kubelet")
    (found,) = view.tasks
    assert found.reason is Reason.NODE_LOST
    assert ("PodGC" if removed else "has not confirmed") in found.message
    await scene.gone(handle)
    seal = await scene.seal(handle, "counts")
    assert seal is not None
    assert not seal.complete, "its agent may have had more of it"
    await answered(lambda: scene.core.read_node(NODE))
