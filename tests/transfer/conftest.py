"""Two yards: one where runs are made, and another one, with a namespace and a store of its own."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.testing import WorkflowEnvironment
from transfers import at_work
from yard import Yard

from runyard.client import Runyard
from runyard.errors import RunyardError
from runyard.settings import Settings
from runyard.store.base import ObjectStore
from runyard.store.posix import PosixStore
from runyard.temporal import connect
from workers.serve import require_search_attributes


@pytest_asyncio.fixture(scope="session")
async def elsewhere(server: WorkflowEnvironment) -> Client:
    """A second namespace, which knows no run of the first."""
    name, client = f"elsewhere-{uuid.uuid4().hex[:8]}", server.client
    request = RegisterNamespaceRequest(namespace=name)
    request.workflow_execution_retention_period.FromTimedelta(timedelta(days=1))
    await client.workflow_service.register_namespace(request)
    for _ in range(600):  # the server's caches learn of it after a while
        try:
            found = await connect(address=client.service_client.config.target_host, namespace=name)
            await require_search_attributes(found)
            await found.count_workflows("RunyardProject = 'x'")
            return found
        except (RPCError, RunyardError):
            await asyncio.sleep(0.1)
    raise AssertionError(f"the namespace {name} does not come")


@pytest.fixture
def here(client: Client, store: ObjectStore, tmp_path: Path, local_yard: Yard) -> Runyard:
    settings = Settings(state=tmp_path / "state", store_folder=tmp_path / "store", executor="local")
    return Runyard(client, store, settings=settings)


@pytest_asyncio.fixture
async def there(elsewhere: Client, tmp_path: Path) -> AsyncIterator[Runyard]:
    """The other yard, in a folder, with a worker."""
    async for yard in at_work(elsewhere, PosixStore(tmp_path / "store-there"), tmp_path):
        yield yard
