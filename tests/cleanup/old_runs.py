"""Runs in a store as they look when they have ended so and so long ago, and a cleanup of the store alone."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from runyard.records.expiry import How, expire_items, expire_runs
from runyard.records.fates import Judge, Rules, RunStatus
from runyard.records.runs import write_plan, write_result, write_runids
from runyard.records.survey import find_cutoffs, find_oldest
from runyard.spec.cleanup import CleanupReport, Retention, SharedKind
from runyard.spec.plan import Container, Plan, RunPlan, TaskPlan
from runyard.spec.run import RunView
from runyard.store import paths
from runyard.store.base import ObjectStore

NOW = datetime.now(UTC)
SHARED: tuple[SharedKind, ...] = ("logs", "archives", "snapshots")


async def put_run(
    store: ObjectStore,
    run_id: str,
    *,
    tasks: Sequence[str],
    days_ago: float | None = 0,
    kept: Sequence[str] = (),
    group: str = "",
) -> None:
    """A run whose ``tasks`` left two logs and two archives each; ``kept`` are another's. None: no result."""
    await write_runids(store, run_id, logs=[*tasks, *kept], archives=[*tasks, *kept])
    plan = [TaskPlan(id=task, name=task, containers=[Container(image="none")]) for task in (*tasks, *kept)]
    await write_plan(store, Plan(run=RunPlan(run_id=run_id, name="old", group=group), tasks=plan))
    for task in tasks:
        await store.put(paths.seal(task, 1), b"{}")
        await store.put(paths.step_log(task, 1, 0), b"said\n")
        await store.put(f"{paths.archives(task)}0.json", b"{}")
        await store.put(f"{paths.archives(task)}0.tar.gz", b"x" * 100)
    if days_ago is not None:
        ended = NOW - timedelta(days=days_ago)
        view = RunView(id=run_id, phase="finished", result="success", group=group, ended_at=ended)
        await write_result(store, view)


def knowing(**statuses: RunStatus) -> "Knowing":
    return Knowing(statuses)


class Knowing:
    """What Temporal would answer; of other runs it knows nothing."""

    def __init__(self, statuses: Mapping[str, RunStatus]) -> None:
        self._statuses = statuses
        self.asked: list[str] = []

    async def ask(self, ids: Sequence[str]) -> Mapping[str, RunStatus]:
        self.asked += ids
        return {each: self._statuses.get(each, RunStatus()) for each in ids}


async def clean(
    store: ObjectStore,
    retention: Retention | None = None,
    *,
    knows: Knowing | None = None,
    now: datetime = NOW,
    dry_run: bool = False,
) -> CleanupReport:
    """All that a cleanup does to what is shared, and to records."""
    keep = retention or Retention()
    rules = Rules(
        retention=keep,
        now=now,
        cutoffs=await find_cutoffs(store, runs_per_group=keep.runs_per_group) if keep.runs_per_group else {},
        oldest=None if keep.total_bytes is None else await find_oldest(store, total_bytes=keep.total_bytes),
    )
    judge, report = Judge(store, rules, (knows or knowing()).ask), CleanupReport()
    how = How(dry_run=dry_run)
    for kind in SHARED:
        async for page in expire_items(store, kind, judge, how):
            report = report.plus(page.report)
    async for page in expire_runs(store, judge, how):
        report = report.plus(page.report)
    return report


async def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    """All but the mark of a complete index, which says nothing of any run."""
    return [info.key async for info in store.list(prefix) if info.key != paths.ENDED_WHOLE]
