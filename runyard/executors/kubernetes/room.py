"""Room in the cluster: who waits for it waits in line (see runyard.executors.line).

Two things may leave no room: our own cap on live pods, which is counted in what the watch sees (a count of our
own would leak with every worker that dies), and a quota, which only a try can tell. So the head of the line
tries again when a pod ends or goes, and after 1 to 5 seconds in any case: a quota's room may come with no event
of ours, and comes a moment after the event that made it.

As long as nobody waits there is no line: creates run beside each other.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from runyard.executors.base import Progress, Report
from runyard.executors.line import Line, Place

T = TypeVar("T")

_AFTER_EVENT_S = 0.03
_LOOK_S, _LOOK_MAX_S = 1.0, 5.0


class NoRoom(Exception):
    """There is none now; the text says what is used up."""


class Room:
    """``live`` tells how many pods are alive; ``slots`` None = no cap of our own."""

    def __init__(self, slots: int | None, live: Callable[[], int]) -> None:
        self._slots = slots
        self._live = live
        self._making = 0
        self._waiting = 0
        self._line = Line()
        self._freed = asyncio.Event()

    def look_again(self) -> None:
        """A pod has ended or gone."""
        self._freed.set()

    async def take(
        self, make: Callable[[], Awaitable[T]], report: Report, *, priority: int = 3, owner: str = ""
    ) -> T:
        """The answer of ``make``, once there is room for it. It raises NoRoom where a quota has none."""
        if not self._waiting:
            try:
                return await self._try(make)
            except NoRoom as error:
                report(_waits(str(error)))
        else:
            report(_waits("others are before it"))
        self._waiting += 1
        try:
            async with self._line.place(priority=priority, owner=owner) as place:
                return await self._try_until_done(make, place, report)
        finally:
            self._waiting -= 1

    async def _try_until_done(self, make: Callable[[], Awaitable[T]], place: Place, report: Report) -> T:
        pause_s = _LOOK_S
        while True:
            if not place.is_first.is_set():  # somebody urgent may have come while this one waited
                report(_waits("others are before it"))
                await place.first()
            self._freed.clear()
            try:
                made = await self._try(make)
            except NoRoom as error:
                report(_waits(str(error)))
            else:
                place.serve()
                return made
            try:
                await asyncio.wait_for(self._freed.wait(), pause_s * random.uniform(0.8, 1.2))
                await asyncio.sleep(_AFTER_EVENT_S)  # the quota hears of it a little later than we
                pause_s = _LOOK_S / 4  # and if it has not by then, soon again
            except TimeoutError:
                pause_s = min(max(pause_s * 2, _LOOK_S), _LOOK_MAX_S)

    async def _try(self, make: Callable[[], Awaitable[T]]) -> T:
        if self._slots is not None:
            used = self._live() + self._making
            if used >= self._slots:
                raise NoRoom(f"{used} of {self._slots} slots are in use")
        self._making += 1
        try:
            return await make()
        finally:
            self._making -= 1


def _waits(why: str) -> Progress:
    return Progress(state="waiting", message=f"waits for room: {why}")
