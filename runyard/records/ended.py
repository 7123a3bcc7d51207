"""The index of ended runs by time: what makes a page of a list cost a page, whatever the store holds.

One small object a run, whose key sorts the run that ended last first and whose content is the run without its
tasks. It is made of `result.json`, and follows it: written after it, deleted before it. So an entry is never
without its record for long, and what a crash left out is put right by whoever writes the record again.

`ended/whole` says that every result has its entry. Until it is there (a store of an earlier version, before its
first cleanup) readers walk over the results themselves. One large object with all runs was turned down: every end
of a run would write it again, and two at once would lose one of them.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from runyard.errors import Corrupt, NotFound
from runyard.records.bounded import for_each
from runyard.records.sharing import exists
from runyard.spec.run import RunView
from runyard.store import paths
from runyard.store.base import ObjectStore, read

_BATCH = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run that the store remembers. ``at_ms``: when it ended, in milliseconds since 1970."""

    run_id: str
    at_ms: int
    key: str


def milliseconds(at: datetime) -> int:
    """Since 1970, cut to whole ones."""
    return (at - _EPOCH) // timedelta(milliseconds=1)


def key_of(view: RunView) -> str | None:
    """Where its entry is; None for a run that has no end."""
    return None if view.ended_at is None else paths.ended(view.id, milliseconds(view.ended_at))


async def write_entry(store: ObjectStore, view: RunView) -> None:
    """Enter a run whose result is in the store."""
    if key := key_of(view):
        await store.put(key, view.model_copy(update={"tasks": []}).model_dump_json().encode())


async def delete_entry(store: ObjectStore, view: RunView) -> None:
    if key := key_of(view):
        await store.delete(key)


async def list_ended(store: ObjectStore, *, from_ms: int | None = None) -> AsyncIterator[Ended]:
    """Those that ended last first, from this millisecond on backwards."""
    if await exists(store, paths.ENDED_WHOLE):
        async for each in _list_entries(store, from_ms):
            yield each
        return
    found = [
        Ended(run_id=paths.unescape(info.key.split("/")[1]), at_ms=milliseconds(info.modified_at), key=info.key)
        async for info in store.list(paths.RUNS)
        if info.key.endswith("/result.json")
    ]
    for each in sorted(found, key=lambda each: each.at_ms, reverse=True):
        if from_ms is None or each.at_ms <= from_ms:
            yield each


async def _list_entries(store: ObjectStore, from_ms: int | None) -> AsyncIterator[Ended]:
    start_after = "" if from_ms is None else paths.ended("", from_ms)
    async for info in store.list(paths.ENDED, start_after=start_after):
        if (parsed := paths.parse_ended(info.key)) is not None:
            yield Ended(run_id=parsed[0], at_ms=parsed[1], key=info.key)


async def read_entries(store: ObjectStore, entries: list[Ended]) -> list[RunView | None]:
    """The runs, without their tasks; None for what has been removed meanwhile. Raises Corrupt."""

    async def one(entry: Ended) -> RunView | None:
        try:
            view = RunView.model_validate_json(await read(store, entry.key))
        except NotFound:
            return None
        except ValidationError as error:
            raise Corrupt(f"what the store holds at {entry.key} cannot be read as RunView") from error
        return view.model_copy(update={"tasks": []})

    return await for_each(entries, one)


async def complete_index(store: ObjectStore, *, anew: bool = False) -> int:
    """Give every result its entry, unless that has been done; says how many. Safe to call from several at once.

    ``anew``: in any case, and entries that no result has go.
    """
    if not anew and await exists(store, paths.ENDED_WHOLE):
        return 0
    entered, batch = 0, list[Ended]()
    async for info in store.list(paths.RUNS):
        if info.key.endswith("/result.json"):
            batch.append(Ended(run_id="", at_ms=0, key=info.key))
        if len(batch) >= _BATCH:
            entered += await _enter(store, batch)
            batch = []
    entered += await _enter(store, batch)
    await store.put(paths.ENDED_WHOLE, b"")
    if anew:
        await _drop_strays(store)
    return entered


async def _drop_strays(store: ObjectStore) -> None:
    """An entry follows its result: where that is not there, or says another end, the entry is wrong."""

    async def drop(entry: Ended) -> None:
        result = Ended(run_id=entry.run_id, at_ms=entry.at_ms, key=paths.result(entry.run_id))
        try:
            view = (await read_entries(store, [result]))[0]
        except Corrupt:  # nobody knows what it says
            return
        if view is None or key_of(view) != entry.key:
            await store.delete(entry.key)

    batch: list[Ended] = []
    async for entry in _list_entries(store, None):
        batch.append(entry)
        if len(batch) >= _BATCH:
            await for_each(batch, drop)
            batch = []
    await for_each(batch, drop)


async def _enter(store: ObjectStore, results: list[Ended]) -> int:
    async def one(result: Ended) -> int:
        try:
            view = (await read_entries(store, [result]))[0]
        except Corrupt:  # one broken record must not hide all others
            return 0
        if view is None or view.ended_at is None:
            return 0
        await write_entry(store, view)
        return 1

    return sum(await for_each(results, one))
