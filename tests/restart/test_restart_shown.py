"""What people see of a restart: the command line, the details in the Temporal UI, requests of other programs."""

import asyncio
import html
import json
import os
import re
import subprocess
import sys
import urllib.parse
import urllib.request
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from restarts import file, tasks_of
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment
from yard import Yard, temporal_program

from runyard.cli import render
from runyard.cli.render import Frame, plain
from runyard.cli.restart import said
from runyard.client import Run, Runyard
from runyard.client.planned import Planned
from runyard.records.runs import write_plan
from runyard.settings import Settings
from runyard.spec import graph_task
from runyard.spec.plan import Container, Kept, Plan, RunPlan, TaskPlan
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult, RunView, TaskView
from runyard.store.base import ObjectStore
from runyard.temporal import Converter
from workflows.details import MAX_BYTES, current_details

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def task(name: str, *steps: str, **fields: object) -> dict[str, object]:
    lines = [{"run": step} for step in steps]
    return {"name": name, "runtime": {"containers": [{"image": "none"}]}, "steps": lines, **fields}


TASKS = (task("make", "echo made by hand"), task("test", "exit 1", depends=["make"]), task("lint", "true"))
MENDED = (TASKS[0], task("test", "true", depends=["make"]), TASKS[2])


@pytest.fixture
def fast(client: Client, store: ObjectStore, yard: Yard, tmp_path: Path) -> Runyard:
    """A client and a worker with the memory executor."""
    return Runyard(client, store, settings=Settings(state=tmp_path, executor="memory"))


async def failed(fast: Runyard) -> Run:
    run = await fast.start(file(*TASKS))
    assert (await run.result()).result == "failed"
    return run


# the command line


@pytest.fixture
def command(client: Client, tmp_path: Path) -> dict[str, str]:
    """The environment of a `runyard` that finds this test's server and store."""
    ours = {
        "TEMPORAL_ADDRESS": client.service_client.config.target_host,
        "RUNYARD_STATE": str(tmp_path),
        "RUNYARD_STORE_FOLDER": str(tmp_path / "store"),
        "RUNYARD_SETTINGS": str(tmp_path / "none.toml"),
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")} | ours


async def runyard(command: dict[str, str], *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "runyard", *words],
        env=command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done


async def test_the_command_says_what_is_kept_and_why_the_rest_runs_again(
    fast: Runyard, command: dict[str, str], tmp_path: Path
) -> None:
    run = await failed(fast)
    mended = tmp_path / "mended.json"
    mended.write_text(json.dumps(file(*MENDED)))
    done = await runyard(command, "run", "restart", run.id, "--file", str(mended))
    again = done.stdout.strip()
    assert done.stderr.splitlines()[:2] == [f"2 tasks kept from {run.id}, 1 runs again", "  test: it failed"]
    assert (await fast.run(again).result()).result == "success"
    assert (await runyard(command, "run", "logs", again, "make")).stdout == "made by hand\n"
    shown = (await runyard(command, "run", "show", again)).stdout
    assert re.search(rf"✔ make +kept from {run.id}", shown)
    assert f"(kept: 2 tasks from {run.id})" in shown
    view = json.loads((await runyard(command, "run", "show", again, "-o", "json")).stdout)
    assert (view["restart_of"], view["kept"]) == (run.id, {run.id: 2})

    asked = ("run", "restart", again, "--tasks", "make,lint", "--watch", "--id", f"{again}-2")
    watched = (await runyard(command, *asked)).stdout
    assert "kept: " not in watched
    assert "make started" in watched
    found = await runyard(command, "run", "restart", again, "--tasks", "lint", "-o", "json")
    assert json.loads(found.stdout)["kept"] == {"make": run.id, "test": again}
    assert json.loads(found.stdout)["again"] == {"lint": "it was asked for"}
    anew = await runyard(command, "run", "restart", again)
    assert anew.stderr.splitlines()[0] == "0 tasks kept, 3 run again"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--tasks", "tset"), 2, "has no task `tset`"),
        (("--failed", "--from-start"), 2, "not both"),
        (("--file", "nowhere.yml"), 4, "no run file nowhere.yml"),
        (("--env", "1=2"), 2, "cannot be the name of a variable"),
    ],
)
async def test_what_the_command_refuses(
    fast: Runyard, command: dict[str, str], words: tuple[str, ...], code: int, message: str
) -> None:
    run = await failed(fast)
    done = await runyard(command, "run", "restart", run.id, *words, code=code)
    assert message in done.stderr
    assert done.stdout == ""


def test_a_long_list_is_cut_and_a_start_needs_no_reasons() -> None:
    many = {f"t{n}": Planned(f"{n}", [], "", "it failed") for n in range(30)}
    lines = said({"a": Planned("x", [], "r-1"), "b": Planned("y", [], "r-0"), **many})
    assert lines[0] == "2 tasks kept from r-1, r-0, 30 run again"
    assert lines[1] == "  t0: it failed"
    assert (len(lines), lines[-1]) == (22, "  and 10 more")
    assert said({f"t{n}": Planned("x", [], "", "from the start") for n in range(3)}) == [
        "0 tasks kept, 3 run again"
    ]
    assert "no worker" in said({})[0]


def test_kept_tasks_are_one_event_and_rows_of_the_tree() -> None:
    kept = [TaskView(name=f"k{n}", status="success", id="x", attempt=1, kept_from="r-1") for n in range(2)]
    waits = TaskView(name="w", status="waiting", again="it failed")
    view = RunView(id="r-2", phase="running", created_at=NOON, tasks=[*kept, waits], kept={"r-1": 2})
    found = render.events(None, view, now=NOON)
    assert [plain(event.line) for event in found] == ["kept: 2 tasks from r-1"]
    assert render.events(view, view, now=NOON) == []
    rows = [plain(line).split() for line in render.tree(view, Frame(now=NOON))]
    assert rows[1:] == [
        ["✔", "k0", "kept", "from", "r-1"],
        ["✔", "k1", "kept", "from", "r-1"],
        ["◷", "w", "it", "failed"],
    ]


# the Temporal UI


async def test_the_details_link_to_the_runs_that_made_what_is_kept(server: WorkflowEnvironment) -> None:
    view = RunView(
        id="r-3", restart_of="r-2 |`x`", kept={"r-2 |`x`": 3, "r-1": 1}, counts={"success": 4, "running": 1}
    )
    text = current_details(view, namespace="team a")
    host, _, port = server.client.service_client.config.target_host.rpartition(":")
    address = f"http://{host}:{int(port) + 1000}/render?{urllib.parse.urlencode({'content': text})}"
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(address, timeout=20).read().decode())
    links = re.findall(r'<a href="([^"]+)"[^>]*>(.*?)</a>', page)
    names = [html.unescape(re.sub("<[^>]+>", "", words)) for _, words in links]
    assert names == ["r-2 |`x`", "r-2 |`x`", "r-1"]
    assert [target for target, _ in links] == [
        *["namespaces/team%20a/workflows/r-2%20%7C%60x%60"] * 2,
        "namespaces/team%20a/workflows/r-1",
    ]
    words = html.unescape(re.sub("<[^>]+>", "", page.partition("<main>")[2]))
    assert "Restart of r-2 |`x`: 3 kept from r-2 |`x`, 1 kept from r-1" in words


def test_the_details_stay_small_whatever_is_kept() -> None:
    kept = {f"{'ü' * 90}{n}": 1 for n in range(50)}
    text = current_details(RunView(id="r", restart_of="x" * 200, kept=kept, counts={"success": 50}))
    assert len(text.encode()) <= MAX_BYTES
    assert "others from 47 more runs" in text
    assert "nothing kept" in current_details(RunView(id="r", restart_of="x"))


async def test_a_run_says_what_it_restarts_in_its_static_details(fast: Runyard, client: Client) -> None:
    run = await failed(fast)
    again = await fast.restart(run.id)
    await again.result()
    description = await client.get_workflow_handle(again.id).describe()
    assert run.id in (await description.static_details() or "")
    assert (await description.memo())["restart_of"] == run.id


# other programs


async def test_the_temporal_command_restarts_a_run(fast: Runyard, client: Client) -> None:
    run = await failed(fast)
    new_id, address = f"cli-{uuid.uuid4().hex[:12]}", client.service_client.config.target_host
    request = {"restart": {"run": run.id}, "file": file(*MENDED)}
    words = [
        *(temporal_program(), "workflow", "start", "--address", address, "--type", WORKFLOW),
        *("--task-queue", RUNS_QUEUE, "--workflow-id", new_id, "--input", json.dumps(request)),
    ]
    started = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr
    result = await client.get_workflow_handle(new_id, result_type=RunResult).result()
    assert result == RunResult(id=new_id, phase="finished", result="success", counts={"success": 3})
    found = tasks_of(await fast.run(new_id).describe())
    assert [found[name].kept_from for name in ("make", "test", "lint")] == [run.id, "", run.id]


# sizes


async def test_ten_thousand_kept_tasks_fit_into_one_payload(store: ObjectStore) -> None:
    kept = Kept(run="build-and-test-20261124-031200-x7k2", attempt=1)
    tasks = [
        TaskPlan(
            id=uuid.uuid4().hex[:20],
            name=f"test number {n}",
            containers=[Container(image="alpine")],
            depends={f"test number {n - 100}": ["on_success"]} if n >= 100 else {},
            kept=kept,
        )
        for n in range(10_000)
    ]
    plan = Plan(run=RunPlan(run_id="r", name="big"), tasks=tasks)
    index = await write_plan(store, plan)
    graph = [graph_task(each, at) for each, at in zip(tasks, index.tasks, strict=True)]
    (payload,) = Converter().to_payloads([graph])
    assert payload.ByteSize() < 512_000
