"""A bucket behind a bad connection, and a server that dies."""

import asyncio
import itertools
import os
import re
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime

import pytest
import pytest_asyncio
from minio_server import MinioServer
from s3_proxy import Proxy

from runyard.errors import Conflict, Corrupt, NotFound, StoreUnavailable
from runyard.settings import Settings
from runyard.store.base import read
from runyard.store.s3.bucket import Bucket, Head, open_http
from runyard.store.s3.credentials import open_credentials
from runyard.store.s3.place import read_place
from runyard.store.s3.store import S3Store, open_s3

BIG = os.urandom(20 << 20)


@pytest_asyncio.fixture
async def proxy(minio: MinioServer) -> AsyncIterator[Proxy]:
    proxy = Proxy(minio.port)
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest_asyncio.fixture
async def far(minio: MinioServer, proxy: Proxy) -> AsyncIterator[S3Store]:
    """The store behind the proxy, which gives up a silent connection after a second."""
    settings = minio.settings(s3_endpoint=proxy.endpoint)
    place = read_place(settings)
    http = open_http(place, connections=24, silence_s=1)
    store = S3Store(place, open_credentials(settings, http), http)
    yield store
    await store.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runyard.store.s3.calls.PATIENCE_S", 1.0)


async def stream(data: bytes, chunk: int = 1 << 20) -> AsyncIterator[bytes]:
    for at in range(0, len(data), chunk):
        yield data[at : at + chunk]


async def test_a_download_goes_on_after_cuts(far: S3Store, proxy: Proxy) -> None:
    await far.put("k", stream(BIG))
    proxy.cut_down_after = [100, 3_000_000, 1_000_000, 500_000]
    assert await read(far, "k", offset=5) == BIG[5:]
    assert not proxy.cut_down_after


async def test_a_download_does_not_go_on_with_another_version(far: S3Store) -> None:
    await far.put("k", stream(BIG))
    chunks = far.get("k")
    await anext(chunks)
    await far.put("k", stream(BIG[::-1]))
    with pytest.raises(StoreUnavailable, match="written anew"):
        await anext(chunks)


@pytest.mark.usefixtures("impatient")
async def test_a_download_that_is_cut_again_and_again_ends(far: S3Store, proxy: Proxy) -> None:
    await far.put("k", stream(BIG))
    proxy.cut_down_after = [1000] * 1000
    with pytest.raises(StoreUnavailable, match="cut"):
        await read(far, "k")


PUT, COMPLETE = re.compile(rb"PUT /"), re.compile(rb"POST /\S*uploadId=")


@pytest.mark.parametrize("if_absent", [True, False])
@pytest.mark.parametrize(("size", "request_"), [(5, PUT), (20 << 20, COMPLETE)])
async def test_a_write_whose_answer_is_lost_has_happened_once(
    far: S3Store, proxy: Proxy, if_absent: bool, size: int, request_: re.Pattern[bytes]
) -> None:
    """Its second try finds what the first one wrote, and must not take it for somebody else's."""
    proxy.lose_answer_to = request_
    info = await far.put("k", stream(BIG[:size]), if_absent=if_absent)
    assert proxy.lost == 1
    assert info.size == size
    assert await read(far, "k") == BIG[:size]
    with pytest.raises(Conflict):
        await far.put("k", b"late", if_absent=True)
    assert await far.discard_unfinished(older_than_s=0) == 0


async def test_a_bulk_of_deletes_whose_answer_is_lost_is_sent_again(far: S3Store, proxy: Proxy) -> None:
    for key in ("a", "b/c", "stays"):
        await far.put(key, b"x")
    proxy.lose_answer_to = re.compile(rb"^POST [^ ]*[?]delete")
    await far.delete_many(["a", "b/c"])
    assert proxy.lost == 1
    assert [info.key async for info in far.list("")] == ["stays"]


async def test_a_store_that_is_away_for_a_moment(far: S3Store, proxy: Proxy) -> None:
    await far.put("k", b"1")
    await proxy.stop()

    async def come_back() -> None:
        await asyncio.sleep(0.5)
        await proxy.start()

    back = asyncio.create_task(come_back())
    assert await read(far, "k") == b"1"
    await back


@pytest.mark.usefixtures("impatient")
async def test_a_store_that_is_away(far: S3Store, proxy: Proxy) -> None:
    await proxy.stop()
    for call in (
        far.put("k", b"1"),
        read(far, "k"),
        far.stat("k"),
        far.delete("k"),
        far.delete_many(["k"]),
        anext(far.list("")),
    ):
        with pytest.raises(StoreUnavailable, match="takes no connection"):
            await call


@pytest.mark.usefixtures("impatient")
async def test_a_store_that_stalls(far: S3Store, proxy: Proxy) -> None:
    await far.put("k", stream(BIG))
    chunks = far.get("k")
    await anext(chunks)
    proxy.flowing.clear()
    with pytest.raises(StoreUnavailable, match="stalled"):
        async for _ in chunks:
            pass
    with pytest.raises(StoreUnavailable, match="stalled"):
        await far.stat("k")
    proxy.flowing.set()
    assert (await far.stat("k")).size == len(BIG)


async def test_a_reader_of_a_stalled_store_can_be_cancelled_at_once(minio: MinioServer, proxy: Proxy) -> None:
    store = minio.store(s3_endpoint=proxy.endpoint)  # with the usual, long silence
    await store.put("k", stream(BIG))
    chunks = store.get("k")
    await anext(chunks)
    proxy.flowing.clear()

    async def read_on() -> None:
        async for _ in chunks:
            pass

    task = asyncio.create_task(read_on())
    _done, waiting = await asyncio.wait([task], timeout=0.5)
    assert waiting
    begin = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - begin < 10
    proxy.flowing.set()


async def test_a_put_cancelled_while_the_store_stalls_leaves_nothing(far: S3Store, proxy: Proxy) -> None:
    half = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        for n in itertools.count():
            if n == 12:
                proxy.flowing.clear()
                half.set()
            yield BIG[: 1 << 20]

    task = asyncio.create_task(far.put("k", endless()))
    await half.wait()
    _done, waiting = await asyncio.wait([task], timeout=0.5)
    assert waiting
    task.cancel()
    proxy.flowing.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [info async for info in far.list("")] == []
    assert await far.discard_unfinished(older_than_s=0) == 0


NEEDLE, BENT = b"needle in the hay", b"noodle in the hay"


async def test_bytes_bent_on_the_way_up_are_sent_again(far: S3Store, proxy: Proxy) -> None:
    proxy.replace_up, proxy.replacements = (NEEDLE, BENT), 1
    await far.put("k", b"hay " * 1000 + NEEDLE)
    assert proxy.replacements == 0
    assert await read(far, "k") == b"hay " * 1000 + NEEDLE
    proxy.replace_up, proxy.replacements = (NEEDLE, BENT), 1
    await far.put("k", stream(bytes(9_000_000) + NEEDLE))
    assert proxy.replacements == 0
    assert await read(far, "k", offset=9_000_000) == NEEDLE


@pytest.mark.usefixtures("impatient")
async def test_bytes_bent_again_and_again_are_corrupt(far: S3Store, proxy: Proxy) -> None:
    proxy.replace_up, proxy.replacements = (NEEDLE, BENT), 1000
    with pytest.raises(Corrupt, match="not what was sent"):
        await far.put("k", NEEDLE)
    proxy.replace_up = None
    with pytest.raises(NotFound):
        await far.stat("k")


async def test_bytes_bent_on_the_way_down_are_corrupt(far: S3Store, proxy: Proxy) -> None:
    await far.put("k", b"hay " * 1_000_000 + NEEDLE)
    proxy.replace_down, proxy.replacements = (NEEDLE, BENT), 1
    with pytest.raises(Corrupt, match="SHA-256"):
        await read(far, "k")
    assert proxy.replacements == 0


@pytest.mark.promise(9)
async def test_a_server_killed_in_the_middle_of_an_upload(own_minio: MinioServer) -> None:
    store = own_minio.store()
    restarted: list[asyncio.Task[None]] = []

    async def killing() -> AsyncIterator[bytes]:
        async for n, chunk in _numbered(stream(BIG * 3)):
            if n == 30:
                own_minio.kill()
                restarted.append(asyncio.create_task(asyncio.to_thread(own_minio.start)))
            yield chunk

    await store.put("k", killing())
    await restarted[0]
    assert await read(store, "k") == BIG * 3
    await store.close()


async def _numbered(data: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    n = 0
    async for chunk in data:
        yield n, chunk
        n += 1


@pytest.mark.promise(9)
async def test_a_server_killed_in_the_middle_of_a_listing(own_minio: MinioServer) -> None:
    store = own_minio.store()
    names = [f"many/{n:05d}" for n in range(1500)]
    await asyncio.gather(*(store.put(name, b"") for name in names))
    listing = store.list("many/")
    found = [(await anext(listing)).key for _ in range(700)]
    own_minio.kill()
    restarted = asyncio.create_task(asyncio.to_thread(own_minio.start))
    found += [info.key async for info in listing]
    await restarted
    assert found == names
    await store.close()


async def test_exactly_one_of_twenty_writers_with_parts(minio: MinioServer) -> None:
    """Half of them send many parts; each has connections of its own."""
    settings = minio.settings()
    stores = [minio.store(s3_prefix=settings.s3_prefix) for _ in range(4)]
    datas = [bytes([n]) * ((9 << 20) if n % 2 else 5) for n in range(20)]

    async def write(n: int) -> int | None:
        with suppress(Conflict):
            await stores[n % 4].put("k", stream(datas[n]), if_absent=True)
            return n
        return None

    winners = [n for n in await asyncio.gather(*map(write, range(20))) if n is not None]
    assert len(winners) == 1
    assert await read(stores[0], "k") == datas[winners[0]]
    assert await stores[0].discard_unfinished(older_than_s=0) == 0
    for store in stores:
        await store.close()


class Doubtful(Bucket):
    """All parts arrive; whether the object was completed is not told, and who asks for it waits."""

    def __init__(self) -> None:
        self.asked, self.answered = threading.Event(), threading.Event()
        self.given_up: list[str] = []

    def begin_upload(self, key: str, *, token: str) -> str:
        return f"upload of {key}"

    def put_part(self, key: str, upload: str, number: int, data: bytes) -> str:
        return "etag"

    def complete_upload(self, key: str, upload: str, etags: list[str], *, if_absent: bool) -> datetime:
        raise ConnectionResetError("on the way")

    def head(self, key: str) -> Head:
        self.asked.set()
        self.answered.wait(30)
        raise ConnectionResetError("on the way")

    def abort_upload(self, key: str, upload: str) -> None:
        self.given_up.append(upload)


async def test_a_cancel_while_an_upload_is_in_doubt_gives_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts would be paid for until somebody removes unfinished uploads."""
    monkeypatch.setattr("runyard.store.s3.calls.PATIENCE_S", 0.0)
    monkeypatch.setattr("runyard.store.s3.upload.PART", 4)
    account = {"s3_access_key": "nobody", "s3_secret_key": "is asked"}
    store = open_s3(
        Settings.model_validate(
            {"store": "s3", "s3_endpoint": "http://127.0.0.1:1", "s3_bucket": "yard", **account}
        )
    )
    store._bucket = bucket = Doubtful()
    putting = asyncio.create_task(store.put("k", stream(b"12345678", 4)))
    try:
        async with asyncio.timeout(30):
            while not bucket.asked.is_set():
                await asyncio.sleep(0.01)
            putting.cancel()
            await asyncio.wait([putting])
    finally:
        bucket.answered.set()
        await store.close()
    assert putting.cancelled()
    assert bucket.given_up == ["upload of k"]
