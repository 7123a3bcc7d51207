"""The entries of cache groups, for those who look after them: list, look at, remove.

An entry is an archive and its record beside it, both named by the escaped key. Where agents have a folder they
write and read them without our help; that an entry was used shows in the time of the record, which a restore sets
anew. In pods an archive has a name of its own, ``<key>!<16 hex digits>.tar.zst``, and is an entry once there is a
record that names it (see runyard.records.podcaches); that it was used shows in the time of ``<key>.used``.
"""

from collections.abc import Sequence
from datetime import datetime

from pydantic import ValidationError

from runyard.errors import NotFound
from runyard.model import Model
from runyard.store import paths
from runyard.store.base import ObjectInfo, ObjectStore, read

RECORD = ".json"
USED = ".used"
ENDINGS = (".tar.zst", ".tar.gz", ".tar")


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
    found = await _by_key(store, group)
    entries = [await _entry(store, group, stem, infos) for stem, infos in found.items()]
    return sorted((entry for entry in entries if entry), key=lambda entry: entry.key)


async def list_leftovers(store: ObjectStore, group: str) -> list[ObjectInfo]:
    """What belongs to no entry: archives of tasks that never ended or came second, records without an archive.

    An archive waits for its record until its task has ended: only what is older than any task is debris.
    """
    prefix = paths.cache_group(group)
    leftovers = []
    for stem, infos in (await _by_key(store, group)).items():
        entry = await _entry(store, group, stem, infos)
        kept = {prefix + stem + RECORD, prefix + stem + USED, prefix + entry.file} if entry else set()
        leftovers += [info for info in infos if info.key not in kept]
    return leftovers


async def stat_cache(store: ObjectStore, group: str, key: str) -> CacheEntry:
    """One entry. Raises NotFound."""
    prefix, stem = paths.cache_group(group), paths.escape(key)
    infos = [info for mark in ".!" async for info in store.list(prefix + stem + mark)]
    infos = [info for info in infos if _stem(info.key[len(prefix) :]) == stem]
    entry = await _entry(store, group, stem, infos)
    if entry is None:
        raise NotFound(f"cache group {group} has no entry `{key}`")
    return entry


async def remove_cache(store: ObjectStore, group: str, key: str) -> None:
    """Remove an entry: the record first, so that nobody is sent to an archive that is gone. Raises NotFound."""
    entry = await stat_cache(store, group, key)
    prefix, stem = paths.cache_group(group), paths.escape(key)
    await store.delete(prefix + stem + RECORD)
    await store.delete(prefix + entry.file)
    await store.delete(prefix + stem + USED)


async def _by_key(store: ObjectStore, group: str) -> dict[str, list[ObjectInfo]]:
    """All objects of a group, by escaped key."""
    found: dict[str, list[ObjectInfo]] = {}
    prefix = paths.cache_group(group)
    async for info in store.list(prefix):
        found.setdefault(_stem(info.key.removeprefix(prefix)), []).append(info)
    return found


def _stem(name: str) -> str:
    """The escaped key: keys have dots of their own, so only our endings are cut off."""
    ending = next((each for each in (*ENDINGS, RECORD, USED) if name.endswith(each)), "")
    return name.removesuffix(ending).partition("!")[0]


async def _entry(store: ObjectStore, group: str, stem: str, there: Sequence[ObjectInfo]) -> CacheEntry | None:
    prefix = paths.cache_group(group)
    archives = {info.key.removeprefix(prefix): info for info in there if info.key.endswith(ENDINGS)}
    whole = any(info.key == prefix + stem + RECORD for info in there)
    # the archive of an agent with a folder has the name of its key, and is removed with it
    own = [name for name in archives if "!" not in name]
    named = await _named(store, prefix + stem + RECORD) if whole and len(archives) > len(own) else ""
    archive = archives.get(named or "".join(own[:1]))
    if archive is None:
        return None
    times = [info.modified_at for info in there if "!" not in info.key or info is archive]
    return CacheEntry(
        group=group,
        key=paths.unescape(stem),
        file=archive.key.removeprefix(prefix),
        size=archive.size,
        created=min(times),
        used=max(times),
    )


async def _named(store: ObjectStore, key: str) -> str:
    """The archive that a record names; empty where it cannot be read."""
    try:
        return _Named.model_validate_json(await read(store, key)).file
    except (NotFound, ValidationError):
        return ""


class _Named(Model):
    file: str
