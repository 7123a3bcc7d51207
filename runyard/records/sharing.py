"""Data that several runs share, and the one way to be rid of it.

A shared *item* is a prefix: a task's logs, its archives, a snapshot of a checkout. ``<item>/data/`` is what is
shared, ``<item>/runs/<run>`` says that a run refers to it, ``<item>/tombstone`` that it is given up.

A run refers, then looks for a tombstone. A cleanup writes a tombstone, then looks for runs. So of two that come at
the same moment one always sees the other. Three rules carry it:

1. *The tombstone is final.* Nobody takes it away before all data are gone, also where the cleanup that wrote it
   saw a run at its second look and left the data to that one. To take it away then was turned down: another
   cleanup (an activity that stalled, was given up and retried, and now goes on) may have looked before that run
   came and be deleting; without the tombstone the next run would think that it has the data. tests/cleanup finds
   that in no time.
2. *Nobody waits.* A run that finds a tombstone does without the data: it runs the task again. A cleanup may be
   dead, or its next one a day away.
3. *A name is used once.* After its data were deleted nothing is ever written below the item again: task ids are
   made of an execution's id, and whoever stores something by its content adds something of the run to the name.
   So a delete that comes late deletes nothing.

A run that was refused leaves its runid object: another try of the same activity may have been told the opposite a
moment ago, and what it was told must stay true.

Locks and leases were turned down: a paused holder does not know that its time is over, and no store can make a
delete depend on another object. So was a count of references: it cannot be mended after a crash by looking.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from runyard.errors import Conflict, NotFound
from runyard.records.bounded import for_each
from runyard.store import paths
from runyard.store.base import ObjectInfo, ObjectStore

BATCH = 1_000
"""So many keys of one item are held at a time."""

Pace = Callable[[int], Awaitable[None]]
"""Called before so many objects are deleted; waits as long as it takes to keep to the rate."""


async def no_pace(_: int) -> None:
    """As fast as it goes."""


@dataclass
class Deleted:
    """What went: objects and their bytes."""

    objects: int = 0
    bytes: int = 0

    def add(self, infos: list[ObjectInfo]) -> None:
        self.objects += len(infos)
        self.bytes += sum(info.size for info in infos)


@dataclass(kw_only=True)
class Found:
    """An item as a listing shows it. ``objects`` and ``bytes`` are of its data."""

    item: str
    runids: list[ObjectInfo] = field(default_factory=list)
    objects: int = 0
    bytes: int = 0
    tombstone: bool = False

    def add(self, info: ObjectInfo) -> None:
        if info.key.startswith(paths.runids(self.item)):
            self.runids.append(info)
        elif info.key == paths.tombstone(self.item):
            self.tombstone = True
        else:
            self.objects += 1
            self.bytes += info.size


# runs


async def refer(store: ObjectStore, item: str, run_id: str) -> bool:
    """Say that this run refers to the item; False where the item is given up. Every failure is raised."""
    await store.put(paths.runid(item, run_id), b"")
    return not await exists(store, paths.tombstone(item))


async def claim_kept(store: ObjectStore, run_id: str, item: str) -> bool:
    """Refer to data that another run made. True: they are there, and stay as long as this run refers to them.

    False: they are gone or about to go. Whether they are whole is for the caller to judge, after this.
    """
    return await refer(store, item, run_id) and await has_any(store, paths.data(item))


async def claim_new(store: ObjectStore, run_id: str, item: str) -> None:
    """Refer to an item whose data this run is going to write. Raises Conflict where it is given up."""
    if not await refer(store, item, run_id):
        raise Conflict(
            f"the data at `{item}` are being removed by a cleanup: this run had ended, or was unknown, before",
            remedy="Start the run anew instead of resetting it.",
        )


# cleanup


async def walk(store: ObjectStore, kind: str, *, start_after: str = "") -> AsyncIterator[Found]:
    """The items of a kind (`paths.LOGS`, ...), in order, after the key ``start_after``; one is held at a time."""
    found: Found | None = None
    async for info in store.list(kind, start_after=start_after):
        item = paths.item_of(info.key)
        if item is None:
            continue
        if found is None or found.item != item:
            if found is not None:
                yield found
            found = Found(item=item)
        found.add(info)
    if found is not None:
        yield found


async def release(
    store: ObjectStore, runids: list[ObjectInfo], *, pace: Pace = no_pace, at_once: int = 16
) -> None:
    """Delete runid objects: the runs no longer refer to the item."""
    await _delete(store, runids, pace=pace, at_once=at_once)


async def sweep(store: ObjectStore, item: str, *, pace: Pace = no_pace, at_once: int = 16) -> Deleted | None:
    """Delete the item's data if no run refers to it; None if one does. Safe to call from several at once."""
    if await is_referred(store, item):  # a tombstone is final: not for nothing
        return None
    await store.put(paths.tombstone(item), b"")
    if await is_referred(store, item):
        return None
    deleted = await delete_data(store, item, pace=pace, at_once=at_once)
    await store.delete(paths.tombstone(item))
    return deleted


async def is_referred(store: ObjectStore, item: str) -> bool:
    """Whether any runid object is there, of whatever form."""
    return await has_any(store, paths.runids(item))


async def delete_data(store: ObjectStore, item: str, *, pace: Pace = no_pace, at_once: int = 16) -> Deleted:
    """All of the item's data. Of what is listed together records go before what they speak of."""
    deleted = Deleted()
    async for batch in _batches(store.list(paths.data(item))):
        batch.sort(key=lambda info: not info.key.endswith(".json"))
        records = sum(info.key.endswith(".json") for info in batch)
        for part in (batch[:records], batch[records:]):
            await _delete(store, part, pace=pace, at_once=at_once)
        deleted.add(batch)
    return deleted


# both


async def exists(store: ObjectStore, key: str) -> bool:
    try:
        await store.stat(key)
    except NotFound:
        return False
    return True


async def has_any(store: ObjectStore, prefix: str) -> bool:
    """Whether there is an object below a prefix."""
    async for _ in store.list(prefix):
        return True
    return False


async def _delete(store: ObjectStore, infos: list[ObjectInfo], *, pace: Pace, at_once: int) -> None:
    async def delete(info: ObjectInfo) -> None:
        await pace(1)
        await store.delete(info.key)

    await for_each(infos, delete, limit=at_once)


async def _batches(infos: AsyncIterator[ObjectInfo]) -> AsyncIterator[list[ObjectInfo]]:
    batch: list[ObjectInfo] = []
    async for info in infos:
        batch.append(info)
        if len(batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
