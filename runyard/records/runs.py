"""A run's plan, its result, and the objects that say which tasks' data it refers to.

The plan is one object of JSON lines: the run first, then a line a task. A run of 10,000 tasks reads one task by
its place in the object (a range), so that no activity ever loads the whole plan; an object a task was turned down
for 10,000 writes before the first task can start.
"""

from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

from pydantic import ValidationError

from runyard.errors import Corrupt, NotFound
from runyard.model import Model
from runyard.records.bounded import for_each
from runyard.records.ended import delete_entry, key_of, write_entry
from runyard.records.sharing import claim_new
from runyard.spec.plan import Plan, RunPlan, TaskPlan
from runyard.spec.run import Passing, RunView
from runyard.store import paths
from runyard.store.base import ObjectStore, read

_CHUNK = 256 << 10
_HEAD = 16 << 10
_AT_ONCE = 64

M = TypeVar("M", bound=Model)


class PlanIndex(Model):
    """Where things are in a stored plan, in bytes: the length of the header; each task's offset and length."""

    header: int
    tasks: list[tuple[int, int]]


async def write_plan(store: ObjectStore, plan: Plan) -> PlanIndex:
    """Store it and say where each task is. Tasks are in the plan's order. Written again it is the same."""
    header = _line(plan.run)
    index: list[tuple[int, int]] = []

    async def chunks() -> AsyncIterator[bytes]:
        at, waiting = len(header), bytearray(header)
        for task in plan.tasks:
            line = _line(task)
            index.append((at, len(line)))
            at += len(line)
            waiting += line
            if len(waiting) >= _CHUNK:
                yield bytes(waiting)
                waiting.clear()
        yield bytes(waiting)

    await store.put(paths.plan(plan.run.run_id), chunks())
    return PlanIndex(header=len(header), tasks=index)


async def read_header(store: ObjectStore, run_id: str, header: int) -> RunPlan:
    """What is true for the whole run; ``header`` is its length in bytes. Raises NotFound, Corrupt."""
    return _parse(RunPlan, await read(store, paths.plan(run_id), length=header), run_id)


async def find_header(store: ObjectStore, run_id: str) -> RunPlan:
    """The same by who does not know its length. Raises NotFound, Corrupt."""
    length = _HEAD
    while True:
        head = await read(store, paths.plan(run_id), length=length)
        if b"\n" in head or len(head) < length:
            return _parse(RunPlan, head.partition(b"\n")[0], run_id)
        length *= 8


async def read_task(store: ObjectStore, run_id: str, at: tuple[int, int]) -> TaskPlan:
    """The task at this offset and length in bytes. Raises NotFound, Corrupt."""
    offset, length = at
    return _parse(TaskPlan, await read(store, paths.plan(run_id), offset=offset, length=length), run_id)


async def read_plan(store: ObjectStore, run_id: str) -> Plan:
    """The whole plan, in memory. Raises NotFound, Corrupt."""
    header, *tasks = (await read(store, paths.plan(run_id))).splitlines() or [b""]
    return Plan(run=_parse(RunPlan, header, run_id), tasks=[_parse(TaskPlan, line, run_id) for line in tasks])


async def write_result(store: ObjectStore, run: RunView) -> None:
    """Keep how a run ended, beside its plan, and enter it in the index; one that has ended before too."""
    try:
        before = await read_result(store, run.id)
    except (NotFound, Corrupt):
        before = None
    if before is not None and key_of(before) != key_of(run):
        await delete_entry(store, before)
    await store.put(paths.result(run.id), run.model_dump_json().encode())
    await write_entry(store, run)


async def read_result(store: ObjectStore, run_id: str) -> RunView:
    """Raises NotFound for a run that has no result (yet), Corrupt."""
    return _parse(RunView, await read(store, paths.result(run_id)), run_id)


async def write_passing(store: ObjectStore, passing: Passing) -> None:
    """Keep the latest."""
    await store.put(paths.passing(passing.view.id), passing.model_dump_json().encode())


async def read_passing(store: ObjectStore, run_id: str) -> Passing:
    """Raises NotFound for a run that has never gone on in another execution, Corrupt."""
    return _parse(Passing, await read(store, paths.passing(run_id)), run_id)


async def write_runids(
    store: ObjectStore, run_id: str, *, logs: Sequence[str] = (), archives: Sequence[str] = ()
) -> None:
    """Say that this run refers to the logs and the archives of these tasks (ids), which it is going to write.

    Every failure is raised. For data of another run see `sharing.claim_kept`.
    """
    items = [*map(paths.log_item, logs), *map(paths.archive_item, archives)]

    async def claim(item: str) -> None:
        await claim_new(store, run_id, item)

    await for_each(items, claim, limit=_AT_ONCE)


def _line(model: Model) -> bytes:
    return model.model_dump_json().encode() + b"\n"


def _parse(model: type[M], text: bytes, run_id: str) -> M:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise Corrupt(f"what the store holds of run {run_id} cannot be read as {model.__name__}") from error
