"""What the tests of groups share: runs of one task, and what is seen of them and of their lines."""

import asyncio
import uuid
from collections.abc import Callable
from datetime import datetime

from temporalio.client import WorkflowHandle
from yard import Yard

from runyard.records.runs import read_result
from runyard.spec.group import LineView, root_line
from runyard.spec.run import RunResult, RunView

Handle = WorkflowHandle[object, RunResult]


def file(step: str = "true", **fields: object) -> dict[str, object]:
    task = {"name": "t", "runtime": {"containers": [{"image": "none"}]}, "steps": [{"run": step}]}
    return {"runs": [{"name": "grouped", "tasks": [task], **fields}]}


def new_root() -> str:
    """A root that no other test has."""
    return f"/project/p{uuid.uuid4().hex[:10]}"


async def line(yard: Yard, root: str) -> LineView:
    handle = yard.client.get_workflow_handle(root_line(root))
    return await handle.query("describe", result_type=LineView)


async def drained(yard: Yard, root: str) -> LineView:
    """The line once nobody is in it: the last run tells the line that it has ended when it has."""
    while (view := await line(yard, root)).running or view.waiting:
        await asyncio.sleep(0.05)
    return view


async def until(yard: Yard, handle: Handle, what: Callable[[RunView], bool]) -> RunView:
    """Ask until it is so: bounded by the test's own timeout."""
    while True:
        view = await yard.view(handle)
        if what(view):
            return view
        await asyncio.sleep(0.05)


def queued(position: int = 1) -> Callable[[RunView], bool]:
    return lambda view: view.phase == "queued" and view.position == position


def running(view: RunView) -> bool:
    return view.phase == "running" and bool(view.tasks) and view.tasks[0].status == "running"


async def span(yard: Yard, handle: Handle) -> tuple[int, datetime, datetime]:
    """The run's number, and when its task was asked for and had ended."""
    kept = await read_result(yard.store, handle.id)
    task = kept.tasks[0]
    assert task.queued_at is not None
    assert task.ended_at is not None
    return kept.counter, task.queued_at, task.ended_at
