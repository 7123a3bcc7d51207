"""Room in the cluster: who waits for it waits in line (see runyard.executors.line).

Two things may leave no room: our own cap on live pods, which is counted in what the watch sees (a count of our
own would leak with every worker that dies), and quotas. Where a quota has refused a pod, the head of the line asks
again when the quota's use says that there is room (see `usage`), and besides now and then: more often, the less is
known.

As long as nobody waits there is no line: a few creates run beside each other.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from runyard.executors.base import Progress, Report
from runyard.executors.kubernetes.quota import Shortage
from runyard.executors.kubernetes.usage import Usage
from runyard.executors.line import Line, Place

T = TypeVar("T")

_AT_ONCE = 4
_SOON_S, _LOOK_S, _LOOK_MAX_S = 0.1, 1.0, 5.0
_RARELY_S = 30.0


class NoRoom(Exception):
    """There is none now; the text says what is used up. ``short``: a quota, by its own answer."""

    def __init__(self, why: str, short: Shortage | None = None) -> None:
        super().__init__(why)
        self.short = short


class Room:
    """``live`` tells how many pods are alive; ``slots`` None = no cap of our own."""

    def __init__(self, slots: int | None, live: Callable[[], int], usage: Usage) -> None:
        self._slots = slots
        self._live = live
        self._usage = usage
        self._making = 0
        self._waiting = 0
        self._line = Line()
        self._freed = asyncio.Event()
        self._unasked = asyncio.Semaphore(_AT_ONCE)  # so that not a thousand ask before the first is refused

    async def close(self) -> None:
        await self._usage.close()

    def look_again(self) -> None:
        """A pod has ended or gone, or a quota counts otherwise."""
        self._freed.set()

    async def take(
        self,
        make: Callable[[], Awaitable[T]],
        report: Report,
        *,
        shape: str = "",
        priority: int = 3,
        owner: str = "",
    ) -> T:
        """The answer of ``make``, once there is room for it. It raises NoRoom where a quota has none.

        ``shape``: pods of the same one ask the same of quotas.
        """
        async with self._unasked:
            if not self._waiting:
                try:
                    return await self._try(make, shape)
                except NoRoom as error:
                    report(_waits(str(error)))
            else:
                report(_waits("others are before it"))
            self._waiting += 1
        try:
            async with self._line.place(priority=priority, owner=owner) as place:
                return await self._try_until_done(make, shape, place, report)
        finally:
            self._waiting -= 1

    async def _try_until_done(
        self, make: Callable[[], Awaitable[T]], shape: str, place: Place, report: Report
    ) -> T:
        pause_s, insist, woken = _LOOK_S, False, False
        while True:
            if not place.is_first.is_set():  # somebody urgent may have come while this one waited
                report(_waits("others are before it"))
                await place.first()
            self._freed.clear()
            try:
                return await self._try(make, shape, place, insist=insist)
            except NoRoom as error:
                report(_waits(str(error)))
                if woken and error.short is not None:  # the quota hears of it a little later than we
                    pause_s = _SOON_S
            limit_s = _RARELY_S if self._usage.sure else pause_s
            try:
                async with asyncio.timeout(limit_s * random.uniform(0.8, 1.2)):
                    await self._freed.wait()
                insist, woken = False, True
            except TimeoutError:
                insist, woken = True, False
                pause_s = min(pause_s * 2, _LOOK_MAX_S)

    async def _try(
        self, make: Callable[[], Awaitable[T]], shape: str, place: Place | None = None, *, insist: bool = False
    ) -> T:
        """``insist``: whatever is known of quotas, since it may be wrong.

        Who is first in line and finds room lets the next one look while its pod is being made, as long as it is
        known how much room that takes: two pods that went at one moment are then followed by two at one moment.
        """
        if self._slots is not None:
            used = self._live() + self._making
            if used >= self._slots:
                raise NoRoom(f"{used} of {self._slots} slots are in use")
        if not insist and (lacking := self._usage.lacks(shape)):
            raise NoRoom(lacking)
        self._making += 1
        ahead = place if self._usage.sure and not insist else None
        try:
            with self._usage.making(shape):
                if ahead is not None:
                    ahead.step_out()
                made = await make()
        except NoRoom as error:
            if error.short is not None:
                self._usage.refused(shape, error.short)
            if ahead is not None:
                ahead.step_back()
            raise
        finally:
            self._making -= 1
        if place is not None and ahead is None:
            place.serve()
        return made


def _waits(why: str) -> Progress:
    return Progress(state="waiting", message=f"waits for room: {why}")
