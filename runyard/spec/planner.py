"""From the models of a run file to those of a plan: inheritance, defaults, levels, ids.

Field by field and dull on purpose: the two may change apart from each other, and the type checker sees it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from runyard import __version__
from runyard.spec import plan, policies, runtime, steps
from runyard.spec.check import closure, topological
from runyard.spec.file import Level
from runyard.spec.parse import ParsedFile, ParsedRun, ParsedTask
from runyard.spec.plan import RunPlan, TaskPlan
from runyard.spec.run import RunRequest, task_id
from runyard.spec.when import Matcher

_STEP_NAME_LENGTH = 100
_NO_RETRY, _NO_RESOURCES, _NO_TIMEOUTS = plan.Retry(), plan.Resources(), plan.Timeouts()


@dataclass(frozen=True)
class Planner:
    """Makes the plan's models of what one run of the file says. The two ids make its tasks' ids its own."""

    parsed: ParsedFile
    run: ParsedRun
    request: RunRequest
    matcher: Matcher
    run_id: str
    execution_id: str
    _steps: dict[int, plan.Step] = field(default_factory=dict)  # by identity: what tasks share is made once
    _runtimes: dict[int, list[plan.Container]] = field(default_factory=dict)

    def run_plan(self) -> RunPlan:
        head, request = self.run.head, self.request
        return RunPlan(
            run_id=self.run_id,
            name=head.name,
            made_by=__version__,
            execution_id=self.execution_id,
            restart_of=request.restart.run if request.restart else "",
            group=request.group or head.group,
            group_policy=request.group_policy or head.group_policy,
            owner=request.owner,
            priority=request.priority,
            project=request.project,
            cache_group=request.cache_group or head.cache_group or request.project,
            cache_fallback=request.cache_fallback,
            cache_read_only=request.cache_read_only,
            environment={**head.environment, **self._overrides()},
            static_environment=request.static_environment,
            annotations=request.annotations,
            source=request.source,
            executor=request.executor,
            concurrency=head.concurrency,
            timeout_s=head.timeout or None,
            fail_fast=head.fail_fast,
            hold_failed=head.on_failure == "hold",
            traceparent=request.traceparent,
        )

    def task_plans(self, chosen: Mapping[str, ParsedTask]) -> Iterator[TaskPlan]:
        depends = {name: self.run.depends[name] for name in chosen}
        overrides = self._overrides()
        run_matches = self.matcher.matches(self.run.head.when)
        levels: dict[str, int] = {}
        saving: dict[str, str] = {}  # tasks that save to the workspace, with their ids
        for name in topological(depends):
            levels[name] = 1 + max((levels[parent] for parent in depends[name]), default=-1)
            task = self._task_plan(chosen[name], levels[name], overrides, run_matches)
            if _has(task, "save_to_workspace"):
                saving[name] = task.id
            if _has(task, "restore_workspace"):
                ancestors = saving.keys() & set(closure(depends[name], depends))
                layers = sorted(ancestors, key=lambda each: (levels[each], each))
                task = task.model_copy(update={"layers": [saving[each] for each in layers]})
            yield task

    def _task_plan(self, parsed: ParsedTask, level: int, overrides: dict[str, str], run_matches: bool) -> TaskPlan:
        task, head = parsed.model, self.run.head
        keep = head.keep_failed_for if task.keep_failed_for is None else task.keep_failed_for
        return TaskPlan(
            id=task_id(self.run_id, self.execution_id, parsed.name),
            name=parsed.name,
            level=level,
            depends=self.run.depends[parsed.name],
            skip=not (run_matches and self.matcher.matches(task.when)),
            containers=self._containers(task.runtime),
            arch=task.runtime.arch,
            environment={**head.environment, **task.environment, **overrides},
            working_dir=task.working_dir,
            shell=task.shell,
            user=task.user,
            steps=[self._step_once(each) for each in task.steps],
            retry=_retry(task.retry),
            timeouts=_timeouts(self.parsed.head, head, task),
            resources=_resources(task.resources),
            registries=_registries(self.parsed.head, head, task),
            ignore_failure=task.ignore_failure,
            approval=_approval(task.approval),
            keep_failed_for_s=keep or 0,
            pod=_pod(task.pod),
            matrix=dict(parsed.instance.matrix),
        )

    def _overrides(self) -> dict[str, str]:
        return {**self.request.static_environment, **self.request.environment}

    def _containers(self, where: runtime.Runtime) -> list[plan.Container]:
        if id(where) not in self._runtimes:
            self._runtimes[id(where)] = [_container(each) for each in where.containers]
        return self._runtimes[id(where)]

    def _step_once(self, step: steps.Step) -> plan.Step:
        if id(step) not in self._steps:
            self._steps[id(step)] = _step(step, self.matcher)
        return self._steps[id(step)]


def _has(task: TaskPlan, kind: str) -> bool:
    return any(step.type == kind and not step.skip for step in task.steps)


def _step(step: steps.Step, matcher: Matcher) -> plan.Step:
    """A step of the plan has the same fields, with what was left open decided."""
    condition = step.when
    skip = condition is not None and condition.has_rules and not matcher.matches(condition)
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


def _container(container: runtime.Container) -> plan.Container:
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


def _retry(retry: policies.Retry | None) -> plan.Retry:
    if retry is None:
        return _NO_RETRY
    return plan.Retry(
        limit=retry.limit,
        backoff_s=retry.backoff.initial,
        backoff_factor=retry.backoff.factor,
        backoff_max_s=max(retry.backoff.max, retry.backoff.initial),
        on=retry.on,
        infra=retry.infra,
    )


def _timeouts(*levels: Level) -> plan.Timeouts:
    """The defaults, then each level from the outermost to the task."""
    found: dict[str, float | None] = {}
    for level in levels:
        if level.timeouts:
            found |= {f"{key}_s": value or None for key, value in level.timeouts if value is not None}
        if level.task_timeout_interval is not None:
            found["run_s"] = level.task_timeout_interval or None
    return plan.Timeouts.model_validate(found) if found else _NO_TIMEOUTS


def _registries(*levels: Level) -> dict[str, plan.RegistryAuth]:
    return {
        name: plan.RegistryAuth(type=each.type, username=each.username, password=each.password, auth=each.auth)
        for level in levels
        for name, each in level.docker_registries_auth.items()
    }


def _pod(pod: runtime.Pod | None) -> dict[str, object]:
    return pod.model_dump(exclude_defaults=True) if pod is not None else {}


def _resources(resources: runtime.Resources | None) -> plan.Resources:
    if resources is None:
        return _NO_RESOURCES
    return plan.Resources(cpu=resources.cpu, memory_bytes=resources.memory, disk_bytes=resources.disk)


def _approval(approval: policies.Approval | None) -> plan.Approval | None:
    if approval is None:
        return None
    return plan.Approval(approvers=approval.approvers, allowed=approval.allowed, expires_s=approval.expires)
