"""The plan of a restart, made of the plan that it restarts: what compiling the file again would give.

To read a run file of 1,000 tasks takes a third of a second and more, a fifth of what a restart waits for. Where
nothing that a plan depends on is another, the earlier plan says it all: its tasks get ids of their own, and the
variables that are given anew. What may differ is listed here; any other field of a request, also one that is added
to it some day, has the file compiled.

Turned down: keeping parsed files in the worker's memory. It would help the worker that has read the file, as long
as it remembers; the plan is in the store, and a restart reads it in any case.
"""

from collections.abc import Mapping
from typing import Final

from runyard import __version__
from runyard.spec.compile import check_size, check_variables
from runyard.spec.plan import Plan, RunPlan, TaskPlan
from runyard.spec.restart import Earlier
from runyard.spec.run import RunRequest, task_id
from runyard.spec.when import Commit

_COPIED: Final = ("annotations", "executor", "owner", "priority", "traceparent")
"""Fields of a request that a plan has as they are. Of `annotations` a commit may be made: that is looked at."""

_MAY_DIFFER: Final = frozenset({*_COPIED, "environment", "restart", "run", "trigger", "window"})


def replan(earlier: Earlier, request: RunRequest, *, run_id: str, execution_id: str) -> Plan | None:
    """The plan of ``request``, with what it takes over in it; None where it has to be compiled.

    Raises InvalidRequest for variables that cannot be.
    """
    if not _is_as_planned(earlier, request):
        return None
    check_variables(request)
    old, given = earlier.plan, {**request.static_environment, **request.environment}
    environment = {**old.run.environment, **given}
    check_size(environment, tasks=len(old.tasks))
    run = {name: getattr(request, name) for name in _COPIED}
    run |= {"run_id": run_id, "execution_id": execution_id, "environment": environment, "restart_trace": ""}
    run |= {"restart_of": request.restart.run if request.restart else ""}
    ids = {task.id: task_id(run_id, execution_id, task.name) for task in old.tasks}
    return Plan(run=old.run.model_copy(update=run), tasks=[_anew(task, ids, given) for task in old.tasks])


def _is_as_planned(earlier: Earlier, request: RunRequest) -> bool:
    old, was = earlier.plan.run, earlier.request
    changed = {name for name in RunRequest.model_fields if getattr(request, name) != getattr(was, name)}
    return (
        changed <= _MAY_DIFFER
        and request.run == old.name
        and Commit.of(request) == Commit.of(was)
        # a variable that is given no more would have its value of the file, which the plan does not know
        and was.environment.keys() <= request.environment.keys()
        and bool(earlier.plan.tasks)  # a run that was to be skipped
        and _is_ours(earlier, old)
    )


def _is_ours(earlier: Earlier, old: RunPlan) -> bool:
    """Another version may plan otherwise; what came from another store was never checked against the format."""
    imported = earlier.result is not None and earlier.result.imported_at is not None
    return old.made_by == __version__ and not imported


def _anew(task: TaskPlan, ids: Mapping[str, str], given: Mapping[str, str]) -> TaskPlan:
    """The task as if no run had it yet: neither kept, nor run again."""
    update: dict[str, object] = {"id": ids[task.id], "kept": None, "again": ""}
    if task.layers:
        update["layers"] = [ids[each] for each in task.layers]
    if given:
        update["environment"] = {**task.environment, **given}
    return task.model_copy(update=update)
