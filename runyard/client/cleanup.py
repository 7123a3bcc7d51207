"""Cleanups from a client: start one or join the one under way, remove a run, pin one, the schedule.

A full cleanup that somebody asks for has the schedule's id; one that the schedule starts has that id and a time.
The removal of a run is a cleanup of its own, named by the run: two who remove the same run meet in one.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
    ScheduleUpdateInput,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
)
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from runyard.client.remote import from_application, from_rpc
from runyard.client.run import ANSWER_S
from runyard.client.yard import Runyard
from runyard.errors import Conflict, NotFound, RemoteError, RunyardError, ServerUnavailable
from runyard.records.sharing import exists
from runyard.spec.cleanup import (
    CLEANUP,
    CLEANUP_ID,
    DRY_RUN_ID,
    CleanupReport,
    CleanupRequest,
    is_full,
    removal_id,
)
from runyard.spec.run import RUNS_QUEUE
from runyard.store import paths

_FULL: Final = f"WorkflowType = '{CLEANUP}' AND WorkflowId STARTS_WITH '{CLEANUP_ID}'"


@dataclass(frozen=True, kw_only=True)
class Cleanup:
    """A cleanup under way or done. ``joined``: somebody else had started it."""

    id: str
    joined: bool
    handle: WorkflowHandle[object, CleanupReport]
    yard: Runyard

    async def result(self) -> CleanupReport:
        """Wait for its end. Raises what kept it from its end, ServerUnavailable."""
        try:
            return await self.handle.result()
        except RPCError as error:
            raise self.yard.explain(error, what=f"the cleanup {self.id}") from error
        except WorkflowFailureError as error:
            if isinstance(error.cause, ApplicationError):
                raise from_application(error.cause) from error
            raise RemoteError(f"the cleanup {self.id} did not come to its end: {error.cause}") from error


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A cleanup as lists show it. ``report`` only where it has ended well."""

    id: str
    started_at: datetime
    open: bool
    report: CleanupReport | None


async def clean(yard: Runyard, *, dry_run: bool = False, now: bool = False, reindex: bool = False) -> Cleanup:
    """Start a cleanup, or join the one that is under way, as it was asked for. Raises ServerUnavailable."""
    client = yard.client
    request = CleanupRequest(dry_run=dry_run, now=now, reindex=reindex)
    try:
        if not dry_run and (other := await _under_way(client)):
            return _found(yard, other, joined=True)
        workflow_id = DRY_RUN_ID if dry_run else CLEANUP_ID
        joined = not await _start(client, workflow_id, request)
        return _found(yard, workflow_id, joined=joined)
    except RPCError as error:
        raise yard.explain(error, what="a cleanup") from error


async def latest(yard: Runyard) -> Seen:
    """The newest full cleanup. Raises NotFound where there was none."""
    try:
        async for each in yard.client.list_workflows(_FULL):
            if not is_full(each.id):
                continue
            handle = yard.client.get_workflow_handle(each.id, run_id=each.run_id, result_type=CleanupReport)
            status, report = each.status, None
            if status is WorkflowExecutionStatus.RUNNING:  # lists are a moment behind
                status = (await handle.describe()).status
            if status is WorkflowExecutionStatus.COMPLETED:
                report = await handle.result()
            is_open = status is WorkflowExecutionStatus.RUNNING
            return Seen(id=each.id, started_at=each.start_time, open=is_open, report=report)
    except RPCError as error:
        raise yard.explain(error, what="the list of cleanups") from error
    raise NotFound(
        "there was no cleanup yet", remedy="`runyard cleanup` starts one; `runyard doctor` looks for a schedule."
    )


async def remove_run(yard: Runyard, run_id: str) -> CleanupReport:
    """Remove a run that has ended: its record, and of its data what no other run refers to.

    Raises NotFound; Conflict where it is open or pinned; ServerUnavailable where no worker takes it.
    """
    view = await yard.run(run_id).describe()
    if view.phase in ("queued", "running") and view.ended_at is None:
        raise Conflict(
            f"run {run_id} has not ended", remedy=f"End it first: `runyard run cancel {run_id} --wait`."
        )
    if await exists(yard.store, paths.keep(run_id)):
        raise Conflict(f"run {run_id} is pinned", remedy=f"Let it go first: `runyard run keep {run_id} --undo`.")
    client, workflow_id = yard.client, removal_id(run_id)
    try:
        joined = not await _start(client, workflow_id, CleanupRequest(runs=[run_id]))
        async with asyncio.timeout(6 * ANSWER_S):
            report = await _found(yard, workflow_id, joined=joined).result()
    except RPCError as error:
        raise yard.explain(error, what=f"the removal of {run_id}") from error
    except TimeoutError as error:
        raise ServerUnavailable(
            f"the removal of {run_id} has not ended yet", remedy="It goes on; is a `runyard worker` there?"
        ) from error
    if report.kept and not report.deleted.get("runs"):
        raise Conflict(f"run {run_id} was not removed: {'; '.join(report.kept)}")
    return report


async def keep_run(yard: Runyard, run_id: str, *, undo: bool = False) -> None:
    """Pin a run: nothing of it is removed, whatever its age. With ``undo`` that ends. Raises NotFound."""
    await yard.run(run_id).describe()
    if undo:
        await yard.store.delete(paths.keep(run_id))
    else:
        await yard.store.put(paths.keep(run_id), b"")


async def ensure_schedule(client: Client, *, every_s: float) -> Literal["made", "updated", "as it was"]:
    """Have a cleanup started every so often. A schedule that somebody paused stays paused."""
    wanted = _schedule(every_s)
    try:
        await client.create_schedule(CLEANUP_ID, wanted)
    except ScheduleAlreadyRunningError:
        return await _update_schedule(client, wanted)
    except RPCError as error:
        raise _explain(client, error) from error
    return "made"


async def next_cleanup(client: Client) -> datetime | None:
    """When the schedule starts the next one. None: it is paused. Raises NotFound where there is no schedule."""
    try:
        found = await client.get_schedule_handle(CLEANUP_ID).describe()
    except RPCError as error:
        raise _explain(client, error) from error
    return None if found.schedule.state.paused else next(iter(found.info.next_action_times), None)


async def other_schedules(client: Client) -> list[str]:
    """Further schedules that start cleanups: one is enough."""
    found = []
    async for each in await client.list_schedules():
        action = each.schedule.action if each.schedule else None
        if each.id != CLEANUP_ID and getattr(action, "workflow", "") == CLEANUP:
            found.append(each.id)
    return found


async def _update_schedule(client: Client, wanted: Schedule) -> Literal["updated", "as it was"]:
    changed = False

    async def update(given: ScheduleUpdateInput) -> ScheduleUpdate | None:
        nonlocal changed
        there = given.description.schedule
        changed = [each.every for each in there.spec.intervals] != [each.every for each in wanted.spec.intervals]
        return ScheduleUpdate(Schedule(**{**vars(wanted), "state": there.state})) if changed else None

    try:
        await client.get_schedule_handle(CLEANUP_ID).update(update)
    except RPCError as error:
        raise _explain(client, error) from error
    return "updated" if changed else "as it was"


def _schedule(every_s: float) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            CLEANUP,
            CleanupRequest(),
            id=CLEANUP_ID,
            task_queue=RUNS_QUEUE,
            static_summary="removes what no run refers to any more",
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(seconds=every_s))]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(minutes=10)),
        state=ScheduleState(note="made by Runyard; `runyard cleanup` starts one at once"),
    )


async def _start(client: Client, workflow_id: str, request: CleanupRequest) -> bool:
    """Whether it was us who started it."""
    try:
        await client.start_workflow(
            CLEANUP,
            request,
            id=workflow_id,
            task_queue=RUNS_QUEUE,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
            static_summary="removes what no run refers to any more",
        )
    except WorkflowAlreadyStartedError:
        return False
    return True


async def _under_way(client: Client) -> str:
    """The list lags behind: what it shows as running is asked whether it is."""
    async for each in client.list_workflows(f"{_FULL} AND ExecutionStatus = 'Running'"):
        if is_full(each.id):
            found = await client.get_workflow_handle(each.id).describe()
            if found.status is WorkflowExecutionStatus.RUNNING:
                return each.id
    return ""


def _found(yard: Runyard, workflow_id: str, *, joined: bool) -> Cleanup:
    handle = yard.client.get_workflow_handle(workflow_id, result_type=CleanupReport)
    return Cleanup(id=workflow_id, joined=joined, handle=handle, yard=yard)


def _explain(client: Client, error: RPCError) -> RunyardError:
    if error.status is RPCStatusCode.NOT_FOUND and "namespace" not in error.message.lower():
        return NotFound("there is no schedule for cleanups", remedy="`runyard doctor --fix` makes it.")
    address = client.service_client.config.target_host
    return from_rpc(error, what="the schedule of cleanups", address=address, namespace=client.namespace)
