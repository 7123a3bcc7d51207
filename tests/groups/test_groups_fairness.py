"""Tasks of different owners get room in turn, through the whole of the engine."""

import asyncio

from temporalio.client import Client
from yard import working

from runyard.executors.memory import MemoryExecutor
from runyard.spec.run import RunView
from runyard.store.posix import PosixStore


def wide(tasks: int) -> dict[str, object]:
    runtime = {"containers": [{"image": "none"}]}
    made = [{"name": f"t{n}", "runtime": runtime, "steps": [{"run": "sleep 0.5"}]} for n in range(tasks)]
    return {"runs": [{"name": "wide", "tasks": made}]}


async def test_ten_tasks_are_done_before_many_of_another_owner_are_a_quarter_done(
    client: Client, store: PosixStore
) -> None:
    many = 200
    async with working(client, store, [MemoryExecutor(slots=2)]) as yard:
        big = await yard.start(wide(many), owner="ann")
        while (await yard.view(big)).counts.get("success", 0) < 1:
            await asyncio.sleep(0.05)
        small = await yard.start(wide(10), owner="bob")
        assert (await small.result()).counts == {"success": 10}
        view: RunView = await yard.view(big)
        assert view.counts.get("success", 0) < many / 4
        await big.cancel()
