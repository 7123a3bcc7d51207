"""The local path's bars: processes of this machine, a durable folder as the store, an embedded server.

Everything is in this process, the worker and who follows the logs too: what it measures is the worst case of a
`runyard exec`. The floor of the chain runs in turn with it, on the same server: on a machine that others use too
only the ratio says something. What has no floor is repeated, and its spread is given.
"""

import asyncio
import hashlib
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from temporalio.worker import Worker

from benchmarks.engine import run_floor
from benchmarks.floor import QUEUE, Floor, empty
from benchmarks.rows import Row, Samples
from runyard.client import Run, Runyard
from runyard.executors.local import folder, process
from runyard.executors.local.executor import LocalExecutor
from runyard.executors.local.starter import MARK
from runyard.executors.secrets import open_secrets
from runyard.records.logs import load_seal
from runyard.settings import Settings
from runyard.store import paths
from runyard.store.open import open_store
from workers.embedded import embedded_server
from workers.serve import RUNNER, build_workers

CHAIN: Final = 50
NUMBERS: Final = 23_500_000
"""`seq` writes 200 MB of lines with so many."""

WRITERS, LINES, LINES_PER_S = 10, 1000, 100

_CLOCK = f"""
import sys, time
begin = time.time()
for n in range({LINES}):
    time.sleep(max(0.0, begin + n / {LINES_PER_S} - time.time()))
    sys.stdout.write(f"{{time.time()}}\\n")
    sys.stdout.flush()
"""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A server, our worker, the floor's worker, and a client."""

    yard: Runyard
    tasks: Path


@asynccontextmanager
async def bench(place: Path) -> AsyncIterator[Bench]:
    settings = Settings(state=place, local_slots=WRITERS)
    store = open_store(settings)
    executor = LocalExecutor(settings.tasks_folder, slots=settings.slots, secrets=open_secrets(settings))
    async with embedded_server(place / "server", headless=True, ephemeral=True) as server:
        floor = Worker(
            server.client, task_queue=QUEUE, workflows=[Floor], activities=[empty], workflow_runner=RUNNER
        )
        ours = build_workers(server.client, store, [executor])
        async with floor, ours[0], ours[1], Runyard.over(server.client, settings) as yard:
            yield Bench(yard=yard, tasks=settings.tasks_folder)
    await executor.close()
    await store.close()


def run_file(commands: Sequence[str], *, chained: bool = False) -> str:
    """A task for each command; ``chained``: each waits for the one before."""
    tasks = [
        {
            "name": f"t{n}",
            "runtime": {"containers": [{"image": "none"}]},
            "steps": [{"run": command}],
            "depends": [f"t{n - 1}"] if chained and n else [],
        }
        for n, command in enumerate(commands)
    ]
    return json.dumps({"runs": [{"name": "bench", "tasks": tasks}]})


async def finish(run: Run) -> None:
    result = await run.result()
    assert result.result == "success", result


def cpu_s() -> float:
    """Of this process and of all that it has waited for, which are the tasks: not the server."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


async def chain(bench: Bench, repeats: int) -> list[Row]:
    """Tasks that wait for each other, and three empty activities a task beside them."""
    floor, ours, cpu, history = Samples(), Samples(), Samples(), Samples()
    parents = [[n - 1] if n else [] for n in range(CHAIN)]
    for _ in range(repeats):
        floor.add(await run_floor(bench.yard.client, parents) / CHAIN * 1e3)
        begin, used = time.perf_counter(), cpu_s()
        run = await bench.yard.start(run_file(["true"] * CHAIN, chained=True))
        await finish(run)
        ours.add((time.perf_counter() - begin) / CHAIN * 1e3)
        cpu.add((cpu_s() - used) / CHAIN)
        found = await bench.yard.client.get_workflow_handle(run.id).describe()
        history.add(found.raw_description.workflow_execution_info.history_size_bytes / CHAIN)
    ratio = Samples([f / o for f, o in zip(floor.values, ours.values, strict=True)])
    return [
        Row(f"chain of {CHAIN} no-ops, local processes", ours.text("ms a task"), "≤ 120 ms", ours.median <= 120),
        Row("the same, three empty activities a task", f"{floor.text('ms a task')}; {ratio.text('of ours')}"),
        Row("CPU of a task, worker and processes", cpu.text("s")),
        Row("history of a task", history.text("bytes")),
    ]


async def numbers(bench: Bench, repeats: int) -> list[Row]:
    """A task that writes 200 MB, to its sealed log; the floor is one reader that hashes and writes."""
    floor, ours, growth = Samples(), Samples(), Samples()
    for _ in range(repeats):
        begin = time.perf_counter()
        wanted, size = await asyncio.to_thread(_read_numbers, bench.tasks.parent / "numbers")
        floor.add(size / 1e6 / (time.perf_counter() - begin))
        async with resident() as grown:
            begin = time.perf_counter()
            run = await bench.yard.start(run_file([f"seq {NUMBERS}"]))
            await finish(run)
            ours.add(size / 1e6 / (time.perf_counter() - begin))
        growth.add(grown() / 1e6)
        await _check_stored(bench.yard, run, wanted)
    return [
        Row(f"{size / 1e6:.0f} MB of numbered lines", ours.text("MB/s"), "≥ 50 MB/s", ours.median >= 50),
        Row("the same through one reader that hashes, writes and syncs", floor.text("MB/s")),
        Row("growth of the worker meanwhile", growth.text("MB"), "flat", growth.median < 30),
    ]


def _read_numbers(to: Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with subprocess.Popen(["seq", str(NUMBERS)], stdout=subprocess.PIPE) as source, to.open("wb") as out:
        assert source.stdout is not None
        while chunk := source.stdout.read(1 << 20):
            digest.update(chunk)
            size += out.write(chunk)
        os.fsync(out.fileno())
    to.unlink()
    return digest.hexdigest(), size


async def _check_stored(yard: Runyard, run: Run, wanted: str) -> None:
    """Byte-identical, and sealed as complete."""
    task = (await run.describe()).tasks[0]
    digest = hashlib.sha256()
    async for chunk in yard.store.get(paths.step_log(task.id, 1, 0)):
        digest.update(chunk)
    assert digest.hexdigest() == wanted
    sealed = await load_seal(yard.store, task.id, 1)
    assert sealed is not None
    assert sealed.complete


@asynccontextmanager
async def resident() -> AsyncIterator[Callable[[], int]]:
    """By how many bytes this process grew at most, looked at every 20 ms."""
    begin = most = _resident_bytes()

    async def look() -> None:
        nonlocal most
        while True:
            most = max(most, _resident_bytes())
            await asyncio.sleep(0.02)

    looking = asyncio.create_task(look())
    try:
        yield lambda: most - begin
    finally:
        looking.cancel()


def _resident_bytes() -> int:
    row = process.look(os.getpid())
    assert row is not None
    return row.rss_bytes


async def following(bench: Bench, repeats: int) -> list[Row]:
    """From a line printed to the line on `logs -f`, for every line of every task."""
    p99, median, most = Samples(), Samples(), Samples()
    for _ in range(repeats):
        command = f"{sys.executable} -S -c '{_CLOCK}'"
        run = await bench.yard.start(run_file([command] * WRITERS))
        found = await asyncio.gather(*(_lateness(run, f"t{n}") for n in range(WRITERS)))
        late = sorted(itertools.chain.from_iterable(found))
        await finish(run)
        assert len(late) == WRITERS * LINES, len(late)
        p99.add(late[len(late) * 99 // 100])
        median.add(late[len(late) // 2])
        most.add(late[-1])
    said = f"{p99.text('s')} (median line {median.text('s')}, last {most.text('s')})"
    name = f"from a line printed to `logs -f`, p99, {WRITERS} tasks at {LINES_PER_S} lines/s"
    return [Row(name, said, "≤ 1.5 s", p99.median <= 1.5)]


async def _lateness(run: Run, task: str) -> list[float]:
    return [time.time() - float(line.text) async for line in run.logs(task, step=0, follow=True)]


async def cancelling(bench: Bench, repeats: int) -> list[Row]:
    """From `cancel` to the last process gone, and to the end of the run."""
    gone, ended = Samples(), Samples()
    for _ in range(repeats):
        run = await bench.yard.start(run_file(["echo begun; sleep 600 & sleep 600"] * 4))
        await asyncio.gather(*(_first_line(run, f"t{n}") for n in range(4)))
        marks = list(_marks(bench.tasks))
        begin = time.perf_counter()
        await run.cancel()
        await asyncio.gather(_timed(_until_gone(marks), begin, gone), _timed(run.result(), begin, ended))
    return [
        Row("`run cancel` to all processes gone, 4 tasks", gone.text("s"), "≤ 1 s", gone.median <= 1),
        Row("the same to the end of the run", ended.text("s")),
    ]


async def _timed(work: Awaitable[object], begin: float, into: Samples) -> None:
    await work
    into.add(time.perf_counter() - begin)


async def _first_line(run: Run, task: str) -> None:
    lines = run.logs(task, step=0, follow=True)
    await anext(aiter(lines))


def _marks(tasks: Path) -> list[str]:
    uids = [facts.uid for pod in folder.pods(tasks) if (facts := pod.facts()) is not None]
    return [f"{MARK}={uid}{end}" for uid in uids for end in ("", ".main")]


async def _until_gone(marks: list[str]) -> None:
    assert process.carrying(*marks)
    while process.carrying(*marks):  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)


MEASURES: Final = (chain, following, cancelling, numbers)


async def measure(place: Path, *, repeats: int, only: str = "") -> AsyncIterator[Row]:
    """The rows, each as soon as it is there."""
    async with bench(place) as made:
        for each in MEASURES:
            if only in ("", each.__name__):
                for row in await each(made, repeats):
                    yield row
