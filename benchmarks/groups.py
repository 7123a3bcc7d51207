"""Groups and fairness, on the memory executor and a server of their own.

python -m benchmarks.groups [--runs 50] [--many 600] [--few 10] [--slots 8]

* Runs of one group, started at once: are their numbers 1, 2, 3 … in the order in which they ran, and how long is
  it from the end of one (its workflow has closed) to the start of the next (its first task is asked for)?
* An owner with few tasks behind one with many: how much of the many is done when the few are?
"""

import argparse
import asyncio
import contextlib
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle

from benchmarks.rows import HEAD, Row, Samples
from runyard.executors.memory import MemoryExecutor
from runyard.records.runs import read_result
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult, RunView
from runyard.store.posix import PosixStore
from runyard.temporal import connect
from workers.embedded import embedded_server
from workers.serve import build_workers, require_search_attributes

Handle = WorkflowHandle[object, RunResult]
GAP_BAR_S = 0.150


@asynccontextmanager
async def bench(folder: Path, executor: MemoryExecutor) -> AsyncIterator[tuple[Client, PosixStore]]:
    async with embedded_server(folder / "server", ephemeral=True) as server:
        client = await connect(address=server.address)
        await require_search_attributes(client)
        store = PosixStore(folder / "store", durable=False)
        async with contextlib.AsyncExitStack() as stack:
            for worker in build_workers(client, store, [executor]):
                await stack.enter_async_context(worker)
            yield client, store


def file(tasks: int, step: str) -> dict[str, object]:
    runtime = {"containers": [{"image": "none"}]}
    made = [{"name": f"t{n}", "runtime": runtime, "steps": [{"run": step}]} for n in range(tasks)]
    return {"runs": [{"name": "bench", "tasks": made}]}


async def start(client: Client, run: dict[str, object], **request: object) -> Handle:
    return await client.start_workflow(
        WORKFLOW,
        {"file": run, "executor": "memory", **request},
        id=f"bench-{uuid.uuid4().hex}",
        task_queue=RUNS_QUEUE,
        result_type=RunResult,
    )


async def span(client: Client, store: PosixStore, handle: Handle) -> tuple[int, datetime, datetime]:
    """Number, when its first task was asked for, when its workflow had closed: by the server's clock."""
    number = (await read_result(store, handle.id)).counter
    closed = (await handle.describe()).close_time
    assert closed is not None
    async for event in handle.fetch_history_events():
        asked = event.activity_task_scheduled_event_attributes
        if asked.activity_type.name == "schedule_task":
            return number, event.event_time.ToDatetime(closed.tzinfo), closed
    raise AssertionError(f"{handle.id} had no task")


async def measure_group(place: Path, *, runs: int) -> AsyncIterator[Row]:
    async with bench(place, MemoryExecutor()) as (client, store):
        group = {"group": "/project/bench/branch/main"}
        handles = await asyncio.gather(*(start(client, file(1, "true"), **group) for _ in range(runs)))
        await asyncio.gather(*(handle.result() for handle in handles))
        spans = sorted([await span(client, store, handle) for handle in handles], key=lambda each: each[1])
    numbers = [number for number, _, _ in spans]
    gaps = Samples((begun - closed).total_seconds() for (_, _, closed), (_, begun, _) in pairwise(spans))
    ordered = numbers == list(range(1, runs + 1)) and min(gaps.values) >= 0
    words = "in order, without gaps" if ordered else f"not in order: {numbers}"
    yield Row(f"{runs} runs of one group started at once: their numbers", words, f"1 to {runs}", ordered)
    gaps = Samples(gap * 1000 for gap in gaps.values)
    met = gaps.median < GAP_BAR_S * 1000
    yield Row("from the end of one to the start of the next", gaps.text("ms"), "< 150 ms", met)


async def measure_fairness(place: Path, *, many: int, few: int, slots: int) -> AsyncIterator[Row]:
    async with bench(place, MemoryExecutor(slots=slots)) as (client, _):
        big = await start(client, file(many, "sleep 1"), owner="ann")
        waiting = asyncio.create_task(big.result())
        while not (await describe(big)).counts.get("success"):
            await asyncio.wait({waiting}, timeout=0.1)
        small = await start(client, file(few, "sleep 1"), owner="bob")
        await small.result()
        done = (await describe(big)).counts.get("success", 0)
        await big.cancel()
        with contextlib.suppress(WorkflowFailureError):
            await waiting
    what = f"{few} tasks of one owner behind {many} of another, {slots} at a time: done of the {many} by then"
    yield Row(what, f"{done} ({done / many:.0%})", "< 25 %", done < many / 4)


async def describe(handle: Handle) -> RunView:
    view: RunView = await handle.query("describe", result_type=RunView)
    return view


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--many", type=int, default=600)
    parser.add_argument("--few", type=int, default=10)
    parser.add_argument("--slots", type=int, default=8)
    args = parser.parse_args()
    print(HEAD, flush=True)
    missed = False
    with tempfile.TemporaryDirectory(prefix="runyard-bench-") as folder:
        place = Path(folder)
        for rows in (
            measure_group(place / "group", runs=args.runs),
            measure_fairness(place / "fair", many=args.many, few=args.few, slots=args.slots),
        ):
            async for row in rows:
                print(row, flush=True)
                missed = missed or not row.met
    raise SystemExit(int(missed))


if __name__ == "__main__":
    asyncio.run(main())
