"""What starts a run, what it answers, and what it shows: the payloads that other programs see.

All are plain JSON: any Temporal SDK, the `temporal` command and the Temporal UI can write and read them.
"""

import base64
import hashlib
from datetime import datetime
from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from runyard.model import Input, Model
from runyard.reasons import Reason
from runyard.spec.plan import Approval, Condition, Kept, Retry, Source

WORKFLOW = "RunWorkflow"
RUNS_QUEUE = "runyard"  # task queue of the workflows and of the activities that only use the store


def executor_queue(executor: str) -> str:
    """The task queue whose workers place tasks with this executor, e.g. ``local`` → ``runyard-local``."""
    return f"{RUNS_QUEUE}-{executor}"


class Restart(Input):
    """An earlier run, of which a new one keeps what is good.

    ``failed`` keeps the tasks that succeeded and have no ancestor that runs again; ``start`` keeps nothing.
    Without a ``mode`` it is ``failed``, unless the earlier run succeeded and neither ``tasks`` nor a new file say
    what to do. ``tasks`` run again in any case, with all that depends on them.
    """

    run: str = Field(min_length=1)
    mode: Literal["failed", "start"] | None = None
    tasks: list[str] = []


class RunRequest(Input):
    """The argument of RunWorkflow.

    ``file`` is the run file: its text (YAML, JSON, Jsonnet) or, for JSON callers, the object itself.
    ``run`` names one of its runs, and may be left out where there is only one.

    With a ``restart`` all that is left out is the earlier run's, ``file`` too.
    """

    file: str | dict[str, JsonValue] = ""
    file_name: str = ".runyard/config.yml"  # for messages; its ending chooses the language
    run: str = ""
    tasks: list[str] = []  # only these and what they need; empty = all
    group: str = ""  # a path: its runs run one at a time, in order, if `group_policy` says nothing else
    group_policy: str = ""  # `queue`, `parallel: N`, `cancel-superseded`, `skip-if-running`
    project: str = ""
    cache_group: str = ""
    cache_fallback: str = ""  # a group to restore from what its own does not have
    cache_read_only: bool = False  # restores only: for runs of what nobody has looked at yet
    executor: str = "local"
    owner: str = ""
    priority: int = Field(default=3, ge=1, le=5)
    trigger: str = "manual"
    source: Source = Source()
    message: str = ""  # the commit's; `[ci skip]` in it makes no run
    environment: dict[str, str] = {}
    static_environment: dict[str, str] = {}
    annotations: dict[str, str] = {}
    window: int = Field(default=500, ge=1, le=1_000)  # tasks in flight at most, for the engine's sake
    restart: Restart | None = None
    # W3C's: the span in which the run is started; its own spans are then below that one
    traceparent: str = Field(default="", pattern=r"^([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?$")

    @model_validator(mode="after")
    def _has_file(self) -> Self:
        if self.restart is None and "file" not in self.model_fields_set:
            raise PydanticCustomError("no_file", "the request needs the field `file`")
        return self


def task_id(run_id: str, execution_id: str, task: str) -> str:
    """The id of a task that this run makes: 20 characters, the same at every retry of the same run.

    The execution's id is in it since a workflow id may be used again and task ids may not.
    """
    digest = hashlib.sha256(f"{run_id}/{execution_id}/{task}".encode()).digest()
    return base64.b32encode(digest).decode().lower()[:20]


TaskStatus = Literal[
    "waiting",  # for its parents
    "approval",  # for people
    "queued",  # for room
    "running",
    "retrying",  # for the time of the next attempt
    "held",  # failed, and waits for a decision
    "success",
    "failed",
    "skipped",
    "cancelled",
]
RunPhase = Literal["setuperror", "queued", "running", "finished", "cancelled"]
RunResultWord = Literal["unknown", "success", "failed", "stopped"]


class GraphTask(Model):
    """What the workflow needs to know of a task: this goes through history, the TaskPlan does not."""

    name: str
    id: str = ""  # "" = task_id(...): a run of 10,000 tasks has better things to carry
    depends: dict[str, list[Condition]] = {}
    skip: bool = False
    ignore_failure: bool = False
    approval: Approval | None = None
    retry: Retry | None = None
    image: str = ""
    outputs_of: list[str] = []  # tasks whose outputs it reads
    queue_s: float | None = None
    keep_failed_for_s: float = 0
    at: tuple[int, int] = (0, 0)  # byte offset and length of its TaskPlan in the stored plan
    kept: Kept | None = None


class PodRef(Model):
    """A pod that was made: deterministic ``name`` (<= 63 characters, a DNS label), and ``uid``, never reused."""

    name: str
    uid: str


class CacheUse(Model):
    """Of steps that restore a cache: how many were there, and how many found one."""

    restores: int
    hits: int

    def __str__(self) -> str:
        return f"{self.hits} of {self.restores} {'restore' if self.restores == 1 else 'restores'} hit"


class TaskEnd(Model):
    """How one attempt of a task ended. Small: logs, archives and outputs are in the store under its id."""

    status: Literal["success", "failed", "cancelled"]
    reason: Reason
    message: str = ""  # one line: what is wrong, for people
    exit_code: int | None = None
    step: int | None = None  # number of the step that decided
    began: bool = True  # whether a step of the user's may have run
    started_at: datetime | None = None  # of the first step
    ended_at: datetime | None = None
    log_bytes: int = 0
    log_complete: bool = True
    last_line: str = ""
    archives: list[int] = []  # numbers of the steps that saved one
    caches: CacheUse | None = None  # None: no step of it came to restore one


class TaskView(Model):
    """One task, as `describe` shows it."""

    name: str
    status: TaskStatus
    id: str = ""
    attempt: int = 0  # from 1; 0 = never started
    reason: Reason | None = None
    message: str = ""
    exit_code: int | None = None
    queued_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    approvals: list[str] = []  # who has approved
    approvals_needed: int = 0
    next_attempt_at: datetime | None = None
    depends: list[str] = []
    ignore_failure: bool = False
    last_line: str = ""
    kept_from: str = ""  # the run that made it, where a restart keeps it
    again: str = ""  # in a restart: why it runs again


class RunView(Model):
    """A run at a moment: the answer of the query `describe`, and what `run show -o json` prints."""

    id: str
    name: str = ""
    phase: RunPhase = "queued"
    result: RunResultWord = "unknown"
    cause: str = ""  # one line, of a run that failed
    group: str = ""
    counter: int = 0  # the run's number in its group's root; 0 = none
    position: int = 0  # in the line where it waits, from 1; `cause` then says what for
    project: str = ""
    executor: str = ""
    trigger: str = ""
    owner: str = ""
    created_at: datetime | None = None
    ended_at: datetime | None = None
    counts: dict[TaskStatus, int] = {}
    tasks: list[TaskView] = []
    annotations: dict[str, str] = {}
    execution_id: str = ""  # a run's id may be used again: which of its executions this is
    restart_of: str = ""  # the run that this one restarts
    kept: dict[str, int] = {}  # how many tasks are kept, by the run that made them
    caches: CacheUse | None = None  # over all attempts of the tasks that it ran; None: nothing to restore
    imported_at: datetime | None = None  # of a run that came from another store: its retention begins then
    ui: str = ""  # address in the Temporal UI, filled in by the client


class Passing(Model):
    """A run as an execution of its workflow leaves it just before another goes on: ``by`` is its id, the run id of
    Temporal."""

    by: str
    view: RunView


class RunResult(Model):
    """What RunWorkflow returns. The tasks one by one are in the store: ``runs/<id>/result.json``."""

    id: str
    phase: RunPhase
    result: RunResultWord
    cause: str = ""
    counts: dict[TaskStatus, int] = {}


class ApprovalRequest(Model):
    """Argument of the updates `approve` and `reject`."""

    task: str
    by: str
    reason: str = ""


class TaskRequest(Model):
    """Argument of the updates `cancel_task` and `retry_task`."""

    task: str
    by: str = ""
    reason: str = ""
