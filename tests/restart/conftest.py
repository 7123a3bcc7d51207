"""A client and a worker with local processes."""

from pathlib import Path

import pytest
from restarts import Scene
from temporalio.client import Client
from yard import Yard

from runyard.client import Runyard
from runyard.settings import Settings
from runyard.store.base import ObjectStore


@pytest.fixture
def runs(client: Client, store: ObjectStore, tmp_path: Path) -> Runyard:
    """A client where no worker of this test serves."""
    settings = Settings(state=tmp_path / "state", store_folder=tmp_path / "store", executor="local")
    return Runyard(client, store, settings=settings, ui="http://ui.example:8233")


@pytest.fixture
def scene(runs: Runyard, local_yard: Yard, tmp_path: Path) -> Scene:
    return Scene(runs, tmp_path)
