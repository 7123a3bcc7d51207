"""What a cleanup does to shared items and to runs' records, a page at a time.

It walks the items and not the runs: so it finds what a crash left, and what refers to runs that are not there any
more, without looking for it, and it needs no order between a run's parts that a crash could break. The price is a
listing of everything, which is what an object store does best (1,000 keys a request).
"""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from runyard.errors import Corrupt, NotFound
from runyard.records.bounded import for_each
from runyard.records.ended import key_of
from runyard.records.fates import UNREADABLE, Judge
from runyard.records.runs import read_result
from runyard.records.sharing import Deleted, Found, Pace, delete_all, no_pace, release, sweep, walk
from runyard.spec.cleanup import EXAMPLES, CleanupReport, SharedKind, Tally
from runyard.store import paths
from runyard.store.base import ObjectInfo, ObjectStore

PAGE = 500
JUST_NOW = "a run has just referred to them"
STRETCH, NEAR = 100, 20
"""So many items are swept together, where no more than so many keys of others lie between two of them."""

AFTER_ALL = "/\U0010ffff"
"""Behind all keys of an item or a run."""

_PREFIX: dict[SharedKind, str] = {"logs": paths.LOGS, "archives": paths.ARCHIVES, "snapshots": paths.SNAPSHOTS}


@dataclass(frozen=True, kw_only=True)
class How:
    """``at_once``: calls of the store under way. With ``dry_run`` nothing is deleted."""

    dry_run: bool = False
    pace: Pace = no_pace
    at_once: int = 32


@dataclass(frozen=True, kw_only=True)
class Page:
    """What was done with a page, and the key after which the next one begins."""

    cursor: str
    report: CleanupReport


class Ledger:
    """Counts what is done, for a report."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._items = self._objects = self._bytes = 0
        self._names: list[str] = []
        self._kept: dict[str, int] = {}

    def gone(self, name: str, *, objects: int, size_bytes: int) -> None:
        self._items += 1
        self.part(objects)
        self._bytes += size_bytes
        if len(self._names) < EXAMPLES:
            self._names.append(name)

    def part(self, objects: int) -> None:
        """Objects of something that stays."""
        self._objects += objects

    def kept(self, why: str) -> None:
        self._kept[why] = self._kept.get(why, 0) + 1

    def report(self) -> CleanupReport:
        tally = Tally(items=self._items, objects=self._objects, bytes=self._bytes)
        return CleanupReport(
            deleted={self._kind: tally} if tally != Tally() else {},
            examples={self._kind: self._names} if self._names else {},
            kept=self._kept,
        )


async def expire_items(
    store: ObjectStore, kind: SharedKind, judge: Judge, how: How, *, start_after: str = ""
) -> AsyncIterator[Page]:
    """Let go of what runs that are over refer to, and delete what nobody refers to any more."""
    page: list[Found] = []
    async for found in walk(store, _PREFIX[kind], start_after=start_after):
        page.append(found)
        if len(page) >= PAGE:
            yield await expire_page(store, kind, page, judge, how)
            page = []
    if page:
        yield await expire_page(store, kind, page, judge, how)


async def expire_item(store: ObjectStore, kind: SharedKind, item: str, judge: Judge, how: How) -> CleanupReport:
    """The same for one item."""
    async for found in walk(store, f"{item}/"):
        return (await expire_page(store, kind, [found], judge, how)).report
    return CleanupReport()


async def expire_runs(store: ObjectStore, judge: Judge, how: How, *, start_after: str = "") -> AsyncIterator[Page]:
    """Delete the records of runs that are over."""
    page: dict[str, list[ObjectInfo]] = {}
    async for info in store.list(paths.RUNS, start_after=start_after):
        run_id = paths.unescape(info.key.split("/")[1])
        if run_id not in page and len(page) >= PAGE:
            yield await _expire_records(store, page, judge, how)
            page = {}
        page.setdefault(run_id, []).append(info)
    if page:
        yield await _expire_records(store, page, judge, how)


async def expire_run(store: ObjectStore, run_id: str, judge: Judge, how: How) -> CleanupReport:
    """The same for the record of one run."""
    infos = [info async for info in store.list(paths.run(run_id))]
    return (await _expire_records(store, {run_id: infos}, judge, how)).report if infos else CleanupReport()


async def expire_page(store: ObjectStore, kind: SharedKind, page: Sequence[Found], judge: Judge, how: How) -> Page:
    seen: dict[str, datetime] = {}
    for found in page:
        for info in found.runids:
            if run_id := _run_of(found, info):
                seen[run_id] = max(info.modified_at, seen.get(run_id, info.modified_at))
    whys = await judge.why_kept(kind, seen)
    ledger = Ledger(kind)
    verdicts = [_verdict_on(found, whys) for found in page]
    if not how.dry_run:
        over = [info for verdict in verdicts for info in verdict.over]
        await release(store, over, pace=how.pace)

    async def expire(stretch: Sequence[_Verdict]) -> dict[str, Deleted]:
        if how.dry_run:
            return {each.item: Deleted(objects=each.found.objects, bytes=each.found.bytes) for each in stretch}
        return await sweep(store, [each.item for each in stretch], pace=how.pace)

    gone: dict[str, Deleted] = {}
    for swept in await for_each(_stretches(verdicts), expire, limit=how.at_once):
        gone |= swept
    for verdict in verdicts:
        verdict.enter(ledger, gone.get(verdict.item))
    return Page(cursor=page[-1].item + AFTER_ALL, report=ledger.report())


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """``over``: the runid objects to delete; ``why``: what keeps the item, "" where nothing does."""

    found: Found
    over: list[ObjectInfo]
    why: str

    @property
    def item(self) -> str:
        return self.found.item

    def enter(self, ledger: Ledger, deleted: Deleted | None) -> None:
        if deleted is None:
            ledger.part(len(self.over))
            ledger.kept(self.why or JUST_NOW)
        else:
            ledger.gone(self.item, objects=len(self.over) + deleted.objects, size_bytes=deleted.bytes)


def _verdict_on(found: Found, whys: Mapping[str, str]) -> _Verdict:
    reasons = {info.key: whys.get(_run_of(found, info), UNREADABLE) for info in found.runids}
    over = [info for info in found.runids if not reasons[info.key]]
    return _Verdict(found=found, over=over, why=next((reason for reason in reasons.values() if reason), ""))


def _stretches(verdicts: Sequence[_Verdict]) -> list[list[_Verdict]]:
    """Items that nothing keeps, in groups of neighbours: what is listed with them in vain is not much more."""
    stretches: list[list[_Verdict]] = []
    between = 0
    for verdict in verdicts:
        if verdict.why:
            between += verdict.found.objects + len(verdict.found.runids)
            continue
        if not stretches or between > NEAR or len(stretches[-1]) >= STRETCH:
            stretches.append([])
        stretches[-1].append(verdict)
        between = 0
    return stretches


async def _expire_records(store: ObjectStore, page: dict[str, list[ObjectInfo]], judge: Judge, how: How) -> Page:
    whys = await judge.why_kept(
        "runs", {run_id: max(i.modified_at for i in infos) for run_id, infos in page.items()}
    )
    ledger = Ledger("runs")

    over = [run_id for run_id in page if not whys[run_id]]
    if not how.dry_run:
        await _delete_records(store, {run_id: page[run_id] for run_id in over}, how)
    for run_id in over:
        infos = page[run_id]
        ledger.gone(run_id, objects=len(infos), size_bytes=sum(info.size for info in infos))
    for why in filter(None, whys.values()):
        ledger.kept(why)
    return Page(cursor=paths.run(list(page)[-1])[:-1] + AFTER_ALL, report=ledger.report())


async def _delete_records(store: ObjectStore, records: Mapping[str, list[ObjectInfo]], how: How) -> None:
    """Of each run its entry in the index first, since where that is only the result says.

    The result comes last: it says that the run has ended, and when, for a cleanup that goes on.
    """
    entries = await for_each(list(records), lambda run_id: _entry_of(store, run_id), limit=how.at_once)
    await delete_all(store, [key for key in entries if key], pace=how.pace)
    lasts = {paths.result(run_id) for run_id in records}
    keys = [info.key for infos in records.values() for info in infos]
    await delete_all(store, [key for key in keys if key not in lasts], pace=how.pace)
    await delete_all(store, [key for key in keys if key in lasts], pace=how.pace)


async def _entry_of(store: ObjectStore, run_id: str) -> str | None:
    with contextlib.suppress(NotFound, Corrupt):
        return key_of(await read_result(store, run_id))
    return None


def _run_of(found: Found, info: ObjectInfo) -> str:
    """The run that a runid object is of; "" where it has another form than ours: it is then never let go."""
    name = info.key.removeprefix(paths.runids(found.item))
    return paths.unescape(name) if info.size == 0 and "/" not in name else ""
