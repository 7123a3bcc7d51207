"""Reading logs, of tasks that run, have ended, or have not begun: all from the store.

A reader does not care which: it takes segments while the task runs and goes over to what the seal names. Both are
the same bytes as far as segments reach without a gap, so a position in one is a position in the other; at a gap a
reader waits for the seal, whose log marks it. Watching the store for news was turned down: only some stores can,
and a poll of one listing after the last segment read costs next to nothing.
"""

import asyncio
import codecs
from collections.abc import AsyncIterator, Iterator

from runyard.errors import NotFound
from runyard.records.compact import lines_not_in
from runyard.records.logs import Seal, load_seal
from runyard.records.parts import read_parts
from runyard.records.segments import Log, Segment, list_segments
from runyard.store import paths
from runyard.store.base import ObjectStore

POLL_S = 0.2
QUIET_POLL_S = 1.0
_QUIET_ROUNDS = 25
"""After so many polls without news they get rarer."""

MAX_LINE = 1 << 20
"""Longer lines, in characters, are given in pieces of this length."""


class LogReader:
    """Reads the logs of one attempt of a task. A log is a step's number or `paths.SETUP`."""

    def __init__(self, store: ObjectStore, task_id: str, attempt: int, *, poll_s: float = POLL_S) -> None:
        self._store = store
        self._task_id = task_id
        self._attempt = attempt
        self._poll_s = poll_s

    async def steps(self) -> list[Log]:
        """Which logs there are now: the setup log first, then the steps by number."""
        found: set[Log] = set()
        after = ""
        while await self._seal() is None:  # one look for each log, not through all its segments
            async for segment in list_segments(self._store, self._task_id, self._attempt, start_after=after):
                found.add(segment.log)
                after = segment.beyond
                break
            else:
                break
        seal = await self._seal()
        return _logs(seal) if seal else sorted(found, key=_order)

    async def read(self, log: Log, *, offset: int = 0) -> AsyncIterator[bytes]:
        """A log from ``offset`` in bytes, as far as it is there now.

        Raises NotFound for a step that a sealed task does not have; a task that runs may yet get to it.
        """
        live = _Live(self._store, self._task_id, self._attempt, log=log, offset=offset)
        seal = await self._seal()
        if seal is None:
            async for _, chunk in live.news():
                yield chunk
            seal = await self._seal()  # it may have been sealed under our hands
        if seal is not None:
            if log not in (paths.SETUP, *(step.n for step in seal.steps)):
                raise NotFound(f"attempt {self._attempt} of task {self._task_id} has no step {log} with a log")
            async for chunk in self._rest(seal, log, live):
                yield chunk

    async def follow(self, log: Log, *, offset: int = 0) -> AsyncIterator[bytes]:
        """The same, and what is written from now on, until the task is sealed. Waits for one not begun yet."""
        live = _Live(self._store, self._task_id, self._attempt, log=log, offset=offset)
        async for _, chunk in self._follow(live, [log]):
            yield chunk

    async def lines(self, log: Log | None = None, *, follow: bool = False) -> AsyncIterator[tuple[Log, str]]:
        """Lines as text without their ends, each with its log; of all logs, or of one.

        What is not UTF-8 comes as replacement characters. When all logs are followed, lines come as they are
        written; otherwise log by log, the setup log first.
        """
        lines = _Lines()
        async for which, chunk in self._chunks(log, follow=follow):
            for line in lines.add(which, chunk):
                yield which, line
        for which, line in lines.rest():
            yield which, line

    async def _chunks(self, log: Log | None, *, follow: bool) -> AsyncIterator[tuple[Log, bytes]]:
        if follow:
            live = _Live(self._store, self._task_id, self._attempt, log=log)
            async for which, chunk in self._follow(live, None if log is None else [log]):
                yield which, chunk
            return
        for which in await self.steps() if log is None else [log]:
            async for chunk in self.read(which):
                yield which, chunk

    async def _follow(self, live: "_Live", logs: list[Log] | None) -> AsyncIterator[tuple[Log, bytes]]:
        quiet, seal = 0, None
        while seal is None:
            quiet += 1
            async for log, chunk in live.news():
                quiet = 0
                yield log, chunk
            if quiet and (seal := await self._seal()) is None:
                await asyncio.sleep(self._poll_s if quiet < _QUIET_ROUNDS else max(self._poll_s, QUIET_POLL_S))
            elif not quiet:
                await asyncio.sleep(self._poll_s)
        for log in _logs(seal) if logs is None else logs:
            async for chunk in self._rest(seal, log, live):
                yield log, chunk

    async def _rest(self, seal: Seal, log: Log, live: "_Live") -> AsyncIterator[bytes]:
        """What the sealed log has behind what was given of the segments."""
        sizes: dict[Log, int] = {paths.SETUP: seal.setup.bytes, **{step.n: step.bytes for step in seal.steps}}
        begin = live.offset if log == paths.SETUP else live.position(log)
        if begin >= sizes.get(log, 0):
            return
        if log == paths.SETUP and seal.setup.text:
            yield _not_given(seal.setup.text.encode()[begin:], bytes(live.setup))
            return
        chunks = self._sealed(seal, log, begin)
        if log == paths.SETUP:
            yield _not_given(b"".join([chunk async for chunk in chunks]), bytes(live.setup))
            return
        async for chunk in chunks:
            yield chunk

    def _sealed(self, seal: Seal, log: Log, begin: int) -> AsyncIterator[bytes]:
        for step in seal.steps:
            if step.n == log and step.parts:
                where = self._task_id, self._attempt, step.n, step.parts
                return read_parts(self._store, *where, size=step.bytes, offset=begin)
        return self._store.get(paths.step_log(self._task_id, self._attempt, log), offset=begin)

    async def _seal(self) -> Seal | None:
        return await load_seal(self._store, self._task_id, self._attempt)


class _Live:
    """How far the segments of a task, or of one of its logs, have been read."""

    def __init__(
        self, store: ObjectStore, task_id: str, attempt: int, *, log: Log | None, offset: int = 0
    ) -> None:
        self._store = store
        self._task_id = task_id
        self._attempt = attempt
        self._log = log
        self._ends: dict[Log, int] = {}
        self._last: dict[Log, str] = {}
        self.offset = offset
        self.setup = bytearray()  # what was given of the setup log

    def position(self, log: Log) -> int:
        """Bytes of a log that have been given, or were not wanted."""
        return max(self._ends.get(log, 0), self.offset)

    async def news(self) -> AsyncIterator[tuple[Log, bytes]]:
        """What is there and has not been given, log by log."""
        after: str | None = self._last.get(self._log, "") if self._log is not None else ""
        while after is not None:
            start, after = after, None
            segments = list_segments(self._store, self._task_id, self._attempt, log=self._log, start_after=start)
            async for segment in segments:
                last = self._last.get(segment.log, "")
                if segment.key <= last:
                    after = last  # all read up to there: look on behind it
                    break
                async for chunk in self._take(segment):
                    yield segment.log, chunk
                if self._last.get(segment.log) != segment.key:
                    after = segment.beyond  # a gap: the other logs go on
                    break

    async def _take(self, segment: Segment) -> AsyncIterator[bytes]:
        """What of a segment is new. One behind a gap, or deleted meanwhile, is not taken."""
        at = self._ends.get(segment.log, 0)
        begin = at if segment.offset is None else segment.offset
        if begin > at:
            return
        end = begin + segment.size
        at = max(at, min(end, self.offset))
        try:
            if at < end:
                async for chunk in self._store.get(segment.key, offset=at - begin):
                    at += len(chunk)
                    self._ends[segment.log] = at
                    if segment.log == paths.SETUP:
                        self.setup += chunk
                    yield chunk
        except NotFound:
            return
        self._ends[segment.log] = at
        self._last[segment.log] = segment.key


class _Lines:
    """Cuts chunks of several logs into lines of text."""

    def __init__(self) -> None:
        self._decoders: dict[Log, codecs.IncrementalDecoder] = {}
        self._open: dict[Log, str] = {}

    def add(self, log: Log, chunk: bytes) -> Iterator[str]:
        if log not in self._decoders:
            self._decoders[log] = codecs.getincrementaldecoder("utf-8")(errors="replace")
        text = self._open.pop(log, "") + self._decoders[log].decode(chunk)
        *lines, rest = text.split("\n")
        for line in lines:
            yield from _pieces(line)
        while len(rest) > MAX_LINE:
            yield rest[:MAX_LINE]
            rest = rest[MAX_LINE:]
        self._open[log] = rest

    def rest(self) -> Iterator[tuple[Log, str]]:
        """Last lines without their end."""
        for log in sorted(self._open, key=_order):
            line = self._open[log] + self._decoders[log].decode(b"", final=True)
            if line:
                yield log, line


def _pieces(line: str) -> Iterator[str]:
    yield line[:MAX_LINE]
    for at in range(MAX_LINE, len(line), MAX_LINE):
        yield line[at : at + MAX_LINE]


def _not_given(whole: bytes, given: bytes) -> bytes:
    """The rest of a setup log. Workers whose clocks differ may have put lines before those that were given."""
    if whole.startswith(given):
        return whole[len(given) :]
    return lines_not_in(given, whole)


def _logs(seal: Seal) -> list[Log]:
    setup: list[Log] = [paths.SETUP] if seal.setup.bytes else []
    return [*setup, *(step.n for step in seal.steps)]


def _order(log: Log) -> int:
    return log if isinstance(log, int) else -1
