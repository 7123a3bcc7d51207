"""What is told of runs and attempts as spans: nothing, and at no cost, where the worker tells nobody.

A span's trace follows from the run's plan, whose head is read once an execution. What goes wrong here is logged,
and changes nothing else: a run must not wait for those who watch it.
"""

import logging
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final, NamedTuple

from temporalio import activity

from activities.signatures import TaskAttempt
from runyard.errors import RunyardError
from runyard.executors.base import Ended
from runyard.metrics import Phase
from runyard.records.runs import find_header
from runyard.spec.plan import RunPlan
from runyard.spec.run import RunView, TaskEnd
from runyard.store.base import ObjectStore
from runyard.traces import Place, Span, Traces, parse, place_of_attempt, place_of_phase

log = logging.getLogger(__name__)

_RESULTS: Final = {
    "success": "success",
    "failed": "failure",
    "cancelled": "cancellation",
    "stopped": "cancellation",
}
"""Our words in those of OpenTelemetry's conventions for CI."""

_KNOWN: Final = 200
"""Places of runs that are kept: those that one worker has tasks of at the same time."""


class Lapse(NamedTuple):
    """A phase of an attempt that is over."""

    phase: Phase
    since: datetime
    until: datetime

    @property
    def seconds(self) -> float:
        return (self.until - self.since).total_seconds()


def lapses_of(ended: Ended | None, end: TaskEnd) -> Iterator[Lapse]:
    """The phases in the pod, as far as somebody noted both ends."""
    placed = (ended.created_at, ended.placed_at, ended.started_at) if ended else (None, None, None)
    edges = (*placed, end.started_at, end.ended_at, ended.ended_at if ended else None)
    names: tuple[Phase, ...] = ("schedule", "pull", "start", "run", "drain")
    for phase, since, until in zip(names, edges, edges[1:], strict=False):
        if since is not None and until is not None:
            yield Lapse(phase, since, until)


class Spans:
    """Tells what activities know. Its methods never raise."""

    def __init__(self, store: ObjectStore, traces: Traces) -> None:
        self._store = store
        self._traces = traces
        self._places: dict[tuple[str, str], Place | None] = {}  # by run and the workflow's execution

    def traceparent(self, run: RunPlan, attempt: TaskAttempt) -> str:
        """What the attempt's steps are to continue: its own span, or what the run was given if nobody is told."""
        place = self._know(attempt.run_id, run)
        if place is None:
            return run.traceparent
        return str(place_of_attempt(place, attempt.task_id, attempt.attempt))

    async def phases(self, attempt: TaskAttempt, lapses: Iterable[Lapse]) -> None:
        if place := await self._place(attempt.run_id):
            self._tell_phases(place, attempt, lapses)

    async def attempt(
        self, attempt: TaskAttempt, lapses: Iterable[Lapse], end: TaskEnd, *, since: datetime, until: datetime
    ) -> None:
        """An attempt that has ended, with the phases that are over; its delete comes later."""
        if place := await self._place(attempt.run_id):
            self._tell_phases(place, attempt, lapses)
            facts: dict[str, str | int] = {
                "cicd.pipeline.task.name": attempt.task,
                "cicd.pipeline.task.run.id": attempt.task_id,
                "cicd.pipeline.task.run.result": "timeout" if "timeout" in end.reason else _RESULTS[end.status],
                "runyard.attempt": attempt.attempt,
                "runyard.reason": str(end.reason),
                **({"process.exit.code": end.exit_code} if end.exit_code is not None else {}),
            }
            self._traces.tell(
                Span(
                    name=attempt.task,
                    place=place_of_attempt(place, attempt.task_id, attempt.attempt),
                    parent=place,
                    started_at=since,
                    ended_at=until,
                    attributes=facts,
                    error=(end.message or end.reason.sentence) if end.status == "failed" else None,
                )
            )

    async def run(self, view: RunView, *, until: datetime) -> None:
        """A run that has ended. One that was never planned has no trace."""
        plan = await self._plan(view.id)
        place = self._know(view.id, plan) if plan is not None else None
        if plan is None or place is None or view.created_at is None:
            return
        facts: dict[str, str | int] = {
            "cicd.pipeline.name": view.name,
            "cicd.pipeline.run.id": view.id,
            "cicd.pipeline.result": _RESULTS.get(view.result, view.result),
            "runyard.tasks": sum(view.counts.values()),
            **{
                f"runyard.{name}": getattr(view, name)
                for name in ("project", "group", "owner", "trigger", "executor")
            },
        }
        self._traces.tell(
            Span(
                name=view.name or view.id,
                place=place,
                parent=parse(plan.traceparent),
                started_at=view.created_at,
                ended_at=view.ended_at or until,
                attributes=facts,
                error=view.cause if view.result == "failed" else None,
                link=parse(plan.restart_trace),
            )
        )

    def _tell_phases(self, place: Place, attempt: TaskAttempt, lapses: Iterable[Lapse]) -> None:
        above = place_of_attempt(place, attempt.task_id, attempt.attempt)
        for phase, since, until in lapses:
            own = place_of_phase(place, attempt.task_id, attempt.attempt, phase)
            self._traces.tell(Span(name=phase, place=own, parent=above, started_at=since, ended_at=until))

    async def _place(self, run_id: str) -> Place | None:
        key = (run_id, activity.info().workflow_run_id or "")
        if key in self._places:
            return self._places[key]
        plan = await self._plan(run_id)
        return self._know(run_id, plan) if plan is not None else None

    def _know(self, run_id: str, plan: RunPlan) -> Place | None:
        key = (run_id, activity.info().workflow_run_id or "")
        if key not in self._places:
            while len(self._places) >= _KNOWN:
                del self._places[next(iter(self._places))]
            self._places[key] = self._traces.begin(plan)
        return self._places[key]

    async def _plan(self, run_id: str) -> RunPlan | None:
        try:
            return await find_header(self._store, run_id) if self._traces.on else None
        except RunyardError as error:
            log.warning("a span is lost: %s", error.message)
            return None
