"""What `prepare_run` does for a restart: find the earlier run, choose what is kept, refer to it.

The order is what protects shared data. The request says first which tasks may be referred to; then come the
runid objects, each failure of which is raised and tried again; then a look whether the data is there, since a
cleanup may have been faster; and the plan, which makes the run visible, last. After the second step no cleanup
removes the data (`write_runids` knows the other side of that), so what the third one sees holds.

A try that follows one that was cut short finds the same earlier run and begins with the same candidates. Data that
is gone never comes back, so it can only keep less, and it writes the whole plan anew. Nobody has seen the other
one: the workflow learns of a plan by this activity's answer alone.
"""

from collections.abc import Mapping, Sequence

from temporalio import activity
from temporalio.client import WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from runyard.errors import Corrupt, ServerUnavailable
from runyard.records.bounded import for_each
from runyard.records.earlier import State, StoredRequest, write_request
from runyard.records.logs import Seal, load_seal
from runyard.records.runs import write_runids
from runyard.spec.plan import Plan, TaskPlan
from runyard.spec.restart import Choice, Earlier, choose, keeps_nothing, nothing_kept
from runyard.spec.run import RunRequest
from runyard.store import paths
from runyard.store.base import ObjectStore

_AT_ONCE = 64


async def ask_temporal(run_id: str) -> State:
    """What it knows of a run. Raises ServerUnavailable."""
    try:
        status = (await activity.client().get_workflow_handle(run_id).describe()).status
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return "unknown"
        raise ServerUnavailable(
            f"whether run {run_id} has ended cannot be known: {error.message[:200]}"
        ) from error
    return "open" if status is WorkflowExecutionStatus.RUNNING else "closed"


async def keep(store: ObjectStore, plan: Plan, request: RunRequest, merged: RunRequest, earlier: Earlier) -> Plan:
    """The plan with what is kept in it; the request and the runid objects are in the store then."""
    assert request.restart is not None
    environments = (earlier.request.environment, merged.environment)
    tasks = request.restart.tasks

    def chosen(missing: Mapping[str, str]) -> Choice:
        return choose(plan, earlier, environments=environments, tasks=tasks, missing=missing)

    first = nothing_kept(plan) if keeps_nothing(request, earlier) else chosen({})
    candidates = list(first.kept.values())
    await _say(store, plan, merged, candidates)
    await write_runids(
        store,
        plan.run.run_id,
        logs=[task.id for task in candidates],
        archives=[task.id for task in candidates if _saves(task)],
    )
    missing = await _look(store, candidates)
    if not missing:
        return first.apply(plan)
    final = chosen(missing)
    await _release(store, plan.run.run_id, [task for task in candidates if task.name not in final.kept])
    return final.apply(plan)


async def _say(store: ObjectStore, plan: Plan, merged: RunRequest, candidates: Sequence[TaskPlan]) -> None:
    stored = StoredRequest(
        execution_id=plan.run.execution_id, request=merged, referred=[task.id for task in candidates]
    )
    await write_request(store, plan.run.run_id, stored)


async def _look(store: ObjectStore, candidates: Sequence[TaskPlan]) -> dict[str, str]:
    """What is not there, in words, by the name of the task."""

    async def one(task: TaskPlan) -> str:
        return await _missing(store, task)

    found = await for_each(candidates, one, limit=_AT_ONCE)
    return {task.name: why for task, why in zip(candidates, found, strict=True) if why}


async def _missing(store: ObjectStore, task: TaskPlan) -> str:
    """Sealed and with its archives, by their sizes: they were verified when they were sealed."""
    assert task.kept is not None
    try:
        seal = await load_seal(store, task.id, task.kept.attempt)
    except Corrupt:
        return "its seal cannot be read"
    if seal is None:
        return "its logs are gone"
    if seal.end.status != "success":
        return f"its seal says {seal.end.status}"
    return await _missing_archive(store, task, seal) if seal.archives else ""


async def _missing_archive(store: ObjectStore, task: TaskPlan, seal: Seal) -> str:
    prefix = paths.archives(task.id)
    there = {info.key.removeprefix(prefix): info.size async for info in store.list(prefix)}
    for archive in seal.archives:
        if archive.file not in there or f"{archive.step}.json" not in there:
            return f"its archive {archive.file} is gone"
        if there[archive.file] != archive.size:
            return f"its archive {archive.file} has another size than what was saved"
    return ""


async def _release(store: ObjectStore, run_id: str, tasks: Sequence[TaskPlan]) -> None:
    """Take back the runid objects of tasks that run again, under ids of their own."""
    keys = [paths.log_runid(task.id, run_id) for task in tasks]
    keys += [paths.archive_runid(task.id, run_id) for task in tasks]
    await for_each(keys, store.delete, limit=_AT_ONCE)


def _saves(task: TaskPlan) -> bool:
    return any(step.type == "save_to_workspace" and not step.skip for step in task.steps)
