"""An activity is only a pod's present caretaker: paused, reset, doubled or late, it changes no outcome."""

import asyncio
from pathlib import Path

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import (
    PauseActivityRequest,
    ResetActivityRequest,
    UnpauseActivityRequest,
)
from temporalio.client import Client
from temporalio.testing import ActivityEnvironment
from test_temporal_corners import id_of, pods
from test_temporal_run import failure, file, task, tasks, until
from yard import Yard, working

from activities.run import RunActivities
from activities.signatures import PrepareRun
from activities.task import CLOSED
from runyard.executors.memory import MemoryExecutor
from runyard.executors.open import open_executor
from runyard.reasons import Reason
from runyard.records.runs import read_plan
from runyard.settings import Settings
from runyard.store import paths
from runyard.store.base import read
from runyard.store.posix import PosixStore

SPOKEN = b"one\ntwo\n"


async def log_of(store: PosixStore, task_id: str) -> bytes:
    return await read(store, paths.step_log(task_id, 1, 0))


@pytest.mark.promise(2)
@pytest.mark.promise(7)
async def test_a_paused_activity_lets_go_of_its_pod(yard: Yard, store: PosixStore) -> None:
    handle = await yard.start(file(task("t", "print one\nsleep 3\nprint two")))
    await until(yard, handle, "t", "running")
    where = {"namespace": yard.client.namespace, "execution": WorkflowExecution(workflow_id=handle.id)}
    service = yard.client.workflow_service
    await service.pause_activity(PauseActivityRequest(**where, id="fetch t #1", reason="a look"))
    while any([pod.running async for pod in yard.executor.list()]):  # it hears of the pause with a beat
        await asyncio.sleep(0.1)
    assert tasks(await yard.view(handle))["t"].status == "running"
    assert await pods(yard) == 1
    await service.unpause_activity(UnpauseActivityRequest(**where, id="fetch t #1"))
    assert (await handle.result()).result == "success"
    assert await log_of(store, await id_of(handle, "t")) == SPOKEN


@pytest.mark.promise(2)
async def test_a_reset_activity_goes_on_with_the_same_pod(yard: Yard, store: PosixStore) -> None:
    handle = await yard.start(file(task("t", "print one\nsleep 3\nprint two")))
    await until(yard, handle, "t", "running")
    await yard.client.workflow_service.reset_activity(
        ResetActivityRequest(
            namespace=yard.client.namespace,
            execution=WorkflowExecution(workflow_id=handle.id),
            id="fetch t #1",
            reset_heartbeat=True,
        )
    )
    assert (await handle.result()).result == "success"
    assert await log_of(store, await id_of(handle, "t")) == SPOKEN


@pytest.mark.promise(2)
@pytest.mark.promise(9)
async def test_of_two_caretakers_the_later_one_has_the_pod(
    yard: Yard, store: PosixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No beat reaches the server, so it gives the pod to another try while the first still holds it."""
    monkeypatch.setattr("activities.pulse.FIRST_S", 3_600)
    monkeypatch.setattr("activities.pulse.EVERY", 1_200)
    handle = await yard.start(file(task("t", "print one\nsleep 7\nprint two")))
    assert (await handle.result()).result == "success"
    assert await log_of(store, await id_of(handle, "t")) == SPOKEN
    tries = [
        event.activity_task_started_event_attributes
        async for event in handle.fetch_history_events()
        if event.HasField("activity_task_started_event_attributes")
    ]
    assert max(each.attempt for each in tries) >= 2
    assert await pods(yard) == 0


@pytest.mark.promise(2)
async def test_a_pod_that_comes_after_its_timeout_runs_no_step(client: Client, store: PosixStore) -> None:
    executor = MemoryExecutor(create_s=2.5)
    async with working(client, store, [executor]) as yard:
        handle = await yard.start(file(task("late", "print ran", timeouts={"queue": "1s"})))
        await failure(handle)
        assert tasks(await yard.view(handle))["late"].reason is Reason.TIMEOUT_QUEUE
        folder = paths.attempt(await id_of(handle, "late"), 1)
        assert await read(store, f"{folder}started") == CLOSED
        await asyncio.sleep(3)  # longer than it takes to make the pod, where it is made at all
        assert [info.key async for info in store.list(f"{folder}steps/")] == []
        assert [info.key async for info in store.list(f"{folder}segments/0/")] == []


@pytest.mark.promise(1)
@pytest.mark.promise(3)
async def test_an_archive_that_is_gone_before_it_was_verified_fails_its_task(
    client: Client, store: PosixStore, tmp_path: Path
) -> None:
    def lose(point: str) -> None:
        if point == "fetch.ended":
            for archive in (tmp_path / "store").rglob("*.tar*"):
                archive.unlink()

    executor = open_executor("local", Settings(state=tmp_path / "state", store_folder=tmp_path / "store"))
    async with working(client, store, [executor], fault=lose) as yard:
        save = {"save_to_workspace": {"contents": [{"source_dir": ".", "paths": ["**"]}]}}
        saves = task("a", "true")
        saves["steps"] = [{"run": "echo x > made"}, save]
        handle = await yard.start(file(saves, task("b", "true", depends=["a"])))
        await failure(handle)
        by_name = tasks(await yard.view(handle))
    assert (by_name["a"].reason, by_name["b"].status) == (Reason.ARCHIVE_FAILED, "skipped")
    assert by_name["a"].message.endswith("is not in the store")


async def test_a_pending_timeout_is_one_also_when_its_caretaker_dies_over_it(
    client: Client, store: PosixStore, tmp_path: Path
) -> None:
    deaths: list[str] = []

    def die_once(point: str) -> None:
        if point == "fetch.overdue" and not deaths:
            deaths.append(point)
            raise RuntimeError("the caretaker dies between the stop and the seal")

    executor = open_executor("memory", Settings(state=tmp_path / "state", store_folder=tmp_path / "store"))
    async with working(client, store, [executor], fault=die_once) as yard:
        handle = await yard.start(file(task("t", "slow_start 60\ntrue", timeouts={"pending": "200ms"})))
        await failure(handle)
        end = tasks(await yard.view(handle))["t"]
    assert deaths
    assert (end.status, end.reason) == ("failed", Reason.TIMEOUT_PENDING)
    assert end.message.startswith("not running after 0.2 s")


async def test_a_run_that_is_prepared_twice_is_the_same_run(store: PosixStore) -> None:
    request = {"file": file(task("a", "true"), task("b", "true", depends=["a"])), "executor": "memory"}
    prepare = PrepareRun(run_id="r", execution_id="e", request=request)
    activities = RunActivities(store)
    first = await ActivityEnvironment().run(activities.prepare_run, prepare)
    plan = await read_plan(store, "r")
    assert await ActivityEnvironment().run(activities.prepare_run, prepare) == first
    assert await read_plan(store, "r") == plan
