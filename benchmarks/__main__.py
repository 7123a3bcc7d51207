"""What `make bench` runs: the measurements, as rows of a Markdown table.

python -m benchmarks [all|engine|local|command|cleanup|restart|groups|snapshot|archives|s3|kubernetes|pods]
                     [--quick] [--repeats 5] [--only MEASURE]

`all` is what needs nothing but this machine. `kubernetes` needs a cluster (see benchmarks/kubernetes.py);
`pods` needs the lab; `archives` and `s3` need a bucket, which each says how to name, and `cleanup` takes one from
the settings. With ``--quick`` the sizes are small: that says whether a measurement works, and nothing else.
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
from benchmarks.rows import HEAD, Row

WIDE = "--tasks 10000 --layers 100 --parents 3 --repeats 1"
PROGRAMS: dict[str, tuple[tuple[str, ...], str]] = {
    "engine": (("--tasks 500", WIDE), "--tasks 50 --repeats 1"),
    "cleanup": (("",), "--runs 20"),
    "restart": (("",), "--tasks 30 --repeats 1"),
    "groups": (("",), "--runs 5 --many 30 --few 3 --slots 3"),
    "snapshot": (("",), "--files 200 --size-mb 5 --repeats 1"),
    "archives": (("",), "--files 100 --megabytes 5 --repeats 1"),
    "pods": (("",), "--quick"),
    "s3": (("",), "--objects 50 --megabytes 5 --repeats 1"),
}
"""With what each is called, and with what for ``--quick``."""

ALONE = ("archives", "pods", "s3", "kubernetes")
WHAT = ("all", "local", "command", "kubernetes", *PROGRAMS)


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


async def run_program(name: str, *, quick: bool) -> bool:
    """A program of its own: the memory of a worker that has done something else before says nothing."""
    full, small = PROGRAMS[name]
    met = True
    for words in (small,) if quick else full:
        command = [sys.executable, "-m", f"benchmarks.{name}", *words.split()]
        program = await asyncio.create_subprocess_exec(*command)
        met = not await program.wait() and met
    return met


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", default="all", choices=WHAT)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small sizes: only whether it works")
    parser.add_argument("--only", default="", help="one measure, e.g. `chain`")
    args = parser.parse_args()
    repeats = 1 if args.quick else args.repeats
    print(f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}; ", end="")
    print(f"medians of {repeats} repeats (smallest to largest)\n")
    print(HEAD, flush=True)
    missed = False
    with tempfile.TemporaryDirectory(prefix="runyard-bench-") as place:
        async for row in rows(args.what, Path(place), repeats=repeats, only=args.only):
            print(row, flush=True)
            missed = missed or not row.met
    for name in PROGRAMS:
        if args.what == name or (args.what == "all" and name not in ALONE):
            print(f"\n{name}", flush=True)
            missed = not await run_program(name, quick=args.quick) or missed
    raise SystemExit(int(missed))


if __name__ == "__main__":
    asyncio.run(main())
