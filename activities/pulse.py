"""Heartbeats of an activity that takes its time.

With them goes what people want to see (pod, state, node, last message), or how far the activity is, from where its
next try goes on.

A pulse also tells the time, by the clock of the Temporal server. What is compared with it may come from another
worker, and each worker's own clock may be minutes off: then a task would be overdue before it began.
"""

import asyncio
import time
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from temporalio import activity

from runyard.executors.base import Progress
from runyard.model import Model

FIRST_S, EVERY_S = 1.0, 2.0


class Pulse:
    """Beats while the block runs. An activity of less than a second never beats: that is one request less."""

    def __init__(self, shown: str | Model = "") -> None:
        """``shown``: the name of a pod, or how far the activity is."""
        self._far = shown if isinstance(shown, Model) else None
        self._details: dict[str, str | int] = {"pod": shown} if isinstance(shown, str) and shown else {}
        self._task: asyncio.Task[None] | None = None
        self._began_s = time.monotonic()
        self.running = asyncio.Event()
        self.messages: list[str] = []

    def now(self) -> datetime:
        """When the server started this try, and what has passed since."""
        return activity.info().started_time + timedelta(seconds=time.monotonic() - self._began_s)

    def report(self, progress: Progress) -> None:
        """What the executor calls; a new message goes out with the next beat."""
        self._details |= {"state": progress.state}
        for name, value in (("message", progress.message), ("node", progress.node), ("pid", progress.pid)):
            if value:
                self._details[name] = value
        if progress.message and progress.message not in self.messages[-1:]:
            self.messages = [*self.messages[-99:], progress.message]
        if progress.state in ("running", "ended"):
            self.running.set()

    def show(self, far: Model) -> None:
        """How far the activity is now."""
        self._far = far

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()

    async def _beat(self) -> None:
        await asyncio.sleep(FIRST_S)
        while True:
            activity.heartbeat(self._details if self._far is None else self._far)
            await asyncio.sleep(EVERY_S)
