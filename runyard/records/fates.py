"""Which runs still hold what they refer to, and which are over.

A run that has not ended holds everything, whatever its age; so does one that is pinned, and one whose record or
runid object we cannot read (a newer version's, perhaps). One that has ended holds things for as long as the
retention says, counted from its end. Where nobody knows a run any more (its record never came to be, and
Temporal has forgotten it), the time of its runid object stands for its end. A run that was imported holds things
as if it had ended at that moment.

That a run is over is found out for each page of a listing anew, *after* its runid objects were seen: an id that
was free a moment ago may have been given to a new run since.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from runyard.errors import Corrupt, NotFound
from runyard.records.bounded import for_each
from runyard.records.runs import read_result
from runyard.records.sharing import exists
from runyard.spec.cleanup import Retention, SharedKind
from runyard.spec.run import RunView
from runyard.store import paths
from runyard.store.base import ObjectStore

Kind = Literal[SharedKind, "runs"]

OPEN, PINNED, UNREADABLE, YOUNG, UNKNOWN = (
    "their run is open",
    "their run is pinned",
    "their run cannot be read: of another version, perhaps",
    "within retention",
    "their run is not known, but they are young",
)


_REMEMBERED = 20_000


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What Temporal knows of a run. Open: ``open``; closed: since ``closed_at``; neither: it does not know it."""

    open: bool = False
    closed_at: datetime | None = None


Ask = Callable[[Sequence[str]], Awaitable[Mapping[str, RunStatus]]]
"""Asks Temporal about runs, by id. Not to get an answer is an error, never "unknown"."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """When a run that has ended lets go: by its age at ``now``, or by who came after it.

    ``cutoffs``: of these groups only runs that ended after this; ``oldest``: the same for all runs.
    """

    retention: Retention
    now: datetime
    cutoffs: Mapping[str, datetime] = field(default_factory=dict)
    oldest: datetime | None = None

    def is_over(self, kind: Kind, ended_at: datetime, group: str = "") -> bool:
        """Whether what a run of this end has of this kind may go."""
        if self.oldest is not None and ended_at < self.oldest:
            return True
        if group in self.cutoffs and ended_at < self.cutoffs[group]:
            return True
        limit_s = self._limit_s(kind)
        return limit_s is not None and self.now - ended_at >= timedelta(seconds=limit_s)

    def _limit_s(self, kind: Kind) -> float | None:
        keep = self.retention
        own_s = {
            "logs": keep.logs_s,
            "archives": keep.archives_s,
            "snapshots": keep.archives_s,
            "runs": keep.runs_s,
        }
        limits_s = [each for each in (own_s[kind], keep.runs_s) if each is not None]
        return min(limits_s, default=None)


class Judge:
    """Decides for a page of a listing at a time. ``remove`` are runs that somebody wants to be gone."""

    def __init__(
        self, store: ObjectStore, rules: Rules, ask: Ask, *, remove: Sequence[str] = (), at_once: int = 16
    ) -> None:
        self._store = store
        self._rules = rules
        self._ask = ask
        self._remove = frozenset(remove)
        self._at_once = at_once
        self._young: set[tuple[Kind, str]] = set()

    async def why_kept(self, kind: Kind, seen: Mapping[str, datetime]) -> dict[str, str]:
        """For each run why it holds things of this kind; empty = it does not.

        ``seen``: when something of the run's was written, the latest that was seen of it.
        """
        answers = {run_id: YOUNG for run_id in seen if (kind, run_id) in self._young}
        ids = [run_id for run_id in seen if run_id not in answers]
        views = dict(zip(ids, await for_each(ids, self._read, limit=self._at_once), strict=True))
        doubtful = []
        for run_id, view in views.items():
            if view == UNREADABLE:
                answers[run_id] = UNREADABLE
            elif isinstance(view, RunView) and run_id not in self._remove and not self._may_go(kind, view):
                answers[run_id] = YOUNG
                self._remember(kind, run_id)
            else:
                doubtful.append(run_id)
        known = await self._ask(doubtful) if doubtful else {}
        pinned = await for_each(doubtful, self._is_pinned, limit=self._at_once)
        for run_id, is_pinned in zip(doubtful, pinned, strict=True):
            view = views[run_id]
            ended = view if isinstance(view, RunView) else None
            answers[run_id] = self._why(kind, run_id, known[run_id], ended, seen[run_id], pinned=is_pinned)
        return answers

    def _remember(self, kind: Kind, run_id: str) -> None:
        """That something stays may be a while old; that it goes may not, and is never remembered."""
        if len(self._young) >= _REMEMBERED:
            self._young.clear()
        self._young.add((kind, run_id))

    def _may_go(self, kind: Kind, view: RunView) -> bool:
        end = end_of(view)
        return end is not None and self._rules.is_over(kind, end, group_of(view))

    def _why(
        self, kind: Kind, run_id: str, status: RunStatus, view: RunView | None, seen: datetime, *, pinned: bool
    ) -> str:
        if status.open:
            return OPEN
        if pinned:
            return PINNED
        if run_id in self._remove:
            return ""
        ended_at = (end_of(view) if view else None) or status.closed_at
        if ended_at is None and self._rules.now - seen < timedelta(seconds=self._rules.retention.unknown_s):
            return UNKNOWN
        is_over = self._rules.is_over(kind, ended_at or seen, group_of(view) if view else "")
        return "" if is_over else YOUNG

    async def _read(self, run_id: str) -> RunView | str:
        try:
            return await read_result(self._store, run_id)
        except NotFound:
            return ""
        except Corrupt:
            return UNREADABLE

    async def _is_pinned(self, run_id: str) -> bool:
        return await exists(self._store, paths.keep(run_id))


def end_of(view: RunView) -> datetime | None:
    """From when on its retention counts: one that was imported has only come then."""
    return view.ended_at and max(view.ended_at, view.imported_at or view.ended_at)


def group_of(view: RunView) -> str:
    """The group that a run counts for when only so many of a group stay: without one, its project."""
    return view.group or view.project
