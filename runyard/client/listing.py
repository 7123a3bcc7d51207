"""Runs as Temporal's visibility knows them: less than a worker's answer, but there without one. Pure."""

from collections.abc import Mapping
from typing import Literal

from temporalio.client import WorkflowExecution, WorkflowExecutionStatus

from runyard.spec.run import WORKFLOW, RunPhase, RunResultWord, RunView
from runyard.temporal import COUNTER, GROUP, PROJECT, STAGE, TRIGGER

Phase = Literal["open", "closed", "success", "failed", "cancelled"]

_STATUS: Mapping[Phase, str] = {
    "open": "ExecutionStatus = 'Running'",
    "closed": "ExecutionStatus != 'Running'",
    "success": "ExecutionStatus = 'Completed'",
    "failed": "ExecutionStatus IN ('Failed', 'TimedOut')",
    "cancelled": "ExecutionStatus IN ('Canceled', 'Terminated')",
}
_OUTCOME: Mapping[WorkflowExecutionStatus, tuple[RunPhase, RunResultWord]] = {
    WorkflowExecutionStatus.COMPLETED: ("finished", "success"),
    WorkflowExecutionStatus.FAILED: ("finished", "failed"),
    WorkflowExecutionStatus.TIMED_OUT: ("finished", "failed"),
    WorkflowExecutionStatus.CANCELED: ("cancelled", "stopped"),
    WorkflowExecutionStatus.TERMINATED: ("cancelled", "stopped"),
}


def query(*, phase: Phase | None, project: str, group: str) -> str:
    """A list filter of Temporal's."""
    parts = [f"WorkflowType = '{WORKFLOW}'", "ExecutionStatus != 'ContinuedAsNew'"]
    if phase:
        parts.append(_STATUS[phase])
    parts += [f"{key.name} = {_literal(word)}" for key, word in ((PROJECT, project), (GROUP, group)) if word]
    return " AND ".join(parts)


def _literal(word: str) -> str:
    return "'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'"


def view_of(execution: WorkflowExecution, memo: Mapping[str, object], *, cause: str = "") -> RunView:
    """What is known of a run without asking a worker or the store: no tasks."""
    attributes = execution.typed_search_attributes
    status = execution.status or WorkflowExecutionStatus.RUNNING
    phase, result = _OUTCOME.get(status, ("running", "unknown"))
    stage = attributes.get(STAGE, "")
    if status is WorkflowExecutionStatus.TERMINATED:
        cause = cause or "terminated from outside"
    if stage == "queued" and phase == "running":
        phase = "queued"
    if stage == "skipped":
        cause = cause or "skipped: an earlier run of its group had not ended"
    return RunView(
        id=execution.id,
        name=str(memo.get("run", "")),
        phase=phase,
        result=result,
        cause=cause,
        project=attributes.get(PROJECT, ""),
        group=attributes.get(GROUP, ""),
        counter=attributes.get(COUNTER, 0),
        trigger=attributes.get(TRIGGER, ""),
        executor=str(memo.get("executor", "")),
        restart_of=str(memo.get("restart_of", "")),
        created_at=execution.start_time,
        ended_at=execution.close_time,
    )


def matches(view: RunView, *, phase: Phase | None, project: str, group: str) -> bool:
    """The same filter for a run that only the store remembers: it has always ended."""
    if (project and view.project != project) or (group and view.group != group):
        return False
    return phase in (None, "closed", {"stopped": "cancelled"}.get(view.result, view.result))
