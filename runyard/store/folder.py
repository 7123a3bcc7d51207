"""A folder as an `ObjectStore`: the asynchronous face of `Tree`.

What touches only the system's cache (a look-up, a small read, a small write that need not reach the disk) runs
inline: 30 to 100 µs, less than the way to a thread and back, which is 120. All else runs in a thread, since it
may wait for the disk: fsync, large reads and writes, listings, deletes. What runs inline gives way once, so that
a loop over ten thousand objects does not keep everything else waiting.
"""

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable
from itertools import islice
from pathlib import Path
from typing import ParamSpec, TypeVar

from runyard.errors import InvalidRequest
from runyard.store.base import FolderTarget, ObjectInfo, Target, check_key
from runyard.store.tree import Names, Temporary, Tree, check_size

CHUNK = 1 << 20
"""Bytes of a chunk that `get` gives, and of a write to the disk."""

_INLINE = 64 << 10
_BATCH = 256

P = ParamSpec("P")
T = TypeVar("T")


class FolderStore:
    """Objects in ``<folder>/data``, by whatever naming. Made where missing; `StoreDenied` where that fails."""

    def __init__(self, folder: Path, names: Names, *, durable: bool) -> None:
        self._tree = Tree(Path(folder).absolute(), names, durable=durable)
        self._names = names
        self._durable = durable
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
        with self._tree.errors(f"writing `{key}`"):
            if not isinstance(data, bytes):
                return await self._put_stream(key, data, size=size, if_absent=if_absent)
            check_size(key, size, len(data))
            if self._durable or len(data) > _INLINE:
                return await _in_thread(self._tree.write, key, data, if_absent=if_absent)
            await asyncio.sleep(0)
            return self._tree.write(key, data, if_absent=if_absent)

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        check_key(key)
        if offset < 0 or (length is not None and length < 0):
            raise InvalidRequest(f"a range begins and ends at 0 or later, not at {offset} with {length} bytes")
        await asyncio.sleep(0)
        with self._tree.errors(f"reading `{key}`"):
            fd, found = self._tree.open(key)
            end = found.st_size if length is None else min(found.st_size, offset + length)
            try:
                while offset < end:
                    want = min(CHUNK, end - offset)
                    if want <= _INLINE:
                        chunk = os.pread(fd, want, offset)
                    else:
                        chunk = await _in_thread(os.pread, fd, want, offset)
                    if not chunk:
                        return
                    offset += len(chunk)
                    yield chunk
            finally:
                os.close(fd)

    async def stat(self, key: str) -> ObjectInfo:
        check_key(key)
        await asyncio.sleep(0)
        with self._tree.errors(f"looking for `{key}`"):
            return self._tree.stat(key)

    async def delete(self, key: str) -> None:
        check_key(key)
        with self._tree.errors(f"deleting `{key}`"):
            await _in_thread(self._tree.delete, key)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        walk = self._tree.walk(prefix, start_after)
        with self._tree.errors(f"listing `{prefix}`"):
            while batch := await _in_thread(_take, walk):
                for info in batch:
                    yield info

    def target(self, prefix: str, *, expires_s: float) -> Target:
        check_key(prefix.removesuffix("/"))
        return FolderTarget(folder=str(self._tree.data / prefix.removesuffix("/")))

    def source(self, key: str, *, expires_s: float) -> str:
        check_key(key)
        return os.fsdecode(os.path.join(os.fsencode(self._tree.data), *self._names.parts(key)))

    async def close(self) -> None:
        """Nothing is held open between calls."""

    async def _put_stream(
        self, key: str, data: AsyncIterable[bytes], *, size: int | None, if_absent: bool
    ) -> ObjectInfo:
        if if_absent:  # a stream that nobody wants need not be read
            await _in_thread(self._tree.refuse, key)
        temporary = await _in_thread(self._tree.begin)
        try:
            check_size(key, size, await _spool(data, temporary))
            return await _in_thread(self._tree.publish, temporary, key, if_absent=if_absent)
        finally:
            temporary.discard()


async def _spool(data: AsyncIterable[bytes], temporary: Temporary) -> int:
    """Write a stream in large pieces; the number of its bytes."""
    total, waiting = 0, bytearray()
    async for chunk in data:
        waiting += chunk
        total += len(chunk)
        if len(waiting) >= CHUNK:
            await _in_thread(temporary.write, waiting)
            waiting = bytearray()
    if waiting:
        await _in_thread(temporary.write, waiting)
    return total


def _take(walk: Iterator[ObjectInfo]) -> list[ObjectInfo]:
    return list(islice(walk, _BATCH))


async def _in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking call in a thread; a cancel waits for its end, since files it uses are closed after it."""
    call = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        while not call.done():
            try:
                await asyncio.wait([call])
            except asyncio.CancelledError:
                continue
        call.cancelled() or call.exception()
        raise
