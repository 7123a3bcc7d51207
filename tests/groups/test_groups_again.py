"""Lines that begin anew, ids that are used again, and many turns at once."""

import asyncio
from pathlib import Path

import pytest
from gate import Gate
from group_scene import file, line, new_root, queued, running, until
from temporalio.client import Client
from yard import working

from runyard.executors.memory import MemoryExecutor
from runyard.spec.group import Entry, LineState, Member, root_line
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult
from runyard.store.posix import PosixStore
from workflows.group import GroupWorkflow
from workflows.line import Line


async def test_news_that_are_due_cross_an_execution_of_the_line(
    client: Client, store: PosixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that wait hear some seconds later that they came nearer: a line that began anew meanwhile forgot."""
    monkeypatch.setattr("activities.group.HISTORY_EVENTS", 6)
    async with working(client, store, [MemoryExecutor()]) as yard:
        group = f"{new_root()}/branch/main"
        first = await yard.start(file("sleep 600"), group=group)
        await until(yard, first, running)
        waiting = []
        for position in range(1, 4):
            waiting.append(await yard.start(file(), group=group))
            await until(yard, waiting[-1], queued(position))
        handle = client.get_workflow_handle(root_line(group))
        while (await handle.describe()).history_length != 6:  # it has begun anew, and will with the next event
            await asyncio.sleep(0.05)
        await waiting[0].cancel()
        async with asyncio.timeout(60):
            for position, each in enumerate(waiting[1:], 1):
                await until(yard, each, queued(position))
        await first.cancel()
        await asyncio.gather(*(each.result() for each in waiting[1:]))


async def test_an_earlier_runs_turn_is_not_that_of_the_next_with_its_id(client: Client, tmp_path: Path) -> None:
    """It comes while the new one is still prepared, and let that one run beside another."""
    dead_id = new_root().rpartition("/")[2]
    gate = Gate(tmp_path, f"/{dead_id}/plan")
    gate.open.set()
    group = f"{new_root()}/branch/main"
    request = {"executor": "memory", "group": group}

    async with working(client, gate, [MemoryExecutor()]) as yard:
        first = await yard.start(file("sleep 600"), group=group)
        await until(yard, first, running)
        dead, again = None, None
        for _ in range(2):
            again = await client.start_workflow(
                WORKFLOW, {**request, "file": file()}, id=dead_id, task_queue=RUNS_QUEUE, result_type=RunResult
            )
            if dead is None:
                dead = again
                await until(yard, dead, queued(1))
                await dead.terminate()
                gate.open.clear()
                gate.reached.clear()
        assert again is not None
        await gate.reached.wait()
        await first.cancel()
        last = await yard.start(file("sleep 600"), group=group)
        await until(yard, last, running)
        gate.open.set()
        async with asyncio.timeout(60):
            await until(yard, again, queued(1))
        assert [run.run_id for run in (await line(yard, group)).running] == [last.id]
        await last.cancel()
        assert (await again.result()).result == "success"


def test_all_whose_turn_it_is_are_found_by_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap that is lifted lets in hundreds, of as many groups: a look for each took longer than a task may."""
    looks = 0
    real = Line._ready

    def counted(self: Line) -> list[Member]:
        nonlocal looks
        looks += 1
        assert looks <= 2
        return real(self)

    monkeypatch.setattr(Line, "_ready", counted)
    entries = [Entry(line="l", run_id=f"{n}", execution_id=f"{n}", group=f"/p/w/b/{n}") for n in range(1_000)]
    made = GroupWorkflow(LineState(members=[Member(entry=each, place=n) for n, each in enumerate(entries, 1)]))
    for quiet in ("_say", "_spawn", "_watch"):
        monkeypatch.setattr(made, quiet, lambda *_: None)
    made._decide()
    assert len(made.line.running()) == 1_000
