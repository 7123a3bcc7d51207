"""An object's bytes, in order, over cuts of the connection.

After a cut the rest is asked for, of the very same version: no reader ever gets the beginning of one and the end
of another. What can be verified is: the length always, and the SHA-256 of an object of one part that is read from
its first byte to its last. Larger ones have their digest in a record of ours (a seal, an archive's facts), and
who reads those compares.
"""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator

from runyard.errors import Conflict, Corrupt, StoreUnavailable
from runyard.store.s3.answers import RAISED, TRIES
from runyard.store.s3.bucket import Body, Bucket
from runyard.store.s3.calls import Calls, wait_s


async def read_object(
    calls: Calls, bucket: Bucket, key: str, *, offset: int, length: int | None
) -> AsyncIterator[bytes]:
    """At most ``length`` bytes from ``offset``. Raises NotFound at the first chunk, Corrupt at the end."""
    reading = _Reading(calls, bucket, key, offset, length)
    try:
        while chunk := await reading.chunk():
            yield chunk
    finally:
        reading.close()
    reading.verify()


class _Reading:
    """How far it has come. It holds a connection between two chunks, but no thread."""

    def __init__(self, calls: Calls, bucket: Bucket, key: str, offset: int, length: int | None) -> None:
        self._calls, self._bucket, self._key = calls, bucket, key
        self._doing = f"reading `{key}`"
        self._at, self._end = offset, None if length is None else offset + length
        self._body: Body | None = None
        self._etag = ""
        self._expected, self._digest = "", hashlib.sha256()
        self._cuts = 0

    async def chunk(self) -> bytes:
        """The next bytes, none at the end."""
        while True:
            body = self._body or await self._open()
            if body is None:
                return b""
            try:
                data = body.read() if body.is_ready else await self._calls.once(body.hurry, body.read)
            except RAISED as raised:
                await self._cut(raised)
                continue
            self._at += len(data)
            self._cuts = 0
            if self._expected:
                self._digest.update(data)
            return data

    async def _open(self) -> Body | None:
        first = not self._etag
        try:
            self._body = await self._calls.run(
                self._doing, self._bucket.open, self._key, begin=self._at, end=self._end, etag=self._etag
            )
        except Conflict as error:
            raise StoreUnavailable(f"`{self._key}` was written anew while it was being read") from error
        if self._body is not None and first:
            self._etag, self._expected = self._body.etag, self._body.sha256
            self._end = self._at + self._body.left
        return self._body

    async def _cut(self, raised: Exception) -> None:
        """Wait before the rest is asked for; give up after so many cuts with nothing in between."""
        self.close()
        self._cuts += 1
        judgement = self._calls.judge(raised, self._doing)
        if self._cuts == TRIES:
            raise judgement.error from raised
        await asyncio.sleep(wait_s(self._cuts))

    def verify(self) -> None:
        """Raises Corrupt. Of a part of an object nothing is known."""
        if self._expected and self._expected != base64.b64encode(self._digest.digest()).decode():
            raise Corrupt(f"`{self._key}` is not what was stored: its SHA-256 differs")

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None
