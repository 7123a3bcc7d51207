"""An executor that no worker serves: whoever looks at the run is told, one that is served costs no question."""

import asyncio
import shlex
import sys
from pathlib import Path

import pytest
from temporalio.client import Client
from yard import Yard

from runyard.client import Run, Runyard, served
from runyard.client.served import count_pollers
from runyard.settings import Settings
from runyard.spec.run import RunView

TOLD = "no worker serves the queue runyard-nosuch"


def file(*scripts: str) -> dict[str, object]:
    runtime = {"containers": [{"image": "busybox"}]}
    tasks = [{"name": f"t{n}", "runtime": runtime, "steps": [{"run": each}]} for n, each in enumerate(scripts)]
    return {"runs": [{"name": "build", "tasks": tasks}]}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path, store_folder=tmp_path / "store", executor="memory")


@pytest.fixture
def runs(client: Client, yard: Yard, settings: Settings) -> Runyard:
    return Runyard(client, yard.store, settings=settings)


async def told(run: Run) -> RunView:
    async with asyncio.timeout(60):
        async for view in run.watch(0.1):
            if TOLD in view.cause:
                return view
    raise AssertionError("the run has ended, and nobody was told")


async def test_a_run_of_an_executor_that_nobody_serves_says_so(runs: Runyard) -> None:
    run = await runs.start(file("echo", "echo"), executor="nosuch")
    view = await told(run)
    assert "`runyard worker --executor nosuch`" in view.cause
    assert {task.message for task in view.tasks} == {"waits for a worker of the queue runyard-nosuch"}
    assert TOLD in (await run.describe()).cause
    await run.cancel()
    await asyncio.sleep(served.PATIENCE_S)  # what has just ended is of no concern
    view = await told(run)  # its tasks have ended, the run has not: the pods that it may have are not seen to
    assert (view.phase, view.result, view.ended_at) == ("running", "unknown", None)
    assert f"temporal workflow terminate --workflow-id {run.id}" in view.cause
    await runs.client.get_workflow_handle(run.id).terminate()


async def test_the_command_line_says_so(runs: Runyard, client: Client, settings: Settings, tmp_path: Path) -> None:
    run = await runs.start(file("echo"), executor="nosuch")
    await told(run)
    address = client.service_client.config.target_host
    words = ["run", "watch", run.id, "--state", str(tmp_path), "--address", address]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "runyard", *words, stdout=asyncio.subprocess.PIPE, env={"PATH": "/usr/bin:/bin"}
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            lines = [(await process.stdout.readline()).decode()]
            while lines[-1] and TOLD not in lines[-1]:
                lines.append((await process.stdout.readline()).decode())
        assert TOLD in lines[-1], shlex.join(lines)
    finally:
        process.kill()
        await process.wait()
        await client.get_workflow_handle(run.id).terminate()


async def test_the_worker_comes_and_nothing_more_is_said(runs: Runyard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory executor's queue has a worker: a task that waits there for long waits for room."""
    monkeypatch.setattr(served, "PATIENCE_S", 0.0)
    run = await runs.start(file("sleep 1"), executor="memory")
    causes = {view.cause async for view in run.watch(0.05)}
    assert causes == {""}


async def test_a_healthy_run_is_never_asked_about(runs: Runyard, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> int:
        raise AssertionError("the server was asked who serves the queue")

    monkeypatch.setattr(served, "count_pollers", refuse)
    run = await runs.start(file("sleep 1", "echo"), executor="memory")
    assert [view async for view in run.watch(0.05)][-1].result == "success"


async def test_a_server_that_does_not_say_is_no_reason_to_claim_anything(runs: Runyard) -> None:
    assert await count_pollers(runs.client, "runyard-memory") > 0
    nowhere = Client(runs.client.service_client, namespace="nowhere")
    run = await runs.start(file("echo"), executor="nosuch")
    view = await told(run)
    assert await served.QueueWatch().tell(nowhere, view) == view
    await runs.client.get_workflow_handle(run.id).terminate()
