"""A Temporal worker that ends in bounded time.

Its last step is in the SDK's native part, and was seen never to return: once in some forty ends of a loaded worker
whose lines had been terminated, when all of its own tasks had ended. Who waited for it could not be ended by a
signal. What is given up then has nothing left to do.
"""

import asyncio
import logging
from types import TracebackType
from typing import Final, Self

from temporalio.worker import Worker

LEAVE_S: Final = 30.0
"""Longer than a worker takes whose server does not answer (13 s), or whose activities end what they are at."""

log = logging.getLogger(__name__)


class Leaving:
    """The worker, as a context."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def __aenter__(self) -> Self:
        await self._worker.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        leaving = asyncio.create_task(self._worker.__aexit__(kind, error, trace))
        try:
            await asyncio.wait({leaving}, timeout=LEAVE_S)
        finally:
            if not leaving.done():
                leaving.cancel()
        if leaving.done():
            await leaving
            return
        queue = self._worker.task_queue
        log.warning("the worker of the queue %s did not end within %g s: it is left behind", queue, LEAVE_S)
