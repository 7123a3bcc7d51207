"""The seam to where tasks run: ``Executor``.

A *pod* is one attempt of one task: the program `main` (the compiled steps, see runyard.script) with its
companion `agent` (runyard.agent), and services where the executor has them. Locally a pod is a group of
processes. It is the durable thing; whoever calls this protocol is only its present caretaker, may be
killed at any moment, and another one goes on.

Order of calls for a pod::

    start ──► follow ──► delete
                ▲ │
        stop ───┘ └─► (Fenced: another caretaker has it, let go)

* `start` is idempotent: a pod of that name that was asked for with the same digest is adopted, whether it
  runs or has ended, or has begun and then was taken away by somebody, as long as that is remembered; with
  another digest it is a `Conflict`. After a start that failed in any way, `delete` by name is safe and leaves
  nothing.
* `follow` may be called by any process, any number of times, also after the pod has ended. A later caller
  with another `owner` takes the pod over; the earlier one gets `Fenced`.
* `stop` asks a pod to end; the `follow` under way then returns. It is safe at any time.
* `delete` is idempotent, and by uid: it never touches a later pod of the same name.
* All of them may run concurrently for different pods; for one pod `stop` and `delete` may run beside `follow`.
* Cancelling the asyncio task of any of these never harms the pod.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from pydantic import Field

from runyard.dialogue import Assignment
from runyard.model import Model
from runyard.reasons import Reason
from runyard.spec.plan import FromSecret, TaskPlan
from runyard.spec.run import PodRef


class Launch(Model):
    """All that is needed to make a pod.

    ``task`` has every output resolved; secrets are still by name, in ``environment`` (of main) and
    ``secrets`` (variable → secret: the values that main's script and the agent need, for steps and for
    masking). ``assignment`` is the agent's (see runyard.dialogue), without any secret in it.
    ``renew`` makes it anew, with keys to the store that are good from now on: who waits for room may wait long.
    ``digest`` says what was asked: equal digests are equal requests.
    """

    name: str
    run_id: str
    attempt: int
    task: TaskPlan
    script: str
    environment: dict[str, str | FromSecret] = {}
    secrets: dict[str, str] = {}
    assignment: Assignment
    renew: Callable[[], Awaitable[Assignment]] | None = Field(None, exclude=True, repr=False)
    digest: str
    owner: str
    run_owner: str = ""  # whose run it is: owners get room in turn
    priority: int = 3  # 1 comes first
    deadline_s: float | None = None  # main may run this long at most, also when no worker is alive
    grace_s: float = 10


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a pod stands, for people: the heartbeat details and the setup log are made of it."""

    state: Literal["waiting", "pending", "running", "ended"]
    message: str = ""  # e.g. "waits for room: 8 of 8 slots are in use"
    node: str = ""
    pid: int | None = None


Report = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How main ended. ``gone`` = the pod is not there and nothing says how it ended: never a success.

    ``reason`` is set where the executor knows better than an exit code: out of memory, evicted, deadline,
    agent lost, cannot start, stopped (`cancelled`). It is never set beside exit code 0. A main that was
    killed has both its ``signal`` and, as a shell would say it, ``exit_code`` 128 + signal. ``receipt`` is
    what main wrote of its steps (see runyard.script).
    """

    gone: bool = False
    exit_code: int | None = None
    signal: int | None = None
    reason: Reason | None = None
    message: str = ""
    receipt: str = ""
    created_at: datetime | None = None  # of the pod, and when it had a node: where the executor is told
    placed_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    node: str = ""


@dataclass(frozen=True, kw_only=True)
class PodSeen:
    """A pod that is there, for the cleanup's reconciling."""

    pod: PodRef
    run_id: str
    task: str
    attempt: int
    running: bool
    created_at: datetime


class Executor(Protocol):
    """Makes, follows and removes pods. See the module for the order of calls and what each must bear."""

    name: str
    spool_bytes: int  # log that a pod holds back while the store is away; 0 = a step that writes then waits

    def validate(self, task: TaskPlan) -> list[str]:
        """Sentences on what this executor refuses in a task; empty when it takes it. Pure."""
        ...

    def notes(self, task: TaskPlan) -> list[str]:
        """Sentences for the setup log on what is ignored here, such as the image by local processes. Pure."""
        ...

    async def start(self, launch: Launch, report: Report) -> PodRef:
        """Make the pod or adopt it. Waits for room, for as long as it takes, and reports what it waits for.

        Returns when the pod exists, not when it runs. Raises ConfigError, StartError, ImagePull, Conflict.
        """
        ...

    async def follow(self, pod: PodRef, *, owner: str, report: Report) -> Ended:
        """Take the pod over and wait until main has ended (or is gone). Raises Fenced.

        Where main's receipt lacks its last word, `sealed`, the agent may still be writing what it has: then this
        returns when the agent has ended too, or after 30 s.
        """
        ...

    async def stop(self, pod: PodRef, *, grace_s: float) -> None:
        """Ask main to end: a signal, and after ``grace_s`` seconds by force. Returns at once."""
        ...

    async def delete(self, pod: PodRef) -> None:
        """Remove the pod and all that belongs to it, by force if it runs; returns when it is gone.

        A ref whose ``uid`` is empty means whatever has that name (a start that may have failed).
        """
        ...

    def list(self, *, fresh: bool = True) -> AsyncIterator[PodSeen]:
        """Every pod of Runyard's in this executor. Not ``fresh``: as far as it has heard, without asking."""
        ...

    async def close(self) -> None: ...


class Secrets(Protocol):
    """Where the executor finds the values of secrets, if it needs them itself."""

    def get(self, name: str) -> str:
        """Raises ConfigError with the place where it was looked for."""
        ...

    def all(self) -> Mapping[str, str]: ...
