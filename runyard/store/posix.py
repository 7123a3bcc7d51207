"""A folder in which keys are paths as they are: what a person finds there with `ls` is what the key says.

Its price is that an object and a folder cannot share a name: the keys `a` and `a/b` exclude each other, which
the second writer is told with `Conflict`. `posixflat` has no such limit and no readable names.
"""

from pathlib import Path

from runyard.errors import InvalidRequest
from runyard.store.folder import FolderStore

_MAX_NAME_BYTES = 255


class PosixStore(FolderStore):
    """Objects as files below ``<folder>/data``; see `FolderStore` and `Tree`."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        super().__init__(folder, _PathNames(), durable=durable)


class _PathNames:
    """Each part is a folder or, the last one, the file."""

    def parts(self, key: str) -> list[bytes]:
        parts = key.encode().split(b"/")
        for part in parts:
            if len(part) > _MAX_NAME_BYTES:
                shown = part[:40].decode(errors="replace")
                raise InvalidRequest(
                    f"a part of a key has at most {_MAX_NAME_BYTES} bytes in a folder, `{shown}…` has {len(part)}"
                )
            if self.is_unfinished(part):
                raise InvalidRequest(f"names that begin with `.tmp-` are for unfinished files: `{key}`")
        return parts

    def piece(self, name: bytes, *, folder: bool) -> str | None:
        if self.is_unfinished(name):
            return None
        # with its slash a folder sorts where its keys do: `a-b` before `a/b`
        try:
            return name.decode() + "/" * folder
        except UnicodeDecodeError:
            return None

    def start(self, prefix: str) -> tuple[list[bytes], str] | None:
        base = prefix[: prefix.rfind("/") + 1]
        try:
            folders = base.encode().split(b"/")[:-1]
        except UnicodeEncodeError:
            return None
        if any(part in (b"", b".", b"..") or len(part) > _MAX_NAME_BYTES or b"\0" in part for part in folders):
            return None
        return folders, base

    def is_unfinished(self, name: bytes) -> bool:
        return name.startswith(b".tmp-")
