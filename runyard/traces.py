"""The seam to traces: ``Traces``, called by activities, given to them by the worker; and the ids of spans.

A run is a trace, an attempt of a task is a span of it, and a phase of the attempt one below that. No id is drawn
by lot: each is a digest of what it names (the run's execution, the task's id, the attempt, the phase). So whoever
tells of a span, a first try or a second one, on this worker or another, tells of the same; workflow code has no
part in it; and a step is given the id of its attempt's span (`TRACEPARENT`) before anybody has told of that span.

A span is told once, when it is over, by the activity that knows both its ends. The default tells nobody, so that
nobody who does not ask for traces needs a library for them. What tells them is `workers.traces`.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Protocol

from runyard.metrics import Phase
from runyard.spec.plan import RunPlan

VARIABLE: Final = "TRACEPARENT"

_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A span's place among all others: ids as hexadecimal digits. As text it is W3C's `traceparent`."""

    trace: str
    span: str
    sampled: bool = True

    def __str__(self) -> str:
        return f"00-{self.trace}-{self.span}-{'01' if self.sampled else '00'}"


def parse(traceparent: str) -> Place | None:
    """None for what is none: as W3C has it, that is passed over and no error."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    return Place(trace=found[1], span=found[2], sampled=bool(int(found[3], 16) & 1))


def place_of_run(run: RunPlan) -> Place:
    """In the trace of whoever started it, if that has one."""
    name = f"{run.run_id}/{run.execution_id}"
    above = parse(run.traceparent)
    if above is not None:
        return replace(above, span=_digits(f"run {name}", 8))
    return Place(trace=_digits(f"trace {name}", 16), span=_digits(f"run {name}", 8))


def place_of_attempt(run: Place, task_id: str, attempt: int) -> Place:
    return replace(run, span=_digits(f"attempt {task_id}/{attempt}", 8))


def place_of_phase(run: Place, task_id: str, attempt: int, phase: Phase) -> Place:
    return replace(run, span=_digits(f"phase {task_id}/{attempt}/{phase}", 8))


def _digits(name: str, size: int) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[: 2 * size]


@dataclass(frozen=True, kw_only=True)
class Span:
    """What took some time. ``error`` says why it is one that failed; ``link`` is a span that it follows from."""

    name: str
    place: Place
    parent: Place | None
    started_at: datetime
    ended_at: datetime
    attributes: Mapping[str, str | int] = field(default_factory=dict)
    error: str | None = None
    link: Place | None = None


class Traces(Protocol):
    """Where one worker process tells its spans. Nothing here raises. ``on`` False = nowhere."""

    @property
    def on(self) -> bool: ...

    def begin(self, run: RunPlan) -> Place | None:
        """The run's place; None where spans of it are told to nobody. The same at every call, and quick."""
        ...

    def tell(self, span: Span) -> None: ...


class NoTraces:
    """Tells nobody."""

    on = False

    def begin(self, run: RunPlan) -> Place | None:
        return None

    def tell(self, span: Span) -> None: ...


NO_TRACES: Final[Traces] = NoTraces()
