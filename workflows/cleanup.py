"""The cleanup: the only deleter of what runs share.

Everything that may go wrong in between is dealt with in the records (see records/sharing.py); so the workflow is a
loop over what there is, in turns of some minutes, and its result is the report. The argument is any JSON, as that
of a run is.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError

with workflow.unsafe.imports_passed_through():
    from activities.signatures import (
        CLEAN,
        PLAN_CLEANUP,
        REAP_PODS,
        REMOVE_RUN,
        SURVEY,
        Clean,
        Cleaned,
        CleanupPlan,
        CleanupRules,
        PlanCleanup,
        ReapPods,
        RemoveRun,
    )
    from runyard.model import Model
    from runyard.spec.cleanup import CLEANUP, CleanupKind, CleanupReport, as_lines
    from runyard.spec.run import RUNS_QUEUE, executor_queue
    from workflows.task import INFRASTRUCTURE

KINDS: Final[tuple[CleanupKind, ...]] = ("logs", "archives", "snapshots", "runs", "caches")
"""Runs after what they refer to: what is left of one says when it ended."""

BEAT: Final = timedelta(seconds=30)
PLAN_BEAT: Final = timedelta(seconds=10)
"""People wait for its first word, and all that it asks are a few questions of Temporal."""

NO_WORKER: Final = timedelta(seconds=60)
"""So long an executor may take to begin with its pods."""


class CleanupState(Model):
    """What goes from one execution to the next: ``kinds`` are still to do, the first from ``cursor`` on."""

    plan: CleanupPlan
    kinds: list[CleanupKind]
    cursor: str = ""
    report: CleanupReport


@workflow.defn(name=CLEANUP)
class CleanupWorkflow:
    """A cleanup. Argument: CleanupRequest; result: CleanupReport."""

    @workflow.init
    def __init__(self, request: Any = None, carried: CleanupState | None = None) -> None:
        self._report = carried.report if carried else CleanupReport(began_at=workflow.now())

    @workflow.run
    async def run(self, request: Any = None, carried: CleanupState | None = None) -> CleanupReport:
        try:
            state = carried or await self._begin(request)
            if state.plan.gives_way_to:
                return self._end(gave_way_to=state.plan.gives_way_to)
            if runs := state.plan.rules.request.runs:
                await self._remove(state.plan.rules, runs)
            else:
                await self._clean(request, state)
                await self._reap(state.plan)
        except ActivityError as error:
            if isinstance(error.cause, ApplicationError):
                raise error.cause from error
            raise
        return self._end()

    async def _begin(self, request: Any) -> CleanupState:
        plan: CleanupPlan = await workflow.execute_activity(
            PLAN_CLEANUP,
            PlanCleanup(request=request, started_at=workflow.info().start_time),
            result_type=CleanupPlan,
            activity_id="plan",
            task_queue=RUNS_QUEUE,
            start_to_close_timeout=timedelta(minutes=1),
            heartbeat_timeout=PLAN_BEAT,
            retry_policy=INFRASTRUCTURE,
            summary="what is to be done",
        )
        keep, asked = plan.rules.retention, plan.rules.request
        self._report = self._report.model_copy(update={"dry_run": asked.dry_run})
        if (keep.runs_per_group is not None or keep.total_bytes is not None) and not asked.runs:
            rules: CleanupRules = await workflow.execute_activity(
                SURVEY,
                plan.rules,
                result_type=CleanupRules,
                activity_id="survey",
                task_queue=RUNS_QUEUE,
                start_to_close_timeout=timedelta(hours=2),
                heartbeat_timeout=BEAT,
                retry_policy=INFRASTRUCTURE,
                summary="what is too much",
            )
            plan = plan.model_copy(update={"rules": rules})
        return CleanupState(plan=plan, kinds=list(KINDS), report=self._report)

    async def _clean(self, request: Any, state: CleanupState) -> None:
        kinds, cursor = list(state.kinds), state.cursor
        while kinds:
            done: Cleaned = await workflow.execute_activity(
                CLEAN,
                Clean(rules=state.plan.rules, kind=kinds[0], cursor=cursor),
                result_type=Cleaned,
                task_queue=RUNS_QUEUE,
                start_to_close_timeout=timedelta(hours=1),
                heartbeat_timeout=BEAT,
                retry_policy=INFRASTRUCTURE,
                summary=kinds[0],
            )
            self._add(done.report)
            cursor = done.cursor or ""
            if done.cursor is None:
                kinds = kinds[1:]
            if kinds and workflow.info().is_continue_as_new_suggested():
                left = state.model_copy(update={"kinds": kinds, "cursor": cursor, "report": self._report})
                workflow.continue_as_new(args=[request, left])

    async def _remove(self, rules: CleanupRules, runs: Sequence[str]) -> None:
        for run_id in runs:
            report: CleanupReport = await workflow.execute_activity(
                REMOVE_RUN,
                RemoveRun(rules=rules, run_id=run_id),
                result_type=CleanupReport,
                task_queue=RUNS_QUEUE,
                start_to_close_timeout=timedelta(hours=1),
                heartbeat_timeout=BEAT,
                retry_policy=INFRASTRUCTURE,
                summary=run_id[:100],
            )
            self._add(report)

    async def _reap(self, plan: CleanupPlan) -> None:
        await asyncio.gather(*(self._reap_in(name, plan.rules) for name in plan.executors))

    async def _reap_in(self, executor: str, rules: CleanupRules) -> None:
        """One executor that does not answer keeps nobody from the rest."""
        try:
            report: CleanupReport = await workflow.execute_activity(
                REAP_PODS,
                ReapPods(rules=rules),
                result_type=CleanupReport,
                activity_id=f"pods {executor}",
                task_queue=executor_queue(executor),
                schedule_to_start_timeout=NO_WORKER,
                schedule_to_close_timeout=timedelta(minutes=15),
                heartbeat_timeout=BEAT,
                retry_policy=INFRASTRUCTURE,
                summary=f"pods of {executor}",
            )
        except ActivityError as error:
            if isinstance(error.cause, CancelledError):
                raise
            report = CleanupReport(notes=[f"the pods of {executor} were not looked at: {error.cause or error}"])
        self._add(report)

    def _add(self, report: CleanupReport) -> None:
        self._report = self._report.plus(report)
        workflow.set_current_details("\n".join(as_lines(self._report)))

    def _end(self, *, gave_way_to: str = "") -> CleanupReport:
        update = {"ended_at": workflow.now(), "gave_way_to": gave_way_to}
        self._report = self._report.model_copy(update=update)
        workflow.set_current_details("\n".join(as_lines(self._report)))
        return self._report

    @workflow.query(description="The report so far, as JSON.")
    def describe(self) -> CleanupReport:
        return self._report
