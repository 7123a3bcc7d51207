"""The real main and the real agent below the nest: what the small pair stands for in the other tests."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from yards import SECRETS, clear, silent, until

from runyard.dialogue import Assignment, Manifest
from runyard.executors.base import Ended, Launch
from runyard.executors.local.executor import LocalExecutor
from runyard.executors.secrets import EnvironmentSecrets
from runyard.reasons import Reason
from runyard.script import compile_script, parse_receipt, step_secrets
from runyard.spec.plan import Container, FromSecret, RunStep, TaskPlan
from runyard.store.base import FolderTarget


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[LocalExecutor]:
    executor = LocalExecutor(tmp_path / "tasks", slots=4, secrets=EnvironmentSecrets(SECRETS))
    yield executor
    await clear([executor], tmp_path)


def pair(folder: Path, *steps: RunStep, grace_s: float = 10) -> Launch:
    task = TaskPlan(id="id", name="task", containers=[Container(image="none")], steps=list(steps))
    return Launch(
        name="pod",
        run_id="run",
        attempt=1,
        task=task,
        script=compile_script(task),
        secrets=step_secrets(task),
        assignment=Assignment(
            run_id="run",
            task="task",
            attempt=1,
            steps=task.steps,
            logs=FolderTarget(folder=str(folder / "logs")),
            mask=list(step_secrets(task)),
        ),
        digest="digest",
        owner="one",
        grace_s=grace_s,
    )


def manifest(folder: Path) -> Manifest:
    return Manifest.model_validate_json((folder / "logs" / "manifest.json").read_text())


def log(folder: Path, step: int) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((folder / "logs" / "segments" / str(step)).iterdir()))


async def run(worker: LocalExecutor, asked: Launch) -> Ended:
    return await worker.follow(await worker.start(asked, silent), owner="one", report=silent)


@pytest.mark.promise(1)
async def test_steps_run_in_order_until_one_fails(worker: LocalExecutor, tmp_path: Path) -> None:
    steps = [
        RunStep(command="echo one; pwd; echo A=1 >>$RUNYARD_OUTPUT"),
        RunStep(command="exit 3"),
        RunStep(command="true"),
    ]
    ended = await run(worker, pair(tmp_path, *steps))
    receipt = parse_receipt(ended.receipt)
    assert (ended.exit_code, receipt.steps, receipt.sealed) == (3, {0: 0, 1: 3}, True)
    assert log(tmp_path, 0).decode() == f"one\n{tmp_path}/tasks/pod/home/project\n"
    assert manifest(tmp_path).seal == "complete"
    assert manifest(tmp_path).outputs == {"A": "1"}


async def test_a_secret_reaches_its_step_only_and_is_masked(worker: LocalExecutor, tmp_path: Path) -> None:
    secret = {"TOKEN": FromSecret(from_secret="token")}
    steps = [
        RunStep(command='echo "it is $TOKEN"', environment=dict(secret)),
        RunStep(command="env | grep -c s3cr3t-value || :"),
    ]
    ended = await run(worker, pair(tmp_path, *steps))
    assert ended.exit_code == 0
    assert log(tmp_path, 0) == b"it is ***\n"
    assert log(tmp_path, 1) == b"0\n"


@pytest.mark.promise(7)
async def test_a_stop_ends_the_step_and_keeps_its_log(worker: LocalExecutor, tmp_path: Path) -> None:
    step = RunStep(command="echo begun; sleep 300")
    pod = await worker.start(pair(tmp_path, step), silent)
    await until(lambda: (tmp_path / "logs" / "segments" / "0").exists())
    await worker.stop(pod, grace_s=20)
    ended = await worker.follow(pod, owner="one", report=silent)
    receipt = parse_receipt(ended.receipt)
    assert (ended.exit_code, ended.reason) == (143, Reason.CANCELLED)
    assert (receipt.term, receipt.sealed) == (True, True)
    assert log(tmp_path, 0) == b"begun\n"


async def test_a_stop_before_main_has_met_its_agent(worker: LocalExecutor, tmp_path: Path) -> None:
    pod = await worker.start(pair(tmp_path, RunStep(command="sleep 300")), silent)
    await worker.stop(pod, grace_s=20)
    ended = await worker.follow(pod, owner="one", report=silent)
    assert ended.reason is Reason.CANCELLED
    assert ended.exit_code != 0


async def test_main_killed_leaves_a_truncated_log(worker: LocalExecutor, tmp_path: Path) -> None:
    step = RunStep(command='echo begun; kill -9 "$PPID"; sleep 300')
    ended = await run(worker, pair(tmp_path, step))
    assert (ended.signal, ended.reason) == (9, None)
    assert not parse_receipt(ended.receipt).sealed
    assert manifest(tmp_path).seal == "truncated"
    assert log(tmp_path, 0) == b"begun\n"


@pytest.mark.promise(2)
async def test_a_second_pod_of_one_attempt_runs_nothing(worker: LocalExecutor, tmp_path: Path) -> None:
    asked = pair(tmp_path, RunStep(command=f"echo ran >>{tmp_path}/marks"))
    pod = await worker.start(asked, silent)
    assert (await worker.follow(pod, owner="one", report=silent)).exit_code == 0
    await worker.delete(pod)
    ended = await run(worker, asked)
    assert ended.exit_code == 125
    assert parse_receipt(ended.receipt).started_before
    assert (tmp_path / "marks").read_text() == "ran\n"


async def test_late_output_of_a_daemon_does_not_delay_the_end(worker: LocalExecutor, tmp_path: Path) -> None:
    ended = await run(
        worker, pair(tmp_path, RunStep(command="(while :; do echo x; sleep 0.01; done) & sleep 0.1"))
    )
    assert ended.exit_code == 0
    assert ended.ended_at is not None
    assert json.loads((tmp_path / "logs" / "manifest.json").read_text())["seal"] == "complete"
