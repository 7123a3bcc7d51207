"""A pod that somebody took away before its start was told of: how it ended is told, and no other one is made."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from small_cluster import SmallApi
from temporalio.client import Client, WorkflowFailureError
from test_kubernetes_verdict import recorded
from yard import working
from yards import silent, until

from runyard.errors import ExecutorError
from runyard.executors.base import Launch
from runyard.executors.kubernetes.executor import KubernetesExecutor
from runyard.reasons import Reason
from runyard.records.runs import read_result
from runyard.spec.run import PodRef
from runyard.store import paths
from runyard.store.posix import PosixStore


@pytest.fixture
def api() -> SmallApi:
    return SmallApi()


@pytest.fixture
async def small(api: SmallApi, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with api.serving(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def executors(small: Cluster, tmp_path: Path) -> AsyncIterator[list[KubernetesExecutor]]:
    """Two workers of one cluster."""
    both = [small.executor(tmp_path) for _ in range(2)]
    yield both
    for executor in both:
        await executor.close()


def status(name: str) -> dict[str, Any]:
    """One that a real kubelet gave."""
    body: dict[str, Any] = recorded(name)[0]
    return body["status"]  # type: ignore[no-any-return]


def task_id_of(pod: dict[str, Any]) -> str:
    (main,) = (each for each in pod["spec"]["containers"] if each["name"] == "main")
    (found,) = (each["value"] for each in main["env"] if each["name"] == "RUNYARD_TASK_ID")
    return str(found)


def preempt(api: SmallApi, name: str) -> None:
    api.set_status(name, status("running"))
    api.set_status(name, status("preempted"))
    api.remove("pods", name)


async def heard(executor: KubernetesExecutor, uids: set[str]) -> None:
    """Until these are the pods that the executor's watch knows of."""

    async def same() -> bool:
        try:
            return {seen.pod.uid async for seen in executor.list(fresh=False)} == uids
        except ExecutorError:  # it has not listed them yet
            return False

    await until(same)


async def start_and_be_heard(executors: list[KubernetesExecutor], asked: Launch) -> PodRef:
    pod = await executors[0].start(asked, silent)
    for executor in executors:
        await heard(executor, {pod.uid})
    return pod


@pytest.mark.promise(1)
@pytest.mark.promise(2)
@pytest.mark.parametrize("worker", [0, 1], ids=["the same worker", "another worker"])
async def test_a_start_that_comes_again_after_its_pod_went_tells_of_that_pod(
    api: SmallApi, small: Cluster, executors: list[KubernetesExecutor], tmp_path: Path, worker: int
) -> None:
    asked = small.launch(tmp_path, "sleep 60")
    pod = await start_and_be_heard(executors, asked)
    preempt(api, pod.name)
    await heard(executors[worker], set())
    again = asked.model_copy(update={"owner": "two"})
    assert await executors[worker].start(again, silent) == pod
    ended = await executors[worker].follow(pod, owner="two", report=silent)
    assert (ended.reason, ended.exit_code) == (Reason.PREEMPTED, 143)
    assert len(api.made) == 1
    await executors[worker].delete(pod)


async def test_a_pod_that_went_before_it_began_is_made_anew(
    api: SmallApi, small: Cluster, executors: list[KubernetesExecutor], tmp_path: Path
) -> None:
    asked = small.launch(tmp_path)
    pod = await start_and_be_heard(executors, asked)
    api.set_status(pod.name, status("creating"))
    api.remove("pods", pod.name)
    await heard(executors[0], set())
    second = await executors[0].start(asked, silent)
    assert second.uid != pod.uid
    await executors[0].delete(second)
    assert api.objects["pods"] == {}


async def test_a_pod_that_we_deleted_is_made_anew(
    api: SmallApi, small: Cluster, executors: list[KubernetesExecutor], tmp_path: Path
) -> None:
    asked = small.launch(tmp_path)
    pod = await start_and_be_heard(executors, asked)
    api.set_status(pod.name, status("success"))
    assert (await executors[0].follow(pod, owner="one", report=silent)).exit_code == 0
    await executors[0].delete(pod)
    second = await executors[0].start(asked, silent)
    assert second.uid != pod.uid
    await executors[0].delete(second)


@pytest.mark.promise(1)
@pytest.mark.promise(2)
async def test_a_run_tells_that_a_task_was_preempted_though_its_start_was_never_told_of(
    api: SmallApi, small: Cluster, client: Client, tmp_path: Path
) -> None:
    """Once said of it was only that it had been started before: by the agent of a second pod."""
    store = PosixStore(tmp_path / "store")
    executor = small.executor(tmp_path, name=f"kubernetes-{tmp_path.name}")
    cut: list[str] = []

    def begin_and_cut(point: str) -> None:
        if point != "schedule.started" or cut:
            return
        (pod,) = api.objects["pods"].values()
        cut.append(pod["metadata"]["name"])
        begun = tmp_path / "store" / paths.attempt(task_id_of(pod), 1) / "started"
        begun.parent.mkdir(parents=True, exist_ok=True)
        begun.touch()
        preempt(api, cut[0])
        raise RuntimeError("the worker is cut off before it can say that the pod is there")

    async with working(client, store, [executor], fault=begin_and_cut) as yard:
        task = {"name": "t", "runtime": {"containers": [{"image": "task"}]}, "steps": [{"run": "sleep 60"}]}
        handle = await yard.start({"runs": [{"name": "r", "tasks": [task]}]})
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    await executor.close()
    (end,) = (await read_result(store, handle.id)).tasks
    assert (end.reason, end.attempt) == (Reason.PREEMPTED, 1)
    assert "higher priority" in end.message
    assert [pod["metadata"]["name"] for pod in api.made] == cut
