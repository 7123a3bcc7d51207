"""The run file as users write it: agola's format and ours.

These models say what may be written and what each key means; `runyard schema` is made from them. What it
comes to (inheritance, matrices, `when`, order) is decided in runyard.spec.compile. Keys of a level that are
validated apart from its children are in the `…Head` models: a bad task must not hide what is wrong with the
run around it.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from runyard.model import Model
from runyard.reasons import Reason
from runyard.spec import plan, values
from runyard.spec.steps import Step
from runyard.spec.tree import Written, clip, did_you_mean
from runyard.spec.values import Count, Duration, Filled, Flag, Name, Positive, PositiveDuration, Size, Text
from runyard.spec.when import When

CONDITIONS: tuple[plan.Condition, ...] = ("on_success", "on_failure", "on_skipped", "always")
_NOT_RETRIED = (
    Reason.SUCCESS,
    Reason.CANCELLED,
    Reason.SUPERSEDED,
    Reason.REJECTED,
    Reason.APPROVAL_EXPIRED,
    Reason.DEPENDENCY,
    Reason.WHEN,
    Reason.NEVER_STARTED,
)
RETRY_REASONS = tuple(reason.value for reason in Reason if reason not in _NOT_RETRIED)


class RegistryAuth(Model):
    """Credentials of a registry of images."""

    type: Literal["basic", "encodedauth"] = "basic"
    username: values.Sourced = ""
    password: values.Sourced = ""
    auth: values.Sourced = Field("", description="For `encodedauth`: base64 of user:password")

    @model_validator(mode="after")
    def _whole(self) -> "RegistryAuth":
        wanted = ("auth",) if self.type == "encodedauth" else ("username", "password")
        missing = [key for key in wanted if getattr(self, key) == ""]
        if missing:
            raise values.wrong(f"`{missing[0]}` is missing for credentials of type {self.type}")
        if any(isinstance(each, plan.FromOutput) for each in (self.username, self.password, self.auth)):
            raise values.wrong("credentials cannot come from an output", "use {from_secret: NAME}")
        return self


Registries = dict[Filled, RegistryAuth]


class Tmpfs(Model):
    size: Size | None = None


def _tmpfs(value: object) -> object:
    return {} if value is None else value


class Volume(Model):
    path: Filled = Field(description="Absolute path in the container")
    tmpfs: Annotated[Tmpfs, BeforeValidator(_tmpfs)]

    @model_validator(mode="after")
    def _absolute(self) -> "Volume":
        if not self.path.startswith("/"):
            raise values.wrong("the path of a volume is absolute", f"write /{self.path}")
        return self


def _entrypoint(value: object) -> list[str]:
    if isinstance(value, str):
        return [part for part in value.split(" ") if part]
    return [values.text(each) for each in values.words(value)]


Entrypoint = Annotated[
    list[str],
    PlainValidator(_entrypoint),
    WithJsonSchema({"anyOf": [values.STRING, values.STRINGS]}),
]


class Ready(Model):
    """How a service shows that it is ready; the first step waits for it."""

    port: values.Port | None = Field(None, description="Something listens there")
    path: Text = Field("", description="HTTP path on that port that answers with a status below 400")
    command: Text = Field("", description="A command in the service's container that ends with 0")
    timeout: PositiveDuration = 60.0

    @model_validator(mode="after")
    def _something(self) -> "Ready":
        if self.port is None and (self.path or not self.command):
            raise values.wrong("`ready` needs a `port` or a `command`")
        return self


class Container(Model):
    """The first container of a task runs its steps; the others are services, reachable on localhost."""

    image: Filled = Field(examples=["python:3.13", "{{ matrix.image }}"])
    name: Text = Field("", description="What a service is called in logs")
    environment: values.Variables = {}
    user: Text = ""
    privileged: Flag = False
    entrypoint: Entrypoint = []
    volumes: list[Volume] = []
    ready: Ready | None = None


def _containers(value: object) -> object:
    if isinstance(value, list) and not value:
        raise values.wrong("a task needs at least one container", "write `containers: [{image: …}]`")
    return value


class Runtime(Model):
    type: Literal["pod"] = "pod"
    arch: Literal["", "386", "amd64", "arm", "arm64"] = ""
    containers: Annotated[list[Container], BeforeValidator(_containers)]


class Resources(Model):
    """Request and limit both."""

    cpu: values.Cores | None = None
    memory: Size | None = None
    disk: Size | None = None


class Backoff(Model):
    """The wait before another attempt: ``initial``, then ``factor`` times the last, at most ``max``."""

    initial: Duration = 5.0
    factor: values.Factor = 2.0
    max: Duration = 300.0


def _backoff(value: object) -> object:
    return value if isinstance(value, dict) else {"initial": value}


def _retry(value: object) -> object:
    return {"limit": value} if isinstance(value, str) else value


def _retry_on(value: object) -> int | str:
    number = value.value if isinstance(value, Written) else value
    if isinstance(number, str) and number.isdigit() and len(number) < 4:
        number = int(number)
    if isinstance(number, int) and not isinstance(number, bool):
        if not 1 <= number <= 255:
            raise values.wrong("an exit code to retry on is from 1 to 255")
        return number
    word = values.text(value)
    if word not in RETRY_REASONS:
        hint = did_you_mean(word, RETRY_REASONS) or f"known reasons: {', '.join(RETRY_REASONS)}"
        raise values.wrong(f"`{clip(word)}` is not a reason to retry on", hint)
    return word


def _list(value: object) -> object:
    return [value] if isinstance(value, str) else value


_ON_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "integer", "minimum": 1, "maximum": 255}, {"enum": [*RETRY_REASONS]}]
}
RetryOn = Annotated[int | str, PlainValidator(_retry_on), WithJsonSchema(_ON_SCHEMA)]


class Retry(Model):
    """Further attempts of a task that failed."""

    limit: Count = Field(0, description="Further attempts at most")
    backoff: Annotated[
        Backoff,
        BeforeValidator(_backoff),
        values.Or(({"type": ["string", "integer"]},)),
    ] = Backoff()
    on: Annotated[list[RetryOn], BeforeValidator(_list)] = Field(
        [], description="Exit codes and reasons; by default every failure of the task's own program"
    )
    infra: Count = Field(0, description="Further attempts after a loss when steps had begun")


class Timeouts(Model):
    """Each with its own reason when it strikes; 0 = none."""

    queue: Duration | None = Field(None, description="Waiting for room")
    pending: Duration | None = Field(None, description="Placed, but not begun: image, node, volume; 5m by default")
    run: Duration | None = Field(None, description="All steps together")
    step: Duration | None = Field(None, description="Each step")


class Approval(Model):
    """A task that waits for people."""

    approvers: Positive = Field(1, description="How many different people")
    allowed: list[Filled] = Field([], description="Who may; everybody by default")
    expires: PositiveDuration | None = None

    @model_validator(mode="after")
    def _possible(self) -> "Approval":
        if self.allowed and len(set(self.allowed)) < self.approvers:
            raise values.wrong("more approvers are needed than are allowed")
        return self


def _approval(value: object) -> object:
    if isinstance(value, dict):
        return value
    return Approval() if values.flag(value) else None


ApprovalOf = Annotated[
    Approval | None,
    BeforeValidator(_approval),
    values.Or(({"type": "boolean"},)),
]


class Dependency(Model):
    task: str
    conditions: list[plan.Condition]


def dependency(value: object) -> tuple[str, list[plan.Condition]]:
    """Task and conditions, from `task`, `{task: [conditions]}` or `{task: name, conditions: [...]}`."""
    if isinstance(value, str):
        return values.filled(value), ["on_success"]
    if not isinstance(value, dict) or not value:
        raise values.wrong(f"the name of a task is wanted here, not {values.kind(value)}")
    named = value.get("task")
    if isinstance(named, str) and (named not in CONDITIONS or len(value) > 1):
        stray = next((key for key in value if key not in ("task", "conditions")), "")
        task, conditions = named, value.get("conditions")
    else:
        task, conditions = next(iter(value.items()))
        stray = next((key for key in value if key != task), "")
    if stray:
        raise values.wrong(f"`{clip(stray)}` is one key too many", "write {TASK: [on_failure]}, one task an item")
    return values.filled(task), _conditions(conditions)


def _dependency(value: object) -> Dependency:
    task, conditions = dependency(value)
    return Dependency(task=task, conditions=conditions)


def _conditions(value: object) -> list[plan.Condition]:
    found: list[plan.Condition] = []
    for each in [] if value is None else values.words(value):
        known = next((condition for condition in CONDITIONS if condition == each), None)
        if known is None:
            word = clip(each) if isinstance(each, str) else values.kind(each)
            raise values.wrong(f"`{word}` is not a condition", did_you_mean(word, CONDITIONS))
        found.append(known)
    return list(dict.fromkeys(found)) or ["on_success"]


_CONDITIONS_SCHEMA: dict[str, Any] = {"type": "array", "items": {"enum": [*CONDITIONS]}}
_DEPENDS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"task": {"type": "string"}, "conditions": _CONDITIONS_SCHEMA},
            "required": ["task"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "additionalProperties": {"anyOf": [{"enum": [*CONDITIONS]}, _CONDITIONS_SCHEMA]},
            "minProperties": 1,
            "maxProperties": 1,
        },
    ],
    "examples": ["build", {"build": ["on_failure"]}, {"task": "build", "conditions": ["always"]}],
}
DependencyOf = Annotated[Dependency, PlainValidator(_dependency), WithJsonSchema(_DEPENDS_SCHEMA)]
Depends = Annotated[list[DependencyOf], BeforeValidator(_list), values.Or((values.STRING,))]


class Matrix(Model):
    """One task a combination: the values are lists under names of your choice. Read by runyard.spec.matrix."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"additionalProperties": {"type": "array", "items": values.SCALAR, "minItems": 1}},
    )

    include: list[dict[str, Text]] = Field([], description="Further combinations")
    exclude: list[dict[str, Text]] = Field(
        [], description="Combinations to leave out, by some or all of their values"
    )


class Level(Model):
    """What a file, a run and a task have in common: the most specific one wins."""

    docker_registries_auth: Registries = {}
    task_timeout_interval: Duration | None = Field(None, description="agola's word for `timeouts: {run: …}`")
    timeouts: Timeouts = Timeouts()

    @model_validator(mode="after")
    def _one_run_timeout(self) -> "Level":
        if self.task_timeout_interval is not None and self.timeouts.run is not None:
            raise values.wrong("`task_timeout_interval` and `timeouts: {run: …}` say the same", "keep one of them")
        return self


class Task(Level):
    """A node of the run's graph."""

    name: Name
    runtime: Runtime
    depends: Depends = Field(
        [], description="Tasks that must have ended, and how; a matrix's name means all of it"
    )
    matrix: Matrix | None = Field(None, description="`{{ matrix.NAME }}` is replaced in every text of the task")
    steps: list[Step] = []
    environment: values.Variables = {}
    working_dir: Filled = "~/project"
    shell: Filled = "/bin/sh -e"
    user: Text = ""
    when: When | None = None
    ignore_failure: Flag = False
    approval: ApprovalOf = None
    retry: Annotated[
        Retry,
        BeforeValidator(_retry),
        values.Or(({"type": "integer", "minimum": 0},)),
    ] = Retry()
    resources: Resources = Resources()
    outputs: list[values.EnvName] | None = Field(
        None, description="Names of what its steps write to $RUNYARD_OUTPUT"
    )
    keep_failed_for: Duration | None = Field(
        None, description="How long its pod stays after a failure, to look at it"
    )
    pod: values.Json = Field({}, description="For Kubernetes: parts of the pod's spec")


class RunHead(Level):
    """A run without its tasks."""

    name: Name
    when: When | None = None
    environment: values.Variables = Field({}, description="Of all its tasks; a task's own outranks it")
    group: Text = Field("", description="Runs of one group run one at a time, in order")
    cache_group: Text = Field("", description="Whose caches the run sees")
    timeout: Duration | None = Field(None, description="Of the whole run; 0 = none")
    concurrency: Positive | None = Field(None, description="Tasks of this run at a time")
    fail_fast: Flag = Field(False, description="A failed task ends the others")
    on_failure: Literal["hold"] | None = Field(None, description="`hold`: a failed task waits for a decision")
    keep_failed_for: Duration | None = None

    @model_validator(mode="after")
    def _no_outputs(self) -> "RunHead":
        found = next((key for key, each in self.environment.items() if isinstance(each, plan.FromOutput)), "")
        if found:
            raise values.wrong(
                f"`{found}` of the run cannot come from an output", "set it in the tasks that need it"
            )
        return self


class Run(RunHead):
    """A graph of tasks."""

    tasks: Annotated[list[Task], Field(min_length=1)]


class FileHead(Level):
    """A run file without its runs."""


class RunFile(FileHead):
    """A run file of Runyard."""

    runs: Annotated[list[Run], Field(min_length=1)]
