"""Reading and writing a tar piece by piece: the headers are `tarfile`'s, the bytes go by and are never held.

`tarfile` writes from files only, and what we have are streams; so it makes the headers, and what comes between
them is ours: the bytes, filled up to 512. Where it reads, it sees a file that only goes forward and gives no more
than a megabyte at once, however large the headers of a hostile tar say that they are.
"""

import asyncio
import tarfile
from collections.abc import AsyncIterator
from datetime import datetime
from typing import BinaryIO, Protocol

from runyard.errors import DamagedExport, InvalidExport, InvalidRequest

CHUNK = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * _BLOCK)
"""What a tar ends with."""


class Source(Protocol):
    """A file or pipe to read from."""

    def read(self, size: int, /) -> bytes: ...


def header(name: str, size: int, modified_at: datetime) -> bytes:
    """What comes before a member's bytes."""
    facts = tarfile.TarInfo(name)
    facts.size, facts.mtime, facts.mode = size, int(modified_at.timestamp()), 0o644
    return facts.tobuf(tarfile.PAX_FORMAT)


def padding(size: int) -> bytes:
    """What comes after so many bytes."""
    return bytes(-size % _BLOCK)


class Forward:
    """A file as `tarfile` wants it, over one that can only be read on."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= CHUNK:
            raise InvalidExport(f"a header of {size} bytes is larger than any that an export has")
        pieces, wanted = [], size
        while wanted and (piece := self._source.read(wanted)):
            pieces.append(piece)
            wanted -= len(piece)
        self._at += size - wanted
        return b"".join(pieces)

    def seek(self, to: int) -> int:
        while self._at < to and self.read(min(CHUNK, to - self._at)):
            pass
        return self._at

    def tell(self) -> int:
        return self._at


class Reader:
    """The members of a tar, one after the other. Each call that reads runs in a thread: a pipe may be slow."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._tar: tarfile.TarFile | None = None
        self._member: tarfile.TarInfo | None = None

    async def next(self) -> tuple[str, int] | None:
        """Name and size of the next member; None at the end. Raises InvalidExport, DamagedExport."""
        self._member = await asyncio.to_thread(self._next)
        if self._member is None:
            return None
        if not self._member.isreg():
            raise InvalidExport(f"`{self._member.name[:200]}` is no plain file")
        return self._member.name, self._member.size

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes of the member. Raises DamagedExport where there are fewer than its header says."""
        assert self._tar is not None
        assert self._member is not None
        left, opened = self._member.size, self._tar.extractfile(self._member)
        assert opened is not None
        while left:
            chunk = await asyncio.to_thread(self._guard, opened.read, min(CHUNK, left))
            if not chunk:
                raise _cut_short()
            left -= len(chunk)
            yield chunk

    def _next(self) -> tarfile.TarInfo | None:
        if self._tar is None:
            try:
                # not a stream of tarfile's own: that one reads whatever a header asks for
                self._tar = tarfile.TarFile(fileobj=Forward(self._source))  # type: ignore[arg-type]
            except tarfile.TarError as error:
                raise InvalidExport("it is not a tar") from error
            except (OSError, ValueError) as error:
                raise _unreadable(error) from error
        try:
            return self._tar.next()
        except tarfile.TarError as error:
            raise _cut_short() from error
        except (OSError, ValueError) as error:
            raise _unreadable(error) from error
        finally:
            self._tar.members = []  # type: ignore[attr-defined] # it would keep them all

    def _guard(self, read: "Reading", size: int) -> bytes:
        try:
            return read(size)
        except tarfile.TarError as error:
            raise _cut_short() from error
        except OSError as error:
            raise _unreadable(error) from error


class Reading(Protocol):
    def __call__(self, size: int, /) -> bytes: ...


def _cut_short() -> DamagedExport:
    return DamagedExport("it ends in the middle: a part of it is missing")


def _unreadable(error: Exception) -> InvalidRequest:
    if isinstance(error, OSError):
        return InvalidRequest(f"it cannot be read: {error.strerror or error}")
    return InvalidExport(f"it cannot be read as a tar: {error}")
