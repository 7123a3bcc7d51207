"""Archives to and from a store in S3, against `tar | zstd | curl` by hand.

python -m benchmarks.archives [--files 10000] [--megabytes 1000] [--repeats 3]

The store is that of $S3_ENDPOINT, $S3_ACCESS_KEY and $S3_SECRET_KEY, in a bucket of its own. Ours is a whole task
as it is in a pod: main in `sh`, the agent beside it, presigned requests, the digest, the log and the manifest. By
hand it is what a person would write who trusts the disk and the network: `tar | zstd` into a file (a PUT needs its
size), `curl -T`; and back. Both go in turn, on the same tree: half of each file is random, so that it shrinks by
half.
"""

import argparse
import os
import py_compile
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from minio import Minio
from minio.datatypes import PostPolicy

import runyard.agent
from benchmarks.rows import Row, Samples
from runyard.dialogue import Assignment, Manifest, StoredArchive
from runyard.script import compile_script
from runyard.spec.plan import Content, RestoreWorkspaceStep, SaveToWorkspaceStep, Step, TaskPlan
from runyard.store.base import UrlTarget

BUCKET = "runyard-bench-archives"
BAR = 0.7


class Bucket:
    """What a worker would presign."""

    def __init__(self) -> None:
        self.endpoint = os.environ["S3_ENDPOINT"]
        parts = urlsplit(self.endpoint)
        keys = os.environ["S3_ACCESS_KEY"], os.environ["S3_SECRET_KEY"]
        self.client = Minio(parts.netloc, *keys, secure=parts.scheme == "https", region="us-east-1")
        if not self.client.bucket_exists(BUCKET):
            self.client.make_bucket(BUCKET)

    def target(self, prefix: str) -> UrlTarget:
        policy = PostPolicy(BUCKET, datetime.now(UTC) + timedelta(hours=1))
        policy.add_starts_with_condition("key", prefix)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            fields = self.client.presigned_post_policy(policy)
        claim = self.put(f"{prefix}started")
        return UrlTarget(url=f"{self.endpoint}/{BUCKET}", prefix=prefix, fields=fields, claim=claim)

    def put(self, key: str) -> str:
        return self.client.presigned_put_object(BUCKET, key, timedelta(hours=1))

    def get(self, key: str) -> str:
        return self.client.presigned_get_object(BUCKET, key, timedelta(hours=1))

    def manifest(self, prefix: str) -> Manifest:
        response = self.client.get_object(BUCKET, f"{prefix}manifest.json")
        try:
            return Manifest.model_validate_json(response.read())
        finally:
            response.close()

    def clear(self) -> None:
        for each in self.client.list_objects(BUCKET, recursive=True):
            self.client.remove_object(BUCKET, str(each.object_name))
        self.client.remove_bucket(BUCKET)


def make_tree(folder: Path, *, files: int, megabytes: int) -> None:
    size = megabytes * 1_000_000 // files
    for n in range(files):
        path = folder / str(n % 100) / str(n)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size // 2) + bytes(size - size // 2))


def play(place: Path, bucket: Bucket, prefix: str, step: Step, **assignment: object) -> float:
    """Seconds from the start of main to its end, of a task with this one step."""
    dialogue = place / prefix.replace("/", "-")
    dialogue.mkdir()
    (dialogue / "script").write_text(compile_script(TaskPlan(id="id", name="bench", containers=[], steps=[step])))
    facts = {"run_id": "run", "task": "bench", "attempt": 1, "steps": [step], "logs": bucket.target(prefix)}
    (dialogue / "assignment").write_text(Assignment.model_validate(facts | assignment).model_dump_json())
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "RUNYARD_DIR": str(dialogue),
        "RUNYARD_RECEIPT": str(dialogue / "receipt"),
        "RUNYARD_ASSIGNMENT": str(dialogue / "assignment"),
    }
    agent = subprocess.Popen([sys.executable, "-I", "-S", str(place / "agent.pyc")], env=environ)
    begin = time.monotonic()
    subprocess.run(["sh", str(dialogue / "script")], env=environ, check=True)
    took = time.monotonic() - begin
    agent.wait()
    return took


def by_hand(command: str) -> float:
    begin = time.monotonic()
    subprocess.run(["sh", "-euc", command], check=True)
    return time.monotonic() - begin


def measure(place: Path, bucket: Bucket, *, files: int, megabytes: int, repeats: int) -> list[Row]:
    make_tree(place / "tree", files=files, megabytes=megabytes)
    py_compile.compile(runyard.agent.__file__, cfile=str(place / "agent.pyc"), doraise=True)
    saved, saved_by_hand, restored, restored_by_hand = (Samples() for _ in range(4))
    for n in range(repeats):
        prefix = f"archives/{n}/"
        step = SaveToWorkspaceStep(contents=[Content(source_dir="~/tree", paths=["**"])])
        saved.add(play(place, bucket, f"save/{n}/", step, archives=bucket.target(prefix)))
        (record,) = bucket.manifest(f"save/{n}/").archives
        source = bucket.get(prefix + record.file)
        stored = StoredArchive(
            task="t", source=source, **record.model_dump(include={"step", "file", "size", "sha256"})
        )
        back = RestoreWorkspaceStep(dest_dir=f"~/restored-{n}")
        restored.add(play(place, bucket, f"restore/{n}/", back, restore=[stored]))
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
    bucket = Bucket()
    try:
        with tempfile.TemporaryDirectory(prefix="runyard-bench-") as folder:
            place = Path(folder)
            found = measure(place, bucket, files=args.files, megabytes=args.megabytes, repeats=args.repeats)
    finally:
        bucket.clear()
    print("| what | found | bar |\n|---|---|---|")
    for row in found:
        print(row)
    raise SystemExit(int(not all(row.met for row in found)))


if __name__ == "__main__":
    main()
