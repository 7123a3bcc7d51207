"""An object's bytes, in order, a range at a time.

One long answer would be simpler, and is what this was first. But MinIO keeps the object locked until an answer is
read to its end: a reader that is in no hurry (a pager that shows a log) would hold up whoever deletes or replaces
the object. Ranges hold nothing in between, neither a lock nor a connection, and after a cut only one is asked for
again. All are of the same version: no reader gets the beginning of one and the end of another.

What can be verified is: the length always, and the SHA-256 of an object that comes in one answer. Larger ones have
their digest in a record of ours (a seal, an archive's facts), and who reads those compares.
"""

from collections.abc import AsyncIterator
from functools import partial

from runyard.errors import Conflict, StoreUnavailable
from runyard.store.s3.bucket import Bucket
from runyard.store.s3.calls import Calls

RANGE = 8 << 20
"""Bytes of an answer."""


async def read_object(
    calls: Calls, bucket: Bucket, key: str, *, offset: int, length: int | None
) -> AsyncIterator[bytes]:
    """At most ``length`` bytes from ``offset``. Raises NotFound at the first chunk, Corrupt."""
    at, end, etag = offset, None if length is None else offset + length, ""
    whole = not offset and length is None
    while end is None or at < end:
        size = RANGE if end is None else min(RANGE, end - at)
        fetch = partial(bucket.fetch, key, begin=at, size=size, etag=etag, whole=whole and not at)
        try:
            piece = await calls.ask(f"reading `{key}`", fetch)
        except Conflict as error:
            raise StoreUnavailable(f"`{key}` was written anew while it was being read") from error
        if piece is None:
            return
        etag, at = piece.etag, at + len(piece.data)
        end = piece.total if end is None else min(end, piece.total)
        if piece.data:
            yield piece.data
