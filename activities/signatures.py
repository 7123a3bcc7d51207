"""Names and payloads of the activities: all that a workflow may know of them.

A workflow calls an activity by its name here, so that its module never imports an executor or a store.
"""

from datetime import datetime, timedelta

from pydantic import JsonValue

from runyard.model import Model
from runyard.spec.cleanup import CleanupKind, CleanupReport, CleanupRequest, Retention
from runyard.spec.group import Entry
from runyard.spec.run import GraphTask, PodRef, RunView, TaskEnd

PREPARE_RUN = "prepare_run"
SCHEDULE_TASK = "schedule_task"
FETCH_TASK = "fetch_task"
DELETE_TASK = "delete_task"
RECORD_RUN = "record_run"
LEAVE_VIEW = "leave_view"
STAY_IN_LINE = "stay_in_line"
WATCH_RUN = "watch_run"
PLAN_CLEANUP = "plan_cleanup"
SURVEY = "survey"
CLEAN = "clean"
REMOVE_RUN = "remove_run"
REAP_PODS = "reap_pods"


class PrepareRun(Model):
    """``request`` is the workflow's own argument, as it came; prepare is what judges it."""

    run_id: str
    execution_id: str  # the first execution's: a workflow id may be used again, task ids may not
    request: dict[str, JsonValue]


class PreparedRun(Model):
    """The graph, in an order in which parents come first, and what holds for the whole run."""

    name: str
    group: str = ""
    project: str = ""
    owner: str = ""
    trigger: str = ""
    executor: str
    annotations: dict[str, str] = {}
    window: int = 500  # tasks in flight at most
    timeout_s: float | None = None
    fail_fast: bool = False
    hold_failed: bool = False
    history_events: int = 7_000  # continue as new from here on
    history_bytes: int = 4 << 20
    timers: int = 0  # so many waits have a timer of their own, all others share one; 0 = each has its own
    closing_ms: int = 0  # an execution says so long before its end that it ends; 0 = it does not
    heartbeat_ms: int = 5_000  # of a task's activities: so long after a worker's last sign another takes over
    gathers_ms: int = 0  # deletes that fetches have begun are confirmed together after so long; 0 = each at once
    leaves_view: bool = False  # and leaves a view of the run for those who ask before the next one can answer
    header: int  # length in bytes of the RunPlan at the start of the stored plan
    tasks: list[GraphTask]
    restart_of: str = ""  # the run that this one restarts
    nothing: str = ""  # why there is nothing to run, e.g. `[ci skip]`
    lines: list[Entry] = []  # where it waits for its turn, one after the other, before its first task

    @property
    def heartbeat(self) -> timedelta:
        return timedelta(milliseconds=self.heartbeat_ms)


class TaskAttempt(Model):
    """One attempt of one task of a run, from 1. ``at``, ``header``: see GraphTask and PreparedRun."""

    run_id: str
    task: str
    task_id: str
    attempt: int
    at: tuple[int, int]
    header: int
    counter: int = 0  # the run's number in its group's root


class ScheduleTask(Model):
    """``outputs_of``: task → its id and the attempt that succeeded, for the outputs that this one reads."""

    attempt: TaskAttempt
    outputs_of: dict[str, tuple[str, int]] = {}


class ScheduledTask(Model):
    pod: PodRef
    scheduled_at: datetime


class FetchTask(Model):
    """``stop``: end the pod first, since the run was cancelled while no worker was there to hear it."""

    attempt: TaskAttempt
    pod: PodRef
    scheduled_at: datetime
    waited_ms: int = 0  # before that, for room and a worker
    stop: bool = False


class DeleteTask(Model):
    """``pod`` None: whatever a `schedule_task` that did not answer may have left, or may yet leave.

    ``end`` is then how the attempt ended, for its seal: no `fetch_task` will write one.
    """

    attempt: TaskAttempt
    pod: PodRef | None = None
    end: TaskEnd | None = None


class DeleteTasks(Model):
    """All pods that may go at the same moment: one activity for them is a third of the work of one for each."""

    tasks: list[DeleteTask]


class RecordRun(Model):
    run: RunView


class WatchRun(Model):
    """``execution_id`` is the first execution's: a run that has the same id later is another one."""

    run_id: str
    execution_id: str


class PlanCleanup(Model):
    """``request`` is the workflow's own argument, as it came."""

    request: JsonValue
    started_at: datetime


class CleanupRules(Model):
    """By what a cleanup goes. ``now`` is Temporal's clock, as the ends of runs are; the rest see `fates.Rules`."""

    request: CleanupRequest
    retention: Retention
    now: datetime
    cutoffs: dict[str, datetime] = {}
    oldest: datetime | None = None


class CleanupPlan(Model):
    """``executors``: those that have a worker. ``gives_way_to``: the id of a cleanup that is under way already."""

    rules: CleanupRules
    executors: list[str] = []
    gives_way_to: str = ""


class Clean(Model):
    """Things of one kind, after the key ``cursor``."""

    rules: CleanupRules
    kind: CleanupKind
    cursor: str = ""


class Cleaned(Model):
    """``cursor``: where to go on; None = that was all."""

    cursor: str | None = None
    report: CleanupReport = CleanupReport()


class RemoveRun(Model):
    rules: CleanupRules
    run_id: str


class ReapPods(Model):
    rules: CleanupRules
