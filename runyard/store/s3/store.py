"""A bucket as an `ObjectStore`.

Two answers of the store need care. A write that was cut may have happened; and a write that says "it is already
there" may have met its own first try. So whatever is written only if absent, or in many parts, carries a token,
and when the answer is not a plain yes the object itself is asked whose it is.

Whether `a` and `a/b` can both be objects is the store's affair. S3 holds both. MinIO, by its version, refuses the
second, which is `Conflict`, or takes it and then lists only the shorter one. To find that out before each write
would cost it a listing and a request for each part of its key, and be a race nevertheless; Runyard's own keys
never clash.
"""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import takewhile

import urllib3

from runyard.errors import ConfigError, Conflict, InvalidRequest, NotFound, StoreError, StoreUnavailable
from runyard.settings import Settings
from runyard.store.base import ObjectInfo, UrlTarget, check_key
from runyard.store.s3.answers import judge
from runyard.store.s3.bucket import PAGE, Bucket, open_http
from runyard.store.s3.calls import THREADS, Calls
from runyard.store.s3.credentials import Kept, open_credentials
from runyard.store.s3.place import Place, read_place
from runyard.store.s3.reading import read_object
from runyard.store.s3.signing import Signer
from runyard.store.s3.upload import PART, Upload, in_parts
from runyard.store.tree import check_size


class S3Store:
    """Objects of one bucket, below a prefix. Opening it asks nobody."""

    def __init__(self, place: Place, credentials: Kept, http: urllib3.PoolManager) -> None:
        self._place = place
        self._calls = Calls(partial(judge, place=place))
        self._bucket = Bucket(place, credentials, http)
        self._signer = Signer(place, credentials, http)
        self._http = http

    @property
    def place(self) -> Place:
        return self._place

    async def put(
        self,
        key: str,
        data: bytes | AsyncIterable[bytes],
        *,
        size: int | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        check_key(key)
        if isinstance(data, bytes):
            check_size(key, size, len(data))
            if len(data) <= PART:
                return await self._put_whole(key, data, if_absent=if_absent)
            data = _once(data)
        if if_absent:
            await self._refuse(key)
        counted = _Counted(data)
        parts = in_parts(counted)
        first = await anext(parts, b"")
        second = await anext(parts, b"")
        if not second:
            check_size(key, size, counted.size)
            return await self._put_whole(key, first, if_absent=if_absent)
        return await self._put_parts(key, _after(first, second, parts), counted, size=size, if_absent=if_absent)

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        check_key(key)
        if offset < 0 or (length is not None and length < 0):
            raise InvalidRequest(f"a range begins and ends at 0 or later, not at {offset} with {length} bytes")
        if length == 0:
            await self.stat(key)
            return
        async for chunk in read_object(self._calls, self._bucket, key, offset=offset, length=length):
            yield chunk

    async def stat(self, key: str) -> ObjectInfo:
        check_key(key)
        return (await self._calls.ask(f"looking for `{key}`", self._bucket.head, key)).info

    async def stat_many(self, keys: Sequence[str]) -> dict[str, ObjectInfo]:
        found: dict[str, ObjectInfo] = {}
        for at in range(0, len(keys), PAGE):  # so many wait for a thread at a time
            answers = await asyncio.gather(*map(self.stat, keys[at : at + PAGE]), return_exceptions=True)
            for answer in answers:
                if isinstance(answer, ObjectInfo):
                    found[answer.key] = answer
                elif not isinstance(answer, NotFound):
                    raise answer
        return found

    async def delete(self, key: str) -> None:
        check_key(key)
        await self._calls.act(f"deleting `{key}`", self._bucket.delete, key)

    async def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            check_key(key)
        for at in range(0, len(keys), PAGE):
            some = keys[at : at + PAGE]
            doing = f"deleting {len(some)} objects from `{some[0]}` on"
            left = await self._calls.act(doing, self._bucket.delete_many, some)
            for answer in await asyncio.gather(*map(self.delete, left), return_exceptions=True):
                if isinstance(answer, BaseException):
                    raise answer

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        asked, after = _asked(prefix), _begin(prefix, start_after)
        while after is not None:
            page = await self._calls.ask(f"listing `{prefix}`", self._bucket.page, asked, after)
            for info in page:
                # others may have put there what is no key of ours
                if info.key > start_after and info.key.startswith(prefix) and _is_key(info.key):
                    yield info
            after = page[-1].key if len(page) == PAGE else None

    async def list_many(self, prefixes: Sequence[str]) -> AsyncIterator[ObjectInfo]:
        wanted = iter(prefixes)
        prefix = next(wanted, None)
        if prefix is None:
            return
        common = os.path.commonprefix([prefixes[0], prefixes[-1]])  # noqa: RUF071 - of text, as keys are
        async for info in self.list(common, start_after=prefix):
            while not info.key.startswith(prefix) and prefix < info.key:
                if (prefix := next(wanted, None)) is None:
                    return
            if info.key.startswith(prefix):
                yield info

    def target(self, prefix: str, *, expires_s: float) -> UrlTarget:
        check_key(prefix.removesuffix("/"))
        return self._signer.target(prefix.removesuffix("/") + "/", expires_s=expires_s)

    def source(self, key: str, *, expires_s: float) -> str:
        check_key(key)
        return self._signer.source(key, expires_s=expires_s)

    async def discard_unfinished(self, *, older_than_s: float) -> int:
        """MinIO tells only uploads that it has begun since its own start, and removes all of them after a day."""
        doing = "removing unfinished uploads"
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        found = await self._calls.ask(doing, self._bucket.unfinished)
        old = [each for each in found if each.begun_at <= before]
        for each in old:
            await self._calls.act(doing, self._bucket.abort_upload, each.key, each.upload)
        return len(old)

    async def clock_skew_s(self) -> float:
        """By how much the store's clock is ahead of ours, to about a second."""
        begin = time.time()
        said = await self._calls.ask("asking for the time", self._bucket.clock)
        # the store tells whole seconds: on average half a second is cut off
        return said.timestamp() + 0.5 - (begin + time.time()) / 2

    async def close(self) -> None:
        self._calls.close()
        self._http.clear()

    async def _put_whole(self, key: str, data: bytes, *, if_absent: bool) -> ObjectInfo:
        token = secrets.token_hex(8)
        try:
            at = await self._calls.act(
                f"writing `{key}`", self._bucket.put, key, data, if_absent=if_absent, token=token
            )
        except (Conflict, StoreUnavailable):
            if not if_absent or (at_last := await self._ours(key, token)) is None:
                raise
            return at_last
        return ObjectInfo(key=key, size=len(data), modified_at=at)

    async def _put_parts(
        self, key: str, parts: AsyncIterable[bytes], counted: "_Counted", *, size: int | None, if_absent: bool
    ) -> ObjectInfo:
        token = secrets.token_hex(8)
        upload = Upload(self._calls, self._bucket, key, token=token)
        try:
            await upload.send(parts)
            check_size(key, size, counted.size)
            at = await upload.complete(if_absent=if_absent)
        except BaseException as error:
            in_doubt = isinstance(error, Conflict | StoreUnavailable)
            try:
                at_last = await self._ours(key, token) if in_doubt else None
            finally:
                await upload.give_up()
            if at_last is None:
                raise
            return at_last
        return ObjectInfo(key=key, size=counted.size, modified_at=at)

    async def _ours(self, key: str, token: str) -> ObjectInfo | None:
        """The object's facts, if the write with this token made it: then it happened after all."""
        with suppress(NotFound, StoreError):
            head = await self._calls.ask(f"looking for `{key}`", self._bucket.head, key)
            return head.info if head.token == token else None
        return None

    async def _refuse(self, key: str) -> None:
        """Raises Conflict when the object is there: then its stream need not be read."""
        with suppress(NotFound):
            await self.stat(key)
            raise Conflict(f"`{key}` is already there, and was to be written only if absent")


def open_s3(settings: Settings) -> S3Store:
    """The store of the settings. Raises ConfigError."""
    place = read_place(settings)
    http = open_http(place, connections=THREADS)
    try:
        return S3Store(place, open_credentials(settings, http), http)
    except ValueError as error:  # the library's, about names
        raise ConfigError(f"{place}: {error}", remedy="Mend RUNYARD_S3_REGION or RUNYARD_S3_ENDPOINT.") from error


class _Counted:
    """A stream, and how many bytes of it have come."""

    def __init__(self, data: AsyncIterable[bytes]) -> None:
        self._data = data
        self.size = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._data:
            self.size += len(chunk)
            yield chunk


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _after(first: bytes, second: bytes, rest: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    yield first
    yield second
    async for part in rest:
        yield part


def _asked(prefix: str) -> str:
    """What the store is asked for: MinIO refuses a prefix that ends like the name of a folder above."""
    folders, slash, last = prefix.rpartition("/")
    return folders + slash if last in (".", "..") else prefix


def _begin(prefix: str, start_after: str) -> str | None:
    """The key that the store is asked to begin after, if not a little before; None where there is nothing to show.

    MinIO does not answer where no key can have the prefix, nor where what to begin after does not have it or
    cannot be a key.
    """
    if not _can_begin(prefix) or (start_after > prefix and not start_after.startswith(prefix)):
        return None
    after = "/".join(takewhile(_is_key, start_after.split("/")))
    return after if after.startswith(_asked(prefix)) else ""


def _can_begin(prefix: str) -> bool:
    """Whether a key can have this prefix."""
    folders, _, last = prefix.rpartition("/")
    begin = f"{folders}/{last if last.strip('.') else last + 'x'}" if "/" in prefix else last + "x"
    return _is_key(begin) and not prefix.startswith("/")


def _is_key(key: str) -> bool:
    with suppress(InvalidRequest):
        check_key(key)
        return True
    return False
