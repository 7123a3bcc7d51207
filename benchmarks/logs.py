"""The log of a step that writes as fast as it can, through the agent into a bucket, and what sealing it costs.

python -m benchmarks.logs [--megabytes 200] [--repeats 3]

The store is that of `benchmarks.pod`. By hand stands for the least that can be done: the same bytes, `split` to
objects of the size of our segments, each sent by `curl`; no mask, no count, no digest, no word about any of it.
Both go in turn. Then a worker, a process of its own, seals; and all is read back as a user reads it, and compared.
"""

import argparse
import asyncio
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.pod import Bucket, compile_agent, open_bucket, play
from benchmarks.rows import Row, Samples, report
from runyard.reasons import Reason
from runyard.records.logs import Seal, load_manifest, seal
from runyard.records.reader import LogReader
from runyard.spec.plan import RunStep
from runyard.spec.run import TaskEnd
from runyard.store import paths

BAR_MB_S = 50
BAR_RSS_MB = 100
SEGMENT_BYTES = 4 << 20


def make_log(path: Path, megabytes: int) -> str:
    """Numbered lines, like those of a build; their SHA-256."""
    digest, left, number = hashlib.sha256(), megabytes * 1_000_000, 0
    with path.open("wb") as file:
        while left > 0:
            numbers = range(number, number + 10_000)
            block = b"".join(b"%010d [build] module %d of the tree\n" % (n, n * 7919 % 100_003) for n in numbers)
            block = block[:left]
            file.write(block)
            digest.update(block)
            left, number = left - len(block), number + 10_000
    return digest.hexdigest()


def by_hand(log: Path, bucket: Bucket, n: int) -> float:
    """Seconds."""
    parts = -(-log.stat().st_size // SEGMENT_BYTES)
    urls = log.with_name("urls")
    urls.write_text("".join(f"{bucket.put(f'hand/{n}/{part}')}\n" for part in range(parts)))
    send = 'read -r url <&3; curl -sfT "$part" "$url"; rm "$part"'
    command = f"cat {log} | split -a 4 -b {SEGMENT_BYTES} - {log}.; for part in {log}.*; do {send}; done 3<{urls}"
    begin = time.monotonic()
    subprocess.run(["sh", "-euc", command], check=True)
    return time.monotonic() - begin


async def seal_as_worker(bucket: Bucket, task_id: str) -> tuple[Seal, float, int]:
    """The seal; seconds; bytes by which this process has grown."""
    store = bucket.store()
    manifest = await load_manifest(store, task_id, 1)
    before, begin = _peak_bytes(), time.monotonic()
    end = TaskEnd(status="success", reason=Reason.SUCCESS, exit_code=0, ended_at=datetime.now(UTC))
    sealed = await seal(store, task_id, 1, manifest=manifest, end=end)
    took = time.monotonic() - begin
    await store.close()
    return sealed, took, _peak_bytes() - before


async def read_back(bucket: Bucket, task_id: str) -> str:
    store, digest = bucket.store(), hashlib.sha256()
    async for chunk in LogReader(store, task_id, 1).read(0):
        digest.update(chunk)
    await store.close()
    return digest.hexdigest()


def measure(place: Path, bucket: Bucket, *, megabytes: int, repeats: int) -> list[Row]:
    log = place / "log"
    written = make_log(log, megabytes)
    compile_agent(place)
    rates, hand, cpu, rss, seals, growth = (Samples() for _ in range(6))
    same = complete = True
    for n in range(repeats):
        hand.add(megabytes / by_hand(log, bucket, n))
        task_id = f"bench{n:015d}"
        prefix = paths.attempt(task_id, 1)
        played = play(place, bucket.target(prefix), prefix, RunStep(command=f"cat {log}"))
        rates.add(megabytes / played.seconds)
        cpu.add(played.agent_cpu_s)
        rss.add(played.agent_rss_bytes / 1e6)
        words = [sys.executable, "-m", "benchmarks.logs", "--seal", task_id]
        done = subprocess.run(words, input=json.dumps(bucket.words), capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        seals.add(found["seconds"])
        growth.add(found["grown_bytes"] / 1e6)
        sealed = Seal.model_validate(found["seal"])
        complete = complete and sealed.complete and sealed.steps[0].sha256 == written
        same = same and asyncio.run(read_back(bucket, task_id)) == written
    what = f"log of {megabytes} MB as fast as it can be written, from main's start to its end"
    met = rates.median >= BAR_MB_S and same and complete
    words = f"{'byte-identical' if same else 'NOT THE SAME'}, {'sealed complete' if complete else 'NOT COMPLETE'}"
    return [
        Row(what, f"{rates.text('MB/s')}, {words}", f"\u2265 {BAR_MB_S} MB/s", met),
        Row("the same by `split` and `curl`", hand.text("MB/s")),
        Row("CPU of its agent", cpu.text("s")),
        Row("RSS of its agent", rss.text("MB"), f"\u2264 {BAR_RSS_MB} MB", max(rss.values) <= BAR_RSS_MB),
        Row("sealed by a worker in", seals.text("s")),
        Row("the worker has grown by", growth.text("MB"), "flat", growth.median < 16),
    ]


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _seal_only(task_id: str) -> None:
    sealed, took, grown = asyncio.run(seal_as_worker(Bucket(*json.load(sys.stdin)), task_id))
    print(json.dumps({"seal": sealed.model_dump(mode="json"), "seconds": took, "grown_bytes": grown}))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logs")
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seal", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.seal:
        return _seal_only(args.seal)
    with tempfile.TemporaryDirectory(prefix="runyard-bench-") as folder, open_bucket(Path(folder)) as bucket:
        found = measure(Path(folder), bucket, megabytes=args.megabytes, repeats=args.repeats)
    raise SystemExit(report(found))


if __name__ == "__main__":
    main()
