"""What an execution held goes when it ends, not when the garbage collector comes by."""

import asyncio
import gc
import uuid

from temporalio.client import Client

from runyard.executors.memory import MemoryExecutor
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult
from runyard.store.base import ObjectStore
from workers.serve import RUNNER, build_workers
from workflows.board import Board

FILE = {
    "runs": [
        {
            "name": "run",
            "tasks": [
                {"name": name, "runtime": {"containers": [{"image": "none"}]}, "steps": [{"run": "true"}]}
                for name in "abc"
            ],
        }
    ]
}


def boards() -> int:
    return sum(isinstance(each, Board) for each in gc.get_objects())


async def test_an_execution_that_has_ended_needs_no_collector(client: Client, store: ObjectStore) -> None:
    workers = build_workers(client, store, [MemoryExecutor()], runner=RUNNER)
    gc.collect()
    before = boards()
    gc.disable()
    try:
        async with workers[0], workers[1]:
            result = await client.execute_workflow(
                WORKFLOW,
                {"file": FILE, "executor": "memory"},
                id=f"test-{uuid.uuid4().hex}",
                task_queue=RUNS_QUEUE,
                result_type=RunResult,
            )
            assert result.result == "success"
            async with asyncio.timeout(30):
                while boards() > before:
                    await asyncio.sleep(0.05)
    finally:
        gc.enable()
