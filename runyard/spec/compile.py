"""A request and its run file, compiled to a Plan.

Variables, from the weakest to the strongest: the run's `environment` in the file, the task's, the request's
`static_environment` (fixed for the commit), the request's `environment`, and the step's own. The plan holds
them so that ``{**run.environment, **task.environment}`` is right (see `task_environment`): what the request
sets is in the run's and replaces the same name in the task's. Nothing of the run is repeated in each task.

Credentials of registries and timeouts are inherited from the file by the run and from the run by the task,
one registry and one timeout at a time; 0 takes a timeout away.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from runyard.errors import InvalidRequest
from runyard.spec import file as written
from runyard.spec import plan, source, steps, values
from runyard.spec.check import closure, topological
from runyard.spec.complaints import Complaints
from runyard.spec.parse import ParsedFile, ParsedRun, ParsedTask, parse
from runyard.spec.plan import Environment, FromOutput, Plan, RunPlan, TaskPlan
from runyard.spec.run import GraphTask, RunRequest
from runyard.spec.tree import Path, clip, did_you_mean
from runyard.spec.when import Commit, Matcher, TooSlow, When

SKIP = "[ci skip]"
_ID_LENGTH = 20
_STEP_NAME_LENGTH = 100


def is_skipped(message: str) -> bool:
    """Whether this commit message asks for no run."""
    return SKIP in message


def compile_run(request: RunRequest, *, run_id: str, execution_id: str) -> Plan:
    """The plan of one run. It has no tasks when the commit's message asks for none (see `is_skipped`).

    A `when` of the run that does not match skips every task, so that the run shows why nothing was done.
    Blocks for some seconds at most (Jsonnet, regular expressions); no I/O but their child processes.

    Raises InvalidRunFile with every problem of the file, InvalidRequest where the request names a run or a
    task that the file does not have or sets a variable of an impossible name.
    """
    _check_variables(request)
    if is_skipped(request.message):
        return Plan(run=RunPlan(run_id=run_id, name=request.run, executor=request.executor), tasks=[])
    commit = Commit.of(request)
    parsed = parse(request.file, name=request.file_name, ctx=commit.ctx())
    run = _choose(parsed, request.run)
    chosen = _select(run, request.tasks)
    matcher = _judge(parsed, run, chosen, commit)
    compiler = _Compiler(parsed, run, request, matcher, f"{run_id}/{execution_id}/")
    return Plan(run=compiler.run_plan(run_id), tasks=list(compiler.task_plans(chosen)))


def graph_task(task: TaskPlan, at: tuple[int, int]) -> GraphTask:
    """What the workflow needs of a task; ``at`` is the offset and length of its TaskPlan in the stored plan."""
    return GraphTask(
        name=task.name,
        id=task.id,
        depends=task.depends,
        skip=task.skip,
        ignore_failure=task.ignore_failure,
        approval=task.approval,
        retry=task.retry if task.retry.limit or task.retry.infra else None,
        image=task.containers[0].image if task.containers else "",
        outputs_of=outputs_of(task),
        keep_failed_for_s=task.keep_failed_for_s,
        at=at,
    )


def outputs_of(task: TaskPlan) -> list[str]:
    """The tasks whose outputs this one reads."""
    environments = [task.environment, *(container.environment for container in task.containers)]
    environments += [step.environment for step in task.steps if isinstance(step, plan.RunStep)]
    read = (value.task for each in environments for value in each.values() if isinstance(value, FromOutput))
    return list(dict.fromkeys(read))


def task_environment(run: RunPlan, task: TaskPlan) -> Environment:
    """All variables of a task, the request's included; a step's own outrank them."""
    return {**run.environment, **task.environment}


def task_id(run_id: str, execution_id: str, name: str) -> str:
    """20 characters, a-z and 2-7: the key of the task's data in the store."""
    return _id(f"{run_id}/{execution_id}/", name)


def run_names(file: str | dict[str, JsonValue], *, name: str) -> list[str]:
    """The runs of a file that need not be valid otherwise. Raises InvalidRunFile where it cannot be read."""
    runs = source.read(file, name=name, ctx=Commit().ctx()).root.data
    listed = runs.get("runs") if isinstance(runs, dict) else None
    found = [run.get("name") for run in listed if isinstance(run, dict)] if isinstance(listed, list) else []
    return [str(each) for each in found if isinstance(each, str)]


def _id(prefix: str, name: str) -> str:
    digest = hashlib.sha256(f"{prefix}{name}".encode()).digest()
    return base64.b32encode(digest).decode().lower()[:_ID_LENGTH]


def _check_variables(request: RunRequest) -> None:
    for name, value in [*request.environment.items(), *request.static_environment.items()]:
        if not values.is_env_name(name):
            raise InvalidRequest(f"`{clip(name)}` cannot be the name of a variable")
        if "\0" in value:
            raise InvalidRequest(f"the value of the variable `{clip(name)}` contains a NUL character")


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


@dataclass(frozen=True)
class _Compiler:
    parsed: ParsedFile
    run: ParsedRun
    request: RunRequest
    matcher: Matcher
    id_prefix: str

    def run_plan(self, run_id: str) -> RunPlan:
        head, request = self.run.head, self.request
        return RunPlan(
            run_id=run_id,
            name=head.name,
            group=request.group or head.group,
            project=request.project,
            cache_group=request.cache_group or head.cache_group or request.project,
            environment={**head.environment, **self._overrides()},
            static_environment=request.static_environment,
            annotations=request.annotations,
            source=request.source,
            executor=request.executor,
            concurrency=head.concurrency,
            timeout_s=head.timeout or None,
            fail_fast=head.fail_fast,
            hold_failed=head.on_failure == "hold",
        )

    def task_plans(self, chosen: Mapping[str, ParsedTask]) -> Iterator[TaskPlan]:
        depends = {name: self.run.depends[name] for name in chosen}
        overrides = self._overrides()
        run_matches = self.matcher.matches(self.run.head.when)
        levels: dict[str, int] = {}
        for name in topological(depends):
            levels[name] = 1 + max((levels[parent] for parent in depends[name]), default=-1)
            yield self._task_plan(chosen[name], levels[name], overrides, run_matches)

    def _task_plan(self, parsed: ParsedTask, level: int, overrides: dict[str, str], run_matches: bool) -> TaskPlan:
        task, head = parsed.model, self.run.head
        keep = head.keep_failed_for if task.keep_failed_for is None else task.keep_failed_for
        return TaskPlan(
            id=_id(self.id_prefix, parsed.name),
            name=parsed.name,
            level=level,
            depends=self.run.depends[parsed.name],
            skip=not (run_matches and self.matcher.matches(task.when)),
            containers=[_container(each) for each in task.runtime.containers],
            arch=task.runtime.arch,
            environment={key: overrides.get(key, value) for key, value in task.environment.items()},
            working_dir=task.working_dir,
            shell=task.shell,
            user=task.user,
            steps=[self._step(each) for each in task.steps],
            retry=_retry(task.retry),
            timeouts=_timeouts(self.parsed.head, head, task),
            resources=_resources(task.resources),
            registries=_registries(self.parsed.head, head, task),
            ignore_failure=task.ignore_failure,
            approval=_approval(task.approval),
            keep_failed_for_s=keep or 0,
            pod=dict(task.pod),
            matrix=dict(parsed.instance.matrix),
        )

    def _overrides(self) -> dict[str, str]:
        return {**self.request.static_environment, **self.request.environment}

    def _step(self, step: steps.Step) -> plan.Step:
        """A step of the plan has the same fields, with what was left open decided."""
        condition = step.when
        skip = condition is not None and condition.has_rules and not self.matcher.matches(condition)
        when = condition.status if condition else "on_success"
        if isinstance(step, steps.RunStep):
            return plan.RunStep(
                name=_step_name(step),
                when=when,
                skip=skip,
                command=step.command,
                environment=step.environment,
                working_dir=step.working_dir or "",
                shell=step.shell or "",
                timeout_s=step.timeout,
                tty=step.tty,
            )
        name = step.name or ""
        if isinstance(step, steps.CloneStep):
            return plan.CloneStep(
                name=name, when=when, skip=skip, depth=step.depth, recurse_submodules=step.recurse_submodules
            )
        if isinstance(step, steps.SaveToWorkspaceStep):
            return plan.SaveToWorkspaceStep(name=name, when=when, skip=skip, contents=_contents(step.contents))
        if isinstance(step, steps.RestoreWorkspaceStep):
            return plan.RestoreWorkspaceStep(name=name, when=when, skip=skip, dest_dir=step.dest_dir)
        if isinstance(step, steps.SaveCacheStep):
            contents = _contents(step.contents)
            return plan.SaveCacheStep(name=name, when=when, skip=skip, key=step.key, contents=contents)
        return plan.RestoreCacheStep(name=name, when=when, skip=skip, keys=step.keys, dest_dir=step.dest_dir)


def _step_name(step: steps.RunStep) -> str:
    name = step.name or next((line.strip() for line in step.command.splitlines() if line.strip()), "")
    return name[:_STEP_NAME_LENGTH]


def _contents(contents: list[steps.Content]) -> list[plan.Content]:
    return [plan.Content(source_dir=c.source_dir, dest_dir=c.dest_dir, paths=c.paths) for c in contents]


def _container(container: written.Container) -> plan.Container:
    ready = container.ready
    return plan.Container(
        name=container.name,
        image=container.image,
        environment=container.environment,
        user=container.user,
        privileged=container.privileged,
        entrypoint=container.entrypoint,
        volumes=[plan.Volume(path=each.path, size_bytes=each.tmpfs.size) for each in container.volumes],
        ready=ready
        and plan.Readiness(port=ready.port, path=ready.path, command=ready.command, timeout_s=ready.timeout),
    )


def _retry(retry: written.Retry) -> plan.Retry:
    return plan.Retry(
        limit=retry.limit,
        backoff_s=retry.backoff.initial,
        backoff_factor=retry.backoff.factor,
        backoff_max_s=max(retry.backoff.max, retry.backoff.initial),
        on=retry.on,
        infra=retry.infra,
    )


def _timeouts(*levels: written.Level) -> plan.Timeouts:
    """The defaults, then each level from the outermost to the task."""
    found = plan.Timeouts().model_dump()
    for level in levels:
        own = {f"{key}_s": value for key, value in level.timeouts if value is not None}
        if level.task_timeout_interval is not None:
            own["run_s"] = level.task_timeout_interval
        found |= {key: value or None for key, value in own.items()}
    return plan.Timeouts(**found)


def _registries(*levels: written.Level) -> dict[str, plan.RegistryAuth]:
    return {
        name: plan.RegistryAuth(type=each.type, username=each.username, password=each.password, auth=each.auth)
        for level in levels
        for name, each in level.docker_registries_auth.items()
    }


def _resources(resources: written.Resources) -> plan.Resources:
    return plan.Resources(cpu=resources.cpu, memory_bytes=resources.memory, disk_bytes=resources.disk)


def _approval(approval: written.Approval | None) -> plan.Approval | None:
    if approval is None:
        return None
    return plan.Approval(approvers=approval.approvers, allowed=approval.allowed, expires_s=approval.expires)
