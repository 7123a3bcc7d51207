"""The engine's bars: our run of no-ops on the memory executor beside the floor, in turn, on one server.

python -m benchmarks.engine [--tasks 500] [--layers 1] [--parents 0] [--repeats 3]
"""

import argparse
import asyncio
import resource
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from temporalio.client import Client
from temporalio.worker import Worker

from benchmarks.floor import QUEUE, Floor, FloorInput, empty
from runyard.client import Runyard
from runyard.executors.memory import MemoryExecutor
from runyard.settings import Settings
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult
from runyard.store.base import ObjectStore
from runyard.store.posix import PosixStore
from runyard.temporal import connect
from workers.embedded import embedded_server
from workers.runner import collect_rarely
from workers.serve import RUNNER, build_workers, require_search_attributes


def graph(tasks: int, layers: int, parents: int) -> list[list[int]]:
    """Indexes of each task's parents: task n of a layer waits for n, n+1, … of the layer before."""
    width = tasks // layers
    return [
        [(i // width - 1) * width + (i % width + k) % width for k in range(parents)] if i >= width else []
        for i in range(width * layers)
    ]


def run_file(parents: list[list[int]]) -> str:
    """The same graph as a run file."""
    once = ("&r {containers: [{image: none}]}", "&s [{run: 'true'}]")
    rows = "\n".join(
        "  - {{name: t{:05d}, runtime: {}, steps: {}, depends: [{}]}}".format(
            i, *(once if i == 0 else ("*r", "*s")), ", ".join(f"t{p:05d}" for p in mine)
        )
        for i, mine in enumerate(parents)
    )
    return f"runs:\n- name: bench\n  tasks:\n{rows}\n"


@asynccontextmanager
async def bench(folder: Path) -> AsyncIterator[tuple[Client, ObjectStore]]:
    """A server, and a worker for both."""
    async with embedded_server(folder / "server", ephemeral=True) as server:
        client = await connect(address=server.address)
        await require_search_attributes(client)
        store = PosixStore(folder / "store", durable=False)
        floor = Worker(
            client,
            task_queue=QUEUE,
            workflows=[Floor],
            activities=[empty],
            workflow_runner=RUNNER,
            max_concurrent_activities=2000,
        )
        ours = build_workers(client, store, [MemoryExecutor()])
        async with floor, ours[0], ours[1]:
            collect_rarely()
            yield client, store


async def run_floor(client: Client, parents: list[list[int]]) -> float:
    start = time.perf_counter()
    await client.execute_workflow("Floor", FloorInput(parents), id=f"floor-{uuid.uuid4().hex}", task_queue=QUEUE)
    return time.perf_counter() - start


async def run_ours(client: Client, store: ObjectStore, file: str) -> tuple[float, float, str]:
    """Seconds, the slowest answer of `describe` in seconds, and the run's id."""
    start = time.perf_counter()
    handle = await client.start_workflow(
        WORKFLOW,
        {"file": file, "executor": "memory"},
        id=f"bench-{uuid.uuid4().hex}",
        task_queue=RUNS_QUEUE,
        result_type=RunResult,
    )
    waiting = asyncio.create_task(handle.result())
    run = Runyard(client, store, settings=Settings()).run(handle.id)
    slowest = 0.0
    while not waiting.done():
        await asyncio.wait({waiting}, timeout=5)
        if not waiting.done():
            asked = time.perf_counter()
            await run.describe()
            slowest = max(slowest, time.perf_counter() - asked)
    result = await waiting
    assert result.result == "success", result
    return time.perf_counter() - start, slowest, handle.id


async def histories(client: Client, workflow_id: str) -> tuple[int, int, int]:
    """Executions, events of the longest, bytes of the largest payload."""
    executions = longest = largest = 0
    async for execution in client.list_workflows(f"WorkflowId = '{workflow_id}'"):
        executions += 1
        longest = max(longest, execution.history_length)
        handle = client.get_workflow_handle(workflow_id, run_id=execution.run_id)
        async for event in handle.fetch_history_events():
            largest = max(largest, event.ByteSize())
    return executions, longest, largest


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--parents", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    parents = graph(args.tasks, args.layers, args.parents)
    file = run_file(parents)
    floors: list[float] = []
    ours: list[float] = []
    slowest, last = 0.0, ""
    per_task = 1000 / len(parents)
    with tempfile.TemporaryDirectory() as folder:
        async with bench(Path(folder)) as (client, store):
            for _ in range(args.repeats):
                at = [time.process_time()]
                floors.append(await run_floor(client, parents))
                at.append(time.process_time())
                seconds, slow, last = await run_ours(client, store, file)
                at.append(time.process_time())
                ours.append(seconds)
                slowest = max(slowest, slow)
                print(
                    f"floor {floors[-1]:.2f} s   ours {seconds:.2f} s   describe ≤ {slow:.2f} s   "
                    f"CPU a task {(at[1] - at[0]) * per_task:.1f} and {(at[2] - at[1]) * per_task:.1f} ms",
                    flush=True,
                )
            executions, events, largest = await histories(client, last)
    ratios = [f / o for f, o in zip(floors, ours, strict=True)]
    n = len(parents)
    print(
        f"{n} tasks in {args.layers} layers: ours {n / statistics.median(ours):.1f} tasks/s, "
        f"{statistics.median(ratios):.0%} of raw ({min(ratios):.0%} to {max(ratios):.0%}); "
        f"{executions} executions, longest history {events} events, largest event {largest} bytes, "
        f"describe ≤ {slowest:.2f} s, worker {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB"
    )


if __name__ == "__main__":
    asyncio.run(main())
