"""The feed of events: whole, in order, from any cursor on, whoever has died or forgotten meanwhile."""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client
from yard import working

from runyard.client import Event, Run, Runyard
from runyard.errors import InvalidRequest, NotFound, ServerUnavailable
from runyard.executors.memory import MemoryExecutor
from runyard.reasons import Reason
from runyard.settings import Settings
from runyard.store.base import ObjectStore


def task(name: str, *steps: str, **fields: object) -> dict[str, object]:
    runtime = {"containers": [{"image": "busybox"}]}
    return {"name": name, "runtime": runtime, "steps": [{"run": step} for step in steps], **fields}


def file(*tasks: dict[str, object], **fields: object) -> dict[str, object]:
    return {"runs": [{"name": "build", "tasks": list(tasks), **fields}]}


def words(events: Sequence[Event]) -> list[str]:
    return [f"{each.kind} {each.task}{f' #{each.attempt}' if each.attempt else ''}".strip() for each in events]


async def told(yard: Runyard, run: str = "", cursor: str | None = None) -> list[Event]:
    return [event async for event in yard.events(cursor, run=run, follow=False)]


async def of_run(yard: Runyard, run: str, cursor: str | None = None) -> list[Event]:
    """What the feed of all runs tells of one."""
    return [event for event in await told(yard, cursor=cursor) if event.run == run]


def check_order(events: Sequence[Event]) -> None:
    assert len({event.id for event in events}) == len(events), "each once"
    assert [event.at for event in events] == sorted(event.at for event in events)


SHAPE = file(
    task("a", "echo"),
    task("b", "exit 3", depends=["a"], retry={"limit": 1, "backoff": "10ms"}),
    task("c", "echo", depends=["b"]),
    task("d", "exit 4"),
    task("e", "echo", when={"branch": "main"}),
)


async def forget(client: Client, run: Run) -> None:
    """As Temporal does after its retention."""
    request = DeleteWorkflowExecutionRequest(
        namespace=client.namespace, workflow_execution=WorkflowExecution(workflow_id=run.id)
    )
    await client.workflow_service.delete_workflow_execution(request)
    while True:
        with contextlib.suppress(Exception):
            await client.get_workflow_handle(run.id).describe()
            await asyncio.sleep(0.05)
            continue
        return


async def test_all_that_happens_to_a_run(runs: Runyard) -> None:
    run = await runs.start(SHAPE)
    assert (await run.result()).result == "failed"
    events = await told(runs, run.id)
    check_order(events)
    found = words(events)
    assert (found[0], found[-1]) == ("run_started", "run_ended")
    assert [each for each in found if " a" in each] == [
        "task_started a #1",
        "attempt_ended a #1",
        "task_succeeded a #1",
    ]
    assert [each for each in found if " b" in each] == [
        "task_started b #1",
        "attempt_ended b #1",
        "task_started b #2",
        "attempt_ended b #2",
        "task_failed b #2",
    ]
    assert [each for each in found if each.endswith((" c", " e"))] == ["task_skipped c", "task_skipped e"]
    assert found.index("task_failed d #1") == found.index("attempt_ended d #1") + 1, "at once: no retry can come"
    facts = {event.kind + event.task: event for event in events}
    assert (facts["task_failedd"].reason, facts["task_failedd"].exit_code) == (Reason.EXIT_CODE, 4)
    assert (facts["run_ended"].result, facts["run_ended"].message) == ("failed", (await run.describe()).cause)
    assert facts["task_skippede"].reason is Reason.WHEN
    check_order(await of_run(runs, run.id))
    assert [each.id for each in await of_run(runs, run.id)] == [each.id for each in events]


async def test_from_any_cursor_on_nothing_is_missing(runs: Runyard) -> None:
    run = await runs.start(SHAPE)
    await run.result()
    events = await told(runs, run.id)
    whole = [each.id for each in events]
    for at, event in enumerate(events):
        again = [each.id for each in await told(runs, run.id, event.cursor)]
        assert again == whole[len(whole) - len(again) :], "in order to the end"
        assert set(whole[at + 1 :]) <= set(again)
    assert await told(runs, run.id, events[-1].cursor) == [], "and nothing twice"
    for event in [each for each in await told(runs) if each.run == run.id]:
        again = [each.id for each in await of_run(runs, run.id, event.cursor)]
        assert set(whole[whole.index(event.id) + 1 :]) <= set(again)


async def test_once_forgotten_by_temporal_it_is_told_by_the_store(runs: Runyard, client: Client) -> None:
    run = await runs.start(SHAPE)
    await run.result()
    before = await told(runs, run.id)
    await forget(client, run)
    after = await told(runs, run.id)
    check_order(after)
    assert {each.id for each in after} == {each.id for each in before}
    same = {"at", "cursor"}
    assert {e.id: e.model_dump(exclude=same) for e in after} == {e.id: e.model_dump(exclude=same) for e in before}
    assert [each.id for each in await of_run(runs, run.id)] == [each.id for each in after]
    for event in before:
        assert {each.id for each in after} == {e.id for e in await told(runs, run.id, event.cursor)}
    for at, event in enumerate(after):
        assert [e.id for e in await told(runs, run.id, event.cursor)] == [each.id for each in after[at + 1 :]]


async def test_a_restart_tells_what_it_keeps(runs: Runyard, client: Client) -> None:
    first = await runs.start(file(task("a", "echo"), task("b", "exit 1")))
    await first.result()
    second = await runs.restart(first.id)
    await second.result()
    for again in (True, False):
        kept = [event for event in await told(runs, second.id) if event.task == "a"]
        assert [(event.kind, event.kept_from) for event in kept] == [("task_kept", first.id)]
        if again:
            await forget(client, second)


async def test_a_run_that_waits_and_one_that_is_held(runs: Runyard) -> None:
    first = await runs.start(file(task("a", "exit 1"), on_failure="hold"), group="/events/held")
    second = await runs.start(file(task("a", "echo")), group="/events/held")
    async for event in runs.events(run=first.id, interval_s=0.05):
        if event.kind == "task_held":
            await first.cancel_task("a")
    assert words(await told(runs, first.id))[-3:] == ["task_held a #1", "task_failed a #1", "run_ended"]
    await second.result()
    events = await told(runs, second.id)
    assert words(events)[:2] == ["run_started", "run_waiting"]
    assert "/events" in events[1].message


async def test_a_cancelled_and_a_terminated_run(runs: Runyard, client: Client) -> None:
    shape = file(task("a", "sleep 600"), task("b", "echo", depends=["a"]))
    for end in ("cancel", "terminate"):
        run = await runs.start(shape)
        async for event in runs.events(run=run.id, interval_s=0.05):
            if event.kind == "task_started":
                handle = client.get_workflow_handle(run.id)
                await (handle.cancel() if end == "cancel" else handle.terminate())
        found = await told(runs, run.id)
        assert (found[-1].kind, found[-1].result) == ("run_ended", "stopped")
        if end == "cancel":
            assert {"task_cancelled a #1", "task_cancelled b"} <= set(words(found))


async def test_a_file_that_is_wrong(runs: Runyard, client: Client) -> None:
    from runyard.spec.run import RUNS_QUEUE, WORKFLOW

    handle = await client.start_workflow(WORKFLOW, {"file": "runs: 1"}, id="events-wrong", task_queue=RUNS_QUEUE)
    with contextlib.suppress(Exception):
        await handle.result()
    events = await told(runs, "events-wrong")
    assert words(events) == ["run_started", "run_ended"]
    assert events[-1].result == "failed"
    assert events[-1].message


async def test_it_survives_continue_as_new(client: Client, store: ObjectStore, idle: Runyard) -> None:
    """Every execution's part once, from every cursor."""
    import activities.run

    names = [f"t{n:02}" for n in range(40)]
    tasks = [task(name, "echo", depends=names[max(0, n - 4) : n]) for n, name in enumerate(names)]
    old, activities.run.HISTORY_EVENTS = activities.run.HISTORY_EVENTS, 120
    try:
        async with working(client, store, [MemoryExecutor()]):
            run = await idle.start(file(*tasks))
            live = [event async for event in idle.events(run=run.id, interval_s=0.05)]
            assert (await run.result()).result == "success"
    finally:
        activities.run.HISTORY_EVENTS = old
    found = [each async for each in client.list_workflows(f"WorkflowId = '{run.id}'") if each.id == run.id]
    assert len(found) > 1, "it has continued as new"
    check_order(live)
    whole = [each.id for each in await told(idle, run.id)]
    assert [each.id for each in live] == whole
    assert words(live).count("run_started") == words(live).count("run_ended") == 1
    assert sorted(each.task for each in live if each.kind == "task_succeeded") == names
    for event in live[:: len(live) // 12]:
        again = [each.id for each in await told(idle, run.id, event.cursor)]
        assert again == whole[len(whole) - len(again) :]
        assert set(whole[whole.index(event.id) + 1 :]) <= set(again)


async def test_readers_that_die_and_go_on_miss_nothing(runs: Runyard) -> None:
    """Each reads a few events of the feed of all runs and is gone; the next has its last cursor."""
    begin = datetime.now(UTC).isoformat()

    async def start() -> list[Run]:
        shapes = [file(task("a", "echo"), task("b", "sleep 0.2", depends=["a"])) for _ in range(8)]
        return [await runs.start(shape) for shape in shapes]

    def all_ended() -> bool:
        ended = {event.run for event in seen if event.kind == "run_ended"}
        return starting.done() and {run.id for run in starting.result()} <= ended

    starting, seen, cursor = asyncio.create_task(start()), list[Event](), begin
    while True:
        taken = 0
        async with contextlib.aclosing(runs.events(cursor, interval_s=0.05)) as feed:  # type: ignore[type-var]
            async for event in feed:
                seen.append(event)
                taken, cursor = taken + 1, event.cursor
                if taken == 7 or all_ended():
                    break
        if all_ended():
            break
    for run in starting.result():
        ids = [event.id for event in seen if event.run == run.id]
        assert list(dict.fromkeys(ids)) == [event.id for event in await told(runs, run.id)]


async def test_no_worker_is_needed(client: Client, store: ObjectStore, idle: Runyard) -> None:
    run = await idle.start(file(task("a", "echo")))
    assert words(await told(idle, run.id)) == ["run_started"]
    async with working(client, store, [MemoryExecutor()]):
        await run.result()
    assert words(await told(idle, run.id))[-1] == "run_ended"


async def test_without_a_server_what_the_store_remembers(runs: Runyard, store: ObjectStore) -> None:
    run = await runs.start(SHAPE)
    await run.result()
    away = Runyard(None, store, settings=Settings(), away=ServerUnavailable("away"))
    ids = {event.id for event in await told(runs, run.id)}
    assert {event.id for event in await told(away, run.id)} == ids
    assert {event.id for event in await told(away)} == ids
    with pytest.raises(ServerUnavailable):
        async for _ in away.events():
            pass
    with pytest.raises(NotFound):
        await told(away, "nowhere")


async def test_what_is_no_cursor_and_no_run(runs: Runyard) -> None:
    for cursor in ("x", "1-", "1-2-3", "-1-2", "2026-13-01", "9" * 40):
        with pytest.raises(InvalidRequest, match="no cursor"):
            await told(runs, cursor=cursor)
    with pytest.raises(NotFound):
        await told(runs, "nowhere")
    with pytest.raises(InvalidRequest):
        await told(runs, "no/run")
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert await told(runs, cursor=later) == []
    assert await told(runs, cursor=later.split("+")[0]) == []
