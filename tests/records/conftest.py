"""The stores on which records are tested: both kinds of folder, and a bucket."""

from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

import pytest
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


@pytest.fixture(params=[PosixStore, PosixFlatStore, S3Store])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param is S3Store:
        minio: MinioServer = request.getfixturevalue("minio")
        return minio.store()
    kept: ObjectStore = request.param(tmp_path / "store", durable=False)
    return kept
