"""Tasks of different owners get room in turn, through the whole of the engine."""

import asyncio

from temporalio.client import Client
from yard import working

from runyard.executors.memory import MemoryExecutor
from runyard.store.posix import PosixStore


def wide(tasks: int) -> dict[str, object]:
    runtime = {"containers": [{"image": "none"}]}
    made = [{"name": f"t{n}", "runtime": runtime, "steps": [{"run": "sleep 0.5"}]} for n in range(tasks)]
    return {"runs": [{"name": "wide", "tasks": made}]}


async def test_ten_tasks_are_done_before_many_of_another_owner_are_a_quarter_done(
    client: Client, store: PosixStore
) -> None:
    """Counted from when the ten are asked for: how long their run takes to begin is not what this is about."""
    many, few = 160, 10
    async with working(client, store, [MemoryExecutor(slots=2)]) as yard:
        big = await yard.start(wide(many), owner="ann")
        while (await yard.view(big)).counts.get("success", 0) < 1:
            await asyncio.sleep(0.1)
        small = await yard.start(wide(few), owner="bob")
        counts = (await yard.view(small)).counts
        while "waiting" in counts or not counts:
            await asyncio.sleep(0.1)
            counts = (await yard.view(small)).counts
        before = (await yard.view(big)).counts["success"]
        assert (await small.result()).counts == {"success": few}
        after = (await yard.view(big)).counts["success"]
        assert after - before < many / 4
        await big.cancel()
