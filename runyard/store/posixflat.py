"""A folder as a truly flat store: any two keys can exist beside each other, as in S3.

It is for tests, which run against both kinds of store with it, and for special uses; programs that are given a
folder to write to (the agent) cannot use it, since its names are escaped. The encoding is the one of agola's
former store of this name: `/` and `%` are percent-encoded, every 8 characters of the key begin a new folder, and
a file whose last piece is 8 characters long gets the suffix `.f`, so that no file has the name of a folder.
One thing is added: a last piece that is `.` or `..` is percent-encoded too, since those are no names of files.
"""

from pathlib import Path

from runyard.errors import ConfigError
from runyard.store.base import Target
from runyard.store.folder import FolderStore

_PIECE = 8
_FULL = ".f"


class PosixFlatStore(FolderStore):
    """Objects as files with escaped names below ``<folder>/data``; see `FolderStore` and `Tree`."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        super().__init__(folder, _FlatNames(), durable=durable)

    def target(self, prefix: str, *, expires_s: float) -> Target:
        raise ConfigError(
            "tasks cannot write to a store of the kind `posixflat`: its names are escaped",
            remedy="Set RUNYARD_STORE to posix or s3.",
        )


class _FlatNames:
    """Pieces of 8 characters: all but the last are folders."""

    def parts(self, key: str) -> list[bytes]:
        pieces = [key[at : at + _PIECE] for at in range(0, len(key), _PIECE)]
        return [_escape(piece) for piece in pieces[:-1]] + [_file(pieces[-1])]

    def piece(self, name: bytes, *, folder: bool) -> str | None:
        try:
            text = name.decode()
        except UnicodeDecodeError:
            return None
        if not folder:
            text = text.removesuffix(_FULL) if len(_unescape(text)) > _PIECE else text
        piece = _unescape(text)
        ours = _escape(piece) if folder else _file(piece)
        fits = len(piece) == _PIECE if folder else 0 < len(piece) <= _PIECE
        return piece if ours == name and fits else None

    def start(self, prefix: str) -> tuple[list[bytes], str] | None:
        # a key that ends with its piece lies beside the folder of longer ones: the last piece is not entered
        base = prefix[: max(0, len(prefix) - 1) // _PIECE * _PIECE]
        try:
            prefix.encode()
        except UnicodeEncodeError:
            return None
        if "\0" in prefix:
            return None
        return [_escape(base[at : at + _PIECE]) for at in range(0, len(base), _PIECE)], base

    def is_unfinished(self, name: bytes) -> bool:
        return False  # no other program writes here, and every name is a key's


def _escape(piece: str) -> bytes:
    return piece.replace("%", "%25").replace("/", "%2F").encode()


def _file(piece: str) -> bytes:
    if piece in (".", ".."):
        return piece.replace(".", "%2E").encode()
    return _escape(piece) + (_FULL.encode() if len(piece) == _PIECE else b"")


def _unescape(text: str) -> str:
    return text.replace("%2F", "/").replace("%2E", ".").replace("%25", "%")
