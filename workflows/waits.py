"""Waits that are over at some time: an approval that expires, the pause before an attempt, a pod kept for a look.

Each has a timer of its own, which the UI shows by its name, as long as they are few. All further ones share one,
which rings for the earliest of them: with a timer each, ten thousand approvals would fill a history, and that of
the next execution again, before anybody has approved.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Protocol

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows.board import Board


class Run(Protocol):
    board: Board


class Waits:
    """All of one execution of a run. How many have timers of their own, its `prepare` has said."""

    def __init__(self, run: Run, *, spawn: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._run = run
        self._spawn = spawn
        self._alone = 0  # those with timers of their own
        self._shared: list[tuple[int, int]] = []  # a heap: when each of the others is over, and its number
        self._left: set[tuple[int, int]] = set()  # those in it that nobody waits for any more
        self._numbers = itertools.count()
        self._rung_ms = -1  # what was due by then is over
        self._ringing = False

    async def until(self, met: Callable[[], bool], *, left: timedelta, summary: str) -> bool:
        """Wait until that is so; False = the time was over before."""
        own = self._run.board.prepared.timers
        if own and self._alone >= own:
            return await self._share(met, left)
        self._alone += 1
        try:
            await workflow.wait_condition(met, timeout=left, timeout_summary=summary)
        except TimeoutError:  # asyncio's is the built-in one
            return False
        finally:
            self._alone -= 1
        return True

    async def _share(self, met: Callable[[], bool], left: timedelta) -> bool:
        due_ms = self._now_ms() + max(1, math.ceil(left / timedelta(milliseconds=1)))
        place = (due_ms, next(self._numbers))
        heapq.heappush(self._shared, place)
        if not self._ringing:
            self._ringing = True
            self._spawn(self._ring())
        await workflow.wait_condition(lambda: met() or self._rung_ms >= due_ms)
        if due_ms > self._rung_ms:
            self._left.add(place)
        return met()

    async def _ring(self) -> None:
        """The timer. Left alone it rings for nothing: to set it anew at each would cost as much as one each."""
        while (due_ms := self._earliest()) is not None:
            left = timedelta(milliseconds=max(1, due_ms - self._now_ms()))
            summary = "the earliest of all waits without a timer of their own"
            try:
                await workflow.wait_condition(self._outdates(due_ms), timeout=left, timeout_summary=summary)
            except TimeoutError:
                self._rung_ms = max(due_ms, self._now_ms())
                while self._shared and self._shared[0][0] <= self._rung_ms:
                    self._left.discard(heapq.heappop(self._shared))
        self._ringing = False

    def _outdates(self, due_ms: int) -> Callable[[], bool]:
        """Whether the timer for that time is of no use: an earlier one came, or all are over."""

        def outdated() -> bool:
            earliest = self._earliest()
            return earliest is None or earliest < due_ms

        return outdated

    def _earliest(self) -> int | None:
        while self._shared and self._shared[0] in self._left:
            self._left.discard(heapq.heappop(self._shared))
        return self._shared[0][0] if self._shared else None

    def _now_ms(self) -> int:
        return self._run.board.clock.ms(workflow.now())
