"""What starts a cleanup, by what rules it goes, and what it answers: plain JSON, for all programs."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final, Literal

from pydantic import Field

from runyard.model import Input, Model

CLEANUP: Final = "CleanupWorkflow"
CLEANUP_ID: Final = "runyard-cleanup"
"""Id of the schedule, and of a cleanup that somebody asked for."""

DRY_RUN_ID: Final = f"{CLEANUP_ID}/dry-run"

SharedKind = Literal["logs", "archives", "snapshots"]
CleanupKind = Literal[SharedKind, "runs", "caches"]

EXAMPLES: Final = 5
"""So many of each kind are named in a report."""

DAY_S: Final = 24 * 3600.0


class CleanupRequest(Input):
    """The argument of CleanupWorkflow.

    With ``runs`` only these runs are removed, whatever their age: those that are open, or pinned, are not.
    ``now``: without the grace period for pods of runs that have ended. ``reindex``: the list of ended runs is
    made anew from their records.
    """

    dry_run: bool = False
    now: bool = False
    reindex: bool = False
    runs: list[str] = Field(default=[], max_length=1_000)


class Retention(Model):
    """How long things stay after their run's end, in seconds; None = for ever, 0 = not at all.

    A run's record goes last: what it has of logs and archives cannot be found without it, and goes with it.
    """

    logs_s: float | None = Field(default=30 * DAY_S, ge=0)
    archives_s: float | None = Field(default=7 * DAY_S, ge=0)
    runs_s: float | None = Field(default=90 * DAY_S, ge=0)
    runs_per_group: int | None = Field(default=None, ge=1)  # the newest that have ended; of each group
    total_bytes: int | None = Field(default=None, ge=0)  # of logs and archives; the oldest go first
    caches_s: float | None = Field(default=30 * DAY_S, ge=0)  # since the last use
    cache_bytes: int | None = Field(default=None, ge=0)  # of each cache group; the least recently used go first
    unknown_s: float = Field(default=DAY_S, ge=0)  # so old is what belongs to a run that nobody knows
    pods_s: float = Field(default=60, ge=0)  # so old is a pod of a run that is not open
    objects_per_s: float | None = Field(default=None, gt=0)  # deletes


class Tally(Model):
    """``items`` are things that go as a whole: a task's logs, a cache entry, a run's record, a pod."""

    items: int = 0
    objects: int = 0
    bytes: int = 0

    def plus(self, other: "Tally") -> "Tally":
        return Tally(
            items=self.items + other.items,
            objects=self.objects + other.objects,
            bytes=self.bytes + other.bytes,
        )


class CleanupReport(Model):
    """What a cleanup did, or would do with ``dry_run``.

    ``deleted`` and ``examples`` are by kind: logs, archives, snapshots, runs, caches, pods. ``kept`` counts
    items by why they stay.
    """

    dry_run: bool = False
    gave_way_to: str = ""  # another cleanup was under way: nothing was done here
    began_at: datetime | None = None
    ended_at: datetime | None = None
    deleted: dict[str, Tally] = {}
    examples: dict[str, list[str]] = {}
    kept: dict[str, int] = {}
    notes: list[str] = []

    def plus(self, other: "CleanupReport") -> "CleanupReport":
        """Both together. Times are of this one."""
        kinds = dict.fromkeys([*self.deleted, *other.deleted])
        named = dict.fromkeys([*self.examples, *other.examples])
        whys = dict.fromkeys([*self.kept, *other.kept])
        return self.model_copy(
            update={
                "deleted": {
                    kind: self.deleted.get(kind, Tally()).plus(other.deleted.get(kind, Tally())) for kind in kinds
                },
                "examples": {
                    kind: [*self.examples.get(kind, []), *other.examples.get(kind, [])][:EXAMPLES]
                    for kind in named
                },
                "kept": {why: self.kept.get(why, 0) + other.kept.get(why, 0) for why in whys},
                "notes": list(dict.fromkeys([*self.notes, *other.notes])),
            }
        )


def removal_id(run_id: str) -> str:
    """Id of the cleanup that removes one run."""
    return f"{CLEANUP_ID}/{run_id}"


def is_full(workflow_id: str) -> bool:
    """Whether a cleanup of this id is one of everything that really deletes."""
    return workflow_id.startswith(CLEANUP_ID) and "/" not in workflow_id


def as_lines(report: CleanupReport) -> Iterator[str]:
    """The report for people, in Markdown that reads well as text too."""
    if report.gave_way_to:
        yield f"Nothing was done: `{report.gave_way_to}` is under way."
        return
    yield "Would be deleted:" if report.dry_run else "Deleted:"
    for kind, tally in report.deleted.items():
        named = ", ".join(f"`{name}`" for name in report.examples.get(kind, []))
        more = ", …" if tally.items > len(report.examples.get(kind, [])) else ""
        what = f"- {kind}: {tally.items}" + (f", {tally.objects} objects" if tally.objects else "")
        yield (
            what + (f", {size_text(tally.bytes)}" if tally.bytes else "") + (f" ({named}{more})" if named else "")
        )
    if not report.deleted:
        yield "- nothing"
    if report.kept:
        yield ""
        yield "Kept:"
        yield from (f"- {count}: {why}" for why, count in report.kept.items())
    if report.notes:
        yield ""
        yield from (f"- {note}" for note in report.notes)


def size_text(size_bytes: int) -> str:
    """E.g. `512 B`, `1.5 KiB`."""
    number = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{size_bytes} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
