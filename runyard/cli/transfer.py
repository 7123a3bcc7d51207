"""`runyard run export` and `import`: a run as one file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from runyard.cli import options
from runyard.cli.act import with_yard
from runyard.cli.cache import size
from runyard.cli.console import print_json
from runyard.cli.exits import Exit
from runyard.cli.text import count
from runyard.errors import InvalidRequest

if TYPE_CHECKING:
    from runyard.client import Runyard


@click.command("export")
@click.argument("run_id", metavar="RUN")
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(path_type=Path, allow_dash=True),
    help="The file to write, `-` for stdout; RUN.tar otherwise.",
)
@options.connection
def export(
    run_id: str, *, target: Path | None, address: str | None, namespace: str | None, state: Path | None
) -> int:
    """Write a run that has ended into one tar: its record, logs, archives, and what it kept of earlier runs.

    `runyard run import` takes it in, also on another server with another store. It holds no secret that was kept
    out of logs and archives.
    """

    async def act(yard: "Runyard") -> int:
        made = await yard.export_run(run_id, to)
        click.echo(f"exported {run_id}: {count(made.members, 'object')}, {size(made.size_bytes)}", err=True)
        return Exit.SUCCESS

    to = _stdout() if str(target) == "-" else target or Path(f"{run_id}.tar".replace("/", "_"))
    return with_yard(act, address=address, namespace=namespace, state=state, offline=True)


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@options.connection
@options.output
def import_(file: Path, *, address: str | None, namespace: str | None, state: Path | None, output: str) -> int:
    """Take in a run that `runyard run export` wrote; `-` reads stdin.

    It keeps its id. The same file a second time changes nothing; another run of that id is never overwritten.
    """

    async def act(yard: "Runyard") -> int:
        made = await yard.import_run(sys.stdin.buffer if str(file) == "-" else file)
        if output == "json":
            print_json({"id": made.run.id, "imported": not made.there, "bytes": made.size_bytes})
        elif made.there:
            click.echo(f"{made.run.id}: is there already")
        else:
            click.echo(f"imported {made.run.id}: {count(made.members, 'object')}, {size(made.size_bytes)}")
        return Exit.SUCCESS

    return with_yard(act, address=address, namespace=namespace, state=state)


def _stdout() -> BinaryIO:
    if sys.stdout.isatty():
        raise InvalidRequest("a tar is nothing for a terminal", remedy="Give a file with -o, or a pipe.")
    return sys.stdout.buffer
