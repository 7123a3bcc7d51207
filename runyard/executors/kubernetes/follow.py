"""One caretaker's way along with one pod, from news to news, until its verdict holds."""

import asyncio
import contextlib
from collections.abc import Callable

from runyard.errors import ExecutorError
from runyard.executors.base import Ended, Progress, Report
from runyard.executors.kubernetes import fields, names
from runyard.executors.kubernetes.api import Api, Refused
from runyard.executors.kubernetes.requests import end_pod, look
from runyard.executors.kubernetes.verdict import Patience, Verdict, judge
from runyard.executors.kubernetes.watch import Seen, Watch
from runyard.reasons import Reason
from runyard.spec.run import PodRef

_LOOK_S = 60.0  # who has heard nothing for so long asks itself
_ENDING_LOOK_S = 10.0  # and more often of a pod that is to be gone
_WHY_S = 10.0  # how long a pod with a node may say nothing before the cluster's events are read


class Follow:
    def __init__(
        self,
        api: Api,
        watch: Watch,
        pod: PodRef,
        *,
        check: Callable[[Seen], None],
        patience: Patience,
        report: Report,
    ) -> None:
        """``check`` raises Fenced when the pod is another caretaker's."""
        self._api = api
        self._watch = watch
        self._pod = pod
        self._check = check
        self._patience = patience
        self._report = report
        self._told = ""
        self._faults: dict[str, float] = {}  # since when, by our clock
        self._ran_since: float | None = None
        self._heard = 0.0
        self._warning = ""

    async def until_ended(self, news: asyncio.Event) -> Ended:
        self._heard = _clock()
        while True:
            news.clear()
            seen = self._watch.find(self._pod.uid)
            if seen is None:
                return Ended(gone=True, message="the pod is not there")
            self._check(seen)
            verdict = judge(seen.body, gone=seen.gone, now=self._api.now(), patience=self._patience)
            self._tell(verdict, seen)
            left_s = self._left(verdict)
            if left_s <= 0 and verdict.ended is not None and not await self._must_end(verdict, seen):
                return verdict.ended
            left_s = min(left_s if left_s > 0 else _LOOK_S, await self._deadline(verdict, seen))
            silent = verdict.state == "pending" and bool(fields.text(seen.body, "spec", "nodeName"))
            if not await self._wait(news, seen, min(left_s, _WHY_S) if silent else left_s) and silent:
                await self._ask_why()

    async def _must_end(self, verdict: Verdict, seen: Seen) -> bool:
        """Whether main still runs, and so has to be ended first; then it is asked to."""
        if not verdict.main_runs or verdict.ended is None:
            return False
        if not seen.note(names.ENDING):
            reason = verdict.ended.reason or Reason.INTERNAL
            await self._end(seen, reason, verdict.ended.message)
        return True

    async def _end(self, seen: Seen, reason: Reason, message: str) -> None:
        await end_pod(self._api, self._watch, seen, reason, message, grace_s=0)

    def _left(self, verdict: Verdict) -> float:
        """Seconds until the verdict holds."""
        if verdict.ended is None:
            self._faults.clear()
            return _LOOK_S
        since = self._faults.setdefault(verdict.fault, _clock())
        return verdict.patience_s - (_clock() - since)

    async def _deadline(self, verdict: Verdict, seen: Seen) -> float:
        """Seconds until main has run for as long as it may; at zero it is asked to end."""
        limit_s = fields.seconds(seen.body, "metadata", "annotations", names.DEADLINE)
        if limit_s is None or verdict.state != "running" or seen.note(names.ENDING):
            return _LOOK_S
        if self._ran_since is None:
            self._ran_since = _clock() - self._ran_before(seen)
        left_s = limit_s - (_clock() - self._ran_since)
        if left_s > 0:
            return left_s
        await self._end(seen, Reason.TIMEOUT_RUN, f"ran longer than {limit_s:g} s")
        return _LOOK_S

    def _ran_before(self, seen: Seen) -> float:
        """How long main has run already when this caretaker first sees it run."""
        for each in fields.parts(seen.body, "status", "containerStatuses"):
            started = fields.moment(each, "state", "running", "startedAt")
            if fields.text(each, "name") == names.MAIN and started is not None:
                # both are whole seconds; the news of a start is a second old as a rule, and not worth a cut
                return max(0.0, (self._api.now() - started).total_seconds() - 2)
        return 0.0

    def _tell(self, verdict: Verdict, seen: Seen) -> None:
        message = verdict.message
        if verdict.state == "pending" and self._warning:
            message = f"{message}; {self._warning}"
        if self._watch.trouble and verdict.state != "ended":
            message = f"{message} ({self._watch.trouble})"
        state = verdict.state
        if state == "ended" and (verdict.patience_s or verdict.main_runs):  # not yet
            state = "running" if verdict.begun else "pending"
        node = fields.text(seen.body, "spec", "nodeName")
        if self._told != f"{state} {node} {message}":
            self._told = f"{state} {node} {message}"
            self._report(Progress(state=state, message=message or state, node=node))

    async def _ask_why(self) -> None:
        """The cluster's last warning: volumes that cannot be mounted, say, are in no status."""
        with contextlib.suppress(Refused, ExecutorError):  # it is only for people; we may have no right to it
            page = await self._api.page("events", fieldSelector=f"involvedObject.uid={self._pod.uid}")
            warnings = [each for each in fields.parts(page, "items") if fields.text(each, "type") == "Warning"]
            if warnings:
                last = max(warnings, key=lambda each: fields.text(each, "lastTimestamp"))
                self._warning = f"{fields.text(last, 'reason')}: {fields.text(last, 'message')}"[:500]

    async def _wait(self, news: asyncio.Event, seen: Seen, left_s: float) -> bool:
        """For news, or until it is time to look; whether there was news."""
        ending = bool(fields.text(seen.body, "metadata", "deletionTimestamp"))
        try:
            async with asyncio.timeout(max(0.01, min(left_s, _ENDING_LOOK_S if ending else _LOOK_S))):
                await news.wait()
            self._heard = _clock()
            return True
        except TimeoutError:
            if _clock() - self._heard >= (_ENDING_LOOK_S if ending else _LOOK_S):
                self._heard = _clock()
                latest = await look(self._api, self._watch, self._pod.name)
                if latest is None or latest.uid != self._pod.uid:
                    self._watch.dismiss(self._pod.uid)
            return False


def _clock() -> float:
    return asyncio.get_running_loop().time()
