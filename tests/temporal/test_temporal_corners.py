"""Where two things happen at once: cancels that cross with ends, waits that cross an execution's end, stores away.

Each of these has once hung a run, lost a wish of somebody's or run more at a time than was allowed.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from gate import Gate
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.exceptions import CancelledError
from temporalio.service import RPCError
from test_temporal_run import Handle, failure, file, task, tasks, until
from yard import SANDBOX, Yard, working

from runyard.client import Run, Runyard
from runyard.client.cleanup import clean
from runyard.errors import StoreUnavailable
from runyard.executors.base import Executor
from runyard.executors.memory import MemoryExecutor
from runyard.reasons import Reason
from runyard.records.logs import load_seal
from runyard.records.runs import read_result
from runyard.settings import Settings
from runyard.spec.run import ApprovalRequest, RunResult, RunView, TaskRequest, task_id
from runyard.store import paths
from runyard.store.base import ObjectInfo, ObjectStore, read
from runyard.store.posix import PosixStore
from runyard.temporal import CLOSING
from workers.serve import build_workers


class Away(PosixStore):
    """A store that does not answer the first few times, whatever it is asked for."""

    def __init__(self, folder: Path, *, times: int) -> None:
        super().__init__(folder)
        self._times = times
        self._asked: dict[str, int] = {}

    def _may_fail(self, what: str, key: str) -> None:
        what = f"{what} {key.rpartition('/')[2]}"
        self._asked[what] = self._asked.get(what, 0) + 1
        if self._asked[what] <= self._times:
            raise StoreUnavailable(f"not now: {what}")

    async def put(self, key: str, data: Any, **how: Any) -> ObjectInfo:
        self._may_fail("put", key)
        return await super().put(key, data, **how)

    async def get(self, key: str, **how: Any) -> AsyncIterator[bytes]:
        self._may_fail("get", key)
        async for chunk in super().get(key, **how):
            yield chunk


@contextlib.asynccontextmanager
async def serving(
    client: Client, store: ObjectStore, executors: Sequence[Executor] = (), *, runs: bool = True
) -> AsyncIterator[None]:
    """A worker for the runs, or for what executors do, or for both."""
    async with contextlib.AsyncExitStack() as stack:
        for worker in build_workers(client, store, executors, runs=runs, runner=SANDBOX):
            await stack.enter_async_context(worker)
        yield


async def cancelled(handle: Handle) -> None:
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, CancelledError)


async def pods(yard: Yard) -> int:
    return len([pod async for pod in yard.executor.list()])


async def id_of(handle: Handle, name: str) -> str:
    assert handle.first_execution_run_id is not None
    return task_id(handle.id, handle.first_execution_run_id, name)


# the two ends of a run


async def test_a_run_without_a_plan_is_queued_and_not_a_success(client: Client, tmp_path: Path) -> None:
    gate = Gate(tmp_path, "plan.jsonl")
    async with working(client, gate, [MemoryExecutor()]) as yard:
        handle = await yard.start(file(task("a", "true")))
        await gate.reached.wait()
        view = await yard.view(handle)
        assert (view.phase, view.result, view.ended_at) == ("queued", "unknown", None)
        with pytest.raises(WorkflowUpdateFailedError):
            await handle.execute_update("cancel_task", TaskRequest(task="a"))
        gate.open.set()
        assert (await handle.result()).result == "success"


async def test_a_run_that_cannot_be_planned_says_so(yard: Yard) -> None:
    handle = await yard.start("runs: 5")
    error = await failure(handle)
    view = await yard.view(handle)
    assert (view.phase, view.result, view.cause) == ("setuperror", "unknown", error.message)


async def test_a_cancel_while_it_is_planned_ends_it(client: Client, tmp_path: Path) -> None:
    gate = Gate(tmp_path, "plan.jsonl")
    async with working(client, gate, [MemoryExecutor()]) as yard:
        handle = await yard.start(file(task("a", "true")))
        await gate.reached.wait()
        await handle.cancel()
        await cancelled(handle)
        assert (await yard.view(handle)).phase == "cancelled"
        gate.open.set()


@pytest.mark.promise(7)
async def test_a_cancel_while_the_result_is_kept_changes_nothing(client: Client, tmp_path: Path) -> None:
    gate = Gate(tmp_path, "result.json")
    async with working(client, gate, [MemoryExecutor()]) as yard:
        handle = await yard.start(file(task("a", "true")))
        await gate.reached.wait()
        await handle.cancel()
        while not [e async for e in handle.fetch_history_events() if e.event_type == 20]:  # cancel requested
            await asyncio.sleep(0.05)
        gate.open.set()
        assert (await handle.result()).result == "success"
        assert (await read_result(gate, handle.id)).result == "success"
        assert await pods(yard) == 0


# cancels that cross with something


@pytest.mark.promise(7)
async def test_a_cancel_and_the_end_of_what_it_cancels_in_one_activation(
    client: Client, store: PosixStore
) -> None:
    executor = MemoryExecutor()
    yard = Yard(client, store, executor)
    async with serving(client, store, [executor], runs=False):
        async with serving(client, store):
            handle = await yard.start(file(task("a", "sleep 0.7"), task("b", "true", depends=["a"])))
            await until(yard, handle, "a", "running")
        await _ended_activities(handle, 3)  # nobody serves the workflow now
        await handle.cancel()
        async with serving(client, store):
            await cancelled(handle)
            by_name = tasks(await yard.view(handle))
            assert {name: view.status for name, view in by_name.items()} == {"a": "success", "b": "cancelled"}
            assert await pods(yard) == 0


async def _ended_activities(handle: Handle, number: int) -> None:
    while True:
        kinds = [e.event_type async for e in handle.fetch_history_events()]
        if kinds.count(12) >= number:  # activity task completed
            return
        await asyncio.sleep(0.05)


async def test_a_cancel_during_a_back_off(yard: Yard) -> None:
    handle = await yard.start(file(task("t", "exit 1", retry={"limit": 3, "backoff": "1h"})))
    await until(yard, handle, "t", "retrying")
    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, CancelledError)
    view = tasks(await yard.view(handle))["t"]
    assert (view.status, view.attempt, view.reason) == ("cancelled", 1, Reason.CANCELLED)


async def test_a_cancel_while_a_task_is_held(yard: Yard) -> None:
    handle = await yard.start(file(task("t", "exit 1"), on_failure="hold"))
    await until(yard, handle, "t", "held")
    await asyncio.gather(handle.cancel(), _try(handle, "retry_task", TaskRequest(task="t")))
    with pytest.raises(WorkflowFailureError):  # failed as it was, or cancelled in its second attempt
        await handle.result()
    assert await pods(yard) == 0


async def test_a_cancel_that_crosses_an_approval(yard: Yard) -> None:
    handle = await yard.start(file(task("t", "sleep 600", approval=True)))
    await until(yard, handle, "t", "approval")
    await asyncio.gather(_try(handle, "approve", ApprovalRequest(task="t", by="ann")), handle.cancel())
    await cancelled(handle)
    assert await pods(yard) == 0


async def _try(handle: Handle, name: str, argument: object) -> None:
    with contextlib.suppress(WorkflowUpdateFailedError, RPCError, TimeoutError):
        async with asyncio.timeout(3):  # an answer is not promised by a run that ends meanwhile
            await handle.execute_update(name, argument)


@pytest.mark.promise(7)
@pytest.mark.parametrize("ended", [True, False])
async def test_a_cancel_does_not_wait_for_pods_that_are_kept(yard: Yard, ended: bool) -> None:
    more = [] if ended else [task("long", "sleep 600")]
    handle = await yard.start(file(task("bad", "exit 1", keep_failed_for="1h"), *more))
    await until(yard, handle, "bad", "failed")
    assert await pods(yard) >= 1
    await handle.cancel()
    await failure(handle)
    assert await pods(yard) == 0


async def test_the_timeout_of_a_run_ends_what_is_held(yard: Yard) -> None:
    handle = await yard.start(file(task("t", "exit 1"), on_failure="hold", timeout="1s"))
    await until(yard, handle, "t", "held")
    assert "timeout" in (await failure(handle)).message
    view = tasks(await yard.view(handle))["t"]
    assert (view.status, view.reason) == ("failed", Reason.EXIT_CODE)


# room


async def test_those_that_wait_for_room_go_in_one_by_one(yard: Yard) -> None:
    gates = [task(f"gate{n}", "sleep 0.2", approval=True) for n in range(4)]
    handle = await yard.start(file(task("first", "sleep 1"), *gates, concurrency=1))
    for n in range(4):
        await until(yard, handle, f"gate{n}", "approval")
        await handle.execute_update("approve", ApprovalRequest(task=f"gate{n}", by="ann"))
    waiting = asyncio.create_task(handle.result())
    most = 0
    while not waiting.done():
        most = max(most, len([pod async for pod in yard.executor.list() if pod.running]))
        await asyncio.sleep(0.02)
    assert (await waiting).counts == {"success": 5}
    assert most == 1


async def test_a_wish_to_try_again_is_used_once(yard: Yard) -> None:
    handle = await yard.start(file(task("t", "exit 1"), task("long", "sleep 1"), concurrency=1, on_failure="hold"))
    await until(yard, handle, "t", "held")
    await until(yard, handle, "long", "running")
    for _ in range(2):  # it waits for room all the while
        await handle.execute_update("retry_task", TaskRequest(task="t", by="ann"))
    await until(yard, handle, "long", "success")
    while (await until(yard, handle, "t", "held")).attempt < 2:
        await asyncio.sleep(0.05)
    await handle.execute_update("cancel_task", TaskRequest(task="t"))
    await failure(handle)
    assert tasks(await yard.view(handle))["t"].attempt == 2


async def test_a_wait_in_the_queue_has_its_own_timeout_and_log(client: Client, store: PosixStore) -> None:
    executor = MemoryExecutor(slots=1)
    async with working(client, store, [executor]) as yard:
        late = task("late", "true", timeouts={"queue": "1s"})
        after = task("after", "true", depends=[{"late": ["on_failure"]}])
        other = await yard.start(file(task("long", "sleep 600")))
        await until(yard, other, "long", "running")  # now there is no room
        handle = await yard.start(file(late, after))
        await until(yard, handle, "late", "failed")
        while (sealed := await load_seal(store, await id_of(handle, "late"), 1)) is None:
            await asyncio.sleep(0.02)  # from here on nothing can begin, though there be room
        await other.cancel()
        await failure(handle)
        by_name = tasks(await yard.view(handle))
        assert (by_name["late"].reason, by_name["after"].status) == (Reason.TIMEOUT_QUEUE, "success")
        assert (sealed.end.status, sealed.end.reason, sealed.end.began) == ("failed", Reason.TIMEOUT_QUEUE, False)
        assert Reason.TIMEOUT_QUEUE.sentence in sealed.setup.text


async def test_the_log_of_a_task_that_no_worker_took_is_its_runs(client: Client, store: PosixStore) -> None:
    """Its schedule never began, so that no runid object was there: a cleanup took the log of an open run."""
    executor = MemoryExecutor()
    yard = Yard(client, store, executor)
    late = task("late", "true", timeouts={"queue": "1s"})
    async with serving(client, store):  # nobody serves the executor's queue
        handle = await yard.start(file(late, task("gate", "true", approval=True)))
        assert (await until(yard, handle, "late", "failed")).reason is Reason.TIMEOUT_QUEUE
    async with serving(client, store, [executor]):
        while await load_seal(store, await id_of(handle, "late"), 1) is None:  # with its delete
            await asyncio.sleep(0.05)
        before = [info.key async for info in store.list(paths.LOGS)]
        report = await (await clean(Runyard(client, store, settings=Settings()))).result()
        assert "logs" not in report.deleted
        assert [info.key async for info in store.list(paths.LOGS)] == before
        await handle.cancel()
        await failure(handle)


async def test_deletes_have_a_limit_too(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.deletes.UNDER_WAY", 1)
    monkeypatch.setattr("workflows.deletes.AT_ONCE", 2)
    handle = await yard.start(file(*[task(f"t{n}", "true") for n in range(30)]))
    assert (await handle.result()).counts == {"success": 30}
    assert await pods(yard) == 0


async def test_pods_of_successes_go_with_their_fetches_and_are_confirmed_together(yard: Yard) -> None:
    """While others go on, and by few activities; those of failures at once."""
    quick = [task(f"t{n}", "true") for n in range(20)]
    handle = await yard.start(file(*quick, task("bad", "exit 1", ignore_failure=True), task("long", "sleep 4")))
    for name in [*(f"t{n}" for n in range(20)), "bad"]:
        await until(yard, handle, name, "failed" if name == "bad" else "success")
    while await pods(yard) > 1:
        await asyncio.sleep(0.02)
    assert tasks(await yard.view(handle))["long"].status == "running"
    assert (await handle.result()).result == "success"
    scheduled = [
        event.activity_task_scheduled_event_attributes.activity_id
        async for event in handle.fetch_history_events()
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    deletes = [name for name in scheduled if name.startswith("delete")]
    assert "delete bad #1" in deletes
    assert len(deletes) < 15  # 21 one by one; one a second at most, however slow the machine is
    assert await pods(yard) == 0


# continue as new


def _steps(number: int) -> list[dict[str, object]]:
    return [task(f"s{n}", "true", depends=[f"s{n - 1}"] if n else []) for n in range(number)]


@pytest.mark.promise(9)
@pytest.mark.parametrize("timers", [500, 1], ids=["a timer each", "a shared timer"])
async def test_what_waits_goes_on_waiting_in_the_next_execution(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, timers: int
) -> None:
    monkeypatch.setattr("activities.run.HISTORY_EVENTS", 80)
    monkeypatch.setattr("activities.run.TIMERS", timers)
    waits = [
        task("expires", "true", approval={"expires": "4s"}),
        task("gate", "true", approval={"approvers": 2}),
        task("again", "exit 1", retry={"limit": 1, "backoff": "3s"}),
        task("kept", "exit 1", keep_failed_for="1h"),
    ]
    handle = await yard.start(file(*waits, *_steps(12)))
    await until(yard, handle, "gate", "approval")
    await handle.execute_update("approve", ApprovalRequest(task="gate", by="ann"))
    await until(yard, handle, "s11", "success")
    description = await yard.client.get_workflow_handle(handle.id).describe()
    assert description.run_id != handle.first_execution_run_id
    await handle.execute_update("approve", ApprovalRequest(task="gate", by="bob"))
    await until(yard, handle, "expires", "failed")
    await until(yard, handle, "again", "failed")
    await until(yard, handle, "gate", "success")
    view = tasks(await yard.view(handle))
    assert view["expires"].reason is Reason.APPROVAL_EXPIRED
    assert (view["gate"].approvals, view["again"].attempt) == (["ann", "bob"], 2)
    assert await pods(yard) == 1  # the kept one
    await handle.cancel()
    await failure(handle)
    assert await pods(yard) == 0


async def test_a_held_task_and_a_cancel_asked_for_cross_an_execution(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.run.HISTORY_EVENTS", 60)
    handle = await yard.start(file(task("t", "exit 1"), *_steps(10), on_failure="hold"))
    await until(yard, handle, "s9", "success")
    await until(yard, handle, "t", "held")
    await handle.execute_update("retry_task", TaskRequest(task="t"))
    while (await until(yard, handle, "t", "held")).attempt < 2:
        await asyncio.sleep(0.05)
    await handle.cancel()
    await failure(handle)


async def _closing(yard: Yard) -> tuple[Run, str]:
    """A run of which an execution has announced its end, and that execution."""
    handle = await yard.start(file(*_steps(8), task("gate", "true", approval=True)))
    current = yard.client.get_workflow_handle(handle.id)
    while await (seen := await current.describe()).memo_value(CLOSING, "") != seen.run_id:
        await asyncio.sleep(0.05)
    return Runyard(yard.client, yard.store, settings=Settings()).run(handle.id), seen.run_id


async def _goes_on(yard: Yard, run: Run, seen: RunView) -> None:
    """What was seen is true later, and the run comes to its end."""
    assert {each.name for each in seen.tasks} == {"gate", *(f"s{n}" for n in range(8))}
    handle = yard.client.get_workflow_handle(run.id, result_type=RunResult)
    await until(yard, handle, "gate", "approval")
    later = tasks(await run.describe())
    assert all(later[each.name] == each for each in seen.tasks if each.status == "success")
    await run.approve("gate", by="ann")
    assert (await handle.result()).counts == {"success": 9}


async def test_a_question_at_the_end_of_an_execution_is_answered_by_what_it_left(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.run.HISTORY_EVENTS", 60)
    monkeypatch.setattr("activities.run.CLOSING_MS", 5_000)
    run, execution = await _closing(yard)
    view = await run.describe()
    assert (await yard.client.get_workflow_handle(run.id).describe()).run_id == execution, "it did not wait"
    await _goes_on(yard, run, view)


async def test_where_nothing_was_left_it_waits_for_the_next(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answered by the old one it would replay all of it, once that has closed."""
    monkeypatch.setattr("activities.run.HISTORY_EVENTS", 60)
    monkeypatch.setattr("activities.run.CLOSING_MS", 2_000)
    monkeypatch.setattr("runyard.client.run.LOOKS", 10_000)
    run, execution = await _closing(yard)
    await yard.store.delete(paths.passing(run.id))
    view = await run.describe()
    assert (await yard.client.get_workflow_handle(run.id).describe()).run_id != execution
    await _goes_on(yard, run, view)


@pytest.mark.promise(7)
async def test_a_cancel_while_a_view_is_left_ends_the_run(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes to the workflow as the end of that activity, and must not be taken for a view that was not left."""
    monkeypatch.setattr("activities.run.HISTORY_EVENTS", 60)
    gate = Gate(tmp_path, "passing.json")  # which nobody opens
    async with working(client, gate, [MemoryExecutor()]) as yard:
        handle = await yard.start(file(*_steps(8), task("gate", "true", approval=True)))
        await asyncio.wait_for(gate.reached.wait(), 60)
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as error:
            await asyncio.wait_for(handle.result(), 60)
        assert isinstance(error.value.cause, CancelledError)


async def test_a_cancel_at_the_end_of_an_execution_gives_questions_back_to_it(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not continue as new after all: what it left, or the wait for the next one, was all people saw."""
    monkeypatch.setattr("activities.run.HISTORY_EVENTS", 60)
    monkeypatch.setattr("activities.run.CLOSING_MS", 10_000)
    monkeypatch.setattr("activities.task.GRACE_S", 600)  # so that `slow` goes on as long as we look
    monkeypatch.setattr("runyard.client.run.LOOKS", 10_000)
    handle = await yard.start(file(*_steps(8), task("slow", "hang"), task("after", "true", depends=["slow"])))
    current = yard.client.get_workflow_handle(handle.id)
    while await (seen := await current.describe()).memo_value(CLOSING, "") != seen.run_id:
        await asyncio.sleep(0.05)
    run = Runyard(yard.client, yard.store, settings=Settings()).run(handle.id)
    assert tasks(await run.describe())["slow"].status == "running"
    await current.cancel()
    try:
        async with asyncio.timeout(60):
            while tasks(view := await run.describe())["after"].status != "cancelled":
                assert view.phase == "running"
                await asyncio.sleep(0.05)
        assert (view.phase, tasks(view)["slow"].status) == ("running", "running")
        description = await current.describe()
        assert (description.status, description.run_id) == (WorkflowExecutionStatus.RUNNING, seen.run_id)
    finally:
        for pod in [each.pod async for each in yard.executor.list()]:
            await yard.executor.delete(pod)
    await cancelled(handle)


async def test_a_question_at_the_end_of_a_long_run_is_answered_by_what_is_stored(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.run.LONG_EVENTS", 30)
    monkeypatch.setattr("activities.run.CLOSING_MS", 2_000)
    monkeypatch.setattr("runyard.client.run.LOOKS", 10_000)
    handle = await yard.start(file(*_steps(4)))
    while await (seen := await handle.describe()).memo_value(CLOSING, "") != seen.run_id:
        assert seen.status is WorkflowExecutionStatus.RUNNING, "it did not announce its end"
        await asyncio.sleep(0.02)
    run = Runyard(yard.client, yard.store, settings=Settings()).run(handle.id)
    view = await run.describe()
    assert (await handle.describe()).status is WorkflowExecutionStatus.COMPLETED
    assert (view.result, view.counts) == ("success", {"success": 4})


# workers and stores that come and go


@pytest.mark.promise(9)
async def test_a_worker_that_shuts_down_lets_go(client: Client, store: PosixStore) -> None:
    executor = MemoryExecutor()
    yard = Yard(client, store, executor)
    async with serving(client, store):
        async with serving(client, store, [executor], runs=False):
            handle = await yard.start(file(task("t", "print one\nsleep 2\nprint two", retry={"limit": 1})))
            await until(yard, handle, "t", "running")
        uids = [seen.pod.uid async for seen in executor.list()]
        assert len(uids) == 1
        async with serving(client, store, [executor], runs=False):
            assert (await handle.result()).result == "success"
            assert tasks(await yard.view(handle))["t"].attempt == 1
    log = await read(store, paths.step_log(await id_of(handle, "t"), 1, 0))
    assert log == b"one\ntwo\n"


@pytest.mark.promise(9)
async def test_a_store_that_is_away_for_a_while_costs_time_only(client: Client, tmp_path: Path) -> None:
    store = Away(tmp_path, times=1)
    async with working(client, store, [MemoryExecutor()]) as yard:
        save = {"save_to_workspace": {"contents": [{"source_dir": ".", "paths": ["**"]}]}}
        first = task("a", "output K=v")
        first["steps"] = [{"run": "output K=v"}, save]
        use = task("b", "print $K", depends=["a"], environment={"K": {"from_output": "a.K"}})
        handle = await yard.start(file(first, use))
        assert (await handle.result()).result == "success"
        kept = await read_result(PosixStore(tmp_path), handle.id)
        assert [view.attempt for view in kept.tasks] == [1, 1]


@pytest.mark.promise(2)
@pytest.mark.parametrize("what", ["plan", "seal"])
async def test_a_record_that_is_broken_fails_the_task_and_runs_nothing_again(
    yard: Yard, store: PosixStore, what: str
) -> None:
    handle = await yard.start(file(task("t", "sleep 1.5", retry={"limit": 2, "backoff": "10ms"})))
    await until(yard, handle, "t", "running")
    key = paths.plan(handle.id) if what == "plan" else paths.seal(await id_of(handle, "t"), 1)
    await store.put(key, b"{")
    with contextlib.suppress(WorkflowFailureError):  # a plan that was read before does no harm
        assert what == "plan" or not await handle.result()
    assert tasks(await yard.view(handle))["t"].attempt == 1


async def test_a_cancel_over_a_broken_record_ends(yard: Yard, store: PosixStore) -> None:
    handle = await yard.start(file(task("t", "sleep 600")))
    await until(yard, handle, "t", "running")
    await store.put(paths.seal(await id_of(handle, "t"), 1), b"{")
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert await pods(yard) == 0


# refusals, budgets, names


async def test_a_task_that_cannot_be_placed_fails_and_its_children_go_on(yard: Yard) -> None:
    refused = task("refused", "true", retry={"limit": 3, "backoff": "10ms"})
    refused["runtime"] = {"containers": [{"image": "a"}, {"image": "b"}]}
    after = task("after", "true", depends=[{"refused": ["on_failure"]}])
    handle = await yard.start(file(refused, after))
    await failure(handle)
    by_name = tasks(await yard.view(handle))
    assert (by_name["refused"].reason, by_name["refused"].attempt) == (Reason.CONFIG_ERROR, 1)
    assert by_name["after"].status == "success"


async def test_each_budget_is_counted_on_its_own(yard: Yard) -> None:
    retry = {"limit": 1, "infra": 1, "backoff": "10ms"}
    handle = await yard.start(file(task("lost", "vanish", retry=retry), task("bad", "exit 1", retry=retry)))
    await failure(handle)
    by_name = tasks(await yard.view(handle))
    assert (by_name["lost"].attempt, by_name["bad"].attempt) == (2, 2)


NAMES = ["🦀" * 100, "quo\"te's `and` | $bars$", "a/b", "a b", "a-b", "A b", "#1", "x" * 100]


async def test_names_of_every_kind(yard: Yard) -> None:
    handle = await yard.start(file(*[task(name, "print hi") for name in NAMES]))
    assert (await handle.result()).counts == {"success": len(NAMES)}
    view = tasks(await yard.view(handle))
    assert list(view) == NAMES


async def test_many_failed_tasks_with_long_names_do_not_stop_the_run(yard: Yard) -> None:
    names = [f"{n:02d}{'🦀' * 98}" for n in range(25)]
    handle = await yard.start(file(*[task(name, "exit 1") for name in names]), group="/g/web/branch/" + "é" * 450)
    await failure(handle)
    description = await yard.client.get_workflow_handle(handle.id).describe()
    assert description.status is WorkflowExecutionStatus.FAILED
    shown = description.search_attributes["RunyardFailedTasks"]
    assert shown
    assert all(any(name.startswith(str(word)) for name in names) for word in shown)


async def test_many_timers_are_no_reason_to_begin_anew_for_ever(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.run.HISTORY_EVENTS", 60)
    gates = [task(f"gate{n:02d}", "true", approval={"expires": "1h"}) for n in range(80)]
    handle = await yard.start(file(*gates))
    await until(yard, handle, "gate79", "approval")
    await handle.execute_update("approve", ApprovalRequest(task="gate00", by="ann"))
    await until(yard, handle, "gate00", "success")
    executions = {e.run_id async for e in yard.client.list_workflows(f"WorkflowId = '{handle.id}'")}
    assert len(executions) <= 3
    latest = yard.client.get_workflow_handle(handle.id)
    await latest.cancel()
    while (await latest.describe()).status is WorkflowExecutionStatus.RUNNING:
        await asyncio.sleep(0.05)
    assert (await latest.describe()).status is WorkflowExecutionStatus.CANCELED


async def test_waits_beyond_some_share_a_timer(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many approvals expire, and whichever is the first: all the same happens, with a small history."""
    monkeypatch.setattr("activities.run.TIMERS", 10)
    gates = [task(f"gate{n:03d}", "true", approval={"expires": "1h"}) for n in range(300)]
    later = {"depends": ["s0"]}  # the timer is set already, for what is over long after them
    handle = await yard.start(
        file(
            *gates,
            *_steps(1),
            task("soon", "true", approval={"expires": "3s"}, **later),
            task("sooner", "true", approval={"expires": "1s"}, **later),
            task("again", "exit 1", retry={"limit": 1, "backoff": "2s"}, **later),
            task("kept", "exit 1", keep_failed_for="2s", **later),
        )
    )
    for name in ("gate000", "gate299"):  # one with a timer of its own, one without
        await until(yard, handle, name, "approval")
        await handle.execute_update("approve", ApprovalRequest(task=name, by="ann"))
        await until(yard, handle, name, "success")
    for name in ("soon", "sooner", "again", "kept"):
        await until(yard, handle, name, "failed")
    view = tasks(await yard.view(handle))
    assert [view[name].reason for name in ("soon", "sooner")] == [Reason.APPROVAL_EXPIRED] * 2
    assert view["again"].attempt == 2
    while await pods(yard):
        await asyncio.sleep(0.05)
    assert {view[f"gate{n:03d}"].status for n in range(1, 299)} == {"approval"}
    assert len([event async for event in handle.fetch_history_events()]) < 200
    await handle.cancel()
    await failure(handle)


async def test_shared_waits_fill_no_execution(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.run.TIMERS", 10)
    monkeypatch.setattr("activities.run.HISTORY_EVENTS", 60)
    gates = [task(f"gate{n:03d}", "true", approval={"expires": "1h"}) for n in range(200)]
    handle = await yard.start(file(*gates, *_steps(10)))
    await until(yard, handle, "s9", "success")
    await until(yard, handle, "gate199", "approval")
    executions = [e.run_id async for e in yard.client.list_workflows(f"WorkflowId = '{handle.id}'")]
    assert len(executions) >= 2
    for run_id in executions:
        execution = yard.client.get_workflow_handle(handle.id, run_id=run_id)
        # with a timer for each gate it would be 200 and more
        assert len([event async for event in execution.fetch_history_events()]) < 160
    latest = yard.client.get_workflow_handle(handle.id)
    await latest.cancel()
    while (await latest.describe()).status is WorkflowExecutionStatus.RUNNING:
        await asyncio.sleep(0.05)


async def test_a_pod_that_does_not_begin_in_time_ends_with_its_own_reason(yard: Yard) -> None:
    handle = await yard.start(file(task("t", "slow_start 60\ntrue", timeouts={"pending": "200ms"})))
    await failure(handle)
    view = tasks(await yard.view(handle))["t"]
    assert (view.status, view.reason) == ("failed", Reason.TIMEOUT_PENDING)
    assert [pod async for pod in yard.executor.list()] == []
