"""A line's current details: who runs, who waits, as Markdown for the Temporal UI.

Ids and groups have neither spaces nor back quotes nor bars that matter in a list, so that a code span holds them.
"""

from runyard.spec.group import LineView, Waiting

_SHOWN = 20


def line_details(view: LineView) -> str:
    """A list that is short whatever the line: the UI passes it along in an address."""
    cap = f", of {view.cap} at a time" if view.cap is not None else ""
    number = f"; last number {view.counter}" if view.running or view.counter else ""
    parts = [f"**{len(view.running)} running{cap}, {len(view.waiting)} waiting**{number}"]
    for title, runs in (("Running", view.running), ("Waiting, the next one first", view.waiting)):
        if runs:
            more = [f"- and {len(runs) - _SHOWN} more"] if len(runs) > _SHOWN else []
            parts.append("\n".join([f"**{title}**", "", *map(_row, runs[:_SHOWN]), *more]))
    return "\n\n".join(parts)


def _row(run: Waiting) -> str:
    number = f"{run.counter} " if run.group else ""
    group = f" of `{run.group[:100]}`" if run.group else ""
    return f"- {number}`{run.run_id[:80]}`{group}"
