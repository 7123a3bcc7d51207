"""Show a run until it ends: a tree that is redrawn on a terminal, lines that are only added elsewhere."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from runyard.cli import render
from runyard.cli.console import Console
from runyard.cli.render import Frame, Line, Span
from runyard.cli.text import clean
from runyard.errors import RunyardError
from runyard.spec.run import RunView, TaskView

if TYPE_CHECKING:
    from rich.text import Text

    from runyard.client import Run

FRAME_S: Final = 0.2
LOOK_S: Final = 0.25
LOG_LINES: Final = 20
TAILS: Final = 12
"""Running tasks whose last line is shown: each is a reader of the store."""

_RICH = {
    "good": "green",
    "bad": "red",
    "busy": "cyan",
    "idle": "dim",
    "warn": "yellow",
    "strong": "bold",
    "faint": "dim",
}


async def follow(
    run: "Run", console: Console, *, origin: str = "", notice: Callable[[], str] = lambda: "", summary: bool = True
) -> RunView:
    """Show the run until its end and give its last view. ``notice`` is asked at each drawing."""
    shown = _draw(run, console, origin, notice) if console.live else _print(run, console, notice)
    last: RunView | None = None
    async for view in shown:
        last = view
    assert last is not None
    if summary:
        if console.live:
            await _show_failures(run, last, console)
        console.lines(render.ending(last, ascii_only=console.ascii_only))
    return last


# lines


async def _print(run: "Run", console: Console, notice: Callable[[], str]) -> AsyncIterator[RunView]:
    before: RunView | None = None
    noticed = waited = ""
    async for view in run.watch(LOOK_S):
        for event in render.events(before, view, now=datetime.now(UTC), ascii_only=console.ascii_only):
            console.lines([(Span(f"{render.stamp(event.at)} ", "faint"), *event.line)])
            if event.failed:
                await _print_failure(run, event.task, console)
        if (words := render.waits_for(view)) not in ("", waited):
            console.lines([(Span(f"{render.stamp(datetime.now(UTC))} ", "faint"), Span(words, "warn"))])
        waited = words
        if (words := notice()) != noticed:
            console.text(f"{render.stamp(datetime.now(UTC))} {words}")
            noticed = words
        before = view
        yield view


async def _print_failure(run: "Run", task: TaskView, console: Console, *, lines: int = LOG_LINES) -> None:
    if remedy := render.remedy_of(task.reason):
        console.lines([(Span(f"         {remedy}", "faint"),)])
    console.lines([(Span("         | ", "faint"), Span(line)) for line in await last_lines(run, task, lines)])


async def last_lines(run: "Run", task: TaskView, lines: int) -> list[str]:
    """The end of a task's log; nothing where there is none, which must not hide the failure itself."""
    if not task.attempt:
        return []
    try:
        return [clean(line.text) async for line in run.logs(task.name, attempt=task.attempt, lines=lines)]
    except RunyardError:
        return []


async def _show_failures(run: "Run", view: RunView, console: Console) -> None:
    failed = [task for task in view.tasks if task.status == "failed" and not task.ignore_failure]
    for task in failed[:3]:
        if found := await last_lines(run, task, LOG_LINES // 2):
            console.lines([(Span(f" {clean(task.name)}", "strong"),)])
            console.lines([(Span(" | ", "faint"), Span(line)) for line in found])


# the tree


async def _draw(run: "Run", console: Console, origin: str, notice: Callable[[], str]) -> AsyncIterator[RunView]:
    from rich.console import Console as RichConsole
    from rich.live import Live

    terminal = RichConsole(file=console.stream, no_color=not console.color, highlight=False, markup=False)
    tails = _Tails(run)
    latest: list[RunView] = []
    with Live(console=terminal, auto_refresh=False, vertical_overflow="crop") as screen:

        def draw(view: RunView, *, end: bool = False) -> None:
            size = shutil.get_terminal_size()
            frame = Frame(
                now=datetime.now(UTC),
                width=max(20, size.columns - 1),
                height=None if end and len(view.tasks) <= 200 else max(4, size.lines - 1),
                ascii_only=console.ascii_only,
                origin=origin,
                tails=tails.lines,
                notice="" if end else notice(),
            )
            screen.vertical_overflow = "visible" if end else "crop"
            screen.update(_rich(render.tree(view, frame), color=console.color), refresh=True)

        ticking = asyncio.create_task(_tick(latest, draw))
        try:
            async for view in run.watch(LOOK_S):
                latest[:] = [view]
                tails.watch(view)
                draw(view)
                yield view
        finally:
            ticking.cancel()
            await tails.close()
            with contextlib.suppress(asyncio.CancelledError):
                await ticking
            if latest:
                draw(latest[0], end=True)


async def _tick(latest: list[RunView], draw: Callable[[RunView], None]) -> None:
    """Durations and last lines move on between two changes of the run."""
    while True:
        await asyncio.sleep(FRAME_S)
        if latest:
            draw(latest[0])


def _rich(lines: list[Line], *, color: bool) -> "Text":
    from rich.text import Text

    styles = _RICH if color else {}  # NO_COLOR means no bold and no dim either
    pieces = [(span.text, styles.get(span.style, "")) for line in lines for span in (*line, Span("\n"))]
    return Text.assemble(*pieces[:-1], no_wrap=True, overflow="crop")


class _Tails:
    """The last line of each running task's log, as it grows."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._readers: dict[tuple[str, int], asyncio.Task[None]] = {}
        self.lines: dict[str, str] = {}

    def watch(self, view: RunView) -> None:
        wanted = [(task.name, task.attempt) for task in view.tasks if task.status == "running"][:TAILS]
        for key in self._readers.keys() - set(wanted):
            self._readers.pop(key).cancel()
            self.lines.pop(key[0], None)
        for key in wanted:
            if key not in self._readers:
                self._readers[key] = asyncio.create_task(self._read(*key))

    async def _read(self, task: str, attempt: int) -> None:
        with contextlib.suppress(RunyardError):
            async for line in self._run.logs(task, attempt=attempt, follow=True):
                if line.text.strip():
                    self.lines[task] = line.text

    async def close(self) -> None:
        for reader in self._readers.values():
            reader.cancel()
        await asyncio.gather(*self._readers.values(), return_exceptions=True)
