"""Caches that nobody has used for long, or that are too much for their group; and halves of caches.

Caches are not shared items: a task that wanted one that is gone makes it anew, so there is nothing to protect but
the order, record before archive, in which nobody is sent to an archive that is not there.
"""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

from runyard.records.caches import RECORD, USED, CacheEntry, list_caches, list_groups
from runyard.records.expiry import AFTER_ALL, How, Ledger, Page
from runyard.records.sharing import release
from runyard.spec.cleanup import Retention
from runyard.store import paths
from runyard.store.base import ObjectInfo, ObjectStore

YOUNG = "caches in use"
UNFINISHED_S = 8 * 24 * 3600.0
"""So long a writer may take between an archive and its record: in a pod that comes when the task has ended."""


async def expire_caches(
    store: ObjectStore, retention: Retention, how: How, *, now: datetime, start_after: str = ""
) -> AsyncIterator[Page]:
    """A group is a page."""
    for group in await list_groups(store):
        cursor = paths.cache_group(group)[:-1] + AFTER_ALL
        if cursor > start_after:
            yield Page(cursor=cursor, report=(await _expire_group(store, group, retention, how, now)).report())


async def _expire_group(store: ObjectStore, group: str, retention: Retention, how: How, now: datetime) -> Ledger:
    ledger = Ledger("caches")
    prefix = paths.cache_group(group)
    infos = {info.key.removeprefix(prefix): info async for info in store.list(prefix)}
    entries = sorted(await list_caches(store, group), key=lambda entry: entry.used, reverse=True)
    whole = [entry for entry in entries if _record(entry) in infos]
    room = retention.cache_bytes
    for entry in whole:
        room = None if room is None else room - entry.size
        if _is_old(entry.used, retention.caches_s, now) or (room is not None and room < 0):
            parts = [infos[name] for name in _names(entry) if name in infos]
            await _remove(store, f"{group} {entry.key}", parts, ledger, how)
        else:
            ledger.kept(YOUNG)
    in_use = {name for entry in whole for name in _names(entry)}
    for name, info in infos.items():
        if name not in in_use and _is_old(info.modified_at, UNFINISHED_S, now):
            await _remove(store, f"{group} {name}", [info], ledger, how)
    return ledger


async def _remove(store: ObjectStore, name: str, parts: list[ObjectInfo], ledger: Ledger, how: How) -> None:
    if not how.dry_run:
        for part in parts:  # in this order
            await release(store, [part], pace=how.pace)
    ledger.gone(name, objects=len(parts), size_bytes=sum(info.size for info in parts))


def _record(entry: CacheEntry) -> str:
    return paths.escape(entry.key) + RECORD


def _names(entry: CacheEntry) -> tuple[str, str, str]:
    """The record first: nobody is sent to an archive that is gone."""
    return _record(entry), entry.file, paths.escape(entry.key) + USED


def _is_old(at: datetime, limit_s: float | None, now: datetime) -> bool:
    return limit_s is not None and now - at >= timedelta(seconds=limit_s)
