"""What `prepare_run` does for a restart: choose what is kept, and refer to it.

The order is what protects shared data. For each task that might be kept its runid object comes first, each failure
of which is raised and tried again; then a look for a cleanup's tombstone, and whether the data is there and whole;
and when all have been asked, the plan, which makes the run visible. Either the cleanup sees the runid object and
leaves the data, or we see the tombstone and the task runs again.

A try after one that was cut short begins with the same candidates, since an ended run does not change. Data
that is gone never comes back, so it can only keep less, and it writes the whole plan anew. Nobody has seen the
other plan: the workflow learns of one by this activity's answer alone. Runid objects of tasks that are not kept
after all stay: the other try may still be at work, and what it was told must stay true. The cleanup takes them
with the run.
"""

from collections.abc import Mapping
from typing import Final

from temporalio import activity

from activities.faults import Fault
from activities.statuses import ask
from runyard.errors import Corrupt, NotFound
from runyard.records.bounded import for_each
from runyard.records.earlier import State
from runyard.records.logs import load_seal
from runyard.records.sharing import refer
from runyard.spec.plan import Plan, TaskPlan
from runyard.spec.restart import Choice, Earlier, choose, keeps_nothing, nothing_kept
from runyard.spec.run import RunRequest
from runyard.store import paths
from runyard.store.base import ObjectInfo, ObjectStore

_AT_ONCE: Final = 256
"""So many tasks are asked for at a time: a folder makes that many runid objects with one commit, a bucket's store
has fewer requests under way by itself."""

_GIVEN_UP: Final = "its data is being removed by the cleanup"


async def ask_temporal(run_id: str) -> State:
    """What it knows of a run. Raises ServerUnavailable."""
    status = await ask(activity.client(), run_id)
    return "open" if status.open else "unknown" if status.closed_at is None else "closed"


async def keep(
    store: ObjectStore,
    plan: Plan,
    request: RunRequest,
    whole: RunRequest,
    earlier: Earlier,
    *,
    fault: Fault,
) -> Plan:
    """The plan with what is kept in it, to which the run refers then. ``whole``: with what it takes over.

    Raises InvalidRequest for tasks that the plan does not have, and what the store raises.
    """
    restart = request.restart
    assert restart is not None

    def chosen(missing: Mapping[str, str]) -> Choice:
        environments = (earlier.request.environment, whole.environment)
        return choose(plan, earlier, environments=environments, tasks=restart.tasks, missing=missing)

    if keeps_nothing(request, earlier):
        return nothing_kept(plan).apply(plan)
    first = chosen({})

    async def claim(task: TaskPlan) -> str:
        why = await _claim(store, plan.run.run_id, task)
        fault("prepare.claimed")
        return why

    whys = await for_each(list(first.kept.values()), claim, limit=_AT_ONCE)
    missing = {name: why for name, why in zip(first.kept, whys, strict=True) if why}
    return (chosen(missing) if missing else first).apply(plan)


async def _claim(store: ObjectStore, run_id: str, task: TaskPlan) -> str:
    """Refer to a task's data. Why it cannot be kept after all; "" = it is there, and stays."""
    items = [paths.log_item(task.id)]
    if any(step.type == "save_to_workspace" and not step.skip for step in task.steps):
        items.append(paths.archive_item(task.id))
    there = await for_each(items, lambda item: refer(store, item, run_id))
    return await _missing(store, task) if all(there) else _GIVEN_UP


async def _missing(store: ObjectStore, task: TaskPlan) -> str:
    """What of a task's data is not there. Archives are not read: they were verified when the log was sealed."""
    assert task.kept is not None
    try:
        seal = await load_seal(store, task.id, task.kept.attempt)
    except Corrupt:
        return "its seal cannot be read"
    if seal is None:
        return "its logs are gone"
    if seal.end.status != "success":
        return f"its seal says {seal.end.status}"
    for archive in seal.archives:
        there = await _stat(store, paths.archives(task.id) + archive.file)
        if there is None or await _stat(store, f"{paths.archives(task.id)}{archive.step}.json") is None:
            return f"its archive {archive.file} is gone"
        if there.size != archive.size:
            return f"its archive {archive.file} has another size than what was saved"
    return ""


async def _stat(store: ObjectStore, key: str) -> ObjectInfo | None:
    """Of a few known keys this is cheaper than a listing."""
    try:
        return await store.stat(key)
    except NotFound:
        return None
