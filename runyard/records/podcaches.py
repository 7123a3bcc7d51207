"""Caches of tasks in pods: what a worker does for agents that can neither list nor read the store.

Before: which entries they may restore, with URLs. After: an archive that an agent has brought becomes an entry by
its record, ``<key>.json``, which only one writer can make. Until then it is no entry, so nobody ever sees half
of one. Rejected: that agents write the record themselves: a presigned POST cannot say "only if absent".
"""

from collections.abc import Sequence
from datetime import datetime

from pydantic import ValidationError

from runyard.dialogue import CacheRecord, Manifest, StoredCache
from runyard.errors import Conflict, NotFound, RunyardError, StoreUnavailable
from runyard.model import Model
from runyard.records.bounded import for_each
from runyard.records.caches import ENDINGS, RECORD, USED
from runyard.store import paths
from runyard.store.base import ObjectStore, read

KNOWN_ENTRIES = 200
"""So many entries of a group does an agent hear of at most: their URLs must fit into a Secret."""


class CacheFacts(Model):
    """The record of an entry: its archive is ``file``, beside it."""

    key: str
    file: str
    size: int
    sha256: str
    files: int = 0


async def known_caches(
    store: ObjectStore, group: str, templates: Sequence[str], *, expires_s: float, fallback: bool = False
) -> list[StoredCache]:
    """The entries that ``templates`` may mean, the newest first, at most `KNOWN_ENTRIES`.

    What a template is going to be is known up to its first ``{{``. An entry whose key is a whole template is
    among them, whatever its age; an older one of a key that is computed may be left out, and counts as a miss.
    """
    prefix = paths.cache_group(group)
    found: dict[str, datetime] = {}
    sizes: dict[str, int] = {}
    for begin in _shortest({template.partition("{{")[0] for template in templates}):
        async for info in store.list(prefix + _escape_begin(begin)):
            name = info.key.removeprefix(prefix)
            if name.endswith(RECORD):
                found[name.removesuffix(RECORD)] = info.modified_at
            elif name.endswith(ENDINGS):
                sizes[name] = info.size
    whole = {paths.escape(template) for template in templates if template and "{{" not in template}
    order = sorted(found, key=lambda stem: (stem not in whole, -found[stem].timestamp()))[:KNOWN_ENTRIES]

    async def load(stem: str) -> StoredCache | None:
        facts = await _facts(store, prefix + stem + RECORD)
        if facts is None or sizes.get(facts.file) != facts.size:
            return None
        return StoredCache(
            key=facts.key,
            file=facts.file,
            source=store.source(prefix + facts.file, expires_s=expires_s),
            size=facts.size,
            sha256=facts.sha256,
            modified_at=found[stem],
            fallback=fallback,
        )

    loaded = await for_each(order, load, limit=16)
    return sorted((each for each in loaded if each), key=lambda each: each.modified_at, reverse=True)


async def settle_caches(store: ObjectStore, manifest: Manifest, *, group: str, fallback: str) -> Manifest:
    """Make entries of the archives that the agent has brought, and note which entries it has used.

    The first whole one of a key wins; the archive of any other is removed, and its outcome becomes `exists`. A
    store that refuses makes the outcome `failed`: caches fail no task. Safe to call again after a crash.
    Raises StoreUnavailable.
    """

    async def settle(record: CacheRecord) -> CacheRecord:
        if not record.file:
            return record
        try:
            if record.outcome == "saved":
                return await _commit(store, paths.cache_group(group), record)
            if record.outcome == "hit":
                used = paths.cache_group(fallback if record.fallback else group) + paths.escape(record.key) + USED
                await store.put(used, b"")
        except StoreUnavailable:
            raise
        except RunyardError as error:
            if record.outcome == "saved":
                return record.model_copy(update={"outcome": "failed", "message": error.message})
        return record

    return manifest.model_copy(update={"caches": await for_each(manifest.caches, settle, limit=8)})


async def _commit(store: ObjectStore, prefix: str, record: CacheRecord) -> CacheRecord:
    key = prefix + paths.escape(record.key) + RECORD
    if not _belongs(record):
        message = f"the agent names an archive that is not one of this key: {record.file[:100]}"
        return record.model_copy(update={"outcome": "failed", "message": message})
    try:
        there = (await store.stat(prefix + record.file)).size
    except NotFound:
        there = -1
    facts = CacheFacts(**record.model_dump(include={"key", "file", "size", "sha256", "files"}))
    if there == record.size:
        try:
            await store.put(key, facts.model_dump_json().encode(), if_absent=True)
            return record
        except Conflict:
            pass
    first = await _facts(store, key)
    if first is not None and first.file == record.file:
        return record  # our own, of a try before
    await store.delete(prefix + record.file)
    if first is not None or there == record.size:
        return record.model_copy(update={"outcome": "exists", "message": "another task was first"})
    return record.model_copy(update={"outcome": "failed", "message": "its archive is not whole in the store"})


def _belongs(record: CacheRecord) -> bool:
    stem, mark, rest = record.file.partition("!")
    return stem == paths.escape(record.key) and bool(mark) and "/" not in rest and rest.endswith(ENDINGS)


async def _facts(store: ObjectStore, key: str) -> CacheFacts | None:
    try:
        return CacheFacts.model_validate_json(await read(store, key))
    except (NotFound, ValidationError):
        return None


def _shortest(begins: set[str]) -> list[str]:
    """Without those that another one is the beginning of: their entries are listed with it."""
    return [each for each in begins if not any(each != other and each.startswith(other) for other in begins)]


def _escape_begin(begin: str) -> str:
    """Escaped as the beginning of a longer key; one of dots alone is escaped otherwise when it is whole."""
    return paths.escape(begin) if set(begin) - {"."} else ""
