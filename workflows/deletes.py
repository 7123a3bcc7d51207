"""The pods of a run that have to go, and the activities that see to it.

A fetch that has sealed a success deletes its pod itself, since others wait for its room. What is left is to see
that the pod is gone, which is nobody's hurry: so these wait for each other for a moment, and one activity confirms
them all. Pods of any other end are deleted at once, those that may go at the same moment by one activity; those
that are kept for a look, when their time is over.
"""

from collections import deque
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Final, Protocol

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from activities.signatures import DELETE_TASK, DeleteTask, DeleteTasks
    from runyard.spec.run import executor_queue
    from workflows.board import Board
    from workflows.state import Deleting
    from workflows.task import INFRASTRUCTURE
    from workflows.waits import Waits

AT_ONCE: Final = 50
"""So many pods at most are deleted by one activity."""

UNDER_WAY: Final = 100
"""So many deletes at most are under way: at 2,000 activities of all kinds a run would be stuck, without a word."""


class Run(Protocol):
    """What this needs of its run."""

    board: Board
    waits: Waits

    def wake(self) -> None:
        """Have the main loop look again."""


class Deletes:
    """All of one execution of a run. What is to be deleted stands on the board until that is confirmed."""

    def __init__(self, run: Run, *, spawn: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._run = run
        self._spawn = spawn
        self._due: deque[DeleteTask] = deque()
        self._begun: deque[DeleteTask] = deque()  # by their fetches
        self._gathering = False
        self._under_way = 0

    @property
    def open(self) -> bool:
        """Whether there is one that is not waiting for its time."""
        return bool(self._under_way or self._due or self._begun)

    def add(self, request: DeleteTask, *, after_s: float, begun: bool = False) -> None:
        """``after_s``: kept for so long. ``begun``: its fetch has deleted it, as far as anybody knows."""
        board = self._run.board
        due_ms = self._now_ms() + round(after_s * 1000) if after_s > 0 and board.stop is None else 0
        each = Deleting(request=request, due_ms=due_ms)
        if begun and not due_ms and board.prepared.gathers_ms:
            self._note(each)
            self._begun.append(request)
            if not self._gathering:
                self._gathering = True
                self._spawn(self._gather(timedelta(milliseconds=board.prepared.gathers_ms)))
        else:
            self.add_in_time(each)

    def add_in_time(self, each: Deleting) -> None:
        self._note(each)
        if each.due_ms:
            self._spawn(self._keep(each))
        else:
            self._due.append(each.request)
            self._run.wake()

    def start(self, *, all_: bool = False) -> None:
        """One activity for all that may go now. ``all_``: nothing more will come that these could wait for."""
        if all_ or len(self._begun) >= AT_ONCE:
            self._hurry()
        while self._due and self._under_way < UNDER_WAY:
            number = min(len(self._due), AT_ONCE)
            self._under_way += 1
            self._spawn(self._delete([self._due.popleft() for _ in range(number)]))

    def _note(self, each: Deleting) -> None:
        self._run.board.deleting[each.request.attempt.task, each.request.attempt.attempt] = each

    def _hurry(self) -> None:
        self._due.extend(self._begun)
        self._begun.clear()

    async def _gather(self, moment: timedelta) -> None:
        try:
            await workflow.wait_condition(
                lambda: not self._begun, timeout=moment, timeout_summary="pods that are gone by then"
            )
        except TimeoutError:  # asyncio's is the built-in one
            self._hurry()
        self._gathering = False
        self._run.wake()

    async def _keep(self, each: Deleting) -> None:
        board, task = self._run.board, each.request.attempt.task
        await self._run.waits.until(
            lambda: board.hurry or board.stop is not None,
            left=timedelta(milliseconds=max(1, each.due_ms - self._now_ms())),
            summary=f"pod of {task} is kept for a look",
        )
        self.add_in_time(each.model_copy(update={"due_ms": 0}))

    async def _delete(self, batch: list[DeleteTask]) -> None:
        board, first = self._run.board, batch[0].attempt
        more = f" and {len(batch) - 1} more" if len(batch) > 1 else ""
        try:
            await workflow.execute_activity(
                DELETE_TASK,
                DeleteTasks(tasks=batch),
                activity_id=f"delete {first.task} #{first.attempt}",
                task_queue=executor_queue(board.prepared.executor),
                start_to_close_timeout=timedelta(minutes=10),
                heartbeat_timeout=board.prepared.heartbeat,
                retry_policy=INFRASTRUCTURE,
                summary=f"{first.task[:80]}{more}",
            )
        except ActivityError as error:  # one that no further try mends: left to the cleanup, the run goes on
            workflow.logger.warning("pods of %s%s cannot be deleted: %s", first.task, more, error.cause)
        for request in batch:
            del board.deleting[request.attempt.task, request.attempt.attempt]
        self._under_way -= 1
        self._run.wake()

    def _now_ms(self) -> int:
        return self._run.board.clock.ms(workflow.now())
