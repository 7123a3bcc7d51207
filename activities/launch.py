"""From a task's plan to what the executor is asked for."""

import hashlib
import re
from functools import partial

from activities.signatures import TaskAttempt
from runyard import traces
from runyard.dialogue import Assignment, CacheAccess, ServiceProbe, StoredCache
from runyard.errors import ConfigError, NotFound
from runyard.executors.base import Launch
from runyard.records.archives import list_archives
from runyard.records.logs import load_seal
from runyard.records.podcaches import known_caches
from runyard.records.snapshots import locate_snapshot
from runyard.script import compile_script, step_secrets
from runyard.spec.plan import (
    Environment,
    FromOutput,
    FromSecret,
    RestoreCacheStep,
    RunPlan,
    RunStep,
    SaveCacheStep,
    SaveToWorkspaceStep,
    Step,
    TaskPlan,
)
from runyard.store import paths
from runyard.store.base import FolderTarget, ObjectStore, UrlTarget

TARGET_S = 7 * 24 * 3600
"""How long the agent's way into the store is good when the task itself has no time limit."""

GRACE_S = 10

ASSIGNMENT_BYTES = 640 << 10
"""Of an assignment that goes through a Secret, which holds 1 MiB: long scripts may want the rest."""

KNOWN_BYTES = 192 << 10
"""Of the entries of caches in it: the oldest that go beyond are left out, and count as misses."""


class OutputMissing(NotFound):
    """An output that the task names was not written.

    Write KEY=value to $RUNYARD_OUTPUT in the earlier task, or correct the name.
    """

    code = "output_missing"


def pod_name(attempt: TaskAttempt) -> str:
    """Deterministic, a DNS label of at most 63 characters: who makes it twice makes one pod."""
    slug = re.sub(r"[^a-z0-9]+", "-", attempt.task.lower()).strip("-")[:40].strip("-") or "task"
    unique = hashlib.sha256(f"{attempt.task_id}/{attempt.attempt}".encode()).hexdigest()[:12]
    return f"{slug}-{unique}"


async def build_launch(
    store: ObjectStore,
    run: RunPlan,
    task: TaskPlan,
    attempt: TaskAttempt,
    *,
    outputs_of: dict[str, tuple[str, int]],
    owner: str,
    log_bytes: int,
    traceparent: str = "",
) -> Launch:
    """All that makes the pod. Raises OutputMissing and what the store raises."""
    task = await _with_outputs(store, task, outputs_of)
    environment = _environment(run, task, attempt)
    if traceparent:
        environment[traces.VARIABLE] = traceparent
    secrets = {name: value.from_secret for name, value in environment.items() if isinstance(value, FromSecret)}
    secrets |= step_secrets(task)
    assign = partial(_assignment, store, run, task, attempt, mask=sorted(secrets), log_bytes=log_bytes)
    assignment = await assign()
    script = compile_script(task)
    _check_size(assignment)
    return Launch(
        name=pod_name(attempt),
        run_id=attempt.run_id,
        attempt=attempt.attempt,
        task=task,
        script=script,
        environment=environment,
        secrets=secrets,
        assignment=assignment,
        renew=assign,
        digest=_digest(script, assignment, environment, secrets),
        owner=owner,
        run_owner=run.owner or run.project,
        priority=run.priority,
        deadline_s=task.timeouts.run_s,
        grace_s=GRACE_S,
    )


def _digest(
    script: str, assignment: Assignment, environment: dict[str, str | FromSecret], secrets: dict[str, str]
) -> str:
    """What was asked, without what is new at each try: signatures, and what the store has just now."""
    fresh = {"logs", "archives", "restore", "caches", "snapshot"}
    # who is told of the run's spans is each worker's own affair: a pod that another one made is the same pod
    words = sorted((name, value) for name, value in environment.items() if name != traces.VARIABLE)
    asked = [script, assignment.model_dump_json(exclude=fresh), repr(words), repr(secrets)]
    return hashlib.sha256("\0".join(asked).encode()).hexdigest()


def _check_size(assignment: Assignment) -> None:
    """Raises ConfigError for one that would not fit into a Secret; one that lies in a folder has any size."""
    size = len(assignment.model_dump_json()) if isinstance(assignment.logs, UrlTarget) else 0
    if size > ASSIGNMENT_BYTES:
        raise ConfigError(
            f"the task restores {len(assignment.restore)} archives of earlier tasks; their addresses and its "
            f"steps make {size:,} bytes, and a Secret takes {ASSIGNMENT_BYTES:,}",
            remedy="Collect them in a task between, which restores some and saves one.",
        )


def _environment(run: RunPlan, task: TaskPlan, attempt: TaskAttempt) -> dict[str, str | FromSecret]:
    """Container < task (run, static and request merged at compile time) < what Runyard says itself."""
    source = run.source
    ours = {
        "RUNYARD_RUN_ID": attempt.run_id,
        "RUNYARD_RUN_NAME": run.name,
        "RUNYARD_TASK": task.name,
        "RUNYARD_TASK_ID": task.id,
        "RUNYARD_ATTEMPT": str(attempt.attempt),
        "RUNYARD_GROUP": run.group,
        "RUNYARD_PROJECT": run.project,
        "RUNYARD_RUN_COUNTER": str(attempt.counter) if attempt.counter else "",
        "RUNYARD_GIT_URL": "" if source.local else source.url,
        "RUNYARD_GIT_REF": source.ref,
        "RUNYARD_GIT_BRANCH": source.branch,
        "RUNYARD_GIT_TAG": source.tag,
        "RUNYARD_GIT_COMMIT": source.commit,
    }
    merged: Environment = {"CI": "true", **task.containers[0].environment, **task.environment}
    merged |= {name: value for name, value in ours.items() if value}
    return {name: value for name, value in merged.items() if not isinstance(value, FromOutput)}


async def _assignment(
    store: ObjectStore, run: RunPlan, task: TaskPlan, attempt: TaskAttempt, *, mask: list[str], log_bytes: int
) -> Assignment:
    expires_s = (task.timeouts.run_s or TARGET_S) + (task.timeouts.pending_s or 0) + 3600
    kinds = {step.type for step in task.steps if not step.skip}
    saves = any(isinstance(step, SaveToWorkspaceStep) for step in task.steps)
    snapshot = None
    if run.source.snapshot is not None and "clone" in kinds:
        snapshot = await locate_snapshot(store, run.source.snapshot, expires_s=expires_s)
    return Assignment(
        run_id=attempt.run_id,
        task=task.name,
        attempt=attempt.attempt,
        steps=[_without_environment(step) for step in task.steps],
        logs=store.target(paths.attempt(task.id, attempt.attempt), expires_s=expires_s),
        archives=store.target(paths.archives(task.id), expires_s=expires_s) if saves else None,
        restore=await list_archives(store, task.layers) if "restore_workspace" in kinds else [],
        caches=await _caches(store, run, task, expires_s=expires_s),
        source=run.source,
        services=_services(task),
        snapshot=snapshot,
        mask=mask,
        log_bytes=log_bytes,
    )


async def _caches(store: ObjectStore, run: RunPlan, task: TaskPlan, *, expires_s: float) -> CacheAccess:
    """The run's group, and where it restores from besides."""
    steps = [step for step in task.steps if not step.skip]
    keys = [key for step in steps if isinstance(step, RestoreCacheStep) for key in step.keys]
    saved = [step.key for step in steps if isinstance(step, SaveCacheStep)]
    if not keys and not saved:
        return CacheAccess()
    groups = [cache_group(run), run.cache_fallback]
    target = store.target(paths.cache_group(groups[0]), expires_s=expires_s)
    write = target if saved and not run.cache_read_only else None
    if isinstance(target, FolderTarget):
        second = store.target(paths.cache_group(groups[1]), expires_s=expires_s) if groups[1] else None
        return CacheAccess(read=target, fallback=second if isinstance(second, FolderTarget) else None, write=write)
    known = await known_caches(store, groups[0], [*keys, *saved], expires_s=expires_s)
    if keys and groups[1] and groups[1] != groups[0]:
        known += await known_caches(store, groups[1], keys, expires_s=expires_s, fallback=True)
    return CacheAccess(known=_that_fit(known), write=write)


def _that_fit(known: list[StoredCache]) -> list[StoredCache]:
    size, fitting = 0, []
    for each in known:
        size += len(each.model_dump_json())
        if size > KNOWN_BYTES:
            break
        fitting.append(each)
    return fitting


def cache_group(run: RunPlan) -> str:
    """Whose caches the run sees."""
    return run.cache_group or run.project or run.source.url or "default"


def _services(task: TaskPlan) -> list[ServiceProbe]:
    """What the agent waits for. A command in a service's container it cannot run: that is the executor's."""
    return [
        ServiceProbe(
            name=container.name or container.image,
            port=container.ready.port,
            path=container.ready.path,
            timeout_s=container.ready.timeout_s,
        )
        for container in task.containers[1:]
        if container.ready is not None and container.ready.port is not None
    ]


def _without_environment(step: Step) -> Step:
    """The agent does not run commands: it needs neither them nor their environment."""
    return step.model_copy(update={"command": "", "environment": {}}) if isinstance(step, RunStep) else step


async def _with_outputs(store: ObjectStore, task: TaskPlan, outputs_of: dict[str, tuple[str, int]]) -> TaskPlan:
    """Every `from_output` replaced by its value."""
    known: dict[str, dict[str, str]] = {}
    for name, (task_id, attempt) in outputs_of.items():
        seal = await load_seal(store, task_id, attempt)
        known[name] = seal.outputs if seal else {}

    def resolve(environment: Environment) -> Environment:
        return {
            name: _output(value, known) if isinstance(value, FromOutput) else value
            for name, value in environment.items()
        }

    return task.model_copy(
        update={
            "environment": resolve(task.environment),
            "containers": [c.model_copy(update={"environment": resolve(c.environment)}) for c in task.containers],
            "steps": [
                step.model_copy(update={"environment": resolve(step.environment)})
                if isinstance(step, RunStep)
                else step
                for step in task.steps
            ],
        }
    )


def _output(value: FromOutput, known: dict[str, dict[str, str]]) -> str:
    outputs = known.get(value.task)
    if outputs is None:
        raise OutputMissing(
            f"task {value.task} has not ended with success, so its output {value.key} is not there"
        )
    if value.key not in outputs:
        names = ", ".join(sorted(outputs)) or "none"
        raise OutputMissing(f"task {value.task} wrote no output {value.key} (it wrote: {names})")
    return outputs[value.key]
