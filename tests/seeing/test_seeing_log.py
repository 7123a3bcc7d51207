"""The log of a real worker process: JSON lines that say what they are about, and no secret."""

import asyncio
import json
import logging
import re
import sys
import urllib.request
from datetime import datetime
from pathlib import Path

import pytest
from minio_server import free_port
from seen_worker import worker
from temporalio.client import Client, WorkflowFailureError

from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult
from runyard.worklog import JsonLines, TextLines, about

SECRET = "hunter2-and-some-more"
FILE = {
    "runs": [
        {
            "name": "logged",
            "tasks": [
                {
                    "name": "first",
                    "runtime": {"containers": [{"image": "busybox"}]},
                    "environment": {"TOKEN": {"from_secret": "token"}},
                    "steps": [{"run": 'echo "$TOKEN"'}, {"run": "sleep 0.5"}],
                },
                {
                    "name": "beside",
                    "runtime": {"containers": [{"image": "busybox"}]},
                    "steps": [{"run": "sleep 0.5"}],
                },
                {
                    "name": "second",
                    "runtime": {"containers": [{"image": "busybox"}]},
                    "steps": [{"run": "exit 7"}],
                    "retry": {"limit": 1, "backoff": "100ms"},
                    "depends": ["first"],
                },
            ],
        }
    ]
}


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return str(answer.read().decode())


@pytest.mark.timeout(120)
async def test_every_line_is_json_and_says_what_it_is_about(client: Client, tmp_path: Path) -> None:
    port = free_port()
    served = ("--log-format", "json", "--metrics-address", f"127.0.0.1:{port}")
    with worker(client, tmp_path, *served, RUNYARD_SECRET_TOKEN=SECRET, RUNYARD_LOCAL_SLOTS="1"):
        handle = await client.start_workflow(
            WORKFLOW,
            {"file": FILE, "executor": "local"},
            id=f"logged-{tmp_path.name}",
            task_queue=RUNS_QUEUE,
            result_type=RunResult,
        )
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        page = await asyncio.to_thread(get, f"http://127.0.0.1:{port}/metrics")
    board = (Path(__file__).parents[2] / "deploy" / "monitoring" / "dashboard.json").read_text()
    asked = set(re.findall(r"\btemporal_\w+", board))
    assert asked
    assert asked <= set(re.findall(r"^temporal_\w+", page, re.MULTILINE)), "as the SDK of this version names them"
    text = (tmp_path / "log").read_text()
    assert SECRET not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[0]["message"].startswith("serving runs, local at ")
    assert lines[-1]["message"] == "letting go; other workers go on"
    for line in lines:
        assert {"time", "level", "logger", "message"} <= set(line)
        assert datetime.fromisoformat(line["time"])
    ours = [line for line in lines if line.get("run") == handle.id]
    of_run = [line for line in ours if "task" not in line]
    assert [line["message"] for line in of_run] == ["run planned", "run ended"]
    assert (of_run[1]["result"], of_run[1]["cause"]) == ("failed", "1 of 3 tasks failed: second")

    def told(task: str, attempt: int) -> dict[str, dict[str, object]]:
        found = [line for line in ours if (line.get("task"), line.get("attempt")) == (task, attempt)]
        assert all(line["pod"].startswith(f"{task}-") for line in found if line["message"] != "is tried again")
        return {line["message"]: line for line in found}

    assert {"placed", "ended", "deleted"} <= set(told("first", 1))
    assert told("first", 1)["ended"]["status"] == "success"
    assert told("second", 1)["ended"]["exit_code"] == 7
    assert told("second", 1)["is tried again"]["reason"] == "exit_code"
    assert {"placed", "ended", "deleted"} <= set(told("second", 2))
    assert "is tried again" not in told("second", 2)
    waits = [line for line in ours if line["message"].startswith("waits for room")]
    tasks = [(line["task"], line["attempt"]) for line in waits]
    assert {"first", "beside"} & {name for name, _ in tasks}, "there is one slot for the two"
    assert len(set(tasks)) == len(tasks), "once"


def record(message: str, **told: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "n", "levelno": 20, "levelname": "INFO", "msg": message, "created": 1.5})
    vars(made).update(told)
    return made


async def test_what_people_write_cannot_make_a_line_of_its_own() -> None:
    about(run="r", task='a "b"')
    sly = record("one\ntwo", why="three\nfour")
    text = TextLines().format(sly)
    assert text == '1970-01-01T00:00:01.500Z INFO n: one two run=r task="a \\"b\\"" why="three\\nfour"'
    line = JsonLines().format(sly)
    assert "\n" not in line
    assert json.loads(line)["message"] == "one\ntwo"


async def test_an_error_is_one_line_too() -> None:
    try:
        raise ValueError("bad\nworse")
    except ValueError:
        failed = record("it failed", exc_info=sys.exc_info())
    assert TextLines().format(failed).endswith('n: it failed error="ValueError: bad worse"')
    line = json.loads(JsonLines().format(failed))
    assert line["error"] == "ValueError: bad worse"
    assert "Traceback" in line["trace"]


async def test_what_the_sdk_knows_is_told_in_our_words() -> None:
    known = {"workflow_type": WORKFLOW, "workflow_id": "r-1", "activity_id": "fetch a #1"}
    line = json.loads(JsonLines().format(record("heartbeat timed out", temporal_activity=known)))
    assert (line["run"], line["activity"]) == ("r-1", "fetch a #1")
