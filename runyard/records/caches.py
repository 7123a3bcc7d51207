"""The entries of cache groups, for those who look after them: list, look at, remove.

An entry is an archive and its record beside it, both named by the escaped key. Agents write and read them without
our help; that an entry was used shows in the time of the record, which a restore sets anew where it may write.
"""

from collections.abc import Iterable
from datetime import datetime

from runyard.errors import NotFound
from runyard.model import Model
from runyard.store import paths
from runyard.store.base import ObjectInfo, ObjectStore

_RECORD = ".json"
_ENDINGS = (".tar.zst", ".tar.gz", ".tar")


class CacheEntry(Model):
    """``size`` in bytes, of the archive; ``created`` and last ``used`` in UTC."""

    group: str
    key: str
    file: str
    size: int
    created: datetime
    used: datetime


async def list_groups(store: ObjectStore) -> list[str]:
    """The groups that have entries: one look for each, not through all entries."""
    groups, after = [], ""
    while True:
        async for info in store.list(paths.CACHES, start_after=after):
            part = info.key.split("/")[1]
            groups.append(paths.unescape(part))
            after = f"{paths.CACHES}{part}/\U0010ffff"
            break
        else:
            return groups


async def list_caches(store: ObjectStore, group: str) -> list[CacheEntry]:
    """The entries of a group, by key. A record without its archive is none."""
    found: dict[str, list[ObjectInfo]] = {}
    prefix = paths.cache_group(group)
    async for info in store.list(prefix):
        found.setdefault(_stem(info.key.removeprefix(prefix)), []).append(info)
    entries = [_entry(group, prefix, stem, infos) for stem, infos in found.items()]
    return sorted((entry for entry in entries if entry), key=lambda entry: entry.key)


async def stat_cache(store: ObjectStore, group: str, key: str) -> CacheEntry:
    """One entry. Raises NotFound."""
    prefix, stem = paths.cache_group(group), paths.escape(key)
    infos = [info for info in await _objects(store, prefix + stem) if _stem(info.key[len(prefix) :]) == stem]
    entry = _entry(group, prefix, stem, infos)
    if entry is None:
        raise NotFound(f"cache group {group} has no entry `{key}`")
    return entry


async def remove_cache(store: ObjectStore, group: str, key: str) -> None:
    """Remove an entry: the record first, so that nobody is sent to an archive that is gone. Raises NotFound."""
    entry = await stat_cache(store, group, key)
    prefix = paths.cache_group(group)
    await store.delete(prefix + paths.escape(key) + _RECORD)
    await store.delete(prefix + entry.file)


async def _objects(store: ObjectStore, prefix: str) -> list[ObjectInfo]:
    return [info async for info in store.list(prefix + ".")]


def _stem(name: str) -> str:
    """The escaped key: keys have dots of their own, so only our endings are cut off."""
    ending = next((each for each in (*_ENDINGS, _RECORD) if name.endswith(each)), "")
    return name.removesuffix(ending)


def _entry(group: str, prefix: str, stem: str, infos: Iterable[ObjectInfo]) -> CacheEntry | None:
    there = list(infos)
    archive = next((info for info in there if info.key.endswith(_ENDINGS)), None)
    if archive is None:
        return None
    times = [info.modified_at for info in there]
    return CacheEntry(
        group=group,
        key=paths.unescape(stem),
        file=archive.key.removeprefix(prefix),
        size=archive.size,
        created=min(times),
        used=max(times),
    )
