"""A folder as an `ObjectStore`: the asynchronous face of `Tree`.

What touches only the system's cache (a look-up, a small read, a small write that need not reach the disk) runs
inline: 30 to 100 µs, less than the way to a thread and back, which is 120. All else runs in a thread, since it
may wait for the disk: fsync, large reads and writes, listings, deletes. What runs inline gives way once, so that
a loop over ten thousand objects does not keep everything else waiting.
"""

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import ParamSpec, TypeVar

from runyard.errors import InvalidRequest
from runyard.store.base import FolderTarget, ObjectInfo, Target, check_key
from runyard.store.listing import Names
from runyard.store.threads import settle
from runyard.store.together import Together
from runyard.store.tree import Tree, check_size
from runyard.store.unfinished import Temporary

CHUNK = 1 << 20
"""Bytes of a chunk that `get` gives, and of a write to the disk."""

_INLINE = 64 << 10
_BATCH = 256
_FEW = 4

P = ParamSpec("P")
T = TypeVar("T")


class FolderStore:
    """Objects in ``<folder>/data``, by whatever naming. Made where missing; `StoreDenied` where that fails."""

    def __init__(self, folder: Path, names: Names, *, durable: bool) -> None:
        self._tree = Tree(Path(folder).absolute(), names, durable=durable)
        self._names = names
        self._durable = durable
        self._together = Together(self._tree.touch)
        self._tree.make()

    @property
    def folder(self) -> Path:
        return self._tree.folder

    async def put(
        self,
        key: str,
        data: bytes | AsyncIterable[bytes],
        *,
        size: int | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        check_key(key)
        doing = f"writing `{key}`"
        if not isinstance(data, bytes):
            return await self._put_stream(key, data, doing, size=size, if_absent=if_absent)
        check_size(key, size, len(data))
        if self._durable and not data:
            with self._tree.errors(doing):
                made = await self._together.touch(key)
            if made is not None:
                return made
        if self._durable or len(data) > _INLINE:
            return await self._in_thread(doing, self._tree.write, key, data, if_absent=if_absent)
        await asyncio.sleep(0)
        with self._tree.errors(doing):
            return self._tree.write(key, data, if_absent=if_absent)

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        check_key(key)
        if offset < 0 or (length is not None and length < 0):
            raise InvalidRequest(f"a range begins and ends at 0 or later, not at {offset} with {length} bytes")
        doing = f"reading `{key}`"
        await asyncio.sleep(0)
        with self._tree.errors(doing):
            fd, size = self._tree.open(key)
        try:
            end = size if length is None else min(size, offset + length)
            while offset < end and (chunk := await self._read(doing, fd, min(CHUNK, end - offset), offset)):
                offset += len(chunk)
                yield chunk
        finally:
            os.close(fd)

    async def stat(self, key: str) -> ObjectInfo:
        check_key(key)
        await asyncio.sleep(0)
        with self._tree.errors(f"looking for `{key}`"):
            return self._tree.stat(key)

    async def stat_many(self, keys: Sequence[str]) -> dict[str, ObjectInfo]:
        for key in keys:
            check_key(key)
        found: dict[str, ObjectInfo] = {}
        for at in range(0, len(keys), _BATCH):
            batch = keys[at : at + _BATCH]
            doing = f"looking for {len(batch)} objects from `{batch[0]}` on"
            if len(batch) <= _FEW:
                await asyncio.sleep(0)
                with self._tree.errors(doing):
                    return found | self._tree.stat_many(batch)
            found |= await self._in_thread(doing, self._tree.stat_many, batch)
        return found

    async def delete(self, key: str) -> None:
        check_key(key)
        await self._in_thread(f"deleting `{key}`", self._tree.delete, [key])

    async def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._names.parts(check_key(key))
        for at in range(0, len(keys), _BATCH):
            batch = keys[at : at + _BATCH]
            doing = f"deleting {len(batch)} objects from `{batch[0]}` on"
            await self._in_thread(doing, self._tree.delete, batch)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        doing = f"listing `{prefix}`"
        await asyncio.sleep(0)
        with self._tree.errors(doing):
            if not self._tree.has_folder(prefix):  # most tasks have no segments: no thread for that
                return
        async for info in self._in_batches(self._tree.walk(prefix, start_after), doing):
            yield info

    async def list_many(self, prefixes: Sequence[str]) -> AsyncIterator[ObjectInfo]:
        walks = chain.from_iterable(self._tree.walk(prefix, "") for prefix in prefixes)
        doing = f"listing {len(prefixes)} folders from `{prefixes[0]}` on" if prefixes else ""
        async for info in self._in_batches(walks, doing):
            yield info

    def target(self, prefix: str, *, expires_s: float) -> Target:
        check_key(prefix.removesuffix("/"))
        data = self._tree.data
        return FolderTarget(folder=str(data / prefix.removesuffix("/")), root=str(data))

    def source(self, key: str, *, expires_s: float) -> str:
        check_key(key)
        return os.fsdecode(os.path.join(os.fsencode(self._tree.data), *self._names.parts(key)))

    async def discard_unfinished(self, *, older_than_s: float) -> int:
        return await self._in_thread("removing unfinished objects", self._tree.discard_unfinished, older_than_s)

    async def close(self) -> None:
        """Nothing is held open between calls."""

    async def _put_stream(
        self, key: str, data: AsyncIterable[bytes], doing: str, *, size: int | None, if_absent: bool
    ) -> ObjectInfo:
        if if_absent:
            await self._in_thread(doing, self._tree.refuse, key)
        begun: list[Temporary] = []  # filled in the thread: a cancel drops what the call returns
        try:
            await self._in_thread(doing, lambda: begun.append(self._tree.begin()))
            (temporary,) = begun
            check_size(key, size, await self._spool(data, temporary, doing))
            return await self._in_thread(doing, self._tree.publish, temporary, key, if_absent=if_absent)
        finally:
            for each in begun:
                each.discard()

    async def _spool(self, data: AsyncIterable[bytes], temporary: Temporary, doing: str) -> int:
        """Write a stream in large pieces; the number of its bytes."""
        total, waiting = 0, bytearray()
        async for chunk in data:
            total += len(chunk)
            if len(chunk) >= CHUNK and not waiting:
                await self._in_thread(doing, temporary.write, chunk)
                continue
            waiting += chunk
            if len(waiting) >= CHUNK:
                await self._in_thread(doing, temporary.write, waiting)
                waiting = bytearray()
        if waiting:
            await self._in_thread(doing, temporary.write, waiting)
        return total

    async def _read(self, doing: str, fd: int, size: int, offset: int) -> bytes:
        if size > _INLINE:
            return await self._in_thread(doing, os.pread, fd, size, offset)
        with self._tree.errors(doing):
            return os.pread(fd, size, offset)

    async def _in_batches(self, walk: Iterator[ObjectInfo], doing: str) -> AsyncIterator[ObjectInfo]:
        while batch := await self._in_thread(doing, _take, walk):
            for info in batch:
                yield info
            if len(batch) < _BATCH:  # the last one
                return

    async def _in_thread(self, doing: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking call in a thread; a cancel waits for its end, since files it uses are closed after it."""
        with self._tree.errors(doing):
            # a future, no task: at the end of a loop all tasks are cancelled, and the thread would work on alone
            call = asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
            return await settle(call)


def _take(walk: Iterator[ObjectInfo]) -> list[ObjectInfo]:
    return list(islice(walk, _BATCH))
