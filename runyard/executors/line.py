"""The line of those who wait for room in an executor: by priority, then owners in turn, then first come.

A worker takes up to two thousand tasks at once, so the order in which Temporal's queue hands them out says little:
what decides is the order in which they get room. A lock, which was here before, let the six hundred tasks of one
owner go before the ten of another.

Owners take turns by *served* tasks, not by those that run: each owner has a clock that goes on with each task,
and who waits with the earliest clock is next (start-time fair queueing). An owner who comes, or comes back, starts
at the time of those who wait: nobody saves up turns. Turned down: counting what runs, since an executor does not
know of each of its tasks when it ends.
"""

import asyncio
import itertools
from collections import deque
from types import TracebackType
from typing import Self


class Place:
    """A place in the line, held for the length of a block."""

    def __init__(self, line: "Line", *, priority: int, owner: str) -> None:
        self._line = line
        self.priority = priority
        self.owner = owner
        self.number = 0
        self.is_first = asyncio.Event()
        self._waits = False

    async def first(self) -> None:
        """Wait until nobody has precedence. Ask again after each other wait: somebody urgent may have come."""
        await self.is_first.wait()

    def serve(self) -> None:
        """It got what it waited for: this was its owner's turn."""
        self._line.serve(self.owner)

    def step_out(self) -> None:
        """It is served: the next one need not wait until it has in its hands what it waited for."""
        self.serve()
        self._leave()

    def step_back(self) -> None:
        """It did not get it after all, and is first again."""
        self._waits = True
        self._line.enter_again(self)

    async def __aenter__(self) -> Self:
        self._waits = True
        self._line.enter(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._waits:
            self._leave()

    def _leave(self) -> None:
        self._waits = False
        self._line.leave(self)


class Line:
    """Of one process: workers of one machine each have their own."""

    def __init__(self) -> None:
        self._waiting: dict[int, dict[str, deque[Place]]] = {}  # by priority and owner
        self._clocks: dict[str, int] = {}
        self._now = 0  # the clock of the last one that was served
        self._numbers = itertools.count()
        self._first: Place | None = None

    def place(self, *, priority: int, owner: str) -> Place:
        return Place(self, priority=priority, owner=owner)

    def enter(self, place: Place) -> None:
        place.number = next(self._numbers)
        self._clocks[place.owner] = max(self._clocks.get(place.owner, 0), self._now)
        self._waiting.setdefault(place.priority, {}).setdefault(place.owner, deque()).append(place)
        self._choose()

    def enter_again(self, place: Place) -> None:
        """Where it was, as if it had not been served."""
        self._clocks[place.owner] = max(0, self._clocks.get(place.owner, self._now + 1) - 1)
        self._waiting.setdefault(place.priority, {}).setdefault(place.owner, deque()).appendleft(place)
        self._choose()

    def leave(self, place: Place) -> None:
        owners = self._waiting[place.priority]
        owners[place.owner].remove(place)  # almost always the first one
        if not owners[place.owner]:
            del owners[place.owner]
        if not owners:
            del self._waiting[place.priority]
        if not self._waiting:
            self._clocks.clear()
            self._now = 0
        self._choose()

    def serve(self, owner: str) -> None:
        self._now = max(self._now, self._clocks[owner])
        self._clocks[owner] += 1

    def _choose(self) -> None:
        """Who is first; the one that was it, and is not any more, hears it at its next question."""
        first = None
        if self._waiting:
            heads = (places[0] for places in self._waiting[min(self._waiting)].values())
            first = min(heads, key=lambda place: (self._clocks[place.owner], place.number))
        if first is not self._first:
            if self._first is not None:
                self._first.is_first.clear()
            if first is not None:
                first.is_first.set()
            self._first = first
