"""Why a task ended as it did: one stable word, one sentence, one remedy each.

The word is what `retry: {on: [...]}`, programs and metrics compare; the sentence and the remedy are
what people read. ``infra`` reasons are those that say nothing about the user's own program.
"""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class _Meaning:
    sentence: str
    remedy: str = ""
    infra: bool = False


class Reason(StrEnum):
    """The reason of a task's end."""

    SUCCESS = "success"
    EXIT_CODE = "exit_code"
    SIGNAL = "signal"
    OOM_KILLED = "oom_killed"
    TIMEOUT_QUEUE = "timeout_queue"
    TIMEOUT_PENDING = "timeout_pending"
    TIMEOUT_RUN = "timeout_run"
    TIMEOUT_STEP = "timeout_step"
    CLONE_FAILED = "clone_failed"
    ARCHIVE_FAILED = "archive_failed"
    OUTPUT_MISSING = "output_missing"
    LOG_TRUNCATED = "log_truncated"
    IMAGE_PULL = "image_pull"
    INVALID_IMAGE_NAME = "invalid_image_name"
    UNSCHEDULABLE = "unschedulable"
    QUOTA = "quota"
    CONFIG_ERROR = "config_error"
    START_ERROR = "start_error"
    NOT_ADMITTED = "not_admitted"
    SERVICE_FAILED = "service_failed"
    EVICTED = "evicted"
    PREEMPTED = "preempted"
    NODE_LOST = "node_lost"
    LOST = "lost"
    AGENT_LOST = "agent_lost"
    STORE_REFUSED = "store_refused"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    REJECTED = "rejected"
    APPROVAL_EXPIRED = "approval_expired"
    DEPENDENCY = "dependency"
    WHEN = "when"
    NEVER_STARTED = "never_started"
    INTERNAL = "internal"

    @property
    def sentence(self) -> str:
        return _MEANINGS[self].sentence

    @property
    def remedy(self) -> str:
        return _MEANINGS[self].remedy

    @property
    def infra(self) -> bool:
        """Whether the infrastructure is to blame, not what the user wrote."""
        return _MEANINGS[self].infra


_MEANINGS: dict[Reason, _Meaning] = {
    Reason.SUCCESS: _Meaning("All steps ended with exit code 0."),
    Reason.EXIT_CODE: _Meaning("A step ended with an exit code other than 0.", "Read the end of that step's log."),
    Reason.SIGNAL: _Meaning(
        "A step was ended by a signal that Runyard did not send.", "Read the end of that step's log."
    ),
    Reason.OOM_KILLED: _Meaning(
        "The task used more memory than its limit and was killed.",
        "Raise `resources: {memory: ...}` or use less memory.",
    ),
    Reason.TIMEOUT_QUEUE: _Meaning(
        "The task waited longer for room than `timeouts: {queue: ...}`.",
        "Add capacity, start fewer runs at once or raise the timeout.",
    ),
    Reason.TIMEOUT_PENDING: _Meaning(
        "The task was placed but did not begin within `timeouts: {pending: ...}`.",
        "The setup log says what it waited for: image, node, volume or service.",
    ),
    Reason.TIMEOUT_RUN: _Meaning(
        "The task ran longer than `timeouts: {run: ...}`.", "Make it faster or raise the timeout."
    ),
    Reason.TIMEOUT_STEP: _Meaning(
        "A step ran longer than `timeouts: {step: ...}`.", "Make it faster or raise the timeout."
    ),
    Reason.CLONE_FAILED: _Meaning(
        "The sources could not be fetched.", "Check repository, ref and credentials; see the step's log."
    ),
    Reason.ARCHIVE_FAILED: _Meaning(
        "A workspace archive could not be saved or restored.", "See the step's log for the file at fault."
    ),
    Reason.OUTPUT_MISSING: _Meaning(
        "The task needs an output that an earlier task did not write.",
        "Write KEY=value to $RUNYARD_OUTPUT there, or correct the name here.",
    ),
    Reason.LOG_TRUNCATED: _Meaning(
        "The log is not whole; the place is marked in it.", "The seal of the log says why."
    ),
    Reason.IMAGE_PULL: _Meaning(
        "The image cannot be pulled.", "Check its name, tag and the registry's credentials.", infra=True
    ),
    Reason.INVALID_IMAGE_NAME: _Meaning("The image's name is not valid.", "Correct it in the run file."),
    Reason.UNSCHEDULABLE: _Meaning(
        "No node took the task.", "Lower its resources, change its node selector or add a node.", infra=True
    ),
    Reason.QUOTA: _Meaning(
        "A quota left no room for the task.", "Raise the quota or lower the task's resources.", infra=True
    ),
    Reason.CONFIG_ERROR: _Meaning(
        "The task names a secret, setting or file that is not there.",
        "Create it where the task runs, or correct its name.",
    ),
    Reason.START_ERROR: _Meaning(
        "The task could not be started.", "Check its command, shell, working directory and user."
    ),
    Reason.NOT_ADMITTED: _Meaning(
        "The cluster does not admit the task's pod.",
        "The message names the rule or the right: ask for less in the task, or have its administrator change it.",
    ),
    Reason.SERVICE_FAILED: _Meaning(
        "A service of the task ended or did not get ready.", "Read the setup log; check the service's image."
    ),
    Reason.EVICTED: _Meaning(
        "The node evicted the task.", "Set requests for what it uses, or `retry: {infra: N}`.", infra=True
    ),
    Reason.PREEMPTED: _Meaning(
        "A task of higher priority took its place.", "Set `retry: {infra: N}`.", infra=True
    ),
    Reason.NODE_LOST: _Meaning("The node went away.", "Set `retry: {infra: N}`.", infra=True),
    Reason.LOST: _Meaning(
        "The task vanished after its first step had begun; it is not run again by itself.",
        "Find out who removed it; `retry: {infra: N}` starts it anew where that is safe.",
        infra=True,
    ),
    Reason.AGENT_LOST: _Meaning(
        "The task's companion ended before it had stored everything.",
        "The setup log says why; `retry: {infra: N}` starts it anew where that is safe.",
        infra=True,
    ),
    Reason.STORE_REFUSED: _Meaning(
        "The store refused what the task wanted to keep.",
        "Run `runyard doctor`; check room and rights.",
        infra=True,
    ),
    Reason.CANCELLED: _Meaning("Somebody cancelled it."),
    Reason.SUPERSEDED: _Meaning("A newer run of the same group took its place."),
    Reason.REJECTED: _Meaning("Its approval was refused."),
    Reason.APPROVAL_EXPIRED: _Meaning("Nobody approved it in time.", "Start the run again and approve it."),
    Reason.DEPENDENCY: _Meaning("A task that it depends on did not end as `depends` asks."),
    Reason.WHEN: _Meaning("Its `when` does not match this run."),
    Reason.NEVER_STARTED: _Meaning("The run ended before its turn came."),
    Reason.INTERNAL: _Meaning("Runyard itself failed.", "Please report it with the message above.", infra=True),
}
