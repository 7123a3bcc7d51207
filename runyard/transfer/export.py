"""A run out of a store: first all of its objects are looked at, then they are written one after the other.

What the run refers to comes along, also what it kept of earlier runs. Nothing is copied anywhere in between: an
object that changes, or goes, between the two looks ends the export with an error.
"""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import UTC, datetime

from runyard import __version__
from runyard.errors import Conflict, NotFound
from runyard.records.bounded import for_each
from runyard.records.digest import digest
from runyard.records.snapshots import read_manifest
from runyard.spec.run import RunView
from runyard.store import paths
from runyard.store.base import ObjectInfo, ObjectStore, read
from runyard.transfer.anew import read_snapshot, read_tasks
from runyard.transfer.index import INDEX, Index, Member
from runyard.transfer.tarball import END, header, padding

SMALL_BYTES = 256 << 10
"""Objects up to this size are read some at a time, ahead of being written."""

AT_ONCE = 32
_AHEAD = 64


async def make_index(store: ObjectStore, view: RunView) -> tuple[Index, dict[str, bytes]]:
    """All that belongs to a run that ended as ``view`` says, and its records."""
    plan = await _read(store, paths.plan(view.id))
    request = await _read(store, paths.request(view.id))
    result = await _read(store, paths.result(view.id)) or _as_result(view)
    own = {paths.plan(view.id): plan, paths.request(view.id): request, paths.result(view.id): result}
    records = {name: data for name, data in own.items() if data is not None}
    members = [
        Member(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in records.items()
    ]

    async def measure(info: ObjectInfo) -> Member:
        found = await digest(store.get(info.key))
        return Member(name=info.key, size=found.bytes, sha256=found.sha256)

    infos = await _list(store, plan, view.id) if plan is not None else []
    members += await for_each(infos, measure, limit=AT_ONCE)
    return Index(made_by=__version__, run=view.id, members=members), records


async def pack(store: ObjectStore, index: Index, records: dict[str, bytes]) -> AsyncGenerator[bytes, None]:
    """The tar, in pieces. Raises Conflict where the store no longer holds what the index says."""
    now = datetime.now(UTC)
    text = index.model_dump_json().encode()
    yield header(INDEX, len(text), now) + text + padding(len(text))
    for start in range(0, len(index.members), _AHEAD):
        members = index.members[start : start + _AHEAD]
        ahead = await _read_small(store, [each for each in members if each.name not in records])
        for member in members:
            yield header(member.name, member.size, now)
            whole = records.get(member.name, ahead.get(member.name))
            if whole is not None:
                yield whole
            else:
                async for chunk in _stream(store, member):
                    yield chunk
            yield padding(member.size)
    yield END


def _as_result(view: RunView) -> bytes:
    """Of a run that was ended from outside, and so has none in the store."""
    return view.model_copy(update={"ui": ""}).model_dump_json().encode()


async def _list(store: ObjectStore, plan: bytes, run_id: str) -> list[ObjectInfo]:
    """The data of all tasks, and of the snapshot."""
    items = [
        item for each in read_tasks(plan, run_id) for item in (paths.log_item(each), paths.archive_item(each))
    ]
    if snapshot := read_snapshot(plan):
        packs = [each.id for each in (await read_manifest(store, snapshot)).packs]
        # the manifest first: who reads it knows the names of the packs
        items += [paths.snapshot_item(snapshot.repository, each) for each in (snapshot.id, *packs)]

    async def of_item(item: str) -> list[ObjectInfo]:
        return [info async for info in store.list(paths.data(item))]

    return [info for found in await for_each(items, of_item, limit=AT_ONCE) for info in found]


async def _read_small(store: ObjectStore, members: Sequence[Member]) -> dict[str, bytes]:
    small = [member for member in members if member.size <= SMALL_BYTES]

    async def one(member: Member) -> bytes:
        return b"".join([chunk async for chunk in _stream(store, member)])

    return dict(zip([each.name for each in small], await for_each(small, one, limit=AT_ONCE), strict=True))


async def _stream(store: ObjectStore, member: Member) -> AsyncIterator[bytes]:
    """An object's bytes, which must be those that the index speaks of."""
    found, left = hashlib.sha256(), member.size
    try:
        async for chunk in store.get(member.name):
            found.update(chunk)
            left -= len(chunk)
            if left < 0:
                raise _changed(member)
            yield chunk
    except NotFound as error:
        raise _changed(member) from error
    if left or found.hexdigest() != member.sha256:
        raise _changed(member)


def _changed(member: Member) -> Conflict:
    return Conflict(
        f"`{member.name}` was removed or has changed while it was exported",
        remedy="A cleanup takes what is past its retention: pin the run (`runyard run keep`), and try again.",
    )


async def _read(store: ObjectStore, key: str) -> bytes | None:
    try:
        return await read(store, key)
    except NotFound:
        return None
