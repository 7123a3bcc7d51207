"""Runs as Temporal's visibility knows them: less than a worker's answer, but there without one. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypedDict

from temporalio.client import WorkflowExecution, WorkflowExecutionStatus
from temporalio.common import SearchAttributeKey

from runyard.client.starting import cut
from runyard.spec.run import WORKFLOW, RunPhase, RunResultWord, RunView
from runyard.temporal import COUNTER, CREATED, FAILED_TASKS, GROUP, OWNER, PROJECT, STAGE, TRIGGER

SHOWN_FAILED: Final = 5
"""So many names of tasks say why a run failed."""

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


class Which(TypedDict, total=False):
    """The words by which runs are asked for: see Filter, which has their meaning and what holds without them."""

    phase: Phase | None
    project: str
    group: str
    below: str
    owner: str
    trigger: str
    since: datetime | None
    text: str


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which runs. ``below``: of this group and all below it; ``text``: somewhere in the id, name or cause."""

    phase: Phase | None = None
    project: str = ""
    group: str = ""
    below: str = ""
    owner: str = ""
    trigger: str = ""
    since: datetime | None = None
    text: str = ""

    @property
    def words(self) -> tuple[tuple[SearchAttributeKey[str], str], ...]:
        pairs = ((PROJECT, self.project), (GROUP, self.group), (OWNER, self.owner), (TRIGGER, self.trigger))
        return tuple((key, cut(word)) for key, word in pairs if word)


def query(wanted: Filter) -> str:
    """A list filter of Temporal's: all but the text, which it cannot look for."""
    parts = [f"WorkflowType = '{WORKFLOW}'", "ExecutionStatus != 'ContinuedAsNew'"]
    if wanted.phase:
        parts.append(_STATUS[wanted.phase])
    parts += [f"{key.name} = {_literal(word)}" for key, word in wanted.words]
    if below := wanted.below.rstrip("/"):
        name = GROUP.name
        parts.append(f"({name} = {_literal(below)} OR {name} STARTS_WITH {_literal(below + '/')})")
    if wanted.since:
        parts.append(f"StartTime >= {_literal(wanted.since.isoformat())}")
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
    if failed := attributes.get(FAILED_TASKS, ()):
        more = f" and {len(failed) - SHOWN_FAILED} more" if len(failed) > SHOWN_FAILED else ""
        cause = cause or f"failed: {', '.join(failed[:SHOWN_FAILED])}{more}"
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
        owner=attributes.get(OWNER, ""),
        executor=str(memo.get("executor", "")),
        restart_of=str(memo.get("restart_of", "")),
        created_at=_created_at(memo) or execution.start_time,
        ended_at=execution.close_time,
    )


def _created_at(memo: Mapping[str, object]) -> datetime | None:
    """Of a run that continued as new: its last execution began later."""
    found = memo.get(CREATED)
    try:
        return datetime.fromisoformat(found) if isinstance(found, str) else None
    except ValueError:
        return None


def matches(view: RunView, wanted: Filter) -> bool:
    """The same filter, without the text, for a run that only the store remembers: it has always ended."""
    has = {PROJECT: view.project, GROUP: view.group, OWNER: view.owner, TRIGGER: view.trigger}
    below = wanted.below.rstrip("/")
    if any(cut(has[key]) != word for key, word in wanted.words):
        return False
    if below and view.group != below and not view.group.startswith(f"{below}/"):
        return False
    if wanted.since and (view.created_at is None or view.created_at < wanted.since):
        return False
    return wanted.phase in (None, "closed", {"stopped": "cancelled"}.get(view.result, view.result))


def has_text(view: RunView, text: str) -> bool:
    """In whatever case."""
    return any(text.casefold() in each.casefold() for each in (view.id, view.name, view.cause))
