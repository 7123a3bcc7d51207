"""`runyard run events`: what happens to runs, as it happens or after it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli import options
from runyard.cli.act import with_yard
from runyard.cli.exits import Exit
from runyard.cli.text import clean

if TYPE_CHECKING:
    from runyard.client import Event, Runyard


@click.command("events")
@click.argument("run_id", metavar="[RUN]", required=False, default="")
@click.option("-f", "--follow", is_flag=True, help="Go on as it happens: of one run to its end, of all for ever.")
@click.option(
    "--since", default="", metavar="CURSOR", help="Go on after this event's cursor, or from a time (UTC)."
)
@options.connection
@options.output
def events(
    run_id: str,
    *,
    follow: bool,
    since: str,
    address: str | None,
    namespace: str | None,
    state: Path | None,
    output: str,
) -> int:
    """What happened to a run and its tasks, or to all runs. With `-o json` an object a line, each with its cursor.

    After a break give the last cursor to `--since`: nothing is left out, and what comes twice has the same id.
    """

    async def act(yard: "Runyard") -> int:
        async for event in yard.events(since, run=run_id, follow=follow):
            click.echo(event.model_dump_json(exclude_none=True) if output == "json" else line_of(event))
        return Exit.SUCCESS

    return with_yard(act, address=address, namespace=namespace, state=state, offline=True)


def line_of(event: "Event") -> str:
    """For people: when, which run, what, and to which task."""
    number = f" #{event.attempt}" if event.attempt > 1 else ""
    status = f" {event.status}" if event.kind == "attempt_ended" and event.status else ""
    result = f" {event.result}" if event.result else ""
    reason = f" {event.reason}" if event.reason and event.reason != "success" else ""
    kept = f" from {clean(event.kept_from)}" if event.kept_from else ""
    message = f": {clean(event.message)}" if event.message else ""
    task = f" {clean(event.task)}" if event.task else ""
    what = event.kind.replace("_", " ")
    at = f"{event.at:%Y-%m-%dT%H:%M:%S}Z"
    return f"{at}  {clean(event.run)}  {what}{task}{number}{status}{result}{reason}{kept}{message}"
