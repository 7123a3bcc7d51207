"""The run file as users write it: agola's format and ours.

These models say what may be written and what each key means; `runyard schema` is made from them. What it
comes to (inheritance, matrices, `when`, order) is decided in runyard.spec.compile. Keys of a level that are
validated apart from its children are in the `…Head` models: a bad task must not hide what is wrong with the
run around it.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from runyard.model import Input
from runyard.spec import plan, values
from runyard.spec.depends import Depends
from runyard.spec.policies import ApprovalOf, GroupPath, GroupPolicy, RetryOf, Timeouts
from runyard.spec.runtime import Pod, Registries, Resources, Runtime
from runyard.spec.steps import Steps
from runyard.spec.values import Duration, Filled, Flag, Name, Positive, Text
from runyard.spec.when import When


class Matrix(Input):
    """One task a combination: the values are lists under names of your choice. Read by runyard.spec.matrix."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"additionalProperties": {"type": "array", "items": values.SCALAR, "minItems": 1}},
    )

    include: list[dict[str, Text]] = Field([], description="Further combinations")
    exclude: list[dict[str, Text]] = Field(
        [], description="Combinations to leave out, by some or all of their values"
    )


class Level(Input):
    """What a file, a run and a task have in common: the most specific one wins."""

    docker_registries_auth: Registries = Field(default_factory=dict)
    task_timeout_interval: Duration | None = Field(None, description="agola's word for `timeouts: {run: …}`")
    timeouts: Timeouts | None = None

    @model_validator(mode="after")
    def _one_run_timeout(self) -> "Level":
        if self.task_timeout_interval is not None and self.timeouts and self.timeouts.run is not None:
            raise values.wrong("`task_timeout_interval` and `timeouts: {run: …}` say the same", "keep one of them")
        return self


class Task(Level):
    """A node of the run's graph."""

    name: Name
    runtime: Runtime
    depends: Depends = Field(
        default_factory=list, description="Tasks that must have ended, and how; a matrix's name means all of it"
    )
    matrix: Matrix | None = Field(None, description="`{{ matrix.NAME }}` is replaced in every text of the task")
    steps: Steps = Field(default_factory=list)
    environment: values.Variables = Field(default_factory=dict)
    working_dir: Filled = "~/project"
    shell: Filled = "/bin/sh -e"
    user: Text = ""
    when: When | None = None
    ignore_failure: Flag = False
    approval: ApprovalOf = None
    retry: RetryOf | None = None
    resources: Resources | None = None
    outputs: list[values.EnvName] | None = Field(
        None, description="Names of what its steps write to $RUNYARD_OUTPUT"
    )
    keep_failed_for: Duration | None = Field(
        None, description="How long its pod stays after a failure, to look at it"
    )
    pod: Pod | None = Field(None, description="For Kubernetes, as far as its administrator allows")


class RunHead(Level):
    """A run without its tasks."""

    name: Name
    when: When | None = None
    environment: values.Variables = Field({}, description="Of all its tasks; a task's own outranks it")
    group: GroupPath = Field("", description="Runs of one group run one at a time, in order")
    group_policy: GroupPolicy = Field("", description="What a run does while others of its group are open")
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
