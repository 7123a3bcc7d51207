"""A task's setup log: what happened around its steps, in plain words, as it happens.

Each call writes one object, so that several workers may write to one log and nothing is lost with any of them.
Its name begins with the time, so that the list of the objects is the log in its order.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from runyard.errors import Conflict
from runyard.store import paths
from runyard.store.base import ObjectStore


def now() -> datetime:
    return datetime.now(UTC)


class SetupLog:
    """Appends to the setup log of one attempt of a task, until it is sealed."""

    def __init__(
        self, store: ObjectStore, task_id: str, attempt: int, *, clock: Callable[[], datetime] = now
    ) -> None:
        self._store = store
        self._prefix = paths.segments(task_id, attempt, paths.SETUP)
        self._clock = clock
        self._number = 0
        self._last_ms = 0

    async def say(self, *texts: str) -> None:
        """Add these texts, each on a line of its own with the time (UTC) before it; empty ones are left out.

        Further lines of a text are indented. Raises what the store raises.
        """
        at = self._clock()
        data = stamp(at, texts).encode(errors="replace")
        if not data:
            return
        self._last_ms = max(self._last_ms, int(at.timestamp() * 1000))  # in order also when the clock is set back
        while True:
            name = f"{self._last_ms:013d}-{self._number:04d}"
            self._number += 1
            try:
                await self._store.put(self._prefix + name, data, if_absent=True)
            except Conflict:  # another worker, in the same millisecond
                continue
            return


def stamp(at: datetime, texts: Iterable[str]) -> str:
    """Lines of a setup log: each text with the time before it."""
    time = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return "".join(f"{time} " + "\n  ".join(text.strip().splitlines()) + "\n" for text in texts if text.strip())
