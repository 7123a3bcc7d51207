"""`runyard exec`: one run, on a server and a worker of its own, from nothing to its end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli import options
from runyard.cli.checkout import Checkout, find_checkout, find_checkout_of
from runyard.cli.console import Console, open_console, print_json
from runyard.cli.exits import Exit, exit_of_result
from runyard.cli.files import find_file, make_request
from runyard.cli.noise import quiet
from runyard.cli.ours import require_ours
from runyard.cli.signals import Interrupts, interrupts
from runyard.errors import InvalidRequest
from runyard.spec import compile_run
from runyard.spec.plan import Plan
from runyard.spec.run import RunRequest, RunView

if TYPE_CHECKING:
    from runyard.client import Run, Runyard
    from runyard.settings import Settings


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What is to be done, judged before anything is started."""

    request: RunRequest
    plan: Plan
    checkout: Checkout
    settings: "Settings"
    headless: bool
    as_json: bool


@click.command("exec")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--run", "run_name", default="", help="Which run of the file; not needed where there is only one.")
@click.option("--task", "tasks", multiple=True, help="Only this task and what it needs. May be repeated.")
@click.option("--env", "pairs", multiple=True, metavar="NAME=VALUE", help="A variable of the run. Never a secret.")
@click.option("--env-file", type=click.Path(path_type=Path), help="Variables of the run, from a dotenv file.")
@click.option("--source", type=click.Path(path_type=Path), help="The folder that `clone` takes, as it is.")
@click.option("--keep", is_flag=True, help="Keep the tasks' folders, to look into them.")
@click.option("--no-ui", "headless", is_flag=True, help="Without the Temporal UI.")
@options.executor
@options.state
@options.ascii_only
@options.output
def exec_(
    file: Path | None,
    *,
    run_name: str,
    tasks: tuple[str, ...],
    pairs: tuple[str, ...],
    env_file: Path | None,
    source: Path | None,
    keep: bool,
    headless: bool,
    executor: str | None,
    state: Path | None,
    ascii_only: bool,
    output: str,
) -> int:
    """Run FILE (.runyard/config.yml) here and now, and end with its status.

    The Temporal server lives as long as the run. Logs, archives and the result stay in the state folder:
    `runyard run logs`, `show` and `list` find them later, without a server. Ctrl-C cancels the run and leaves
    nothing behind; a second one leaves at once.
    """
    require_ours()
    settings = options.load_settings(state=state, executor=executor)
    if keep:
        settings = settings.model_copy(update={"local_keep_folders": True})
    path = file or find_file()
    checkout = find_checkout(source) if source else find_checkout_of(path)
    request = make_request(
        path,
        run=run_name,
        tasks=tasks,
        environment=options.parse_environment(pairs, env_file),
        checkout=checkout,
        executor=settings.executor,
    )
    work = _Work(
        request=request,
        plan=compile_run(request, run_id="check", execution_id="check"),
        checkout=checkout,
        settings=settings,
        headless=headless,
        as_json=output == "json",
    )
    return asyncio.run(_execute(work, open_console(ascii_only=ascii_only)))


async def _execute(work: _Work, console: Console) -> int:
    with interrupts() as asked:
        started = asyncio.Event()
        running = asyncio.create_task(_run(work, console, asked, started))
        if not await asked.come_after(running) and not started.is_set():
            running.cancel()  # nothing is there yet that would have to be cancelled in order
        try:
            return await running
        except asyncio.CancelledError:
            return Exit.CANCELLED


async def _run(work: _Work, console: Console, asked: Interrupts, started: asyncio.Event) -> int:
    async with _yard(work) as yard:
        started.set()
        run = await yard.submit(work.request, plan=work.plan)
        cancelling = asyncio.create_task(_cancel_when_asked(run, asked))
        try:
            view = await _show(run, work, console, asked)
        finally:
            cancelling.cancel()
        if work.as_json:
            print_json(view)
        return exit_of_result((await run.result()).result)


@contextlib.asynccontextmanager
async def _yard(work: _Work) -> AsyncIterator["Runyard"]:
    """Server, worker and client; they end in the reverse order."""
    from workers.embedded import embedded_server

    settings = work.settings
    quiet()
    starting = embedded_server(settings.state, headless=work.headless, ephemeral=True, meanwhile=_import_all)
    async with starting as server:
        from runyard.client import Runyard
        from workers.serve import serve

        ready = asyncio.Event()
        serving = asyncio.create_task(
            serve(server.client, settings, executors=[work.request.executor], ready=ready, tied=True)
        )
        owner = asyncio.current_task()
        assert owner is not None

        def lose(_: "asyncio.Task[None]") -> None:
            owner.cancel()  # nobody is left to bring the run to its end; why is raised below

        try:
            await _until_ready(serving, ready)
            serving.add_done_callback(lose)
            async with Runyard.over(server.client, settings, ui=server.ui_url) as yard:
                yield yard
        finally:
            serving.remove_done_callback(lose)
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving


def _import_all() -> None:
    """The larger part of our own start, done while the server starts."""
    import workers.serve  # noqa: F401


async def _until_ready(serving: "asyncio.Task[None]", ready: asyncio.Event) -> None:
    """Or until the worker ends, which is an error of its own."""
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if serving.done():
        serving.result()
        raise InvalidRequest("the worker ended before the run began")


async def _cancel_when_asked(run: "Run", asked: Interrupts) -> None:
    await asked.asked.wait()
    await run.cancel()


async def _show(run: "Run", work: _Work, console: Console, asked: Interrupts) -> RunView:
    from runyard.cli.follow import follow

    if work.as_json:
        await run.result()
        return await run.describe()
    if not console.live:
        console.text(f"runyard {work.plan.run.name} of {work.checkout.origin} · run {run.id}")
        if run.ui:
            console.text(f"Temporal UI {run.ui}")

    def notice() -> str:
        return "cancelling; Ctrl-C again leaves at once" if asked.asked.is_set() else ""

    return await follow(run, console, origin=work.checkout.origin, notice=notice)
