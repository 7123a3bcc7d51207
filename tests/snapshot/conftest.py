"""A scene for each test."""

from pathlib import Path

import pytest
from snapshot.snapshot_scene import Scene

from runyard.store.posix import PosixStore


@pytest.fixture
def scene(tmp_path: Path, store: PosixStore) -> Scene:
    return Scene(tmp_path, store)
