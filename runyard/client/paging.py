"""One list of runs out of two: what Temporal shows, and what only the store remembers.

The order is Temporal's own, the one that it can give a page of: open runs, those started last first; then ended
ones, those that ended last first. (By the start alone was turned down: a server on SQL cannot sort by it, so that
a page would cost a walk.) A run that Temporal knows comes from Temporal and from nowhere else: for each entry of
the store's index it is asked. So no run comes twice, whatever the two disagree about its end.

A cursor is a millisecond, and the runs of it that were given already. A page may be short, also empty, where a
filter finds little in `SCAN` runs: the list goes on as long as there is a next cursor.
"""

import base64
import heapq
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal

from pydantic import ValidationError

from runyard.client.listing import Filter, has_text, matches, query
from runyard.errors import InvalidRequest
from runyard.model import Model
from runyard.records.ended import Ended, list_ended, milliseconds, read_entries
from runyard.spec.run import WORKFLOW, RunView

if TYPE_CHECKING:
    from runyard.client.yard import Runyard

SCAN: Final = 2_000
"""So many runs are looked at for one page, on each side."""

_BATCH: Final = 100
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Cursor(Model):
    """Where a list goes on: in which of its two parts, at which millisecond, and without which runs."""

    part: Literal["open", "ended"] = "open"
    at_ms: int | None = None
    seen: list[str] = []

    def encode(self) -> str:
        return base64.urlsafe_b64encode(self.model_dump_json(exclude_defaults=True).encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> "Cursor":
        try:
            return cls.model_validate_json(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
        except (ValueError, ValidationError) as error:
            raise InvalidRequest(
                f"{text[:80]!r} is no cursor of a list of runs", remedy="Take `next` of the page before."
            ) from error


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """Runs without their tasks; ``next``: the cursor after them, empty at the end of the list."""

    runs: tuple[RunView, ...]
    next: str = ""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What one side has, the latest first; ``until_ms``: so far back it was looked at, None = to its end."""

    found: list[tuple[int, RunView]]
    until_ms: int | None = None


async def read_page(yard: "Runyard", wanted: Filter, *, limit: int, after: str = "") -> RunPage:
    """Raises InvalidRequest for a cursor that is none, ServerUnavailable, StoreError."""
    cursor, runs = Cursor.decode(after) if after else Cursor(), list[RunView]()
    if cursor.part == "open":
        cursor, runs = await _read_open(yard, wanted, cursor, limit)
        if cursor.part == "open":
            return RunPage(runs=tuple(runs), next=cursor.encode())
    if wanted.phase == "open":
        return RunPage(runs=tuple(runs))
    if len(runs) == limit:
        return RunPage(runs=tuple(runs), next=cursor.encode())
    more, ended = await _read_ended(yard, wanted, cursor, limit - len(runs))
    return RunPage(runs=(*runs, *ended), next=more.encode() if more else "")


async def _read_open(yard: "Runyard", wanted: Filter, cursor: Cursor, limit: int) -> tuple[Cursor, list[RunView]]:
    if wanted.phase not in (None, "open"):
        return Cursor(part="ended"), []
    part = await _ask_temporal(yard, replace(wanted, phase="open"), cursor, limit)
    more, runs = _cut(cursor, [part], limit)
    return more or Cursor(part="ended"), runs


async def _read_ended(
    yard: "Runyard", wanted: Filter, cursor: Cursor, limit: int
) -> tuple[Cursor | None, list[RunView]]:
    visible = await _ask_temporal(yard, replace(wanted, phase=wanted.phase or "closed"), cursor, limit)
    floor_ms = visible.until_ms
    if len(visible.found) > limit:  # what the store has further back is for a later page
        floor_ms = max(floor_ms or 0, visible.found[limit][0])
    return _cut(cursor, [visible, await _ask_store(yard, wanted, cursor, limit, floor_ms)], limit)


def _cut(cursor: Cursor, parts: Sequence[_Part], limit: int) -> tuple[Cursor | None, list[RunView]]:
    """The first ``limit`` of what all sides have been asked for, and where to go on, if anywhere."""
    untils = [part.until_ms for part in parts if part.until_ms is not None]
    until_ms = max(untils, default=None)
    merged = heapq.merge(*(part.found for part in parts), key=lambda each: -each[0])
    found = [each for each in merged if until_ms is None or each[0] >= until_ms]
    page = found[:limit]
    if len(found) > limit:
        at_ms = page[-1][0]
    elif until_ms is not None:
        at_ms = until_ms
    else:
        return None, [view for _, view in page]
    seen = [view.id for ms, view in page if ms == at_ms] + (cursor.seen if cursor.at_ms == at_ms else [])
    return Cursor(part=cursor.part, at_ms=at_ms, seen=seen), [view for _, view in page]


async def _ask_temporal(yard: "Runyard", wanted: Filter, cursor: Cursor, limit: int) -> _Part:
    found: list[tuple[int, RunView]] = []
    field, looked, last_ms = ("StartTime" if cursor.part == "open" else "CloseTime"), 0, 0
    text, most = query(wanted), SCAN + len(cursor.seen)
    if cursor.at_ms is not None:
        text += f" AND {field} < '{(_EPOCH + timedelta(milliseconds=cursor.at_ms + 1)).isoformat()}'"
    async for view, started_at in yard.visible(
        text, limit=most, page_size=min(most, limit + len(cursor.seen) + 1)
    ):
        at = started_at if cursor.part == "open" else view.ended_at
        at_ms = milliseconds(at or _EPOCH)
        looked += 1
        if view.id not in cursor.seen and await _has_text(yard, view, wanted.text):
            found.append((at_ms, view))
        if len(found) > limit:
            return _Part(found=found)
        last_ms = at_ms
    found.sort(key=lambda each: -each[0])
    return _Part(found=found, until_ms=last_ms if looked >= most else None)


async def _has_text(yard: "Runyard", view: RunView, text: str) -> bool:
    """The cause of a run that did not succeed is in the store only."""
    if not text or has_text(view, text):
        return True
    kept = await yard.stored(view.id) if view.result in ("failed", "stopped") else None
    return kept is not None and has_text(kept, text)


async def _ask_store(yard: "Runyard", wanted: Filter, cursor: Cursor, limit: int, floor_ms: int | None) -> _Part:
    found: list[tuple[int, RunView]] = []
    looked, last_ms = 0, None
    async for batch in _batches(list_ended(yard.store, from_ms=cursor.at_ms)):
        if looked >= SCAN and batch[0].at_ms != last_ms:
            return _Part(found=found, until_ms=last_ms)
        near = [each for each in batch if floor_ms is None or each.at_ms >= floor_ms]
        found += await _forgotten(yard, wanted, near, cursor)
        looked, last_ms = looked + len(batch), batch[-1].at_ms
        if len(found) > limit or len(near) < len(batch):
            break
    return _Part(found=found)


async def _batches(entries: AsyncIterator[Ended]) -> AsyncIterator[list[Ended]]:
    batch: list[Ended] = []
    async for entry in entries:
        batch.append(entry)
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


async def _forgotten(
    yard: "Runyard", wanted: Filter, entries: list[Ended], cursor: Cursor
) -> list[tuple[int, RunView]]:
    """Those of the entries that are wanted and that Temporal does not know."""
    fresh = [each for each in entries if each.run_id not in cursor.seen]
    known = await yard.known([each.run_id for each in fresh])
    fresh = [each for each in fresh if each.run_id not in known]
    views = await read_entries(yard.store, fresh)
    return [
        (entry.at_ms, yard.with_ui(view))
        for entry, view in zip(fresh, views, strict=True)
        if view is not None and matches(view, wanted) and (not wanted.text or has_text(view, wanted.text))
    ]


def ids_query(run_ids: Sequence[str]) -> str:
    """Which of these Temporal knows. A run's id has no backslash, but may have a quote."""
    words = ", ".join("'" + each.replace("\\", "\\\\").replace("'", "\\'") + "'" for each in run_ids)
    return f"WorkflowType = '{WORKFLOW}' AND WorkflowId IN ({words})"
