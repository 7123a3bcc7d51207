"""What activities keep of plans: the same line without asking the store again, for so many lines, and no longer.

Whether the store is asked shows by taking the plan away.
"""

import dataclasses
from pathlib import Path

import pytest
from temporalio.testing import ActivityEnvironment

from activities.plans import RUNS, SMALL_BYTES, TASKS, Plans
from activities.signatures import TaskAttempt
from runyard.errors import NotFound
from runyard.records.runs import PlanIndex, write_plan
from runyard.spec.plan import Plan, RunPlan, RunStep, TaskPlan
from runyard.store import paths
from runyard.store.posix import PosixStore


@pytest.fixture
def store(tmp_path: Path) -> PosixStore:
    return PosixStore(tmp_path / "store")


@pytest.fixture
def plans(store: PosixStore) -> Plans:
    return Plans(store)


def plan_of(tasks: int, *, run_id: str = "run", command: str = "true") -> Plan:
    planned = [
        TaskPlan(id=f"t{n}", name=f"t{n}", containers=[], steps=[RunStep(command=command)]) for n in range(tasks)
    ]
    return Plan(run=RunPlan(run_id=run_id, name="nightly"), tasks=planned)


def attempt(index: PlanIndex, n: int = 0, *, run_id: str = "run") -> TaskAttempt:
    return TaskAttempt(
        run_id=run_id, task=f"t{n}", task_id=f"t{n}", attempt=1, at=index.tasks[n], header=index.header
    )


async def task(plans: Plans, asked: TaskAttempt, *, execution: str = "e") -> TaskPlan:
    return await _within(execution).run(plans.task, asked)


async def run(plans: Plans, asked: TaskAttempt, *, execution: str = "e") -> RunPlan:
    return await _within(execution).run(plans.run, asked)


def _within(execution: str) -> ActivityEnvironment:
    """An activity of that execution of a workflow."""
    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(environment.info, workflow_run_id=execution)
    return environment


async def test_each_line_is_what_is_at_its_place(store: PosixStore, plans: Plans) -> None:
    plan = plan_of(3)
    index = await write_plan(store, plan)
    for _ in range(2):
        assert [await task(plans, attempt(index, n)) for n in range(3)] == plan.tasks
        assert await run(plans, attempt(index)) == plan.run


async def test_what_was_read_is_not_read_again(store: PosixStore, plans: Plans) -> None:
    plan = plan_of(2)
    index = await write_plan(store, plan)
    assert await task(plans, attempt(index)) == plan.tasks[0]
    assert await run(plans, attempt(index)) == plan.run
    await store.delete(paths.plan("run"))
    assert await task(plans, attempt(index)) == plan.tasks[0]
    assert await run(plans, attempt(index, 1)) == plan.run, "all tasks have the same header"
    with pytest.raises(NotFound):
        await task(plans, attempt(index, 1))


async def test_another_execution_reads_anew(store: PosixStore, plans: Plans) -> None:
    """A run's id may be used again, and its plan is another one then."""
    index = await write_plan(store, plan_of(1))
    await task(plans, attempt(index))
    await run(plans, attempt(index))
    other = plan_of(1, command="make!")
    again = await write_plan(store, other)
    assert await task(plans, attempt(again), execution="later") == other.tasks[0]
    await store.delete(paths.plan("run"))
    with pytest.raises(NotFound):
        await run(plans, attempt(again), execution="latest")


async def test_long_lines_are_not_kept(store: PosixStore, plans: Plans) -> None:
    index = await write_plan(store, plan_of(1, command="x" * SMALL_BYTES))
    await task(plans, attempt(index))
    await store.delete(paths.plan("run"))
    with pytest.raises(NotFound):
        await task(plans, attempt(index))


async def test_the_task_that_was_asked_for_longest_ago_goes_first(store: PosixStore, plans: Plans) -> None:
    index = await write_plan(store, plan_of(TASKS + 1))
    for n in range(TASKS):
        await task(plans, attempt(index, n))
    await task(plans, attempt(index, 0))
    await task(plans, attempt(index, TASKS))
    await store.delete(paths.plan("run"))
    for n in (0, 2, TASKS):
        assert (await task(plans, attempt(index, n))).name == f"t{n}"
    with pytest.raises(NotFound):
        await task(plans, attempt(index, 1))


async def test_so_many_runs_are_kept(store: PosixStore, plans: Plans) -> None:
    asked = {}
    for n in range(RUNS + 1):
        run_id = f"run-{n}"
        asked[run_id] = attempt(await write_plan(store, plan_of(1, run_id=run_id)), run_id=run_id)
        assert (await run(plans, asked[run_id], execution=run_id)).run_id == run_id
        await store.delete(paths.plan(run_id))
    for run_id in list(asked)[1:]:
        assert (await run(plans, asked[run_id], execution=run_id)).run_id == run_id
    with pytest.raises(NotFound):
        await run(plans, asked["run-0"], execution="run-0")
