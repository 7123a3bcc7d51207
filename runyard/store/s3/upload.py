"""Objects of many parts: a stream of unknown size, with memory that stays flat.

At most `AT_ONCE` parts are on their way, beside the one that is gathered. Whatever ends an upload early, an
error of the stream or of the store or a cancel, ends it there too: what was sent is given up. Only a killed
process leaves something behind, which `discard_unfinished` finds.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import suppress
from datetime import datetime

from runyard.errors import StoreError
from runyard.store.s3.bucket import Bucket
from runyard.store.s3.calls import Calls
from runyard.store.threads import settle

PART = 8 << 20
"""Bytes of a part, and of the largest object that is sent in one request."""

AT_ONCE = 3


def part_size(number: int) -> int:
    """Doubled every thousand parts: of 10,000, which is the most, 5 TiB have room, which is the most too."""
    return PART << (number - 1) // 1000


async def in_parts(data: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """A stream in pieces of the size of parts; the last one may be shorter."""
    waiting, number = bytearray(), 1
    async for chunk in data:
        view = memoryview(chunk)
        while view:
            room = part_size(number) - len(waiting)
            waiting += view[:room]
            view = view[room:]
            if len(waiting) == part_size(number):
                yield bytes(waiting)
                waiting, number = bytearray(), number + 1
    if waiting:
        yield bytes(waiting)


class Upload:
    """One object on its way. ``token`` is kept with it, so that it can be known again."""

    def __init__(self, calls: Calls, bucket: Bucket, key: str, *, token: str) -> None:
        self._calls, self._bucket, self._key, self._token = calls, bucket, key, token
        self._doing = f"writing `{key}`"
        self._id = ""
        self._sent: list[asyncio.Task[str]] = []

    async def send(self, parts: AsyncIterable[bytes]) -> None:
        """Send all parts. After an error or a cancel call `give_up`."""
        await self._calls.act(self._doing, self._begin)
        async for part in parts:
            number = len(self._sent) + 1
            self._sent.append(
                asyncio.create_task(
                    self._calls.act(self._doing, self._bucket.put_part, self._key, self._id, number, part)
                )
            )
            if number > AT_ONCE:
                await self._sent[number - AT_ONCE - 1]
        for each in self._sent:
            await each

    async def complete(self, *, if_absent: bool) -> datetime:
        etags = [each.result() for each in self._sent]
        return await self._calls.act(
            self._doing, self._bucket.complete_upload, self._key, self._id, etags, if_absent=if_absent
        )

    async def give_up(self) -> None:
        """Remove what was sent, as far as the store can be asked. A cancel waits for it."""
        await settle(asyncio.ensure_future(self._abort()))

    def _begin(self) -> None:
        # in the thread, so that a cancel which comes meanwhile does not lose the id
        self._id = self._bucket.begin_upload(self._key, token=self._token)

    async def _abort(self) -> None:
        for each in self._sent:
            each.cancel()
        await asyncio.gather(*self._sent, return_exceptions=True)
        if self._id:
            with suppress(StoreError):
                await self._calls.act(self._doing, self._bucket.abort_upload, self._key, self._id)
