"""What a worker counts, in the form that Prometheus reads.

A registry of its own for each object: prometheus_client's global one would mix two workers of one process. Label
values are resolved once and kept, since resolving them costs more than the observation itself.
"""

import time
from functools import cache
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from runyard.metrics import Gap, Phase

BUCKETS_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400)
"""From a local process to a night's job; the alerts' limits (60, 120, 600) are borders, so that they are exact."""


class PrometheusMetrics:
    """The `Metrics` of one worker."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made = self.registry
        self._runs = Counter("runyard_runs", "Runs that ended", ["result"], registry=made)
        self._phases = Histogram(
            "runyard_task_phase_seconds",
            "How long an attempt of a task was in each phase",
            ["phase", "executor", "result"],
            buckets=BUCKETS_S,
            registry=made,
        )
        self._live = Gauge(
            "runyard_pods_live", "Pods that this worker is caretaker of", ["executor"], registry=made
        )
        self._leaked = Counter(
            "runyard_pods_leaked", "Pods without a run, found by cleanups", ["executor"], registry=made
        )
        self._bytes = Counter("runyard_log_bytes", "Bytes of logs that were sealed", ["executor"], registry=made)
        self._gaps = Counter(
            "runyard_log_gaps", "Sealed logs that are not whole", ["executor", "reason"], registry=made
        )
        self._requests = Counter(
            "runyard_api_requests", "Requests to the Kubernetes API", ["verb", "code"], registry=made
        )
        self._heard = Gauge(
            "runyard_watch_heard_timestamp_seconds",
            "When the watch last brought something",
            ["executor"],
            registry=made,
        )
        self._caches = Counter(
            "runyard_cache_requests", "Steps that restore or save a cache", ["outcome"], registry=made
        )
        self._of_phase = cache(self._phases.labels)

    def serves(self, executor: str) -> None:
        """Have the series of an executor from the start: a rate of what appears only with its first event is 0."""
        self._live.labels(executor).set(0)
        self._leaked.labels(executor)
        self._bytes.labels(executor)

    def phase(self, phase: Phase, seconds: float, *, executor: str, result: str = "") -> None:
        self._of_phase(phase, executor, result).observe(max(0.0, seconds))

    def caretaker(self, executor: str, change: Literal[1, -1]) -> None:
        self._live.labels(executor).inc(change)

    def leaked(self, executor: str, pods: int) -> None:
        self._leaked.labels(executor).inc(pods)

    def log(self, executor: str, size_bytes: int, gap: Gap | None) -> None:
        self._bytes.labels(executor).inc(size_bytes)
        if gap is not None:
            self._gaps.labels(executor, gap).inc()

    def run(self, result: str) -> None:
        self._runs.labels(result).inc()

    def cache(self, outcome: str) -> None:
        self._caches.labels(outcome).inc()

    def request(self, verb: str, code: str) -> None:
        self._requests.labels(verb, code).inc()

    def heard(self, executor: str) -> None:
        self._heard.labels(executor).set(time.time())

    def render(self) -> bytes:
        return generate_latest(self.registry)
