"""The stores on which records are tested: both kinds of folder, and a bucket."""

from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio
from minio_server import MinioServer

from runyard.store.base import ObjectStore
from runyard.store.posix import PosixStore
from runyard.store.posixflat import PosixFlatStore
from runyard.store.s3.store import S3Store


@pytest.fixture
def new_store(tmp_path: Path) -> Callable[[], Awaitable[ObjectStore]]:
    numbers = count()

    async def make() -> ObjectStore:
        return PosixStore(tmp_path / f"store{next(numbers)}", durable=False)

    return make


@pytest_asyncio.fixture(params=[PosixStore, PosixFlatStore, S3Store])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    if request.param is S3Store:
        minio: MinioServer = request.getfixturevalue("minio")
        kept: ObjectStore = minio.store()
    else:
        kept = request.param(tmp_path / "store", durable=False)
    yield kept
    await kept.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test with many seeds a bucket, which is slower, gets a few; the rest is for `make soak`."""
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {})
        if given.get("store") is S3Store and given.get("seed", 0) > 3:
            item.add_marker("soak")
