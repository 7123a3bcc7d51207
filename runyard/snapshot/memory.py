"""What the last snapshot of a work tree knew, in a file below its git folder.

A file whose times, size and inode are those that were noted is not read again, by the rule of git's index: a note
is worth nothing if the file may have changed in the same tick of the clock in which it was read. Where a content
was packed is kept longer than a file has it, for those who go from branch to branch. The file may be deleted at
any moment; then all is read, and sent, anew.

It is a line of JSON and then columns of numbers, digests and paths. As JSON throughout it took a tenth of the time
that a start takes; `marshal` or `pickle` would be as quick, but believe whatever lies there.
"""

import contextlib
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, starmap
from pathlib import Path
from typing import Any

from runyard.records.snapshots import Place
from runyard.snapshot.checkout import Version

_FORMAT = 2
_NAME = Path("runyard") / "snapshot"
_TICK_NS = 2_000_000_000
"""The coarsest clock of a file system (FAT's): what changed so shortly before it was read may change unseen."""

_GENERATIONS = 16
"""So many snapshots a pack is remembered that none of them used."""

_PLACE = struct.Struct("<4Q")  # number of the pack, offset, length, size
_VERSION = struct.Struct("<2q3Q")


class Memory:
    """``places``: contents and where they are. Beside them, notes of files, and of objects of git, by path."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self._files: dict[bytes, tuple[tuple[int, ...], list[str]]] = {}  # the version of which the contents are
        self._objects: dict[bytes, list[str]] = {}  # they never change
        self._packs: dict[str, int] = {}  # the generation that used it last
        self._generation = 0

    @classmethod
    def load(cls, git: Path, common: Path) -> "Memory":
        """What is known of this work tree. A new one knows at least what its sister's packs hold."""
        own = git / _NAME
        if own.exists():
            return cls._read(own)
        sisters = [path for path in (common / _NAME, *common.glob(f"worktrees/*/{_NAME}")) if path.exists()]
        if not sisters:
            return cls()
        found = cls._read(max(sisters, key=lambda path: path.stat().st_mtime_ns))
        found._files = {}
        return found

    @classmethod
    def _read(cls, path: Path) -> "Memory":
        """A file that cannot be read is as good as none."""
        memory = cls()
        try:
            head, _, data = path.read_bytes().partition(b"\n")
            known = json.loads(head)
            if known["format"] == _FORMAT and known["crc32"] == zlib.crc32(data):
                memory._decode(known, data)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error):
            return cls()
        return memory

    def _decode(self, known: Mapping[str, Any], data: bytes) -> None:
        digests, places, versions, counts, numbers, paths = _columns(known["columns"], data)
        packs, digits = [pack for pack, _ in known["packs"]], digests.hex()
        ids = [digits[at : at + 64] for at in range(0, len(digits), 64)]
        found = [Place(packs[pack], at, length, size) for pack, at, length, size in _PLACE.iter_unpack(places)]
        self.places = dict(zip(ids, found, strict=True))
        each, sizes = [ids[number] for number in _unpack(numbers)], _unpack(counts)
        contents = [each[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
        noted = dict(zip(paths.split(b"\0")[:-1], contents, strict=True))
        files = [*_VERSION.iter_unpack(versions)]
        self._files = {path: (version, noted.pop(path)) for path, version in zip([*noted], files, strict=False)}
        self._objects = noted
        self._packs = dict(known["packs"])
        self._generation = known["generation"]

    def note(self, path: bytes, version: Version, ids: list[str]) -> None:
        """These are the contents of this version of the file."""
        self._files[path] = version, ids

    def contents_of(self, files: Mapping[bytes, Version]) -> dict[bytes, list[str]]:
        """The contents of those files that have not changed since they were noted."""
        notes = self._files
        return {
            path: note[1]
            for path, version in files.items()
            if (note := notes.get(path)) is not None and note[0] == version
        }

    def contents_of_objects(self, paths: Iterable[bytes]) -> dict[bytes, list[str]]:
        return {path: self._objects[path] for path in paths if path in self._objects}

    def forget(self, gone: set[str]) -> None:
        """These packs are gone, or shall not be used any more."""
        if not gone:
            return
        for content_id in [each for each, place in self.places.items() if place.pack in gone]:
            del self.places[content_id]

    def save(
        self,
        git: Path,
        *,
        files: Mapping[bytes, Version],
        contents: Mapping[bytes, list[str]],
        objects: Mapping[bytes, list[str]],
        used: Iterable[str],
        began_ns: int,
    ) -> bool:
        """Note this snapshot: its files with their contents, its objects, its packs. Whether that could be kept.

        ``began_ns`` is when its first file was looked at.
        """
        generation = self._generation + 1
        packs = {**self._packs, **dict.fromkeys(used, generation)}
        packs = {pack: last for pack, last in packs.items() if last > generation - _GENERATIONS}
        order = {pack: number for number, pack in enumerate(packs)}
        kept = {each: place for each, place in self.places.items() if place.pack in order}
        numbers = {each: number for number, each in enumerate(kept)}
        young_ns = began_ns - _TICK_NS
        old = {
            path: version
            for path, version in files.items()
            if version.mtime_ns < young_ns and version.ctime_ns < young_ns
        }
        noted = {**{path: contents[path] for path in old}, **objects}
        columns = [
            bytes.fromhex("".join(kept)),
            b"".join([_PLACE.pack(order[pack], at, length, size) for pack, at, length, size in kept.values()]),
            b"".join(starmap(_VERSION.pack, old.values())),
            _pack(map(len, noted.values())),
            _pack(numbers[each] for each in chain.from_iterable(noted.values())),
            b"".join([path + b"\0" for path in noted]),
        ]
        data = b"".join(columns)
        known = {
            "format": _FORMAT,
            "crc32": zlib.crc32(data),
            "generation": generation,
            "packs": list(packs.items()),
            "columns": [len(column) for column in columns],
        }
        return _replace(git / _NAME, json.dumps(known).encode() + b"\n" + data)


def _pack(numbers: Iterable[int]) -> bytes:
    given = [*numbers]
    return struct.pack(f"<{len(given)}I", *given)


def _unpack(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 4}I", data)


def _columns(sizes: Sequence[int], data: bytes) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size


def _replace(path: Path, data: bytes) -> bool:
    try:
        path.parent.mkdir(exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    except OSError:
        return False
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        return False
    return True
