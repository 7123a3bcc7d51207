"""`runyard dev`: Temporal's server with its UI, a worker and a store, in one process tree and one folder."""

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli import options
from runyard.cli.console import open_console
from runyard.cli.exits import Exit
from runyard.cli.noise import to_stderr
from runyard.cli.ours import require_ours
from runyard.cli.signals import Interrupts, interrupts
from runyard.errors import RunyardError, ServerUnavailable

if TYPE_CHECKING:
    from runyard.settings import Settings
    from workers.embedded import EmbeddedServer


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=7233, show_default=True, help="Of the server.")
@click.option("--ui-port", type=click.IntRange(1, 65535), default=8233, show_default=True, help="Of the UI.")
@click.option("--no-ui", "headless", is_flag=True, help="Without the Temporal UI.")
@options.log_format
@options.executor
@options.state
def dev(
    *, port: int, ui_port: int, headless: bool, log_format: str | None, executor: str | None, state: Path | None
) -> int:
    """Serve runs on this machine until Ctrl-C.

    All state is in one folder. It is safe to stop, to kill and to start again: open runs go on.
    """
    require_ours()
    settings = options.load_settings(state=state, executor=executor)
    to_stderr(lines=log_format or settings.log_format, level=settings.log_level or "warning")
    return asyncio.run(_serve(settings, port=port, ui_port=ui_port, headless=headless))


async def _serve(settings: "Settings", *, port: int, ui_port: int, headless: bool) -> int:
    from workers.embedded import embedded_server

    with interrupts() as asked:
        async with embedded_server(settings.state, port=port, ui_port=ui_port, headless=headless) as server:
            from workers.serve import serve

            ready = asyncio.Event()
            work = {
                "worker": serve(server.client, settings, runs=True, executors=[settings.executor], ready=ready),
                "server": server.ended(),
                "greeting": _greet(ready, server, settings),
                "schedule": _schedule(ready, server, settings),
                "stop": _stop(asked),
            }
            ended = await until_first({name: asyncio.create_task(each) for name, each in work.items()})
        if ended == "server":
            raise ServerUnavailable(
                "the embedded Temporal server has ended", remedy=f"Its last words: {server.log}"
            )
    return Exit.SUCCESS


async def until_first(tasks: dict[str, asyncio.Task[None]]) -> str:
    """Run all, end all when the first ends, and give its name; raises what made it end."""
    try:
        done, _ = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks.values():
            task.cancel()
        for task in tasks.values():
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
    for task in done:
        task.result()
    return next(name for name, task in tasks.items() if task in done)


async def _greet(ready: asyncio.Event, server: "EmbeddedServer", settings: "Settings") -> None:
    await ready.wait()
    console = open_console()
    console.text(f"Temporal      {server.address}")
    if server.ui_url:
        console.text(f"Temporal UI   {server.ui_url}")
    console.text(f"State         {settings.state}")
    console.text(f"Executor      {settings.executor}, {settings.slots} tasks at once")
    console.text(
        "Ready: `runyard run start FILE` in another terminal. Ctrl-C stops; open runs go on at the next start."
    )
    await asyncio.Event().wait()


async def _schedule(ready: asyncio.Event, server: "EmbeddedServer", settings: "Settings") -> None:
    """A cleanup every hour, once there is a worker for it."""
    from runyard.client.cleanup import ensure_schedule

    await ready.wait()
    try:
        await ensure_schedule(server.client, every_s=settings.cleanup_every_s)
    except RunyardError as error:
        open_console().text(f"no cleanup is scheduled: {error.message}")
    await asyncio.Event().wait()


async def _stop(asked: Interrupts) -> None:
    await asked.asked.wait()
    open_console().text("stopping; open runs go on at the next start")
