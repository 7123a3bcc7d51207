"""`runyard worker`: serve a Temporal namespace that somebody else runs."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli import options
from runyard.cli.console import open_console
from runyard.cli.dev import until_first
from runyard.cli.exits import Exit
from runyard.cli.noise import to_stderr
from runyard.cli.ours import require_ours
from runyard.cli.signals import Interrupts, interrupts

if TYPE_CHECKING:
    from runyard.metrics import Metrics
    from runyard.settings import Settings


@click.command()
@click.option("--runs/--no-runs", default=None, help="Serve the queue of the runs themselves, or do not.")
@click.option(
    "--executor", "--queue", "executors", multiple=True, help="Serve the queue of this executor. May be repeated."
)
@click.option("--metrics-address", help="Serve metrics and probes at HOST:PORT (RUNYARD_METRICS_ADDRESS).")
@options.log_format
@options.connection
def worker(
    *,
    runs: bool | None,
    executors: tuple[str, ...],
    metrics_address: str | None,
    log_format: str | None,
    address: str | None,
    namespace: str | None,
    state: Path | None,
) -> int:
    """Serve until SIGTERM or Ctrl-C; then let go of what runs, which other workers adopt.

    Without options: runs, and the executor of the settings. `--runs` alone: runs and no executor.
    """
    gc.disable()  # until it serves, see `collect_rarely`: what is imported stays
    require_ours()
    settings = options.load_settings(state=state)
    told = {"metrics_address": metrics_address, "log_format": log_format}
    settings = settings.model_copy(update={name: value for name, value in told.items() if value is not None})
    names = [name.removeprefix("runyard-") for name in executors]
    if not names and not runs:
        names = [settings.executor]
    serving = _serve(settings, runs=runs is not False, executors=names, address=address, namespace=namespace)
    return asyncio.run(serving)


async def _serve(
    settings: "Settings", *, runs: bool, executors: Sequence[str], address: str | None, namespace: str | None
) -> int:
    from runyard.temporal import connect

    ready = asyncio.Event()
    async with AsyncExitStack() as stack:
        asked = stack.enter_context(interrupts())
        metrics = await stack.enter_async_context(_measured(settings, executors, ready))
        connecting = asyncio.create_task(connect(address=address, namespace=namespace))
        await asyncio.sleep(0)  # it is under way, in the SDK's own threads, while the rest is imported
        from workers.serve import serve

        if not await asked.come_after(connecting):  # a server that says nothing may take minutes
            connecting.cancel()
            return Exit.SUCCESS
        client = await connecting
        where = f"{client.service_client.config.target_host}, namespace {client.namespace}"
        work = {
            "worker": serve(client, settings, runs=runs, executors=executors, metrics=metrics, ready=ready),
            "greeting": _greet(ready, [*(["runs"] if runs else []), *executors], where, settings),
            "stop": _stop(asked, settings),
        }
        await until_first({name: asyncio.create_task(each) for name, each in work.items()})
    return Exit.SUCCESS


@asynccontextmanager
async def _measured(
    settings: "Settings", executors: Sequence[str], ready: asyncio.Event
) -> AsyncIterator["Metrics"]:
    """Metrics and probes while the block runs, where the settings ask for them; before there is a connection."""
    from runyard.metrics import NO_METRICS

    log = {"lines": settings.log_format, "level": settings.log_level or "info"}
    if not settings.metrics_address:
        to_stderr(**log)
        yield NO_METRICS
        return
    from workers.metrics import PrometheusMetrics
    from workers.pages import choose_loopback, serve_pages

    core, metrics = choose_loopback(), PrometheusMetrics()
    to_stderr(**log, metrics=core)
    for name in executors:
        metrics.serves(name)
    async with serve_pages(settings.metrics_address, metrics, core=core, ready=ready.is_set):
        yield metrics


async def _greet(ready: asyncio.Event, served: Sequence[str], where: str, settings: "Settings") -> None:
    await ready.wait()
    _say(f"serving {', '.join(served)} at {where}", settings)
    await asyncio.Event().wait()


async def _stop(asked: Interrupts, settings: "Settings") -> None:
    await asked.asked.wait()
    _say("letting go; other workers go on", settings)


def _say(text: str, settings: "Settings") -> None:
    """To people; where programs read what this process says, as a line of its log."""
    if settings.log_format == "json":
        logging.getLogger("runyard.worker").info("%s", text)
    else:
        open_console().text(text)
