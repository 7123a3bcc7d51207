"""The engine's bars: our run of no-ops on the memory executor beside the floor, in turn, on one server.

python -m benchmarks.engine [--tasks 500] [--layers 1] [--parents 0] [--repeats 3] [--folder /dev/shm]

The server keeps its data in memory, and so does the store, by a file system in memory where there is one: ext4
passes over every inode that was freed in the last five minutes, so that on a disk that a measurement has just
cleaned up an object costs ten times what it costs otherwise (0.7 ms instead of 0.06), and the next run pays.
"""

import argparse
import asyncio
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from temporalio.client import Client
from temporalio.worker import Worker

from benchmarks.floor import QUEUE, Floor, FloorInput, empty
from runyard.executors.memory import MemoryExecutor
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult
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
async def bench(folder: Path) -> AsyncIterator[tuple[Client, PosixStore]]:
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


async def run_ours(client: Client, store: PosixStore, file: str) -> tuple[float, float, str]:
    """Seconds, the slowest answer of `describe` in seconds, and the run's id."""
    run_id = f"bench-{uuid.uuid4().hex}"
    start = time.perf_counter()
    handle = await client.start_workflow(
        WORKFLOW,
        {"file": file, "executor": "memory"},
        id=run_id,
        task_queue=RUNS_QUEUE,
        result_type=RunResult,
    )
    words = ["-m", "benchmarks.ask", client.service_client.config.target_host, str(store.folder), run_id]
    asking = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=asyncio.subprocess.PIPE)
    result = await handle.result()
    took_s = time.perf_counter() - start
    assert result.result == "success", result
    told, _ = await asking.communicate()
    return took_s, json.loads(told)["slowest"], run_id


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


def memory_folder() -> Path | None:
    """Of a file system in memory; None where there is none, or one may not be written to."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else None


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--parents", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=memory_folder(), help="where the store is")
    args = parser.parse_args()
    parents = graph(args.tasks, args.layers, args.parents)
    file = run_file(parents)
    floors: list[float] = []
    ours: list[float] = []
    slowest, last = 0.0, ""
    per_task = 1000 / len(parents)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
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
