"""A run's wait for its turn: in the line of its group, then in that of its executor, before its first task.

The wait is one activity, which cares for the line, and a signal, which says that it is the run's turn. However
long it takes, it adds nothing to the history but what people see of it. A run gives its turn back by ending.
"""

import asyncio
import contextlib
from typing import Protocol

from temporalio import workflow
from temporalio.exceptions import FailureError

with workflow.unsafe.imports_passed_through():
    from activities.signatures import STAY_IN_LINE
    from runyard.spec.group import LEAVE, LINES_QUEUE, Entry, Leave, LineWord
    from runyard.temporal import COUNTER, STAGE
    from workflows.board import Board
    from workflows.details import current_details
    from workflows.task import FOR_EVER, HEARTBEAT, INFRASTRUCTURE


class Run(Protocol):
    board: Board


class Turn:
    """Hears what lines say to a run. ``over``: it does not wait, or not any more."""

    def __init__(self, run: Run, *, over: bool) -> None:
        self._run = run
        self._taken: set[str] = set()
        self.over = over
        self.skipped = ""  # why the run ends before it begins

    def hear(self, word: LineWord) -> None:
        """It may come twice, or late: what is said again changes nothing."""
        board = self._run.board
        entered = {entry.execution_id for entry in board.prepared.lines} or {board.execution_id}
        if word.execution_id and word.execution_id not in entered:
            return  # for an earlier run of this id
        told_late = word.kind == "waits" and (self.over or word.line in self._taken)
        if word.counter and word.counter != board.counter and not told_late:
            board.counter = word.counter
            workflow.upsert_search_attributes([COUNTER.value_set(word.counter)])
        if word.kind == "turn":
            self._taken.add(word.line)
        elif word.kind == "skip":
            self.skipped = word.message
        elif word.kind == "superseded":
            board.superseded = word.message
        elif not told_late:
            board.position = word.position
            board.unplanned_cause = f"number {word.position} in line: {word.message}"
            self._show()

    async def wait(self) -> None:
        """Until it is the run's turn everywhere, or it is not to run. At once for a run without lines."""
        board = self._run.board
        self.over = self.over or not board.prepared.lines
        while not self.over:
            entry = next((each for each in board.prepared.lines if each.line not in self._taken), None)
            if entry is None or self.skipped or board.stop is not None or self._has_nothing_to_run():
                self._end()
            else:
                await self._stay(entry)

    def _has_nothing_to_run(self) -> bool:
        """All tasks are skipped, and the run was cancelled. A second wait would be refused, again and again."""
        return self._run.board.hurry and workflow.patched("a cancel ends the wait")

    async def _stay(self, entry: Entry) -> None:
        board = self._run.board
        board.unplanned = "queued"
        entry = entry.model_copy(update={"started_at": board.clock.created_at})
        if entry.group and board.counter:
            entry = entry.model_copy(update={"counter": board.counter})
        stay = workflow.start_activity(
            STAY_IN_LINE,
            entry,
            activity_id=f"wait {entry.line.partition(':')[0]}",
            task_queue=LINES_QUEUE,
            start_to_close_timeout=FOR_EVER,
            heartbeat_timeout=HEARTBEAT,
            retry_policy=INFRASTRUCTURE,
            summary=f"wait in line of {entry.line.partition(':')[2]}"[:120],
        )
        try:
            await workflow.wait_condition(lambda: entry.line in self._taken or bool(self.skipped) or stay.done())
            if stay.done():
                await stay  # how it failed
        except asyncio.CancelledError:
            await self._leave(entry)
            raise
        finally:
            stay.add_done_callback(lambda task: task.cancelled() or task.exception())
            stay.cancel()

    async def _leave(self, entry: Entry) -> None:
        with contextlib.suppress(FailureError):  # there is no line any more
            line = workflow.get_external_workflow_handle(entry.line)
            await line.signal(LEAVE, Leave(run_id=entry.run_id))

    def _end(self) -> None:
        board = self._run.board
        board.unplanned, board.unplanned_cause, board.position = None, "", 0
        board.began_ms = board.clock.ms(workflow.now())
        self.over = True
        if board.stop is None and not self.skipped:
            workflow.upsert_search_attributes([STAGE.value_set("running")])

    def _show(self) -> None:
        view = self._run.board.view(workflow.now(), tasks=[])
        workflow.set_current_details(current_details(view))
