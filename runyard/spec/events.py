"""What happens to runs and their tasks, as others are told of it, one after the other."""

from datetime import datetime
from typing import Literal

from runyard.model import Model
from runyard.reasons import Reason
from runyard.spec.run import RunResultWord, TaskStatus

EventKind = Literal[
    "run_started",
    "run_waiting",  # for its turn; `message`: in which line
    "run_ended",  # `result`, `message`
    "task_kept",  # a restart has it from an earlier run: `kept_from`
    "task_started",  # an attempt has a pod
    "attempt_ended",  # `status`, `reason`, `exit_code`; a retry may follow
    "task_held",  # failed, and waits for a decision
    "task_succeeded",
    "task_failed",
    "task_skipped",
    "task_cancelled",
]

ENDS: dict[TaskStatus, EventKind] = {
    "success": "task_succeeded",
    "failed": "task_failed",
    "skipped": "task_skipped",
    "cancelled": "task_cancelled",
}


class Event(Model):
    """``id`` is the same whenever the event is told again; ``cursor`` is where to go on after it."""

    id: str
    kind: EventKind
    run: str
    at: datetime
    task: str = ""
    attempt: int = 0
    status: TaskStatus | None = None
    result: RunResultWord | None = None
    reason: Reason | None = None
    exit_code: int | None = None
    message: str = ""
    kept_from: str = ""
    cursor: str = ""


def event_id(execution_id: str, kind: EventKind, *, task: str = "", attempt: int = 0, more: str = "") -> str:
    """Of what happened and to what, and not of where it was read: each happens once in an execution."""
    return "/".join(filter(None, [execution_id, kind, str(attempt or ""), task, more]))
