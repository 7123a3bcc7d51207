"""The seam to storage: ``ObjectStore``.

A key is a path of non-empty parts joined by `/`, none of them `.` or `..`, without NUL, at most 1,024
bytes; anything else is refused with `InvalidRequest` before the store is touched. Objects are written
whole or not at all: a reader never sees half of one, also when the writer is killed. Errors are told
apart: `NotFound` is an answer, `StoreUnavailable` the lack of one.
"""

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, Protocol

from pydantic import Field

from runyard.errors import InvalidRequest
from runyard.model import Model

MAX_KEY_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """An object's key, size in bytes and time of its last write (UTC)."""

    key: str
    size: int
    modified_at: datetime


class FolderTarget(Model):
    """Write here: a folder of this machine, made when missing, but only below ``root``, if that is given.

    A root that is missing is a disk that is not mounted: what is written in its place would hide it.
    """

    kind: Literal["folder"] = "folder"
    folder: str
    root: str = ""


class UrlTarget(Model):
    """Write here: one presigned POST for every key that starts with ``prefix``. Good until it expires.

    ``claim`` is a presigned PUT of the one object ``<prefix>started``, to be sent with ``If-None-Match: *``: a
    POST cannot say "only if absent", and this object is what at-most-once rests on. ``expires_at`` is when both
    end, which may be sooner than what was asked for.
    """

    kind: Literal["url"] = "url"
    url: str
    prefix: str
    fields: dict[str, str]
    claim: str = ""
    expires_at: datetime | None = None


Target = Annotated[FolderTarget | UrlTarget, Field(discriminator="kind")]


class ObjectStore(Protocol):
    """Objects by key. All methods may run concurrently, on one key too; the last complete put wins."""

    async def put(
        self,
        key: str,
        data: bytes | AsyncIterable[bytes],
        *,
        size: int | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        """Write an object whole. ``size`` is the number of bytes where known: any other number is `Corrupt`.

        With ``if_absent`` exactly one of several writers succeeds; the others get `Conflict` and change
        nothing. Raises StoreUnavailable, StoreFull, StoreDenied; Conflict also when a key that is a
        folder of other objects is written, or the reverse, where the store cannot hold both.
        """
        ...

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Its bytes from ``offset``, at most ``length``, in chunks. An offset past the end gives nothing.

        Raises NotFound at the first chunk.
        """
        ...

    async def stat(self, key: str) -> ObjectInfo:
        """Raises NotFound."""
        ...

    async def stat_many(self, keys: Sequence[str]) -> dict[str, ObjectInfo]:
        """Those of the objects that are there, by key. It costs a folder less than as many calls of `stat`."""
        ...

    async def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...

    async def delete_many(self, keys: Sequence[str]) -> None:
        """Remove any number of objects, in no order; those that are not there are no error.

        It costs far less than as many deletes. When it raises some are gone and others are not: call it again.
        """
        ...

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """All objects whose key starts with ``prefix``, by key in the order of its UTF-8 bytes.

        ``prefix`` is compared as text: it may end inside a part of a key. Only keys greater than
        ``start_after`` come. What is written or deleted during the listing may or may not be seen.
        """
        ...

    def list_many(self, prefixes: Sequence[str]) -> AsyncIterator[ObjectInfo]:
        """All objects below each of these folders (they end with `/`), which come in the order of keys.

        None of them is within another. A folder is asked for these alone; a bucket's store may read all that is
        between the first and the last, which for neighbours is one request instead of many.
        """
        ...

    def target(self, prefix: str, *, expires_s: float) -> Target:
        """Where another program of the task may write objects below ``prefix`` (it ends with `/`).

        A signature lasts seven days at most, and no longer than the credentials that made it.
        """
        ...

    def source(self, key: str, *, expires_s: float) -> str:
        """Where another program may read this object: a path of this machine or a presigned URL (see `target`)."""
        ...

    async def discard_unfinished(self, *, older_than_s: float) -> int:
        """Remove what killed writers left half-written so long ago, and say how much it was.

        A writer that is still at such an object gets `StoreUnavailable` at its end, and no object.
        """
        ...

    async def close(self) -> None: ...


def check_key(key: str) -> str:
    """The key itself, or InvalidRequest with what is wrong with it."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"a key is text of Unicode characters, which {key[:80]!r} is not") from error
    if not key or size > MAX_KEY_BYTES or "\0" in key:
        raise InvalidRequest(f"a key has 1 to {MAX_KEY_BYTES} bytes and no NUL, not {key[:80]!r}")
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise InvalidRequest(f"a key has no empty part and none that is `.` or `..`: {key[:200]!r}")
    return key


async def read(store: ObjectStore, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
    """A small object whole, in memory. Raises NotFound."""
    return b"".join([chunk async for chunk in store.get(key, offset=offset, length=length)])
