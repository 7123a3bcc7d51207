"""A cleanup of many expired runs that share every second task, on a real server and a store in a folder.

    python -m benchmarks.cleanup [--runs 1000] [--tasks 10] [--young 0]

``--young`` runs beside them are within retention: 100,000 show that the memory of the worker does not grow with
them. An S3 store is chosen by the settings, as everywhere: ``RUNYARD_STORE=s3`` and what goes with it.
"""

import argparse
import asyncio
import resource
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.rows import Row, report
from runyard.client import Runyard
from runyard.client.cleanup import clean
from runyard.records.bounded import for_each
from runyard.records.runs import write_plan, write_result, write_runids
from runyard.settings import Settings
from runyard.spec.plan import Container, Plan, RunPlan, TaskPlan
from runyard.spec.run import RunView
from runyard.store import paths
from runyard.store.base import ObjectStore
from runyard.store.open import open_store
from workers.embedded import embedded_server
from workers.serve import build_workers, require_search_attributes

AT_ONCE = 32
SHARED_BY = "stays"


async def put_run(store: ObjectStore, run_id: str, *, tasks: int, days: float) -> None:
    """A run whose every second task a run that stays refers to, if it is an old one."""
    ids = [f"{run_id}-{n}" for n in range(tasks)]
    await write_runids(store, run_id, logs=ids, archives=ids)
    for task in ids:
        await store.put(paths.seal(task, 1), b"{}")
        await store.put(paths.step_log(task, 1, 0), b"said\n")
        await store.put(f"{paths.archives(task)}0.json", b"{}")
        await store.put(f"{paths.archives(task)}0.tar.gz", b"x" * 1000)
    plan = [TaskPlan(id=task, name=task, containers=[Container(image="none")]) for task in ids]
    await write_plan(store, Plan(run=RunPlan(run_id=run_id, name="bench"), tasks=plan))
    ended = datetime.now(UTC) - timedelta(days=days)
    await write_result(store, RunView(id=run_id, phase="finished", result="success", ended_at=ended))


async def fill(store: ObjectStore, *, runs: int, tasks: int, young: int) -> int:
    """The number of objects that a cleanup has to delete."""

    async def old(n: int) -> None:
        run_id = f"old{n:06d}"
        await put_run(store, run_id, tasks=tasks, days=400)
        shared = [f"{run_id}-{m}" for m in range(0, tasks, 2)]
        await write_runids(store, SHARED_BY, logs=shared, archives=shared)

    async def new(n: int) -> None:
        await put_run(store, f"young{n:06d}", tasks=tasks, days=1)

    await put_run(store, SHARED_BY, tasks=0, days=1)
    await for_each(range(runs), old, limit=AT_ONCE)
    await for_each(range(young), new, limit=AT_ONCE)
    own = tasks // 2
    return runs * (2 * tasks + own * 4 + 2)  # runid objects, data of what nobody shares, record


async def measure(
    settings: Settings, place: Path, *, runs: int, tasks: int, young: int, repeats: int
) -> list[Row]:
    rates, growth = [], 0
    for repeat in range(repeats):
        if settings.store != "s3":
            settings = settings.model_copy(update={"store_folder": place / f"store{repeat}"})
        store = open_store(settings, durable=False)
        wanted = await fill(store, runs=runs, tasks=tasks, young=young)
        shared = tasks - tasks // 2
        async with embedded_server(place, headless=True, ephemeral=True) as server:
            await require_search_attributes(server.client)
            workers = build_workers(server.client, store, [])
            async with workers[0], Runyard.over(server.client, settings) as yard:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                begin = time.perf_counter()
                cleaned = await (await clean(yard)).result()
                took_s = time.perf_counter() - begin
                growth = max(growth, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        deleted = sum(tally.objects for tally in cleaned.deleted.values())
        left = [info.key async for info in store.list("logs/old")]
        assert deleted == wanted, (deleted, wanted)
        assert len(left) == runs * shared * 3, "all and only what nobody shares is gone"
        rates.append(deleted / took_s)
        await store.close()
    bar = 200 if settings.store == "s3" else 2_000
    rates.sort()
    rate = rates[len(rates) // 2]
    what = f"cleanup of {runs} expired runs with {tasks} tasks, every second one shared"
    return [
        Row(
            what,
            f"{rate:,.0f} objects/s ({rates[0]:,.0f} to {rates[-1]:,.0f})",
            f"≥ {bar:,} objects/s",
            rate >= bar,
        ),
        Row(
            f"growth of its worker, {young} further runs in the store",
            f"{growth / 1024:.0f} MB",
            "flat",
            growth < 50 << 10,
        ),
    ]


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cleanup")
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--young", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1, help="of a bucket: 1, since it has to begin empty")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="runyard-bench-") as place:
        settings = Settings(state=Path(place))
        rows = await measure(
            settings, Path(place), runs=args.runs, tasks=args.tasks, young=args.young, repeats=args.repeats
        )
    raise SystemExit(report(rows))


if __name__ == "__main__":
    asyncio.run(main())
