"""What the last snapshot of a work tree knew, in a file below its git folder.

A file whose times, size and inode are those that were noted is not read again, by the rule of git's index: a note
is worth nothing if the file may have changed in the same tick of the clock in which it was read. Where a content
was packed is kept longer than a file has it, for those who go from branch to branch. The file may be deleted at
any moment; then all is read, and sent, anew.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic_core import to_json

from runyard.records.snapshots import Place
from runyard.snapshot.checkout import File

_VERSION = 1
_NAME = Path("runyard") / "snapshot.json"
_TICK_NS = 2_000_000_000
"""The coarsest clock of a file system (FAT's): what changed so shortly before it was read may change unseen."""

_GENERATIONS = 16
"""So many snapshots a pack is remembered that none of them used."""

_Note = tuple[int, int, int, int, list[int]]  # mtime, ctime (ns), size, inode, numbers of its contents


class Memory:
    """``places``: contents and where they are. Notes of files; of objects of git, which never change, by path."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self._notes: dict[str, tuple[tuple[int, int, int, int], list[str]]] = {}
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
        found._notes = {}
        return found

    @classmethod
    def _read(cls, path: Path) -> "Memory":
        """A file that cannot be read is as good as none."""
        memory = cls()
        try:
            known = json.loads(path.read_bytes())
            if known["version"] != _VERSION:
                return memory
            packs = [pack for pack, _ in known["packs"]]
            ids = [content[0] for content in known["contents"]]
            memory.places = {i: Place(packs[p], at, length, size) for i, p, at, length, size in known["contents"]}
            memory._notes = {
                name: ((mtime, ctime, size, inode), [ids[number] for number in numbers])
                for name, (mtime, ctime, size, inode, numbers) in known["notes"].items()
            }
            memory._packs = dict(known["packs"])
            memory._generation = known["generation"]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return cls()
        return memory

    def contents_of(self, file: File) -> list[str] | None:
        """The contents of a file that has not changed since it was noted."""
        known = self._notes.get(_text(file.path))
        return known[1] if known and known[0] == file.version[:4] and self.has(known[1]) else None

    def contents_of_object(self, path: bytes) -> list[str] | None:
        known = self._notes.get(_text(path))
        return known[1] if known and known[0] == _NO_KEY and self.has(known[1]) else None

    def forget(self, gone: set[str]) -> None:
        """These packs are gone, or shall not be used any more."""
        if not gone:
            return
        for content_id in [each for each, place in self.places.items() if place.pack in gone]:
            del self.places[content_id]

    def has(self, ids: Iterable[str]) -> bool:
        places = self.places
        for each in ids:  # noqa: SIM110 (asked for each file, which has one: a generator costs more than the answer)
            if each not in places:
                return False
        return True

    def save(
        self,
        git: Path,
        *,
        files: Mapping[File, list[str]],
        objects: Mapping[bytes, list[str]],
        used: Iterable[str],
        began_ns: int,
    ) -> bool:
        """Note this snapshot: contents of files and objects, packs that it uses. Whether that could be kept.

        ``began_ns`` is when its first file was looked at.
        """
        generation = self._generation + 1
        packs = {**self._packs, **dict.fromkeys(used, generation)}
        packs = {pack: last for pack, last in packs.items() if last > generation - _GENERATIONS}
        numbers = {pack: number for number, pack in enumerate(packs)}
        kept = {each: place for each, place in self.places.items() if place.pack in numbers}
        places = {content_id: number for number, content_id in enumerate(kept)}
        young_ns = began_ns - _TICK_NS
        notes: dict[str, _Note] = {
            _text(path): (*version[:4], [places[each] for each in ids])
            for (path, version), ids in files.items()
            if version.mtime_ns < young_ns and version.ctime_ns < young_ns
        }
        for path, ids in objects.items():
            notes[_text(path)] = (*_NO_KEY, [places[each] for each in ids])
        known = {
            "version": _VERSION,
            "generation": generation,
            "packs": list(packs.items()),
            "contents": [[each, numbers[p.pack], p.offset, p.length, p.size] for each, p in kept.items()],
            "notes": notes,
        }
        return _replace(git / _NAME, _encode(known))


_NO_KEY = (0, 0, 0, 0)


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _encode(known: object) -> bytes:
    """JSON; quickly, where all names are text: this is a tenth of what a start waits for."""
    try:
        return to_json(known)
    except ValueError:
        return json.dumps(known, separators=(",", ":")).encode()


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
