"""Whoever dies, the line goes on: no number twice, none left out, never two at a time."""

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest
from group_scene import Handle, file, line, new_root, queued, running, span, until
from temporalio.client import Client, WorkflowFailureError
from yard import Work, Yard, working

from runyard.executors.memory import MemoryExecutor
from runyard.executors.open import open_executor
from runyard.settings import Settings
from runyard.spec.group import root_line
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
