"""What a restart takes over from an earlier run: its request, and the tasks that need not run again. Pure.

Tasks are told apart by their names. One is kept when it succeeded, is defined as it was, and everything before it
stands as it stood; what is in the store is asked by others, whose answer comes in as ``missing``.

The two definitions are compared field by field, since both plans are at hand: a digest would say *that* a task
changed, and people ask *what*. It is what decides on a task's effect that counts; what decides how long it may
take, how often it is tried, who approves it and on how much memory it runs does not, nor do the variables of the
requests: they are what a restart may give anew.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final

from runyard.errors import InvalidRequest
from runyard.spec.plan import Kept, Plan, TaskPlan
from runyard.spec.run import RunRequest, RunView, TaskStatus
from runyard.spec.tree import clip, did_you_mean

FIXED: Final = ("source", "static_environment", "message")
"""What is fixed for the commit: a restart with another would be another run."""

_DEFINES: Final[Mapping[str, str]] = {
    "depends": "depends",
    "skip": "when",
    "containers": "runtime",
    "arch": "arch",
    "working_dir": "working_dir",
    "shell": "shell",
    "user": "user",
    "steps": "steps",
    "pod": "pod",
}
"""Fields of a plan's task, and the words of the run file for them. `environment` is compared by itself."""

_NOT_KEPT: Final[Mapping[TaskStatus, str]] = {
    "failed": "it failed",
    "held": "it failed",
    "cancelled": "it was cancelled",
    "skipped": "it was skipped",
}


@dataclass(frozen=True, kw_only=True)
class TaskEnded:
    """How a task of the earlier run ended; ``attempt`` is its last one."""

    status: TaskStatus
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """The run that is restarted. ``ends``: of the tasks of which it is known, by name."""

    request: RunRequest
    plan: Plan
    result: RunView | None
    ends: Mapping[str, TaskEnded] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.plan.run.run_id


@dataclass(frozen=True, kw_only=True)
class Choice:
    """By name: the tasks that are kept, as the earlier run has them; and why others run again."""

    kept: Mapping[str, TaskPlan] = field(default_factory=dict)
    again: Mapping[str, str] = field(default_factory=dict)

    def apply(self, plan: Plan) -> Plan:
        """The new run's plan with this choice in it: what is kept has its old id, in `layers` too."""
        ids = {task.id: self.kept[task.name].id for task in plan.tasks if task.name in self.kept}
        return plan.model_copy(update={"tasks": [self._applied(task, ids) for task in plan.tasks]})

    def _applied(self, task: TaskPlan, ids: Mapping[str, str]) -> TaskPlan:
        update: dict[str, object] = {}
        if any(layer in ids for layer in task.layers):
            update["layers"] = [ids.get(layer, layer) for layer in task.layers]
        if task.name in self.kept:
            update |= {"id": ids[task.id], "kept": self.kept[task.name].kept}
        elif task.name in self.again:
            update["again"] = self.again[task.name]
        return task.model_copy(update=update) if update else task


def merge(request: RunRequest, earlier: Earlier) -> RunRequest:
    """The request with what it leaves out taken from the earlier run's. Raises InvalidRequest."""
    restart = request.restart
    assert restart is not None
    if restart.mode == "start" and restart.tasks:
        raise InvalidRequest("a restart from the start runs every task again: `tasks` has no place in it")
    given = {name: getattr(request, name) for name in request.model_fields_set}
    for name in FIXED:
        if name in given and given[name] != getattr(earlier.request, name):
            raise InvalidRequest(
                f"`{name}` is fixed for the commit: a restart keeps that of run {earlier.id}",
                remedy="Leave it out, or start a run of its own.",
            )
    merged = {"trigger": "restart", "traceparent": "", "run": earlier.plan.run.name, **given}
    return earlier.request.model_copy(update=merged)


def keeps_nothing(request: RunRequest, earlier: Earlier) -> bool:
    """Whether all tasks run again: so it was asked for, or nothing else can be meant."""
    restart = request.restart
    assert restart is not None
    if restart.mode is not None:
        return restart.mode == "start"
    unsaid = not restart.tasks and "file" not in request.model_fields_set
    return unsaid and earlier.result is not None and earlier.result.result == "success"


def nothing_kept(plan: Plan) -> Choice:
    return Choice(again={task.name: "from the start" for task in plan.tasks if not task.skip})


def choose(
    plan: Plan,
    earlier: Earlier,
    *,
    environments: Sequence[Mapping[str, str]],
    tasks: Collection[str] = (),
    missing: Mapping[str, str] | None = None,
) -> Choice:
    """Which tasks of the new ``plan`` are kept, and why the others are not.

    ``environments`` are the variables of the two requests; ``tasks`` are to run again; ``missing`` says, by task,
    what of its data is not in the store. Raises InvalidRequest for tasks that the plan does not have.
    """
    old = {task.name: task for task in earlier.plan.tasks}
    wanted, missing = find_tasks(plan, tasks), missing or {}
    ignored = frozenset().union(*environments)
    stands: set[str] = set()  # as in the earlier run: kept, or skipped again for the same reasons
    kept: dict[str, TaskPlan] = {}
    again: dict[str, str] = {}
    for task in plan.tasks:
        was, end = old.get(task.name), earlier.ends.get(task.name)
        before = next((parent for parent in task.depends if parent not in stands), "")
        if not before and _is_skipped_again(task, was, end):
            stands.add(task.name)
        if task.skip or task.name in stands:
            continue
        why = "it was asked for" if task.name in wanted else _why_not(task, was, end, ignored)
        why = why or missing.get(task.name, "") or (f"{clip(before)} before it is not kept" if before else "")
        if why or was is None or end is None:
            again[task.name] = why
            continue
        made = was.kept.run if was.kept else earlier.id
        kept[task.name] = was.model_copy(update={"kept": Kept(run=made, attempt=end.attempt)})
        stands.add(task.name)
    return Choice(kept=kept, again=again)


def _is_skipped_again(task: TaskPlan, was: TaskPlan | None, end: TaskEnded | None) -> bool:
    if was is None or end is None or end.status != "skipped":
        return False
    return (was.depends, was.skip) == (task.depends, task.skip)


def _why_not(task: TaskPlan, was: TaskPlan | None, end: TaskEnded | None, ignored: Set[str]) -> str:
    if was is None:
        return "the earlier run has no task of this name"
    if end is None or end.status != "success":
        return _NOT_KEPT.get(end.status, "it did not end") if end else "it did not end"
    changed = [word for name, word in _DEFINES.items() if getattr(task, name) != getattr(was, name)]
    if _environment(task, ignored) != _environment(was, ignored):
        changed.append("environment")
    return f"its {' and '.join(changed)} changed" if changed else ""


def _environment(task: TaskPlan, ignored: Set[str]) -> dict[str, object]:
    return {name: value for name, value in task.environment.items() if name not in ignored}


def find_tasks(plan: Plan, tasks: Collection[str]) -> set[str]:
    """Their names; that of a matrix means all of its tasks. Raises InvalidRequest."""
    wanted: set[str] = set()
    for name in tasks:
        found = [task.name for task in plan.tasks if name == task.name or _is_of(task, name)]
        if not found:
            hint = did_you_mean(name, [task.name for task in plan.tasks], what="its tasks are")
            raise InvalidRequest(f"the run `{clip(plan.run.name)}` has no task `{clip(name)}`", remedy=hint)
        wanted.update(found)
    return wanted


def _is_of(task: TaskPlan, matrix: str) -> bool:
    return bool(task.matrix) and task.name.startswith(f"{matrix} (")
