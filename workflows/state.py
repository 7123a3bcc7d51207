"""What a run remembers: in memory, and across continue-as-new.

Times are milliseconds since the run was created: a run of 10,000 tasks carries its whole state from one
execution to the next, and that must stay far below Temporal's limit for one payload.
"""

from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from activities.signatures import DeleteTask, PreparedRun
from runyard.graph import Outcome
from runyard.model import Model
from runyard.reasons import Reason
from runyard.spec.plan import Kept
from runyard.spec.run import CacheUse, GraphTask, PodRef, TaskEnd, TaskStatus, TaskView

_UNSAID = {name: each.get_default(call_default_factory=True) for name, each in TaskView.model_fields.items()}
"""What readers of a view take for granted."""


class TaskRecord(BaseModel):
    """A task that has been started, or that waits for people. The workflow writes to it."""

    model_config = ConfigDict(extra="ignore")

    task: str
    status: TaskStatus = "queued"
    attempt: int = 0
    pod: PodRef | None = None
    queued_ms: int = 0
    scheduled_ms: int | None = None
    started_ms: int | None = None
    ended_ms: int | None = None
    next_attempt_ms: int | None = None
    reason: Reason | None = None
    message: str = ""
    exit_code: int | None = None
    last_line: str = ""
    approvals: list[str] = []
    stop: Reason | None = None  # somebody wants it to end
    stop_message: str = ""
    retry: bool = False  # somebody wants a held task to be tried again
    retries: int = 0  # of the user's budget
    losses: int = 0  # of the user's budget for losses
    restarts: int = 0  # attempts lost before their first step: they are free


class Deleting(Model):
    """A pod that has to go, kept until ``due_ms`` for people who want to look at it."""

    request: DeleteTask
    due_ms: int = 0


class Carried(Model):
    """What goes from one execution of the workflow to the next."""

    prepared: PreparedRun
    created_at: datetime
    outcomes: dict[str, Outcome] = {}
    in_flight: list[str] = []
    records: list[TaskRecord] = []
    deleting: list[Deleting] = []
    finished: list[str] = []  # the last that ended, newest last: for the details
    stop: Reason | None = None
    stop_message: str = ""
    recorded: bool = False
    hurry: bool = False
    counter: int = 0
    began_ms: int = 0
    superseded: str = ""
    caches: CacheUse | None = None


class Clock:
    """Turns moments into milliseconds since the run was created, and back."""

    def __init__(self, created_at: datetime) -> None:
        self.created_at = created_at

    def ms(self, at: datetime) -> int:
        return round((at - self.created_at).total_seconds() * 1000)

    def at(self, ms: int | None) -> datetime | None:
        return None if ms is None else self.created_at + timedelta(milliseconds=ms)


def apply_end(record: TaskRecord, end: TaskEnd, clock: Clock) -> None:
    """Write the end of an attempt into its task's record."""
    record.reason = end.reason
    record.message = end.message
    record.exit_code = end.exit_code
    record.last_line = end.last_line
    if end.started_at:
        record.started_ms = clock.ms(end.started_at)


def view_task(
    node: GraphTask, record: TaskRecord | None, clock: Clock, *, outcome: Outcome | None, why: str
) -> TaskView:
    """One task as others see it."""
    if node.kept is not None:
        return _view_kept(node, node.kept)
    if record is None:
        status: TaskStatus = outcome or "waiting"
        reason = None
        if outcome == "skipped":
            reason = Reason.WHEN if node.skip else Reason.DEPENDENCY
        elif outcome == "cancelled":
            reason = Reason.NEVER_STARTED
        return _view(name=node.name, status=status, reason=reason, message=why, ignore_failure=node.ignore_failure)
    started_ms = record.started_ms if record.started_ms is not None else record.scheduled_ms
    return _view(
        name=node.name,
        status=record.status,
        attempt=record.attempt,
        reason=record.reason,
        message=record.message,
        exit_code=record.exit_code,
        queued_at=clock.at(record.queued_ms),
        started_at=clock.at(started_ms),
        ended_at=clock.at(record.ended_ms),
        approvals=record.approvals,
        approvals_needed=node.approval.approvers if node.approval else 0,
        next_attempt_at=clock.at(record.next_attempt_ms) if record.status == "retrying" else None,
        ignore_failure=node.ignore_failure,
        last_line=record.last_line,
    )


def _view(**facts: object) -> TaskView:
    """With what is not there unset, since nothing that is unset is sent: a third of the bytes of a large run."""
    return TaskView.model_validate({name: fact for name, fact in facts.items() if fact != _UNSAID[name]})


def _view_kept(node: GraphTask, kept: Kept) -> TaskView:
    return TaskView(name=node.name, status="success", id=node.id, attempt=kept.attempt, kept_from=kept.run)
