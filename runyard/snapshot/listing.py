"""The listing of a snapshot: what the checkout holds, line by line, in parts (see `runyard.records.snapshots`)."""

import json
import zlib
from collections.abc import Iterator, Mapping

from pydantic_core import to_json

from runyard.records.snapshots import Place
from runyard.snapshot.checkout import Contents

PART_LINES = 256
"""On average."""

_GIT_MODE = 0o644


class Listing:
    """Made when all contents have their places. ``packs`` are those that it refers to."""

    def __init__(self, places: Mapping[str, Place]) -> None:
        self._places = places
        self.packs: set[str] = set()

    def parts(
        self, contents: Contents, files: Mapping[bytes, list[str]], history: Mapping[bytes, list[str]]
    ) -> list[bytes]:
        """``files`` and ``history`` (the copy's `.git`, by path) say of which contents a file is."""
        lines: dict[bytes, list[object]] = {path: ["d", _text(path)] for path in contents.folders}
        lines |= {path: ["l", _text(path), _text(target)] for path, target in contents.links.items()}
        for path, version in contents.files.items():
            lines[path] = ["f", _text(path), version.mode & 0o777, version.mtime_ns, files[path]]
        for path, ids in history.items():
            lines[path] = ["f", _text(path), _GIT_MODE, None, ids]
        return [self._part([lines[path] for path in paths]) for paths in _cut(sorted(lines))]

    def _part(self, lines: list[list[object]]) -> bytes:
        numbers: dict[str, int] = {}
        places = self._places
        for line in lines:
            if line[0] == "f":
                line[4] = [
                    (numbers.setdefault(pack, len(numbers)), at, length, size)
                    for pack, at, length, size in map(places.__getitem__, line[4])  # type: ignore[call-overload]
                ]
        self.packs |= numbers.keys()
        return _encode([[*numbers], *lines])


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


def _encode(part: object) -> bytes:
    """JSON; quickly, where all names are text."""
    try:
        return to_json(part)
    except ValueError:
        return json.dumps(part, separators=(",", ":")).encode()
