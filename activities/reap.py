"""Pods that outlived their run: where no code of the run goes on, as after `terminate`, somebody else looks.

Two of us do. Whoever serves an executor looks every quarter of a minute, and deletes pods of runs that are known
to have ended; that is what keeps the promise of a minute. A cleanup looks too, and reports; it alone takes pods of
runs that nobody knows, when they are old.

A schedule of its own for the first was turned down: 1,440 workflows a day, for a question that nearly always has
the same answer, and nothing where there is no schedule (`runyard exec`). So was to ask when an activity is let go:
whoever was killed is told nothing.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Self

from temporalio import activity
from temporalio.client import Client

from activities.failures import translate
from activities.pulse import Pulse
from activities.signatures import REAP_PODS, CleanupRules, ReapPods
from activities.statuses import Statuses
from runyard.errors import RunyardError
from runyard.executors.base import Executor, PodSeen
from runyard.metrics import NO_METRICS, Metrics
from runyard.records.fates import RunStatus
from runyard.spec.cleanup import EXAMPLES, CleanupReport, Tally

PODS_AT_ONCE: Final = 200
LOOK_S: Final = 15.0
GRACE_S: Final = 15.0
"""A run's last activities may just be about to make a pod, or to delete it."""

OPEN_PODS, YOUNG_PODS = "pods of open runs", "pods within the grace period"

_log = logging.getLogger(__name__)


class ReapActivities:
    """They need an executor and Temporal itself; served on the executor's queue."""

    def __init__(self, executor: Executor, client: Client, *, metrics: Metrics = NO_METRICS) -> None:
        self._executor = executor
        self._metrics = metrics
        self._statuses = Statuses(client)

    @activity.defn(name=REAP_PODS)
    @translate
    async def reap_pods(self, request: ReapPods) -> CleanupReport:
        """Delete pods whose run has ended, or is not known, for longer than the grace period."""
        report, batch = CleanupReport(), []
        async with Pulse():
            async for pod in self._executor.list():
                batch.append(pod)
                if len(batch) >= PODS_AT_ONCE:
                    report, batch = report.plus(await self._reap(batch, request.rules)), []
            return report.plus(await self._reap(batch, request.rules))

    async def _reap(self, pods: Sequence[PodSeen], rules: CleanupRules) -> CleanupReport:
        known = await self._statuses.ask(list(dict.fromkeys(pod.run_id for pod in pods)))
        open_pods = [pod for pod in pods if known[pod.run_id].open]
        over = [pod for pod in pods if _is_over(pod, known[pod.run_id], rules)]
        if not rules.request.dry_run:
            self._metrics.leaked(self._executor.name, len(over))
        gone, notes = [], []
        for pod in over:
            try:
                if not rules.request.dry_run:
                    await self._executor.delete(pod.pod)
                gone.append(f"{pod.run_id} {pod.task} #{pod.attempt}")
            except Exception as error:  # the others all the same; this one the next time
                why = error.message if isinstance(error, RunyardError) else repr(error)
                notes.append(f"pod {pod.pod.name} of {self._executor.name} cannot be deleted: {why[:200]}")
        young = len(pods) - len(open_pods) - len(over)
        kept = {why: number for why, number in ((OPEN_PODS, len(open_pods)), (YOUNG_PODS, young)) if number}
        return CleanupReport(
            deleted={"pods": Tally(items=len(gone))} if gone else {},
            examples={"pods": gone[:EXAMPLES]} if gone else {},
            kept=kept,
            notes=notes,
        )


class PodWatch:
    """While the block runs: deletes pods of runs that have ended, all the time."""

    def __init__(self, executor: Executor, client: Client, *, metrics: Metrics = NO_METRICS) -> None:
        self._executor = executor
        self._metrics = metrics
        self._statuses = Statuses(client)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except RunyardError as error:  # the next look is soon
                _log.warning("the pods of %s were not looked at: %s", self._executor.name, error.message)
            except Exception:  # a fault here must not end the watch for ever
                _log.exception("the pods of %s were not looked at", self._executor.name)

    async def look(self) -> list[PodSeen]:
        """Once; the pods that are gone now."""
        pods = [pod async for pod in self._executor.list(fresh=False)]
        ended = await self._statuses.closed(list(dict.fromkeys(pod.run_id for pod in pods)))
        over = [pod for pod in pods if pod.run_id in ended and _is_past(pod, ended[pod.run_id], GRACE_S)]
        gone = [pod for pod in over if await self._delete(pod)]
        self._metrics.leaked(self._executor.name, len(gone))
        return gone

    async def _delete(self, pod: PodSeen) -> bool:
        """What one has left, files of root's say, keeps it; the others go."""
        _log.warning("run %s has ended: deleting its pod %s", pod.run_id, pod.pod.name)
        try:
            await self._executor.delete(pod.pod)
        except Exception as error:
            _log.warning("pod %s stays: %s", pod.pod.name, error, exc_info=not isinstance(error, RunyardError))
            return False
        return True


def _is_past(pod: PodSeen, closed_at: datetime, grace_s: float) -> bool:
    return datetime.now(UTC) - max(pod.created_at, closed_at) >= timedelta(seconds=grace_s)


def _is_over(pod: PodSeen, status: RunStatus, rules: CleanupRules) -> bool:
    """A pod of a run that is not known may be another installation's: it has to be old."""
    if status.open:
        return False
    if status.closed_at is None:
        return _is_past(pod, pod.created_at, rules.retention.unknown_s)
    return _is_past(pod, status.closed_at, 0 if rules.request.now else rules.retention.pods_s)
