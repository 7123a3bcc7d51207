"""What was read of plans, kept for a while: a task's activities need the same line, and all tasks the same header.

A plan does not change under an execution of its workflow, which schedules no task before `prepare_run` has ended;
a reset or a reused id makes another execution. So what is kept is kept by execution, and nobody has to say that
it is out of date. With a bucket it is two requests less a task.
"""

from collections import OrderedDict
from typing import Final, Generic, TypeVar

from temporalio import activity

from activities.signatures import TaskAttempt
from runyard.records.runs import read_header, read_task
from runyard.spec.plan import RunPlan, TaskPlan
from runyard.store.base import ObjectStore

RUNS: Final = 50
TASKS: Final = 1_000
SMALL_BYTES: Final = 8 << 10
"""Longer lines are not kept: so all that is kept takes some tens of megabytes at most."""

T = TypeVar("T")


class Plans:
    """Reads plans for activities; each call is made within one."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._runs: _Recent[RunPlan] = _Recent(RUNS)
        self._tasks: _Recent[TaskPlan] = _Recent(TASKS)

    async def run(self, attempt: TaskAttempt) -> RunPlan:
        """What is true for the whole run. Raises NotFound, Corrupt."""
        execution = activity.info().workflow_run_id or ""
        plan = self._runs.get(execution, 0)
        if plan is None:
            plan = await read_header(self._store, attempt.run_id, attempt.header)
            self._runs.keep(execution, 0, plan, size_bytes=attempt.header)
        return plan

    async def task(self, attempt: TaskAttempt) -> TaskPlan:
        """The attempt's task. Raises NotFound, Corrupt."""
        execution, (offset, length) = activity.info().workflow_run_id or "", attempt.at
        plan = self._tasks.get(execution, offset)
        if plan is None:
            plan = await read_task(self._store, attempt.run_id, attempt.at)
            self._tasks.keep(execution, offset, plan, size_bytes=length)
        return plan


class _Recent(Generic[T]):
    """The ones used last, by execution and offset in its plan."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[tuple[str, int], T] = OrderedDict()

    def get(self, execution: str, offset: int) -> T | None:
        found = self._kept.get((execution, offset))
        if found is not None:
            self._kept.move_to_end((execution, offset))
        return found

    def keep(self, execution: str, offset: int, plan: T, *, size_bytes: int) -> None:
        if not execution or size_bytes > SMALL_BYTES:
            return
        self._kept[execution, offset] = plan
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)
