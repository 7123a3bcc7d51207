"""Caps over runs, of a project and of an executor: by priority, then fairly by owner."""

import asyncio

from group_scene import file, line, new_root, queued, running, until
from temporalio.client import Client
from yard import working

from runyard.executors.memory import MemoryExecutor
from runyard.spec.group import Caps, LineView, executor_line
from runyard.store.posix import PosixStore


async def test_a_project_has_so_many_runs_at_a_time(client: Client, store: PosixStore) -> None:
    async with working(client, store, [MemoryExecutor()], caps=Caps(project_runs=2)) as yard:
        root = new_root()
        open_ = [await yard.start(file("sleep 600"), group=f"{root}/branch/b{n}") for n in range(2)]
        await asyncio.gather(*(until(yard, handle, running) for handle in open_))
        third = await yard.start(file(), group=f"{root}/branch/b3")
        waiting = await until(yard, third, queued())
        assert "2 of 2 runs at a time" in waiting.cause
        other = await yard.start(file(), group=f"{new_root()}/branch/b3")
        assert (await other.result()).result == "success"
        await open_[0].cancel()
        assert (await third.result()).result == "success"
        await open_[1].cancel()


async def test_an_executor_has_so_many_runs_at_a_time(client: Client, store: PosixStore) -> None:
    """Those without a group too. The first to go is the one that is urgent, then owners take turns."""
    caps = Caps(executor_runs={"memory": 1})
    async with working(client, store, [MemoryExecutor()], caps=caps) as yard:
        first = await yard.start(file("sleep 600"), owner="ann")
        await until(yard, first, running)
        handles = {}
        for name, owner, priority in [("a1", "ann", 3), ("late", "ann", 5), ("a2", "ann", 3), ("now", "bob", 1)]:
            handles[name] = await yard.start(file(), owner=owner, priority=priority)
            await until(yard, handles[name], lambda view: view.position > 0)
        handle = yard.client.get_workflow_handle(executor_line("memory"))
        seen = await handle.query("describe", result_type=LineView)
        names = {each.id: name for name, each in handles.items()}
        assert [names[run.run_id] for run in seen.waiting] == ["now", "a1", "a2", "late"]
        await first.cancel()
        await asyncio.gather(*(each.result() for each in handles.values()))


async def test_a_run_waits_for_its_group_first_and_then_for_its_executor(
    client: Client, store: PosixStore
) -> None:
    caps = Caps(executor_runs={"memory": 1})
    async with working(client, store, [MemoryExecutor()], caps=caps) as yard:
        root = new_root()
        busy = await yard.start(file("sleep 600"))
        await until(yard, busy, running)
        one, two = [await yard.start(file(), group=f"{root}/branch/main") for _ in range(2)]
        views = [await until(yard, each, lambda view: view.position > 0) for each in (one, two)]
        assert sorted(view.counter for view in views) == [1, 2]
        assert len((await line(yard, root)).running) == 1  # it has its group's turn while it waits for room
        await busy.cancel()
        await asyncio.gather(one.result(), two.result())
