"""A worker that takes over from one that died is waited for: its start is short, and that is what it loads."""

import subprocess
import sys
import uuid
from contextlib import AsyncExitStack

from temporalio.client import Client

from runyard import __version__
from runyard.executors.memory import MemoryExecutor
from runyard.spec.run import RUNS_QUEUE, WORKFLOW
from runyard.store.base import ObjectStore
from workers.serve import build_workers

_LOADED = """
import sys
import runyard.cli.worker, runyard.executors.kubernetes.executor, runyard.store.s3.store, workers.serve
print(*sys.modules)
"""


def test_a_worker_loads_nothing_that_it_may_never_need() -> None:
    """Neither the cluster's models, 1,400 modules, nor what only some settings ask for."""
    said = subprocess.run([sys.executable, "-c", _LOADED], capture_output=True, text=True, check=True)
    loaded = said.stdout.split()
    models = [
        name for name in loaded if name.startswith(("kubernetes.client.models.", "kubernetes.aio.client.models."))
    ]
    assert models == []
    assert {"opentelemetry", "prometheus_client", "runyard.executors.local.executor"}.isdisjoint(loaded)


async def test_histories_name_the_version_that_made_them(client: Client, store: ObjectStore) -> None:
    """And not a digest of all that is loaded, which takes as long as a fifth of the start."""
    async with AsyncExitStack() as stack:
        for worker in build_workers(client, store, [MemoryExecutor()]):
            await stack.enter_async_context(worker)
        handle = await client.start_workflow(WORKFLOW, {}, id=f"test-{uuid.uuid4().hex}", task_queue=RUNS_QUEUE)
        events = [event async for event in handle.fetch_history_events(wait_new_event=True)]
    done = next(e for e in events if e.HasField("workflow_task_completed_event_attributes"))
    told = done.workflow_task_completed_event_attributes
    assert f"runyard-{__version__}" in (told.worker_version.build_id, told.binary_checksum)
