"""The seam to what is measured: ``Metrics``, called by activities and executors, given to them by the worker.

No label is ever a run's, a task's or a group's: their number has no bound. A call costs microseconds, since
a run of 10,000 tasks makes tens of thousands of them. The default measures nothing, so that nobody who does
not serve needs a library for it. What serves them is `workers.metrics`.
"""

from typing import Final, Literal, Protocol

Phase = Literal["queue", "schedule", "pull", "start", "run", "drain", "archive", "delete"]
Gap = Literal["agent lost", "cut short", "cap"]


class Metrics(Protocol):
    """Counts and times of one worker process. Nothing here raises."""

    def phase(self, phase: Phase, seconds: float, *, executor: str, result: str = "") -> None:
        """A phase of an attempt is over. ``result`` is set in the one in which the attempt's end was decided."""
        ...

    def caretaker(self, executor: str, change: Literal[1, -1]) -> None:
        """This worker has begun, or ceased, to follow a pod."""
        ...

    def leaked(self, executor: str, pods: int) -> None:
        """A cleanup found pods whose run is closed or unknown."""
        ...

    def log(self, executor: str, size_bytes: int, gap: Gap | None) -> None:
        """The log of an attempt was sealed."""
        ...

    def run(self, result: str) -> None: ...

    def cache(self, outcome: str) -> None:
        """A step that restores or saves a cache has ended."""
        ...

    def request(self, verb: str, code: str) -> None:
        """A request to the Kubernetes API; ``code`` is `none` where no answer came."""
        ...

    def heard(self, executor: str) -> None:
        """The watch of pods brought something, if only a bookmark."""
        ...


class NoMetrics:
    """Measures nothing."""

    def phase(self, phase: Phase, seconds: float, *, executor: str, result: str = "") -> None: ...
    def caretaker(self, executor: str, change: Literal[1, -1]) -> None: ...
    def leaked(self, executor: str, pods: int) -> None: ...
    def log(self, executor: str, size_bytes: int, gap: Gap | None) -> None: ...
    def run(self, result: str) -> None: ...
    def cache(self, outcome: str) -> None: ...
    def request(self, verb: str, code: str) -> None: ...
    def heard(self, executor: str) -> None: ...


NO_METRICS: Final[Metrics] = NoMetrics()
