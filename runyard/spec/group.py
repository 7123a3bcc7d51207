"""Groups: which runs wait for each other, and what they and their line say to each other.

A group is a path of types and names in turn, `/project/web/branch/main`. Its first pair is its *root*: each root
has one line, which numbers the runs of all groups below it. An executor may have a line of its own, where the
number of runs at a time is limited; such a line has no groups and gives no numbers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from runyard.errors import InvalidRequest
from runyard.model import Model
from runyard.spec.plan import RunPlan

LINE_WORKFLOW = "GroupWorkflow"
LINES_QUEUE = "runyard.lines"  # no executor can have this queue: theirs begin with `runyard-`
ENTER, LEAVE, DESCRIBE = "enter", "leave", "describe"
WORD = "line_word"  # the signal by which a run hears of its line
LINE_MEMO = "line"  # where a line keeps its LineState

PATH_BYTES, ROOT_BYTES = 1_000, 180
EXAMPLE = "/project/web/branch/main"

PolicyKind = Literal["queue", "parallel", "cancel-superseded", "skip-if-running"]


class Policy(Model):
    """What happens to a run while others of its group are open. ``limit``: runs at a time."""

    kind: PolicyKind = "queue"
    limit: int = 1


class Entry(Model):
    """A run that wants its turn. ``execution_id`` is its first execution's: an id may be used again."""

    line: str  # the workflow id of the line
    run_id: str
    execution_id: str
    group: str = ""  # "" = none: nothing but the cap holds it back
    policy: Policy = Policy()
    cap: int | None = None  # runs at a time in the whole line
    priority: int = 3
    owner: str = ""
    counter: int = 0  # the number that it has already
    started_at: datetime | None = None  # when its workflow was; None = before this was told


class Member(Model):
    """A run in a line. ``place`` is its number, final with its turn; where the line gives none out, its place."""

    entry: Entry
    place: int
    running: bool = False


class LineState(Model):
    """All that a line knows: it goes from execution to execution, and is kept as the workflow's memo."""

    counter: int = 0
    cap: int | None = None
    members: list[Member] = []
    history_events: int = 4_000  # it continues as new from here on
    told: dict[str, tuple[int, int]] = {}  # number and position, as runs were told; not in the memo


class Leave(Model):
    """A run that does not want its turn any more."""

    run_id: str


class LineWord(Model):
    """What a line says to a run: it waits, it has its turn, it is skipped, or its place was taken."""

    line: str
    kind: Literal["waits", "turn", "skip", "superseded"]
    counter: int = 0
    position: int = 0  # from 1: how many runs will have their turn before it, and itself
    message: str = ""
    at: datetime | None = None
    execution_id: str = ""  # whom it is for: another run may have its id by now; "" = before this was told


class Waiting(Model):
    run_id: str
    group: str = ""
    counter: int = 0
    owner: str = ""
    priority: int = 3


class LineView(Model):
    """A line at a moment: the answer of its query `describe`."""

    id: str
    counter: int = 0  # the last number that was given out
    cap: int | None = None
    running: list[Waiting] = []
    waiting: list[Waiting] = []  # in the order in which they will have their turn, as things are


@dataclass(frozen=True, kw_only=True)
class Caps:
    """Runs at a time: in each root of groups, and by executor. None and absent = any number."""

    project_runs: int | None = None
    executor_runs: Mapping[str, int] = field(default_factory=dict)


NO_CAPS = Caps()


def lines_of(run: RunPlan, *, execution_id: str, caps: Caps) -> list[Entry]:
    """Where this run waits: in the line of its group's root, then in that of its executor."""
    entry = Entry(
        line="",
        run_id=run.run_id,
        execution_id=execution_id,
        priority=run.priority,
        owner=run.owner or run.project,
    )
    lines: list[Entry] = []
    if run.group:
        here = {"group": run.group, "policy": parse_policy(run.group_policy), "cap": caps.project_runs}
        lines.append(entry.model_copy(update={"line": root_line(run.group), **here}))
    if run.executor in caps.executor_runs:
        cap = caps.executor_runs[run.executor]
        lines.append(entry.model_copy(update={"line": executor_line(run.executor), "cap": cap}))
    return lines


def root_line(group: str) -> str:
    """The workflow id of the line of this group's root."""
    return f"runyard-group:{root(group)}"


def executor_line(executor: str) -> str:
    return f"runyard-queue:{executor}"


def root(group: str) -> str:
    """`/project/web/branch/main` → `/project/web`."""
    return "/" + "/".join(group.split("/")[1:3])


def check_group(path: str) -> str:
    """The path itself. Raises InvalidRequest with what is wrong with it."""
    wrong = _wrong(path)
    if wrong:
        raise InvalidRequest(f"{path[:80]!r} is no group: {wrong}", remedy=f"A group is a path such as {EXAMPLE}.")
    return path


def parse_policy(words: str) -> Policy:
    """`queue`, `parallel: N`, `cancel-superseded` or `skip-if-running`; "" is `queue`. Raises InvalidRequest."""
    word, limit = words.strip(), 1
    if parallel := re.fullmatch(r"parallel:\s*([1-9]\d{0,3})", word):
        return Policy(kind="parallel", limit=int(parallel[1]))
    for kind in ("queue", "cancel-superseded", "skip-if-running"):
        if word == kind or (not word and kind == "queue"):
            return Policy(kind=kind, limit=limit)
    raise InvalidRequest(
        f"{words[:80]!r} is no policy of a group",
        remedy="Write `queue`, `parallel: 3`, `cancel-superseded` or `skip-if-running`.",
    )


def _wrong(path: str) -> str:
    parts = path.split("/")[1:]
    if not path.startswith("/"):
        return "it does not begin with a slash"
    if any(part in ("", ".", "..") for part in parts):
        return "it has an empty part, or one that is `.` or `..`"
    if any(char in "\\`" or not char.isprintable() or char.isspace() for char in path):
        return "it has a space, a backslash, a back quote or a character that cannot be printed"
    if len(parts) % 2:
        return f"types and names take turns, and a name is missing after `{parts[-1][:80]}`"
    if len(path.encode()) > PATH_BYTES or len(root(path).encode()) > ROOT_BYTES:
        return f"it is longer than {PATH_BYTES} bytes, or its first two parts than {ROOT_BYTES}"
    return ""
