"""From the history of a run's workflow to the events of the run: one at a time, in its order.

A history has all that a worker was told and has answered, so nothing needs to be written for the feed, and it can
be read without a worker. What it does not say at once is said later: that a task was skipped, or failed for good
where a retry might have come, is in the record at the run's end, or in what an execution hands on to the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import TimeoutType
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.converter import DataConverter

from runyard.model import Model
from runyard.reasons import Reason
from runyard.spec.events import ENDS, Event, EventKind, event_id
from runyard.spec.run import GraphTask, RunView, TaskEnd, TaskStatus

M = TypeVar("M", bound=Model)

_STARTED = "workflow_execution_started_event_attributes"
_CONTINUED = "workflow_execution_continued_as_new_event_attributes"
_MENDLESS = (Reason.IMAGE_PULL, Reason.QUOTA)


class _Prepared(Model):
    """What of the answer of `prepare_run` is needed here."""

    tasks: list[GraphTask] = []
    hold_failed: bool = False


class _Record(Model):
    task: str
    attempt: int = 0
    reason: Reason | None = None
    message: str = ""
    exit_code: int | None = None


class _Carried(Model):
    """What of the state that one execution hands to the next."""

    prepared: _Prepared = _Prepared()
    outcomes: dict[str, TaskStatus] = {}
    records: list[_Record] = []


class _Recorded(Model):
    run: RunView


class _Entry(Model):
    line: str = ""


@dataclass(frozen=True)
class _Activity:
    kind: str
    id: str
    task: str
    attempt: int


@dataclass
class Transcript:
    """Reads the events of one run; ``next`` is the execution that goes on after a continue-as-new."""

    run_id: str
    converter: DataConverter
    execution: str = ""
    next: str = ""
    closed: bool = False
    _activities: dict[int, _Activity] = field(default_factory=dict)
    _over: set[str] = field(default_factory=set)  # tasks whose end was told
    _retried: set[str] = field(default_factory=set)  # tasks with a `retry`
    _holds: bool = False
    _result: RunView | None = None
    _last_at: datetime = datetime(1970, 1, 1, tzinfo=UTC)

    async def read(self, event: HistoryEvent) -> list[Event]:
        """What an event of the history says."""
        self._last_at = max(self._last_at, event.event_time.ToDatetime(tzinfo=UTC))
        which = event.WhichOneof("attributes") or ""
        if which == _STARTED:
            return await self._started(event)
        if which == "activity_task_scheduled_event_attributes":
            return await self._scheduled(event)
        if which == "activity_task_completed_event_attributes":
            done = event.activity_task_completed_event_attributes
            return await self._completed(self._activities.pop(done.scheduled_event_id), done.result.payloads)
        if which == "activity_task_failed_event_attributes":
            failed = event.activity_task_failed_event_attributes
            return await self._failed(self._activities.pop(failed.scheduled_event_id), failed.failure)
        if which == "activity_task_timed_out_event_attributes":
            late = event.activity_task_timed_out_event_attributes
            return await self._failed(self._activities.pop(late.scheduled_event_id), late.failure)
        if which == "activity_task_canceled_event_attributes":  # asked for once more, or in the record
            self._activities.pop(event.activity_task_canceled_event_attributes.scheduled_event_id)
        if which == _CONTINUED:
            self._activities.clear()
            self.next = event.workflow_execution_continued_as_new_event_attributes.new_execution_run_id
        return self._closed(event, which)

    async def _started(self, event: HistoryEvent) -> list[Event]:
        facts = event.workflow_execution_started_event_attributes
        self.execution, self.next = facts.first_execution_run_id, ""
        if len(facts.input.payloads) < 2:
            return [self._tell("run_started")]
        carried = await self._decode(facts.input.payloads[1:2], _Carried)
        self._learn(carried.prepared)
        records = {record.task: record for record in carried.records}
        return [
            each
            for task, status in carried.outcomes.items()
            for each in self._end_of_task(task, status, records.get(task))
        ]

    def _learn(self, prepared: _Prepared) -> None:
        self._retried = {task.name for task in prepared.tasks if task.retry}
        self._holds = prepared.hold_failed
        self._over |= {task.name for task in prepared.tasks if task.kept}

    async def _scheduled(self, event: HistoryEvent) -> list[Event]:
        facts = event.activity_task_scheduled_event_attributes
        kind, word = facts.activity_type.name, facts.activity_id.partition(" ")[2]
        task, _, attempt = word.rpartition(" #")
        number = int(attempt) if attempt.isdecimal() else 0
        self._activities[event.event_id] = _Activity(kind, facts.activity_id, task, number)
        if kind == "stay_in_line":
            line = (await self._decode(facts.input.payloads, _Entry)).line
            return [self._tell("run_waiting", more=line, message=f"in the line of {line}")]
        if kind == "record_run":
            self._result = (await self._decode(facts.input.payloads, _Recorded)).run
            return [
                each
                for task_view in self._result.tasks
                if task_view.status in ENDS and not task_view.kept_from
                for each in self._end_of_task(task_view.name, task_view.status, task_view)
            ]
        return []

    async def _completed(self, activity: _Activity, result: Sequence[Payload]) -> list[Event]:
        if activity.kind == "prepare_run":
            prepared = await self._decode(result, _Prepared)
            self._learn(prepared)
            kept = [(task.name, task.kept) for task in prepared.tasks if task.kept]
            return [
                self._tell("task_kept", task=name, status="success", kept_from=each.run) for name, each in kept
            ]
        if activity.kind == "schedule_task":
            return [self._tell("task_started", task=activity.task, attempt=activity.attempt)]
        if activity.kind == "fetch_task":
            return self._end_of_attempt(activity, await self._decode(result, TaskEnd))
        return []

    async def _failed(self, activity: _Activity, failure: Failure) -> list[Event]:
        if activity.kind not in ("schedule_task", "fetch_task"):
            return []
        details = failure.application_failure_info.details.payloads
        if details:
            return self._end_of_attempt(activity, await self._decode(details[:1], TaskEnd))
        late = failure.timeout_failure_info.timeout_type == TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE
        reason = Reason.TIMEOUT_QUEUE if late else Reason.INTERNAL
        end = TaskEnd(status="failed", reason=reason, message=failure.message[:500], began=not late)
        return self._end_of_attempt(activity, end)

    def _end_of_attempt(self, activity: _Activity, end: TaskEnd) -> list[Event]:
        facts: dict[str, object] = {
            "attempt": activity.attempt,
            "reason": end.reason,
            "exit_code": end.exit_code,
            "message": end.message,
        }
        told = [self._tell("attempt_ended", task=activity.task, status=end.status, **facts)]
        if end.status == "success":
            self._over.add(activity.task)
            told.append(self._tell("task_succeeded", task=activity.task, status="success", **facts))
        elif end.status == "failed" and self._is_last(activity.task, end):
            if self._holds:
                told.append(self._tell("task_held", task=activity.task, status="held", **facts))
            else:
                self._over.add(activity.task)
                told.append(self._tell("task_failed", task=activity.task, status="failed", **facts))
        return told

    def _is_last(self, task: str, end: TaskEnd) -> bool:
        """Whether certainly nobody tries again by himself. Where it may be, a later event says how it went."""
        free = not end.began and end.reason.infra and end.reason not in _MENDLESS
        return task not in self._retried and not free

    def _end_of_task(self, task: str, status: TaskStatus, facts: object) -> list[Event]:
        """Its end, unless that was told already."""
        if task in self._over or status not in ENDS:
            return []
        self._over.add(task)
        named = {
            name: getattr(facts, name)
            for name in ("attempt", "reason", "exit_code", "message")
            if facts is not None
        }
        return [self._tell(ENDS[status], task=task, status=status, **named)]

    def _closed(self, event: HistoryEvent, which: str) -> list[Event]:
        if which == "workflow_execution_completed_event_attributes":
            return self._ended("success", "")
        if which == "workflow_execution_failed_event_attributes":
            return self._ended("failed", event.workflow_execution_failed_event_attributes.failure.message)
        if which == "workflow_execution_canceled_event_attributes":
            return self._ended("stopped", "cancelled")
        if which == "workflow_execution_terminated_event_attributes":
            return self._ended("stopped", "terminated from outside")
        if which == "workflow_execution_timed_out_event_attributes":
            return self._ended("failed", "the workflow timed out")
        return []

    def _ended(self, result: str, message: str) -> list[Event]:
        self.closed = True
        if self._result is not None:
            result, message = self._result.result, self._result.cause
        return [self._tell("run_ended", result=result, message=message)]

    def _tell(self, kind: EventKind, *, task: str = "", more: object = "", **facts: object) -> Event:
        attempt = facts.get("attempt", 0) if kind in ("task_started", "attempt_ended", "task_held") else 0
        assert isinstance(attempt, int)
        return Event.model_validate(
            {
                "id": event_id(self.execution, kind, task=task, attempt=attempt, more=str(more)),
                "kind": kind,
                "run": self.run_id,
                "at": self._last_at,
                "task": task,
                **facts,
            }
        )

    async def _decode(self, payloads: Sequence[Payload], model: type[M]) -> M:
        (value,) = await self.converter.decode(payloads, [model])
        assert isinstance(value, model)
        return value
