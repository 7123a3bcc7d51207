"""A run into a store: its data first, then, at one stroke, the run itself.

Each item gets a runid object before its data, and is looked at once more when all is there: what no cleanup has
given up by then stays, as after any other `refer`. Then `imported.json` decides between several that import runs
of one id; the records follow, which whoever imports the same file later can do as well, since all of them follow
from the file and the token. So an import that is cut off has left nothing that anybody sees, and its data, which
belong to a run that nobody knows, are the cleanup's. Where it ends with an error it takes its runid objects back,
and the next cleanup removes the data.
"""

import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import BinaryIO

from pydantic import ValidationError

from runyard.errors import Conflict, Corrupt, DamagedExport, InvalidExport, NotFound, StoreError
from runyard.records.bounded import for_each
from runyard.records.earlier import State
from runyard.records.runs import read_result, write_result
from runyard.records.sharing import claim_kept, claim_new, exists
from runyard.spec.plan import Snapshot
from runyard.spec.run import RunView
from runyard.store import paths
from runyard.store.base import ObjectStore, read
from runyard.transfer.anew import (
    Imported,
    Names,
    check_result,
    read_snapshot,
    read_tasks,
    rename_plan,
    rename_request,
    rename_result,
)
from runyard.transfer.export import AT_ONCE, SMALL_BYTES
from runyard.transfer.index import INDEX, INDEX_BYTES, RECORD_BYTES, Index, Member, parse_index
from runyard.transfer.tarball import Reader

Ask = Callable[[str], Awaitable[State]]
"""What Temporal knows of the run. One that it knows is not imported: a cleanup would go by when that one ended."""

_AHEAD = 64


@dataclass(frozen=True, kw_only=True)
class Import:
    """``there``: the run was there already as the file has it, and nothing was written. Sizes are the file's."""

    run: RunView
    there: bool
    members: int
    size_bytes: int


async def import_run(store: ObjectStore, source: BinaryIO, *, ask: Ask) -> Import:
    """Raises InvalidExport, NewerExport, DamagedExport, Conflict (another run has its id), what ``ask`` raises."""
    reader = Reader(source)
    index = await _read_index(reader)
    records = await _read_records(reader, index)
    size = sum(member.size for member in index.members)
    if await _is_there(store, index):
        view = await read_result(store, index.run)
        return Import(run=view, there=True, members=len(index.members), size_bytes=size)
    made = await _imported(store, index.run)  # by one that was cut off between this and the records
    if made is None and (state := await ask(index.run)) != "unknown":
        raise _taken(index.run, f"Temporal has {'an open' if state == 'open' else 'a closed'} run of this id")
    fresh = Imported(export=index.digest, token=secrets.token_hex(16), at=datetime.now(UTC))
    view = await _Incoming(store, reader, index, records, made or fresh).take(write=made is None)
    return Import(run=view, there=False, members=len(index.members), size_bytes=size)


async def _read_index(reader: Reader) -> Index:
    first = await reader.next()
    if first is None or first[0] != INDEX:
        raise InvalidExport(f"its first member is not {INDEX}")
    if first[1] > INDEX_BYTES:
        raise InvalidExport(f"its {INDEX} of {first[1]} bytes is larger than any")
    return parse_index(b"".join([chunk async for chunk in reader.chunks()]))


async def _read_records(reader: Reader, index: Index) -> dict[str, bytes]:
    """They come first. All data that follow are those of the tasks that they name. Raises InvalidExport."""
    records = {}
    for member in index.records:
        await _expect(reader, member)
        records[member.name] = await _whole(reader, member)
    check_result(records[paths.result(index.run)], index.run)
    plan = records.get(paths.plan(index.run))
    items = set(index.items)
    if plan is not None:
        tasks, snapshot = read_tasks(plan, index.run), read_snapshot(plan)
        items -= {paths.log_item(each) for each in tasks} | {paths.archive_item(each) for each in tasks}
        own = f"{paths.SNAPSHOTS}{snapshot.repository}/" if snapshot else None
        items = {each for each in items if own is None or not each.startswith(own)}
    if items:
        raise InvalidExport(f"it holds data that its run does not name: {min(items)[:200]!r}")
    return records


async def _is_there(store: ObjectStore, index: Index) -> bool:
    """Whether this very run is in the store. Raises Conflict where another one has its id."""
    run_id = index.run
    recorded = await exists(store, paths.result(run_id))
    if (imported := await _imported(store, run_id)) is not None:
        if imported.export != index.digest:
            raise _taken(run_id, "another export of a run with this id was imported")
        return recorded
    if not recorded and not await exists(store, paths.plan(run_id)):
        return False
    for member in index.records:
        if not await _is(store, member):
            raise _taken(run_id, "the store has another run of this id")
    return True


async def _is(store: ObjectStore, member: Member) -> bool:
    try:
        return hashlib.sha256(await read(store, member.name)).hexdigest() == member.sha256
    except NotFound:
        return False


async def _imported(store: ObjectStore, run_id: str) -> Imported | None:
    try:
        return Imported.model_validate_json(await read(store, paths.imported(run_id)))
    except NotFound:
        return None
    except ValidationError as error:
        raise Corrupt(f"what the store holds at {paths.imported(run_id)} cannot be read") from error


def _taken(run_id: str, why: str) -> Conflict:
    return Conflict(
        f"run {run_id} cannot be imported: {why}",
        remedy="A run keeps its id. Remove the other one first (`runyard run rm`), or import into another yard.",
    )


async def _expect(reader: Reader, member: Member) -> None:
    found = await reader.next()
    if found is None:
        raise DamagedExport(f"it ends before `{member.name[:200]}`: a part of it is missing")
    if found != (member.name, member.size):
        raise DamagedExport(f"`{found[0][:200]}` stands where `{member.name[:200]}` should")


async def _verified(reader: Reader, member: Member) -> AsyncIterator[bytes]:
    """The member's bytes; an error at their end where they are others, so that no object comes of them."""
    found = hashlib.sha256()
    async for chunk in reader.chunks():
        found.update(chunk)
        yield chunk
    if found.hexdigest() != member.sha256:
        raise DamagedExport(f"`{member.name[:200]}` is not what was exported: its SHA-256 differs")


async def _whole(reader: Reader, member: Member) -> bytes:
    return b"".join([chunk async for chunk in _verified(reader, member)])


class _Incoming:
    """One import on its way."""

    def __init__(
        self, store: ObjectStore, reader: Reader, index: Index, records: dict[str, bytes], made: Imported
    ) -> None:
        self._store = store
        self._reader = reader
        self._index = index
        self._records = records
        self._made = made
        self._names = Names(made.token)
        plan = records.get(paths.plan(index.run))
        self._snapshot: Snapshot | None = read_snapshot(plan) if plan is not None else None  # as the file has it
        self._manifest: bytes | None = None
        self._waiting: list[tuple[str, bytes]] = []
        self._claimed: list[str] = []

    async def take(self, *, write: bool) -> RunView:
        """Read the file to its end, then make the run visible. Without ``write`` its data are there already."""
        try:
            if write:
                await self._claim([self._names.item(item) for item in self._index.items if item != self._own_item])
            for member in self._index.members[len(self._index.records) :]:
                await _expect(self._reader, member)
                await self._take(member, write=write)
            await self._flush()
            if await self._reader.next() is not None:
                raise InvalidExport("it holds more than its index says")
            return await self._publish()
        except BaseException:
            await self._let_go()
            raise

    @property
    def _own_item(self) -> str:
        """The item of the snapshot's manifest in the file, which gets its name by its new content."""
        return paths.snapshot_item(self._snapshot.repository, self._snapshot.id) if self._snapshot else ""

    async def _claim(self, items: list[str]) -> None:
        """Refer to what is to come, before the first byte of it."""
        self._claimed += items

        async def claim(item: str) -> None:
            await claim_new(self._store, self._index.run, item)

        await for_each(items, claim, limit=AT_ONCE)

    async def _take(self, member: Member, *, write: bool) -> None:
        if self._own_item and member.name == paths.snapshot_content(self._own_item):
            await self._take_manifest(member, write=write)
        elif not write:
            async for _ in _verified(self._reader, member):
                pass
        elif member.size <= SMALL_BYTES:
            self._waiting.append((self._names.key(member.name), await _whole(self._reader, member)))
            if len(self._waiting) >= _AHEAD:
                await self._flush()
        else:
            content = _verified(self._reader, member)
            await self._store.put(self._names.key(member.name), content, size=member.size)

    async def _take_manifest(self, member: Member, *, write: bool) -> None:
        assert self._snapshot is not None
        if member.size > RECORD_BYTES:
            raise InvalidExport("the manifest of its snapshot is larger than any")
        self._manifest = await _whole(self._reader, member)
        made = self._names.manifest(self._manifest, self._snapshot)
        if write:
            item = paths.snapshot_item(self._snapshot.repository, made.id)
            await self._claim([item])
            self._waiting.append((paths.snapshot_content(item), b"".join(made.pieces)))

    async def _flush(self) -> None:
        async def put(each: tuple[str, bytes]) -> None:
            await self._store.put(*each)

        await for_each(self._waiting, put, limit=AT_ONCE)
        self._waiting.clear()

    async def _publish(self) -> RunView:
        self._renamed(self._made)  # what cannot be is said while nothing is decided
        await for_each(self._claimed, self._keep, limit=AT_ONCE)
        made = await self._decide()
        records, view = self._renamed(made)
        for key, data in records.items():
            await self._store.put(key, data)
        await write_result(self._store, view)
        return view

    async def _keep(self, item: str) -> None:
        """What is there now, with nobody giving it up, stays: as for any run that begins to refer to data."""
        if not await claim_kept(self._store, self._index.run, item):
            raise Conflict(
                f"a cleanup has taken `{item}` while its run was imported",
                remedy="Import it again; what belongs to a run that nobody knows yet stays for a day.",
            )

    async def _decide(self) -> Imported:
        """Of several that import one run the first decides; the data of the others are nobody's."""
        run_id, data = self._index.run, self._made.model_dump_json().encode()
        try:
            await self._store.put(paths.imported(run_id), data, if_absent=True)
        except Conflict as error:
            there = await _imported(self._store, run_id)
            if there is None or there.export != self._made.export:
                raise _taken(run_id, "another export of a run with this id was imported meanwhile") from error
            if there.token != self._made.token:
                await self._let_go()
            self._claimed.clear()
            return there
        self._claimed.clear()
        return self._made

    def _renamed(self, made: Imported) -> tuple[dict[str, bytes], RunView]:
        """The records with the names of this import: request, plan, and the result."""
        run_id, names = self._index.run, Names(made.token)
        if self._manifest is not None and self._snapshot is not None:
            names.manifest(self._manifest, self._snapshot)
        records = {}
        if (request := self._records.get(paths.request(run_id))) is not None:
            records[paths.request(run_id)] = rename_request(request, names)
        if (plan := self._records.get(paths.plan(run_id))) is not None:
            records[paths.plan(run_id)] = rename_plan(plan, names)
        return records, rename_result(self._records[paths.result(run_id)], names, made)

    async def _let_go(self) -> None:
        """Take our runid objects back: the next cleanup then removes what we have written."""

        async def release(item: str) -> None:
            await self._store.delete(paths.runid(item, self._index.run))

        with suppress(StoreError):
            await for_each(self._claimed, release, limit=AT_ONCE)
