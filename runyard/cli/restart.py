"""`runyard run restart`: a run that keeps what is good of an earlier one."""

import re
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli import options
from runyard.cli.act import watch_run, with_yard
from runyard.cli.console import print_json
from runyard.cli.exits import Exit
from runyard.cli.text import clean, count

if TYPE_CHECKING:
    from runyard.client import Run, Runyard
    from runyard.client.planned import Planned

_COMMA = re.compile(r",(?![^(]*\))")
"""Not one within brackets: `test (3.12, linux)` is the name of one task."""

SHOWN = 20


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--failed", is_flag=True, help="Keep what succeeded; so it is unless the run did.")
@click.option("--from-start", is_flag=True, help="Keep nothing.")
@click.option("--tasks", multiple=True, metavar="A,B", help="These and all that depends on them run again.")
@click.option("--file", type=click.Path(path_type=Path), help="Another run file; what it changes runs again.")
@click.option("--env", "pairs", multiple=True, metavar="NAME=VALUE", help="Variables, instead of the old ones.")
@click.option("--env-file", type=click.Path(path_type=Path), help="The same, from a dotenv file.")
@click.option("--priority", type=click.IntRange(1, 5), help="1 comes first.")
@click.option("--id", "new_id", help="The new run's id, instead of one that is made.")
@click.option("--idempotency-key", help="A second restart with this key gives the first one's run.")
@click.option("--watch", is_flag=True, help="Follow it, and end with its status.")
@options.executor
@options.connection
@options.ascii_only
@options.output
def restart(
    run_id: str,
    *,
    failed: bool,
    from_start: bool,
    tasks: tuple[str, ...],
    file: Path | None,
    pairs: tuple[str, ...],
    env_file: Path | None,
    priority: int | None,
    new_id: str | None,
    idempotency_key: str | None,
    watch: bool,
    executor: str | None,
    address: str | None,
    namespace: str | None,
    state: Path | None,
    ascii_only: bool,
    output: str,
) -> int:
    """Start a run anew, keep what is good of it, and print the new run's id."""
    environment = options.parse_environment(pairs, env_file) if pairs or env_file else None
    names = [name.strip() for each in tasks for name in _COMMA.split(each) if name.strip()]

    async def act(yard: "Runyard") -> int:
        started = await yard.restart(
            run_id,
            failed=failed,
            from_start=from_start,
            tasks=names,
            file=file,
            environment=environment,
            executor=executor,
            priority=priority,
            traceparent=options.traceparent() or None,
            run_id=new_id,
            idempotency_key=idempotency_key,
        )
        if watch:
            return await watch_run(started, ascii_only=ascii_only, as_json=output == "json")
        await _print_restarted(started, as_json=output == "json")
        return Exit.SUCCESS

    return with_yard(act, address=address, namespace=namespace, state=state)


async def _print_restarted(started: "Run", *, as_json: bool) -> None:
    from runyard.client.restarting import wait_for_plan

    if not as_json:
        click.echo(started.id)
    planned = await wait_for_plan(started)
    if as_json:
        kept = {name: task.kept_from for name, task in planned.items() if task.kept_from}
        again = {name: task.again for name, task in planned.items() if task.again}
        print_json({"id": started.id, "ui": started.ui, "kept": kept, "again": again})
        return
    for line in said(planned):
        click.echo(line, err=True)
    if started.ui:
        click.echo(f"Temporal UI  {started.ui}", err=True)


def said(planned: Mapping[str, "Planned"]) -> list[str]:
    """What is kept, what runs again, and why: the first so many."""
    if not planned:
        return ["no worker has planned it yet; `runyard run show` will tell what it keeps"]
    kept = Counter(clean(task.kept_from) for task in planned.values() if task.kept_from)
    again = {name: task.again for name, task in planned.items() if task.again}
    made = f" from {', '.join(kept)}" if kept else ""
    runs = "runs" if len(again) == 1 else "run"
    lines = [f"{count(kept.total(), 'task')} kept{made}, {len(again):,} {runs} again"]
    if len(set(again.values())) > 1 or kept:
        lines += [f"  {clean(name)}: {clean(why)}" for name, why in islice(again.items(), SHOWN)]
        lines += [f"  and {len(again) - SHOWN:,} more"] if len(again) > SHOWN else []
    return lines
