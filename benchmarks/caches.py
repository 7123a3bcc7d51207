"""A cache in a folder: saved and restored against plain `tar` with the same codec; and many writers of one key.

python -m benchmarks.caches [--megabytes 1000] [--files 10000] [--writers 20] [--repeats 3]

Ours is a whole task: main in `sh`, the agent beside it, the digest, the sync, the log and the manifest. By hand is
`tar | zstd -3` into a file that is synced, and back. Both go in turn, on the same tree: half of each file is
random, so that it shrinks by half. The writers come at once; the disk needs room for an archive of each of them.
"""

import argparse
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.archives import by_hand, make_tree
from benchmarks.pod import compile_agent, play
from benchmarks.rows import Row, Samples, report
from runyard.dialogue import CacheAccess, CacheRecord, Manifest
from runyard.spec.plan import Content, RestoreCacheStep, SaveCacheStep, Step
from runyard.store.base import FolderTarget

BAR_MB_S = 150


def task(place: Path, group: str, name: str, step: Step) -> tuple[CacheRecord, float]:
    """What became of the step, and the seconds from main's start to its end."""
    logs, folder = FolderTarget(folder=str(place / "logs" / name)), FolderTarget(folder=str(place / group))
    played = play(place, logs, name, step, caches=CacheAccess(read=folder, write=folder))
    manifest = Manifest.model_validate_json((place / "logs" / name / "manifest.json").read_bytes())
    return manifest.caches[0], played.seconds


def save() -> Step:
    return SaveCacheStep(key="key", contents=[Content(source_dir="~/tree", paths=["**"])])


def is_same(place: Path, folder: str) -> bool:
    """Whether it is the tree again; it is removed."""
    same = subprocess.run(["diff", "-rq", place / "tree", place / folder], capture_output=True).returncode == 0
    subprocess.run(["rm", "-r", place / folder], check=True)
    return same


def measure_one(place: Path, *, megabytes: int, repeats: int) -> list[Row]:
    saved, saved_by_hand, restored, restored_by_hand = (Samples() for _ in range(4))
    same = True
    for n in range(repeats):
        tar = place / f"{n}.tar.zst"
        record, seconds = task(place, f"group-{n}", f"save-{n}", save())
        assert record.outcome == "saved", record
        saved.add(megabytes / seconds)
        hand = by_hand(f"tar -C {place}/tree -c . | zstd -q -3 >{tar}; sync {tar}")
        saved_by_hand.add(megabytes / hand)
        back = RestoreCacheStep(keys=["key"], dest_dir=f"~/restored-{n}")
        record, seconds = task(place, f"group-{n}", f"restore-{n}", back)
        assert record.outcome == "hit", record
        restored.add(megabytes / seconds)
        there = place / f"by-hand-{n}"
        restored_by_hand.add(megabytes / by_hand(f"mkdir {there}; zstd -q -d -c {tar} | tar -C {there} -x"))
        same = same and is_same(place, f"restored-{n}")
        subprocess.run(["rm", "-r", there, tar, place / f"group-{n}"], check=True)
    rows = []
    for what, ours, hand_made in (("saved", saved, saved_by_hand), ("restored", restored, restored_by_hand)):
        share = f"{ours.median / hand_made.median:.0%} of by hand, {hand_made.text('MB/s')}"
        words = f"{ours.text('MB/s')}, {share}{'' if same else ', NOT THE SAME'}"
        met = same and ours.median >= BAR_MB_S
        rows.append(Row(f"cache of {megabytes} MB {what}, in a folder", words, f"\u2265 {BAR_MB_S} MB/s", met))
    return rows


def measure_many(place: Path, *, megabytes: int, writers: int) -> Row:
    with ThreadPoolExecutor(writers) as threads:
        tasks = [threads.submit(task, place, "many", f"writer-{n}", save()) for n in range(writers)]
        done = [each.result() for each in tasks]
    outcomes = [record.outcome for record, _ in done]
    record, _ = task(place, "many", "reader", RestoreCacheStep(keys=["key"], dest_dir="~/restored"))
    same = record.outcome == "hit" and is_same(place, "restored")
    left = sorted(path.name for path in (place / "many").iterdir())
    counts = {word: outcomes.count(word) for word in sorted(set(outcomes))}
    met = counts == {"saved": 1, "exists": writers - 1} and same and len(left) == 2
    slowest = max(seconds for _, seconds in done)
    found = f"{counts}, {'byte-identical' if same else 'NOT THE SAME'}, {len(left)} files, {slowest:.1f} s in all"
    return Row(f"{writers} writers of one key, {megabytes} MB each", found, "one wins, the rest skip", met)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.caches")
    parser.add_argument("--megabytes", type=int, default=1_000)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--writers", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="runyard-bench-") as folder:
        place = Path(folder)
        compile_agent(place)
        make_tree(place / "tree", files=args.files, megabytes=args.megabytes)
        found = measure_one(place, megabytes=args.megabytes, repeats=args.repeats)
        found.append(measure_many(place, megabytes=args.megabytes, writers=args.writers))
    raise SystemExit(report(found))


if __name__ == "__main__":
    main()
