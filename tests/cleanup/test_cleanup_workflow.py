"""Cleanups on a real server: as a person starts them, as the schedule does, beside open runs and dying workers."""

import asyncio
import contextlib
import errno
import os
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from old_runs import keys, put_run
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowHistory
from temporalio.exceptions import ApplicationError
from temporalio.worker import Replayer
from yard import SANDBOX, Yard, working

from activities import reap
from activities.reap import PodWatch
from activities.signatures import CleanupPlan, CleanupRules
from runyard.client import Runyard
from runyard.client.cleanup import (
    _schedule,
    clean,
    ensure_schedule,
    keep_run,
    latest,
    next_cleanup,
    other_schedules,
    remove_run,
)
from runyard.errors import Conflict, InvalidRequest, NotFound
from runyard.executors.base import PodSeen
from runyard.executors.memory import MemoryExecutor
from runyard.records.fates import OPEN, PINNED, YOUNG
from runyard.records.runs import read_plan, read_result, write_result, write_runids
from runyard.settings import Settings
from runyard.spec.cleanup import CLEANUP, CLEANUP_ID, CleanupReport, CleanupRequest, Retention, Tally, as_lines
from runyard.spec.run import RUNS_QUEUE, PodRef, RunResult, RunView
from runyard.store import paths
from runyard.store.posix import PosixStore
from runyard.temporal import data_converter
from workflows.cleanup import CleanupState, CleanupWorkflow

DAY = timedelta(days=1)


def run_file(*steps: str) -> dict[str, object]:
    task = {"runtime": {"containers": [{"image": "none"}]}}
    return {
        "runs": [
            {
                "name": "r",
                "tasks": [{**task, "name": f"t{n}", "steps": [{"run": step}]} for n, step in enumerate(steps)],
            }
        ]
    }


@pytest.fixture
def us(client: Client, store: PosixStore) -> Runyard:
    return Runyard(client, store, settings=Settings())


@pytest_asyncio.fixture
async def schedule(client: Client) -> AsyncIterator[str]:
    """The name of a further schedule; all are gone after the test."""
    name = f"another-{uuid.uuid4().hex[:8]}"
    yield name
    for each in (CLEANUP_ID, name):
        with contextlib.suppress(Exception):
            await client.get_schedule_handle(each).delete()


async def end(handle: WorkflowHandle[object, RunResult]) -> None:
    """So that it does not go on with the next test's worker, and its store."""
    await handle.cancel()
    with contextlib.suppress(WorkflowFailureError):
        await handle.result()


async def an_old_run(yard: Yard, *steps: str, days: float = 400) -> tuple[str, list[str]]:
    """A run that really was, and the ids of its tasks; its record says that it ended long ago."""
    handle = await yard.start(run_file(*steps))
    await handle.result()
    view = await read_result(yard.store, handle.id)
    assert view.ended_at is not None
    await write_result(yard.store, view.model_copy(update={"ended_at": view.ended_at - days * DAY}))
    return handle.id, [task.id for task in (await read_plan(yard.store, handle.id)).tasks]


async def test_from_runs_to_report(yard: Yard, us: Runyard) -> None:
    old, _ = await an_old_run(yard, "echo a", "echo b")
    young, tasks = await an_old_run(yard, "echo c", days=1)
    handle = await yard.start(run_file("sleep 600"))
    while not [pod async for pod in yard.executor.list()]:
        await asyncio.sleep(0.01)
    looked = await (await clean(us, dry_run=True)).result()
    assert looked.dry_run
    assert await keys(yard.store, paths.run(old))
    report = await (await clean(us)).result()
    assert report.deleted == looked.deleted
    assert report.deleted["logs"].items == 2
    assert report.examples["runs"] == [old]
    assert report.kept[OPEN] >= 1
    assert report.kept["pods of open runs"] == 1
    assert report.kept[YOUNG] == 2
    left = await keys(yard.store)
    assert not [key for key in left if old in key]
    assert [key for key in left if tasks[0] in key]
    assert [key for key in left if handle.id in key]
    assert (await latest(us)).report == report
    assert (await us.run(young).describe()).tasks
    await end(handle)


async def test_what_killed_writers_left_goes_too(yard: Yard, us: Runyard, tmp_path: Path) -> None:
    await an_old_run(yard, "echo a", days=1)
    half = tmp_path / "store" / "tmp" / "4711-0011223344556677"
    half.write_bytes(b"half of an object")
    young = half.with_name("4712-0011223344556677")
    young.write_bytes(b"one that is being written")
    then = time.time() - 9 * 24 * 3600
    os.utime(half, (then, then))
    report = await (await clean(us)).result()
    assert report.deleted["unfinished writes"].items == 1
    assert (half.exists(), young.exists()) == (False, True)


async def test_the_ui_shows_the_report_and_the_history_replays(yard: Yard, us: Runyard, client: Client) -> None:
    await an_old_run(yard, "echo a")
    started = await clean(us)
    await started.result()
    description = await client.get_workflow_handle(started.id).describe()
    history = await client.get_workflow_handle(started.id).fetch_history()
    replayer = Replayer(workflows=[CleanupWorkflow], workflow_runner=SANDBOX, data_converter=data_converter())
    await replayer.replay_workflow(WorkflowHistory(started.id, history.events))
    assert description.raw_description.workflow_execution_info.type.name == CLEANUP


async def test_the_report_reads_as_markdown(yard: Yard, us: Runyard, client: Client) -> None:
    old, _ = await an_old_run(yard, "echo a")
    report = await (await clean(us)).result()
    text = "\n".join(as_lines(report))
    assert "- runs: 1, 3 objects, " in text
    assert f"`{old}`" in text
    assert text.startswith("Deleted:\n- logs: 1, ")


async def test_who_comes_while_one_is_under_way_joins_it(client: Client, store: PosixStore, us: Runyard) -> None:
    for n in range(10):
        await put_run(store, f"run{n}", tasks=[f"t{n}"], days_ago=400)
    async with working(client, store, [MemoryExecutor()], retention=Retention(objects_per_s=20)):
        first = await clean(us)
        second = await clean(us)
        assert (first.joined, second.joined) == (False, True)
        reports = await asyncio.gather(first.result(), second.result())
    assert reports[0] == reports[1]
    assert await keys(store) == []


async def test_two_at_once_do_no_harm(client: Client, store: PosixStore, us: Runyard) -> None:
    """As two schedules would start them: whichever way it goes, all and only what is over is gone."""
    for n in range(30):
        await put_run(store, f"run{n}", tasks=[f"t{n}"], kept=[f"t{n - 1}"] if n else [], days_ago=400 * (n % 2))
    async with working(client, store, [MemoryExecutor()]):
        ids = [f"{CLEANUP_ID}-{uuid.uuid4().hex}" for _ in range(3)]
        handles = [
            await client.start_workflow(CLEANUP, {}, id=each, task_queue=RUNS_QUEUE, result_type=CleanupReport)
            for each in ids
        ]
        await asyncio.gather(*(handle.result() for handle in handles))
    left = await keys(store, "runs/")
    assert {key.split("/")[1] for key in left} == {f"run{n}" for n in range(0, 30, 2)}
    items = {key.split("/")[1] for key in await keys(store, "logs/")}
    assert items == {f"t{n}" for n in range(30) if n % 2 == 0 or n + 1 < 30}


async def test_a_worker_that_goes_and_another_that_goes_on(client: Client, store: PosixStore, us: Runyard) -> None:
    for n in range(20):
        await put_run(store, f"run{n}", tasks=[f"t{n}"], days_ago=400)
    before = len(await keys(store))
    async with working(client, store, [MemoryExecutor()], retention=Retention(objects_per_s=20)):
        started = await clean(us)
        while len(await keys(store)) > before - 10:
            await asyncio.sleep(0.01)
    assert await keys(store), "it was in the middle"
    async with working(client, store, [MemoryExecutor()]):
        await started.result()
    assert await keys(store) == []


@pytest.mark.parametrize(
    ("argument", "wrong"),
    [
        ({"dryrun": True}, "dryrun"),
        ({"runs": "x"}, "runs"),
        ("all", "argument"),
        ({"dry_run": "perhaps"}, "dry_run"),
    ],
)
async def test_an_argument_that_is_wrong_ends_it_with_a_sentence(
    yard: Yard, client: Client, argument: object, wrong: str
) -> None:
    with pytest.raises(WorkflowFailureError) as caught:
        await client.execute_workflow(
            CLEANUP, argument, id=f"{CLEANUP_ID}-{uuid.uuid4().hex}", task_queue=RUNS_QUEUE
        )
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.type == InvalidRequest.code
    assert f"`{wrong}`" in caught.value.cause.message


async def test_no_argument_is_a_full_cleanup(yard: Yard, client: Client) -> None:
    old, _ = await an_old_run(yard, "echo a")
    workflow_id = f"{CLEANUP_ID}-{uuid.uuid4().hex}"
    await client.execute_workflow(CLEANUP, id=workflow_id, task_queue=RUNS_QUEUE)
    assert await keys(yard.store, paths.run(old)) == []


async def test_it_goes_on_in_a_new_execution(yard: Yard, us: Runyard, client: Client) -> None:
    """As after a continue-as-new: what was done before is in the report, and what is left is done."""
    old, tasks = await an_old_run(yard, "echo a")
    rules = CleanupRules(request=CleanupRequest(), retention=Retention(), now=datetime.now(UTC))
    before = CleanupReport(deleted={"logs": Tally(items=7)}, notes=["from before"])
    state = CleanupState(plan=CleanupPlan(rules=rules), kinds=["runs"], report=before)
    report = await client.execute_workflow(
        CLEANUP,
        args=[{}, state],
        id=f"{CLEANUP_ID}-{uuid.uuid4().hex}",
        task_queue=RUNS_QUEUE,
        result_type=CleanupReport,
    )
    assert (report.deleted["logs"].items, report.deleted["runs"].items) == (7, 1)
    assert report.notes == ["from before"]
    assert await keys(yard.store, paths.run(old)) == []
    assert await keys(yard.store, f"logs/{tasks[0]}"), "logs were done before, as far as it knew"
    await (await clean(us)).result()


# pods


@pytest.mark.promise(5)
async def test_pods_of_runs_that_are_not_open_go_after_the_grace_period(
    client: Client, store: PosixStore, us: Runyard
) -> None:
    executor = MemoryExecutor()
    async with working(client, store, [executor]) as yard:
        ended, goes_on = [await yard.start(run_file("sleep 600")) for _ in range(2)]
        while len([pod async for pod in executor.list()]) < 2:
            await asyncio.sleep(0.01)
        await ended.terminate("somebody in the UI")
        report = await (await clean(us)).result()
        assert report.kept["pods within the grace period"] == 1
        report = await (await clean(us, now=True)).result()
        assert report.deleted["pods"].items == 1
        assert report.examples["pods"] == [f"{ended.id} t0 #1"]
        assert [pod.run_id async for pod in executor.list()] == [goes_on.id]
        await end(goes_on)


@pytest.mark.promise(5)
async def test_who_serves_an_executor_deletes_pods_of_runs_that_were_terminated(
    client: Client, store: PosixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cleanup is needed for that; what nobody knows it leaves alone."""
    monkeypatch.setattr(reap, "LOOK_S", 0.2)
    monkeypatch.setattr(reap, "GRACE_S", 0.5)
    executor = MemoryExecutor()
    async with working(client, store, [executor]) as yard:
        ended, unknown, goes_on = [await yard.start(run_file("sleep 600")) for _ in range(3)]
        while len([pod async for pod in executor.list()]) < 3:
            await asyncio.sleep(0.01)
        for pod in executor._pods.values():
            if pod.launch.run_id == unknown.id:
                pod.launch = pod.launch.model_copy(update={"run_id": "it's another's"})
        await ended.terminate("somebody in the UI")
        while len(left := [pod.run_id async for pod in executor.list()]) == 3:
            await asyncio.sleep(0.05)
        assert sorted(left) == sorted(["it's another's", goes_on.id])
        await PodWatch(executor, client).look()
        assert len([pod async for pod in executor.list()]) == 2
        await unknown.terminate()
        await end(goes_on)


class Rooted(MemoryExecutor):
    """Pods of one run cannot be deleted: a container has left files of root's in the folder of who is not root."""

    run_id = ""
    unreadable = False  # once

    async def list(self, *, fresh: bool = True) -> AsyncIterator[PodSeen]:
        if self.unreadable:
            self.unreadable = False
            raise PermissionError(errno.EACCES, "Permission denied")
        async for pod in super().list(fresh=fresh):
            yield pod

    async def delete(self, pod: PodRef) -> None:
        if self._pods[pod.name].launch.run_id == self.run_id:
            raise PermissionError(errno.EACCES, "Permission denied")
        await super().delete(pod)


@pytest.mark.promise(5)
async def test_a_pod_that_cannot_be_deleted_keeps_no_other(
    client: Client, store: PosixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those that are looked at with it, nor those of runs that are terminated later."""
    monkeypatch.setattr(reap, "LOOK_S", 0.1)
    monkeypatch.setattr(reap, "GRACE_S", 0.0)
    executor = Rooted()

    async def left(number: int) -> list[str]:
        while len(executor._pods) != number:
            await asyncio.sleep(0.01)
        return [pod.launch.run_id for pod in executor._pods.values()]

    async with working(client, store, [executor]) as yard, asyncio.timeout(30):
        handles = []
        for n in range(3):
            handles.append(await yard.start(run_file("sleep 600")))
            await left(n + 1)  # so the first one is the first to be deleted
        rooted, beside, later = handles
        executor.run_id = rooted.id
        for handle in (rooted, beside):
            await handle.terminate("somebody in the UI")
        assert await left(2) == [rooted.id, later.id]
        executor.unreadable = True
        while executor.unreadable:
            await asyncio.sleep(0.01)
        await later.terminate("somebody in the UI")
        assert await left(1) == [rooted.id]
        executor.run_id = ""  # somebody has removed the files
        await left(0)


@pytest.mark.promise(5)
async def test_processes_of_a_terminated_run_are_gone(
    client: Client, local_yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a real local executor."""
    pids = tmp_path / "pid"
    handle = await local_yard.start(run_file(f"echo $$ > {pids}; sleep 600"))
    while not pids.exists() or not pids.read_text():
        await asyncio.sleep(0.02)
    await handle.terminate()
    monkeypatch.setattr(reap, "GRACE_S", 0.0)
    async with asyncio.timeout(60):
        while (gone := await PodWatch(local_yard.executor, client).look()) == []:
            await asyncio.sleep(0.1)
    assert [pod.run_id for pod in gone] == [handle.id]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids.read_text()), 0)


async def test_pods_of_runs_that_nobody_knows_have_to_be_old(
    client: Client, store: PosixStore, us: Runyard
) -> None:
    """They may be another installation's, in the same cluster."""
    executor = MemoryExecutor()
    async with working(client, store, [executor]) as yard:
        handle = await yard.start(run_file("sleep 600"))
        while not [pod async for pod in executor.list()]:
            await asyncio.sleep(0.01)
        await handle.terminate()
        for pod in executor._pods.values():
            pod.launch = pod.launch.model_copy(update={"run_id": f"elsewhere-{uuid.uuid4().hex}"})
        assert (await (await clean(us, now=True)).result()).deleted.get("pods") is None
    async with working(client, store, [executor], retention=Retention(unknown_s=0)):
        assert (await (await clean(us, now=True)).result()).deleted["pods"].items == 1


# one run


async def test_a_run_is_removed(yard: Yard, us: Runyard) -> None:
    run_id, tasks = await an_old_run(yard, "echo a", days=0)
    other, _ = await an_old_run(yard, "echo b", days=0)
    report = await remove_run(us, run_id)
    assert report.deleted["runs"].items == report.deleted["logs"].items == 1
    assert not [key for key in await keys(yard.store) if run_id in key or tasks[0] in key]
    assert (await remove_run(us, run_id)).deleted == {}, "once more is no error"
    assert await keys(yard.store, paths.run(other))


@pytest.mark.soak
async def test_a_removed_run_is_forgotten_by_temporal_too(yard: Yard, us: Runyard) -> None:
    run_id, _ = await an_old_run(yard, "echo a", days=0)
    await remove_run(us, run_id)
    while run_id in {view.id for view in await us.list(limit=1000)}:  # Temporal takes its time
        await asyncio.sleep(0.2)
    with pytest.raises(NotFound):
        await us.run(run_id).describe()


async def test_what_a_restart_keeps_stays(yard: Yard, us: Runyard) -> None:
    run_id, tasks = await an_old_run(yard, "echo a", "echo b", days=0)
    await put_run(yard.store, "restart", tasks=[], kept=tasks[:1], days_ago=0)
    report = await remove_run(us, run_id)
    assert report.kept == {YOUNG: 2}, "logs, and archives of which there are none"
    left = await keys(yard.store, "logs/")
    assert f"logs/{tasks[0]}/runs/restart" in left
    assert not [key for key in left if tasks[1] in key or run_id in key]
    assert paths.seal(tasks[0], 1) in left


async def test_an_open_run_is_not_removed(yard: Yard, us: Runyard) -> None:
    handle = await yard.start(run_file("sleep 600"))
    with pytest.raises(Conflict, match="has not ended") as caught:
        await remove_run(us, handle.id)
    assert "run cancel" in caught.value.remedy
    await end(handle)


async def test_a_pinned_run_is_not_removed(yard: Yard, us: Runyard) -> None:
    run_id, _ = await an_old_run(yard, "echo a")
    await keep_run(us, run_id)
    with pytest.raises(Conflict, match="is pinned"):
        await remove_run(us, run_id)
    report = await (await clean(us)).result()
    assert report.kept == {PINNED: 2}
    await keep_run(us, run_id, undo=True)
    await (await clean(us)).result()
    assert await keys(yard.store) == []


async def test_removed_twice_at_the_same_moment(yard: Yard, us: Runyard) -> None:
    run_id, _ = await an_old_run(yard, "echo a", days=0)
    results = await asyncio.gather(*(remove_run(us, run_id) for _ in range(5)), return_exceptions=True)
    assert any(isinstance(each, CleanupReport) for each in results)
    assert all(isinstance(each, CleanupReport | NotFound) for each in results), results
    assert await keys(yard.store) == []


async def test_pinning_what_is_not_there(yard: Yard, us: Runyard) -> None:
    with pytest.raises(NotFound):
        await keep_run(us, "no-such-run")
    with pytest.raises(NotFound):
        await remove_run(us, "no-such-run")


@pytest.mark.promise(6)
async def test_a_run_that_begins_with_an_old_id_keeps_its_data(yard: Yard, us: Runyard) -> None:
    """The record of the one before it says that it is over; Temporal knows better."""
    handle = await yard.start(run_file("sleep 600"))
    while not await keys(yard.store, "logs/"):
        await asyncio.sleep(0.01)
    ended_at = datetime.now(UTC) - 400 * DAY
    await write_result(yard.store, RunView(id=handle.id, phase="finished", result="success", ended_at=ended_at))
    await write_runids(yard.store, handle.id, logs=["t-old", "t-kept"])
    await yard.store.put(f"{paths.attempt('t-old', 1)}seal.json", b"{}")
    before = await keys(yard.store)
    assert (await (await clean(us)).result()).deleted == {}
    assert set(before) <= set(await keys(yard.store))
    await end(handle)


# the schedule


async def test_the_schedule_is_made_once_and_changed_when_asked(yard: Yard, client: Client, schedule: str) -> None:
    with pytest.raises(NotFound, match="no schedule"):
        await next_cleanup(client)
    assert await ensure_schedule(client, every_s=3600) == "made"
    assert await ensure_schedule(client, every_s=3600) == "as it was"
    assert await next_cleanup(client) is not None
    await client.get_schedule_handle(CLEANUP_ID).pause()
    assert await ensure_schedule(client, every_s=7200) == "updated"
    assert await next_cleanup(client) is None, "who paused it has his reasons"
    assert await other_schedules(client) == []


async def test_what_the_schedule_starts_is_a_full_cleanup(
    yard: Yard, us: Runyard, client: Client, schedule: str
) -> None:
    old, _ = await an_old_run(yard, "echo a")
    await ensure_schedule(client, every_s=3600)
    await client.get_schedule_handle(CLEANUP_ID).trigger()
    while await keys(yard.store, paths.run(old)):
        await asyncio.sleep(0.02)
    while not (seen := await latest(us)).id.startswith(f"{CLEANUP_ID}-2") or seen.open:
        await asyncio.sleep(0.05)
    assert seen.report is not None
    assert seen.report.examples["runs"] == [old]


async def test_two_schedules(yard: Yard, client: Client, schedule: str) -> None:
    """Both start cleanups: one is told of the other, and what is over is gone."""
    old, _ = await an_old_run(yard, "echo a")
    await ensure_schedule(client, every_s=3600)
    await client.create_schedule(schedule, _schedule(3600))
    await asyncio.gather(*(client.get_schedule_handle(each).trigger() for each in (CLEANUP_ID, schedule)))
    while await keys(yard.store, paths.run(old)):
        await asyncio.sleep(0.02)
    while schedule not in await other_schedules(client):
        await asyncio.sleep(0.05)
