"""The activities of a cleanup. Each may end anywhere and be tried again, also while an earlier try still runs."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from pydantic import JsonValue, ValidationError
from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest, DescribeTaskQueueRequest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities.failures import translate
from activities.faults import Fault, no_fault
from activities.pulse import Pulse
from activities.signatures import (
    CLEAN,
    PLAN_CLEANUP,
    REMOVE_RUN,
    SURVEY,
    Clean,
    Cleaned,
    CleanupPlan,
    CleanupRules,
    PlanCleanup,
    RemoveRun,
)
from activities.statuses import Statuses
from runyard.errors import InvalidRequest, NotFound, ServerUnavailable
from runyard.records.cachesweep import UNFINISHED_S, expire_caches
from runyard.records.ended import complete_index
from runyard.records.expiry import How, Page, expire_item, expire_items, expire_run, expire_runs
from runyard.records.fates import Judge, Rules
from runyard.records.runs import read_plan
from runyard.records.sharing import exists
from runyard.records.snapshots import list_shares
from runyard.records.survey import find_cutoffs, find_oldest
from runyard.spec.cleanup import (
    CLEANUP,
    CleanupKind,
    CleanupReport,
    CleanupRequest,
    Retention,
    SharedKind,
    Tally,
    is_full,
)
from runyard.spec.run import executor_queue
from runyard.store import paths
from runyard.store.base import ObjectStore

TURN_S: Final = 120.0
"""An activity gives its workflow a word at least so often: what was done is then in the history."""

AT_ONCE: Final = 32
LAST_KIND: Final[CleanupKind] = "caches"
"""With it goes what belongs to no kind: one of its own would be a command that cleanups under way do not know."""


class CleanupActivities:
    """They need the store and Temporal itself; any worker on the queue `runyard` serves them."""

    def __init__(
        self,
        store: ObjectStore,
        client: Client,
        *,
        retention: Retention = Retention(),  # noqa: B008 - frozen
        executors: Sequence[str] = (),
        fault: Fault = no_fault,
    ) -> None:
        self._store = store
        self._client = client
        self._retention = retention
        self._executors = list(dict.fromkeys(executors))
        self._statuses = Statuses(client)
        self._fault = fault

    @activity.defn(name=PLAN_CLEANUP)
    @translate
    async def plan_cleanup(self, plan: PlanCleanup) -> CleanupPlan:
        """Judge the request, and find out who else cleans and which executors have a worker."""
        request = _parse(plan.request)
        rules = CleanupRules(request=request, retention=self._retention, now=plan.started_at)
        if request.runs:
            return CleanupPlan(rules=rules)
        async with Pulse():
            served = [name for name in self._executors if await self._is_served(name)]
            self._fault("plan.asked")
            other = "" if request.dry_run else await self._other()
        return CleanupPlan(rules=rules, executors=served, gives_way_to=other)

    @activity.defn(name=SURVEY)
    @translate
    async def survey(self, rules: CleanupRules) -> CleanupRules:
        """Find what is too much, where there are limits to number or size."""
        keep = rules.retention
        found: dict[str, object] = {}
        async with Pulse():
            if keep.runs_per_group is not None:
                found["cutoffs"] = await find_cutoffs(self._store, runs_per_group=keep.runs_per_group)
            if keep.total_bytes is not None:
                found["oldest"] = await find_oldest(self._store, total_bytes=keep.total_bytes)
        return rules.model_copy(update=found)

    @activity.defn(name=CLEAN)
    @translate
    async def clean(self, request: Clean) -> Cleaned:
        """Things of one kind, for a while. A further try goes on where the last one was."""
        done = _resumed() or Cleaned(cursor=request.cursor)
        deadline = time.monotonic() + TURN_S
        async with Pulse(done) as pulse:
            async for page in self._pages(request, done.cursor or ""):
                done = Cleaned(cursor=page.cursor, report=done.report.plus(page.report))
                pulse.show(done)
                if time.monotonic() > deadline:
                    return done
            if request.kind == LAST_KIND and not request.rules.request.dry_run:
                done = done.model_copy(update={"report": done.report.plus(await self._discard_unfinished())})
        return done.model_copy(update={"cursor": None})

    @activity.defn(name=REMOVE_RUN)
    @translate
    async def remove_run(self, request: RemoveRun) -> CleanupReport:
        """One run, because somebody wants it: its references, what nobody else refers to, its record."""
        run_id, store = request.run_id, self._store
        judge, how = self._judge(request.rules, remove=[run_id]), _how(request.rules)
        report = CleanupReport()
        async with Pulse():
            pinned = await exists(store, paths.keep(run_id))
            for kind, item in await self._items(run_id):
                report = report.plus(await expire_item(store, kind, item, judge, how))
            report = report.plus(await expire_run(store, run_id, judge, how))
            status = (await self._statuses.ask([run_id]))[run_id]
            if not status.open and not how.dry_run and not pinned:
                await self._forget(run_id)
        return report

    # inside

    async def _discard_unfinished(self) -> CleanupReport:
        """What killed writers left half-written: in a bucket it is in no listing, and is paid for."""
        number = await self._store.discard_unfinished(older_than_s=UNFINISHED_S)
        return CleanupReport(deleted={"unfinished writes": Tally(items=number)} if number else {})

    async def _pages(self, request: Clean, cursor: str) -> AsyncIterator[Page]:
        rules, how, store = request.rules, _how(request.rules), self._store
        if request.kind == "caches":
            pages = expire_caches(store, rules.retention, how, now=rules.now, start_after=cursor)
        elif request.kind == "runs":
            if not how.dry_run and not cursor:
                await complete_index(store, anew=rules.request.reindex)
            pages = expire_runs(store, self._judge(rules), how, start_after=cursor)
        else:
            pages = expire_items(store, request.kind, self._judge(rules), how, start_after=cursor)
        async for page in pages:
            yield page

    def _judge(self, rules: CleanupRules, *, remove: Sequence[str] = ()) -> Judge:
        by = Rules(retention=rules.retention, now=rules.now, cutoffs=rules.cutoffs, oldest=rules.oldest)
        return Judge(self._store, by, self._statuses.ask, remove=remove)

    async def _items(self, run_id: str) -> list[tuple[SharedKind, str]]:
        """What a run may refer to, by its plan. What that does not name the next cleanup finds."""
        try:
            plan = await read_plan(self._store, run_id)
        except NotFound:
            return []
        logs: list[tuple[SharedKind, str]] = [("logs", paths.log_item(task.id)) for task in plan.tasks]
        archives: list[tuple[SharedKind, str]] = [("archives", paths.archive_item(task.id)) for task in plan.tasks]
        snapshot = plan.run.source.snapshot
        shares = [] if snapshot is None else await list_shares(self._store, snapshot)
        return [*logs, *archives, *(("snapshots", item) for item in shares)]

    async def _forget(self, run_id: str) -> None:
        """Have Temporal forget it too, so that no list shows it: it does so within a minute."""
        request = DeleteWorkflowExecutionRequest(
            namespace=self._client.namespace, workflow_execution=WorkflowExecution(workflow_id=run_id)
        )
        try:
            await self._client.workflow_service.delete_workflow_execution(request)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise ServerUnavailable(
                    f"{run_id} cannot be removed from Temporal: {error.message[:200]}"
                ) from error

    async def _is_served(self, executor: str) -> bool:
        request = DescribeTaskQueueRequest(
            namespace=self._client.namespace,
            task_queue=TaskQueue(name=executor_queue(executor)),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        )
        try:
            return bool((await self._client.workflow_service.describe_task_queue(request)).pollers)
        except RPCError as error:
            raise ServerUnavailable(
                f"the queue of {executor} cannot be looked at: {error.message[:200]}"
            ) from error

    async def _other(self) -> str:
        """A cleanup that began before this one and goes on. That is for economy: two at once do no harm."""
        own = activity.info().workflow_id or ""
        begun = {own: (await self._client.get_workflow_handle(own).describe()).start_time}
        async for each in self._client.list_workflows(
            f"WorkflowType = '{CLEANUP}' AND ExecutionStatus = 'Running'"
        ):
            if is_full(each.id) and each.id != own:
                found = await self._client.get_workflow_handle(each.id).describe()  # the list lags behind
                if found.status is WorkflowExecutionStatus.RUNNING:
                    begun[each.id] = found.start_time
        first = min(begun, key=lambda each: (begun[each], each))
        return "" if first == own else first


class Pacer:
    """At most so many deletes a second, over all that go on at once."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._next = 0.0

    async def __call__(self, number: int) -> None:
        now = time.monotonic()
        self._next = max(self._next, now) + number / self._per_s
        if (wait_s := self._next - now) > 0:
            await asyncio.sleep(wait_s)


def _how(rules: CleanupRules) -> How:
    per_s = rules.retention.objects_per_s
    if per_s is None:
        return How(dry_run=rules.request.dry_run, at_once=AT_ONCE)
    return How(dry_run=rules.request.dry_run, at_once=AT_ONCE, pace=Pacer(per_s))


def _resumed() -> Cleaned | None:
    """How far the last try of this activity was."""
    details = activity.info().heartbeat_details
    return Cleaned.model_validate(details[0]) if details else None


def _parse(request: JsonValue) -> CleanupRequest:
    try:
        return CleanupRequest.model_validate(request or {})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "argument"
        raise InvalidRequest(f"the cleanup's `{where}`: {first['msg']}") from error
