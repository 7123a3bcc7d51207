"""Whole runs on the real kubelet: a real Temporal server, a worker, pods, and a store that they share."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cluster import Cluster, limited_namespace, two_pods_only
from temporalio.client import Client, WorkflowFailureError
from yard import Yard, working
from yards import until

from runyard.executors.kubernetes.executor import KubernetesExecutor
from runyard.reasons import Reason
from runyard.records.logs import load_seal
from runyard.spec.run import PodRef, task_id
from runyard.store.posix import PosixStore

pytestmark = pytest.mark.kubernetes

TWO_OBJECTS = {"count/pods": "2"}
"""A pod that has ended counts here until it is deleted. `pods` counts those that have not ended, as far as the
cluster has heard: a pod with a service in it never ends by itself."""

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


class HeldBack(KubernetesExecutor):
    """What this project is not: pods are deleted when the run is over."""

    over = asyncio.Event()

    async def delete(self, pod: PodRef) -> None:
        await self.over.wait()
        await super().delete(pod)


@pytest.mark.promise(5)
@pytest.mark.parametrize("room", [TWO_OBJECTS, {"pods": "2"}], ids=["objects", "pods"])
@pytest.mark.parametrize("kind", [KubernetesExecutor, HeldBack])
async def test_without_deletes_the_third_pod_finds_no_room(
    cluster: Cluster, client: Client, tmp_path: Path, kind: type[KubernetesExecutor], room: dict[str, str]
) -> None:
    """The layers that pass above are a deadlock where finished pods stay: only a time limit ends it."""
    HeldBack.over.clear()
    async with limited_namespace(cluster, room) as small:
        executor = small.executor(tmp_path, kind=kind)
        async with working(client, PosixStore(tmp_path / "store"), [executor]) as yard:
            handle = await yard.start({"runs": [{"name": "r", "tasks": with_services(cluster)}]})
            if kind is HeldBack:

                async def gave_up() -> bool:
                    return any(each.status == "failed" for each in (await yard.view(handle)).tasks)

                await until(gave_up, guard_s=120)
                assert "DELETE pods" not in executor.requests
                HeldBack.over.set()
                with pytest.raises(WorkflowFailureError):
                    await handle.result()
                ends = {each.name: each for each in (await yard.view(handle)).tasks}
                assert [ends[name].status for name in ("one", "two")] == ["success", "success"]
                assert ends["three"].reason is Reason.TIMEOUT_QUEUE
            else:
                assert (await handle.result()).counts == {"success": 3}

            async def gone() -> bool:  # the third may have got room before it heard that its time was up
                return [seen async for seen in executor.list()] == []

            await until(gone, guard_s=60)
        await executor.close()


def with_services(cluster: Cluster) -> list[dict[str, object]]:
    """Two tasks that fill the quota, and one that follows them."""
    tasks = [task(cluster, name, {"run": "true"}, depends=[]) for name in ("one", "two")]
    tasks.append(task(cluster, "three", {"run": "true"}, depends=["one", "two"]))
    service = {"image": cluster.image, "entrypoint": ["sleep", "600"]}
    for each in tasks:
        each["runtime"] = {"containers": [{"image": cluster.image}, service]}
        each["timeouts"] = {"queue": "30s"}
    return tasks


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
