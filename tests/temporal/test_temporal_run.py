"""Runs on a real Temporal server, with the memory executor."""

import asyncio
import json
import subprocess
import uuid
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError, CancelledError
from yard import Yard, temporal_program

from runyard.client import Runyard
from runyard.executors.memory import MemoryExecutor
from runyard.reasons import Reason
from runyard.records.runs import read_result
from runyard.settings import Settings
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, ApprovalRequest, RunResult, RunView, TaskRequest, TaskView

Handle = WorkflowHandle[object, RunResult]


def task(name: str, *steps: str, **fields: object) -> dict[str, object]:
    runtime = {"containers": [{"image": "busybox"}]}
    return {"name": name, "runtime": runtime, "steps": [{"run": step} for step in steps], **fields}


def file(*tasks: dict[str, object], **fields: object) -> dict[str, object]:
    return {"runs": [{"name": "build", "tasks": list(tasks), **fields}]}


async def failure(handle: Handle) -> ApplicationError:
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, ApplicationError)
    return caught.value.cause


async def until(yard: Yard, handle: Handle, name: str, *statuses: str) -> TaskView:
    """Ask until the task is in one of these statuses: bounded by the test's own timeout."""
    while True:
        view = tasks(await yard.view(handle)).get(name)
        if view is not None and view.status in statuses:
            return view
        await asyncio.sleep(0.05)


def tasks(view: RunView) -> dict[str, TaskView]:
    return {each.name: each for each in view.tasks}


async def test_a_chain_succeeds_and_leaves_its_record(yard: Yard) -> None:
    handle = await yard.start(file(task("a", "echo hi"), task("b", "true", depends=["a"])))
    result = await handle.result()
    assert result == RunResult(id=handle.id, phase="finished", result="success", counts={"success": 2})
    kept = await read_result(yard.store, handle.id)
    assert [(t.name, t.status, t.attempt) for t in kept.tasks] == [("a", "success", 1), ("b", "success", 1)]
    assert all(t.started_at and t.ended_at and t.started_at <= t.ended_at for t in kept.tasks)
    assert [pod async for pod in yard.executor.list()] == []


async def test_a_failure_fails_the_run_with_a_cause_and_skips_what_needs_it(yard: Yard) -> None:
    handle = await yard.start(
        file(
            task("lint", "exit 3"),
            task("test", "true"),
            task("package", "true", depends=["lint", "test"]),
            task("clean", "true", depends=[{"lint": ["on_failure"]}]),
        )
    )
    error = await failure(handle)
    assert error.type == "RunFailed"
    assert error.message == "1 of 4 tasks failed: lint"
    by_name = tasks(await yard.view(handle))
    assert {name: view.status for name, view in by_name.items()} == {
        "lint": "failed",
        "test": "success",
        "package": "skipped",
        "clean": "success",
    }
    assert by_name["lint"].reason is Reason.EXIT_CODE
    assert by_name["lint"].exit_code == 3
    assert "lint" in by_name["package"].message


async def test_ignore_failure_keeps_the_run_green(yard: Yard) -> None:
    handle = await yard.start(file(task("flaky", "exit 1", ignore_failure=True), task("b", "true")))
    assert (await handle.result()).result == "success"


async def test_the_users_retries_are_attempts_of_their_own(yard: Yard) -> None:
    retry = {"limit": 2, "backoff": "10ms"}
    handle = await yard.start(file(task("t", "exit 7", retry=retry)))
    await failure(handle)
    assert tasks(await yard.view(handle))["t"].attempt == 3
    names = [
        event.user_metadata.summary.data.decode()
        async for event in handle.fetch_history_events()
        if event.HasField("timer_started_event_attributes")
    ]
    assert names == ['"attempt 2 of t"', '"attempt 3 of t"']


async def test_retry_on_other_exit_codes_only(yard: Yard) -> None:
    handle = await yard.start(file(task("t", "exit 7", retry={"limit": 2, "backoff": "10ms", "on": [8]})))
    await failure(handle)
    assert tasks(await yard.view(handle))["t"].attempt == 1


@pytest.mark.promise(2)
async def test_a_lost_task_is_not_run_again_unless_asked(yard: Yard) -> None:
    infra = {"infra": 1, "backoff": "10ms"}
    handle = await yard.start(file(task("once", "vanish"), task("twice", "vanish", retry=infra)))
    await failure(handle)
    by_name = tasks(await yard.view(handle))
    assert (by_name["once"].reason, by_name["once"].attempt) == (Reason.LOST, 1)
    assert (by_name["twice"].reason, by_name["twice"].attempt) == (Reason.LOST, 2)


async def test_approval_by_two_of_those_allowed(yard: Yard) -> None:
    approval = {"approvers": 2, "allowed": ["ann", "bob"]}
    handle = await yard.start(file(task("publish", "true", approval=approval)))
    await until(yard, handle, "publish", "approval")
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await handle.execute_update("approve", ApprovalRequest(task="publish", by="eve"))
    assert "eve may not approve" in str(refused.value.cause)
    await handle.execute_update("approve", ApprovalRequest(task="publish", by="ann"))
    with pytest.raises(WorkflowUpdateFailedError):
        await handle.execute_update("approve", ApprovalRequest(task="publish", by="ann"))
    assert tasks(await yard.view(handle))["publish"].approvals == ["ann"]
    await handle.execute_update("approve", ApprovalRequest(task="publish", by="bob"))
    assert (await handle.result()).result == "success"


async def test_a_rejected_task_fails_the_run(yard: Yard) -> None:
    handle = await yard.start(file(task("publish", "true", approval=True)))
    await until(yard, handle, "publish", "approval")
    await handle.execute_update("reject", ApprovalRequest(task="publish", by="bob", reason="not today"))
    await failure(handle)
    view = tasks(await yard.view(handle))["publish"]
    assert (view.status, view.reason) == ("failed", Reason.REJECTED)
    assert view.message == "rejected by bob: not today"


async def test_an_approval_expires(yard: Yard) -> None:
    handle = await yard.start(file(task("publish", "true", approval={"expires": "50ms"})))
    await failure(handle)
    assert tasks(await yard.view(handle))["publish"].reason is Reason.APPROVAL_EXPIRED


async def test_a_held_task_waits_for_a_human(yard: Yard) -> None:
    handle = await yard.start(file(task("t", "exit 1"), on_failure="hold"))
    await until(yard, handle, "t", "held")
    await handle.execute_update("retry_task", TaskRequest(task="t", by="ann"))
    while (await until(yard, handle, "t", "held")).attempt < 2:
        await asyncio.sleep(0.05)
    await handle.execute_update("cancel_task", TaskRequest(task="t", by="ann"))
    await failure(handle)
    view = tasks(await yard.view(handle))["t"]
    assert (view.status, view.attempt, view.exit_code) == ("failed", 2, 1)


async def test_cancelling_one_task_leaves_the_others(yard: Yard) -> None:
    handle = await yard.start(
        file(task("long", "sleep 600"), task("b", "true"), task("c", "true", depends=["long"]))
    )
    await until(yard, handle, "long", "running")
    await handle.execute_update("cancel_task", TaskRequest(task="long", by="ann"))
    error = await failure(handle)
    assert "long" in error.message
    by_name = tasks(await yard.view(handle))
    assert {name: view.status for name, view in by_name.items()} == {
        "long": "cancelled",
        "b": "success",
        "c": "skipped",
    }


@pytest.mark.promise(7)
async def test_cancelling_the_run_ends_it_with_pods_gone_and_logs_kept(yard: Yard) -> None:
    handle = await yard.start(file(task("long", "print begun\nsleep 600"), task("next", "true", depends=["long"])))
    await until(yard, handle, "long", "running")
    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, CancelledError)
    assert [pod async for pod in yard.executor.list()] == []
    kept = await read_result(yard.store, handle.id)
    assert (kept.result, [t.status for t in kept.tasks]) == ("stopped", ["cancelled", "cancelled"])


async def test_cancelling_while_waiting_for_approval(yard: Yard) -> None:
    handle = await yard.start(file(task("publish", "true", approval=True)))
    await until(yard, handle, "publish", "approval")
    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, CancelledError)


async def test_fail_fast_ends_the_siblings(yard: Yard) -> None:
    handle = await yard.start(file(task("bad", "exit 1"), task("long", "sleep 600"), fail_fast=True))
    error = await failure(handle)
    assert "bad" in error.message
    by_name = tasks(await yard.view(handle))
    assert by_name["long"].status == "cancelled"


async def test_the_timeout_of_a_run_is_a_failure_with_its_own_reason(yard: Yard) -> None:
    handle = await yard.start(file(task("long", "sleep 600"), timeout="300ms"))
    error = await failure(handle)
    assert "timeout" in error.message
    assert tasks(await yard.view(handle))["long"].reason is Reason.TIMEOUT_RUN


async def test_no_worker_for_the_queue_ends_in_the_queue_timeout(yard: Yard) -> None:
    handle = await yard.client.start_workflow(
        WORKFLOW,
        {"file": file(task("t", "true", timeouts={"queue": "300ms"})), "executor": "memory"},
        id=f"test-{uuid.uuid4().hex[:12]}",
        task_queue=RUNS_QUEUE,
        result_type=RunResult,
    )
    assert (await handle.result()).result == "success"  # with a worker it is in time


async def test_outputs_reach_later_tasks(yard: Yard) -> None:
    use = task("use", "print done", depends=["make"], environment={"V": {"from_output": "make.VERSION"}})
    handle = await yard.start(file(task("make", "output VERSION=1.2"), use))
    assert (await handle.result()).result == "success"
    missing = task("use", "true", depends=["make"], environment={"V": {"from_output": "make.NOPE"}})
    handle = await yard.start(file(task("make", "output VERSION=1.2"), missing))
    await failure(handle)
    view = tasks(await yard.view(handle))["use"]
    assert view.reason is Reason.OUTPUT_MISSING
    assert "VERSION" in view.message


async def test_concurrency_bounds_what_is_in_flight(yard: Yard) -> None:
    seen: list[int] = []
    handle = await yard.start(file(*[task(f"t{n}", "sleep 0.1") for n in range(8)], concurrency=2))
    waiting = asyncio.create_task(handle.result())
    while not waiting.done():
        seen.append(len([pod async for pod in yard.executor.list() if pod.running]))
        await asyncio.sleep(0.02)
    assert (await waiting).result == "success"
    assert 1 <= max(seen) <= 2


async def test_a_bad_run_file_names_every_problem(yard: Yard) -> None:
    handle = await yard.start("runs:\n  - name: a\n    taks: []\n  - name: a\n    tasks: 3\n")
    error = await failure(handle)
    assert error.type == "invalid_run_file"
    problems: list[dict[str, Any]] = error.details[0]
    assert len(problems) >= 2
    assert any("taks" in p["text"] + p["message"] and "tasks" in p["hint"] + p["message"] for p in problems)
    assert all(p["line"] > 0 for p in problems)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (None, "JSON object"),
        ("text", "JSON object"),
        ({}, "needs the field `file`"),
        ({"file": 5}, "file"),
        ({"file": {}, "executr": "x"}, "did you mean `executor`"),
        ({"file": {}, "priority": 9}, "priority"),
    ],
)
async def test_a_bad_request_ends_the_run_with_a_sentence(yard: Yard, request_: object, words: str) -> None:
    handle = await yard.client.start_workflow(
        WORKFLOW, request_, id=f"test-{uuid.uuid4().hex[:12]}", task_queue=RUNS_QUEUE
    )
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.type in ("invalid_request", "invalid_run_file")
    assert words in str(caught.value.cause)


async def test_the_temporal_command_starts_a_run_with_plain_json(yard: Yard) -> None:
    run_id = f"test-{uuid.uuid4().hex[:12]}"
    address = yard.client.service_client.config.target_host
    request = {"file": file(task("a", "echo hello")), "executor": "memory"}
    command = [
        *(temporal_program(), "workflow", "start", "--address", address, "--type", WORKFLOW),
        *("--task-queue", RUNS_QUEUE, "--workflow-id", run_id, "--input", json.dumps(request)),
    ]
    started = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr
    handle = yard.client.get_workflow_handle(run_id, result_type=RunResult)
    assert (await handle.result()).result == "success"


async def test_updates_refuse_what_is_not_there(yard: Yard) -> None:
    handle = await yard.start(file(task("a", "sleep 600")))
    await until(yard, handle, "a", "running")
    for name, argument in [
        ("cancel_task", TaskRequest(task="nope")),
        ("retry_task", TaskRequest(task="a")),
        ("approve", ApprovalRequest(task="a", by="ann")),
        ("reject", ApprovalRequest(task="nope", by="ann")),
    ]:
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update(name, argument)
        assert isinstance(refused.value.cause, ApplicationError)
        assert refused.value.cause.type in ("conflict", "not_found")
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()


async def test_ci_skip_makes_no_task(yard: Yard) -> None:
    handle = await yard.start(file(task("a", "exit 1")), message="docs [ci skip]")
    assert (await handle.result()).result == "success"


@pytest.mark.promise(9)
async def test_continue_as_new_adopts_what_is_in_flight(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.run.HISTORY_EVENTS", 60)
    layers = [
        task(f"t{layer}-{n}", "sleep 0.05", depends=[f"t{layer - 1}-{m}" for m in range(4)] if layer else [])
        for layer in range(6)
        for n in range(4)
    ]
    flaky = task("flaky", "exit 1", retry={"limit": 1, "backoff": "10ms"}, ignore_failure=True)
    handle = await yard.start(file(*layers, flaky, task("gate", "true", approval=True)))
    await until(yard, handle, "gate", "approval")
    while tasks(await yard.view(handle))["t5-0"].status != "success":
        await asyncio.sleep(0.05)
    await handle.execute_update("approve", ApprovalRequest(task="gate", by="ann"))
    result = await handle.result()
    assert result.counts == {"success": 25, "failed": 1}
    first = await yard.client.get_workflow_handle(handle.id, run_id=handle.first_execution_run_id).describe()
    assert first.status is not None
    assert first.status.name == "CONTINUED_AS_NEW"
    listed = await Runyard(yard.client, yard.store, settings=Settings()).list()
    assert [view.created_at for view in listed if view.id == handle.id] == [first.start_time]
    kept = await read_result(yard.store, handle.id)
    assert all(view.attempt == (2 if view.name == "flaky" else 1) for view in kept.tasks)
    assert isinstance(yard.executor, MemoryExecutor)
    assert [pod async for pod in yard.executor.list()] == []
