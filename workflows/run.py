"""The run: a graph of tasks, as one Temporal workflow.

One workflow a run and three activities a task attempt; no child workflows, which would cost more history and
could not be carried over when the run continues as new. A run continues as new *with tasks in flight*: the
next execution asks for the same activities again, and those adopt what is there.

The argument is any JSON: what is wrong with it must end the run with a sentence, and an argument that does not
decode would leave the workflow hanging instead.
"""

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from runyard.graph import Graph, Node

    from activities.signatures import (
        DELETE_TASK,
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
        ApprovalRequest,
        GraphTask,
        RunPhase,
        RunResult,
        RunResultWord,
        RunView,
        TaskRequest,
        TaskStatus,
        TaskView,
        executor_queue,
        task_id,
    )
    from runyard.temporal import FAILED_TASKS, GROUP, OWNER, PROJECT, STAGE, TASKS, TRIGGER
    from workflows.details import current_details
    from workflows.state import Carried, Clock, TaskRecord, view_task
    from workflows.task import FOR_EVER, HEARTBEAT, INFRASTRUCTURE, Driver

HISTORY_EVENTS = 4_000
"""Continue as new from here on, or when the server suggests it: what is in flight adds a few thousand more."""

BUSY = 20
"""From so many tasks in flight on, the details are rebuilt once a second instead of at every change."""


@workflow.defn(name=WORKFLOW)
class RunWorkflow:
    """A run. Argument: RunRequest; result: RunResult; a run that failed ends Failed, with its cause."""

    @workflow.init
    def __init__(self, request: Any = None, carried: Carried | None = None) -> None:
        self.clock = Clock(carried.created_at if carried else workflow.info().start_time)
        self.prepared = carried.prepared if carried else PreparedRun(name="", executor="", header=0, tasks=[])
        self._nodes: dict[str, GraphTask] = {}
        self._graph = Graph([])
        self._records: dict[str, TaskRecord] = {}
        self._drivers: dict[str, Driver] = {}
        self._active: int | None = None  # how many drivers have a task in flight; None = count again
        self._deleting: list[DeleteTask] = []
        self._finished: list[str] = carried.finished if carried else []
        self._stop: Reason | None = carried.stop if carried else None
        self._stop_message = carried.stop_message if carried else ""
        self._recorded = carried.recorded if carried else False
        self._bug: BaseException | None = None
        self._woken = False
        self._details_at = 0.0
        self._details_due = False
        self._details_timer = False
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references

    @workflow.run
    async def run(self, request: Any = None, carried: Carried | None = None) -> RunResult:
        if carried is None:
            self.prepared = await self._prepare(request)
            self._publish()
        self._build(carried)
        if self.prepared.timeout_s is not None and self._stop is None:
            self._spawn(self._watch_timeout(self.prepared.timeout_s))
        cancelled = False
        while True:
            try:
                await self._go(request)
                break
            except asyncio.CancelledError:
                cancelled = True
                self._stop_all(Reason.CANCELLED, "the run was cancelled")
        return self._end(cancelled=cancelled)

    # the start

    async def _prepare(self, request: Any) -> PreparedRun:
        if not isinstance(request, dict):
            raise ApplicationError(
                'the argument of RunWorkflow is a JSON object such as {"file": "runs: ..."}',
                type="invalid_request",
                non_retryable=True,
            )
        info = workflow.info()
        try:
            return await workflow.execute_activity(
                PREPARE_RUN,
                PrepareRun(run_id=info.workflow_id, execution_id=info.first_execution_run_id, request=request),
                result_type=PreparedRun,
                activity_id="prepare",
                task_queue=RUNS_QUEUE,
                start_to_close_timeout=timedelta(minutes=5),
                retry_policy=INFRASTRUCTURE,
                summary="read the run file",
            )
        except ActivityError as error:
            if isinstance(error.cause, ApplicationError):
                raise error.cause from error
            raise

    def _publish(self) -> None:
        """Search attributes: what runs are found by."""
        prepared = self.prepared
        updates = [
            PROJECT.value_set(prepared.project) if prepared.project else None,
            GROUP.value_set(prepared.group) if prepared.group else None,
            OWNER.value_set(prepared.owner) if prepared.owner else None,
            TRIGGER.value_set(prepared.trigger) if prepared.trigger else None,
            STAGE.value_set("running"),
            TASKS.value_set(len(prepared.tasks)),
        ]
        workflow.upsert_search_attributes([update for update in updates if update is not None])

    def _build(self, carried: Carried | None) -> None:
        """The graph, and what was in flight when the last execution ended."""
        self._nodes = {node.name: node for node in self.prepared.tasks}
        nodes = [
            Node(name=n.name, depends=n.depends, skip=n.skip, ignore_failure=n.ignore_failure)
            for n in self.prepared.tasks
        ]
        fail_fast = self.prepared.fail_fast
        if carried is None:
            self._graph = Graph(nodes, fail_fast=fail_fast)
            return
        self._graph = Graph.restore(
            nodes, carried.outcomes, carried.in_flight, fail_fast=fail_fast, stopped=carried.stop is not None
        )
        self._records = {record.task: record for record in carried.records}
        for name in carried.in_flight:
            self._drive(self._nodes[name], self._records[name])
        for request in carried.deleting:
            self.delete(request, after_s=0)

    # the loop

    async def _go(self, request: Any) -> None:
        """Until every task has ended and every pod is gone."""
        while True:
            self._start_ready()
            self._refresh_details()
            if self._graph.done and not self._recorded:
                await self._record()
                continue
            if self._graph.done and not self._deleting:
                return
            info = workflow.info()
            if info.is_continue_as_new_suggested() or info.get_current_history_length() >= HISTORY_EVENTS:
                await workflow.wait_condition(workflow.all_handlers_finished)
                workflow.continue_as_new(args=[request, self._carry()])
            self._woken = False
            await workflow.wait_condition(lambda: self._woken)
            if self._bug is not None:
                raise self._bug

    def _start_ready(self) -> None:
        while self._stop is None and self.has_room():
            names = self._graph.take(self.prepared.window - self._in_flight())
            if not names:
                return
            for name in names:
                node = self._nodes[name]
                record = TaskRecord(task=name, queued_ms=self.clock.ms(workflow.now()), attempt=1)
                if node.approval is not None:
                    record.attempt, record.status = 0, "approval"
                self._records[name] = record
                self._drive(node, record)

    def _drive(self, node: GraphTask, record: TaskRecord) -> None:
        driver = Driver(self, node, record)
        self._drivers[node.name] = driver
        self._active = None
        self._spawn(self._follow(driver))

    async def _follow(self, driver: Driver) -> None:
        outcome = await driver.drive()
        name = driver.node.name
        del self._drivers[name]
        self._finished = [*self._finished[-9:], name]
        failed_before = self._graph.failed
        self._graph.end(name, outcome)
        if self._graph.failed:
            self._publish_failure(name, outcome, first=not failed_before)
        if self._graph.must_stop():
            self._stop_all(None, f"{name} failed and the run is `fail_fast`")
        self.changed()

    def _publish_failure(self, name: str, outcome: str, *, first: bool) -> None:
        failed = [n for n, record in self._records.items() if record.status == "failed"]
        if outcome == "failed" and len(failed) <= 20:
            updates = [FAILED_TASKS.value_set([n[:100] for n in failed])]
            workflow.upsert_search_attributes([*updates, STAGE.value_set("failing")] if first else updates)

    async def _watch_timeout(self, timeout_s: float) -> None:
        left_ms = round(timeout_s * 1000) - self.clock.ms(workflow.now())
        await workflow.sleep(timedelta(milliseconds=max(1, left_ms)), summary="timeout of the run")
        self._stop_all(Reason.TIMEOUT_RUN, f"the run took longer than its timeout of {timeout_s:g} s")

    def _stop_all(self, reason: Reason | None, message: str) -> None:
        """Nothing new starts, and what is in flight ends. Without a reason: for `fail_fast`."""
        if reason is not None and self._stop is None:
            self._stop, self._stop_message = reason, message
            self._graph.stop()
        for driver in list(self._drivers.values()):
            driver.record.message = driver.record.message or message
            driver.stop(reason or Reason.CANCELLED)
        self.changed()

    # what drivers ask of their run

    def changed(self) -> None:
        self._woken = True
        self._details_due = True
        self._active = None

    def has_room(self) -> bool:
        return self._in_flight() < self.prepared.window

    def _in_flight(self) -> int:
        if self._active is None:
            self._active = sum(driver.active for driver in self._drivers.values())
        return self._active

    def output_attempts(self, tasks: list[str]) -> dict[str, tuple[str, int]]:
        info = workflow.info()
        return {
            name: (
                self._nodes[name].id or task_id(info.workflow_id, info.first_execution_run_id, name),
                self._records[name].attempt,
            )
            for name in tasks
            if name in self._records
        }

    def delete(self, request: DeleteTask, *, after_s: float) -> None:
        self._deleting.append(request)
        self._spawn(self._delete(request, after_s))

    async def _delete(self, request: DeleteTask, after_s: float) -> None:
        attempt = request.attempt
        if after_s > 0 and self._stop is None:
            await workflow.sleep(timedelta(seconds=after_s), summary=f"pod of {attempt.task} is kept for a look")
        await workflow.execute_activity(
            DELETE_TASK,
            request,
            activity_id=f"delete {attempt.task} #{attempt.attempt}",
            task_queue=executor_queue(self.prepared.executor),
            start_to_close_timeout=timedelta(minutes=10),
            heartbeat_timeout=HEARTBEAT,
            retry_policy=INFRASTRUCTURE,
            summary=attempt.task[:80],
        )
        self._deleting.remove(request)
        self._woken = True

    # the end

    async def _record(self) -> None:
        await workflow.execute_activity(
            RECORD_RUN,
            RecordRun(run=self._view(ended=True)),
            activity_id="record",
            task_queue=RUNS_QUEUE,
            start_to_close_timeout=timedelta(minutes=5),
            schedule_to_close_timeout=FOR_EVER,
            retry_policy=INFRASTRUCTURE,
            summary="keep the result",
        )
        self._recorded = True

    def _end(self, *, cancelled: bool) -> RunResult:
        view = self._view(ended=True, tasks=[])
        result = RunResult(id=view.id, phase=view.phase, result=view.result, cause=view.cause, counts=view.counts)
        if cancelled and view.result == "stopped":
            workflow.upsert_search_attributes([STAGE.value_set("cancelled")])
            raise asyncio.CancelledError
        workflow.upsert_search_attributes([STAGE.value_set(view.result)])
        if view.result != "success":
            raise ApplicationError(view.cause, result, type="RunFailed", non_retryable=True)
        return result

    def _carry(self) -> Carried:
        return Carried(
            prepared=self.prepared,
            created_at=self.clock.created_at,
            outcomes=dict(self._graph.outcomes),
            in_flight=self._graph.in_flight,
            records=list(self._records.values()),
            deleting=self._deleting,
            finished=self._finished,
            stop=self._stop,
            stop_message=self._stop_message,
            recorded=self._recorded,
        )

    # messages

    @workflow.query(description="The run and each of its tasks, as JSON.")
    def describe(self) -> RunView:
        return self._view(ended=self._recorded)

    @workflow.update(description="Approve a task that waits for it: {task, by}.")
    def approve(self, request: ApprovalRequest) -> TaskView:
        record = self._records[request.task]
        record.approvals = [*record.approvals, request.by]
        self.changed()
        return self._view_of(request.task)

    @approve.validator
    def _check_approve(self, request: ApprovalRequest) -> None:
        driver = self._waiting_for_approval(request)
        approval = driver.node.approval
        if approval is not None and approval.allowed and request.by not in approval.allowed:
            raise _refuse(
                f"{request.by} may not approve {request.task}: allowed are {', '.join(approval.allowed)}"
            )
        if request.by in driver.record.approvals:
            raise _refuse(f"{request.by} has approved {request.task} already")

    @workflow.update(description="Refuse a task that waits for approval: {task, by, reason}. It fails.")
    def reject(self, request: ApprovalRequest) -> TaskView:
        driver = self._drivers[request.task]
        driver.record.message = f"rejected by {request.by}" + (f": {request.reason}" if request.reason else "")
        driver.stop(Reason.REJECTED)
        self.changed()
        return self._view_of(request.task)

    @reject.validator
    def _check_reject(self, request: ApprovalRequest) -> None:
        driver = self._waiting_for_approval(request)
        approval = driver.node.approval
        if approval is not None and approval.allowed and request.by not in approval.allowed:
            raise _refuse(f"{request.by} may not reject {request.task}: allowed are {', '.join(approval.allowed)}")

    @workflow.update(description="End one task: {task, by}. A held task is given up.")
    def cancel_task(self, request: TaskRequest) -> TaskView:
        driver = self._drivers.get(request.task)
        if driver is None:
            self._graph.end(request.task, "cancelled")
        else:
            if driver.record.status != "held":
                driver.record.message = f"cancelled by {request.by}" if request.by else "cancelled"
            driver.stop(Reason.CANCELLED)
        self.changed()
        return self._view_of(request.task)

    @cancel_task.validator
    def _check_cancel_task(self, request: TaskRequest) -> None:
        self._known(request.task)
        if request.task in self._graph.outcomes:
            raise _refuse(f"{request.task} has ended already: {self._graph.outcomes[request.task]}")

    @workflow.update(description="Try a held task again: {task, by}.")
    def retry_task(self, request: TaskRequest) -> TaskView:
        self._records[request.task].retry = True
        self.changed()
        return self._view_of(request.task)

    @retry_task.validator
    def _check_retry_task(self, request: TaskRequest) -> None:
        self._known(request.task)
        record = self._records.get(request.task)
        if record is None or record.status != "held":
            status = self._view_of(request.task).status
            raise _refuse(
                f"{request.task} is not held (it is {status}); `on_failure: hold` lets failed tasks wait"
            )

    def _known(self, task: str) -> None:
        if task not in self._nodes:
            raise _refuse(f"the run has no task {task!r}", code="not_found")

    def _waiting_for_approval(self, request: ApprovalRequest) -> Driver:
        self._known(request.task)
        driver = self._drivers.get(request.task)
        if driver is None or driver.record.status != "approval" or driver.record.stop is not None:
            raise _refuse(
                f"{request.task} does not wait for approval (it is {self._view_of(request.task).status})"
            )
        if not request.by:
            raise _refuse("`by` says who decides; it is empty", code="invalid_request")
        return driver

    # what people see

    def _view(self, *, ended: bool = False, tasks: list[str] | None = None) -> RunView:
        prepared, info = self.prepared, workflow.info()
        result, cause = self._result()
        phase: RunPhase = "finished" if self._graph.done else "running"
        return RunView(
            id=info.workflow_id,
            name=prepared.name,
            phase=phase,
            result=result if self._graph.done or self._graph.failed else "unknown",
            cause=cause,
            group=prepared.group,
            project=prepared.project,
            executor=prepared.executor,
            trigger=prepared.trigger,
            created_at=self.clock.created_at,
            ended_at=workflow.now() if ended else None,
            counts=self._counts(),
            tasks=[self._view_of(name) for name in (self._nodes if tasks is None else tasks)],
            annotations=prepared.annotations,
        )

    def _result(self) -> tuple[RunResultWord, str]:
        if self._stop is Reason.TIMEOUT_RUN:
            return "failed", self._stop_message
        result = self._graph.result()
        if result == "stopped":
            return result, self._stop_message
        return result, self._graph.cause() or self.prepared.nothing

    def _counts(self) -> dict[TaskStatus, int]:
        counts: dict[TaskStatus, int] = {
            word: number for word, number in self._graph.counts().items() if word != "in_flight" and number
        }
        for driver in self._drivers.values():
            status = driver.record.status
            counts[status] = counts.get(status, 0) + 1
        return counts

    def _view_of(self, name: str) -> TaskView:
        outcome = self._graph.outcomes.get(name)
        record = self._records.get(name)
        why = self._graph.why(name) if record is None and outcome in ("skipped", "cancelled") else ""
        return view_task(self._nodes[name], record, self.clock, outcome=outcome, why=why)

    def _refresh_details(self) -> None:
        """Rebuild the current details, at once while little goes on and once a second otherwise."""
        now = workflow.time()
        if not self._details_due or self._details_timer:
            return
        if len(self._drivers) > BUSY and now < self._details_at + 1:
            self._details_timer = True
            self._spawn(self._refresh_soon())
            return
        self._details_due = False
        self._details_at = now
        failed = [n for n, r in self._records.items() if r.status == "failed"][:20] if self._graph.failed else []
        shown = dict.fromkeys([*failed, *list(self._drivers)[:100], *self._finished])
        workflow.set_current_details(current_details(self._view(tasks=list(shown))))

    async def _refresh_soon(self) -> None:
        await workflow.sleep(timedelta(seconds=1), summary="rebuild the details")
        self._details_timer, self._details_at, self._woken = False, 0.0, True

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Any) -> None:
        """A bug in a part must stop the whole, visibly: the main loop raises it."""
        try:
            await work
        except Exception as error:
            self._bug, self._woken = error, True


def _refuse(message: str, *, code: str = "conflict") -> ApplicationError:
    return ApplicationError(message, type=code, non_retryable=True)
