"""The three activities of a task attempt: schedule its pod, fetch what it left, delete it.

Each may be started again at any moment, by this worker or another, while an earlier one still runs: a pod is
the durable thing and an activity its present caretaker. So each begins by looking what is there, and each
arrow between two effects may be cut; `fault` is where tests cut them.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.failures import failed_task, translate
from activities.launch import GRACE_S, build_launch, pod_name
from activities.pulse import Pulse
from activities.signatures import (
    DELETE_TASK,
    FETCH_TASK,
    SCHEDULE_TASK,
    DeleteTask,
    FetchTask,
    ScheduledTask,
    ScheduleTask,
    TaskAttempt,
)
from activities.verdict import judge
from runyard.errors import ConfigError, Conflict, Corrupt, NotFound, RunyardError
from runyard.executors.base import Ended, Executor
from runyard.reasons import Reason
from runyard.records.archives import verify_archives
from runyard.records.logs import load_manifest, load_seal, seal
from runyard.records.runs import read_header, read_task, write_runids
from runyard.records.setup import SetupLog
from runyard.spec.plan import TaskPlan
from runyard.spec.run import PodRef, TaskEnd
from runyard.store import paths
from runyard.store.base import ObjectStore


def no_fault(point: str) -> None:
    """Production's fault points: nothing happens."""


class TaskActivities:
    """They need an executor and the store; one worker serves them on the executor's queue."""

    def __init__(
        self,
        store: ObjectStore,
        executor: Executor,
        *,
        log_bytes: int = 1 << 30,
        fault: Callable[[str], None] = no_fault,
    ) -> None:
        self._store = store
        self._executor = executor
        self._log_bytes = log_bytes
        self._fault = fault

    @activity.defn(name=SCHEDULE_TASK)
    @translate
    async def schedule_task(self, request: ScheduleTask) -> ScheduledTask:
        """Wait for room, make the pod or adopt it. A task that cannot be placed at all ends here."""
        attempt = request.attempt
        name = pod_name(attempt)
        if await load_seal(self._store, attempt.task_id, attempt.attempt) is not None:
            return ScheduledTask(pod=PodRef(name=name, uid=""), scheduled_at=_now())  # fetch gives its end
        self._fault("schedule.begin")
        run = await read_header(self._store, attempt.run_id, attempt.header)
        task = await read_task(self._store, attempt.run_id, attempt.at)
        await self._refer(attempt, task)
        self._fault("schedule.referred")
        setup = SetupLog(self._store, attempt.task_id, attempt.attempt)
        async with Pulse(name) as pulse:
            try:
                self._validate(task)
                launch = await build_launch(
                    self._store,
                    run,
                    task,
                    attempt,
                    outputs_of=request.outputs_of,
                    owner=_owner(),
                    log_bytes=self._log_bytes,
                )
                pod = await self._executor.start(launch, pulse.report)
            except RunyardError as error:
                if error.retryable or isinstance(error, Conflict):
                    raise
                raise await self._refuse(attempt, error) from error
        self._fault("schedule.started")
        if pulse.messages:  # only what was waited for is worth an object of its own
            await setup.say(*pulse.messages)
        self._fault("schedule.said")
        return ScheduledTask(pod=pod, scheduled_at=_now())

    @activity.defn(name=FETCH_TASK)
    @translate
    async def fetch_task(self, request: FetchTask) -> TaskEnd:
        """Wait for main's end, take over what the agent brought to the store, verify and seal it."""
        attempt = request.attempt
        sealed = await load_seal(self._store, attempt.task_id, attempt.attempt)
        if sealed is None:
            task = await read_task(self._store, attempt.run_id, attempt.at)
            self._fault("fetch.begin")
            ended, stopped = await self._follow(request, task)
            self._fault("fetch.ended")
            end = await self._take_over(attempt, task, ended, stopped=stopped)
        else:
            end = sealed.end
        if end.status == "failed":
            raise failed_task(end)
        return end

    @activity.defn(name=DELETE_TASK)
    @translate
    async def delete_task(self, request: DeleteTask) -> None:
        """Remove the pod. Without one: first close the attempt, so that nothing can begin it any more."""
        attempt, pod = request.attempt, request.pod
        self._fault("delete.begin")
        async with Pulse(pod_name(attempt)):
            if pod is None:
                await self._close(attempt)
                pod = PodRef(name=pod_name(attempt), uid="")
            await self._executor.delete(pod)
        self._fault("delete.deleted")

    # schedule

    async def _refer(self, attempt: TaskAttempt, task: TaskPlan) -> None:
        """The runid objects come before the first byte of the task's data."""
        saves = any(step.type == "save_to_workspace" and not step.skip for step in task.steps)
        archives = [task.id] if saves else []
        await write_runids(self._store, attempt.run_id, logs=[task.id], archives=archives)

    def _validate(self, task: TaskPlan) -> None:
        refused = self._executor.validate(task)
        if refused:
            raise ConfigError("; ".join(refused))

    async def _refuse(self, attempt: TaskAttempt, error: RunyardError) -> ApplicationError:
        try:
            reason = Reason(error.code)
        except ValueError:
            reason = Reason.START_ERROR
        end = TaskEnd(status="failed", reason=reason, message=error.message[:500], began=False, ended_at=_now())
        said = [error.message, error.remedy]
        await seal(self._store, attempt.task_id, attempt.attempt, manifest=None, end=end, setup=said)
        return failed_task(end)

    # fetch

    async def _follow(self, request: FetchTask, task: TaskPlan) -> tuple[Ended, bool]:
        """How main ended, and whether it was us who ended it."""
        pod, executor = request.pod, self._executor
        async with Pulse(pod.name) as pulse:
            if request.stop:
                await executor.stop(pod, grace_s=GRACE_S)
                return await executor.follow(pod, owner=_owner(), report=pulse.report), True
            try:
                return await self._follow_in_time(request, task, pulse), False
            except asyncio.CancelledError:
                details = activity.cancellation_details()
                if details is None or not details.cancel_requested:
                    raise  # shut down, paused, superseded: let go, somebody will go on with the pod
                self._fault("fetch.cancelled")
                await executor.stop(pod, grace_s=GRACE_S)
                return await executor.follow(pod, owner=_owner(), report=pulse.report), True

    async def _follow_in_time(self, request: FetchTask, task: TaskPlan, pulse: Pulse) -> Ended:
        """Follow, with the limit on the time until it runs; the limit on the run itself is the executor's."""
        pod, limit_s = request.pod, task.timeouts.pending_s
        follow = asyncio.create_task(self._executor.follow(pod, owner=_owner(), report=pulse.report))
        try:
            if limit_s is not None:
                left_s = limit_s - (_now() - request.scheduled_at).total_seconds()
                running = asyncio.create_task(pulse.running.wait())
                await asyncio.wait({follow, running}, timeout=max(0.1, left_s), return_when="FIRST_COMPLETED")
                running.cancel()
                if not follow.done() and not pulse.running.is_set():
                    await self._executor.stop(pod, grace_s=0)
                    ended = await follow
                    message = (
                        f"not running after {limit_s:g} s: {pulse.messages[-1] if pulse.messages else 'no news'}"
                    )
                    return Ended(reason=Reason.TIMEOUT_PENDING, message=message, ended_at=ended.ended_at)
            return await follow
        finally:
            follow.cancel()

    async def _take_over(self, attempt: TaskAttempt, task: TaskPlan, ended: Ended, *, stopped: bool) -> TaskEnd:
        store, number = self._store, attempt.attempt
        manifest = await load_manifest(store, attempt.task_id, number)
        began = manifest is not None or await self._has_begun(attempt)
        end = judge(ended, manifest, steps=task.steps, began=began, stopped=stopped)
        if manifest is not None and manifest.archives:
            try:
                await verify_archives(store, attempt.task_id, manifest.archives)
            except (Corrupt, NotFound) as error:
                if end.status == "success":
                    update = {"status": "failed", "reason": Reason.ARCHIVE_FAILED, "message": error.message}
                    end = end.model_copy(update=update)
        self._fault("fetch.verified")
        said = [
            *self._executor.notes(task),
            f"pod {pod_name(attempt)}" + (f" on {ended.node}" if ended.node else ""),
        ]
        if end.status != "success":
            said += [end.message or end.reason.sentence, end.reason.remedy, ended.message]
        await seal(store, attempt.task_id, number, manifest=manifest, end=end, setup=list(dict.fromkeys(said)))
        self._fault("fetch.sealed")
        return end

    async def _has_begun(self, attempt: TaskAttempt) -> bool:
        try:
            await self._store.stat(f"{paths.attempt(attempt.task_id, attempt.attempt)}started")
        except NotFound:
            return False
        return True

    # delete

    async def _close(self, attempt: TaskAttempt) -> None:
        """Claim `started` ourselves: an agent that comes late is refused, and no step runs."""
        prefix = paths.attempt(attempt.task_id, attempt.attempt)
        try:
            await self._store.put(f"{prefix}started", b"closed by delete_task\n", if_absent=True)
        except Conflict:
            return
        if await load_seal(self._store, attempt.task_id, attempt.attempt) is None:
            end = TaskEnd(status="cancelled", reason=Reason.NEVER_STARTED, began=False, ended_at=_now())
            await seal(self._store, attempt.task_id, attempt.attempt, manifest=None, end=end)


def _owner() -> str:
    """Who takes care: this try of this activity of this execution."""
    info = activity.info()
    return f"{info.workflow_run_id}/{info.activity_id}/{info.attempt}"


def _now() -> datetime:
    return datetime.now(UTC)
