"""Plans, results and runid objects: read by place, repeatable, every failure raised."""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest
from cutting import CuttingStore, dump, every_cut

from runyard.errors import Corrupt, InvalidRequest, NotFound, StoreFull
from runyard.records.runs import (
    read_header,
    read_plan,
    read_result,
    read_task,
    write_plan,
    write_result,
    write_runids,
)
from runyard.spec.plan import Container, FromSecret, Plan, RunPlan, RunStep, SaveCacheStep, TaskPlan
from runyard.spec.run import RunView, TaskView
from runyard.store import paths
from runyard.store.base import ObjectStore, read

NewStore = Callable[[], Awaitable[ObjectStore]]


def plan_of(tasks: int, run_id: str = "run-1") -> Plan:
    def task(n: int) -> TaskPlan:
        return TaskPlan(
            id=f"task{n:016d}",
            name=f"täsk {n}\u2028\u0085",  # characters that other readers take for ends of lines
            containers=[Container(image="alpine")],
            environment={"A": "1\n2", "S": FromSecret(from_secret="s")},
            steps=[RunStep(command="make test\n" * (n % 7)), SaveCacheStep(key="go-{{ arch }}")],
            depends={f"task {n - 1}": ["on_success"]} if n else {},
        )

    return Plan(run=RunPlan(run_id=run_id, name="nightly ☾"), tasks=[task(n) for n in range(tasks)])


@pytest.mark.parametrize("tasks", [0, 1, 500])
async def test_a_plan_is_read_by_place(store: ObjectStore, tasks: int) -> None:
    plan = plan_of(tasks)
    index = await write_plan(store, plan)
    assert await read_header(store, "run-1", index.header) == plan.run
    assert len(index.tasks) == tasks
    for n in (0, tasks // 2, tasks - 1) if tasks else ():
        assert await read_task(store, "run-1", index.tasks[n]) == plan.tasks[n]
    assert await read_plan(store, "run-1") == plan


async def test_written_again_it_is_the_same(store: ObjectStore) -> None:
    first = await write_plan(store, plan_of(20))
    before = await read(store, paths.plan("run-1"))
    assert await write_plan(store, plan_of(20)) == first
    assert await read(store, paths.plan("run-1")) == before


async def test_ten_thousand_tasks(store: ObjectStore) -> None:
    plan = plan_of(10_000)
    begun = time.perf_counter()
    index = await write_plan(store, plan)
    assert time.perf_counter() - begun < 30  # measured: 0.3 s
    assert await read_task(store, "run-1", index.tasks[9_999]) == plan.tasks[9_999]


async def test_what_is_not_there_and_what_cannot_be_read(store: ObjectStore) -> None:
    for call in (
        read_plan(store, "x"),
        read_header(store, "x", 5),
        read_task(store, "x", (0, 5)),
        read_result(store, "x"),
    ):
        with pytest.raises(NotFound):
            await call
    index = await write_plan(store, plan_of(2))
    offset, length = index.tasks[1]
    for bad in (
        read_task(store, "run-1", (offset + 1, length)),
        read_task(store, "run-1", (offset, length - 5)),
        read_header(store, "run-1", index.header - 5),
    ):
        with pytest.raises(Corrupt, match="of run run-1"):
            await bad
    await store.put(paths.plan("empty"), b"")
    with pytest.raises(Corrupt):
        await read_plan(store, "empty")


async def test_a_result_comes_back(store: ObjectStore) -> None:
    view = RunView(
        id="run-1",
        phase="finished",
        result="failed",
        cause="1 of 2 tasks failed: lint",
        created_at=datetime(2025, 3, 1, tzinfo=UTC),
        counts={"failed": 1, "success": 1},
        tasks=[TaskView(name="lint", status="failed"), TaskView(name="test", status="success")],
    )
    await write_result(store, view)
    await write_result(store, view)
    assert await read_result(store, "run-1") == view


async def test_runid_objects(store: ObjectStore) -> None:
    tasks = [f"t{n}" for n in range(50)]
    for run_id in ("run/1", "run/1", "run"):
        await write_runids(store, run_id, logs=tasks, archives=tasks)
    for task in tasks:
        for where in ("logs", "archives"):
            found = [info.key async for info in store.list(f"{where}/{task}/runs/")]
            assert found == [f"{where}/{task}/runs/run", f"{where}/{task}/runs/run%2F1"]
    await write_runids(store, "run", logs=["only"])
    assert [info.key async for info in store.list("archives/only/")] == []
    await write_runids(store, "none")
    with pytest.raises(InvalidRequest):
        await write_runids(store, "x" * 1100, logs=["t"])


@pytest.mark.promise(6)
async def test_a_runid_object_that_cannot_be_written_is_an_error(store: ObjectStore) -> None:
    tasks = [f"t{n}" for n in range(50)]
    for at in (0, 1, 37, 99):
        cutting = CuttingStore(store, at=at, error=StoreFull)
        with pytest.raises(StoreFull):
            await write_runids(cutting, "run-1", logs=tasks, archives=tasks)


async def test_cut_anywhere_and_repeated_all_is_there(new_store: NewStore) -> None:
    plan = plan_of(6)

    async def prepare(store: ObjectStore) -> None:
        ids = [task.id for task in plan.tasks]
        await write_runids(store, "run-1", logs=ids, archives=ids)
        await write_plan(store, plan)

    async def check(store: ObjectStore) -> None:
        assert await read_plan(store, "run-1") == plan
        assert len(await dump(store)) == 13

    assert await every_cut(new_store, prepare, check) == 50  # each runid object has its look for a tombstone
