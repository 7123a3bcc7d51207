"""Stores that make trouble: cut off at the k-th call, or slow in an order of its own."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from typing import Literal

from chunks import whole

from runyard.errors import NotFound
from runyard.store.base import ObjectInfo, ObjectStore, Target


class Killed(BaseException):
    """The process ends here: no handler of an error sees it."""


When = Literal["before", "after"]


async def stat_each(stat: Callable[[str], Awaitable[ObjectInfo]], keys: Sequence[str]) -> dict[str, ObjectInfo]:
    """`stat_many`, one after the other: each look is a call that may be cut off, or come late."""
    found = {}
    for key in keys:
        with contextlib.suppress(NotFound):
            found[key] = await stat(key)
    return found


class CuttingStore:
    """Counts the calls; raises ``error`` at number ``at`` (from 0), before its effect or right after it."""

    def __init__(
        self,
        inner: ObjectStore,
        *,
        at: int = -1,
        when: When = "before",
        error: Callable[[], BaseException] = Killed,
    ) -> None:
        self._inner = inner
        self._at = at
        self._when = when
        self._error = error
        self.calls = 0
        self.names: Counter[str] = Counter()

    @property
    def was_cut(self) -> bool:
        return 0 <= self._at < self.calls

    def _begin(self, name: str) -> int:
        number = self.calls
        self.calls += 1
        self.names[name] += 1
        if number == self._at and self._when == "before":
            raise self._error()
        return number

    def _end(self, number: int) -> None:
        if number == self._at and self._when == "after":
            raise self._error()

    async def put(
        self,
        key: str,
        data: bytes | AsyncIterable[bytes],
        *,
        size: int | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        number = self._begin("put")
        info = await self._inner.put(key, data, size=size, if_absent=if_absent)
        self._end(number)
        return info

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        number = self._begin("get")
        async for chunk in self._inner.get(key, offset=offset, length=length):
            yield chunk
        self._end(number)

    async def stat(self, key: str) -> ObjectInfo:
        self._end(self._begin("stat"))
        return await self._inner.stat(key)

    async def stat_many(self, keys: Sequence[str]) -> dict[str, ObjectInfo]:
        return await stat_each(self.stat, keys)

    async def delete(self, key: str) -> None:
        number = self._begin("delete")
        await self._inner.delete(key)
        self._end(number)

    async def delete_many(self, keys: Sequence[str]) -> None:
        """A bulk can end between any two of its deletes, which come in no order."""
        for key in sorted(keys, reverse=True):
            await self.delete(key)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        number = self._begin("list")
        async for info in self._inner.list(prefix, start_after=start_after):
            yield info
        self._end(number)

    async def list_many(self, prefixes: Sequence[str]) -> AsyncIterator[ObjectInfo]:
        for prefix in prefixes:
            async for info in self.list(prefix):
                yield info

    def target(self, prefix: str, *, expires_s: float) -> Target:
        return self._inner.target(prefix, expires_s=expires_s)

    def source(self, key: str, *, expires_s: float) -> str:
        return self._inner.source(key, expires_s=expires_s)

    async def discard_unfinished(self, *, older_than_s: float) -> int:
        return await self._inner.discard_unfinished(older_than_s=older_than_s)

    async def close(self) -> None:
        await self._inner.close()


class ShuffledStore(CuttingStore):
    """Lets others go first a random number of times around each call: seeded, so that a failure comes again."""

    def __init__(self, inner: ObjectStore, *, seed: int) -> None:
        super().__init__(inner)
        self._random = random.Random(seed)

    async def _step_aside(self) -> None:
        for _ in range(self._random.choice((0, 0, 1, 3, 10))):
            await asyncio.sleep(0)

    async def put(
        self,
        key: str,
        data: bytes | AsyncIterable[bytes],
        *,
        size: int | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        await self._step_aside()
        info = await super().put(key, data, size=size, if_absent=if_absent)
        await self._step_aside()
        return info

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        await self._step_aside()
        async for chunk in super().get(key, offset=offset, length=length):
            yield chunk
            await self._step_aside()

    async def delete(self, key: str) -> None:
        await self._step_aside()
        await super().delete(key)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        await self._step_aside()
        async for info in super().list(prefix, start_after=start_after):
            yield info
            await self._step_aside()


async def every_cut(
    store_of: Callable[[], Awaitable[ObjectStore]],
    act: Callable[[ObjectStore], Awaitable[object]],
    check: Callable[[ObjectStore], Awaitable[None]],
    *,
    error: Callable[[], BaseException] = Killed,
) -> int:
    """Cut ``act`` at each of its calls, before and after the effect; repeat it whole; check. How many cuts."""
    cuts = 0
    for when in ("before", "after"):
        at = 0
        while True:
            store = await store_of()
            cutting = CuttingStore(store, at=at, when=when, error=error)
            kind = type(error())
            with contextlib.suppress(kind):
                await act(cutting)
            if not cutting.was_cut:
                break
            await act(store)
            await check(store)
            at += 1
            cuts += 1
    return cuts


async def dump(store: ObjectStore) -> dict[str, bytes]:
    """All that a store holds."""
    found = {}
    async for info in store.list(""):
        found[info.key] = await whole(store.get(info.key))
    return found
