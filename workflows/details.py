"""A run's current details: what the Temporal UI shows of it while it goes on, and after it.

A pure function from a view to Markdown, at most 4 KiB whatever the run: the UI passes the text along in an
address. So each section has a share of the room, gives up what it does not need to those after it, and says
how many rows were left out. What people have to do comes first.

The UI's renderer decides the dialect (it was asked, not guessed): `18/42` becomes a fraction, two money signs
a formula and two dashes one, so everything that came from elsewhere stands in code spans. In a table no code
span may hold a bar, not even an escaped one, so spans are divided there. A list needs an empty line before it.

Static summary and details are not here: they are written by whoever starts the run, before a workflow exists.
"""

import heapq
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Final
from urllib.parse import quote

from runyard.spec.run import RunView, TaskStatus, TaskView, executor_queue

MAX_BYTES: Final = 4096
_MOST_ROWS: Final = 40  # of a section: more never fit
_NAME_BYTES: Final = 140
_MESSAGE_BYTES: Final = 200
_CAUSE_BYTES: Final = 300
_MORE_BYTES: Final = 32
_FINISHED_SHOWN: Final = 10
_KEPT_SHOWN: Final = 3

_ENDED: Final[Sequence[TaskStatus]] = ("success", "failed", "skipped", "cancelled")
_PLACED: Final[Sequence[TaskStatus]] = ("running", "retrying", "queued")
_ALL: Final[Sequence[TaskStatus]] = (*_ENDED, *_PLACED, "approval", "held", "waiting")
_HEADLINE: Final[Sequence[tuple[TaskStatus, str]]] = (
    ("running", "running"),
    ("failed", "failed"),
    ("approval", "waiting for approval"),
    ("held", "held"),
    ("retrying", "to be tried again"),
    ("queued", "queued"),
)
_BETWEEN_BARS: Final = re.compile(r"[^|\s](?:[^|]*[^|\s])?")
_GAP: Final = "\u00a0\u00a0"  # the UI's tables have no space between columns
_MARK: Final[dict[TaskStatus, str]] = {"success": "✔", "failed": "✖", "skipped": "○", "cancelled": "■"}


@dataclass(frozen=True, kw_only=True)
class _Section:
    """``rows`` of which those that fit are shown, of ``total``; ``columns`` 0 makes it a list."""

    title: str
    rows: Sequence[str]
    total: int
    share_bytes: int
    columns: Sequence[str] = ()

    def head(self) -> str:
        if not self.columns:
            return f"**{self.title}**\n"
        names = " | ".join(name + _GAP for name in self.columns)
        return f"**{self.title}**\n\n| {names} |\n|{':---|' * len(self.columns)}"

    def more(self, number: int) -> str:
        return f"| and {number} more |{' |' * (len(self.columns) - 1)}" if self.columns else f"- and {number} more"

    def text(self, room_bytes: int) -> str:
        """What of it fits into the room; nothing if not even its head and one row do."""
        lines = [self.head()]
        room = room_bytes - _size(lines[0]) - 1 - _MORE_BYTES
        for row in self.rows:
            room -= _size(row) + 1
            if room < 0:
                break
            lines.append(row)
        left = self.total - len(lines) + 1
        if left and room_bytes >= _size(lines[0]) + 1 + _MORE_BYTES:
            lines.append(self.more(left))
        return "\n".join(lines) if len(lines) > 1 else ""

    def wants_bytes(self) -> int:
        return min(
            self.share_bytes, _size(self.head()) + sum(_size(row) + 1 for row in self.rows) + 1 + _MORE_BYTES
        )


def current_details(view: RunView, *, namespace: str = "default") -> str:
    """Markdown of at most 4,096 bytes. ``view.tasks`` may leave out tasks that ``view.counts`` counts."""
    counts = view.counts or _count(view.tasks)
    head, foot = _head(view, counts, namespace), _foot(counts)
    sections = [
        section
        for section in (
            _waits_for(view, counts),
            _failed(view, counts),
            _running(view, counts),
            _finished(view),
        )
        if section.rows
    ]
    room = MAX_BYTES - _size(head) - _size(foot) - 2
    parts = [head]
    for number, section in enumerate(sections):
        later = sum(each.wants_bytes() + 2 for each in sections[number + 1 :])
        text = section.text(room - later - 2)
        if text:
            parts.append(text)
            room -= _size(text) + 2
    return "\n\n".join([*parts, foot] if foot else parts)


# the sections


def _head(view: RunView, counts: dict[TaskStatus, int], namespace: str) -> str:
    lines = _turn(view) if view.phase == "queued" else _progress(view, counts)
    if view.restart_of:
        lines.append(f"Restart of {_link(view.restart_of, namespace)}: {_kept(view, namespace)}")
    return "\n".join(lines)


def _turn(view: RunView) -> list[str]:
    """What a run waits for that has not had its turn yet."""
    number = f"run {view.counter} of its project" if view.counter else ""
    cause = _code(_shorten(view.cause, _CAUSE_BYTES)) if view.cause else ""
    why = ", ".join(filter(None, (number, cause)))
    return ["**Waits for its turn**", *([why] if why else [])]


def _progress(view: RunView, counts: dict[TaskStatus, int]) -> list[str]:
    total = sum(counts.values())
    done = sum(counts.get(status, 0) for status in _ENDED)
    words = [f"{done} of {total} done"] if total else ["no tasks"]
    words += [f"{counts[status]} {word}" for status, word in _HEADLINE if counts.get(status)]
    lines = [f"**{', '.join(words)}**"]
    if view.result != "unknown" or view.cause:
        cause = f": {_code(_shorten(view.cause, _CAUSE_BYTES))}" if view.cause else ""
        lines.append(f"Result: **{view.result}**{cause}")
    if view.caches:
        lines.append(f"Caches: {view.caches}")
    return lines


def _kept(view: RunView, namespace: str) -> str:
    """What it keeps, from the runs that made it: with restarts of restarts these may be several."""
    words = [f"{number} kept from {_link(run, namespace)}" for run, number in view.kept.items()]
    more = len(words) - _KEPT_SHOWN
    return (
        ", ".join(words[:_KEPT_SHOWN] + ([f"others from {more} more runs"] if more > 0 else [])) or "nothing kept"
    )


def _foot(counts: dict[TaskStatus, int]) -> str:
    words = ", ".join(f"{counts[status]} {status}" for status in _ALL if counts.get(status))
    return f"Counts: {words}. Times are in UTC." if words else ""


def _waits_for(view: RunView, counts: dict[TaskStatus, int]) -> _Section:
    approvals = (_approval_row(view, task) for task in _with(view.tasks, "approval"))
    held = (_held_row(view, task) for task in _with(view.tasks, "held"))
    rows = [*islice(approvals, _MOST_ROWS), *islice(held, _MOST_ROWS)]
    total = max(len(rows), counts.get("approval", 0) + counts.get("held", 0))
    queued = counts.get("queued", 0)
    if queued and not counts.get("running"):
        # who polls a queue is nothing that a workflow sees; that nobody does is a possibility that must be said
        where = f", or a worker, on the queue {_code(executor_queue(view.executor))}" if view.executor else ""
        rows.append(f"- room{where} for {queued} queued {'task' if queued == 1 else 'tasks'}")
        total += 1
    return _Section(title="Waits for", rows=rows, total=total, share_bytes=1000)


def _approval_row(view: RunView, task: TaskView) -> str:
    by = ", by " + _code(_shorten(", ".join(task.approvals), _NAME_BYTES)) if task.approvals else ""
    have = f"{len(task.approvals)} of {task.approvals_needed}{by}"
    return f"- approval of {_code(_shorten(task.name, _NAME_BYTES))} ({have}){_command(view, 'approve', task)}"


def _held_row(view: RunView, task: TaskView) -> str:
    name = _code(_shorten(task.name, _NAME_BYTES))
    return f"- a decision about {name}, which failed and is held{_command(view, 'retry', task)}"


def _failed(view: RunView, counts: dict[TaskStatus, int]) -> _Section:
    tasks = list(_with(view.tasks, "failed"))
    return _Section(
        title=f"Failed (logs: {_code(f'runyard run logs {_shorten(view.id, _NAME_BYTES)} TASK')})",
        columns=("task", "reason", "attempt", "what to do"),
        rows=[_failed_row(task) for task in tasks[:_MOST_ROWS]],
        total=max(len(tasks), counts.get("failed", 0)),
        share_bytes=1300,
    )


def _failed_row(task: TaskView) -> str:
    message, remedy = _cell(_shorten(task.message, _MESSAGE_BYTES)), ""
    if task.reason is not None:
        message = f"{_cell(task.reason.value)}: {message or _sentence(task.reason.sentence)}"
        remedy = _sentence(task.reason.remedy)
    ignored = " (ignored)" if task.ignore_failure else ""
    return f"| {_name(task)}{ignored} | {message}{_GAP} | {task.attempt} | {remedy} |"


def _running(view: RunView, counts: dict[TaskStatus, int]) -> _Section:
    tasks = [task for status in _PLACED for task in _with(view.tasks, status)]
    return _Section(
        title="Running",
        columns=("task", "attempt", "since"),
        rows=[f"| {_name(task)} | {task.attempt}{_GAP} | {_since(view, task)} |" for task in tasks[:_MOST_ROWS]],
        total=max(len(tasks), sum(counts.get(status, 0) for status in _PLACED)),
        share_bytes=700,
    )


def _since(view: RunView, task: TaskView) -> str:
    if task.status == "retrying":
        after = f" after {_cell(task.reason.value)}" if task.reason else ""
        return f"next attempt {_time(view, task.next_attempt_at)}".strip() + after
    if task.status == "queued":
        return f"queued {_time(view, task.queued_at)}".strip()
    return _time(view, task.started_at or task.queued_at)


def _finished(view: RunView) -> _Section:
    ended = [(task.ended_at, task) for task in view.tasks if task.ended_at is not None and task.status in _ENDED]
    last = heapq.nlargest(_FINISHED_SHOWN, enumerate(ended), key=lambda each: (_utc(each[1][0]), each[0]))
    rows = [
        f"- {_MARK[task.status]} {_code(_shorten(task.name, _NAME_BYTES))} {task.status}{_took(task)}"
        for _, (_, task) in last
    ]
    return _Section(title="Finished last", rows=rows, total=len(rows), share_bytes=500)


# small things


def _count(tasks: Iterable[TaskView]) -> dict[TaskStatus, int]:
    counts: dict[TaskStatus, int] = {}
    for task in tasks:
        counts[task.status] = counts.get(task.status, 0) + 1
    return counts


def _with(tasks: Iterable[TaskView], status: TaskStatus) -> Iterable[TaskView]:
    return (task for task in tasks if task.status == status)


def _command(view: RunView, verb: str, task: TaskView) -> str:
    """The command that answers, whole: nothing where it could not be typed as it stands."""
    command = f"runyard run {verb} {shlex.quote(view.id)} {shlex.quote(task.name)}"
    return f": {_code(command)}" if _clean(command) == command else ""


def _utc(at: datetime) -> datetime:
    """Never the machine's time zone, which differs between workers."""
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _time(view: RunView, at: datetime | None) -> str:
    if at is None:
        return ""
    moment = _utc(at)
    same_day = view.created_at is not None and _utc(view.created_at).date() == moment.date()
    return f"{moment:%H:%M:%S}" if same_day else f"{moment:%Y-%m-%d %H:%M:%S}"


def _took(task: TaskView) -> str:
    if task.started_at is None or task.ended_at is None:
        return ""
    seconds = max(0.0, (_utc(task.ended_at) - _utc(task.started_at)).total_seconds())
    if seconds < 60:
        return f" after {seconds:.1f} s"
    minutes = round(seconds / 60)
    return f" after {minutes} min" if minutes < 120 else f" after {minutes // 60} h {minutes % 60} min"


# Markdown


def _name(task: TaskView) -> str:
    return _cell(_shorten(task.name, _NAME_BYTES)) + _GAP


def _size(text: str) -> int:
    return len(text.encode())


def _clean(text: str) -> str:
    """One line, and nothing that a reader could not see; the joiner inside of emoji stays."""
    return "".join(c if c.isprintable() or c == "\u200d" else " " if c.isspace() else "\ufffd" for c in text)


def _shorten(text: str, size_bytes: int) -> str:
    """Cleaned, and cut in its middle: names of a matrix differ at their ends."""
    data = _clean(text[: size_bytes * 2] + text[size_bytes * 2 :][-size_bytes:]).encode()
    if len(data) <= size_bytes:
        return data.decode()
    tail = size_bytes // 3
    head = data[: size_bytes - tail - 3].decode(errors="ignore")
    return f"{head}…{data[-tail:].decode(errors='ignore')}"


def _code(text: str) -> str:
    """A code span that holds the text as it is, outside of tables."""
    text = _clean(text).strip()
    if not text:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in (text[0], text[-1]) else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _link(run_id: str, namespace: str) -> str:
    """To another run, relative to where the UI renders this: it may stand below a path of its own."""
    words, part = _code(_shorten(run_id, _NAME_BYTES)), quote(run_id, safe="")
    return f"[{words}](namespaces/{quote(namespace, safe='')}/workflows/{part})" if len(part) <= 200 else words


def _sentence(text: str) -> str:
    """Our own words: they may hold code spans, and names of variables, which would make a formula."""
    return re.sub(r"(?<![`\w])\$\w+", r"`\g<0>`", text)


def _cell(text: str) -> str:
    """The same within a table: code between the bars, which are escaped outside of it."""
    return _BETWEEN_BARS.sub(lambda part: _code(part[0]), _clean(text)).replace("|", "\\|")
