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

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from temporalio import activity

from activities.faults import Fault
from activities.statuses import ask
from runyard.dialogue import ArchiveRecord
from runyard.errors import Corrupt
from runyard.records.bounded import for_each
from runyard.records.earlier import State
from runyard.records.logs import Seal, load_seal
from runyard.records.sharing import refer_all
from runyard.spec.plan import Plan, TaskPlan
from runyard.spec.restart import Choice, Earlier, choose, keeps_nothing, nothing_kept
from runyard.spec.run import RunRequest
from runyard.store import paths
from runyard.store.base import ObjectStore

_AT_ONCE: Final = 64

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

    missing = await _claim(store, plan.run.run_id, first.kept, fault)
    return (chosen(missing) if missing else first).apply(plan)


async def _claim(store: ObjectStore, run_id: str, kept: Mapping[str, TaskPlan], fault: Fault) -> dict[str, str]:
    """Refer to the data of all of them. Why some cannot be kept after all; the rest is there, and stays."""
    items = {name: _items(task) for name, task in kept.items()}
    every = [item for each in items.values() for item in each]
    there = await refer_all(store, every, run_id, said=lambda: fault("prepare.claimed"))
    missing = {name: _GIVEN_UP for name, each in items.items() if not there.issuperset(each)}
    rest = {name: task for name, task in kept.items() if name not in missing}
    found = await for_each(list(rest.values()), partial(_seal, store), limit=_AT_ONCE)
    seals = dict(zip(rest, found, strict=True))
    missing |= {name: seal for name, seal in seals.items() if isinstance(seal, str)}
    whole = {rest[name].id: seal.archives for name, seal in seals.items() if isinstance(seal, Seal)}
    gone = await _gone(store, whole)
    return missing | {name: gone[task.id] for name, task in rest.items() if task.id in gone}


def _items(task: TaskPlan) -> list[str]:
    saves = any(step.type == "save_to_workspace" and not step.skip for step in task.steps)
    return [paths.log_item(task.id), *([paths.archive_item(task.id)] if saves else [])]


async def _seal(store: ObjectStore, task: TaskPlan) -> Seal | str:
    """A task's seal, or why it is not worth keeping the task."""
    assert task.kept is not None
    try:
        seal = await load_seal(store, task.id, task.kept.attempt)
    except Corrupt:
        return "its seal cannot be read"
    if seal is None:
        return "its logs are gone"
    return seal if seal.end.status == "success" else f"its seal says {seal.end.status}"


async def _gone(store: ObjectStore, saved: Mapping[str, Sequence[ArchiveRecord]]) -> dict[str, str]:
    """By task id, what of its archives is not there. They are not read: they were verified when it was sealed."""
    archives = [(paths.archives(task), task, each) for task, its in saved.items() for each in its]
    keys = [place + name for place, _, each in archives for name in (each.file, f"{each.step}.json")]
    there = await store.stat_many(keys)
    gone: dict[str, str] = {}
    for place, task, each in archives:
        file = there.get(place + each.file)
        if file is None or f"{place}{each.step}.json" not in there:
            gone.setdefault(task, f"its archive {each.file} is gone")
        elif file.size != each.size:
            gone.setdefault(task, f"its archive {each.file} has another size than what was saved")
    return gone
