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

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from runyard.errors import Conflict, NotFound
from runyard.records.bounded import for_each
from runyard.store import paths
from runyard.store.base import ObjectInfo, ObjectStore

BATCH = 1_000
"""About so many keys of data are held at a time."""

BULK = 250
"""So many objects are deleted in one call of the store, of which some go on at once."""

_AT_ONCE = 16
_SAID_AT_ONCE = 256
"""A folder makes that many runid objects with one commit; a bucket's store has fewer requests under way."""

Pace = Callable[[int], Awaitable[None]]
"""Called before so many objects are deleted; waits as long as it takes to keep to the rate."""


async def no_pace(_: int) -> None:
    """As fast as it goes."""


@dataclass(frozen=True)
class Deleted:
    """What went: objects and their bytes."""

    objects: int = 0
    bytes: int = 0


@dataclass(kw_only=True)
class Found:
    """An item as a listing shows it. ``objects`` and ``bytes`` are of its data.

    ``data``: the first `BATCH` of them, where that was asked for.
    """

    item: str
    runids: list[ObjectInfo] = field(default_factory=list)
    objects: int = 0
    bytes: int = 0
    tombstone: bool = False
    data: list[ObjectInfo] = field(default_factory=list)

    def add(self, info: ObjectInfo, *, with_data: bool = False) -> None:
        if info.key.startswith(paths.runids(self.item)):
            self.runids.append(info)
        elif info.key == paths.tombstone(self.item):
            self.tombstone = True
        else:
            self.objects += 1
            self.bytes += info.size
            if with_data and self.objects <= BATCH:
                self.data.append(info)


# runs


async def refer(store: ObjectStore, item: str, run_id: str) -> bool:
    """Say that this run refers to the item; False where the item is given up. Every failure is raised."""
    return bool(await refer_all(store, [item], run_id))


async def refer_all(
    store: ObjectStore, items: Sequence[str], run_id: str, *, said: Callable[[], None] = lambda: None
) -> set[str]:
    """The same for many: those that are not given up. All is said before the first look, each to ``said`` too."""

    async def say(item: str) -> None:
        await store.put(paths.runid(item, run_id), b"")
        said()

    await for_each(items, say, limit=_SAID_AT_ONCE)
    given_up = await store.stat_many([paths.tombstone(item) for item in items])
    return {item for item in items if paths.tombstone(item) not in given_up}


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


async def walk(
    store: ObjectStore, prefix: str, *, start_after: str = "", with_data: bool = False
) -> AsyncIterator[Found]:
    """The items below `paths.LOGS` or the like, in order, after the key ``start_after``; one is held at a time."""
    async for found in _by_item(store.list(prefix, start_after=start_after), with_data=with_data):
        yield found


async def _by_item(infos: AsyncIterator[ObjectInfo], *, with_data: bool = False) -> AsyncIterator[Found]:
    found: Found | None = None
    async for info in infos:
        item = paths.item_of(info.key)
        if item is None:
            continue
        if found is None or found.item != item:
            if found is not None:
                yield found
            found = Found(item=item)
        found.add(info, with_data=with_data)
    if found is not None:
        yield found


async def release(store: ObjectStore, runids: Sequence[ObjectInfo], *, pace: Pace = no_pace) -> None:
    """Delete runid objects: the runs no longer refer to the item."""
    await delete_all(store, [info.key for info in runids], pace=pace)


async def sweep(store: ObjectStore, items: Sequence[str], *, pace: Pace = no_pace) -> dict[str, Deleted]:
    """Delete the data of those items to which no run refers; what went of each. Safe to call from several at once.

    The items come in the order of `walk`, with little between them: they are looked at in one listing. The first
    look is for runs only: a tombstone is final, and not for nothing.
    """
    taken = {paths.item_of(info.key) async for info in store.list_many([paths.runids(item) for item in items])}
    free = [item for item in items if item not in taken]
    if not free:
        return {}
    await for_each(free, lambda item: store.put(paths.tombstone(item), b""), limit=_AT_ONCE)
    gone = await _delete_data(store, _look(store, free), pace=pace)
    await delete_all(store, [paths.tombstone(item) for item in gone])
    return gone


async def delete_all(store: ObjectStore, keys: Sequence[str], *, pace: Pace = no_pace) -> None:
    """Delete them, some at a time."""

    async def delete(at: int) -> None:
        bulk = keys[at : at + BULK]
        await pace(len(bulk))
        await store.delete_many(bulk)

    await for_each(range(0, len(keys), BULK), delete, limit=_AT_ONCE)


async def _look(store: ObjectStore, items: Sequence[str]) -> AsyncIterator[Found]:
    """What there is now of these items; those of which there is nothing are left out."""
    async for found in _by_item(store.list_many([f"{item}/" for item in items]), with_data=True):
        yield found


async def _delete_data(store: ObjectStore, looked: AsyncIterator[Found], *, pace: Pace) -> dict[str, Deleted]:
    """Of the items that no run refers to. Of what goes together records go before what they speak of."""
    gone: dict[str, Deleted] = {}
    data: list[ObjectInfo] = []
    async for found in looked:
        if found.runids:
            continue
        gone[found.item] = Deleted(objects=found.objects, bytes=found.bytes)
        if found.objects > len(found.data):
            await _delete_much(store, found.item, pace=pace)
        else:
            data += found.data
        if len(data) >= BATCH:
            await _delete_records_first(store, data, pace=pace)
            data = []
    await _delete_records_first(store, data, pace=pace)
    return gone


async def _delete_much(store: ObjectStore, item: str, *, pace: Pace) -> None:
    """All data of an item that has more than fits."""
    batch: list[ObjectInfo] = []
    async for info in store.list(paths.data(item)):
        batch.append(info)
        if len(batch) >= BATCH:
            await _delete_records_first(store, batch, pace=pace)
            batch = []
    await _delete_records_first(store, batch, pace=pace)


async def _delete_records_first(store: ObjectStore, infos: Sequence[ObjectInfo], *, pace: Pace) -> None:
    records = [info.key for info in infos if info.key.endswith(".json")]
    rest = [info.key for info in infos if not info.key.endswith(".json")]
    for keys in (records, rest):
        await delete_all(store, keys, pace=pace)


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
