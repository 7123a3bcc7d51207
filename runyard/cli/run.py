"""`runyard run`: find, follow and decide runs. How they are started is a module of its own."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli import options
from runyard.cli.act import watch_run, with_yard
from runyard.cli.cleanup import keep, rm
from runyard.cli.console import open_console, print_json
from runyard.cli.events import events
from runyard.cli.exits import Exit
from runyard.cli.restart import restart
from runyard.cli.start import start
from runyard.cli.transfer import export, import_
from runyard.errors import Conflict
from runyard.spec.run import TaskView

if TYPE_CHECKING:
    from runyard.client import Phase, Run, RunPage, Runyard


@click.group()
def run() -> None:
    """Start, find, follow and decide runs."""


@run.command("list")
@click.option("--open", "phase", flag_value="open", help="Those that have not ended.")
@click.option("--closed", "phase", flag_value="closed", help="Those that have ended.")
@click.option("--failed", "phase", flag_value="failed", help="Those that failed.")
@click.option("--project", default="", help="Of this project.")
@click.option("--group", default="", help="Of this group.")
@click.option("--below", default="", help="Of this group and all below it.")
@click.option("--owner", default="", help="Of this owner.")
@click.option("--trigger", default="", help="Started by this.")
@click.option("--since", type=click.DateTime(), help="Started since then (UTC).")
@click.option("--text", default="", help="With this in the id, the name or the cause.")
@click.option("--success", "phase", flag_value="success", help="Those that succeeded.")
@click.option("--cancelled", "phase", flag_value="cancelled", help="Those that were cancelled.")
@click.option("--after", default="", help="Go on here: `next` of the page before (-o json).")
@click.option("--count", is_flag=True, help="Only how many, by result; goes through all of them.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=30, show_default=True, help="At most so many.")
@options.connection
@options.output
def list_(
    *,
    phase: "Phase | None",
    project: str,
    group: str,
    below: str,
    owner: str,
    trigger: str,
    since: datetime | None,
    text: str,
    after: str,
    count: bool,
    limit: int,
    address: str | None,
    namespace: str | None,
    state: Path | None,
    output: str,
) -> int:
    """Open runs first, then those that ended last. Without a server: those that the store remembers."""
    since = since and since.replace(tzinfo=UTC)

    async def act(yard: "Runyard") -> int:
        from runyard.cli.tables import print_counts, print_runs

        def page(limit: int, after: str) -> "Awaitable[RunPage]":
            return yard.page(
                phase=phase,
                project=project,
                group=group,
                below=below,
                owner=owner,
                trigger=trigger,
                since=since,
                text=text,
                limit=limit,
                after=after,
            )

        if count:
            counts = await _count(page)
            print_json(counts) if output == "json" else print_counts(counts)
            return Exit.SUCCESS
        shown = await _fill(page, limit, after)
        if output == "json":
            runs = [view.model_dump(mode="json", exclude={"tasks"}) for view in shown.runs]
            print_json({"runs": runs, "next": shown.next})
        else:
            print_runs(shown.runs)
        return Exit.SUCCESS

    return with_yard(act, address=address, namespace=namespace, state=state, offline=True)


async def _fill(page: "Callable[[int, str], Awaitable[RunPage]]", limit: int, after: str) -> "RunPage":
    """So many runs as are asked for, where a page was short."""
    found = await page(limit, after)
    while found.next and len(found.runs) < limit:
        more = await page(limit - len(found.runs), found.next)
        found = replace(more, runs=(*found.runs, *more.runs))
    return found


async def _count(page: "Callable[[int, str], Awaitable[RunPage]]") -> dict[str, int]:
    from runyard.cli.tables import state_of

    counts: Counter[str] = Counter()
    after, more = "", True
    while more:
        found = await page(500, after)
        counts.update(state_of(view) for view in found.runs)
        after, more = found.next, bool(found.next)
    return dict(sorted(counts.items()))


@run.command()
@click.argument("run_id", metavar="RUN")
@options.connection
@options.ascii_only
@options.output
def show(
    run_id: str, *, address: str | None, namespace: str | None, state: Path | None, ascii_only: bool, output: str
) -> int:
    """One run and its tasks, now."""

    async def act(yard: "Runyard") -> int:
        view = await yard.run(run_id).describe()
        if output == "json":
            print_json(view)
        else:
            from runyard.cli.tables import print_run

            print_run(view, open_console(ascii_only=ascii_only))
        return Exit.SUCCESS

    return with_yard(act, address=address, namespace=namespace, state=state, offline=True)


@run.command()
@click.argument("run_id", metavar="RUN")
@options.connection
@options.ascii_only
@options.output
def watch(
    run_id: str, *, address: str | None, namespace: str | None, state: Path | None, ascii_only: bool, output: str
) -> int:
    """Follow a run to its end, and end with its status. Ctrl-C ends the watching only."""

    async def act(yard: "Runyard") -> int:
        return await watch_run(yard.run(run_id), ascii_only=ascii_only, as_json=output == "json")

    return with_yard(act, address=address, namespace=namespace, state=state, offline=True)


@run.command()
@click.argument("run_id", metavar="RUN")
@click.argument("task")
@click.option("--step", help="Only this step: its number from 0, or `setup`.")
@click.option("--attempt", type=click.IntRange(1), help="Of this attempt; the last one otherwise.")
@click.option("-f", "--follow", is_flag=True, help="Go on as it grows, to the task's end.")
@click.option("-n", "--lines", type=click.IntRange(0), help="Only the last lines.")
@options.connection
@options.output
def logs(
    run_id: str,
    task: str,
    *,
    step: str | None,
    attempt: int | None,
    follow: bool,
    lines: int | None,
    address: str | None,
    namespace: str | None,
    state: Path | None,
    output: str,
) -> int:
    """The log of a task: live, or years later from the store."""

    async def act(yard: "Runyard") -> int:
        from runyard.cli.loglines import print_logs

        log = int(step) if step and step.isdecimal() else step
        shown = yard.run(run_id).logs(task, step=log, attempt=attempt, follow=follow, lines=lines)
        if not await print_logs(shown, as_json=output == "json") and lines != 0:
            click.echo(f"runyard: {task} has written nothing", err=True)
        return Exit.SUCCESS

    return with_yard(act, address=address, namespace=namespace, state=state, offline=True)


@run.command()
@click.argument("run_id", metavar="RUN")
@click.option("--task", help="Only this task.")
@click.option("--wait", is_flag=True, help="Until the run has ended.")
@click.option("--reason", default="", help="Why, for those who look later.")
@options.connection
@options.output
def cancel(
    run_id: str,
    *,
    task: str | None,
    wait: bool,
    reason: str,
    address: str | None,
    namespace: str | None,
    state: Path | None,
    output: str,
) -> int:
    """End a run, or one of its tasks."""

    async def act(yard: "Runyard") -> int:
        chosen = yard.run(run_id)
        if task is not None:
            view = await chosen.cancel_task(task, by=options.user(), reason=reason)
            return _print_decision(view, "cancelled", output=output)
        await chosen.cancel()
        if wait and (came_to := (await chosen.result()).result) == "success":
            raise Conflict(f"run {run_id} had come to its end before the cancel reached it: {came_to}")
        if output == "json":
            print_json({"id": run_id, "cancelled": True})
        else:
            click.echo(f"{run_id}: {'cancelled' if wait else 'cancel is asked for'}")
        return Exit.SUCCESS

    return with_yard(act, address=address, namespace=namespace, state=state)


def _decision(name: str, done: str, doc: str) -> click.Command:
    """`approve`, `reject` and `retry`: the same words, another update."""

    @click.argument("run_id", metavar="RUN")
    @click.argument("task")
    @click.option("--by", default="", help="Who decides; your account's name otherwise.")
    @click.option("--reason", default="", help="Why, for those who look later.")
    @options.connection
    @options.output
    def command(
        run_id: str,
        task: str,
        *,
        by: str,
        reason: str,
        address: str | None,
        namespace: str | None,
        state: Path | None,
        output: str,
    ) -> int:
        async def act(yard: "Runyard") -> int:
            view = await _decide(yard.run(run_id), name, task, by=by or options.user(), reason=reason)
            return _print_decision(view, done, output=output)

        return with_yard(act, address=address, namespace=namespace, state=state)

    return click.command(name, help=doc)(command)


async def _decide(chosen: "Run", name: str, task: str, *, by: str, reason: str) -> TaskView:
    if name == "approve":
        return await chosen.approve(task, by=by)
    if name == "reject":
        return await chosen.reject(task, by=by, reason=reason)
    return await chosen.retry_task(task, by=by, reason=reason)


def _print_decision(view: TaskView, done: str, *, output: str) -> int:
    if output == "json":
        print_json(view)
    elif view.approvals_needed > len(view.approvals) and done == "approved":
        click.echo(f"{view.name}: approved, {len(view.approvals)} of {view.approvals_needed}")
    else:
        click.echo(f"{view.name}: {done}")
    return Exit.SUCCESS


run.add_command(start)
run.add_command(restart)
run.add_command(rm)
run.add_command(keep)
run.add_command(events)
run.add_command(export)
run.add_command(import_)
run.add_command(_decision("approve", "approved", "Approve a task that waits for it."))
run.add_command(_decision("reject", "rejected", "Refuse a task that waits for approval: it fails."))
run.add_command(_decision("retry", "tried again", "Try a held task again."))
