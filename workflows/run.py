"""The run: a graph of tasks, as one Temporal workflow.

One workflow a run and three activities a task attempt; no child workflows, which would cost more history and
could not be carried over when the run continues as new. A run continues as new *with tasks in flight*: the
next execution asks for the same activities again, and those adopt what is there.

The argument is any JSON: what is wrong with it must end the run with a sentence, and an argument that does not
decode would leave the workflow hanging instead.
"""

import asyncio
import json
from collections import deque
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError

with workflow.unsafe.imports_passed_through():
    from activities.signatures import (
        LEAVE_VIEW,
        PREPARE_RUN,
        RECORD_RUN,
        DeleteTask,
        PreparedRun,
        PrepareRun,
        RecordRun,
    )
    from runyard.reasons import Reason
    from runyard.spec.run import (
        RUNS_QUEUE,
        WORKFLOW,
        Passing,
        RunResult,
    )
    from runyard.temporal import CLOSING, CREATED, FAILED_TASKS, GROUP, OWNER, PROJECT, STAGE, TASKS, TRIGGER
    from workflows.board import Board
    from workflows.deletes import Deletes
    from workflows.details import current_details
    from workflows.fitting import fit, fitting
    from workflows.messages import RunMessages
    from workflows.state import Carried, TaskRecord
    from workflows.task import FOR_EVER, HEARTBEAT, INFRASTRUCTURE, Driver
    from workflows.turn import Turn
    from workflows.waits import Waits

BUSY = 20
"""From so many tasks in flight on, the details are rebuilt once a second instead of at every change."""

CALM = timedelta(seconds=3)
CALMS = 5
"""A run waits for short tasks before it continues as new: this long, and again while tasks go on ending."""

LEAVE = timedelta(seconds=5)
"""Not longer: nobody may be asking."""

LONG_EVENTS = 1_000
"""From here on a replay takes so long that the end of the run, too, is announced."""

PREPARE_HEARTBEAT = timedelta(seconds=10)
"""A worker that dies while it reads a run file delays the run by so much."""

SHOWN_FILE = 16 << 10
"""A run file of more characters is not carried from execution to execution."""


@workflow.defn(name=WORKFLOW)
class RunWorkflow(RunMessages):
    """A run. Argument: RunRequest; result: RunResult; a run that failed ends Failed, with its cause."""

    @workflow.init
    def __init__(self, request: Any = None, carried: Carried | None = None) -> None:
        info = workflow.info()
        if carried is None:
            nothing = PreparedRun(name="", executor="", header=0, tasks=[])
            self.board = Board(info.workflow_id, info.first_execution_run_id, info.workflow_start_time, nothing)
            self.board.unplanned = "queued"
        else:
            self.board = Board.of(info.workflow_id, info.first_execution_run_id, carried)
        self.waits = Waits(self, spawn=self._spawn)
        self._turn = Turn(self, over=carried is not None)
        self._drivers: dict[str, Driver] = {}
        self._line: deque[Driver] = deque()  # those that wait for room to try again
        self._deletes = Deletes(self, spawn=self._spawn)
        self._recording = False
        self._calm = False  # the time to let short tasks end is over
        self._resumed = 0  # what waited when this execution began, with a timer each: no reason to begin anew
        self._failed_shown = 0
        self._active: int | None = None  # how many drivers have a pod; None = count again
        self._bug: BaseException | None = None
        self._woken = False
        self._details_at = 0.0
        self._details_due = True
        self._details_timer = False
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references

    @workflow.run
    async def run(self, request: Any = None, carried: Carried | None = None) -> RunResult:
        if carried is None:
            prepared = await self._prepare(request)
            self.board = Board(self.board.run_id, self.board.execution_id, self.board.clock.created_at, prepared)
            self._publish()
        else:
            self._resume(carried)
        if self.board.prepared.timeout_s is not None and self.board.stop is None:
            self._spawn(self._watch_timeout(self.board.prepared.timeout_s))
        cancelled = False
        while True:
            try:
                await self._wait_for_turn()
                await self._go(request)
                break
            except asyncio.CancelledError:
                cancelled = self.board.hurry = True
                self._stop(*self._why_cancelled())
                self._withdraw()
        return self._end(cancelled=cancelled or self.board.stop is Reason.CANCELLED)

    # the start

    async def _prepare(self, request: Any) -> PreparedRun:
        board = self.board
        if not isinstance(request, dict):
            board.unplanned = "setuperror"
            board.unplanned_cause = 'the argument of RunWorkflow is a JSON object such as {"file": "runs: ..."}'
            raise ApplicationError(board.unplanned_cause, type="invalid_request", non_retryable=True)
        try:
            prepared: PreparedRun = await workflow.execute_activity(
                PREPARE_RUN,
                PrepareRun(run_id=board.run_id, execution_id=board.execution_id, request=request),
                result_type=PreparedRun,
                activity_id="prepare",
                task_queue=RUNS_QUEUE,
                start_to_close_timeout=timedelta(minutes=5),
                heartbeat_timeout=PREPARE_HEARTBEAT,
                retry_policy=INFRASTRUCTURE,
                summary="read the run file",
            )
        except ActivityError as error:
            board.unplanned = "cancelled" if isinstance(error.cause, CancelledError) else "setuperror"
            if isinstance(error.cause, ApplicationError):
                board.unplanned_cause = error.cause.message
                raise error.cause from error
            raise
        return prepared

    def _publish(self) -> None:
        """Search attributes: what runs are found by."""
        prepared = self.board.prepared
        words = [(PROJECT, prepared.project), (GROUP, prepared.group), (OWNER, prepared.owner)]
        words += [(TRIGGER, prepared.trigger), (STAGE, "queued" if prepared.lines else "running")]
        updates = [key.value_set(fit(word)) for key, word in words if word]
        workflow.upsert_search_attributes([*updates, TASKS.value_set(len(prepared.tasks))])

    async def _wait_for_turn(self) -> None:
        if not self._turn.over:
            await self._turn.wait()
            if self._turn.skipped and self.board.stop is None:  # as a run that has no task: it ends at once
                nothing = {"tasks": [], "nothing": self._turn.skipped}
                prepared, old = self.board.prepared.model_copy(update=nothing), self.board
                self.board = Board(old.run_id, old.execution_id, old.clock.created_at, prepared)
                self.board.counter = old.counter

    def _why_cancelled(self) -> tuple[Reason, str]:
        if self.board.superseded:
            return Reason.SUPERSEDED, self.board.superseded
        return Reason.CANCELLED, "the run was cancelled"

    def _resume(self, carried: Carried) -> None:
        """A driver for each task that was in flight when the last execution ended."""
        for name in self.board.graph.in_flight:
            self._drive(self.board.records[name])
        for each in carried.deleting:
            self._deletes.add_in_time(each)
        self._resumed = sum(not driver.active for driver in self._drivers.values())
        self._resumed += sum(each.due_ms > 0 for each in carried.deleting)
        if self.board.prepared.timers:
            self._resumed = min(self._resumed, self.board.prepared.timers + 1)

    # the loop

    async def _go(self, request: Any) -> None:
        """Until every task has ended and every pod is gone."""
        board = self.board
        while True:
            self._start_ready()
            self._deletes.start(all_=board.graph.done)
            self._refresh_details()
            if board.graph.done and not board.recorded and not self._recording:
                self._recording = True
                self._spawn(self._record())  # not here, where a cancel would reach it
            if board.graph.done and board.recorded and not board.deleting:
                if workflow.info().get_current_history_length() >= LONG_EVENTS:
                    await self._announce()
                return
            if self._is_long():
                await self._calm_down()
                await self._leave_view()
                await self._announce()
                await workflow.wait_condition(workflow.all_handlers_finished)
                workflow.continue_as_new(
                    args=[_without_file(request), board.carry()],
                    memo=workflow.memo(),  # else the next execution has what the first was started with
                )
            self._woken = False
            await workflow.wait_condition(lambda: self._woken)
            if self._bug is not None:
                raise self._bug

    def _is_long(self) -> bool:
        """Whether the run has to go on in a new execution.

        Not once it is cancelled: only the execution that was told so can end Cancelled. What is left to do then
        fits in: nothing new starts, and of what waits nobody needs an event.
        """
        info, prepared = workflow.info(), self.board.prepared
        return not self.board.hurry and (
            info.get_current_history_length() >= prepared.history_events + self._resumed
            or info.get_current_history_size() >= prepared.history_bytes
        )

    async def _calm_down(self) -> None:
        """Start nothing new for a moment, so that short tasks end first; long ones are carried over.

        While activities end all the time the server refuses a workflow task that closes the execution, and each
        refusal costs a replay of all of it.
        """
        self._calm = False
        self._spawn(self._end_calm())
        while not self._calm and (self._in_flight() or self._deletes.open):
            self._deletes.start(all_=True)
            self._woken = False
            await workflow.wait_condition(lambda: self._woken)
            if self._bug is not None:
                raise self._bug

    async def _leave_view(self) -> None:
        """For who asks until the next execution can answer: it has a large state to read, and much to start."""
        if not self.board.prepared.leaves_view:
            return
        try:
            await workflow.execute_activity(
                LEAVE_VIEW,
                Passing(by=workflow.info().run_id, view=self.board.view(workflow.now())),
                activity_id="leave view",
                task_queue=RUNS_QUEUE,
                schedule_to_close_timeout=LEAVE,
                summary="the run as it is, for the moment in which it continues as new",
            )
        except ActivityError as error:
            if isinstance(error.cause, CancelledError):  # it is the run that was cancelled
                raise asyncio.CancelledError from error
            workflow.logger.warning("no view of the run was left, so that questions wait: %s", error.cause)

    async def _announce(self) -> None:
        """Have questions wait for what comes next: one in the last workflow task would replay this execution."""
        if self.board.prepared.closing_ms:
            created_at = self.board.clock.created_at
            workflow.upsert_memo({CLOSING: workflow.info().run_id, CREATED: created_at.isoformat()})
            left = timedelta(milliseconds=self.board.prepared.closing_ms)
            await workflow.sleep(left, summary="questions wait for what comes next")

    def _withdraw(self) -> None:
        """It was about to go on as another execution and is not: questions are for this one again."""
        if workflow.memo_value(CLOSING, "") == workflow.info().run_id and workflow.patched("stays after all"):
            workflow.upsert_memo({CLOSING: ""})

    async def _end_calm(self) -> None:
        for _ in range(CALMS):
            before = len(self.board.graph.outcomes)
            await workflow.sleep(CALM, summary="let short tasks end before continuing as new")
            if len(self.board.graph.outcomes) == before:
                break
        self._calm = self._woken = True

    def _start_ready(self) -> None:
        """Those that want to try again, then new ones, as far as there is room."""
        board = self.board
        while self._line and (self._line[0].record.stop is not None or self._has_room()):
            driver = self._line.popleft()
            if driver.record.stop is None:
                driver.admitted = True
                self._active = None
        while board.stop is None and self._has_room():
            names = board.graph.take(board.prepared.window - self._in_flight())
            if not names:
                return
            for name in names:
                record = TaskRecord(task=name, queued_ms=board.clock.ms(workflow.now()), attempt=1)
                if board.nodes[name].approval is not None:
                    record.attempt, record.status = 0, "approval"
                board.records[name] = record
                self._drive(record)

    def _drive(self, record: TaskRecord) -> None:
        driver = Driver(self, self.board.nodes[record.task], record)
        self._drivers[record.task] = driver
        self._active = None
        self._spawn(self._follow(driver))

    async def _follow(self, driver: Driver) -> None:
        outcome = await driver.drive()
        board, name = self.board, driver.node.name
        del self._drivers[name]
        failed_before = board.graph.failed
        board.end(name, outcome)
        if outcome == "failed" and board.graph.failed:
            self._publish_failure(first=not failed_before)
        if board.graph.must_stop():
            self._stop_drivers(Reason.CANCELLED, f"{name} failed and the run is `fail_fast`")
        self.changed()

    def _publish_failure(self, *, first: bool) -> None:
        names = fitting(self.board.failed)
        if len(names) > self._failed_shown:
            self._failed_shown = len(names)
            failed = FAILED_TASKS.value_set(names)
            workflow.upsert_search_attributes([failed, STAGE.value_set("failing")] if first else [failed])

    async def _watch_timeout(self, timeout_s: float) -> None:
        if not self._turn.over:
            await workflow.wait_condition(lambda: self._turn.over)
        left_ms = round(timeout_s * 1000) + self.board.began_ms - self.board.clock.ms(workflow.now())
        await workflow.sleep(timedelta(milliseconds=max(1, left_ms)), summary="timeout of the run")
        self._stop(Reason.TIMEOUT_RUN, f"the run took longer than its timeout of {timeout_s:g} s")

    def _stop(self, reason: Reason, message: str) -> None:
        """Nothing new starts, and what is in flight ends."""
        if self.board.stop is None and not self.board.graph.done:
            self.board.stop, self.board.stop_message = reason, message
            self.board.graph.stop()
        self._stop_drivers(reason, message)

    def _stop_drivers(self, reason: Reason, message: str) -> None:
        for driver in list(self._drivers.values()):
            driver.stop(reason, message)
        self.changed()

    # what drivers ask of their run

    def wake(self) -> None:
        self._woken = True

    def changed(self) -> None:
        self._woken = True
        self._details_due = True
        self._active = None

    def ask_for_room(self, driver: Driver) -> None:
        self._line.append(driver)
        self.changed()

    def _has_room(self) -> bool:
        return self._in_flight() < self.board.prepared.window

    def _in_flight(self) -> int:
        if self._active is None:
            self._active = sum(driver.active for driver in self._drivers.values())
        return self._active

    def delete(self, request: DeleteTask, *, after_s: float, begun: bool = False) -> None:
        self._deletes.add(request, after_s=after_s, begun=begun)

    # the end

    async def _record(self) -> None:
        await workflow.execute_activity(
            RECORD_RUN,
            RecordRun(run=self.board.view(workflow.now())),
            activity_id="record",
            task_queue=RUNS_QUEUE,
            start_to_close_timeout=timedelta(minutes=5),
            schedule_to_close_timeout=FOR_EVER,
            heartbeat_timeout=HEARTBEAT,
            retry_policy=INFRASTRUCTURE,
            summary="keep the result",
        )
        self.board.recorded = self._woken = True

    def _end(self, *, cancelled: bool) -> RunResult:
        self._refresh_details(final=True)
        view = self.board.view(workflow.now(), tasks=[])
        result = RunResult(id=view.id, phase=view.phase, result=view.result, cause=view.cause, counts=view.counts)
        if cancelled and view.result == "stopped":
            workflow.upsert_search_attributes([STAGE.value_set("cancelled")])
            raise asyncio.CancelledError
        workflow.upsert_search_attributes([STAGE.value_set("skipped" if self._turn.skipped else view.result)])
        if view.result != "success":
            raise ApplicationError(view.cause, result, type="RunFailed", non_retryable=True)
        return result

    # what people see

    def _refresh_details(self, *, final: bool = False) -> None:
        """Rebuild the current details, at once while little goes on and once a second otherwise."""
        now = workflow.time()
        if not final:
            if not self._details_due or self._details_timer:
                return
            if len(self._drivers) > BUSY and now < self._details_at + 1:
                self._details_timer = True
                self._spawn(self._refresh_soon())
                return
        self._details_due, self._details_at = False, now
        board = self.board
        shown = dict.fromkeys([*board.failed[:20], *list(self._drivers)[:100], *board.finished])
        view = board.view(workflow.now(), tasks=list(shown))
        workflow.set_current_details(current_details(view, namespace=workflow.info().namespace))

    async def _refresh_soon(self) -> None:
        await workflow.sleep(timedelta(seconds=1), summary="rebuild the details")
        self._details_timer, self._details_at, self._woken = False, 0.0, True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """A bug in a part must stop the whole, visibly: the main loop raises it."""
        try:
            await work
        except Exception as error:
            self._bug, self._woken = error, True


def _without_file(request: Any) -> Any:
    """What the next execution shows as its argument: not a large run file, which nobody reads a second time."""
    file = request.get("file") if isinstance(request, dict) else None
    if file is None or len(file if isinstance(file, str) else json.dumps(file)) <= SHOWN_FILE:
        return request
    return {**request, "file": "… see the first execution of this run"}
