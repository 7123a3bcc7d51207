"""What a run does while others of its group are open."""

import asyncio

import pytest
from group_scene import file, line, new_root, queued, running, span, until
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError
from temporalio.exceptions import ApplicationError, CancelledError
from yard import Yard

from runyard.reasons import Reason
from runyard.records.runs import read_result


async def test_parallel_lets_so_many_run_at_a_time(yard: Yard) -> None:
    group = f"{new_root()}/branch/main"
    policy = {"group": group, "group_policy": "parallel: 2"}
    first, second = [await yard.start(file("sleep 600"), **policy) for _ in range(2)]
    await until(yard, first, running)
    await until(yard, second, running)
    third = await yard.start(file(), **policy)
    waiting = await until(yard, third, queued())
    assert first.id in waiting.cause
    assert second.id in waiting.cause
    await first.cancel()
    assert (await third.result()).result == "success"
    assert running(await yard.view(second))
    await second.cancel()


async def test_a_newer_run_takes_the_place_of_those_that_run_and_wait(yard: Yard) -> None:
    group = f"{new_root()}/branch/main"
    first = await yard.start(file("sleep 600"), group=group)
    await until(yard, first, running)
    second = await yard.start(file(), group=group)
    await until(yard, second, queued())
    third = await yard.start(file(), group=group, group_policy="cancel-superseded")
    assert (await third.result()).result == "success"
    for older in (first, second):
        with pytest.raises(WorkflowFailureError) as caught:
            await older.result()
        assert isinstance(caught.value.cause, CancelledError)
        kept = await read_result(yard.store, older.id)
        assert (kept.result, kept.tasks[0].status) == ("stopped", "cancelled")
        assert third.id in kept.cause
    assert (await read_result(yard.store, first.id)).tasks[0].reason is Reason.SUPERSEDED
    _, _, ended = await span(yard, first)
    _, began, _ = await span(yard, third)
    assert ended <= began
    assert [pod async for pod in yard.executor.list()] == []


async def test_a_run_that_does_not_want_to_wait_is_skipped_visibly(yard: Yard) -> None:
    group = f"{new_root()}/branch/main"
    policy = {"group": group, "group_policy": "skip-if-running"}
    first = await yard.start(file("sleep 600"), **policy)
    await until(yard, first, running)
    second = await yard.start(file("exit 1"), **policy)
    result = await second.result()
    assert (result.phase, result.result) == ("finished", "success")
    assert result.cause == f"skipped: run {first.id} of {group} has not ended"
    kept = await read_result(yard.store, second.id)
    assert (kept.counter, kept.cause) == (2, result.cause)
    description = await second.describe()
    assert description.search_attributes["RunyardStage"] == ["skipped"]
    assert running(await yard.view(first))
    await first.cancel()
    with pytest.raises(WorkflowFailureError):
        await first.result()
    third = await yard.start(file(), **policy)
    assert (await third.result()).counts == {"success": 1}


async def test_the_file_may_say_the_group_and_its_policy(yard: Yard) -> None:
    group = f"{new_root()}/tag/v1"
    made = file("sleep 600", group=group, group_policy={"parallel": 2})
    first, second = [await yard.start(made) for _ in range(2)]
    await until(yard, first, running)
    await until(yard, second, running)
    assert len((await line(yard, group)).running) == 2
    await asyncio.gather(first.cancel(), second.cancel())


async def test_a_run_that_waits_can_be_cancelled_and_leaves_the_line(yard: Yard) -> None:
    group = f"{new_root()}/branch/main"
    first = await yard.start(file("sleep 600"), group=group)
    await until(yard, first, running)
    second = await yard.start(file(), group=group)
    await until(yard, second, queued(1))
    third = await yard.start(file(), group=group)
    await until(yard, third, queued(2))
    await second.cancel()
    with pytest.raises(WorkflowFailureError) as caught:
        await second.result()
    assert isinstance(caught.value.cause, CancelledError)
    assert (await second.describe()).status is WorkflowExecutionStatus.CANCELED
    kept = await read_result(yard.store, second.id)
    assert (kept.counter, kept.tasks[0].reason) == (2, Reason.NEVER_STARTED)
    assert [run.run_id for run in (await line(yard, group)).waiting] == [third.id]
    await until(yard, third, queued(1))  # it has come nearer, and says so
    await first.cancel()
    assert (await third.result()).result == "success"


async def test_a_run_without_a_task_to_run_can_be_cancelled_while_it_waits(yard: Yard) -> None:
    """Its graph is done, so that a cancel stops nothing of it: it went back to its line, in vain, for ever."""
    group = f"{new_root()}/branch/main"
    first = await yard.start(file("sleep 600"), group=group)
    await until(yard, first, running)
    skipped = {
        "name": "t",
        "runtime": {"containers": [{"image": "none"}]},
        "steps": [{"run": "true"}],
        "when": {"branch": "another"},
    }
    second = await yard.start(file(tasks=[skipped]), group=group)
    await until(yard, second, queued(1))
    await second.cancel()
    async with asyncio.timeout(60):
        result = await second.result()
    assert (result.phase, result.counts) == ("finished", {"skipped": 1})
    seen = await line(yard, group)
    assert ([run.run_id for run in seen.running], seen.waiting) == ([first.id], [])
    assert running(await yard.view(first))
    await first.cancel()


@pytest.mark.parametrize(
    ("group", "why"),
    [
        ("main", "does not begin with a slash"),
        ("/", "empty part"),
        ("/project", "a name is missing after `project`"),
        ("/project//branch/main", "empty part"),
        ("/project/../branch/main", "`..`"),
        ("/project/web/branch", "a name is missing after `branch`"),
        ("/project/my web", "a space"),
        ("/project/web/", "empty part"),
        ("/project/" + "w" * 2_000, "longer"),
    ],
)
async def test_a_group_that_is_no_path_ends_the_run_with_a_sentence(yard: Yard, group: str, why: str) -> None:
    handle = await yard.start(file(), group=group)
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    error = caught.value.cause
    assert isinstance(error, ApplicationError)
    assert error.type == "invalid_request"
    assert why in error.message
    assert "/project/web/branch/main" in error.message


@pytest.mark.parametrize("policy", ["parallel", "parallel: 0", "parallel: -1", "one by one", "Queue"])
async def test_a_policy_that_is_none_ends_the_run_with_a_sentence(yard: Yard, policy: str) -> None:
    handle = await yard.start(file(), group=f"{new_root()}/branch/main", group_policy=policy)
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, ApplicationError)
    assert "cancel-superseded" in caught.value.cause.message


async def test_a_run_that_cannot_be_prepared_takes_no_number(yard: Yard) -> None:
    group = f"{new_root()}/branch/main"
    for wrong in ({"runs": []}, {"nonsense": 1}):
        with pytest.raises(WorkflowFailureError):
            await (await yard.start(wrong, group=group)).result()
    handle = await yard.start(file(), group=group)
    await handle.result()
    assert (await span(yard, handle))[0] == 1


async def test_the_timeout_of_a_run_begins_with_its_turn(yard: Yard) -> None:
    group = f"{new_root()}/branch/main"
    first = await yard.start(file("sleep 600"), group=group)
    await until(yard, first, running)
    second = await yard.start(file("sleep 0.1", timeout="20s"), group=group)
    await until(yard, second, queued())
    timers = [e async for e in second.fetch_history_events() if e.HasField("timer_started_event_attributes")]
    assert timers == []
    await first.cancel()
    assert (await second.result()).result == "success"
