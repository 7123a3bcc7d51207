"""Recorded histories of every shape of run are replayed: a change that would break a running run fails here.

A history that no longer replays is never recorded anew to make this pass: the change is patched or versioned.
New shapes are added by `python tests/replay/record.py` (it writes only those that are not there).
"""

from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from yard import SANDBOX

from runyard.temporal import data_converter
from workflows.cleanup import CleanupWorkflow
from workflows.group import GroupWorkflow
from workflows.run import RunWorkflow

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))


def test_there_are_histories() -> None:
    assert {path.stem for path in HISTORIES} >= {
        "success",
        "failure",
        "retries",
        "approval",
        "waits",
        "hold",
        "cancel",
        "fail_fast",
        "continued-1",
        "continued-2",
        "restarted-1",
        "restarted-2",
        "withdrawn",
        "turn",
        "turn_waited",
        "turn_skipped",
        "turn_superseded",
        "turn_cancelled",
        "turn_nothing",
        "line-1",
        "line-2",
        "line_again",
        "cleanup-1",
        "cleanup-2",
        "cleanup_run",
    }


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_a_recorded_history_replays(path: Path) -> None:
    workflows = [RunWorkflow, GroupWorkflow, CleanupWorkflow]
    replayer = Replayer(workflows=workflows, workflow_runner=SANDBOX, data_converter=data_converter())
    await replayer.replay_workflow(WorkflowHistory.from_json(path.stem, path.read_text()))
