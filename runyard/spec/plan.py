"""The plan: a run of a run file, compiled. It lives in the store, never in Temporal's history.

Everything that the file leaves open is decided here: matrices are expanded, inherited values are merged,
`when` is evaluated, names are unique, durations are seconds. What stays by name are secrets and outputs.
"""

from typing import Annotated, Literal

from pydantic import Field

from runyard.model import Model

Condition = Literal["on_success", "on_failure", "on_skipped", "always"]
StepWhen = Literal["on_success", "on_failure", "always"]


class FromSecret(Model):
    """A value that is known by the name of a secret only."""

    from_secret: str


class FromOutput(Model):
    """A value that an earlier task writes: ``TASK.KEY``, split at the last dot."""

    from_output: str

    @property
    def task(self) -> str:
        return self.from_output.rpartition(".")[0]

    @property
    def key(self) -> str:
        return self.from_output.rpartition(".")[2]


Value = str | FromSecret | FromOutput
Environment = dict[str, Value]


class Content(Model):
    """Files to pack: ``paths`` are doublestar globs below ``source_dir``; they land below ``dest_dir``."""

    source_dir: str = "."
    dest_dir: str = "."
    paths: list[str] = []


class _Step(Model):
    name: str = ""
    when: StepWhen = "on_success"
    skip: bool = False  # its branch, tag or ref condition does not match this run


class CloneStep(_Step):
    type: Literal["clone"] = "clone"
    depth: int | None = None
    recurse_submodules: bool = False


class RunStep(_Step):
    type: Literal["run"] = "run"
    command: str
    environment: Environment = {}
    working_dir: str = ""  # "" = the task's
    shell: str = ""  # "" = the task's
    timeout_s: float | None = None  # None = the task's `timeouts: {step: ...}`
    tty: bool = False


class SaveToWorkspaceStep(_Step):
    type: Literal["save_to_workspace"] = "save_to_workspace"
    contents: list[Content] = []


class RestoreWorkspaceStep(_Step):
    type: Literal["restore_workspace"] = "restore_workspace"
    dest_dir: str = "."


class SaveCacheStep(_Step):
    type: Literal["save_cache"] = "save_cache"
    key: str
    contents: list[Content] = []


class RestoreCacheStep(_Step):
    type: Literal["restore_cache"] = "restore_cache"
    keys: list[str]
    dest_dir: str = "."


Step = Annotated[
    CloneStep | RunStep | SaveToWorkspaceStep | RestoreWorkspaceStep | SaveCacheStep | RestoreCacheStep,
    Field(discriminator="type"),
]


class Volume(Model):
    """A tmpfs volume; ``size_bytes`` None = the system's default."""

    path: str
    size_bytes: int | None = None


class Readiness(Model):
    """How a service shows that it is ready: a TCP port, an HTTP path on that port, or a command."""

    port: int | None = None
    path: str = ""
    command: str = ""
    timeout_s: float = 60


class Container(Model):
    """One container of the task; the first runs the steps, the others are services on localhost."""

    name: str = ""
    image: str
    environment: Environment = {}
    user: str = ""
    privileged: bool = False
    entrypoint: list[str] = []
    volumes: list[Volume] = []
    ready: Readiness | None = None


class Resources(Model):
    """What a task asks for; it is request and limit both. None = the executor's default."""

    cpu: float | None = None  # cores
    memory_bytes: int | None = None
    disk_bytes: int | None = None


class Retry(Model):
    """The user's retries: at most ``limit`` further attempts, on these reasons or exit codes.

    An empty ``on`` means every failure of the user's own program (exit code, signal, out of memory, step
    and run timeouts). ``infra`` are further attempts after a loss that happened when steps had begun.
    """

    limit: int = 0
    backoff_s: float = 5
    backoff_factor: float = 2
    backoff_max_s: float = 300
    on: list[int | str] = []
    infra: int = 0


class Timeouts(Model):
    """Seconds; None = no limit of its own."""

    queue_s: float | None = None
    pending_s: float | None = 300
    run_s: float | None = None
    step_s: float | None = None


class Approval(Model):
    """A task that waits for people: ``approvers`` of them, anybody or only ``allowed``, within ``expires_s``."""

    approvers: int = 1
    allowed: list[str] = []
    expires_s: float | None = None


class RegistryAuth(Model):
    type: Literal["basic", "encodedauth"] = "basic"
    username: Value = ""
    password: Value = ""
    auth: Value = ""


class Snapshot(Model):
    """A checkout as it was when a direct run started, kept in the store: whose it is, and its manifest's id."""

    repository: str = Field(pattern=r"^[0-9a-f-]{8,64}$")  # the repository's uuid
    id: str = Field(pattern=r"^[0-9a-f]{64}-[0-9a-f]{8}$")
    changed: int = 0  # files that differ from the commit, new ones included


class Source(Model):
    """What `clone` fetches: a ``snapshot``, else what is at the ``url``.

    A ``url`` that is a ``local`` folder is taken as it is, uncommitted changes included.
    """

    url: str = ""
    ref: str = ""
    commit: str = ""
    branch: str = ""
    tag: str = ""
    local: bool = False
    snapshot: Snapshot | None = None

    def told(self, **words: str) -> "Source":
        """With these words in place of what was found: who names a branch, tag or ref means no other of them."""
        given = {name: word for name, word in words.items() if word}
        refs = {"branch", "tag", "ref"}
        return self.model_copy(update={**(dict.fromkeys(refs, "") if refs & given.keys() else {}), **given})


class Kept(Model):
    """A task that a restart keeps: ``run`` is the one that really made it, over any number of restarts.

    ``attempt`` is the one that succeeded there: its logs, archives and outputs are this task's.
    """

    run: str
    attempt: int


class TaskPlan(Model):
    """One task, ready to be placed. ``id`` keys its data in the store; steps are numbered from 0."""

    id: str
    name: str
    level: int = 0  # longest path from a root
    depends: dict[str, list[Condition]] = {}
    skip: bool = False
    containers: list[Container]
    arch: str = ""
    environment: Environment = {}
    working_dir: str = "~/project"
    shell: str = "/bin/sh -e"
    user: str = ""
    steps: list[Step] = []
    layers: list[
        str
    ] = []  # ids of the ancestors whose archives `restore_workspace` lays over each other, in order
    retry: Retry = Retry()
    timeouts: Timeouts = Timeouts()
    resources: Resources = Resources()
    registries: dict[str, RegistryAuth] = {}
    ignore_failure: bool = False
    approval: Approval | None = None
    keep_failed_for_s: float = 0
    pod: dict[str, object] = {}  # the run file's `pod` section; only the Kubernetes executor reads it
    matrix: dict[str, str] = {}
    kept: Kept | None = None  # it is not run: an earlier run has done it, under this ``id``
    again: str = ""  # in a restart: why it runs again


PLAN_VERSION = 1
"""Of the stored plan. It changes only when a reader of the last one would understand something wrong: a field more
is passed over, and a field less has a default."""


class RunPlan(Model):
    """What is true for the whole run."""

    run_id: str
    name: str
    version: int = PLAN_VERSION
    made_by: str = ""  # Runyard's version
    execution_id: str = ""  # a run's id may be used again: whose plan this is
    restart_of: str = ""  # the run that this one restarts
    group: str = ""
    group_policy: str = ""
    owner: str = ""
    priority: int = 3
    project: str = ""
    cache_group: str = ""
    cache_fallback: str = ""  # restored from where the own group has nothing
    cache_read_only: bool = False
    environment: Environment = {}  # of the run; outranked by the task's
    static_environment: dict[str, str] = {}  # fixed for the commit; a restart keeps it
    annotations: dict[str, str] = {}
    source: Source = Source()
    executor: str = "local"
    concurrency: int | None = None  # tasks of this run in flight
    timeout_s: float | None = None
    fail_fast: bool = False
    hold_failed: bool = False  # `on_failure: hold`
    traceparent: str = ""  # the span in which it was started, as W3C writes it
    restart_trace: str = ""  # that of the run which this one restarts


class Plan(Model):
    """A whole run. Tasks are in an order in which parents come first."""

    run: RunPlan
    tasks: list[TaskPlan]
