"""Heartbeats of an activity that takes its time.

With them goes what people want to see (pod, state, node, last message), or how far the activity is, from where its
next try goes on.

A pulse also tells the time, by the clock of the Temporal server. What is compared with it may come from another
worker, and each worker's own clock may be minutes off: then a task would be overdue before it began.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from temporalio import activity

from runyard.executors.base import Progress
from runyard.model import Model

log = logging.getLogger(__name__)

FIRST_S, AGAIN_S = 1.0, 0.25
EVERY, SILENT = 0.4, 0.6
"""Of the heartbeat timeout. The SDK sends a beat only when four fifths of it are over since the last one: with two
in that time there always is one to send, even where this loop is busy for a moment. A pod's first beat waits for
something to say, since a task whose time is over before the next one would not say what it had waited for."""


class Pulse:
    """Beats while the block runs. An activity of less than a second never beats: that is one request less."""

    def __init__(self, shown: str | Model = "", *, store_news: Callable[[], str] = str) -> None:
        """``shown``: the name of a pod, or how far the activity is. ``store_news``: "" while the store answers."""
        self._far = shown if isinstance(shown, Model) else None
        self._details: dict[str, str | int] = {"pod": shown} if isinstance(shown, str) and shown else {}
        self._store_news = store_news
        self._next: asyncio.TimerHandle | None = None
        self._began_s = time.monotonic()
        timeout = activity.info().heartbeat_timeout
        timeout_s = timeout.total_seconds() if timeout else 0.0  # 0: nobody waits for a beat
        self._every_s, self._silent_s = EVERY * timeout_s or FIRST_S, SILENT * timeout_s
        self.running = asyncio.Event()
        self.messages: list[str] = []
        self._waits = False

    def now(self) -> datetime:
        """When the server started this try, and what has passed since."""
        return activity.info().started_time + timedelta(seconds=time.monotonic() - self._began_s)

    def report(self, progress: Progress) -> None:
        """What the executor calls; a new message goes out with the next beat."""
        self._details |= {"state": progress.state}
        for name, value in (("message", progress.message), ("node", progress.node), ("pid", progress.pid)):
            if value:
                self._details[name] = value
        if progress.state == "waiting" and not self._waits:
            self._waits = True  # once: who is how far in which line is in the heartbeats
            log.info("%s", progress.message)
        if progress.message and progress.message not in self.messages[-1:]:
            self.messages = [*self.messages[-99:], progress.message]
        if progress.state in ("running", "ended"):
            self.running.set()

    def show(self, far: Model) -> None:
        """How far the activity is now."""
        self._far = far

    async def __aenter__(self) -> Self:
        # a timer and no task: most activities end before it, and a timer costs a tenth
        self._wait(min(FIRST_S, self._every_s))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._next is not None
        self._next.cancel()

    def _wait(self, seconds: float) -> None:
        self._next = asyncio.get_running_loop().call_later(seconds, self._beat)

    def _beat(self) -> None:
        """In the context of the activity, which is how `heartbeat` knows whose it is."""
        silent = "pod" in self._details and "state" not in self._details
        if silent and time.monotonic() - self._began_s < self._silent_s:
            self._wait(AGAIN_S)
            return
        activity.heartbeat(self._far or self._shown())
        self._wait(self._every_s)

    def _shown(self) -> dict[str, str | int]:
        news = self._store_news()
        return {**self._details, "store": news} if news else self._details
