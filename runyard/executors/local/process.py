"""Processes as facts. Standard library only and light: the nest imports it at every start of a task.

A pid alone says little, since it is used again; a pid *and* the moment its process began is never used
again. Reading ``/proc`` was chosen over psutil because the nest has nothing but the standard library, and
because one pass over ``/proc`` is all it needs. Without ``/proc`` (macOS), ``ps`` answers the same.
"""

from __future__ import annotations

import os
import signal
import sys

LINUX = sys.platform == "linux"
_DEAD = frozenset("ZXx")


class suppress:  # noqa: N801 - it stands for contextlib's, which costs 6 ms to import
    """Leave the block in silence at these errors."""

    def __init__(self, *errors: type[BaseException]) -> None:
        self._errors = errors

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, self._errors)


class Row:
    """One process. ``started`` is opaque; ``rss_bytes`` counts pages that it shares with others too."""

    __slots__ = ("group", "parent", "pid", "rss_bytes", "session", "started", "zombie")

    def __init__(
        self, pid: int, parent: int, group: int, session: int, started: str, rss_bytes: int, zombie: bool
    ) -> None:
        self.pid = pid
        self.parent = parent
        self.group = group
        self.session = session
        self.started = started
        self.rss_bytes = rss_bytes
        self.zombie = zombie


def look(pid: int) -> Row | None:
    """The process of this pid, or None."""
    if not LINUX:
        return next(iter(_ps("-p", str(pid))), None)
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return _parse(pid, file.read())
    except (FileNotFoundError, ProcessLookupError):
        return None


def table() -> list[Row]:
    """Every process of the machine, those that have ended but were not waited for included."""
    if not LINUX:
        return _ps("-ax")
    rows = (look(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [row for row in rows if row is not None]


def running(pid: int, started: str) -> bool:
    """Whether that very process runs, and not a later one with its pid."""
    row = look(pid)
    return row is not None and not row.zombie and row.started == started


def below(root: int, rows: list[Row], *, spare: int = 0) -> list[Row]:
    """The descendants of ``root``, without ``spare`` and its own."""
    children: dict[int, list[Row]] = {}
    for row in rows:
        children.setdefault(row.parent, []).append(row)
    found: list[Row] = []
    todo = [root]
    while todo:
        for row in children.get(todo.pop(), ()):
            if row.pid != spare:
                found.append(row)
                todo.append(row.pid)
    return found


def kill(pid: int, started: str, number: int = signal.SIGKILL) -> bool:
    """Send a signal to that very process; False if it is not there any more."""
    if not hasattr(os, "pidfd_open"):
        if not running(pid, started):
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return True
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # The handle came first: what runs now under that pid is what the handle means.
        if not running(pid, started):
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def carrying(*marks: str) -> list[Row]:
    """Processes that were started with one of these (``NAME=value``) in their environment, where one may look."""
    wanted = set(marks)
    if not LINUX:
        return [row for row in _ps("-axEww", marks=wanted) if not row.zombie]
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
            if not wanted.isdisjoint(os.fsdecode(file.read()).split("\0")):
                row = look(int(name))
                if row is not None and not row.zombie:
                    found.append(row)
    return found


def proportional_bytes(pid: int) -> int | None:
    """Memory of a process with each shared page counted once among its users, where the kernel tells."""
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        for line in file:
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    return None


def _parse(pid: int, stat: bytes) -> Row:
    """A line of /proc/PID/stat: the name in parentheses may hold anything, so fields count from the last one."""
    fields = stat[stat.rindex(b")") + 2 :].decode().split()
    return Row(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        started=fields[19],
        rss_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        zombie=fields[0] in _DEAD,
    )


def _ps(*arguments: str, marks: set[str] | None = None) -> list[Row]:
    import subprocess  # slow to import and not needed where /proc is

    columns = "pid=,ppid=,pgid=,rss=,stat=,lstart=" + (",command=" if marks else "")
    done = subprocess.run(
        ["ps", *arguments, "-o", columns], capture_output=True, text=True, env={"LC_ALL": "C"}, check=False
    )
    rows = []
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) < 10 or (marks is not None and marks.isdisjoint(words[10:])):
            continue
        pid, parent, group, rss = (int(word) for word in words[:4])
        rows.append(Row(pid, parent, group, 0, " ".join(words[5:10]), rss * 1024, words[4][0] in _DEAD))
    return rows
