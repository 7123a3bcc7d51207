"""Ctrl-C and SIGTERM: the first asks for an orderly end, the second leaves at once."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

from runyard.cli.exits import Exit

T = TypeVar("T")


class Interrupts:
    """How often somebody asked us to end. ``asked`` is set at the first time."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def come_after(self, work: "asyncio.Task[T]") -> bool:
        """Wait for the work or for somebody who asks; whether the work was done first. It goes on otherwise."""
        asking = asyncio.create_task(self.asked.wait())
        await asyncio.wait({asking, work}, return_when=asyncio.FIRST_COMPLETED)
        asking.cancel()
        return work.done()

    def ask(self, leave: Callable[[], None]) -> None:
        if not self.asked.is_set():
            self.asked.set()
            return
        leave()
        sys.stdout.flush()
        # at once: nothing that waits, in Python or below it, may keep us
        os._exit(Exit.CANCELLED)


@contextlib.contextmanager
def interrupts(leave: Callable[[], None] = lambda: None) -> Iterator[Interrupts]:
    """Listen while the block runs; ``leave`` is called before a second Ctrl-C ends the process."""
    loop, state = asyncio.get_running_loop(), Interrupts()
    listened = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in listened:
        loop.add_signal_handler(number, state.ask, leave)
    try:
        yield state
    finally:
        for number in listened:
            loop.remove_signal_handler(number)
