"""Empty objects that are asked for at the same time, made in one go.

A restart refers to each task that it keeps, and each runid object must be on the disk before the run may go on.
To send each to a thread of its own and have each wait for the disk alone costs a thousand of them a second and
more. Here those that come while others are being made wait for these and go together: one way to a thread, and
one commit of the file system, which the first sync of a folder brings and the others find done. What each caller
is told is what it would be told alone, and as late: its object is there to stay.
"""

import asyncio
from collections.abc import Callable, Sequence

from runyard.store.base import ObjectInfo
from runyard.store.threads import settle

MOST = 256
"""So many at a time: each holds a folder open."""

Made = ObjectInfo | Exception | None


class Together:
    """``make`` is `Tree.touch`. Callers are of one loop; after its end there may be another."""

    def __init__(self, make: Callable[[Sequence[str]], list[Made]]) -> None:
        self._make = make
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[tuple[str, asyncio.Future[Made]]] = []
        self._at_work: asyncio.Task[None] | None = None

    async def touch(self, key: str) -> ObjectInfo | None:
        """The new object; None where there may be one of that key. A cancel waits for the end."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._waiting, self._at_work = loop, [], None
        asked: asyncio.Future[Made] = loop.create_future()
        self._waiting.append((key, asked))
        if self._at_work is None or self._at_work.done():
            self._at_work = asyncio.create_task(self._work())
            self._at_work.add_done_callback(self._forsake)
        made = await settle(asked)
        if isinstance(made, Exception):
            raise made
        return made

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # for those that are asked for in the same moment
            batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            try:
                found = await asyncio.to_thread(self._make, [key for key, _ in batch])
            except asyncio.CancelledError:
                _cancel(batch)
                raise
            except Exception as error:  # before the first was made: no room for the file that all are names of
                found = [error] * len(batch)
            for (_, asked), made in zip(batch, found, strict=True):
                if not asked.done():
                    asked.set_result(made)

    def _forsake(self, work: asyncio.Task[None]) -> None:
        """The loop ends, maybe before the work began: those who wait do not heed a cancel of their own."""
        if work.cancelled() and work is self._at_work:
            _cancel(self._waiting)


def _cancel(waiting: Sequence[tuple[str, asyncio.Future[Made]]]) -> None:
    for _, asked in waiting:
        asked.cancel()
