"""The store `s3` beside the plain library and `curl`, in turn, on the bucket of the settings.

RUNYARD_S3_ENDPOINT=… RUNYARD_S3_BUCKET=… RUNYARD_S3_ACCESS_KEY=… RUNYARD_S3_SECRET_KEY=… \\
    python -m benchmarks.s3 [--objects 2000] [--at-once 16] [--megabytes 300] [--repeats 5]

What it writes is below `bench-…/` of the store's prefix, and removed at the end.
"""

import argparse
import asyncio
import io
import secrets
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from minio import Minio

from benchmarks.rows import HEAD, Row, Samples
from runyard.settings import Settings
from runyard.store.base import read
from runyard.store.s3.bucket import open_client, open_http
from runyard.store.s3.credentials import open_credentials
from runyard.store.s3.place import read_place
from runyard.store.s3.store import S3Store, open_s3

SMALL = b"x" * 200
CHUNK = secrets.token_bytes(1 << 20)


class Floor:
    """The library's own calls, as many at once as ours."""

    def __init__(self, settings: Settings, *, at_once: int) -> None:
        self.place = read_place(settings)
        http = open_http(self.place, connections=at_once)
        self.client: Minio = open_client(self.place.endpoint, self.place, open_credentials(settings, http), http)
        self.threads = ThreadPoolExecutor(at_once)

    def put(self, key: str) -> None:
        self.client.put_object(self.place.bucket, self.place.prefix + key, io.BytesIO(SMALL), len(SMALL))

    def get(self, key: str) -> None:
        answer = self.client.get_object(self.place.bucket, self.place.prefix + key)
        answer.read()
        answer.release_conn()

    def delete(self, key: str) -> None:
        self.client.remove_object(self.place.bucket, self.place.prefix + key)

    def url(self, method: str, key: str) -> str:
        good = timedelta(minutes=30)
        return self.client.get_presigned_url(method, self.place.bucket, self.place.prefix + key, good)

    def rate(self, call: Callable[[str], None], keys: list[str]) -> float:
        begin = time.perf_counter()
        list(self.threads.map(call, keys))
        return len(keys) / (time.perf_counter() - begin)


async def rate(call: Callable[[str], Awaitable[object]], keys: list[str], *, at_once: int) -> float:
    """Calls a second."""
    waiting = iter(keys)

    async def work() -> None:
        for key in waiting:
            await call(key)

    begin = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return len(keys) / (time.perf_counter() - begin)


async def small(store: S3Store, floor: Floor, base: str, *, objects: int, at_once: int, repeats: int) -> list[Row]:
    keys = [f"{base}small/{n:06d}" for n in range(objects)]
    ours: dict[str, Callable[[str], Awaitable[object]]] = {
        "put": lambda key: store.put(key, SMALL),
        "get": lambda key: read(store, key),
        "delete": store.delete,
    }
    plain = {"put": floor.put, "get": floor.get, "delete": floor.delete}
    found = {name: (Samples(), Samples()) for name in ours}
    for _ in range(repeats):
        for name, call in plain.items():
            found[name][1].add(await asyncio.to_thread(floor.rate, call, keys))
        for name, ask in ours.items():
            found[name][0].add(await rate(ask, keys, at_once=at_once))
    rows = []
    for name, (mine, theirs) in found.items():
        rows.append(Row(f"S3, small objects, {name}, {at_once} at once", mine.text("a second")))
        rows.append(Row("the same by plain calls of the library", theirs.text("a second")))
    return rows


async def stream(megabytes: int) -> AsyncIterator[bytes]:
    for _ in range(megabytes):
        yield CHUNK


def curl(*words: str) -> None:
    subprocess.run(["curl", "--fail", "--silent", "--show-error", *words], check=True)


async def large(store: S3Store, floor: Floor, base: str, *, megabytes: int, repeats: int) -> list[Row]:
    up, down, curl_up, curl_down = Samples(), Samples(), Samples(), Samples()
    key = f"{base}large"
    with TemporaryDirectory(prefix="runyard-bench-") as place:
        file = Path(place) / "file"
        file.write_bytes(CHUNK * megabytes)
        for _ in range(repeats):
            upload = ("-T", str(file), floor.url("PUT", key))
            curl_up.add(megabytes / await _seconds(asyncio.to_thread(curl, *upload)))
            curl_down.add(
                megabytes / await _seconds(asyncio.to_thread(curl, "-o", "/dev/null", floor.url("GET", key)))
            )
            up.add(megabytes / await _seconds(store.put(key, stream(megabytes))))
            down.add(megabytes / await _seconds(_drain(store.get(key))))
    return [
        Row(f"S3, stream of {megabytes} MiB of unknown size, up", up.text("MiB/s")),
        Row("the same by `curl` and a presigned PUT, from a file", curl_up.text("MiB/s")),
        Row("the same stream, down", down.text("MiB/s")),
        Row("the same by `curl`", curl_down.text("MiB/s")),
    ]


async def _seconds(work: Awaitable[object]) -> float:
    begin = time.perf_counter()
    await work
    return time.perf_counter() - begin


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    async for _ in chunks:
        pass


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.s3", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if not shutil.which("curl"):
        parser.error("`curl` is the floor of the streams, and is not there")
    settings = Settings()
    store, floor = open_s3(settings), Floor(settings, at_once=args.at_once)
    base = f"bench-{secrets.token_hex(4)}/"
    print(HEAD, flush=True)
    try:
        for row in await small(
            store, floor, base, objects=args.objects, at_once=args.at_once, repeats=args.repeats
        ):
            print(row, flush=True)
        for row in await large(store, floor, base, megabytes=args.megabytes, repeats=args.repeats):
            print(row, flush=True)
    finally:
        async for info in store.list(base):
            await store.delete(info.key)
        await store.close()


if __name__ == "__main__":
    asyncio.run(main())
