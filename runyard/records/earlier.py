"""An earlier run as a restart needs it: what it was asked for, what it planned, how its tasks ended.

The request is an object of its own beside the plan, since no task needs the run file in it. No secret is in it,
as none is in any request: run files and requests only name them.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Literal

from pydantic import ValidationError

from runyard import __version__
from runyard.errors import Conflict, Corrupt, NotFound
from runyard.model import Model
from runyard.records.bounded import for_each
from runyard.records.logs import load_seal
from runyard.records.runs import read_plan, read_result
from runyard.spec.plan import PLAN_VERSION, TaskPlan
from runyard.spec.restart import Earlier, TaskEnded
from runyard.spec.run import RunRequest, RunView
from runyard.store import paths
from runyard.store.base import ObjectStore, read

_AT_ONCE = 64

State = Literal["open", "closed", "unknown"]
"""What Temporal knows of a run."""


class StoredRequest(Model):
    """What a run was asked for; a restart's with all that it takes over."""

    version: int = PLAN_VERSION
    made_by: str = __version__
    execution_id: str = ""
    request: RunRequest


async def write_request(store: ObjectStore, run_id: str, stored: StoredRequest) -> None:
    await store.put(paths.request(run_id), stored.model_dump_json().encode())


async def read_request(store: ObjectStore, run_id: str) -> StoredRequest:
    """Raises NotFound, Conflict (another version's), Corrupt."""
    text = await read(store, paths.request(run_id))
    _check_version(text, run_id)
    try:
        return StoredRequest.model_validate_json(text)
    except ValidationError as error:
        raise Corrupt(f"the request of run {run_id} cannot be read") from error


async def find_earlier(store: ObjectStore, run_id: str, *, ask: Callable[[str], Awaitable[State]]) -> Earlier:
    """The run to restart, with how its tasks ended. Temporal is asked only where the store has no result.

    Raises NotFound, Conflict (it is still open, or another version's), Corrupt, and what ``ask`` raises.
    """
    earlier = await _read(store, run_id)
    if earlier is not None and earlier.result is not None:
        return earlier
    state = await ask(run_id)
    if state == "open":
        raise Conflict(
            f"run {run_id} has not ended",
            remedy="`runyard run retry` tries a held task again; `runyard run cancel` ends the run.",
        )
    earlier = await _read(store, run_id)  # it may have ended between the two looks
    if earlier is None and state == "unknown":
        raise NotFound(f"there is no run {run_id}")
    if earlier is None:
        raise NotFound(
            f"the store has no plan of run {run_id}: it ended before it had one, or it was removed since",
            remedy="Start it anew with `runyard run start`.",
        )
    if earlier.result is None:  # it was ended from outside
        return replace(earlier, ends=await read_ends(store, earlier.plan.tasks))
    return earlier


async def _read(store: ObjectStore, run_id: str) -> Earlier | None:
    try:
        return await read_earlier(store, run_id)
    except NotFound:
        return None


async def read_earlier(store: ObjectStore, run_id: str) -> Earlier:
    """The run, its ``result`` None where there is none of this execution (yet), and then no ``ends``.

    Raises NotFound where the store has no plan of it, Conflict for one that another version made, Corrupt.
    """
    header = await read(store, paths.plan(run_id), length=64 << 10)
    _check_version(header.partition(b"\n")[0], run_id)
    plan = await read_plan(store, run_id)
    try:
        stored = await read_request(store, run_id)
    except NotFound as error:
        raise _other_version(run_id, plan.run.made_by, "there is no request beside its plan") from error
    result = await _result(store, run_id, plan.run.execution_id)
    ends = (
        {task.name: TaskEnded(status=task.status, attempt=task.attempt) for task in result.tasks} if result else {}
    )
    return Earlier(request=stored.request, plan=plan, result=result, ends=ends)


async def read_ends(store: ObjectStore, tasks: list[TaskPlan]) -> Mapping[str, TaskEnded]:
    """How tasks ended by their seals alone: of a run that was ended from outside, and so has no result."""

    async def one(task: TaskPlan) -> TaskEnded | None:
        if task.kept:
            return TaskEnded(status="success", attempt=task.kept.attempt)
        end, attempt = None, 0
        while (sealed := await load_seal(store, task.id, attempt + 1)) is not None:
            attempt += 1
            end = TaskEnded(status=sealed.end.status, attempt=attempt)
        return end

    found = await for_each(tasks, one, limit=_AT_ONCE)
    return {task.name: end for task, end in zip(tasks, found, strict=True) if end is not None}


async def _result(store: ObjectStore, run_id: str, execution_id: str) -> RunView | None:
    """That of another execution is no result: the id is in use again, and this one has not ended."""
    try:
        result = await read_result(store, run_id)
    except NotFound:
        return None
    return result if result.execution_id in ("", execution_id) else None


def _check_version(text: bytes, run_id: str) -> None:
    try:
        found = json.loads(text)
        version, made_by = found.get("version", 0), str(found.get("made_by", ""))
    except (ValueError, AttributeError):
        return  # not JSON, or no object: who reads it says so
    if version != PLAN_VERSION:
        raise _other_version(run_id, made_by, f"its plan is of version {version}, and {PLAN_VERSION} is read here")


def _other_version(run_id: str, made_by: str, why: str) -> Conflict:
    by = f"Runyard {made_by}" if made_by else "another version of Runyard"
    return Conflict(
        f"run {run_id} was made by {by}, and cannot be restarted by {__version__}: {why}",
        remedy="Restart it with the version that made it, or start it anew.",
    )
