"""Waits for the end of a process that is no child of ours, without looking again and again.

A worker that adopts a pod is not the parent of its nest, so `wait` is no help. Linux has pidfds, macOS and
the BSDs have kqueue; both are files that the event loop can wait for. Elsewhere a look every 100 ms remains.
"""

import asyncio
import os
import select
import sys
from collections.abc import Callable

from runyard.executors.local.process import running

_POLL_S = 0.1


class Exit:
    """Calls ``then`` once, soon after that very process has ended, or at once if it already has."""

    def __init__(self, pid: int, started: str, then: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._then = then
        self._pid = pid
        self._started = started
        self._timer: asyncio.TimerHandle | None = None
        self._close_source: Callable[[], None] | None = None
        source = self._open()
        if not running(pid, started):  # asked after the source was opened: no end falls between the two
            self._loop.call_soon(self._fire)
        elif source is None:
            self._poll()
        else:
            self._loop.add_reader(source, self._fire)

    def close(self) -> None:
        """Wait no more. Harmless if the end was seen."""
        if self._timer is not None:
            self._timer.cancel()
        if self._close_source is not None:
            self._close_source()
        self._close_source = None
        self._then = _nothing

    def _fire(self) -> None:
        then = self._then
        self.close()
        then()

    def _poll(self) -> None:
        if running(self._pid, self._started):
            self._timer = self._loop.call_later(_POLL_S, self._poll)
        else:
            self._fire()

    def _open(self) -> int | None:
        if hasattr(os, "pidfd_open"):
            try:
                handle = os.pidfd_open(self._pid)
            except OSError:  # it has ended, or the kernel is older than 5.3
                return None
            self._close_source = lambda: self._leave(handle)
            return handle
        return self._open_kqueue()

    def _open_kqueue(self) -> int | None:
        if sys.platform == "linux":
            return None
        queue = select.kqueue()
        event = select.kevent(
            self._pid,
            filter=select.KQ_FILTER_PROC,
            flags=select.KQ_EV_ADD | select.KQ_EV_ONESHOT,
            fflags=select.KQ_NOTE_EXIT,
        )
        try:
            queue.control([event], 0)
        except OSError:
            queue.close()
            return None

        def leave() -> None:
            self._loop.remove_reader(queue.fileno())
            queue.close()

        self._close_source = leave
        return queue.fileno()

    def _leave(self, handle: int) -> None:
        self._loop.remove_reader(handle)
        os.close(handle)


def _nothing() -> None:
    """What is called once nobody waits any more."""
