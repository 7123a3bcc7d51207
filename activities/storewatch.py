"""Whether the store answers this worker: looked at while tasks run, told in their heartbeats while it does not.

A pod whose store is away waits in silence: what its agent knows of that goes nowhere before the store is back. The
worker cannot see into the pod, but it has the same store to ask, and says just that: since when there is no
answer, and what that means for a step. One look a worker, whatever the number of its tasks. It may be that only
the worker is cut off, or only the pod; so nothing is decided by it.
"""

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final

from runyard.errors import NotFound, RunyardError
from runyard.store.base import ObjectStore

log = logging.getLogger(__name__)

_KEY: Final = "doctor/none"
"""Nobody ever writes it: that it is not there is an answer."""


class StoreWatch:
    """``every_s`` it looks, and a store that has not answered after ``answer_s`` is away."""

    def __init__(
        self, store: ObjectStore, *, spool_bytes: int, every_s: float = 10.0, answer_s: float = 5.0
    ) -> None:
        self._store = store
        self._spool_bytes = spool_bytes
        self._every_s, self._answer_s = every_s, answer_s
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None
        self._answered_at = datetime.now(UTC)
        self._why = ""

    @property
    def news(self) -> str:
        """A sentence for people while the store is away; else nothing."""
        if not self._why:
            return ""
        means = "steps that write wait until it is back"
        if self._spool_bytes:
            means = f"steps go on until {self._spool_bytes >> 20} MiB of log wait in a pod; then they wait, too"
        return (
            f"the store has not answered this worker since {self._answered_at:%H:%M:%S} UTC ({self._why}): {means}"
        )

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """While the block runs somebody cares."""
        self._watchers += 1
        if self._task is None:
            own = contextvars.Context()  # what it logs is about no task
            self._answered_at = datetime.now(UTC)
            self._task = asyncio.get_running_loop().create_task(self._look_on(), context=own)
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._task.cancel()
                self._task, self._why = None, ""

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            why = await self._look()
            if why and not self._why:
                log.warning("the store does not answer", extra={"why": why})
            if self._why and not why:
                log.info("the store answers again")
            self._why = why
            if not why:
                self._answered_at = datetime.now(UTC)

    async def _look(self) -> str:
        """Why there is no answer; "" = there is one."""
        try:
            async with asyncio.timeout(self._answer_s):
                await self._store.stat(_KEY)
        except NotFound:
            return ""
        except TimeoutError:
            return f"none within {self._answer_s:g} s"
        except RunyardError as error:
            return error.message[:200]
        return ""
