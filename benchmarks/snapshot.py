"""Direct runs: what a checkout of 20,000 files costs, the first time, unchanged, and with one file changed.

``python -m benchmarks.snapshot [--files 20000] [--size-mb 250] [--repeats 5]``

*To the run's start* is the command as a user types it, from its process to the run's id, on a server that is
there. Its modules are compiled, as those of any installed package. Its processor time, with git's, is what can be
compared where others use the machine too. Beside it stands what git needs to look at the same checkout: nothing of
this kind can be faster.
"""

import argparse
import asyncio
import os
import random
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.rows import HEAD, Row, Samples
from runyard.snapshot.take import Taken, take_snapshot
from runyard.store.posix import PosixStore

FILE: Final = """
runs:
- name: direct
  tasks:
  - {name: hello, runtime: {containers: [{image: none}]}, steps: [clone, {run: echo hello}]}
"""
_TICK_S: Final = 2.1  # files that are younger are read again, by the rule of git's index
_FOLDER_FILES: Final = 50


def grow(top: Path, *, files: int, size_mb: int) -> None:
    """Something like source code: it shrinks to a third, and no two files are the same."""
    chance = random.Random(1)
    words = [f"{chance.getrandbits(chance.randrange(8, 48)):x}" for _ in range(5000)]
    mean = size_mb * 1_000_000 / files / 8
    for number in range(files):
        path = (
            top / f"area{number // _FOLDER_FILES // 20}" / f"part{number // _FOLDER_FILES}" / f"file{number}.txt"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(" ".join(chance.choices(words, k=max(1, int(chance.expovariate(1 / mean))))))
    (top / "ci.yml").write_text(FILE)
    for command in ("init --quiet", "add --all", "-c user.name=a -c user.email=a@b commit --quiet -m first"):
        subprocess.run(["git", *command.split()], cwd=top, check=True)
    time.sleep(_TICK_S)


def change(top: Path, number: int) -> None:
    next(iter(sorted(top.glob(f"area0/part{number % 20}/*.txt")))).write_text(f"changed {number}")


def snapshots(place: Path, top: Path, repeats: int) -> Iterator[Row]:
    """Taken by the library, in this process: seconds, bytes sent."""
    store = PosixStore(place / "snapshots")

    def take(run_id: str) -> tuple[float, Taken]:
        begin = time.perf_counter()
        taken = asyncio.run(take_snapshot(store, top, run_id=run_id))
        return time.perf_counter() - begin, taken

    seconds, taken = take("first")
    what = f"{taken.files:,} files, {taken.size / 1e6:,.0f} MB"
    yield Row(f"first snapshot of {what}", f"{seconds:.2f} s, {taken.sent / 1e6:.1f} MB sent")
    for name, changes in (("unchanged", False), ("one file changed", True)):
        times, sent = Samples(), Samples()
        for number in range(repeats):
            if changes:
                change(top, number)
            seconds, taken = take(f"{name}-{number}")
            times.add(seconds)
            sent.add(taken.sent / 1e6)
        found = f"{times.text('s')}, {sent.text('MB')} sent"
        yield Row(f"the same, {name}", found, "< 1 MB sent", sent.median < 1)


def floor(top: Path, repeats: int) -> Row:
    """`git status` and the two listings, as a snapshot asks for them."""
    times = Samples()
    for _ in range(repeats):
        begin = time.perf_counter()
        for words in (
            "status --porcelain=v2 -uno",
            "ls-files -s",
            "ls-files -o --exclude-standard",
            "ls-tree -r -t HEAD",
        ):
            subprocess.run(["git", *words.split()], cwd=top, stdout=subprocess.DEVNULL, check=True)
        times.add(time.perf_counter() - begin)
    return Row("git alone, asked the same", times.text("s"))


def starts(place: Path, top: Path, repeats: int) -> Iterator[Row]:
    """The command, with one file changed each time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"RUNYARD_STATE": str(place / "state"), "TEMPORAL_ADDRESS": f"127.0.0.1:{port}"}
    environment = {**os.environ, **own, "PYTHONPYCACHEPREFIX": str(place / "compiled")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "runyard"]
    server = subprocess.Popen(
        [*command, "dev", "--port", str(port), "--no-ui"], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        while "Ready:" not in server.stdout.readline():
            if server.poll() is not None:
                raise SystemExit("the server did not start")
        times, busy = Samples(), Samples()
        for number in range(repeats + 1):
            change(top, number)
            begin, before = time.perf_counter(), _children_s()
            words = [*command, "run", "start", str(top / "ci.yml"), "--local", str(top)]
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
            if number:  # the first one sends all
                times.add(time.perf_counter() - begin)
                busy.add(_children_s() - before)
            subprocess.run([*command, "run", "watch", done.stdout.strip()], env=environment, capture_output=True)
        sent = re.findall(r"([\d.]+ \w+) sent", done.stderr)
        yield Row(
            "`run start --local` to the run's start, one file changed",
            f"{times.text('s')}, {sent[0] if sent else '?'} sent",
            "≤ 2 s, < 1 MB sent",
            times.median <= 2,
        )
        yield Row("of which processor time, user and system", busy.text("s"))
    finally:
        server.terminate()
        server.wait(60)


def _children_s() -> float:
    """Processor time of the processes that have ended: the server has not."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.snapshot")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--size-mb", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(HEAD, flush=True)
    place = Path(tempfile.mkdtemp(prefix="runyard-bench-"))
    try:
        grow(place / "checkout", files=args.files, size_mb=args.size_mb)
        for row in snapshots(place, place / "checkout", args.repeats):
            print(row, flush=True)
        print(floor(place / "checkout", args.repeats), flush=True)
        for row in starts(place, place / "checkout", args.repeats):
            print(row, flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
