"""Heartbeats of an activity that waits, with what people want to see: pod, state, node, last message."""

import asyncio
from types import TracebackType
from typing import Self

from temporalio import activity

from runyard.executors.base import Progress

FIRST_S, EVERY_S = 1.0, 2.0


class Pulse:
    """Beats while the block runs. An activity of less than a second never beats: that is one request less."""

    def __init__(self, pod: str = "") -> None:
        self._details: dict[str, str | int] = {"pod": pod} if pod else {}
        self._next: asyncio.TimerHandle | None = None
        self.running = asyncio.Event()
        self.messages: list[str] = []

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

    async def __aenter__(self) -> Self:
        self._wait(FIRST_S)  # a timer and no task: most activities end before it, and a timer costs a tenth
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
        activity.heartbeat(self._details)
        self._wait(EVERY_S)
