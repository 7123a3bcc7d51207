"""`run list` and `run show` for people."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from runyard.cli import render
from runyard.cli.console import Console, open_console
from runyard.cli.render import Frame, Line, Span
from runyard.cli.text import between, clean, pad, seconds, width_of
from runyard.spec.run import RunView

_WORD = {"success": "good", "failed": "bad", "stopped": "warn"}


def print_runs(views: Iterable[RunView]) -> None:
    console = open_console()
    rows = list(table(views, now=datetime.now(UTC)))
    console.lines(rows) if len(rows) > 1 else console.text("no runs")


def print_counts(counts: Mapping[str, int]) -> None:
    console = open_console()
    for word, number in counts.items():
        console.text(f"{word}  {number:,}")
    if not counts:
        console.text("no runs")


def table(views: Iterable[RunView], *, now: datetime) -> list[Line]:
    """Columns as wide as their widest word; the head first."""
    rows = [[("RUN", "faint"), ("STATE", "faint"), ("STARTED", "faint"), ("TOOK", "faint"), ("CAUSE", "faint")]]
    for view in views:
        word = state_of(view)
        age = f"{seconds((now - view.created_at).total_seconds())} ago" if view.created_at else ""
        rows.append(
            [
                (clean(view.id) + (f" #{view.counter}" if view.counter else ""), "strong"),
                (word, _WORD.get(view.result, "busy")),
                (age, ""),
                (between(view.created_at, view.ended_at or now), ""),
                (clean(view.cause), "faint"),
            ]
        )
    widths = [max(width_of(row[column][0]) for row in rows) for column in range(4)]
    return [
        tuple(
            Span(pad(text, widths[place]) + "  " if place < 4 else text, style)
            for place, (text, style) in enumerate(row)
        )
        for row in rows
    ]


def state_of(view: RunView) -> str:
    """One word: how it ended, or that it goes on."""
    if view.ended_at is None and view.phase in ("running", "queued"):
        return "failing" if view.result == "failed" else view.phase
    return {"success": "success", "failed": "failed", "stopped": "cancelled"}.get(view.result, view.phase)


def print_run(view: RunView, console: Console) -> None:
    """The tree at its full length; a run that has ended with its ending."""
    width = 10_000 if not console.live else _terminal_width()
    frame = Frame(now=datetime.now(UTC), width=width, ascii_only=console.ascii_only)
    console.lines(render.tree(view, frame))
    if view.ended_at or view.phase in ("finished", "cancelled", "setuperror"):
        console.lines(render.ending(view, ascii_only=console.ascii_only))
    elif view.cause and not render.waits_for(view):  # what it waits for is in the tree
        console.text(f"  {clean(view.cause)}")
    if view.caches:
        console.text(f"  caches: {view.caches}")
    if view.imported_at:
        console.text(f"  imported {view.imported_at:%Y-%m-%d %H:%M} UTC")


def _terminal_width() -> int:
    import shutil

    return max(20, shutil.get_terminal_size().columns - 1)
