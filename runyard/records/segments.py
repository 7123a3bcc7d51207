"""The segments of a running task's logs, as the agent and the workers leave them.

A step's segment is named by the offset of its first byte in the step's log; a setup segment by its time. Names of
any other form are not ours (a writer's unfinished file, say) and are passed over.
"""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from runyard.store import paths
from runyard.store.base import ObjectStore

Log = int | str
"""Which log of a task: the number of a step, or `paths.SETUP`."""

_STEP = re.compile(r"(\d{1,6})/(\d{16})")
_SETUP = re.compile(r"setup/(\d{13}-\d{4,})")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """``offset`` of its first byte, None in a setup log; ``size`` in bytes."""

    log: Log
    key: str
    offset: int | None
    size: int

    @property
    def beyond(self) -> str:
        """A key behind all segments of this one's log, and before those of the next."""
        return self.key.rpartition("/")[0] + "/\U0010ffff"


async def list_segments(
    store: ObjectStore, task_id: str, attempt: int, *, log: Log | None = None, start_after: str = ""
) -> AsyncIterator[Segment]:
    """Those of one log, or of all: logs in the order of their names as text, each by its offset."""
    whole = f"{paths.attempt(task_id, attempt)}segments/"
    prefix = whole if log is None else paths.segments(task_id, attempt, log)
    async for info in store.list(prefix, start_after=start_after):
        name = info.key[len(whole) :]
        if found := _STEP.fullmatch(name):
            yield Segment(log=int(found[1]), key=info.key, offset=int(found[2]), size=info.size)
        elif _SETUP.fullmatch(name):
            yield Segment(log=paths.SETUP, key=info.key, offset=None, size=info.size)
