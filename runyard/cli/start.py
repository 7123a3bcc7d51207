"""`runyard run start`: a run on a server that is there already."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli import options
from runyard.cli.act import watch_run, with_yard
from runyard.cli.checkout import Checkout, find_checkout, find_checkout_of, find_direct
from runyard.cli.console import print_json
from runyard.cli.exits import Exit
from runyard.cli.files import find_file, make_request
from runyard.cli.garbage import uncollected
from runyard.errors import InvalidRequest
from runyard.spec import compile_run
from runyard.spec.plan import Source

if TYPE_CHECKING:
    from runyard.client import Run, Runyard
    from runyard.snapshot.take import Taken


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--run", "run_name", default="", help="Which run of the file; not needed where there is only one.")
@click.option("--task", "tasks", multiple=True, help="Only this task and what it needs. May be repeated.")
@click.option("--env", "pairs", multiple=True, metavar="NAME=VALUE", help="A variable of the run. Never a secret.")
@click.option("--env-file", type=click.Path(path_type=Path), help="Variables of the run, from a dotenv file.")
@click.option(
    "--local",
    is_flag=False,
    flag_value="",
    metavar="[DIR]",
    help="From the git checkout at DIR (or around FILE), exactly as it is now.",
)
@click.option("--ignored", is_flag=True, help="With --local: also what git ignores.")
@click.option("--source", help="From this folder, or from the repository at this URL.")
@click.option("--branch", default="", help="The branch to take, and what `when` sees.")
@click.option("--tag", default="", help="The tag to take, and what `when` sees.")
@click.option("--ref", default="", help="Another ref to take.")
@click.option("--commit", default="", help="The commit to take.")
@click.option("--message", default="", help="The commit's message: `[ci skip]` in it makes no run.")
@click.option("--group", default="", help="Runs of one group run in order, e.g. /project/web/branch/main.")
@click.option("--group-policy", default="", help="queue, 'parallel: N', cancel-superseded or skip-if-running.")
@click.option("--project", default="", help="The project that it belongs to.")
@click.option("--cache-group", default="", help="Whose caches it sees.")
@click.option("--cache-fallback", default="", help="A group to restore from what its own does not have.")
@click.option("--cache-read-only", is_flag=True, help="It restores caches and saves none.")
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
    local: str | None,
    ignored: bool,
    source: str | None,
    branch: str,
    tag: str,
    ref: str,
    commit: str,
    message: str,
    group: str,
    group_policy: str,
    project: str,
    cache_group: str,
    cache_fallback: str,
    cache_read_only: bool,
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
    if ignored and local is None:
        raise InvalidRequest("--ignored says what --local takes: give both")
    folder = _local_folder(file, local)
    path = file or find_file(folder)
    checkout = _checkout(path, local=folder, source=source)
    source_told = checkout.source.told(branch=branch, tag=tag, ref=ref, commit=commit)
    checkout = replace(checkout, source=source_told)
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
        group_policy=group_policy,
        project=project,
        cache_group=cache_group,
        cache_fallback=cache_fallback,
        cache_read_only=cache_read_only,
        priority=priority,
    )
    plan = compile_run(request, run_id="check", execution_id="check")

    taken: list[Taken] = []

    def told(each: "Taken") -> None:
        taken.append(each)
        _tell(each)

    async def act(yard: "Runyard") -> int:
        with uncollected():
            started = await yard.submit(
                request,
                run_id=run_id,
                idempotency_key=idempotency_key,
                plan=plan,
                local=folder,
                ignored=ignored,
                told=taken.append if output == "json" else told,
            )
        if not watch:
            _print_started(started, as_json=output == "json")
            return Exit.SUCCESS
        origin = replace(checkout, changed=taken[0].snapshot.changed if taken else checkout.changed).origin
        return await watch_run(started, origin=origin, ascii_only=ascii_only, as_json=output == "json")

    return with_yard(act, address=address, namespace=namespace, state=state)


def _local_folder(file: Path | None, local: str | None) -> Path | None:
    """The folder whose checkout --local takes: the one it names, else that of FILE if it is in one, else this."""
    if local is None:
        return None
    if local and Path(local).is_file():
        raise InvalidRequest(
            f"--local takes a folder, and {local} is a file",
            remedy=f"Name the run file first: `runyard run start {local} --local`.",
        )
    if local or file is None:
        return Path(local or ".")
    return find_checkout_of(file).folder


def _checkout(path: Path, *, local: Path | None, source: str | None) -> Checkout:
    """A folder is taken as it is; anything else is a URL that the task clones."""
    if local is not None and source:
        raise InvalidRequest("--local takes a checkout of this machine: give it or --source, not both")
    if source and not Path(source).is_dir() and (":" in source or source.startswith("/")):
        return Checkout(source=Source(url=source), folder=Path.cwd())
    if source:
        return find_checkout(Path(source))
    if local is not None:
        return find_direct(local)
    return Checkout(source=Source(), folder=find_checkout_of(path).folder)


def _tell(taken: "Taken") -> None:
    """On stderr: what was taken, and what was not."""
    sent = f"{taken.sent / 1e6:.1f} MB" if taken.sent >= 100_000 else f"{taken.sent / 1e3:.1f} kB"
    click.echo(f"Checkout  {taken.files:,} files, {taken.snapshot.changed:,} changed; {sent} sent", err=True)
    for note in taken.notes:
        click.echo(f"runyard: {note}", err=True)


def _print_started(started: "Run", *, as_json: bool) -> None:
    if as_json:
        print_json({"id": started.id, "ui": started.ui})
        return
    click.echo(started.id)
    if started.ui:
        click.echo(f"Temporal UI  {started.ui}", err=True)
