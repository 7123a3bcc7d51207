"""Stores on which cleanups are tested: both kinds of folder."""

from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

import pytest

from runyard.store.base import ObjectStore
from runyard.store.posix import PosixStore
from runyard.store.posixflat import PosixFlatStore


@pytest.fixture
def new_store(tmp_path: Path) -> Callable[[], Awaitable[ObjectStore]]:
    numbers = count()

    async def make() -> ObjectStore:
        return PosixStore(tmp_path / f"store{next(numbers)}", durable=False)

    return make


@pytest.fixture(params=[PosixStore, PosixFlatStore])
def folder_store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    made: ObjectStore = request.param(tmp_path / "folder", durable=False)
    return made
