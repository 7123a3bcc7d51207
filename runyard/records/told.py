"""The events of a run that only the store remembers: from its result and the seals of its attempts.

They have the ids that they had while the run went on. What left nothing behind is missing: that it waited, that a
task was held.
"""

from datetime import datetime

from runyard.errors import Corrupt
from runyard.records.bounded import for_each
from runyard.records.logs import Seal, load_seal
from runyard.records.runs import read_plan
from runyard.spec.events import ENDS, Event, EventKind, event_id
from runyard.spec.run import RunView, TaskView
from runyard.store.base import ObjectStore

_AT_ONCE = 32


async def list_events(store: ObjectStore, view: RunView) -> list[Event]:
    """Of a run that has ended, in their order. Raises NotFound where its plan is gone, StoreError."""
    assert view.ended_at is not None
    begun = view.created_at or view.ended_at
    ids = {task.name: task.id for task in (await read_plan(store, view.id)).tasks} if view.tasks else {}

    async def of_task(task: TaskView) -> list[Event]:
        return await _of_task(store, view, task, ids.get(task.name, ""))

    found = [event for each in await for_each(view.tasks, of_task, limit=_AT_ONCE) for event in each]
    first = _tell(view, "run_started", at=begun)
    last = _tell(view, "run_ended", at=view.ended_at, result=view.result, message=view.cause)
    within = [event.model_copy(update={"at": min(max(event.at, begun), view.ended_at)}) for event in found]
    return [first, *sorted(within, key=lambda event: event.at), last]


async def _of_task(store: ObjectStore, view: RunView, task: TaskView, task_id: str) -> list[Event]:
    assert view.ended_at is not None
    if task.kept_from:
        begun = view.created_at or view.ended_at
        return [_tell(view, "task_kept", at=begun, task=task.name, status="success", kept_from=task.kept_from)]
    found: list[Event] = []
    last = view.created_at or view.ended_at
    for number in range(1, task.attempt + 1):
        seal = await _seal(store, task_id, number)
        if seal is not None:
            found += _of_attempt(view, task, seal, last)
            last = found[-1].at
    if task.status in ENDS:
        facts: dict[str, object] = {"attempt": task.attempt, "status": task.status, "reason": task.reason}
        facts |= {"exit_code": task.exit_code, "message": task.message}
        at = max(task.ended_at or view.ended_at, last)
        found.append(_tell(view, ENDS[task.status], at=at, task=task.name, **facts))
    return found


def _of_attempt(view: RunView, task: TaskView, seal: Seal, last: datetime) -> list[Event]:
    end, number = seal.end, seal.attempt
    ended = max(last, end.ended_at or seal.sealed_at)
    facts: dict[str, object] = {"attempt": number, "status": end.status, "reason": end.reason}
    facts |= {"exit_code": end.exit_code, "message": end.message}
    told = [_tell(view, "attempt_ended", at=ended, task=task.name, **facts)]
    if end.began:  # one that was refused never had a pod
        begun = min(max(last, end.started_at or ended), ended)
        told.insert(0, _tell(view, "task_started", at=begun, task=task.name, attempt=number))
    return told


async def _seal(store: ObjectStore, task_id: str, attempt: int) -> Seal | None:
    """None also for one that nobody can read: a broken seal must not hide all the rest."""
    try:
        return await load_seal(store, task_id, attempt)
    except Corrupt:
        return None


def _tell(view: RunView, kind: EventKind, *, at: datetime, task: str = "", **facts: object) -> Event:
    attempt = facts.get("attempt", 0) if kind in ("task_started", "attempt_ended") else 0
    assert isinstance(attempt, int)
    name = event_id(view.execution_id or view.id, kind, task=task, attempt=attempt)
    return Event.model_validate({"id": name, "kind": kind, "run": view.id, "at": at, "task": task, **facts})
