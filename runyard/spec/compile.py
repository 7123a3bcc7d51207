"""A request and its run file, compiled to a Plan.

Variables of a task, from the weakest to the strongest: the run's `environment` in the file, the task's, the
request's `static_environment` (fixed for the commit), the request's `environment`. All are merged into
``TaskPlan.environment``. A container's own are weaker than these, a step's own are stronger; both stay where
they are, since they hold there only.

Credentials of registries and timeouts are inherited from the file by the run and from the run by the task,
one registry and one timeout at a time; 0 takes a timeout away.
"""

from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from runyard.errors import InvalidRequest
from runyard.spec import plan, source, values
from runyard.spec.check import closure
from runyard.spec.complaints import Complaints
from runyard.spec.group import check_group, parse_policy
from runyard.spec.parse import ParsedFile, ParsedRun, ParsedTask, parse
from runyard.spec.plan import FromOutput, Plan, RunPlan, TaskPlan
from runyard.spec.planner import Planner
from runyard.spec.run import GraphTask, RunRequest
from runyard.spec.tree import Path, clip, did_you_mean
from runyard.spec.when import Commit, Matcher, TooSlow, When

SKIP = "[ci skip]"
_REPEATED_CHARACTERS = 256 << 20


def is_skipped(message: str) -> bool:
    """Whether this commit message asks for no run."""
    return SKIP in message


def compile_run(request: RunRequest, *, run_id: str, execution_id: str) -> Plan:
    """The plan of one run. It has no tasks when the commit's message asks for none (see `is_skipped`).

    A `when` of the run that does not match skips every task, so that the run shows why nothing was done.
    Blocks for some seconds at most (Jsonnet, regular expressions); no I/O but their child processes.

    Raises InvalidRunFile with every problem of the file, InvalidRequest where the request names a run or a
    task that the file does not have, a group that is no path, or sets a variable of an impossible name.
    """
    check_variables(request)
    if request.group:
        check_group(request.group)
    parse_policy(request.group_policy)
    if is_skipped(request.message):
        return Plan(run=RunPlan(run_id=run_id, name=request.run, executor=request.executor), tasks=[])
    commit = Commit.of(request)
    parsed = parse(request.file, name=request.file_name, ctx=commit.ctx())
    run = _choose(parsed, request.run)
    chosen = _select(run, request.tasks)
    check_size({**run.head.environment, **request.static_environment, **request.environment}, tasks=len(chosen))
    matcher = _judge(parsed, run, chosen, commit)
    planner = Planner(parsed, run, request, matcher, run_id, execution_id)
    return Plan(run=planner.run_plan(), tasks=list(planner.task_plans(chosen)))


def graph_task(task: TaskPlan, at: tuple[int, int]) -> GraphTask:
    """What the workflow needs of a task; ``at`` is the offset and length of its TaskPlan in the stored plan."""
    facts = GraphTask(
        name=task.name,
        depends=task.depends,
        skip=task.skip,
        ignore_failure=task.ignore_failure,
        approval=task.approval,
        retry=task.retry if task.retry.limit or task.retry.infra else None,
        image=task.containers[0].image if task.containers else "",
        outputs_of=outputs_of(task),
        queue_s=task.timeouts.queue_s,
        id=task.id if task.kept else "",
        kept=task.kept,
        keep_failed_for_s=task.keep_failed_for_s,
        at=at,
    )
    # only what says something is *set*, and so sent: it is a third of a large run's history otherwise
    return GraphTask.model_validate(facts.model_dump(exclude_defaults=True))


def outputs_of(task: TaskPlan) -> list[str]:
    """The tasks whose outputs this one reads."""
    environments = [task.environment, *(container.environment for container in task.containers)]
    environments += [step.environment for step in task.steps if isinstance(step, plan.RunStep)]
    read = (value.task for each in environments for value in each.values() if isinstance(value, FromOutput))
    return list(dict.fromkeys(read))


def run_names(file: str | dict[str, JsonValue], *, name: str) -> list[str]:
    """The runs of a file that need not be valid otherwise. Raises InvalidRunFile where it cannot be read."""
    runs = source.read(file, name=name, ctx=Commit().ctx()).root.data
    listed = runs.get("runs") if isinstance(runs, dict) else None
    found = [run.get("name") for run in listed if isinstance(run, dict)] if isinstance(listed, list) else []
    return [str(each) for each in found if isinstance(each, str)]


def check_variables(request: RunRequest) -> None:
    """Raises InvalidRequest for a variable that cannot be."""
    for name, value in [*request.environment.items(), *request.static_environment.items()]:
        if not values.is_env_name(name):
            raise InvalidRequest(f"`{clip(name)}` cannot be the name of a variable")
        if "\0" in value:
            raise InvalidRequest(f"the value of the variable `{clip(name)}` contains a NUL character")


def check_size(environment: plan.Environment, *, tasks: int) -> None:
    """The run's variables, which every task of the plan repeats, must not make it huge. Raises InvalidRequest."""
    repeated = len(repr(environment))
    if tasks * repeated > _REPEATED_CHARACTERS:
        raise InvalidRequest(
            f"{repeated:,} characters of variables for each of {tasks:,} tasks are too much",
            remedy="Set long values where they are needed: in tasks, or as secrets.",
        )


def _choose(parsed: ParsedFile, name: str) -> ParsedRun:
    names = [run.head.name for run in parsed.runs]
    if not name and len(names) > 1:
        raise InvalidRequest(f"{parsed.document.name} has several runs, name one: {', '.join(names)}")
    found = next((run for run in parsed.runs if run.head.name == name or not name), None)
    if found is None:
        hint = did_you_mean(name, names, what="its runs are")
        raise InvalidRequest(f"{parsed.document.name} has no run `{clip(name)}`", remedy=hint)
    return found


def _select(run: ParsedRun, wanted: list[str]) -> dict[str, ParsedTask]:
    """The tasks to plan, parents first: all, or the wanted ones and what they need."""
    if not wanted:
        return {name: run.tasks[name] for name in run.order}
    names: list[str] = []
    for want in wanted:
        meant = [want] if want in run.tasks else [n for n, task in run.tasks.items() if task.instance.base == want]
        if not meant:
            hint = did_you_mean(want, [*run.tasks], what="its tasks are")
            raise InvalidRequest(f"the run `{clip(run.head.name)}` has no task `{clip(want)}`", remedy=hint)
        names.extend(meant)
    needed = set(closure(names, run.depends))
    return {name: run.tasks[name] for name in run.order if name in needed}


def _judge(parsed: ParsedFile, run: ParsedRun, chosen: Mapping[str, ParsedTask], commit: Commit) -> Matcher:
    """Everything that `when` will be asked, answered. Raises InvalidRunFile for an expression without an end."""
    matcher = Matcher(commit)
    asked = list(_whens(run, chosen))
    try:
        matcher.learn([when for _, when in asked])
    except TooSlow as error:
        complaints = Complaints(parsed.document)
        for path, when in asked:
            if error.regex in when.expressions():
                hint = "avoid repetitions within repetitions, such as (a+)+"
                complaints.add(path, f"the regular expression `{clip(error.regex)}` takes too long", hint=hint)
        complaints.raise_if_any()
    return matcher


def _whens(run: ParsedRun, chosen: Mapping[str, ParsedTask]) -> Iterator[tuple[Path, When]]:
    if run.head.when:
        yield (*run.path, "when"), run.head.when
    for task in chosen.values():
        if task.model.when:
            yield (*task.path, "when"), task.model.when
        for index, step in enumerate(task.model.steps):
            if step.when:
                yield (*task.path, "steps", index, step.type, "when"), step.when
