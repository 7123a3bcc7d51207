"""One task of a run, from its first attempt to its outcome.

``schedule_task`` → ``fetch_task`` → ``delete_task`` for each attempt, the user's retries with a timer that the
UI shows, approvals and holds. A driver can be made anew from a record in any status: that is how a run goes
on after continue-as-new, and the activities, which adopt what is there, make it safe.
"""

import asyncio
from datetime import timedelta
from typing import Any, Final, Protocol, TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, RetryState, TimeoutType
from temporalio.exceptions import TimeoutError as ActivityTimeout

with workflow.unsafe.imports_passed_through():
    from activities.signatures import (
        FETCH_TASK,
        SCHEDULE_TASK,
        DeleteTask,
        FetchTask,
        ScheduledTask,
        ScheduleTask,
        TaskAttempt,
    )
    from runyard.graph import Outcome
    from runyard.model import Model
    from runyard.reasons import Reason
    from runyard.spec.plan import Retry
    from runyard.spec.run import GraphTask, TaskEnd, TaskStatus, executor_queue
    from workflows.board import Board
    from workflows.state import TaskRecord, apply_end
    from workflows.waits import Waits

INFRASTRUCTURE: Final = RetryPolicy(
    initial_interval=timedelta(seconds=0.2),  # most often it is another worker that takes over at once
    backoff_coefficient=2,
    maximum_interval=timedelta(seconds=30),
)
FOR_EVER: Final = timedelta(days=3650)
HEARTBEAT: Final = timedelta(seconds=5)
FREE_RESTARTS: Final = 5
USERS_OWN: Final = frozenset(
    {Reason.EXIT_CODE, Reason.SIGNAL, Reason.OOM_KILLED, Reason.TIMEOUT_RUN, Reason.TIMEOUT_STEP}
)

T = TypeVar("T", bound=Model)


class Run(Protocol):
    """What a driver needs of its run."""

    board: Board
    waits: Waits

    def changed(self) -> None:
        """Something that people see is different now."""

    def ask_for_room(self, driver: "Driver") -> None:
        """Have ``driver.admitted`` set when one more task may be in flight, first come, first served."""

    def delete(self, request: DeleteTask, *, after_s: float, begun: bool = False) -> None:
        """Have a pod deleted, or that confirmed where its fetch has ``begun`` it; the run closes after that."""


class Driver:
    """Drives one task. ``record`` is all of its state."""

    def __init__(self, run: Run, node: GraphTask, record: TaskRecord) -> None:
        self.run = run
        self.node = node
        self.record = record
        self.admitted = False  # there is room for it, and it has not taken it yet
        self._handle: workflow.ActivityHandle[Any] | None = None

    @property
    def active(self) -> bool:
        return self.admitted or self.record.status in ("queued", "running")

    def stop(self, reason: Reason, message: str) -> None:
        """Have the task end: its pod is asked to, its waits are over."""
        if self.record.stop is None:
            self.record.stop, self.record.stop_message = reason, message
            if self._handle is not None:
                self._handle.cancel()

    async def drive(self) -> Outcome:
        """Go on from wherever the record stands, to the end."""
        if self.record.status == "approval":
            refused = await self._wait_for_approval()
            if refused is not None:
                return self._finish(refused)
        while True:
            end = await self._attempt() if self.record.status in ("queued", "running") else None
            if end is not None:
                self.run.board.count_caches(end.caches)
                apply_end(self.record, end, self.run.board.clock)
                if end.status == "failed" and self._may_retry(end):
                    self._set("retrying")
                    told = {"task": self.node.name, "attempt": self.record.attempt, "reason": str(end.reason)}
                    after_s = ((self.record.next_attempt_ms or 0) - self._now_ms()) / 1000
                    workflow.logger.info("is tried again", extra={**told, "after_s": after_s})
                elif end.status == "failed" and self.run.board.prepared.hold_failed and self.record.stop is None:
                    self.record.retry = False
                    self._set("held")
                else:
                    return self._finish(end)
            held = self.record.status == "held"
            if not await self._wait_for_next():
                return self._finish(self._given_up() if held else self._stopped())
            self.record.attempt += 1
            self._queue()

    # one attempt

    async def _attempt(self) -> TaskEnd:
        attempt = self.run.board.attempt_of(self.node.name)
        record = self.record
        if record.status == "queued":
            scheduled = await self._schedule(attempt)
            if isinstance(scheduled, TaskEnd):
                self.run.delete(DeleteTask(attempt=attempt, end=scheduled), after_s=0)
                return scheduled
            record.pod = scheduled.pod
            record.scheduled_ms = self.run.board.clock.ms(scheduled.scheduled_at)
            self._set("running")
        end = await self._fetch(attempt)
        keep_s = self.node.keep_failed_for_s if end.status == "failed" else 0
        request = DeleteTask(attempt=attempt, pod=record.pod)
        self.run.delete(request, after_s=keep_s, begun=end.status == "success")
        return end

    async def _schedule(self, attempt: TaskAttempt) -> ScheduledTask | TaskEnd:
        request = ScheduleTask(attempt=attempt, outputs_of=self.run.board.output_attempts(self.node.outputs_of))
        budget = None
        if self.node.queue_s:  # what is left of it, where the run has continued as new meanwhile
            left_s = self.node.queue_s - (self._now_ms() - self.record.queued_ms) / 1000
            budget = timedelta(seconds=max(left_s, 0.001))
        result = await self._call(SCHEDULE_TASK, request, ScheduledTask, budget=budget)
        return result or self._stopped()

    async def _fetch(self, attempt: TaskAttempt) -> TaskEnd:
        record = self.record
        scheduled_at = self.run.board.clock.at(record.scheduled_ms)
        assert record.pod is not None
        assert scheduled_at is not None
        request = FetchTask(
            attempt=attempt,
            pod=record.pod,
            scheduled_at=scheduled_at,
            waited_ms=max(0, (record.scheduled_ms or 0) - record.queued_ms),
            stop=record.stop is not None,
        )
        end = await self._call(FETCH_TASK, request, TaskEnd, cancel=not request.stop)
        while end is None:  # cancelled, and no worker was there to bring the pod to its end
            request = request.model_copy(update={"stop": True})
            end = await self._call(FETCH_TASK, request, TaskEnd, cancel=False)
        return end

    async def _call(
        self, name: str, request: Model, result: type[T], *, budget: timedelta | None = None, cancel: bool = True
    ) -> T | TaskEnd | None:
        """The activity's result, the task's end where that is what came of it, or None: cancelled without."""
        handle = workflow.start_activity(
            name,
            request,
            result_type=result,
            activity_id=f"{name.removesuffix('_task')} {self.node.name} #{self.record.attempt}",
            task_queue=executor_queue(self.run.board.prepared.executor),
            start_to_close_timeout=FOR_EVER,
            schedule_to_close_timeout=budget,
            heartbeat_timeout=self.run.board.prepared.heartbeat,
            retry_policy=INFRASTRUCTURE,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=self._summary(),
        )
        self._handle = handle
        if cancel and self.record.stop is not None:
            handle.cancel()
        try:
            answer: T = await handle
        except ActivityError as error:
            return self._judge(error)
        except asyncio.CancelledError:
            # not begun yet, or ended at the same moment: the SDK then cancels the one who waits
            if self.record.stop is None:
                raise
            return None
        finally:
            self._handle = None
        return answer

    def _judge(self, error: ActivityError) -> TaskEnd | None:
        cause = error.cause
        if isinstance(cause, ApplicationError) and cause.details:
            return TaskEnd.model_validate(cause.details[0])
        for_ever = isinstance(cause, ApplicationError) and cause.non_retryable
        if isinstance(cause, CancelledError) or (self.record.stop is not None and not for_ever):
            return None
        message = str(cause)[:500]
        if isinstance(cause, ActivityTimeout) and cause.type == TimeoutType.SCHEDULE_TO_CLOSE:
            waited = _last_news(cause)
            return TaskEnd(status="failed", reason=Reason.TIMEOUT_QUEUE, message=waited, began=False)
        if error.retry_state == RetryState.TIMEOUT:  # no time for one more try: the last one's error is the cause
            return TaskEnd(status="failed", reason=Reason.TIMEOUT_QUEUE, message=message, began=False)
        # whether a step has run is not known, so it is not run again by itself
        return TaskEnd(status="failed", reason=Reason.INTERNAL, message=message, began=True)

    # waits

    async def _wait_for_approval(self) -> TaskEnd | None:
        """None when enough people approved and there is room; otherwise how the task ends."""
        approval, record = self.node.approval, self.record
        assert approval is not None

        def answered() -> bool:
            return len(record.approvals) >= approval.approvers or record.stop is not None

        if approval.expires_s is None:
            await workflow.wait_condition(answered)
        else:
            left_s = max(0, approval.expires_s) - (self._now_ms() - record.queued_ms) / 1000
            left, summary = timedelta(seconds=max(left_s, 0.001)), f"approval of {self.node.name} expires"
            if not await self.run.waits.until(answered, left=left, summary=summary):
                return TaskEnd(status="failed", reason=Reason.APPROVAL_EXPIRED, began=False)
        await self._wait_for_room()
        if record.stop is not None:
            return self._stopped()
        record.attempt = 1
        self._queue()
        return None

    async def _wait_for_next(self) -> bool:
        """Until the next attempt may start. False when there shall be none."""
        record = self.record
        if record.status == "retrying":
            left = max(1, (record.next_attempt_ms or 0) - self._now_ms())
            await self.run.waits.until(
                lambda: record.stop is not None,
                left=timedelta(milliseconds=left),
                summary=f"attempt {record.attempt + 1} of {self.node.name}",
            )
        else:
            await workflow.wait_condition(lambda: record.retry or record.stop is not None)
        await self._wait_for_room()
        return record.stop is None

    async def _wait_for_room(self) -> None:
        if self.record.stop is None:
            self.run.ask_for_room(self)
            await workflow.wait_condition(lambda: self.admitted or self.record.stop is not None)

    def _may_retry(self, end: TaskEnd) -> bool:
        """Whether a budget has a further attempt; takes it, and sets the time."""
        record, retry = self.record, self.node.retry or Retry()
        if record.stop is not None:
            return False
        if not end.began and _may_mend(end.reason) and record.restarts < FREE_RESTARTS:
            record.restarts += 1
            delay = 2.0 ** (record.restarts - 1)
        elif record.retries < retry.limit and _wanted(retry, end):
            delay = _pause_s(retry, record.retries)
            record.retries += 1
        elif end.reason.infra and record.losses < retry.infra:
            record.losses += 1
            delay = min(retry.backoff_max_s, retry.backoff_s)
        else:
            return False
        record.next_attempt_ms = self._now_ms() + round(delay * 1000)
        return True

    # small things

    def _finish(self, end: TaskEnd) -> Outcome:
        record = self.record
        if end.status == "cancelled" and record.stop is not None:
            end = end.model_copy(update={"reason": record.stop, "message": record.stop_message})
        apply_end(record, end, self.run.board.clock)
        record.pod = None  # its delete knows it; here it would only be carried along
        # its own time where it is known: the run may have waited for a worker to hear of it
        record.ended_ms = self.run.board.clock.ms(end.ended_at) if end.ended_at else self._now_ms()
        self._set(end.status)
        return end.status

    def _queue(self) -> None:
        record = self.record
        record.pod = record.scheduled_ms = record.started_ms = None
        record.queued_ms, record.retry, self.admitted = self._now_ms(), False, False
        self._set("queued")

    def _set(self, status: TaskStatus) -> None:
        self.record.status = status
        self.run.changed()

    def _stopped(self) -> TaskEnd:
        reason, message = self.record.stop or Reason.CANCELLED, self.record.stop_message
        if reason is Reason.REJECTED:
            return TaskEnd(status="failed", reason=reason, message=message, began=False)
        return TaskEnd(status="cancelled", reason=reason, message=message, began=False)

    def _given_up(self) -> TaskEnd:
        """A task that failed, and that nobody wants to try again: it stays what it was."""
        record = self.record
        return TaskEnd(
            status="failed",
            reason=record.reason or Reason.INTERNAL,
            message=record.message,
            exit_code=record.exit_code,
            last_line=record.last_line,
        )

    def _summary(self) -> str:
        words = [
            self.node.name[:60],
            f"attempt {self.record.attempt}" if self.record.attempt > 1 else "",
            self.node.image,
        ]
        return " · ".join(word for word in words if word)[:120]

    def _now_ms(self) -> int:
        return self.run.board.clock.ms(workflow.now())


def _last_news(timeout: ActivityTimeout) -> str:
    """What the activity said last before its time was over: what the task waited for."""
    said = timeout.last_heartbeat_details[0] if timeout.last_heartbeat_details else None
    return str(said.get("message", ""))[:500] if isinstance(said, dict) else ""


def _may_mend(reason: Reason) -> bool:
    """Whether the same pod, made anew, may fare better.

    Not where the kubelet has tried an image again and again already, nor for one that no quota will ever take.
    """
    return reason.infra and reason not in (Reason.IMAGE_PULL, Reason.QUOTA)


def _pause_s(retry: Retry, retries: int) -> float:
    """Before the next try. A factor of 1,000 leaves what a float can hold after a hundred."""
    try:
        return min(retry.backoff_max_s, retry.backoff_s * retry.backoff_factor**retries)
    except OverflowError:
        return retry.backoff_max_s if retry.backoff_s else 0


def _wanted(retry: Retry, end: TaskEnd) -> bool:
    if not retry.on:
        return end.reason in USERS_OWN
    return end.reason in retry.on or (end.reason is Reason.EXIT_CODE and end.exit_code in retry.on)
