"""Archives to and from a store in S3, against `tar | zstd | curl` by hand.

python -m benchmarks.archives [--files 10000] [--megabytes 1000] [--repeats 3]

The store is that of `benchmarks.pod`. Ours is a whole task as it is in a pod: main in `sh`, the agent beside it,
presigned requests, the digest, the log and the manifest. By
hand it is what a person would write who trusts the disk and the network: `tar | zstd` into a file (a PUT needs its
size), `curl -T`; and back. Both go in turn, on the same tree: half of each file is random, so that it shrinks by
half.
"""

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.pod import Bucket, compile_agent, open_bucket, play
from benchmarks.rows import Row, Samples, report
from runyard.dialogue import StoredArchive
from runyard.spec.plan import Content, RestoreWorkspaceStep, SaveToWorkspaceStep

BAR = 0.7


def make_tree(folder: Path, *, files: int, megabytes: int) -> None:
    size = megabytes * 1_000_000 // files
    for n in range(files):
        path = folder / str(n % 100) / str(n)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size // 2) + bytes(size - size // 2))


def by_hand(command: str) -> float:
    begin = time.monotonic()
    subprocess.run(["sh", "-euc", command], check=True)
    return time.monotonic() - begin


def measure(place: Path, bucket: Bucket, *, files: int, megabytes: int, repeats: int) -> list[Row]:
    make_tree(place / "tree", files=files, megabytes=megabytes)
    compile_agent(place)
    saved, saved_by_hand, restored, restored_by_hand = (Samples() for _ in range(4))
    for n in range(repeats):
        prefix = f"archives/{n}/"
        step = SaveToWorkspaceStep(contents=[Content(source_dir="~/tree", paths=["**"])])
        saved.add(
            play(place, bucket.target(f"save/{n}/"), f"save/{n}/", step, archives=bucket.target(prefix)).seconds
        )
        (record,) = bucket.manifest(f"save/{n}/").archives
        source = bucket.get(prefix + record.file)
        stored = StoredArchive(
            task="t", source=source, **record.model_dump(include={"step", "file", "size", "sha256"})
        )
        back = RestoreWorkspaceStep(dest_dir=f"~/restored-{n}")
        restored.add(play(place, bucket.target(f"restore/{n}/"), f"restore/{n}/", back, restore=[stored]).seconds)
        tar, key = place / f"{n}.tar.zst", f"hand/{n}.tar.zst"
        pack = f"tar -C {place}/tree -c . | zstd -q -3 >{tar}; curl -sfT {tar} '{bucket.put(key)}'"
        saved_by_hand.add(by_hand(pack))
        tar.unlink()
        there = place / f"by-hand-{n}"
        unpack = f"mkdir {there}; curl -sf '{bucket.get(key)}' | zstd -q -d | tar -C {there} -x"
        restored_by_hand.add(by_hand(unpack))
        subprocess.run(["diff", "-rq", str(place / "tree"), str(place / f"restored-{n}")], check=True)
        subprocess.run(["rm", "-r", str(there), str(place / f"restored-{n}")], check=True)
    what = f"{megabytes} MB in {files:,} files"
    return [
        _row(f"archive of {what} saved", saved, saved_by_hand),
        _row(f"archive of {what} restored", restored, restored_by_hand),
    ]


def _row(what: str, ours: Samples, hand: Samples) -> Row:
    ratio = hand.median / ours.median
    found = f"{ours.text('s')}; by hand {hand.text('s')}: {ratio:.0%} of its speed"
    return Row(what, found, f">= {BAR:.0%} of by hand", ratio >= BAR)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.archives")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--megabytes", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="runyard-bench-") as folder, open_bucket(Path(folder)) as bucket:
        place = Path(folder)
        found = measure(place, bucket, files=args.files, megabytes=args.megabytes, repeats=args.repeats)
    raise SystemExit(report(found))


if __name__ == "__main__":
    main()
