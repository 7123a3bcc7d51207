"""A restart as a client sees it: judged before anything is sent, and what came of it."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from temporalio.client import WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from runyard.client.files import check, check_run_id
from runyard.client.planned import Planned
from runyard.errors import InvalidRequest, NotFound
from runyard.records.earlier import State, find_earlier
from runyard.spec.compile import check_variables
from runyard.spec.plan import Plan
from runyard.spec.restart import find_tasks, merge
from runyard.spec.run import Restart, RunRequest

if TYPE_CHECKING:
    from runyard.client.run import Run
    from runyard.client.yard import Runyard

_LOOK_S: Final = 0.1


def make_request(
    run_id: str, *, failed: bool, from_start: bool, tasks: Iterable[str], given: Mapping[str, object]
) -> RunRequest:
    """The request, with only what is ``given`` (not None): the rest is the earlier run's."""
    if failed and from_start:
        raise InvalidRequest("a restart is from what failed or from the start, not both")
    mode = {"mode": "start"} if from_start else {"mode": "failed"} if failed else {}
    restart = Restart.model_validate({"run": check_run_id(run_id), "tasks": list(tasks), **mode})
    set_anew = {name: value for name, value in given.items() if value is not None}
    return RunRequest.model_validate({"restart": restart, **set_anew})


async def check_restart(yard: "Runyard", request: RunRequest) -> tuple[RunRequest, Plan]:
    """The request with what it takes over, and what the run would be; the worker then judges for itself.

    Raises NotFound, Conflict (it has not ended, or another version made it), InvalidRequest, InvalidRunFile.
    """
    assert request.restart is not None

    async def ask(run_id: str) -> State:
        return await ask_state(yard, run_id)

    try:
        earlier = await find_earlier(yard.store, request.restart.run, ask=ask)
    except NotFound as error:
        if await ask_state(yard, request.restart.run) == "unknown":
            raise await yard.unknown_run(request.restart.run) from error
        raise
    whole = merge(request, earlier)
    check_variables(whole)
    # the same file gives the same tasks: to compile it here as well would cost a large run a third of its start
    plan = await check(whole) if "file" in request.model_fields_set else earlier.plan
    find_tasks(plan, request.restart.tasks)
    return whole, plan


async def ask_state(yard: "Runyard", run_id: str) -> State:
    """What Temporal knows of a run. Raises ServerUnavailable."""
    try:
        status = (await yard.client.get_workflow_handle(run_id).describe()).status
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND and "namespace" not in error.message.lower():
            return "unknown"
        raise yard.explain(error, what=f"run {run_id}") from error
    return "open" if status is WorkflowExecutionStatus.RUNNING else "closed"


async def wait_for_plan(run: "Run", *, patience_s: float = 10) -> Mapping[str, Planned]:
    """What a run that was started just now will do, task by task. Empty where no worker has planned it in time."""
    end = asyncio.get_running_loop().time() + patience_s
    while not (planned := await run.planned()) and asyncio.get_running_loop().time() < end:
        if (await run.describe()).ended_at is not None:
            return await run.planned()
        await asyncio.sleep(_LOOK_S)
    return planned
