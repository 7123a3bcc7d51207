"""`runyard group`: who runs, who waits and in which order."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli import options
from runyard.cli.act import with_yard
from runyard.cli.console import print_json
from runyard.cli.exits import Exit
from runyard.cli.text import clean
from runyard.spec.group import LineView, Waiting

if TYPE_CHECKING:
    from runyard.client import Runyard


@click.group()
def group() -> None:
    """The lines in which runs wait for their turn."""


@group.command("list")
@click.option("--limit", type=click.IntRange(1, 1_000), default=100, show_default=True, help="At most so many.")
@options.connection
@options.output
def list_(*, limit: int, address: str | None, namespace: str | None, state: Path | None, output: str) -> int:
    """All lines: of the roots of groups, and of executors whose runs are limited."""

    async def act(yard: "Runyard") -> int:
        lines = await yard.lines(limit=limit)
        if output == "json":
            print_json(list(lines))
            return Exit.SUCCESS
        for line in lines:
            click.echo(f"{clean(_name(line))}  {_counts(line)}")
        if not lines:
            click.echo("no lines")
        return Exit.SUCCESS

    return with_yard(act, address=address, namespace=namespace, state=state)


@group.command("show")
@click.argument("path", metavar="GROUP")
@options.connection
@options.output
def show(path: str, *, address: str | None, namespace: str | None, state: Path | None, output: str) -> int:
    """The line of a group's root: /project/web shows all groups below it, /project/web/branch/main its own."""

    async def act(yard: "Runyard") -> int:
        line = await yard.line(path)
        if output == "json":
            print_json(line)
            return Exit.SUCCESS
        click.echo(f"{clean(_name(line))}  {_counts(line)}")
        for title, runs in (("running", line.running), ("waiting", line.waiting)):
            for run in runs:
                if _below(run, path):
                    click.echo(f"  {title}  {run.counter:>5}  {clean(run.run_id)}  {clean(run.group)}")
        return Exit.SUCCESS

    return with_yard(act, address=address, namespace=namespace, state=state)


def _name(line: LineView) -> str:
    return line.id.partition(":")[2]


def _counts(line: LineView) -> str:
    cap = f" of {line.cap} at a time" if line.cap is not None else ""
    return f"{len(line.running)} running{cap}, {len(line.waiting)} waiting, last number {line.counter}"


def _below(run: Waiting, path: str) -> bool:
    return run.group == path or run.group.startswith(f"{path}/")
