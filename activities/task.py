"""The three activities of a task attempt: schedule its pod, fetch what it left, delete it.

Each may be started again at any moment, by this worker or another, while an earlier one still runs: a pod is
the durable thing and an activity its present caretaker. So each begins by looking what is there, and each
arrow between two effects may be cut; `fault` is where tests cut them.
"""

import asyncio
import dataclasses
import logging
import time
from datetime import timedelta
from functools import partial
from typing import Final

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.failures import failed_task, translate
from activities.faults import Fault, no_fault
from activities.launch import GRACE_S, build_launch, cache_group, pod_name
from activities.plans import Plans
from activities.pulse import Pulse
from activities.signatures import (
    DELETE_TASK,
    FETCH_TASK,
    SCHEDULE_TASK,
    DeleteTask,
    DeleteTasks,
    FetchTask,
    ScheduledTask,
    ScheduleTask,
    TaskAttempt,
)
from activities.spans import Lapse, Spans, lapses_of
from activities.storewatch import StoreWatch
from activities.verdict import judge
from runyard.dialogue import Manifest
from runyard.errors import ConfigError, Conflict, Corrupt, Forbidden, NotFound, RunyardError
from runyard.executors.base import Ended, Executor
from runyard.metrics import NO_METRICS, Gap, Metrics
from runyard.reasons import Reason
from runyard.records.archives import verify_archives
from runyard.records.logs import load_manifest, load_seal, seal
from runyard.records.podcaches import settle_caches
from runyard.records.runs import write_runids
from runyard.records.setup import SetupLog
from runyard.records.sharing import refer
from runyard.spec.plan import TaskPlan
from runyard.spec.run import PodRef, TaskEnd
from runyard.store import paths
from runyard.store.base import ObjectStore, read
from runyard.traces import NO_TRACES, Traces
from runyard.worklog import about

log = logging.getLogger(__name__)

CLOSED: Final = b"closed by a worker: nothing had begun\n"
"""What we write as an attempt's `started`, so that a pod which comes late runs no step."""

LEAVING: Final = 5_000
"""So many deletes at most are remembered."""

AT_ONCE_S: Final = 1.0
"""A pod that took longer to make may come too late."""


class TaskActivities:
    """They need an executor and the store; one worker serves them on the executor's queue."""

    def __init__(
        self,
        store: ObjectStore,
        executor: Executor,
        *,
        log_bytes: int = 1 << 30,
        metrics: Metrics = NO_METRICS,
        traces: Traces = NO_TRACES,
        fault: Fault = no_fault,
    ) -> None:
        self._store = store
        self._plans = Plans(store)
        self._executor = executor
        self._log_bytes = log_bytes
        self._metrics = metrics
        self._spans = Spans(store, traces)
        self._store_watch = StoreWatch(store, spool_bytes=executor.spool_bytes)
        # pods that are being deleted, or were just now; by name too, since a uid may not be known
        self._leaving: dict[tuple[str, str], asyncio.Task[Lapse]] = {}
        self._fault = fault

    @activity.defn(name=SCHEDULE_TASK)
    @translate
    async def schedule_task(self, request: ScheduleTask) -> ScheduledTask:
        """Wait for room, make the pod or adopt it. A task that cannot be placed at all ends here."""
        name = _enter(request.attempt)
        async with Pulse(name) as pulse:
            if await load_seal(self._store, request.attempt.task_id, request.attempt.attempt) is not None:
                pod = PodRef(name=name, uid="")  # fetch gives its end
                return ScheduledTask(pod=pod, scheduled_at=pulse.now())
            pod = await self._place(request, pulse)
            return ScheduledTask(pod=pod, scheduled_at=pulse.now())

    @activity.defn(name=FETCH_TASK)
    @translate
    async def fetch_task(self, request: FetchTask) -> TaskEnd:
        """Wait for main's end, take over what the agent brought to the store, verify and seal it."""
        attempt = request.attempt
        _enter(attempt)
        async with (
            self._store_watch.watching(),
            Pulse(request.pod.name, store_news=lambda: self._store_watch.news) as pulse,
        ):
            sealed = await load_seal(self._store, attempt.task_id, attempt.attempt)
            if sealed is None:
                task = await self._plans.task(attempt)
                self._fault("fetch.begin")
                ended, stopped = await self._care(request, task, pulse)
                self._fault("fetch.ended")
                end, lapses = await self._take_over(request, task, ended, pulse, stopped=stopped)
            else:  # by a try before this one, which alone knew when its pod was placed and began
                end, lapses = sealed.end, list(lapses_of(None, sealed.end))
            since = request.scheduled_at - timedelta(milliseconds=request.waited_ms)
            await self._spans.attempt(attempt, lapses, end, since=since, until=pulse.now())
            self._let_go(request.pod, pulse, end)  # begun already, but where it was sealed before
        if end.status == "failed":
            raise failed_task(end)
        return end

    @activity.defn(name=DELETE_TASK)
    @translate
    async def delete_task(self, request: DeleteTasks) -> None:
        """Remove the pods. Where one is not known, its attempt is closed first, so that nothing can begin it."""
        self._fault("delete.begin")
        async with Pulse(pod_name(request.tasks[0].attempt)) as pulse:
            deletes = [self._delete(each, pulse) for each in request.tasks]
            results = await asyncio.gather(*deletes, return_exceptions=True)
        for result in results:  # all were tried; a further try finds those gone that went
            if isinstance(result, BaseException):
                raise result
        self._fault("delete.deleted")

    # schedule

    async def _place(self, request: ScheduleTask, pulse: Pulse) -> PodRef:
        attempt = request.attempt
        self._fault("schedule.begin")
        run = await self._plans.run(attempt)
        task = await self._plans.task(attempt)
        await self._refer(attempt, task)
        self._fault("schedule.referred")
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
                traceparent=self._spans.traceparent(run, attempt),
            )
            began_s = time.monotonic()
            pod = await self._executor.start(launch, pulse.report)
            if time.monotonic() - began_s > AT_ONCE_S:
                await self._check_open(attempt, pod)
        except RunyardError as error:
            if error.retryable or isinstance(error, Conflict):
                raise
            raise await self._refuse(attempt, error, pulse) from error
        self._fault("schedule.started")
        queue = Lapse("queue", activity.info().scheduled_time, pulse.now())
        self._measure(queue)
        log.info("placed", extra={"queue_s": round(queue.seconds, 3)})
        await self._spans.phases(attempt, [queue])
        if pulse.messages:  # only what was waited for is worth an object of its own
            await SetupLog(self._store, attempt.task_id, attempt.attempt).say(*pulse.messages)
        self._fault("schedule.said")
        return pod

    async def _check_open(self, attempt: TaskAttempt, pod: PodRef) -> None:
        """Whoever closed the attempt meanwhile, since its time was up, found no pod: then it is for us to delete.

        We hear of that some seconds later, and may have got room just before. Pod and `started` are each written
        before the other one is looked for, so one of the two sees the other.
        """
        try:
            closed = await read(self._store, _started(attempt)) == CLOSED
        except NotFound:
            closed = False
        if closed:
            await self._executor.delete(pod)
            raise Conflict(f"the attempt was closed while it waited for room, so the pod {pod.name} is deleted")

    async def _refer(self, attempt: TaskAttempt, task: TaskPlan) -> None:
        """The runid objects come before the first byte of the task's data."""
        saves = any(step.type == "save_to_workspace" and not step.skip for step in task.steps)
        archives = [task.id] if saves else []
        await write_runids(self._store, attempt.run_id, logs=[task.id], archives=archives)

    def _validate(self, task: TaskPlan) -> None:
        refused = self._executor.validate(task)
        if refused:
            raise ConfigError("; ".join(refused))

    async def _refuse(self, attempt: TaskAttempt, error: RunyardError, pulse: Pulse) -> ApplicationError:
        reason, message = _reason_of(error), error.message[:500]
        end = TaskEnd(status="failed", reason=reason, message=message, began=False, ended_at=pulse.now())
        said = [error.message, error.remedy]
        await seal(self._store, attempt.task_id, attempt.attempt, manifest=None, end=end, setup=said)
        queue = Lapse("queue", activity.info().scheduled_time, pulse.now())
        self._measure(queue, end.status)
        _tell(end)
        await self._spans.attempt(attempt, [queue], end, since=queue.since, until=queue.until)
        return failed_task(end)

    # fetch

    async def _care(self, request: FetchTask, task: TaskPlan, pulse: Pulse) -> tuple[Ended, bool]:
        self._metrics.caretaker(self._executor.name, 1)
        try:
            return await self._follow(request, task, pulse)
        finally:
            self._metrics.caretaker(self._executor.name, -1)

    async def _follow(self, request: FetchTask, task: TaskPlan, pulse: Pulse) -> tuple[Ended, bool]:
        """How main ended, and whether it was us who ended it."""
        pod, executor = request.pod, self._executor
        if not request.stop:
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
        if limit_s is None:
            return await self._executor.follow(pod, owner=_owner(), report=pulse.report)
        follow = asyncio.create_task(self._executor.follow(pod, owner=_owner(), report=pulse.report))
        running = asyncio.create_task(pulse.running.wait())
        try:
            left_s = limit_s - (pulse.now() - request.scheduled_at).total_seconds()
            await asyncio.wait({follow, running}, timeout=max(0.1, left_s), return_when="FIRST_COMPLETED")
            if follow.done() or pulse.running.is_set():
                return await follow
            news = pulse.messages[-1] if pulse.messages else "no news"  # what it waited for, before our own words
            await self._executor.stop(pod, grace_s=0)
            self._fault("fetch.overdue")
            ended = await follow
            if ended.exit_code == 0:  # it began and ended in the very last moment
                return ended
            message = f"{_overdue(limit_s)}: {news}"
            return dataclasses.replace(ended, gone=False, reason=Reason.TIMEOUT_PENDING, message=message)
        finally:
            running.cancel()
            follow.cancel()

    async def _take_over(
        self, request: FetchTask, task: TaskPlan, ended: Ended, pulse: Pulse, *, stopped: bool
    ) -> tuple[TaskEnd, list[Lapse]]:
        """How it ended, and the phases that are over."""
        began_at = pulse.now()
        store, attempt, number = self._store, request.attempt, request.attempt.attempt
        manifest = await self._manifest(attempt)
        # closed, not only looked at: a pod that is gone for its cluster may still be alive on a lost node
        began = manifest is not None or not await self._close(attempt)
        end = judge(ended, manifest, steps=task.steps, began=began, stopped=stopped)
        if not stopped:
            after_s = (pulse.now() - request.scheduled_at).total_seconds()
            end = _overdue_earlier(end, task.timeouts.pending_s, after_s=after_s)
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
        said = list(dict.fromkeys(said))
        let_go = partial(self._let_go, request.pod, pulse)
        sealed = await seal(store, attempt.task_id, number, manifest=manifest, end=end, setup=said, then=let_go)
        self._fault("fetch.sealed")
        end = sealed.end  # another caretaker's, where that one was first
        lapses, archive = list(lapses_of(ended, end)), Lapse("archive", began_at, pulse.now())
        for lapse in lapses:
            self._measure(lapse)
        self._measure(archive, end.status)
        self._metrics.log(self._executor.name, end.log_bytes, _gap(manifest, end))
        for record in manifest.caches if manifest else ():
            self._metrics.cache(record.outcome)
        _tell(end)
        return end, [*lapses, archive]

    def _measure(self, lapse: Lapse, result: str = "") -> None:
        self._metrics.phase(lapse.phase, lapse.seconds, executor=self._executor.name, result=result)

    async def _manifest(self, attempt: TaskAttempt) -> Manifest | None:
        """What the agent left, after what it could not do itself: caches that it has brought become entries."""
        manifest = await load_manifest(self._store, attempt.task_id, attempt.attempt)
        if manifest is None or not any(record.file for record in manifest.caches):
            return manifest
        run = await self._plans.run(attempt)
        return await settle_caches(self._store, manifest, group=cache_group(run), fallback=run.cache_fallback)

    async def _close(self, attempt: TaskAttempt) -> bool:
        """Claim `started`, so that an agent that comes late is refused. False where a step may have run."""
        key = _started(attempt)
        try:
            await self._store.put(key, CLOSED, if_absent=True)
        except Conflict:
            return await read(self._store, key) == CLOSED  # by a caretaker before us
        return True

    # delete

    async def _delete(self, request: DeleteTask, pulse: Pulse) -> None:
        _enter(request.attempt)
        if request.pod is not None:
            gone = await asyncio.shield(self._leave(request.pod, pulse))
            self._leaving.pop((request.pod.name, request.pod.uid), None)
            await self._deleted(request.attempt, gone, None)
            return
        asked_at = pulse.now()
        # its schedule may never have begun, and a cleanup takes at once what no run refers to
        kept = await refer(self._store, paths.log_item(request.attempt.task_id), request.attempt.run_id)
        began = not await self._close(request.attempt)
        await self._executor.delete(PodRef(name=pod_name(request.attempt), uid=""))
        if kept and (end := await self._seal_unfetched(request, pulse, began=began)):
            _tell(end)
            await self._deleted(request.attempt, Lapse("delete", asked_at, pulse.now()), end)

    def _let_go(self, pod: PodRef, pulse: Pulse, end: TaskEnd) -> None:
        """Begin the delete after a success: the pods of others may be kept for a look."""
        if end.status == "success":
            self._leave(pod, pulse)

    def _leave(self, pod: PodRef, pulse: Pulse) -> asyncio.Task[Lapse]:
        """The pod's delete. It begins when its fetch has sealed all, and `delete_task` sees to it that it is done.

        The way from one activity to the next takes 40 ms, in which others wait for the pod's room.
        """
        key = (pod.name, pod.uid)
        leaving = self._leaving.get(key)
        if leaving is None or (leaving.done() and (leaving.cancelled() or leaving.exception())):
            while len(self._leaving) >= LEAVING:  # theirs was confirmed by another worker
                del self._leaving[next(iter(self._leaving))]
            leaving = self._leaving[key] = asyncio.create_task(self._remove(pod, pulse))
        return leaving

    async def _remove(self, pod: PodRef, pulse: Pulse) -> Lapse:
        asked_at = pulse.now()
        await self._executor.delete(pod)
        return Lapse("delete", asked_at, pulse.now())

    async def _deleted(self, attempt: TaskAttempt, gone: Lapse, end: TaskEnd | None) -> None:
        """``end``: of an attempt that ended by this, since nobody had fetched it."""
        self._measure(gone, end.status if end else "")
        log.info("deleted", extra={"delete_s": round(gone.seconds, 3)})
        if end is None:
            await self._spans.phases(attempt, [gone])
        else:
            await self._spans.attempt(attempt, [gone], end, since=gone.since, until=gone.until)

    async def _seal_unfetched(self, request: DeleteTask, pulse: Pulse, *, began: bool) -> TaskEnd | None:
        """The last word on an attempt that no `fetch_task` saw: what it wrote, why it ended. None = it has one."""
        attempt = request.attempt
        if await load_seal(self._store, attempt.task_id, attempt.attempt) is not None:
            return None
        end = request.end or TaskEnd(status="cancelled", reason=Reason.NEVER_STARTED, began=False)
        end = end.model_copy(update={"began": began, "ended_at": pulse.now()})
        manifest = await self._manifest(attempt)
        said = list(dict.fromkeys([end.reason.sentence, end.message, end.reason.remedy]))
        await seal(self._store, attempt.task_id, attempt.attempt, manifest=manifest, end=end, setup=said)
        return end


def _enter(attempt: TaskAttempt) -> str:
    """All that is logged from here on is about this attempt. Gives its pod's name."""
    name = pod_name(attempt)
    about(run=attempt.run_id, task=attempt.task, attempt=attempt.attempt, pod=name)
    info = activity.info()
    if info.attempt > 1:
        log.info("taken over", extra={"activity": info.activity_id, "try": info.attempt})
    return name


def _tell(end: TaskEnd) -> None:
    told = {
        "status": end.status,
        "reason": str(end.reason),
        "exit_code": end.exit_code,
        "log_bytes": end.log_bytes,
    }
    log.info("ended", extra={**told, "why": end.message})


def _started(attempt: TaskAttempt) -> str:
    return f"{paths.attempt(attempt.task_id, attempt.attempt)}started"


def _overdue(limit_s: float) -> str:
    return f"not running after {limit_s:g} s"


def _overdue_earlier(end: TaskEnd, limit_s: float | None, *, after_s: float) -> TaskEnd:
    """A pod that was stopped for its pending timeout by a caretaker who died before it could say so."""
    if limit_s is None or end.began or end.reason not in (Reason.CANCELLED, Reason.LOST):
        return end
    if after_s < limit_s:
        return end
    update = {"status": "failed", "reason": Reason.TIMEOUT_PENDING, "message": _overdue(limit_s)}
    return end.model_copy(update=update)


def _gap(manifest: Manifest | None, end: TaskEnd) -> Gap | None:
    """Why the log is not whole. Where no step began there was nothing to keep."""
    if end.log_complete or not end.began:
        return None
    if manifest is None:
        return "agent lost"
    return "cap" if manifest.seal == "complete" else "cut short"


def _owner() -> str:
    """Who takes care: this try of this activity of this execution."""
    info = activity.info()
    return f"{info.workflow_run_id}/{info.activity_id}/{info.attempt}"


def _reason_of(error: RunyardError) -> Reason:
    """Of a task that cannot be placed at all."""
    if isinstance(error, Forbidden):
        return Reason.NOT_ADMITTED
    try:
        return Reason(error.code)
    except ValueError:
        return Reason.START_ERROR
