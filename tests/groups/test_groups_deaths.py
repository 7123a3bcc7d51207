"""Whoever dies, the line goes on: no number twice, none left out, never two at a time."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from group_scene import Handle, file, line, new_root, queued, running, span, until
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowFailureError
from yard import Work, Yard, working

from runyard.executors.memory import MemoryExecutor
from runyard.executors.open import open_executor
from runyard.settings import Settings
from runyard.spec.group import LINE_MEMO, LineState, root_line
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult
from runyard.store.posix import PosixStore


async def check(yard: Yard, handles: list[Handle], numbers: list[int]) -> None:
    """They ran one at a time, in the order of these numbers."""
    spans = sorted([await span(yard, handle) for handle in handles])
    assert [counter for counter, _, _ in spans] == numbers
    for (_, _, end), (_, start, _) in pairwise(spans):
        assert end <= start


async def ended(handle: Handle) -> None:
    with pytest.raises(WorkflowFailureError):
        await handle.result()


@pytest.mark.promise(9)
async def test_a_run_that_is_terminated_makes_room(yard: Yard) -> None:
    group = f"{new_root()}/branch/main"
    first = await yard.start(file("sleep 600"), group=group)
    await until(yard, first, running)
    dead = await yard.start(file(), group=group)
    await until(yard, dead, queued(1))
    last = await yard.start(file(), group=group)
    await until(yard, last, queued(2))
    await dead.terminate()
    await first.terminate()
    assert (await last.result()).result == "success"
    assert (await span(yard, last))[0] == 3


@pytest.mark.promise(9)
async def test_a_line_that_is_terminated_goes_on_with_its_numbers_and_its_order(yard: Yard) -> None:
    group = f"{new_root()}/branch/main"
    done = await yard.start(file(), group=group)
    await done.result()
    first = await yard.start(file("sleep 600"), group=group)
    await until(yard, first, running)
    waiting = []
    for position in range(1, 6):
        waiting.append(await yard.start(file(), group=group))
        await until(yard, waiting[-1], queued(position))
    before = await line(yard, group)
    for _ in range(3):
        execution = await yard.client.get_workflow_handle(root_line(group)).describe()
        await yard.client.get_workflow_handle(root_line(group)).terminate("by a test")
        while True:  # those that wait start it again
            now = await yard.client.get_workflow_handle(root_line(group)).describe()
            if now.run_id != execution.run_id:
                break
            await asyncio.sleep(0.05)
        assert await line(yard, group) == before
    newest = await yard.start(file(), group=group)
    await until(yard, newest, queued(6))
    assert running(await yard.view(first))
    await first.cancel()
    await ended(first)
    await asyncio.gather(*(each.result() for each in [*waiting, newest]))
    await check(yard, [first, *waiting, newest], [2, 3, 4, 5, 6, 7, 8])


@pytest.mark.promise(9)
async def test_a_line_that_is_terminated_while_nobody_waits_still_knows_who_runs(yard: Yard) -> None:
    group = f"{new_root()}/branch/main"
    first = await yard.start(file("sleep 600"), group=group)
    await until(yard, first, running)
    await yard.client.get_workflow_handle(root_line(group)).terminate("by a test")
    second = await yard.start(file(), group=group)
    waiting = await until(yard, second, queued())
    assert (waiting.counter, running(await yard.view(first))) == (2, True)
    await first.cancel()
    await second.result()
    await check(yard, [first, second], [1, 2])


async def test_a_line_continues_as_new_with_runs_that_wait(
    client: Client, store: PosixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.group.HISTORY_EVENTS", 40)
    async with working(client, store, [MemoryExecutor()]) as yard:
        group = f"{new_root()}/branch/main"
        handles = await asyncio.gather(*(yard.start(file(), group=group) for _ in range(12)))
        await asyncio.gather(*(handle.result() for handle in handles))
        await check(yard, handles, list(range(1, 13)))
        executions = [e async for e in client.list_workflows(f"WorkflowId = '{root_line(group)}'")]
        while len(executions) < 2:  # visibility comes a moment later
            await asyncio.sleep(0.05)
            executions = [e async for e in client.list_workflows(f"WorkflowId = '{root_line(group)}'")]


async def executions(client: Client, group: str) -> list[Sequence[HistoryEvent]]:
    """What has happened in each execution of this line, up to the one that is open."""
    found: list[Sequence[HistoryEvent]] = []
    run_id = (await client.get_workflow_handle(root_line(group)).describe()).run_id
    while run_id:
        history = await client.get_workflow_handle(root_line(group), run_id=run_id).fetch_history()
        found.insert(0, history.events)
        run_id = history.events[0].workflow_execution_started_event_attributes.continued_execution_run_id
    return found


async def memo_at_start(client: Client, events: Sequence[HistoryEvent]) -> LineState:
    """What `describe` has of a line until its first task is done, and for ever if it is terminated before."""
    memo = events[0].workflow_execution_started_event_attributes.memo.fields
    assert LINE_MEMO in memo, "it would forget all"
    [kept] = await client.data_converter.decode([memo[LINE_MEMO]], [LineState])
    assert isinstance(kept, LineState)
    return kept


def spoken_to(events: Sequence[HistoryEvent]) -> list[str]:
    said = [event.signal_external_workflow_execution_initiated_event_attributes for event in events]
    return [each.workflow_execution.workflow_id for each in said if each.signal_name]


@pytest.mark.promise(9)
async def test_a_line_that_continues_as_new_keeps_its_memo_and_what_it_has_said(
    client: Client, store: PosixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To tell all anew may fill the next execution at once, so that it begins again and again."""
    monkeypatch.setattr("activities.group.HISTORY_EVENTS", 40)
    async with working(client, store, [MemoryExecutor()]) as yard:
        group = f"{new_root()}/branch/main"
        handles = [await yard.start(file("sleep 600"), group=group)]
        await until(yard, handles[0], running)
        for position in range(1, 9):
            handles.append(await yard.start(file(), group=group))
            await until(yard, handles[-1], queued(position))
        histories = await executions(client, group)
        assert len(histories) > 1
        known = [await memo_at_start(client, events) for events in histories[1:]]
        ids = [handle.id for handle in handles]
        for state in known:
            assert [member.entry.run_id for member in state.members] == ids[: state.counter]
            assert state.counter > 1
        assert Counter(name for events in histories for name in spoken_to(events)) == Counter(ids)
        await handles[0].cancel()
        await asyncio.gather(*(handle.result() for handle in handles[1:]))
        await check(yard, handles, list(range(1, 10)))


@pytest.mark.promise(9)
async def test_a_line_that_is_started_again_has_its_memo_from_the_start(yard: Yard) -> None:
    """It may be terminated once more before it has written its own."""
    group = f"{new_root()}/branch/main"
    handles = [await yard.start(file("sleep 600"), group=group)]
    await until(yard, handles[0], running)
    handles.append(await yard.start(file(), group=group))
    await until(yard, handles[1], queued())
    line_handle = yard.client.get_workflow_handle(root_line(group))
    execution = (await line_handle.describe()).run_id
    await line_handle.terminate("by a test")
    while (await line_handle.describe()).run_id == execution:
        await asyncio.sleep(0.05)
    state = await memo_at_start(yard.client, (await executions(yard.client, group))[-1])
    assert [(each.entry.run_id, each.running) for each in state.members] == [
        (handles[0].id, True),
        (handles[1].id, False),
    ]
    await handles[0].cancel()
    await handles[1].result()


@pytest.mark.promise(9)
async def test_an_id_that_is_used_again_while_its_earlier_run_is_in_the_line(yard: Yard) -> None:
    """The line took the new run for the old one, saw that one's end, and let the next in beside it."""
    group = f"{new_root()}/branch/main"
    first = await yard.start(file("sleep 600"), group=group)
    await until(yard, first, running)
    dead = await yard.start(file(), group=group)
    await until(yard, dead, queued(1))
    await dead.terminate()  # a line hears of that only when it speaks to it
    again = await yard.client.start_workflow(
        WORKFLOW,
        {"file": file("sleep 600"), "executor": yard.executor.name, "group": group},
        id=dead.id,
        task_queue=RUNS_QUEUE,
        result_type=RunResult,
    )
    async with asyncio.timeout(60):  # it was told nothing
        await until(yard, again, lambda view: view.counter == 3)
    last = await yard.start(file(), group=group)
    await until(yard, last, queued(2))
    await first.cancel()
    await until(yard, again, running)
    await until(yard, last, queued(1))  # the line tells some seconds after it has let the other in
    assert [run.run_id for run in (await line(yard, group)).running] == [again.id]
    await again.cancel()
    assert (await last.result()).result == "success"
    await check(yard, [first, again, last], [1, 3, 4])


@pytest.mark.promise(9)
async def test_runs_that_wait_survive_that_no_worker_is_there(client: Client, store: PosixStore) -> None:
    group, executor = f"{new_root()}/branch/main", MemoryExecutor()
    async with working(client, store, [executor]) as yard:
        first = await yard.start(file("sleep 1"), group=group)
        await until(yard, first, running)
        waiting = [await yard.start(file(), group=group) for _ in range(3)]
        await until(yard, waiting[-1], lambda view: view.position > 0)
    async with working(client, store, [executor]) as yard:
        await asyncio.gather(*(each.result() for each in [first, *waiting]))
        await check(yard, [first, *waiting], [1, 2, 3, 4])


@pytest.mark.promise(9)
async def test_a_worker_that_is_killed_while_ten_wait_changes_nothing(
    client: Client, work: Work, tmp_path: Path
) -> None:
    worker = await work()
    yard = Yard(client, PosixStore(tmp_path / "store"), open_executor("local", Settings(state=tmp_path)))
    group, go = f"{new_root()}/branch/main", tmp_path / "go"
    first = await yard.start(file(f"while [ ! -e {go} ]; do sleep 0.05; done"), group=group)
    await until(yard, first, running)
    waiting = [
        await yard.start(file(f"echo $RUNYARD_RUN_COUNTER >> {tmp_path}/ran"), group=group) for _ in range(10)
    ]
    await asyncio.gather(*(until(yard, each, lambda view: view.position > 0) for each in waiting))
    worker.kill()
    await worker.wait()
    worker = await work()
    go.touch()
    await asyncio.gather(*(each.result() for each in [first, *waiting]))
    await check(yard, [first, *waiting], list(range(1, 12)))
    assert (tmp_path / "ran").read_text().split() == [str(number) for number in range(2, 12)]
