"""Waiting for what runs in a thread, which cannot be interrupted."""

import asyncio
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def settle(call: asyncio.Future[T]) -> T:
    """The result of a call; a cancel waits for its end, since what it uses is cleared up after it."""
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        while not call.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([call])
        if not call.cancelled():
            call.exception()  # seen: it is not an error that nobody looked at
        raise
