"""Checkouts of direct runs as they lie in the store: packs and a manifest, shared by runs.

A *content* is up to 4 MiB of a file, known by its SHA-256. Contents are compressed one by one and put together to
*packs* of about 16 MiB. A pack is named by the SHA-256 of its bytes and a token of the snapshot that made it: a
cleanup that deletes a pack late must not meet one that was written anew under the same name. The *listing* says
what the checkout holds, in the order of the paths. It is cut into parts, JSON each, at paths that are chosen by
their checksum, so that a change in one folder leaves nearly all parts as they were. Parts are contents like any
other; the *manifest* says where they are.

    [["<pack id>", ...],      the packs that the lines below refer to, by number
     ["f", path, mode, mtime_ns, [[pack, offset, length, size], ...]],     length = size: not compressed
     ["l", path, target],     a symbolic link
     ["d", path]]             a folder that is empty, such as a submodule that is not checked out

Where a run was imported its packs have other tokens than its listing says: who reads it goes by their digests.

Paths are the bytes of their names, as UTF-8 with surrogates for what is none. So a second snapshot sends what has
changed, a few parts of the listing and a manifest; it refers to the packs of the first. An archive for each run
was turned down since it sends all again, an object for each file since a run would have to say of 20,000 objects
that it refers to them, and git's own objects since what is not committed would have to be hashed as blobs and
stored as such.

A pack of which a snapshot uses little is not repacked as such: `merge` retires the smallest when there are many.
"""

import gzip
import hashlib
import secrets
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import ValidationError

from runyard.dialogue import StoredPack, StoredSnapshot
from runyard.errors import Conflict, Corrupt, NotFound
from runyard.model import Model
from runyard.records import sharing
from runyard.records.bounded import for_each
from runyard.spec.plan import Snapshot
from runyard.store import paths
from runyard.store.base import ObjectStore, read

CONTENT_BYTES = 4 << 20
PACK_BYTES = 16 << 20
SMALL_PACKS = 32
"""A snapshot refers to no more packs of which it uses less than half of `PACK_BYTES` for its files, and to no more
for its listing; a new one of each may come on top."""

_KEPT_SMALL = 8
_PROBE_BYTES = 64 << 10
_AT_ONCE = 32


class Place(NamedTuple):
    """Where a content is: ``length`` bytes at ``offset`` of the pack; ``size`` when unpacked."""

    pack: str
    offset: int
    length: int
    size: int


class PackFacts(Model):
    id: str
    size: int


class Manifest(Model):
    """The root of a snapshot; ``files``, ``size`` (bytes) and ``changed`` (files) are for people."""

    version: Literal[1] = 1
    packs: list[PackFacts]
    listing: list[tuple[int, int, int, int]]  # number of the pack, offset, length, size
    files: int = 0
    size: int = 0
    changed: int = 0


class Pack(NamedTuple):
    """In pieces, since one of all its bytes would be one more copy of them."""

    id: str
    pieces: list[bytes]
    size: int


def content_id(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Packer:
    """Puts contents together to packs. ``known`` says where contents are; what is added gets a place there.

    ``token`` is this snapshot's part in the names of its packs.
    """

    def __init__(self, known: dict[str, Place], token: str) -> None:
        self.known = known
        self._token = token
        self._pieces: list[bytes] = []
        self._size = 0
        self._digest = hashlib.sha256()
        self._open: dict[str, tuple[int, int, int]] = {}

    def add(self, content: bytes) -> str:
        """The content's id. It is packed unless it is known."""
        name = content_id(content)
        if name not in self.known and name not in self._open:
            stored = _compress(content)
            self._open[name] = (self._size, len(stored), len(content))
            self._pieces.append(stored)
            self._size += len(stored)
            self._digest.update(stored)
        return name

    @property
    def full(self) -> bool:
        return self._size >= PACK_BYTES

    def close(self) -> Pack | None:
        """The pack so far, if there is anything in it; the next one begins."""
        if not self._open:
            return None
        pack = Pack(f"{self._digest.hexdigest()}-{self._token}", self._pieces, self._size)
        self.known.update({each: Place(pack.id, *where) for each, where in self._open.items()})
        self._pieces, self._size, self._digest, self._open = [], 0, hashlib.sha256(), {}
        return pack


def merge(known: Mapping[str, Place], used: Iterable[str]) -> set[str]:
    """The packs that a snapshot of these contents should not refer to, since it would refer to too many."""
    contents = set(used) & known.keys()
    if len({known[each].pack for each in contents}) <= SMALL_PACKS:
        return set()
    live: Counter[str] = Counter()
    for each in contents:
        live[known[each].pack] += known[each].length
    small = [pack for pack, size in live.most_common() if size < PACK_BYTES // 2]
    return set(small[_KEPT_SMALL:]) if len(small) > SMALL_PACKS else set()


def new_token() -> str:
    """8 hexadecimal digits, which no other snapshot has."""
    return secrets.token_hex(4)


def encode_manifest(manifest: Manifest, token: str) -> Pack:
    """Its bytes and their name."""
    data = gzip.compress(manifest.model_dump_json().encode(), mtime=0)
    return Pack(f"{hashlib.sha256(data).hexdigest()}-{token}", [data], len(data))


async def refer(store: ObjectStore, run_id: str, items: Sequence[str]) -> set[str]:
    """Say that the run refers to these items; those that no cleanup has given up. Every failure is raised.

    Nobody waits for a cleanup, which may be dead: what is given up is done without.
    """

    async def one(item: str) -> bool:
        return await sharing.refer(store, item, run_id)

    return {item for item, kept in zip(items, await for_each(items, one, limit=_AT_ONCE), strict=True) if kept}


async def refer_to_present(
    store: ObjectStore, run_id: str, repository: str, ids: Collection[str]
) -> dict[str, int]:
    """Refer to those of the packs or manifests that are there: what is there then stays; with sizes in bytes."""
    there = await _find(store, repository, ids)  # first a look: packs of another store are not ours to refer to
    items = {paths.snapshot_item(repository, each): each for each in there}
    kept = await refer(store, run_id, [*items])
    return await _find(store, repository, [items[item] for item in kept])


async def write_item(store: ObjectStore, run_id: str, repository: str, pack: Pack) -> int:
    """Refer to a new pack or manifest and store it; the number of bytes that were sent."""
    item = paths.snapshot_item(repository, pack.id)
    if not await refer(store, run_id, [item]):
        raise Conflict(f"`{item}` is being removed by a cleanup", remedy="Start the run again.")
    data = b"".join(pack.pieces) if pack.size < CONTENT_BYTES else _stream(pack.pieces)
    await store.put(paths.snapshot_content(item), data, size=pack.size)
    return pack.size


async def refer_to_snapshot(store: ObjectStore, run_id: str, snapshot: Snapshot) -> None:
    """Keep a snapshot for one more run. Raises NotFound where any of it has been removed."""
    repository = snapshot.repository
    if not await refer_to_present(store, run_id, repository, {snapshot.id}):
        raise _gone(snapshot)
    packs = {pack.id for pack in (await read_manifest(store, snapshot)).packs}
    if packs - (await refer_to_present(store, run_id, repository, packs)).keys():
        raise _gone(snapshot)


async def list_shares(store: ObjectStore, snapshot: Snapshot) -> list[str]:
    """The items that a run of this snapshot refers to. The one that names the others is last: it may go last."""
    try:
        packs = [pack.id for pack in (await read_manifest(store, snapshot)).packs]
    except (NotFound, Corrupt):
        packs = []
    return [paths.snapshot_item(snapshot.repository, each) for each in (*packs, snapshot.id)]


async def read_manifest(store: ObjectStore, snapshot: Snapshot) -> Manifest:
    """Raises NotFound, Corrupt."""
    try:
        data = await read(store, paths.snapshot_content(paths.snapshot_item(snapshot.repository, snapshot.id)))
    except NotFound as error:
        raise _gone(snapshot) from error
    if hashlib.sha256(data).hexdigest() != snapshot.id.partition("-")[0]:
        raise Corrupt(
            f"the manifest of the snapshot {snapshot.id[:12]} is not what was stored: its SHA-256 differs"
        )
    try:
        return Manifest.model_validate_json(gzip.decompress(data))
    except (ValidationError, OSError, EOFError, zlib.error) as error:
        raise Corrupt(f"the manifest of the snapshot {snapshot.id[:12]} cannot be read") from error


async def locate_snapshot(store: ObjectStore, snapshot: Snapshot, *, expires_s: float) -> StoredSnapshot:
    """What an agent needs to restore it. Raises NotFound, Corrupt."""
    manifest = await read_manifest(store, snapshot)

    def source(pack: PackFacts) -> str:
        key = paths.snapshot_content(paths.snapshot_item(snapshot.repository, pack.id))
        return store.source(key, expires_s=expires_s)

    packs = [StoredPack(id=pack.id, size=pack.size, source=source(pack)) for pack in manifest.packs]
    return StoredSnapshot(packs=packs, listing=manifest.listing, changed=manifest.changed)


async def _stream(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _compress(content: bytes) -> bytes:
    """As short as is quick; what does not shrink stays as it is, which its length says."""
    probe = content[:_PROBE_BYTES]
    if len(content) > len(probe) and len(zlib.compress(probe, 1)) > 0.97 * len(probe):
        return content
    stored = zlib.compress(content, 1)
    return stored if len(stored) < len(content) else content


async def _find(store: ObjectStore, repository: str, ids: Collection[str]) -> dict[str, int]:
    """Those whose data is in the store, with its size."""
    wanted = sorted(ids)

    async def size_of(item_id: str) -> int | None:
        try:
            return (await store.stat(paths.snapshot_content(paths.snapshot_item(repository, item_id)))).size
        except NotFound:
            return None

    sizes = await for_each(wanted, size_of, limit=_AT_ONCE)
    return {each: size for each, size in zip(wanted, sizes, strict=True) if size is not None}


def _gone(snapshot: Snapshot) -> NotFound:
    return NotFound(
        f"the snapshot {snapshot.id[:12]} of the repository {snapshot.repository} is not in the store any more",
        remedy="Start a new direct run from the checkout.",
    )
