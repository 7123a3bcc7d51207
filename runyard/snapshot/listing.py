"""The listing of a snapshot: what the checkout holds, line by line, in parts (see `runyard.records.snapshots`)."""

import json
import stat
import zlib
from collections.abc import Iterator, Mapping

from runyard.records.snapshots import Place
from runyard.snapshot.checkout import Contents, File

PART_LINES = 256
"""On average."""

_GIT_MODE = 0o644


class Listing:
    """Made when all contents have their places. ``packs`` are those that it refers to."""

    def __init__(self, places: Mapping[str, Place]) -> None:
        self._places = places
        self.packs: set[str] = set()

    def parts(
        self, contents: Contents, files: Mapping[File, list[str]], history: Mapping[bytes, list[str]]
    ) -> list[bytes]:
        """``files`` and ``history`` (the copy's `.git`, by path) say of which contents a file is."""
        lines: dict[bytes, list[object]] = {path: ["d", _text(path)] for path in contents.folders}
        lines |= {path: ["l", _text(path), _text(target)] for path, target in contents.links.items()}
        for file in contents.files:
            mode, mtime_ns = stat.S_IMODE(file.version.mode) & 0o777, file.version.mtime_ns
            lines[file.path] = ["f", _text(file.path), mode, mtime_ns, files[file]]
        for path, ids in history.items():
            lines[path] = ["f", _text(path), _GIT_MODE, None, ids]
        return [self._part([lines[path] for path in paths]) for paths in _cut(sorted(lines))]

    def _part(self, lines: list[list[object]]) -> bytes:
        numbers: dict[str, int] = {}
        places = self._places
        for line in lines:
            if line[0] == "f":
                found = [places[each] for each in line[4]]  # type: ignore[attr-defined]
                line[4] = [[numbers.setdefault(pack, len(numbers)), *where] for pack, *where in found]
        self.packs |= numbers.keys()
        return json.dumps([[*numbers], *lines], separators=(",", ":")).encode()


def _cut(paths: list[bytes]) -> Iterator[list[bytes]]:
    """Before a path whose checksum says so: one more file changes one part, not all that follow."""
    part: list[bytes] = []
    for path in paths:
        if part and zlib.crc32(path) % PART_LINES == 0:
            yield part
            part = []
        part.append(path)
    if part:
        yield part


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
