"""What an execution held goes when it ends, not when the garbage collector comes by."""

import asyncio
import contextlib
import gc
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from temporalio.bridge.proto.workflow_activation import RemoveFromCache
from temporalio.client import Client, WorkflowHistory
from temporalio.worker import Replayer, WorkflowRunner
from temporalio.worker._workflow_instance import _WorkflowInstanceImpl
from yard import SANDBOX

from runyard.executors.memory import MemoryExecutor
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult
from runyard.store.base import ObjectStore
from runyard.temporal import data_converter
from workers.serve import RUNNER, build_workers
from workflows.board import Board
from workflows.group import GroupWorkflow
from workflows.run import RunWorkflow

HISTORIES = Path(__file__).parents[1] / "replay" / "histories"


def file(step: str) -> dict[str, object]:
    containers = {"containers": [{"image": "none"}]}
    tasks = [{"name": name, "runtime": containers, "steps": [{"run": step}]} for name in "abc"]
    return {"runs": [{"name": "run", "tasks": tasks}]}


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def boards() -> int:
    return sum(isinstance(each, Board) for each in gc.get_objects())


@contextlib.asynccontextmanager
async def at_work(client: Client, store: ObjectStore, runner: WorkflowRunner = RUNNER) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for worker in build_workers(client, store, [MemoryExecutor()], runner=runner):
            await stack.enter_async_context(worker)
        yield


async def run_of_three(client: Client) -> None:
    result = await client.execute_workflow(
        WORKFLOW,
        {"file": file("true"), "executor": "memory"},
        id=f"test-{uuid.uuid4().hex}",
        task_queue=RUNS_QUEUE,
        result_type=RunResult,
    )
    assert result.result == "success"


async def gone(before: int) -> None:
    async with asyncio.timeout(30):
        while boards() > before:
            await asyncio.sleep(0.05)


@pytest.mark.usefixtures("uncollected")
async def test_an_execution_that_has_ended_needs_no_collector(client: Client, store: ObjectStore) -> None:
    before = boards()
    async with at_work(client, store):
        await run_of_three(client)
        await gone(before)


@pytest.mark.parametrize("seconds", [3, 5])  # the SDK asks for it again when it is over, and while it is not
@pytest.mark.parametrize("runner", [RUNNER, SANDBOX], ids=["ours", "in the sandbox"])
async def test_an_execution_that_leaves_slowly_leaves_once(
    client: Client, store: ObjectStore, runner: WorkflowRunner, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 2 s the SDK asks for it again, in another thread; a worker does not end before all have left."""
    leave, times = _WorkflowInstanceImpl._apply_remove_from_cache, 0

    def slowly(self: _WorkflowInstanceImpl, job: RemoveFromCache) -> None:
        nonlocal times
        times += 1
        leave(self, job)
        time.sleep(seconds)

    monkeypatch.setattr(_WorkflowInstanceImpl, "_apply_remove_from_cache", slowly)
    async with asyncio.timeout(60):
        async with at_work(client, store, runner):
            await run_of_three(client)
    assert times == 1


@pytest.mark.parametrize("name", ["approval", "hold", "waits", "continued-1", "line-1"])
async def test_an_execution_in_the_middle_goes_without_a_word(
    name: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its tasks are ended with errors that nobody waits for, which its instance then keeps to itself."""
    history = json.loads((HISTORIES / f"{name}.json").read_text())
    ends = [n for n, event in enumerate(history["events"]) if event["eventType"].endswith("TASK_COMPLETED")]
    history["events"] = history["events"][: ends[len(ends) // 2] + 1]  # some activities are under way
    replayer = Replayer(
        workflows=[RunWorkflow, GroupWorkflow], workflow_runner=RUNNER, data_converter=data_converter()
    )
    await replayer.replay_workflow(WorkflowHistory.from_json(name, json.dumps(history)))
    gc.collect()
    assert "Exception ignored" not in capfd.readouterr().err
    assert [record.message for record in caplog.records if record.name.startswith(("asyncio", "temporalio"))] == []
