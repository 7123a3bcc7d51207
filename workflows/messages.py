"""What people and other programs say to a run, and what it answers.

Apart from the run's own module since neither needs the other's lines: a message looks at the board, writes a wish
there or into a task's driver, and wakes the run.
"""

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from runyard.reasons import Reason
    from runyard.spec.group import WORD, LineWord
    from runyard.spec.run import ApprovalRequest, RunView, TaskRequest, TaskView
    from workflows.board import Board
    from workflows.state import TaskRecord
    from workflows.task import Driver
    from workflows.turn import Turn


class RunMessages:
    """The query, the updates and the signal of a run, which is the subclass."""

    board: Board
    _turn: Turn
    _drivers: dict[str, Driver]

    def changed(self) -> None:
        """Wake the run: something is to be looked at."""
        raise NotImplementedError

    @workflow.signal(name=WORD, description="What a line says to the run that waits in it.")
    def hear_line(self, word: LineWord) -> None:
        self._turn.hear(word)
        self.changed()

    @workflow.query(description="The run and each of its tasks, as JSON.")
    def describe(self) -> RunView:
        return self.board.view(workflow.now())

    @workflow.update(description="Approve a task that waits for it: {task, by}.")
    def approve(self, request: ApprovalRequest) -> TaskView:
        record = self.board.records[request.task]
        record.approvals = [*record.approvals, request.by]
        self.changed()
        return self.board.view_of(request.task)

    @approve.validator
    def _check_approve(self, request: ApprovalRequest) -> None:
        record = self._approvable(request, verb="approve")
        if request.by in record.approvals:
            raise _refuse(f"{request.by} has approved {request.task} already")

    @workflow.update(description="Refuse a task that waits for approval: {task, by, reason}. It fails.")
    def reject(self, request: ApprovalRequest) -> TaskView:
        why = f": {request.reason}" if request.reason else ""
        self._stop_task(request.task, Reason.REJECTED, f"rejected by {request.by}{why}")
        return self.board.view_of(request.task)

    @reject.validator
    def _check_reject(self, request: ApprovalRequest) -> None:
        self._approvable(request, verb="reject")

    @workflow.update(description="End one task: {task, by}. A held task is given up and stays failed.")
    def cancel_task(self, request: TaskRequest) -> TaskView:
        if request.task in self.board.records:
            message = f"cancelled by {request.by}" if request.by else "cancelled"
            self._stop_task(request.task, Reason.CANCELLED, message)
        else:
            self.board.end(request.task, "cancelled")
            self.changed()
        return self.board.view_of(request.task)

    @cancel_task.validator
    def _check_cancel_task(self, request: TaskRequest) -> None:
        self._known(request.task)
        if request.task in self.board.graph.outcomes:
            raise _refuse(f"{request.task} has ended already: {self.board.graph.outcomes[request.task]}")

    @workflow.update(description="Try a held task again: {task, by}.")
    def retry_task(self, request: TaskRequest) -> TaskView:
        self.board.records[request.task].retry = True
        self.changed()
        return self.board.view_of(request.task)

    @retry_task.validator
    def _check_retry_task(self, request: TaskRequest) -> None:
        self._known(request.task)
        status = self.board.view_of(request.task).status
        if status != "held":
            raise _refuse(
                f"{request.task} is not held (it is {status}); `on_failure: hold` lets failed tasks wait"
            )

    def _stop_task(self, name: str, reason: Reason, message: str) -> None:
        """A message may come to a new execution before the drivers are there: then the record tells its driver."""
        driver, record = self._drivers.get(name), self.board.records[name]
        if driver is not None:
            driver.stop(reason, message)
        elif record.stop is None:
            record.stop, record.stop_message = reason, message
        self.changed()

    def _known(self, task: str) -> None:
        if self.board.unplanned:
            raise _refuse(f"the run is {self.board.unplanned}: it has no tasks yet")
        if task not in self.board.nodes:
            raise _refuse(f"the run has no task {task!r}", code="not_found")

    def _approvable(self, request: ApprovalRequest, *, verb: str) -> TaskRecord:
        self._known(request.task)
        record = self.board.records.get(request.task)
        if record is None or record.status != "approval" or record.stop is not None:
            status = self.board.view_of(request.task).status
            raise _refuse(f"{request.task} does not wait for approval (it is {status})")
        if not request.by:
            raise _refuse("`by` says who decides; it is empty", code="invalid_request")
        approval = self.board.nodes[request.task].approval
        allowed = approval.allowed if approval else []
        if allowed and request.by not in allowed:
            raise _refuse(f"{request.by} may not {verb} {request.task}: allowed are {', '.join(allowed)}")
        return record


def _refuse(message: str, *, code: str = "conflict") -> ApplicationError:
    return ApplicationError(message, type=code, non_retryable=True)
