"""`runyard doctor`: is everything there that runs need? Each red line says what to do."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli import options
from runyard.cli.checks import Check
from runyard.cli.console import Console, open_console, print_json
from runyard.cli.exits import Exit
from runyard.cli.render import Span

if TYPE_CHECKING:
    from runyard.settings import Settings

_STYLE = {"ok": "good", "warning": "warn", "wrong": "bad"}
_MARK = {"ok": "✔", "warning": "⚠", "wrong": "✖"}
_ASCII = {"ok": "+", "warning": "!", "wrong": "x"}


@click.command()
@click.option("--fix", is_flag=True, help="Register missing search attributes; schedule cleanups.")
@click.option(
    "--deep", is_flag=True, help="Also start a pod of some seconds, to ask the agent's image its version."
)
@options.executor
@options.connection
@options.ascii_only
@options.output
def doctor(
    *,
    fix: bool,
    deep: bool,
    executor: str | None,
    address: str | None,
    namespace: str | None,
    state: Path | None,
    ascii_only: bool,
    output: str,
) -> int:
    """Try everything that runs need: programs, server, namespace, workers, store, executor.

    Ends with 5 when something is wrong.
    """
    settings = options.load_settings(state=state, executor=executor)
    found = asyncio.run(
        _examine(
            settings,
            fix=fix,
            deep=deep,
            address=address,
            namespace=namespace,
            console=None if output == "json" else open_console(ascii_only=ascii_only),
        )
    )
    if output == "json":
        print_json([vars(check) for check in found])
    return Exit.UNREACHABLE if any(check.state == "wrong" for check in found) else Exit.SUCCESS


async def _examine(
    settings: "Settings",
    *,
    fix: bool,
    deep: bool,
    address: str | None,
    namespace: str | None,
    console: Console | None,
) -> list[Check]:
    found: list[Check] = []
    async for check in _checks(settings, fix=fix, deep=deep, address=address, namespace=namespace):
        found.append(check)
        if console:
            _print(check, console)
    return found


async def _checks(
    settings: "Settings", *, fix: bool, deep: bool, address: str | None, namespace: str | None
) -> AsyncIterator[Check]:
    from runyard.cli import checks, clusterchecks, storechecks

    for check in checks.machine(settings):
        yield check
    async for check in checks.temporal(settings, address=address, namespace=namespace, fix=fix):
        yield check
    async for check in storechecks.store(settings):
        yield check
    if settings.executor.partition("-")[0] == "kubernetes":
        async for check in clusterchecks.cluster(settings, deep=deep):
            yield check
    yield await checks.executor(settings)


def _print(check: Check, console: Console) -> None:
    mark = (_ASCII if console.ascii_only else _MARK)[check.state]
    console.lines([(Span(mark, _STYLE[check.state]), Span(f" {check.name:<18} {check.message}"))])
    if check.remedy and check.state != "ok":
        console.lines([(Span(f"  {'':<18} {check.remedy}", "faint"),)])
