"""`runyard run`: start, find, follow and decide runs."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli import options
from runyard.cli.checkout import Checkout, find_checkout, find_checkout_of
from runyard.cli.console import open_console, print_json
from runyard.cli.exits import Exit, exit_of_result
from runyard.cli.files import find_file, make_request
from runyard.errors import InvalidRequest
from runyard.spec.plan import Source
from runyard.spec.run import TaskView

if TYPE_CHECKING:
    from runyard.client import Phase, Run, Runyard


@click.group()
def run() -> None:
    """Start, find, follow and decide runs."""


@run.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--run", "run_name", default="", help="Which run of the file; not needed where there is only one.")
@click.option("--task", "tasks", multiple=True, help="Only this task and what it needs. May be repeated.")
@click.option("--env", "pairs", multiple=True, metavar="NAME=VALUE", help="A variable of the run. Never a secret.")
@click.option("--env-file", type=click.Path(path_type=Path), help="Variables of the run, from a dotenv file.")
@click.option("--local", is_flag=True, help="From the git checkout around FILE, exactly as it is.")
@click.option("--source", help="From this folder, or from the repository at this URL.")
@click.option("--branch", default="", help="The branch to take, and what `when` sees.")
@click.option("--tag", default="", help="The tag to take, and what `when` sees.")
@click.option("--ref", default="", help="Another ref to take.")
@click.option("--commit", default="", help="The commit to take.")
@click.option("--message", default="", help="The commit's message: `[ci skip]` in it makes no run.")
@click.option("--group", default="", help="Runs of one group run in order, e.g. /project/web/branch/main.")
@click.option("--project", default="", help="The project that it belongs to.")
@click.option("--cache-group", default="", help="Whose caches it sees.")
@click.option("--priority", type=click.IntRange(1, 5), default=3, show_default=True, help="1 comes first.")
@click.option("--id", "run_id", help="The run's id, instead of a new one.")
@click.option("--idempotency-key", help="A second start with this key gives the first one's run.")
@click.option("--watch", is_flag=True, help="Follow it, and end with its status.")
@options.executor
@options.connection
@options.ascii_only
@options.output
def start(
    file: Path | None,
    *,
    run_name: str,
    tasks: tuple[str, ...],
    pairs: tuple[str, ...],
    env_file: Path | None,
    local: bool,
    source: str | None,
    branch: str,
    tag: str,
    ref: str,
    commit: str,
    message: str,
    group: str,
    project: str,
    cache_group: str,
    priority: int,
    run_id: str | None,
    idempotency_key: str | None,
    watch: bool,
    executor: str | None,
    address: str | None,
    namespace: str | None,
    state: Path | None,
    ascii_only: bool,
    output: str,
) -> int:
    """Start a run of FILE (.runyard/config.yml) and print its id."""
    path = file or find_file()
    checkout = _checkout(path, local=local, source=source)
    words = {"branch": branch, "tag": tag, "ref": ref, "commit": commit}
    given = {name: word for name, word in words.items() if word}
    checkout = replace(checkout, source=checkout.source.model_copy(update=given))
    settings = options.load_settings(state=state, executor=executor)
    request = make_request(
        path,
        run=run_name,
        tasks=tasks,
        environment=options.parse_environment(pairs, env_file),
        checkout=checkout,
        executor=settings.executor,
        message=message,
        group=group,
        project=project,
        cache_group=cache_group,
        priority=priority,
    )

    async def act(yard: "Runyard") -> int:
        started = await yard.submit(request, run_id=run_id, idempotency_key=idempotency_key)
        if not watch:
            _print_started(started, as_json=output == "json")
            return Exit.SUCCESS
        return await _watch(started, origin=checkout.origin, ascii_only=ascii_only, as_json=output == "json")

    return _with_yard(act, address=address, namespace=namespace, state=state)


def _checkout(path: Path, *, local: bool, source: str | None) -> Checkout:
    """A folder is taken as it is; anything else is a URL that the task clones."""
    if local and source:
        raise InvalidRequest("--local takes the checkout around the file: give it or --source, not both")
    if source and not Path(source).is_dir() and (":" in source or source.startswith("/")):
        return Checkout(source=Source(url=source), folder=Path.cwd())
    if source:
        return find_checkout(Path(source))
    if local:
        return find_checkout_of(path)
    return Checkout(source=Source(), folder=find_checkout_of(path).folder)


def _print_started(started: "Run", *, as_json: bool) -> None:
    if as_json:
        print_json({"id": started.id, "ui": started.ui})
        return
    click.echo(started.id)
    if started.ui:
        click.echo(f"Temporal UI  {started.ui}", err=True)


@run.command("list")
@click.option("--open", "phase", flag_value="open", help="Those that have not ended.")
@click.option("--closed", "phase", flag_value="closed", help="Those that have ended.")
@click.option("--failed", "phase", flag_value="failed", help="Those that failed.")
@click.option("--project", default="", help="Of this project.")
@click.option("--group", default="", help="Of this group.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=30, show_default=True, help="At most so many.")
@options.connection
@options.output
def list_(
    *,
    phase: "Phase | None",
    project: str,
    group: str,
    limit: int,
    address: str | None,
    namespace: str | None,
    state: Path | None,
    output: str,
) -> int:
    """The newest runs first. Without a server: those that the store remembers."""

    async def act(yard: "Runyard") -> int:
        views = await yard.list(phase=phase, project=project, group=group, limit=limit)
        if output == "json":
            print_json([view.model_dump(mode="json", exclude={"tasks"}) for view in views])
        else:
            from runyard.cli.tables import print_runs

            print_runs(views)
        return Exit.SUCCESS

    return _with_yard(act, address=address, namespace=namespace, state=state, offline=True)


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

    return _with_yard(act, address=address, namespace=namespace, state=state, offline=True)


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
        return await _watch(yard.run(run_id), ascii_only=ascii_only, as_json=output == "json")

    return _with_yard(act, address=address, namespace=namespace, state=state, offline=True)


async def _watch(run: "Run", *, origin: str = "", ascii_only: bool, as_json: bool) -> int:
    from runyard.cli.follow import follow

    if as_json:
        result = await run.result()
        print_json(await run.describe())
        return exit_of_result(result.result)
    await follow(run, open_console(ascii_only=ascii_only), origin=origin)
    return exit_of_result((await run.result()).result)


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

    return _with_yard(act, address=address, namespace=namespace, state=state, offline=True)


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
        if wait:
            await chosen.result()
        if output == "json":
            print_json({"id": run_id, "cancelled": True})
        else:
            click.echo(f"{run_id}: {'cancelled' if wait else 'cancel is asked for'}")
        return Exit.SUCCESS

    return _with_yard(act, address=address, namespace=namespace, state=state)


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

        return _with_yard(act, address=address, namespace=namespace, state=state)

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


run.add_command(_decision("approve", "approved", "Approve a task that waits for it."))
run.add_command(_decision("reject", "rejected", "Refuse a task that waits for approval: it fails."))
run.add_command(_decision("retry", "tried again", "Try a held task again."))


def _with_yard(
    act: Callable[["Runyard"], Awaitable[int]],
    *,
    address: str | None,
    namespace: str | None,
    state: Path | None,
    offline: bool = False,
) -> int:
    async def go() -> int:
        async with options.open_yard(address=address, namespace=namespace, state=state, offline=offline) as yard:
            return await act(yard)

    return asyncio.run(go())
