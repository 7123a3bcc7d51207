"""The one tree of errors.

    RunyardError
    ├── InvalidRunFile        what the user wrote (every problem, with line and column)
    ├── InvalidRequest        a request to start or change a run that cannot be
    │   ├── GitFailed         git did not read the checkout of a direct run
    │   └── InvalidExport     a file that is no exported run
    │       ├── NewerExport   a later version has written it
    │       └── DamagedExport  it is cut short, or its bytes are not what was exported
    ├── NotFound              it does not exist (never "could not find out")
    ├── Conflict              something else has that name, or changed meanwhile
    ├── Forbidden             refused by a setting or a permission
    ├── StoreError            the store could not be asked or refused
    │   ├── StoreUnavailable  away, slow, cut: worth another try
    │   ├── StoreFull         no room left
    │   ├── StoreDenied       no permission
    │   └── Corrupt           bytes that are not what was recorded
    ├── ExecutorError         a task could not be placed, followed or ended
    │   ├── ConfigError       missing secret, setting or file that the task names
    │   ├── StartError        the process or pod could not be started
    │   │   └── NotAdmitted   the cluster's rules do not admit the pod
    │   ├── QuotaExceeded     no room by a quota
    │   │   └── BeyondQuota   there will never be, since the quota is smaller than what is asked for
    │   ├── Unschedulable     no node takes it
    │   ├── ImagePull         its image cannot be had
    │   ├── ClusterUnavailable  its API server does not answer
    │   └── Fenced            another caretaker has taken the task over: let go
    ├── ServerUnavailable     no Temporal server answers
    └── RemoteError           an error that came back from another process, with its code

Each class is documented once: the first paragraph of its docstring is what happened and the second
what to do about it; an error raised without a message says the first. ``code`` is stable: it is what
programs may compare. The mapping to Temporal's ``ApplicationError``, to exit codes and to HTTP is made
at the edges, never here.
"""

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class RunyardError(Exception):
    """Something in Runyard failed.

    Read the cause below it; if there is none, please report it.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "", *, remedy: str = "") -> None:
        self.message = message or self.summary()
        self.remedy = remedy or self.advice()
        super().__init__(self.message)

    @classmethod
    def summary(cls) -> str:
        """What happened, in general: the first paragraph of the docstring."""
        return _paragraphs(cls)[0]  # type: ignore[arg-type]  # mypy looks at the hash of instances

    @classmethod
    def advice(cls) -> str:
        """What to do about it: the second paragraph of the docstring."""
        return _paragraphs(cls)[1]  # type: ignore[arg-type]


@functools.cache
def _paragraphs(cls: type) -> tuple[str, str]:
    """The first two of its docstring. Kept: "not there" is an answer that a restart gets by the thousand."""
    first, second, *_ = *(inspect.getdoc(cls) or "").split("\n\n"), "", ""
    return " ".join(first.split()), " ".join(second.split())


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong in a run file; ``line`` and ``column`` start at 1, 0 where only ``path`` is known."""

    message: str
    line: int = 0
    column: int = 0
    text: str = ""
    hint: str = ""
    path: str = ""

    def __str__(self) -> str:
        where = f"{self.line}:{self.column}: " if self.line else f" {self.path}: " if self.path else " "
        near = f" (at `{self.text}`)" if self.text else ""
        return f"{where}{self.message}{near}" + (f"; {self.hint}" if self.hint else "")


class InvalidRunFile(RunyardError):
    """The run file is not valid.

    Mend every line that is named; `runyard lint FILE` shows them all again.
    """

    code = "invalid_run_file"

    def __init__(self, problems: Sequence[Problem], *, name: str = "run file") -> None:
        self.problems = tuple(problems)
        self.name = name
        lines = "\n".join(f"{name}:{problem}" for problem in self.problems)
        super().__init__(lines)


class InvalidRequest(RunyardError):
    """The request cannot be carried out as it stands.

    Change what the message names and send it again.
    """

    code = "invalid_request"


class GitFailed(InvalidRequest):
    """git could not say what the checkout holds.

    Run the command that the message names in the checkout, and mend what it complains of.
    """

    code = "git_failed"


class InvalidExport(InvalidRequest):
    """The file is not an exported run.

    Give the file that `runyard run export` wrote, as it is.
    """

    code = "invalid_export"


class NewerExport(InvalidExport):
    """A later version of Runyard has exported the run.

    Import it with that version or a later one.
    """

    code = "newer_export"


class DamagedExport(InvalidExport):
    """The exported run is not what was written: it is cut short, or its bytes have changed.

    Copy the file again, or export the run again; nothing of this one was imported.
    """

    code = "damaged_export"


class NotFound(RunyardError):
    """What was asked for does not exist.

    Check the name; `runyard run list` shows the runs that are known.
    """

    code = "not_found"


class Conflict(RunyardError):
    """Something else has this name, or it changed in the meantime.

    Look at its present state, then decide again.
    """

    code = "conflict"


class Forbidden(RunyardError):
    """A setting or a permission refuses this.

    Ask the administrator for the setting that the message names.
    """

    code = "forbidden"


class StoreError(RunyardError):
    """The store refused a request.

    Run `runyard doctor`, which tries the store step by step.
    """

    code = "store_error"


class StoreUnavailable(StoreError):
    """The store does not answer.

    It is tried again by itself; see that the store is up and its address is right.
    """

    code = "store_unavailable"
    retryable = True


class StoreFull(StoreError):
    """The store has no room left.

    Free space or raise the quota; the task goes on by itself then.
    """

    code = "store_full"
    retryable = True


class StoreDenied(StoreError):
    """The store denies the permission.

    Give the worker's account the right to read, write, list and delete there.
    """

    code = "store_denied"
    retryable = True


class Corrupt(StoreError):
    """What the store holds is not what was recorded: size or digest differ.

    Do not trust this object; run the task again and check the disk or bucket.
    """

    code = "corrupt"


class ExecutorError(RunyardError):
    """The executor could not start, follow or end a task.

    See the task's setup log: `runyard run logs RUN TASK --step setup`.
    """

    code = "executor_error"
    retryable = True


class ConfigError(ExecutorError):
    """The task names a secret, setting or file that is not there.

    Create it where the worker runs, or correct its name in the run file.
    """

    code = "config_error"
    retryable = False


class StartError(ExecutorError):
    """The task could not be started.

    Check command, working directory, user and shell of the task.
    """

    code = "start_error"
    retryable = False


class NotAdmitted(StartError):
    """The cluster does not admit the task's pod: a LimitRange, a policy or the namespace's security standard.

    The message names the rule: ask for less in the task, or have the cluster's administrator change it.
    """

    code = "not_admitted"


class QuotaExceeded(ExecutorError):
    """A quota leaves no room for the task now.

    It waits by itself; raise the quota or lower the task's resources to run sooner.
    """

    code = "quota_exceeded"


class BeyondQuota(QuotaExceeded):
    """The task asks for more than a quota allows at all.

    Lower the task's resources or raise the quota.
    """

    code = "quota"
    retryable = False


class Unschedulable(ExecutorError):
    """No node takes the task.

    Lower its resources or change its node selector, or add a node.
    """

    code = "unschedulable"


class ImagePull(ExecutorError):
    """The image of the task cannot be pulled.

    Check the image's name and the registry's credentials.
    """

    code = "image_pull"
    retryable = False


class ClusterUnavailable(ExecutorError):
    """The API server of the cluster does not answer.

    It is tried again by itself; see that the server is up and that this worker can reach it.
    """

    code = "cluster_unavailable"


class Fenced(ExecutorError):
    """Another caretaker has taken this task over.

    Nothing is to be done: the other one goes on with it. (Temporal tries only the present caretaker again.)
    """

    code = "fenced"
    retryable = True


class ServerUnavailable(RunyardError):
    """No Temporal server answers.

    Start one with `runyard dev`, or set TEMPORAL_ADDRESS and TEMPORAL_NAMESPACE.
    """

    code = "server_unavailable"
    retryable = True


class RemoteError(RunyardError):
    """Another process answered with an error.

    Its code and message are in `remote_code` and in the text.
    """

    code = "remote_error"

    def __init__(self, message: str = "", *, remote_code: str = "", remedy: str = "") -> None:
        self.remote_code = remote_code
        super().__init__(message, remedy=remedy)


def tree(root: type[RunyardError] = RunyardError) -> list[type[RunyardError]]:
    """Every error class, parents before children: what the docs and the mappings are made from."""
    return [root, *(each for child in root.__subclasses__() for each in tree(child))]
