"""From a checkout to a snapshot in the store.

The files are looked at, then read, then looked at again: if all are what they were, there is a moment (between the
last read and the second look) at which the whole checkout was what the snapshot says. If not, it is done again,
with what was read kept; a checkout that never holds still is refused.

Reading, hashing and compressing happen in a thread, since no file can be read asynchronously; one pack is sent
while the next is made, so that three packs are in memory at most, whatever the size of a file.
"""

import asyncio
import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from runyard.errors import Conflict
from runyard.records import snapshots
from runyard.records.snapshots import CONTENT_BYTES, Manifest, Pack, Packer, PackFacts
from runyard.snapshot.checkout import Contents, Version, find_change, list_checkout
from runyard.snapshot.history import History, read_history, read_objects
from runyard.snapshot.listing import Listing
from runyard.snapshot.memory import Memory
from runyard.snapshot.reading import Changed, read_contents
from runyard.snapshot.repository import Repository, find_repository
from runyard.spec.plan import Snapshot
from runyard.store.base import ObjectStore

_ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class Taken:
    """``files`` and ``size`` (bytes) of the checkout, and the bytes ``sent``; ``notes`` are for the user."""

    snapshot: Snapshot
    files: int
    size: int
    sent: int
    notes: list[str] = field(default_factory=list)


async def take_snapshot(store: ObjectStore, folder: Path, *, run_id: str, ignored: bool = False) -> Taken:
    """Store the checkout around ``folder`` for this run, which refers to it before it relies on anything.

    Raises InvalidRequest (no checkout), Forbidden (something cannot be read), Conflict (it changes all the time),
    GitFailed, and what the store raises.
    """
    repository = await asyncio.to_thread(find_repository, folder)
    return await _Taking(store, repository, run_id).take(ignored=ignored)


class _Taking:
    """One snapshot in the making. What it has read is kept from round to round."""

    def __init__(self, store: ObjectStore, repository: Repository, run_id: str) -> None:
        self._store, self._repository, self._run_id = store, repository, run_id
        self._top = os.fsencode(repository.top)
        self._memory = Memory()
        self._uuid, self._token = "", snapshots.new_token()
        self._files: dict[bytes, list[str]] = {}  # their contents, as they are in this round
        self._history: dict[bytes, list[str]] = {}  # the same, of the copy's `.git`
        self._absent: set[bytes] = set()  # objects that the repository does not have, or that are too large
        self._packs: dict[str, int] = {}  # those in the store that the run refers to, with their size in bytes
        self._changed: bytes | None = None  # a file that changed while it was read
        self._sent = 0

    async def take(self, *, ignored: bool) -> Taken:
        repository = self._repository
        self._uuid, kept = await asyncio.to_thread(repository.uuid)
        self._memory = await asyncio.to_thread(Memory.load, repository.git, repository.common)
        for _ in range(_ROUNDS):
            began_ns = time.time_ns()
            contents, history = await self._look(ignored=ignored)
            await self._store_contents(contents.files, history)
            changed = self._changed or await asyncio.to_thread(find_change, self._top, contents.files)
            if changed is None:
                break
        else:
            raise Conflict(
                f"{os.fsdecode(changed or b'')} changes while it is read",
                remedy="Stop what writes it, or let git ignore it; then start again.",
            )
        taken = await self._finish(contents, history)
        if not await asyncio.to_thread(self._remember, contents, history, began_ns):
            taken.notes.append(
                f"{repository.git} cannot be written: the next snapshot will read and send all again"
            )
        if not kept:
            taken.notes.append(
                "the repository's uuid cannot be kept in its configuration: it is made of its place"
            )
        return taken

    async def _look(self, *, ignored: bool) -> tuple[Contents, History]:
        """The files and the history, at the same time: half of it is waiting for git."""
        listing = asyncio.to_thread(list_checkout, self._repository, ignored=ignored)
        reading = asyncio.to_thread(read_history, self._repository)
        contents, history = await asyncio.gather(listing, reading)
        history.add_index(contents.index)
        return contents, history

    async def _store_contents(self, files: Mapping[bytes, Version], history: History) -> None:
        """Bring what is not there yet to the store."""
        self._changed = None
        for path in history.texts:  # an earlier round may have seen another HEAD
            self._history.pop(path, None)
        self._files = self._memory.contents_of(files)
        self._history = self._memory.contents_of_objects(history.objects) | self._history
        while True:
            # again after reading, which may find contents in packs that no note had named: gone, or too many
            used = set(chain.from_iterable((*self._files.values(), *self._history.values())))
            self._memory.forget(snapshots.merge(self._memory.places, used))
            await self._confirm(used)
            if lost := used - self._memory.places.keys():
                self._files = {path: ids for path, ids in self._files.items() if lost.isdisjoint(ids)}
                self._history = {path: ids for path, ids in self._history.items() if lost.isdisjoint(ids)}
            paths = (history.texts.keys() | history.objects.keys()) - self._absent
            if self._changed or (paths <= self._history.keys() and files.keys() <= self._files.keys()):
                return
            await self._send_all(self._pack(files, history))

    async def _confirm(self, contents: Collection[str]) -> None:
        """Refer to the packs that these contents are in; those that are not in the store are forgotten."""
        places = self._memory.places
        packs = {places[each].pack for each in contents if each in places} - self._packs.keys()
        there = await snapshots.refer_to_present(self._store, self._run_id, self._uuid, packs)
        self._packs |= there
        self._memory.forget(packs - there.keys())

    def _pack(self, files: Mapping[bytes, Version], history: History) -> Iterator[Pack]:
        """Read what has no place yet. A file that changes meanwhile is noted, and the rest read all the same."""
        packer = Packer(self._memory.places, self._token)
        for path, text in history.texts.items():
            self._history[path] = _add(packer, text)
        unread = {
            name: path
            for path, name in history.objects.items()
            if path not in self._history and path not in self._absent
        }
        for name, loose in read_objects(self._repository, unread):
            self._history[unread[name]] = _add(packer, loose)
        self._absent |= {path for path in unread.values() if path not in self._history}
        for path, version in files.items():
            if path not in self._files:
                ids = []
                try:
                    for content in read_contents(self._top, path, version):
                        ids.append(packer.add(content))
                        if packer.full and (pack := packer.close()):
                            yield pack
                    self._files[path] = ids
                    self._memory.note(path, version, ids)
                except Changed as error:
                    self._changed = error.path
        if pack := packer.close():
            yield pack

    async def _send_all(self, packs: Iterator[Pack]) -> None:
        """Each while the next one is made."""
        sending: asyncio.Task[None] | None = None
        try:
            while (pack := await asyncio.to_thread(next, packs, None)) is not None:
                if sending:
                    await sending
                sending = asyncio.create_task(self._send(pack))
            if sending:
                await sending
        finally:
            if sending:
                sending.cancel()

    async def _send(self, pack: Pack) -> None:
        self._sent += await snapshots.write_item(self._store, self._run_id, self._uuid, pack)
        self._packs[pack.id] = pack.size
        # an error that was caught on the way may hold this frame until Python's next search for cycles
        pack.pieces.clear()

    async def _finish(self, contents: Contents, history: History) -> Taken:
        """The listing and the manifest."""
        listing = Listing(self._memory.places)
        parts = await asyncio.to_thread(listing.parts, contents, self._files, self._history_of(history))
        ids = [snapshots.content_id(part) for part in parts]
        self._memory.forget(snapshots.merge(self._memory.places, ids) - listing.packs)
        await self._confirm(ids)
        await self._send_all(_pack_parts(Packer(self._memory.places, self._token), parts))
        places = [self._memory.places[each] for each in ids]
        packs = sorted(listing.packs | {place.pack for place in places})
        numbers = {pack: number for number, pack in enumerate(packs)}
        changed = history.changed + contents.untracked
        size = sum(version.size for version in contents.files.values())
        manifest = snapshots.encode_manifest(
            Manifest(
                packs=[PackFacts(id=pack, size=self._packs[pack]) for pack in packs],
                listing=[(numbers[p.pack], p.offset, p.length, p.size) for p in places],
                files=len(contents.files),
                size=size,
                changed=changed,
            ),
            self._token,
        )
        self._sent += await snapshots.write_item(self._store, self._run_id, self._uuid, manifest)
        return Taken(
            snapshot=Snapshot(repository=self._uuid, id=manifest.id, changed=changed),
            files=len(contents.files),
            size=size,
            sent=self._sent,
            notes=list(contents.notes),
        )

    def _history_of(self, history: History) -> dict[bytes, list[str]]:
        """Without what an earlier round saw, and without objects that the repository does not have."""
        wanted = history.texts.keys() | history.objects.keys()
        return {path: ids for path, ids in self._history.items() if path in wanted}

    def _remember(self, contents: Contents, history: History, began_ns: int) -> bool:
        objects = {path: ids for path in history.objects if (ids := self._history.get(path)) is not None}
        return self._memory.save(
            self._repository.git,
            files=contents.files,
            contents=self._files,
            objects=objects,
            used=self._packs,
            began_ns=began_ns,
        )


def _add(packer: Packer, data: bytes) -> list[str]:
    return [packer.add(data[at : at + CONTENT_BYTES]) for at in range(0, len(data), CONTENT_BYTES)]


def _pack_parts(packer: Packer, parts: list[bytes]) -> Iterator[Pack]:
    for part in parts:
        packer.add(part)
        if packer.full and (pack := packer.close()):
            yield pack
    if pack := packer.close():
        yield pack
