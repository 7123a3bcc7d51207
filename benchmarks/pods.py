"""What a pod's log, an archive, a cancel, a worker's death and many pods cost on a cluster with a bucket.

python -m benchmarks.pods [--only log,away,follow,archive,cancel,many,killed] [--quick] [--repeats 3]

See `benchmarks.cluster` for what it needs. Everything is as in use: the worker is a process of its own, the pods
are of the real images, and who reads logs reads them from the bucket.
"""

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.archives import by_hand, make_tree
from benchmarks.cluster import (
    OUR_IMAGE,
    SHARED,
    Cluster,
    agents_use,
    open_cluster,
    processor_s,
    resident_mb,
    task,
    watched,
)
from benchmarks.rows import HEAD, Row, Samples
from runyard.client import Run
from runyard.records.logs import Seal
from runyard.records.reader import LogReader

GRACE_S: Final = 10
"""What a task has when its run is cancelled."""

_CLOCK: Final = """
import sys, time
begin = time.time()
for n in range({lines}):
    time.sleep(max(0.0, begin + n / {rate} - time.time()))
    sys.stdout.write(f"{{n}} {{time.time()}}\\n")
    sys.stdout.flush()
"""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    numbers: int = 23_500_000  # `seq` writes 200 MB of lines with so many
    away_s: float = 60
    spool_bytes: int = 32 << 20
    writers: int = 10
    rate: int = 1_000
    seconds: int = 60
    files: int = 10_000
    megabytes: int = 1_000
    cancelled: int = 20
    many: int = 100
    look_s: float = 60
    killed: int = 50
    repeats: int = 3


SMALL: Final = Sizes(
    numbers=2_000_000,
    away_s=8,
    spool_bytes=1 << 20,
    writers=2,
    rate=100,
    seconds=5,
    files=100,
    megabytes=10,
    cancelled=3,
    many=4,
    look_s=5,
    killed=4,
    repeats=1,
)


# A log as fast as it can be written


async def log(cluster: Cluster, sizes: Sizes) -> list[Row]:
    wanted, size = await asyncio.to_thread(read_numbers, sizes.numbers)
    rates, memory, cpu, whole = Samples(), Samples(), Samples(), True
    async with cluster.worker():
        for _ in range(sizes.repeats):
            async with agents_use() as use:
                run = await cluster.start([task("log", f"seq {sizes.numbers}")])
                await finish(run)
            task_id = (await cluster.task_ids(run))["log"]
            rates.add(size / 1e6 / cluster.took_s(task_id))
            memory.add(use.most_mb)
            cpu.add(sum(use.cpu_s.values()))
            whole = await is_whole(cluster, task_id, wanted) and whole
    met = whole and rates.median >= 50
    return [
        Row(f"log of {size / 1e6:.0f} MB from a pod", f"{rates.text('MB/s')}, {_words(whole)}", "≥ 50 MB/s", met),
        Row("RSS of its agent", memory.text("MB"), "≤ 100 MB", max(memory.values) <= 100),
        Row("CPU of its agent, its start included", cpu.text("s")),
    ]


def read_numbers(count: int) -> tuple[str, int]:
    """SHA-256 and size of what `seq` prints."""
    digest, size = hashlib.sha256(), 0
    with subprocess.Popen(["seq", str(count)], stdout=subprocess.PIPE) as source:
        assert source.stdout is not None
        while chunk := source.stdout.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


async def finish(run: Run) -> None:
    result = await run.result()
    assert result.result == "success", result


async def is_whole(cluster: Cluster, task_id: str, wanted: str) -> bool:
    """Sealed as complete, and byte-identical for who reads it."""
    digest = hashlib.sha256()
    async for chunk in LogReader(cluster.yard.store, task_id, 1).read(0):
        digest.update(chunk)
    seal = await cluster.seal(task_id)
    return seal.complete and digest.hexdigest() == wanted == seal.steps[0].sha256


def _words(whole: bool) -> str:
    return "byte-identical, sealed `complete`" if whole else "NOT THE SAME OR NOT COMPLETE"


# The same with the store away in the middle


async def away(cluster: Cluster, sizes: Sizes) -> list[Row]:
    """Asleep: it takes connections and answers nothing. And killed: there is nobody to connect to."""
    wanted, size = await asyncio.to_thread(read_numbers, sizes.numbers)
    rows = []
    for how, leave in (("asleep", cluster.store_asleep), ("killed", cluster.store_dead)):
        async with (
            cluster.worker(kubernetes_spool_bytes=str(sizes.spool_bytes)),
            agents_use() as use,
        ):
            run = await cluster.start([task("log", f"seq {sizes.numbers}")])
            task_id = await first_segment(cluster, run, "log")
            with leave():
                await asyncio.sleep(sizes.away_s)  # this is how long it is away: nothing is waited for
            await finish(run)
        whole = await is_whole(cluster, task_id, wanted)
        (step,) = (await cluster.manifest(task_id)).steps
        assert step.started_at is not None
        assert step.ended_at is not None
        step_s = (step.ended_at - step.started_at).total_seconds()
        what = f"{size / 1e6:.0f} MB, the store {how} for {sizes.away_s:g} s in the middle"
        found = f"{_words(whole)}; the step took {step_s:.1f} s, its agent {use.most_mb:.0f} MB"
        met = whole and step_s >= sizes.away_s and use.most_mb <= 100
        rows.append(Row(what, found, "the same; the step waits", met))
    return rows


async def first_segment(cluster: Cluster, run: Run, name: str) -> str:
    """The task's id, once something of its log is in the store."""
    lines = run.logs(name, step=0, follow=True)
    async with contextlib.aclosing(lines):  # type: ignore[type-var]
        await anext(aiter(lines))
    return (await cluster.task_ids(run))[name]


# Logs of many pods, read while they are written


async def follow(cluster: Cluster, sizes: Sizes) -> list[Row]:
    lines = sizes.rate * sizes.seconds
    command = f"python3 -S -c '{_CLOCK.format(lines=lines, rate=sizes.rate)}'"
    async with cluster.worker(), agents_use() as use:
        run = await cluster.start([task(f"t{n}", command, image=OUR_IMAGE) for n in range(sizes.writers)])
        found = await asyncio.gather(*(_lateness(run, f"t{n}") for n in range(sizes.writers)))
        await finish(run)
    ids = await cluster.task_ids(run)
    seals = [await cluster.seal(ids[f"t{n}"]) for n in range(sizes.writers)]
    whole = all(each.in_order == lines for each in found) and all(_has(seal, lines) for seal in seals)
    late = sorted(itertools.chain.from_iterable(each.late_s for each in found))
    p99 = late[len(late) * 99 // 100]
    said = f"{p99:.2f} s (median line {late[len(late) // 2]:.2f} s, last {late[-1]:.2f} s)"
    slow = max(each.wrote_s for each in found)
    words = "nothing lost or doubled" if whole else "LINES LOST OR DOUBLED"
    return [
        Row(
            f"from a line printed to `logs -f`, p99, {sizes.writers} pods at {sizes.rate:,} lines/s",
            f"{said}; {words}",
            "≤ 1.5 s",
            whole and p99 <= 1.5,
        ),
        Row(
            f"they wrote {lines:,} lines each in",
            f"{slow:.1f} s",
            f"{sizes.seconds} s",
            slow < sizes.seconds * 1.1,
        ),
        Row("RSS of the largest agent", f"{use.most_mb:.0f} MB", "≤ 100 MB", use.most_mb <= 100),
        Row(
            "CPU of an agent for a thousand lines",
            f"{sum(use.cpu_s.values()) / (sizes.writers * lines) * 1e6:.1f} ms",
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class Followed:
    """``in_order``: so many lines came, each one after the one before; -1 = they did not."""

    in_order: int
    late_s: list[float]
    wrote_s: float


async def _lateness(run: Run, name: str) -> Followed:
    late_s: list[float] = []
    in_order, first, printed = 0, 0.0, 0.0
    async for line in run.logs(name, step=0, follow=True):
        number, _, clock = line.text.partition(" ")
        printed = float(clock)
        first = first or printed
        late_s.append(time.time() - printed)
        in_order = in_order + 1 if int(number) == in_order else -1
    return Followed(in_order=in_order, late_s=late_s, wrote_s=printed - first)


def _has(seal: Seal, lines: int) -> bool:
    return seal.complete and seal.steps[0].lines == lines


# An archive from one pod to another

_SUM: Final = "find . -type f | sort | xargs sha256sum | sha256sum"
_SAME: Final = f'test "$(cd {SHARED}/tree; {_SUM})" = "$(cd ~/tree; {_SUM})"'


async def archive(cluster: Cluster, sizes: Sizes) -> list[Row]:
    """By hand on the node itself: the images have no `curl`. Of ours it is the time of the steps alone."""
    tree = cluster.shared / "tree"
    await asyncio.to_thread(make_tree, tree, files=sizes.files, megabytes=sizes.megabytes)
    save = {"save_to_workspace": {"contents": [{"source_dir": "~/tree", "paths": ["**"]}]}}
    saved, saved_by_hand, restored, restored_by_hand = (Samples() for _ in range(4))
    async with cluster.worker():
        for n in range(sizes.repeats):
            restore = {"restore_workspace": {"dest_dir": "~/tree"}}
            first = task("save", f"cp -r {SHARED}/tree ~/tree", save)
            second = task("restore", restore, _SAME, depends=["save"])
            run = await cluster.start([first, second])
            await finish(run)
            ids = await cluster.task_ids(run)
            saved.add(await _step_s(cluster, ids["save"], 1))
            restored.add(await _step_s(cluster, ids["restore"], 0))
            packing, unpacking = await asyncio.to_thread(_by_hand, cluster, tree, n)
            saved_by_hand.add(packing)
            restored_by_hand.add(unpacking)
    what = f"archive of {sizes.megabytes} MB in {sizes.files:,} files"
    return [
        _against(f"{what} saved by a pod", saved, saved_by_hand),
        _against(f"{what} restored in another", restored, restored_by_hand),
    ]


def _by_hand(cluster: Cluster, tree: Path, n: int) -> tuple[float, float]:
    """Seconds of saving and of restoring, on the disk that the pods have too."""
    tar, there, key = cluster.place / f"{n}.tar.zst", cluster.place / f"by-hand-{n}", f"hand/{n}.tar.zst"
    bucket = cluster.bucket
    packing = by_hand(f"tar -C {tree} -c . | zstd -q -3 >{tar}; curl -sfT {tar} '{bucket.put(key)}'")
    tar.unlink()
    unpacking = by_hand(f"mkdir {there}; curl -sf '{bucket.get(key)}' | zstd -q -d | tar -C {there} -x")
    subprocess.run(["rm", "-r", str(there)], check=True)
    return packing, unpacking


async def _step_s(cluster: Cluster, task_id: str, step: int) -> float:
    record = (await cluster.manifest(task_id)).steps[step]
    assert record.started_at is not None
    assert record.ended_at is not None
    return (record.ended_at - record.started_at).total_seconds()


def _against(what: str, ours: Samples, hand: Samples) -> Row:
    ratio = hand.median / ours.median
    found = f"{ours.text('s')}; by hand {hand.text('s')}: {ratio:.0%} of its speed"
    return Row(what, found, "≥ 70 % of by hand", ratio >= 0.7)


# A cancel, many pods, and a worker's death


async def cancel(cluster: Cluster, sizes: Sizes) -> list[Row]:
    rows = []
    for what, command in (
        ("ends when asked", "sleep 600"),
        ("ignores it", "trap '' TERM; while :; do sleep 1; done"),
    ):
        tasks = [task(f"t{n}", f"echo begun; {command}") for n in range(sizes.cancelled)]
        async with cluster.worker():
            run = await cluster.start(tasks)
            async with watched(cluster, run) as pods:
                await pods.until(lambda pods: pods.running == sizes.cancelled)
                await asyncio.gather(*(first_segment(cluster, run, f"t{n}") for n in range(sizes.cancelled)))
                asked_s = time.monotonic()
                await run.cancel()
                gone_s, ended = await asyncio.gather(pods.until(lambda pods: not pods.present), _ended(run))
            statuses = {each.status for each in (await run.describe()).tasks}
            ids = await cluster.task_ids(run)
            logs = [await _text(cluster, each) for each in ids.values()]
        kept = all(text.startswith("begun\n") for text in logs)
        took_s = max(gone_s, ended) - asked_s
        found = f"pods gone after {gone_s - asked_s:.1f} s, run ended after {ended - asked_s:.1f} s"
        met = took_s <= GRACE_S + 3 and statuses == {"cancelled"} and kept
        words = "" if kept else "; LOGS LOST"
        name = f"cancel of {sizes.cancelled} running pods whose step {what}"
        rows.append(Row(name, found + words, f"≤ grace ({GRACE_S} s) + 3 s", met))
    return rows


async def _ended(run: Run) -> float:
    await run.result()
    return time.monotonic()


async def _text(cluster: Cluster, task_id: str) -> str:
    return b"".join([chunk async for chunk in LogReader(cluster.yard.store, task_id, 1).read(0)]).decode()


async def many(cluster: Cluster, sizes: Sizes) -> list[Row]:
    async with cluster.worker() as worker:
        run = await cluster.start([task(f"t{n}", "sleep 3600") for n in range(sizes.many)])
        async with watched(cluster, run) as pods:
            await pods.until(lambda pods: pods.running == sizes.many, within_s=600)
            await asyncio.sleep(5)  # what a start costs is over
            begin_s, used_s = time.monotonic(), processor_s(worker.pid)
            await asyncio.sleep(sizes.look_s)
            share = (processor_s(worker.pid) - used_s) / (time.monotonic() - begin_s)
            now_mb, most_mb = resident_mb(worker.pid)
            assert pods.running == sizes.many, pods.running
            await run.cancel()
            await pods.until(lambda pods: not pods.present)
        await run.result()
    return [
        Row(
            f"RSS of a worker with {sizes.many} running pods",
            f"{now_mb:.0f} MB; while they were started at most {most_mb:.0f} MB",
            "≤ 200 MB",
            most_mb <= 200,
        ),
        Row(f"its processor, over {sizes.look_s:g} s", f"{share:.1%} of a core", "≤ 10 %", share <= 0.1),
    ]


async def killed(cluster: Cluster, sizes: Sizes) -> list[Row]:
    go = cluster.shared / "go"
    go.unlink(missing_ok=True)
    counting = f"n=0; until [ -e {SHARED}/go ]; do n=$((n + 1)); echo $n; sleep 1; done; echo end $n"
    first = await cluster.start_worker()
    run = await cluster.start([task(f"t{n}", counting) for n in range(sizes.killed)])
    async with watched(cluster, run) as pods:
        await pods.until(lambda pods: pods.running == sizes.killed)
        before = set(pods.caretakers)
        await first.kill()
        second = await cluster.start_worker()
        adopted_s = await pods.until(lambda pods: not before & set(pods.caretakers))
        living = len(pods.present)
        go.touch()
        await finish(run)
        made = len(pods.made)
    logs = [await _text(cluster, each) for each in (await cluster.task_ids(run)).values()]
    await second.kill()
    whole = living == made == sizes.killed and all(map(_counts, logs))
    since_s = adopted_s - second.began_s
    found = (
        f"all adopted {since_s:.1f} s after its process began, {adopted_s - second.serves_s:.1f} s after it "
        f"said that it serves; {made} pods were ever made; logs {'whole' if whole else 'NOT WHOLE'}"
    )
    name = f"SIGKILL of the worker with {sizes.killed} running pods, and a new one at once"
    return [Row(name, found, "≤ 5 s", whole and since_s <= 5)]


def _counts(log: str) -> bool:
    *numbers, last = log.splitlines()
    return last == f"end {len(numbers)}" and numbers == [str(n) for n in range(1, len(numbers) + 1)]


MEASURES: Final[dict[str, Callable[[Cluster, Sizes], Awaitable[list[Row]]]]] = {
    measure.__name__: measure for measure in (log, away, follow, archive, cancel, many, killed)
}


async def measure(place: Path, sizes: Sizes, only: list[str]) -> AsyncIterator[Row]:
    async with open_cluster(place) as cluster:
        for name, take in MEASURES.items():
            if not only or name in only:
                for row in await take(cluster, sizes):
                    yield row


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pods")
    parser.add_argument("--only", default="", help=f"some of {','.join(MEASURES)}")
    parser.add_argument("--quick", action="store_true", help="small sizes: only whether it works")
    parser.add_argument("--repeats", type=int, default=Sizes.repeats)
    args = parser.parse_args()
    sizes = SMALL if args.quick else Sizes(repeats=args.repeats)
    only = [name for name in args.only.split(",") if name]
    if unknown := sorted(set(only) - set(MEASURES)):
        parser.error(f"there is no {', '.join(unknown)}")
    print(HEAD, flush=True)
    missed = False
    with tempfile.TemporaryDirectory(prefix="runyard-bench-", ignore_cleanup_errors=True) as place:
        async for row in measure(Path(place), sizes, only):
            print(row, flush=True)
            missed = missed or not row.met
    raise SystemExit(int(missed))


if __name__ == "__main__":
    asyncio.run(main())
