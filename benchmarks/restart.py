"""The bar of a restart: a run of 1,000 tasks of which one failed, restarted, to the start of that task.

python -m benchmarks.restart [--tasks 1000] [--repeats 5]

Server, worker, client and a durable folder as the store are in one process and on one disk, with the memory
executor: what is measured is ours. Each kept task has a log and an archive. The clock runs from the client's call,
which judges the restart first, to the first step.
"""

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from benchmarks.rows import HEAD, Row, Samples
from runyard.client import Run, Runyard
from runyard.executors.memory import MemoryExecutor
from runyard.settings import Settings
from runyard.store.base import ObjectStore
from runyard.store.open import open_store
from workers.embedded import embedded_server
from workers.serve import build_workers, require_search_attributes

BAR_S: Final = 1.5
DESCENDANTS: Final = 5


def run_file(tasks: int) -> str:
    """Tasks beside each other that save an archive, and one that fails as it is told, with descendants."""
    once = "{containers: [{image: none}]}"
    save = "{save_to_workspace: {contents: [{paths: ['**']}]}}"
    rows = [f"  - {{name: make-{n}, runtime: {once}, steps: [{{run: echo made}}, {save}]}}" for n in range(tasks)]
    rows.append(f"  - {{name: after-0, runtime: {once}, depends: [make-0], steps: [{{run: exit $CODE}}]}}")
    for n in range(1, DESCENDANTS + 1):
        needs = f"depends: [after-{n - 1}]"
        rows.append(f"  - {{name: after-{n}, runtime: {once}, {needs}, steps: [{{run: echo}}]}}")
    return "runs:\n- name: bench\n  tasks:\n" + "\n".join(rows) + "\n"


async def measure(place: Path, *, tasks: int, repeats: int) -> AsyncIterator[Row]:
    settings = Settings(state=place, executor="memory")
    store = open_store(settings)
    async with embedded_server(place / "server", headless=True, ephemeral=True) as server:
        await require_search_attributes(server.client)
        async with contextlib.AsyncExitStack() as stack:
            for worker in build_workers(server.client, store, [MemoryExecutor()]):
                await stack.enter_async_context(worker)
            yard = await stack.enter_async_context(Runyard.over(server.client, settings))
            file = run_file(tasks - DESCENDANTS - 1)
            failed = await yard.start(file, environment={"CODE": "1"})
            assert (await failed.result()).counts["failed"] == 1
            times, written = Samples(), Samples()
            for _ in range(repeats):
                before = await _bytes(store)
                began = time.time()
                again = await yard.restart(failed.id, environment={"CODE": "0"})
                times.add(await _first_start(again, tasks) - began)
                written.add(await _bytes(store, but=await _own(again)) - before)
    kept = tasks - DESCENDANTS - 1
    met = times.median < BAR_S
    yield Row(f"restart of {tasks} tasks, {kept} kept: call to first step", times.text("s"), "< 1.5 s", met)
    yield Row("bytes of logs and archives copied by it", written.text("B"), "0", written.median == 0)


async def _first_start(run: Run, tasks: int) -> float:
    """When the first task of the restart began; the rest of it is done then too."""
    result = await run.result()
    assert (result.result, result.counts) == ("success", {"success": tasks}), result
    view = await run.describe()
    began = [task.started_at.timestamp() for task in view.tasks if task.started_at]
    assert len(began) == DESCENDANTS + 1
    return min(began)


async def _own(run: Run) -> set[str]:
    """Ids of the tasks that the run made itself."""
    return {task.id for task in (await run.describe()).tasks if not task.kept_from}


async def _bytes(store: ObjectStore, *, but: set[str] = frozenset()) -> int:  # type: ignore[assignment]
    sizes = [
        info.size
        for kind in ("logs/", "archives/")
        async for info in store.list(kind)
        if info.key.split("/")[1] not in but
    ]
    return sum(sizes)


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    missed = False
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory(prefix="runyard-bench-") as place:
        async for row in measure(Path(place), tasks=args.tasks, repeats=args.repeats):
            print(row, flush=True)
            missed = missed or not row.met
    raise SystemExit(int(missed))


if __name__ == "__main__":
    asyncio.run(main())
