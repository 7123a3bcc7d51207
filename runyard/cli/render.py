"""A run as lines: for a terminal as a tree that is redrawn, elsewhere as lines that are only added.

Pure: from two RunViews and a clock to text with styles by name; who prints them decides on colours. A task's
own words (names, messages, log lines) are cleaned first, so that no task can paint on the user's terminal.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Final

from runyard.cli.text import between, clean, count, cut, pad, seconds, width_of
from runyard.reasons import Reason
from runyard.spec.run import RunView, TaskStatus, TaskView

ENDED: Final[frozenset[TaskStatus]] = frozenset({"success", "failed", "skipped", "cancelled"})
_IDLE: Final[frozenset[TaskStatus]] = frozenset({"waiting", "skipped"})
_FIRST: Final[tuple[TaskStatus, ...]] = (
    "failed", "held", "approval", "running", "retrying", "queued", "cancelled", "success", "skipped", "waiting",
)  # fmt: skip


@dataclass(frozen=True)
class Span:
    """A piece of a line; ``style`` is one of good, bad, busy, idle, warn, strong, faint or nothing."""

    text: str
    style: str = ""


Line = tuple[Span, ...]


@dataclass(frozen=True)
class Glyphs:
    """The marks of the states, as far as the terminal can show them."""

    marks: Mapping[str, str]
    more: str
    dot: str

    def of(self, task: TaskView) -> str:
        if task.status == "failed" and task.ignore_failure:
            return self.marks["ignored"]
        return self.marks[task.status]


_UNICODE: Final = {
    "success": "✔", "failed": "✖", "ignored": "⚠", "running": "●", "queued": "◷", "waiting": "◷", "retrying": "◷",
    "approval": "○", "held": "⚠", "skipped": "○", "cancelled": "✖",
}  # fmt: skip
_ASCII: Final = {
    "success": "+", "failed": "x", "ignored": "!", "running": "*", "queued": ".", "waiting": ".", "retrying": "~",
    "approval": "?", "held": "!", "skipped": "-", "cancelled": "x",
}  # fmt: skip
_STYLE: Final = {
    "success": "good", "failed": "bad", "running": "busy", "queued": "idle", "waiting": "idle", "retrying": "warn",
    "approval": "warn", "held": "warn", "skipped": "faint", "cancelled": "faint",
}  # fmt: skip


def glyphs(*, ascii_only: bool) -> Glyphs:
    return Glyphs(_ASCII, "...", "-") if ascii_only else Glyphs(_UNICODE, "…", "·")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What a drawing depends on besides the run. ``height`` None = as many lines as there are tasks."""

    now: datetime
    width: int = 80
    height: int | None = None
    ascii_only: bool = False
    origin: str = ""  # e.g. `main@3f2c1d9 + 2 changed files`
    tails: Mapping[str, str] = field(default_factory=dict)  # task → the last line of its log so far
    notice: str = ""  # e.g. `cancelling`


# the tree


def tree(view: RunView, frame: Frame) -> list[Line]:
    """The whole drawing: head, tasks, and a line for those that there is no room for."""
    marks = glyphs(ascii_only=frame.ascii_only)
    head = _head(view, frame)
    words = filter(None, (waits_for(view), frame.notice))
    foot = [_cut_line((Span(f" {each}", "warn"),), frame, marks) for each in words]
    room = None if frame.height is None else max(1, frame.height - len(head) - len(foot) - 1)
    shown = _choose(view.tasks, room)
    names = min(max((width_of(clean(task.name)) for task in shown), default=0), max(8, frame.width * 2 // 5))
    rows = [_row(task, view, frame, marks, names=names) for task in shown]
    if left := len(view.tasks) - len(shown):
        rows.append(_cut_line((Span(f" {marks.more} {_others(view.tasks, shown, left)}", "faint"),), frame, marks))
    return [*head, *rows, *foot]


def _head(view: RunView, frame: Frame) -> list[Line]:
    """Name, id and origin, and the address in the UI: on a line of its own where it would be cut."""
    marks = glyphs(ascii_only=frame.ascii_only)
    spans = [Span(" runyard  ", "faint"), Span(clean(view.name) or view.id, "strong")]
    if view.name:
        spans.append(Span(f"  {view.id}", "faint"))
    if frame.origin:
        spans.append(Span(f"  of {clean(frame.origin)}"))
    first = _cut_line(spans, frame, marks)
    address = f"Temporal UI  {view.ui}" if view.ui else ""
    gap = frame.width - sum(width_of(span.text) for span in first) - width_of(address)
    if not address or width_of(address) >= frame.width:
        return [first]
    if gap < 3:
        return [first, (Span(f" {address}", "faint"),)]
    return [(*first, Span(" " * min(gap, 12) + address, "faint"))]


def _choose(tasks: list[TaskView], room: int | None) -> list[TaskView]:
    """All, where there is room; else what asks for attention first. The order stays the file's."""
    if room is None or len(tasks) <= room:
        return tasks
    rank = {status: place for place, status in enumerate(_FIRST)}
    wanted = sorted(range(len(tasks)), key=lambda n: (rank[tasks[n].status], n))[:room]
    return [tasks[n] for n in sorted(wanted)]


def _others(tasks: list[TaskView], shown: list[TaskView], left: int) -> str:
    names = {task.name for task in shown}
    counts: dict[str, int] = {}
    for task in tasks:
        if task.name not in names:
            counts[task.status] = counts.get(task.status, 0) + 1
    return f"{count(left, 'more task')}: " + ", ".join(f"{number:,} {word}" for word, number in counts.items())


def _row(task: TaskView, view: RunView, frame: Frame, marks: Glyphs, *, names: int) -> Line:
    style = _STYLE[task.status] if not (task.status == "failed" and task.ignore_failure) else "warn"
    name = pad(cut(clean(task.name), names, mark=marks.more), names)
    took = "" if task.status in (*_IDLE, "retrying") else took_of(task, frame.now)
    said = told(task, view, frame)
    return _cut_line(
        (
            Span(f" {marks.of(task)} ", style),
            Span(name, "strong" if task.status == "running" else "faint" if task.status in _IDLE else ""),
            Span(f" {took:>9}", "faint"),
            Span(f"   {said}" if said else "", "bad" if style == "bad" else "faint"),
        ),
        frame,
        marks,
    )


def took_of(task: TaskView, now: datetime) -> str:
    """How long a task ran, or has been running; empty for one that never started."""
    return between(task.started_at, task.ended_at or now) if task.started_at else ""


def told(task: TaskView, view: RunView, frame: Frame) -> str:
    """The column of words: why it waits, what it printed last, why it failed."""
    again = f"attempt {task.attempt}: " if task.attempt > 1 else ""
    match task.status:
        case "running":
            return again + clean(frame.tails.get(task.name) or task.last_line or task.message)
        case "success":
            return f"kept from {clean(task.kept_from)}" if task.kept_from else clean(task.last_line)
        case "failed":
            return again + why(task) + (" (ignored)" if task.ignore_failure else "")
        case "held":
            return f"{why(task)}; waits for a decision: retry or cancel"
        case "approval":
            return _approval(task)
        case "retrying":
            left = (task.next_attempt_at - frame.now).total_seconds() if task.next_attempt_at else 0
            return f"attempt {task.attempt} failed: {why(task)}; next attempt in {seconds(left)}"
        case "waiting":
            return _waits_for(task, view) or clean(task.message or task.again)
        case "queued":
            return again + (clean(task.message) or "waits for room")
        case _:
            return f"{task.status}: {why(task)}" if task.reason or task.message else task.status


def why(task: TaskView) -> str:
    """The task's own sentence, else its reason's."""
    if task.message:
        return clean(task.message)
    return task.reason.sentence.rstrip(".") if task.reason else ""


def _approval(task: TaskView) -> str:
    if task.approvals_needed > 1 or task.approvals:
        by = f" ({', '.join(clean(name) for name in task.approvals)})" if task.approvals else ""
        return f"needs approval: {len(task.approvals)} of {task.approvals_needed}{by}"
    return "needs approval"


def waits_for(view: RunView) -> str:
    """What the whole run waits for: its turn in a group, a worker. Empty where it just goes on."""
    open_yet = view.ended_at is None and view.phase in ("queued", "running")
    return clean(view.cause) if open_yet and view.result == "unknown" else ""


def _waits_for(task: TaskView, view: RunView) -> str:
    if not task.depends:
        return ""
    parents = set(task.depends)
    left = [clean(each.name) for each in view.tasks if each.name in parents and each.status not in ENDED]
    if len(left) > 3:
        return f"waits for {', '.join(left[:2])} and {len(left) - 2} more"
    return f"waits for {', '.join(left)}" if left else ""


def _cut_line(line: Iterable[Span], frame: Frame, marks: Glyphs) -> Line:
    """The line in the terminal's width; a redrawn drawing must not wrap."""
    room, spans = frame.width, []
    for span in line:
        text = cut(span.text, room, mark=marks.more)
        if text:
            spans.append(Span(text, span.style))
        room -= width_of(text)
        if room <= 0 or text != span.text:
            break
    return tuple(spans)


# lines that are only added


@dataclass(frozen=True)
class Event:
    """Something that happened to a task. ``failed``: the end of its log is worth showing."""

    at: datetime
    line: Line
    task: TaskView
    failed: bool = False


def events(before: RunView | None, after: RunView, *, now: datetime, ascii_only: bool = False) -> list[Event]:
    """What happened between two looks, in the order of time. A task that came and went in between has both."""
    marks = glyphs(ascii_only=ascii_only)
    known = {task.name: task for task in before.tasks} if before else {}
    found: list[Event] = []
    if after.kept and not (before and before.kept):
        kept = next(task for task in after.tasks if task.kept_from)
        found.append(Event(after.created_at or now, (Span(kept_words(after.kept)),), kept))
    for task in after.tasks:
        if task.kept_from:
            continue
        if task != (old := known.get(task.name)):
            found += _changes(old, task, after, now, marks)
    return sorted(found, key=lambda event: event.at)


def _changes(old: TaskView | None, task: TaskView, view: RunView, now: datetime, marks: Glyphs) -> list[Event]:
    found: list[Event] = []
    name = clean(task.name)
    started = task.started_at is not None and task.status in ("running", "success", "failed", "cancelled", "held")
    was = old.attempt if old and old.started_at and old.status in ("running", *ENDED, "held") else 0
    if started and task.started_at and was != task.attempt:
        again = f", attempt {task.attempt}" if task.attempt > 1 else ""
        found.append(Event(task.started_at, (Span(name), Span(f" started{again}")), task))
    if (old is None or old.status != task.status or old.approvals != task.approvals) and (
        line := _verdict(task, view, now, marks)
    ):
        at = task.ended_at if task.status in ENDED and task.ended_at else now
        found.append(Event(at, line, task, failed=task.status in ("failed", "held", "retrying")))
    return found


def _verdict(task: TaskView, view: RunView, now: datetime, marks: Glyphs) -> Line | None:
    if task.status in ("waiting", "queued", "running"):
        return None
    name, mark = Span(clean(task.name)), Span(f" {marks.of(task)}", _STYLE[task.status])
    if task.status == "success":
        return (name, mark, Span(f" {took_of(task, now)}".rstrip()))
    words = told(task, view, Frame(now=now))
    took = took_of(task, now) if task.status in ("failed", "cancelled") else ""
    if task.status == "approval":
        words += f" {marks.dot} runyard run approve {view.id} {quoted(task.name)}"
    return (name, mark, Span(f" {took}" if took else ""), Span(f" {words}"))


def stamp(at: datetime, zone: tzinfo | None = None) -> str:
    return at.astimezone(zone).strftime("%H:%M:%S")


# the end


def ending(view: RunView, *, ascii_only: bool = False, limit: int = 10) -> list[Line]:
    """The last words on a run: one line for a success, the cause and each failed task otherwise."""
    marks = glyphs(ascii_only=ascii_only)
    name, took = clean(view.name) or view.id, between(view.created_at, view.ended_at)
    tasks = sum(view.counts.values()) or len(view.tasks)
    if view.result == "success":
        words = f" {name} {marks.dot} {count(tasks, 'task')}" + (f" in {took}" if took else "")
        words += f" ({kept_words(view.kept)})" if view.kept else ""
        return [(Span(marks.marks["success"], "good"), Span(words)), *_cause(view)]
    if view.result == "stopped" or view.phase == "cancelled":
        words = f" {name} cancelled" + (f" after {took}" if took else "") + _because(view)
        return [(Span(marks.marks["cancelled"], "warn"), Span(words))]
    lines: list[Line] = [(Span(marks.marks["failed"], "bad"), Span(f" {name} failed{_because(view)}", "strong"))]
    failed = [task for task in view.tasks if task.status == "failed" and not task.ignore_failure]
    for task in failed[:limit]:
        lines += _failure(task, view)
    if len(failed) > limit:
        lines.append((Span(f"  {marks.more} and {len(failed) - limit} more", "faint"),))
    return lines


def kept_words(kept: Mapping[str, int]) -> str:
    """E.g. `kept: 5 tasks from build-7, 1 task from build-6`."""
    return "kept: " + ", ".join(f"{count(number, 'task')} from {clean(run)}" for run, number in kept.items())


def _because(view: RunView) -> str:
    return f": {clean(view.cause)}" if view.cause else ""


def _cause(view: RunView) -> list[Line]:
    return [(Span(f"  {clean(view.cause)}", "faint"),)] if view.cause else []


def _failure(task: TaskView, view: RunView) -> list[Line]:
    lines: list[Line] = [(Span(f"  {clean(task.name)}", "strong"), Span(f": {why(task)}"))]
    if remedy := remedy_of(task.reason):
        lines.append((Span(f"    {remedy}", "faint"),))
    lines.append((Span(f"    runyard run logs {view.id} {quoted(task.name)}", "faint"),))
    return lines


def remedy_of(reason: Reason | None) -> str:
    return reason.remedy if reason else ""


def quoted(word: str) -> str:
    """A task's name as a word for a shell: what is printed can be copied."""
    import shlex

    return shlex.quote(clean(word))


def plain(line: Line) -> str:
    return "".join(span.text for span in line)
