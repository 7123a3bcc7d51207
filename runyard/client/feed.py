"""What happens to runs, from a cursor on: the feed behind `Runyard.events`.

It is read, not written. Temporal keeps a history of each run, in order and for as long as the namespace says, and
the store keeps how it ended beyond that. So a run costs nothing more for being watched, and nobody has to be there
while it goes on. Event objects in the store, written by each activity, were turned down: two more writes a task,
an order by clocks of several workers, and one more thing to clean up. So was to ask workers for views: what comes
and goes between two looks would be lost.

Rounds: those runs that have ended since the cursor, each as a whole; then again and again what is new of the open
ones, sorted by time. A cursor is two times. All runs that ended before ``ended`` were given; of the others, all
events before ``at``. Neither is ever later than `LAG_S` before the round began: so long may a run take to come
into the server's list, and so far may its clock be from ours. Lest a reader that is cut off again and again gets
nowhere in that minute, a cursor also says how far the runs of the minute were read, `NAMED` of them at most: what
is not in it is given twice, and has the id that it had.
"""

import asyncio
import base64
import re
import time
import zlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal

from pydantic import TypeAdapter
from temporalio.service import RPCError, RPCStatusCode

from runyard.client.histories import History
from runyard.errors import InvalidRequest, NotFound
from runyard.records.bounded import for_each
from runyard.records.ended import list_ended, milliseconds
from runyard.records.told import list_events
from runyard.spec.events import Event
from runyard.spec.run import WORKFLOW

if TYPE_CHECKING:
    from runyard.client.yard import Runyard

LAG_S: Final = 60.0
_AT_ONCE: Final = 16
_BATCH: Final = 200
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR: Final = re.compile(r"([0-9]{1,15})-([0-9]{1,15})(?:-([\w=-]+))?", re.ASCII)
NAMED: Final = 100

Position = tuple[int, int, Literal["temporal", "store"]]
"""How far a run was read: to this millisecond, so many of its events, and where from: the two tell other times."""

_PLACES: Final = TypeAdapter(dict[str, Position])


@dataclass(frozen=True)
class Cursor:
    """Milliseconds since 1970; see the module."""

    ended: int = 0
    at: int = 0
    places: Mapping[str, Position] = field(default_factory=dict)

    def __str__(self) -> str:
        words = f"{self.ended}-{self.at}"
        if not self.places:
            return words
        return f"{words}-{base64.urlsafe_b64encode(zlib.compress(_PLACES.dump_json(dict(self.places)))).decode()}"


def parse_cursor(text: str) -> Cursor:
    """An event's cursor, or a time: ISO 8601, UTC where it names no zone. Raises InvalidRequest."""
    try:
        if found := _CURSOR.fullmatch(text):
            data = (
                zlib.decompressobj().decompress(base64.urlsafe_b64decode(found[3]), 1 << 20) if found[3] else b"{}"
            )
            return Cursor(int(found[1]), int(found[2]), _PLACES.validate_json(data))
        at = datetime.fromisoformat(text)
    except (ValueError, zlib.error) as error:
        raise InvalidRequest(
            f"{text[:80]!r} is no cursor of events", remedy="Take an event's `cursor`, or a time in ISO 8601."
        ) from error
    ms = max(0, milliseconds(at if at.tzinfo else at.replace(tzinfo=UTC)))
    return Cursor(ms, ms)


async def read_feed(
    yard: "Runyard", *, cursor: str, run: str, follow: bool, interval_s: float
) -> AsyncGenerator[Event, None]:
    """See `Runyard.events`."""
    feed = Feed(yard, parse_cursor(cursor) if cursor else Cursor())
    if run:
        reading = feed.follow_run(run, follow=follow, interval_s=interval_s)
    else:
        reading = feed.follow_all(follow=follow, interval_s=interval_s)
    async for event in reading:
        yield event


class Feed:
    """One reader's way through the events."""

    def __init__(self, yard: "Runyard", cursor: Cursor) -> None:
        self._yard = yard
        self._begin = cursor
        self._places: dict[str, Position] = dict(cursor.places)
        self._resumed: dict[str, Position] = dict(cursor.places)
        self._open: dict[str, History] = {}
        self._stored: set[str] = set()  # runs that the store has told
        self._done: dict[str, int] = {}  # runs that were given to their end; when that was

    async def follow_run(self, run_id: str, *, follow: bool, interval_s: float) -> AsyncGenerator[Event, None]:
        """Of one run; with ``follow`` to its end."""
        while True:
            events = await self._news(run_id)
            for event in events:
                yield self._pass(event, Cursor(_ms(event), _ms(event)))
            if not follow or run_id in self._done:
                return
            await asyncio.sleep(interval_s)

    async def follow_all(self, *, follow: bool, interval_s: float) -> AsyncGenerator[Event, None]:
        """Of all runs; without ``follow`` what there is now."""
        cursor, latest = self._begin, _latest_ms()
        going = await self._list_open() if self._yard.online else []  # first: one that ends now is in both
        ended = await self._list_ended(cursor.ended)
        for number, (run_id, at) in enumerate(ended):
            beyond = ended[number + 1][1] if number + 1 < len(ended) else at + 1
            news = await self._news_if_any(run_id)
            for event in news:
                passed = beyond if event is news[-1] else at
                cursor = replace(cursor, ended=max(cursor.ended, min(passed, latest)))
                yield self._pass(event, cursor)
        while True:
            found = await for_each(going, self._news_if_any, limit=_AT_ONCE)
            for event in sorted((event for each in found for event in each), key=lambda event: event.at):
                at = max(cursor.at, min(_ms(event), latest))
                cursor = Cursor(max(cursor.ended, at), at)
                yield self._pass(event, cursor)
            if not follow:
                return
            await asyncio.sleep(interval_s)
            latest = _latest_ms()
            going = list(dict.fromkeys([*await self._list_open(), *self._open]))
            recent = (run_id for run_id, _ in await self._list_ended(min(cursor.ended, latest)))
            going = list(dict.fromkeys([*going, *recent]))
            self._forget(cursor.ended)

    # inside

    def _pass(self, event: Event, cursor: Cursor) -> Event:
        """The event with the cursor that leads on from it."""
        ms, number, _ = self._places.get(event.run, (0, 0, ""))
        self._places[event.run] = (
            _ms(event),
            number + 1 if ms == _ms(event) else 1,
            "store" if event.run in self._stored else "temporal",
        )
        self._places = {
            run_id: place
            for run_id, place in self._places.items()
            if place[0] >= cursor.at and self._done.get(run_id, cursor.ended) >= cursor.ended
        }
        shown = self._places
        if len(shown) > NAMED:
            shown = dict(sorted(shown.items(), key=lambda each: each[1][0])[-NAMED:])
        return event.model_copy(update={"cursor": str(replace(cursor, places=shown))})

    def _new(self, events: list[Event], run_id: str) -> list[Event]:
        """Those that were not given before the cursor. What the first look finds begins with all of these."""
        source = "store" if run_id in self._stored else "temporal"
        if source == "temporal":
            events = [event for event in events if _ms(event) >= self._begin.at]
        at, given, told_by = self._resumed.pop(run_id, (0, 0, source))
        if told_by != source:
            return events
        events = [event for event in events if _ms(event) >= at]
        same = sum(_ms(event) == at for event in events)
        return events[min(given, same) :]

    async def _news(self, run_id: str) -> list[Event]:
        """What is new of a run: from Temporal, or, where that has forgotten it, from the store."""
        if run_id in self._done:
            return []
        if not self._yard.online:
            return await self._remembered(run_id)
        history = self._open.setdefault(run_id, History(self._yard.client, run_id, since=self._since(run_id)))
        try:
            events = await history.news()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND or "namespace" in error.message.lower():
                raise self._yard.explain(error, what=f"the history of {run_id}") from error
            return await self._remembered(run_id)
        if history.closed:
            self._close(run_id, events)
        return self._new(events, run_id)

    def _since(self, run_id: str) -> datetime:
        """Nothing before it is needed."""
        at, _, source = self._begin.places.get(run_id, (0, 0, ""))
        return _time(max(self._begin.at, at if source == "temporal" else 0))

    async def _news_if_any(self, run_id: str) -> list[Event]:
        """The same of a run that a list has named, and that may have been removed since."""
        try:
            return await self._news(run_id)
        except NotFound:
            return []

    async def _remembered(self, run_id: str) -> list[Event]:
        view = await self._yard.stored(run_id)
        if view is None or view.ended_at is None:
            self._open.pop(run_id, None)
            raise await self._yard.unknown_run(run_id)
        try:
            events = await list_events(self._yard.store, view)
        except NotFound:  # removed this very moment
            events = []
        self._stored.add(run_id)
        self._close(run_id, events)
        return self._new(events, run_id)

    def _close(self, run_id: str, events: list[Event]) -> None:
        self._open.pop(run_id, None)
        self._done[run_id] = _ms(events[-1]) if events else _latest_ms()

    def _forget(self, ended: int) -> None:
        """Those that no list gives any more."""
        self._done = {run_id: at for run_id, at in self._done.items() if at >= ended - round(LAG_S * 2000)}

    async def _list_open(self) -> list[str]:
        query = f"WorkflowType = '{WORKFLOW}' AND ExecutionStatus = 'Running'"
        try:
            return [each.id async for each in self._yard.client.list_workflows(query)]
        except RPCError as error:
            raise self._yard.explain(error, what="the list of runs") from error

    async def _list_ended(self, since_ms: int) -> list[tuple[str, int]]:
        """Runs that have ended since then, the earliest first, each with when it did."""
        found: dict[str, int] = {}
        if self._yard.online:
            query = f"WorkflowType = '{WORKFLOW}' AND ExecutionStatus != 'Running'"
            query += f" AND ExecutionStatus != 'ContinuedAsNew' AND CloseTime >= '{_time(since_ms).isoformat()}'"
            try:
                async for each in self._yard.client.list_workflows(query):
                    found[each.id] = milliseconds(each.close_time or each.start_time)
            except RPCError as error:
                raise self._yard.explain(error, what="the list of runs") from error
        batch: list[tuple[str, int]] = []
        async for entry in list_ended(self._yard.store):
            if entry.at_ms < since_ms:
                break
            if entry.run_id not in found and entry.run_id not in self._done:
                batch.append((entry.run_id, entry.at_ms))
        for start in range(0, len(batch), _BATCH):
            part = batch[start : start + _BATCH]
            known = await self._yard.known([run_id for run_id, _ in part])
            found |= {run_id: at for run_id, at in part if run_id not in known}
        return sorted(found.items(), key=lambda each: each[1])


def _ms(event: Event) -> int:
    return milliseconds(event.at)


def _time(ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=ms)


def _latest_ms() -> int:
    """The latest that a cursor of a round which begins now may say."""
    return round((time.time() - LAG_S) * 1000)
