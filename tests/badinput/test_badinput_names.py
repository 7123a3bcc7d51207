"""Names of every kind all the way: run file, graph, Temporal, processes, store, logs, client."""

import json
from pathlib import Path

import pytest
from bad_scene import end, file, play, task
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError
from yard import Yard

from runyard.client import Runyard
from runyard.records.runs import read_result
from runyard.settings import Settings
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult
from runyard.store import paths

NAMES = [
    "with blanks  in it",
    "a/b/../c",
    "..",
    "-rf",
    "/etc/passwd",
    "double \" and ' single",
    "$(touch pwned) `touch pwned` ; touch pwned",
    "%2e%2f%s %n",
    "back\\slash\\n",
    "ümläut",
    "build 🚀👩‍👩‍👧",
    "テスト",
    "{{ matrix }}"[1:-1],
    "true",
    "x" * 100,
    "🚀" * 100,
]


async def test_any_name_all_the_way(local_yard: Yard, client: Client, tmp_path: Path) -> None:
    tasks = [
        task(name, 'printf %s "$RUNYARD_TASK"', depends=[NAMES[n - 1]] if n else [])
        for n, name in enumerate(NAMES)
    ]
    played = await play(local_yard, *tasks, concurrency=4)
    assert played.view.counts == {"success": len(NAMES)}
    assert [each.name for each in played.view.tasks] == NAMES
    settings = Settings(state=tmp_path / "state", store_folder=tmp_path / "store")
    async with Runyard.over(client, settings) as yard:
        run = yard.run(played.handle.id)
        for name in NAMES:
            assert await played.log(name) == name.encode()
            assert [line.text async for line in run.logs(name)] == [name]
    assert not list(tmp_path.rglob("pwned"))
    async for info in local_yard.store.list(""):
        assert info.key.isascii()
        assert set(info.key.split("/")[0:1]) <= {"ended", "runs", "logs"}


RUN_IDS = ["a b/c'd\" 🚀", "..", "a/../../b", "x" * 200, "%2F$(x)"]


@pytest.mark.parametrize("run_id", RUN_IDS)
async def test_any_id_of_a_run(local_yard: Yard, tmp_path: Path, run_id: str) -> None:
    """From the UI or an SDK a run may have any id; all of its objects lie below the store's own folders."""
    handle = await local_yard.client.start_workflow(
        WORKFLOW,
        {"file": file(task("t", 'printf %s "$RUNYARD_RUN_ID"'), name="ümläut / 🚀"), "executor": "local"},
        id=run_id,
        task_queue=RUNS_QUEUE,
        result_type=RunResult,
    )
    played = await end(local_yard, handle)
    assert played["t"].status == "success"
    assert await played.log("t") == run_id.encode()
    assert (await read_result(local_yard.store, run_id)).name == "ümläut / 🚀"
    runs = {info.key.split("/")[1] async for info in local_yard.store.list(paths.RUNS)}
    assert [paths.unescape(each) for each in runs] == [run_id]
    assert {path.name for path in (tmp_path / "store" / "data").iterdir()} == {"ended", "runs", "logs"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x" * 101, "at most 100 characters, this has 101"),
        ("🚀" * 101, "at most 100 characters, this has 101"),
        ("two\nlines", "U+000A"),
        ("tab\there", "U+0009"),
        ("nul\0", "NUL character"),
        ("\x1b[31mred", "U+001B"),
        ("right \u202e to left", "U+202E"),
        (" blank first", "begin or end with a blank"),
        ("", "a text is wanted here, and it is empty"),
    ],
)
async def test_what_is_no_name_is_refused_and_nothing_runs(local_yard: Yard, name: str, words: str) -> None:
    """As YAML would have it from a program: JSON, so that every character is escaped."""
    text = json.dumps(file(task("good", "echo"), task(name, "echo")), indent=1)
    handle = await local_yard.start(text)
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    error = caught.value.cause
    assert isinstance(error, ApplicationError)
    assert error.type == "invalid_run_file"
    problems = error.details[0]
    assert len(problems) == 1
    assert words in problems[0]["message"]
    assert problems[0]["line"] > 0
    assert [info.key async for info in local_yard.store.list("logs/")] == []
