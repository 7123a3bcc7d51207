"""A client, and a worker with local processes where a test wants one."""

from pathlib import Path

import pytest
from temporalio.client import Client
from yard import Yard

from runyard.client import Runyard
from runyard.settings import Settings
from runyard.store.base import ObjectStore


@pytest.fixture
def idle(client: Client, store: ObjectStore, tmp_path: Path) -> Runyard:
    """No worker of this test serves it."""
    settings = Settings(state=tmp_path / "state", store_folder=tmp_path / "store", executor="memory")
    return Runyard(client, store, settings=settings)


@pytest.fixture
def runs(idle: Runyard, yard: Yard) -> Runyard:
    return idle
