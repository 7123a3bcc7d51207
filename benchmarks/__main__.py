"""What `make bench` runs: the measurements, as rows of a Markdown table.

python -m benchmarks [engine|local|command|all|kubernetes] [--repeats 5] [--only MEASURE]

`kubernetes` needs a cluster (see benchmarks/kubernetes.py) and is not part of `all`.
"""

import argparse
import asyncio
import os
import platform
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks import command, local
from benchmarks.rows import Row

WHAT = ("all", "engine", "local", "command", "kubernetes")
ENGINE = (["--tasks", "500"], ["--tasks", "10000", "--layers", "100", "--parents", "3", "--repeats", "1"])


async def rows(what: str, place: Path, *, repeats: int, only: str) -> AsyncIterator[Row]:
    if what in ("command", "all"):
        for row in command.measure(place, repeats=repeats, only=only):
            yield row
    if what == "kubernetes":
        from benchmarks import kubernetes

        async for row in kubernetes.measure(place, repeats=repeats, only=only):
            yield row
    if what in ("local", "all"):
        async for row in local.measure(place, repeats=repeats, only=only):
            yield row


async def engine() -> None:
    """Programs of their own: the memory of a worker that has done something else before says nothing."""
    for words in ENGINE:
        program = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.engine", *words)
        if await program.wait():
            raise SystemExit(program.returncode)


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", default="all", choices=WHAT)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="one measure, e.g. `chain`")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}; ", end="")
    print(f"medians of {args.repeats} repeats (smallest to largest)\n")
    print("| what | found | bar |\n|---|---|---|", flush=True)
    missed = False
    with tempfile.TemporaryDirectory(prefix="runyard-bench-") as place:
        async for row in rows(args.what, Path(place), repeats=args.repeats, only=args.only):
            print(row, flush=True)
            missed = missed or not row.met
    if args.what in ("engine", "all"):
        print()
        await engine()
    raise SystemExit(int(missed))


if __name__ == "__main__":
    asyncio.run(main())
