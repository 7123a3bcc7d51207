"""Whole runs on the real kubelet: a real Temporal server, a worker, pods, and a store that they share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cluster import Cluster, two_pods_only
from temporalio.client import Client, WorkflowFailureError
from yard import Yard, working

from runyard.reasons import Reason
from runyard.records.logs import load_seal
from runyard.spec.run import task_id
from runyard.store.posix import PosixStore

pytestmark = pytest.mark.kubernetes

LIMITED = {"spec": {"containers": [{"name": "agent", "resources": {"limits": {"memory": "128Mi"}}}]}}


@pytest.fixture
async def tight(cluster: Cluster, client: Client, tmp_path: Path) -> AsyncIterator[Yard]:
    """A worker whose namespace has room for two pods."""
    async with two_pods_only(cluster) as small:
        executor = small.executor(tmp_path, template=LIMITED)
        async with working(client, PosixStore(tmp_path / "store"), [executor]) as ready:
            yield ready
        assert [seen async for seen in executor.list()] == []
        await executor.close()


def task(cluster: Cluster, name: str, *steps: object, depends: list[str]) -> dict[str, object]:
    return {
        "name": name,
        "runtime": {"containers": [{"image": cluster.image}]},
        "resources": {"memory": "64Mi"},
        "steps": list(steps),
        "depends": depends,
    }


@pytest.mark.promise(5)
async def test_layers_of_tasks_pass_through_a_quota_of_two_pods(tight: Yard, cluster: Cluster) -> None:
    """Were pods kept until the run ends, the third would wait for ever."""
    save = {"save_to_workspace": {"contents": [{"paths": ["*.txt"]}]}}
    first = task(cluster, "first", {"run": "echo seed >seed.txt"}, save, depends=[])
    middle = [
        task(
            cluster,
            f"middle-{n}",
            {"restore_workspace": {}},
            {"run": f"cat seed.txt >{n}.txt; echo {n} >>{n}.txt"},
            save,
            depends=["first"],
        )
        for n in range(4)
    ]
    names = [f"middle-{n}" for n in range(4)]
    last = task(cluster, "last", {"restore_workspace": {}}, {"run": "cat [0-9].txt"}, depends=names)
    handle = await tight.start({"runs": [{"name": "r", "tasks": [first, *middle, last]}]})
    result = await handle.result()
    assert (result.result, result.counts) == ("success", {"success": 6})
    view = await tight.view(handle)
    (end,) = [each for each in view.tasks if each.name == "last"]
    assert end.last_line == "3"
    assert handle.first_execution_run_id is not None
    sealed = await load_seal(tight.store, task_id(handle.id, handle.first_execution_run_id, "last"), 1)
    assert sealed is not None
    assert sealed.complete


async def test_why_a_task_failed_reaches_the_run(tight: Yard, cluster: Cluster) -> None:
    wrong = task(cluster, "wrong", {"run": "true"}, depends=[])
    wrong["environment"] = {"TOKEN": {"from_secret": "absent"}}
    large = task(cluster, "large", {"run": "true"}, depends=[])
    large["resources"] = {"memory": "9Ti"}
    handle = await tight.start({"runs": [{"name": "r", "tasks": [wrong, large]}]})
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    ends = {each.name: each for each in (await tight.view(handle)).tasks}
    assert ends["wrong"].reason is Reason.CONFIG_ERROR
    assert 'secret "absent" not found' in ends["wrong"].message
    assert ends["large"].reason is Reason.QUOTA
    assert "more than the quota team allows at all" in ends["large"].message
