"""A store that is away while a task runs: the UI's pending activity says so, and no longer than it is true."""

import asyncio
import json
from pathlib import Path

import pytest
from minio_server import MinioServer
from temporalio.client import Client, WorkflowHandle
from yard import working

from runyard.executors.open import open_executor
from runyard.settings import Settings
from runyard.spec.run import RunResult
from runyard.store.open import open_store


@pytest.mark.timeout(170)
async def test_what_people_see_of_a_task_whose_store_is_away(
    client: Client, own_minio: MinioServer, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    task = {
        "name": "a",
        "runtime": {"containers": [{"image": "busybox"}]},
        "steps": [{"run": f"touch {gate}.begun; while ! [ -e {gate} ]; do sleep 0.1; done; echo done"}],
    }
    store = open_store(own_minio.settings(state=tmp_path))
    executor = open_executor("local", Settings(state=tmp_path))
    async with working(client, store, [executor]) as yard:
        handle = await yard.start({"runs": [{"name": "r", "tasks": [task]}]})
        async with asyncio.timeout(60):
            while not Path(f"{gate}.begun").exists():
                await asyncio.sleep(0.1)
        assert "store" not in await details(handle)
        own_minio.kill()
        async with asyncio.timeout(60):
            while "store" not in (seen := await details(handle)):
                await asyncio.sleep(0.2)
        assert seen["state"] == "running"
        assert "the store has not answered this worker since" in seen["store"]
        assert "steps that write wait until it is back" in seen["store"]
        own_minio.start()
        async with asyncio.timeout(60):
            while "store" in await details(handle):
                await asyncio.sleep(0.2)
        gate.touch()
        assert (await handle.result()).result == "success"
    await executor.close()
    await store.close()


async def details(handle: WorkflowHandle[object, RunResult]) -> dict[str, str]:
    """What the Temporal UI shows of the pending `fetch_task`."""
    for pending in (await handle.describe()).raw_description.pending_activities:
        if pending.activity_type.name == "fetch_task" and pending.heartbeat_details.payloads:
            found: dict[str, str] = json.loads(pending.heartbeat_details.payloads[0].data)
            return found
    return {}
