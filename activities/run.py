"""The activities at the two ends of a run: judge and plan it, keep its result."""

import asyncio
import logging
from datetime import UTC, datetime
from difflib import get_close_matches

from pydantic import ValidationError
from temporalio import activity

from activities.failures import translate
from activities.faults import Fault, no_fault
from activities.pulse import Pulse
from activities.restart import ask_temporal, keep
from activities.signatures import (
    LEAVE_VIEW,
    PREPARE_RUN,
    RECORD_RUN,
    PreparedRun,
    PrepareRun,
    RecordRun,
)
from activities.spans import Spans
from runyard.errors import InvalidRequest
from runyard.metrics import NO_METRICS, Metrics
from runyard.records.earlier import StoredRequest, find_earlier, write_request
from runyard.records.runs import PlanIndex, write_passing, write_plan, write_result
from runyard.records.snapshots import refer_to_snapshot
from runyard.settings import HEARTBEAT_S
from runyard.spec import compile_run, graph_task, is_skipped
from runyard.spec.group import NO_CAPS, Caps, lines_of
from runyard.spec.plan import Plan
from runyard.spec.replan import replan
from runyard.spec.restart import Earlier, merge
from runyard.spec.run import Passing, RunRequest
from runyard.store.base import ObjectStore
from runyard.traces import NO_TRACES, Traces, place_of_run
from runyard.worklog import about

log = logging.getLogger(__name__)

HISTORY_EVENTS = 7_000
HISTORY_BYTES = 4 << 20
"""A run continues as new from here on. The server suggests it at 4,096 events, which for a run of many short tasks
means to adopt hundreds of pods every few seconds; what is in flight adds some 1,500, and 10,240 is the limit. The
workflow is told, so that the number can change without breaking the replay of runs that are under way."""


TIMERS = 500
"""A timer with a name is for people; thousands of them would fill a history, and the next execution's again."""

GATHERS_MS = 1_000
"""Long enough that one activity confirms many, short enough for a pod whose fetch died before its delete."""

CLOSING_MS = 150
"""A question that meets an execution in its last workflow task is answered by a replay of all of it, seconds of
the worker's time. So the end is announced: this is longer than it takes to look at a memo and to ask."""


class RunActivities:
    """They need the store only, so that any worker on the queue `runyard` can serve them."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        caps: Caps = NO_CAPS,
        heartbeat_s: float = HEARTBEAT_S,
        metrics: Metrics = NO_METRICS,
        traces: Traces = NO_TRACES,
        fault: Fault = no_fault,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._spans = Spans(store, traces)
        self._caps = caps
        self._heartbeat_ms = round(heartbeat_s * 1_000)
        self._fault = fault

    @activity.defn(name=PREPARE_RUN)
    @translate
    async def prepare_run(self, prepare: PrepareRun) -> PreparedRun:
        """Validate, plan, store the plan. Raises InvalidRequest, InvalidRunFile (every problem at once)."""
        about(run=prepare.run_id)
        async with Pulse():
            request, plan = await self._plan(prepare)
            index = await self._store_plan(request, plan)
        run = plan.run
        log.info("run planned", extra={"tasks": len(plan.tasks), "restart_of": run.restart_of})
        return PreparedRun(
            name=run.name,
            group=run.group,
            project=run.project,
            owner=request.owner,
            trigger=request.trigger,
            executor=run.executor,
            annotations=run.annotations,
            window=min(request.window, run.concurrency or request.window),
            timeout_s=run.timeout_s,
            fail_fast=run.fail_fast,
            hold_failed=run.hold_failed,
            history_events=HISTORY_EVENTS,
            history_bytes=HISTORY_BYTES,
            timers=TIMERS,
            closing_ms=CLOSING_MS,
            gathers_ms=GATHERS_MS,
            heartbeat_ms=self._heartbeat_ms,
            leaves_view=True,
            restart_of=run.restart_of,
            header=index.header,
            tasks=[graph_task(task, at) for task, at in zip(plan.tasks, index.tasks, strict=True)],
            nothing=_why_nothing(request, plan),
            lines=lines_of(run, execution_id=prepare.execution_id, caps=self._caps) if plan.tasks else [],
        )

    async def _plan(self, prepare: PrepareRun) -> tuple[RunRequest, Plan]:
        """The request, with what a restart takes over, and its plan."""
        request, earlier = _parse(prepare), None
        whole = request
        if request.restart is not None:
            if request.restart.run == prepare.run_id:
                raise InvalidRequest("a run cannot be a restart of itself", remedy="Give it another id.")
            earlier = await find_earlier(self._store, request.restart.run, ask=ask_temporal)
            whole = merge(request, earlier)
        # a thread, since compiling 10,000 tasks takes seconds and other activities' heartbeats share this loop
        plan = await asyncio.to_thread(_make_plan, prepare, whole, earlier)
        if whole.source.snapshot is not None:  # the client has done so; a restart or another program may not have
            await refer_to_snapshot(self._store, prepare.run_id, whole.source.snapshot)
        if earlier is not None:
            plan = await keep(self._store, plan, request, whole, earlier, fault=self._fault)
            link = {"restart_trace": str(place_of_run(earlier.plan.run))}
            plan = plan.model_copy(update={"run": plan.run.model_copy(update=link)})
        return whole, plan

    async def _store_plan(self, request: RunRequest, plan: Plan) -> PlanIndex:
        """The plan last: it is what makes the run visible."""
        run = plan.run
        await write_request(self._store, run.run_id, StoredRequest(execution_id=run.execution_id, request=request))
        self._fault("prepare.requested")
        index = await write_plan(self._store, plan)
        self._fault("prepare.planned")
        return index

    @activity.defn(name=LEAVE_VIEW)
    @translate
    async def leave_view(self, passing: Passing) -> None:
        """What a client shows in the second or two in which no execution of the run can answer."""
        about(run=passing.view.id)
        await write_passing(self._store, passing)

    @activity.defn(name=RECORD_RUN)
    @translate
    async def record_run(self, record: RecordRun) -> None:
        """Keep the result beside the plan: it outlives Temporal's retention."""
        run = record.run
        about(run=run.id)
        async with Pulse():
            await write_result(self._store, run)
            self._metrics.run(run.result)
            log.info("run ended", extra={"result": run.result, "cause": run.cause})
            await self._spans.run(run, until=datetime.now(UTC))


def _make_plan(prepare: PrepareRun, whole: RunRequest, earlier: Earlier | None) -> Plan:
    ids = {"run_id": prepare.run_id, "execution_id": prepare.execution_id}
    made = replan(earlier, whole, **ids) if earlier is not None else None
    return made or compile_run(whole, **ids)


def _why_nothing(request: RunRequest, plan: Plan) -> str:
    if plan.tasks:
        return ""
    return "the commit's message says `[ci skip]`" if is_skipped(request.message) else "the run has no task"


def _parse(prepare: PrepareRun) -> RunRequest:
    try:
        return RunRequest.model_validate(prepare.request)
    except ValidationError as error:
        raise InvalidRequest("; ".join(_sentence(each) for each in error.errors())) from error


def _sentence(error: object) -> str:
    assert isinstance(error, dict)
    where = ".".join(str(part) for part in error["loc"] if part not in ("str", "dict[str,JsonValue]"))
    if error["type"] == "extra_forbidden":
        near = get_close_matches(where, list(RunRequest.model_fields), n=1)
        return f"the request has no field `{where}`" + (f"; did you mean `{near[0]}`?" if near else "")
    if error["type"] == "no_file":
        return str(error["msg"])
    if error["type"] == "missing":
        return f"the request needs the field `{where}`"
    return f"the request's `{where}`: {error['msg']}"
