"""One call for each of many things, some at a time.

`asyncio.gather` over ten thousand calls would start them all at once, and a group of tasks wraps the one error
that matters in an exception group; this starts at most ``limit``, stops at the first error and raises it as it is.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def for_each(things: Sequence[T], function: Callable[[T], Awaitable[R]], *, limit: int = 32) -> list[R]:
    """The results, in the order of ``things``. The first error cancels the rest and is raised."""
    if len(things) <= 1 or limit == 1:
        return [await function(thing) for thing in things]
    results: dict[int, R] = {}
    waiting = enumerate(things)

    async def work() -> None:
        for at, thing in waiting:
            results[at] = await function(thing)

    workers = [asyncio.ensure_future(work()) for _ in range(min(limit, len(things)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[at] for at in range(len(things))]
