"""`runyard cleanup`: remove what no run refers to any more; and of single runs, `run rm` and `run keep`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli import options
from runyard.cli.act import with_yard
from runyard.cli.console import print_json
from runyard.cli.exits import Exit
from runyard.cli.text import clean as clean_text
from runyard.cli.text import seconds

if TYPE_CHECKING:
    from runyard.client import Runyard
    from runyard.spec.cleanup import CleanupReport


@click.group(invoke_without_command=True)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--now", is_flag=True, help="Without the grace period for pods of runs that have ended.")
@click.option("--reindex", is_flag=True, help="Also make the list of ended runs anew, from their records.")
@options.connection
@options.output
@click.pass_context
def cleanup(
    context: click.Context,
    *,
    dry_run: bool,
    now: bool,
    reindex: bool,
    address: str | None,
    namespace: str | None,
    state: Path | None,
    output: str,
) -> int:
    """Remove what no run refers to any more, and wait for the report.

    A cleanup also starts by itself, every hour by default. What is kept for how long says the worker's settings.
    """
    if context.invoked_subcommand is not None:
        return Exit.SUCCESS
    if dry_run and reindex:
        raise click.UsageError("--dry-run changes nothing, and --reindex does")

    async def act(yard: "Runyard") -> int:
        from runyard.client.cleanup import clean

        started = await clean(yard, dry_run=dry_run, now=now, reindex=reindex)
        while started.joined and reindex:  # the one under way was not asked to
            await started.result()
            started = await clean(yard, dry_run=dry_run, now=now, reindex=reindex)
        if started.joined and output != "json":
            click.echo(f"{started.id} is under way already: this is its report", err=True)
        _print_report(await started.result(), output=output)
        return Exit.SUCCESS

    return with_yard(act, address=address, namespace=namespace, state=state)


@cleanup.command()
@options.connection
@options.output
def show(*, address: str | None, namespace: str | None, state: Path | None, output: str) -> int:
    """The report of the last cleanup, and when the next one is due."""

    async def act(yard: "Runyard") -> int:
        from runyard.client.cleanup import latest, next_cleanup
        from runyard.errors import NotFound

        last = await latest(yard)
        try:
            due = await next_cleanup(yard.client)
        except NotFound:
            due = None
        if output == "json":
            shown = last.report.model_dump(mode="json") if last.report else None
            print_json({"id": last.id, "open": last.open, "report": shown, "next": due and due.isoformat()})
            return Exit.SUCCESS
        how = "is under way" if last.open else "ended" if last.report else "did not come to its end"
        click.echo(f"{clean_text(last.id)}, started {last.started_at:%Y-%m-%d %H:%M} UTC, {how}")
        if last.report is not None:
            _print_report(last.report, output=output)
        click.echo(f"next: {due:%Y-%m-%d %H:%M} UTC" if due else "next: not scheduled")
        return Exit.SUCCESS

    return with_yard(act, address=address, namespace=namespace, state=state)


@click.command()
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
@options.connection
@options.output
def rm(
    run_ids: tuple[str, ...], *, address: str | None, namespace: str | None, state: Path | None, output: str
) -> int:
    """Remove runs that have ended, with all that no other run refers to."""

    async def act(yard: "Runyard") -> int:
        from runyard.client.cleanup import remove_run

        reports = {}
        for run_id in run_ids:
            report = reports[run_id] = await remove_run(yard, run_id)
            if output != "json":
                click.echo(f"{run_id}: removed" + _what_stays(report))
        if output == "json":
            print_json({run_id: report.model_dump(mode="json") for run_id, report in reports.items()})
        return Exit.SUCCESS

    return with_yard(act, address=address, namespace=namespace, state=state)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--undo", is_flag=True, help="Let it go again.")
@options.connection
@options.output
def keep(
    run_id: str, *, undo: bool, address: str | None, namespace: str | None, state: Path | None, output: str
) -> int:
    """Pin a run: no cleanup removes anything of it, whatever its age.

    Pin it before its retention is over: of a run that is over already, a cleanup under way may have taken a part.
    """

    async def act(yard: "Runyard") -> int:
        from runyard.client.cleanup import keep_run

        await keep_run(yard, run_id, undo=undo)
        if output == "json":
            print_json({"id": run_id, "pinned": not undo})
        else:
            click.echo(f"{run_id}: {'no longer pinned' if undo else 'pinned'}")
        return Exit.SUCCESS

    return with_yard(act, address=address, namespace=namespace, state=state, offline=True)


def _what_stays(report: "CleanupReport") -> str:
    kept = sum(report.kept.values())
    return f"; {kept} of its logs and archives stay, other runs refer to them" if kept else ""


def _print_report(report: "CleanupReport", *, output: str) -> None:
    from runyard.spec.cleanup import as_lines

    if output == "json":
        print_json(report)
        return
    for line in as_lines(report):
        click.echo(clean_text(line))
    if report.began_at and report.ended_at:
        click.echo(f"took {seconds((report.ended_at - report.began_at).total_seconds())}")
