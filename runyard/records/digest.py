"""Counting and hashing bytes on their way."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

LAST_LINE = 200
_TAIL = 4 * LAST_LINE + 1
_INNER = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that begin no character


class Digest:
    """Bytes, lines, SHA-256 and the last line of what went through."""

    def __init__(self) -> None:
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._ends = 0
        self._tail = b""

    async def add(self, chunk: bytes) -> None:
        if len(chunk) > 64 << 10:  # a megabyte takes a millisecond or two, in which nothing else would run
            await asyncio.to_thread(self._hash.update, chunk)
        else:
            self._hash.update(chunk)
        self.bytes += len(chunk)
        self._ends += chunk.count(b"\n")
        self._tail = (self._tail + chunk[-_TAIL:])[-_TAIL:]

    def copy(self) -> "Digest":
        """One that goes on by itself from here."""
        other = Digest()
        other.bytes, other._hash, other._ends, other._tail = self.bytes, self._hash.copy(), self._ends, self._tail
        return other

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    @property
    def lines(self) -> int:
        """A last line without its newline counts."""
        return self._ends + (not self.ends_line)

    @property
    def ends_line(self) -> bool:
        return not self._tail or self._tail.endswith(b"\n")

    @property
    def last_line(self) -> str:
        """The last line that is not blank; of one longer than 200 characters, some 200 of its end."""
        cut = len(self._tail) == _TAIL  # it may begin inside of a character
        tail = self._tail.lstrip(_INNER) if cut else self._tail
        lines = tail.decode(errors="replace").replace("\r", "\n").split("\n")
        return next((line.strip()[:LAST_LINE] for line in reversed(lines) if line.strip()), "")


async def digest(chunks: AsyncIterator[bytes]) -> Digest:
    found = Digest()
    async for chunk in chunks:
        await found.add(chunk)
    return found
