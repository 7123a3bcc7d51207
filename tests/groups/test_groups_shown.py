"""A run that waits is seen to wait: in the list, in its line, in the Temporal UI and on the command line."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from group_scene import file, new_root, queued, running, until
from temporalio.api.sdk.v1 import WorkflowMetadata
from yard import Yard

from runyard.client import Runyard
from runyard.errors import InvalidRequest, NotFound
from runyard.records.logs import load_seal
from runyard.records.runs import read_plan
from runyard.settings import Settings


async def command(yard: Yard, state: Path, *words: str) -> tuple[int | None, str]:
    address = yard.client.service_client.config.target_host
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "runyard", *words, "--address", address, "--state", str(state)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "RUNYARD_SETTINGS": str(state / "none.toml")},
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


async def test_who_waits_and_who_runs(yard: Yard, tmp_path: Path) -> None:
    runs = Runyard(yard.client, yard.store, settings=Settings(state=tmp_path, executor="memory"))
    group = f"{new_root()}/branch/main"
    first = await runs.start(file("sleep 600"), group=group, owner="ann")
    await until(yard, yard.client.get_workflow_handle(first.id), running)
    second = await runs.start(file(), group=group)
    await until(yard, yard.client.get_workflow_handle(second.id), queued())

    view = await second.describe()
    assert (view.phase, view.counter, view.position, view.result) == ("queued", 2, 1, "unknown")
    assert view.cause == f"number 1 in line: waits for earlier runs of {group} ({first.id} running)"

    seen = await runs.line(group)
    assert [(run.run_id, run.counter) for run in seen.running] == [(first.id, 1)]
    assert [(run.run_id, run.counter) for run in seen.waiting] == [(second.id, 2)]
    while (await runs.list(group=group))[0].counter != 2:  # visibility comes a moment later
        await asyncio.sleep(0.05)
    while seen not in await runs.lines(limit=1_000):
        await asyncio.sleep(0.05)
    assert [(each.id, each.phase, each.counter) for each in await runs.list(group=group)] == [
        (second.id, "queued", 2),
        (first.id, "running", 1),
    ]

    for workflow_id, words in ((second.id, "Waits for its turn"), (seen.id, f"- 2 `{second.id}` of `{group}`")):
        handle = yard.client.get_workflow_handle(workflow_id)
        shown = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
        assert words in shown.current_details

    code, said = await command(yard, tmp_path, "group", "show", group)
    assert code == 0, said
    assert f"1 running, 1 waiting, last number 2\n  running      1  {first.id}  {group}" in said
    code, said = await command(yard, tmp_path, "group", "list")
    assert (code, f"{group.rpartition('/branch')[0]}  1 running" in said) == (0, True), said
    code, said = await command(yard, tmp_path, "run", "list", "--group", group)
    assert f"{second.id} #2" in said

    await asyncio.gather(first.cancel(), second.cancel())
    assert (await second.result()).result == "stopped"


async def test_a_group_that_nobody_knows(yard: Yard, tmp_path: Path) -> None:
    runs = Runyard(yard.client, yard.store, settings=Settings(state=tmp_path, executor="memory"))
    with pytest.raises(NotFound):
        await runs.line(new_root())
    with pytest.raises(InvalidRequest):
        await runs.line("main")
    with pytest.raises(InvalidRequest):
        await runs.start(file(), group="main")
    with pytest.raises(InvalidRequest):
        await runs.start(file(), group="/project/web", group_policy="sometimes")


async def test_tasks_know_the_number_of_their_run(yard: Yard) -> None:
    root = new_root()
    for number in (1, 2):
        handle = await yard.start(file("output N=$RUNYARD_RUN_COUNTER"), group=f"{root}/pr/{number}")
        await handle.result()
        task = (await read_plan(yard.store, handle.id)).tasks[0]
        sealed = await load_seal(yard.store, task.id, 1)
        assert sealed is not None
        assert sealed.outputs == {"N": str(number)}
