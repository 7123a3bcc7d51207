"""Many segments to one log, streaming; what is missing is marked where it is missing.

That is for logs of which nobody knows yet what the store has: others stay as they are (`runyard.records.parts`).

The log of a step is written once, by whoever comes first, and never again: so what a seal says of it stays true,
however many workers seal at the same time, and one that finds segments already deleted cannot write its gaps over
a log that is whole. (Overwriting "since all write the same" was turned down for exactly that case.)
"""

from collections.abc import AsyncIterator, Sequence

from runyard.dialogue import StepRecord
from runyard.errors import Conflict, NotFound
from runyard.model import Model
from runyard.records.digest import Digest, digest
from runyard.records.parts import lie_whole
from runyard.records.segments import Segment
from runyard.store.base import ObjectStore, read

_SMALL = 256 << 10
"""Logs up to this size, in bytes, are put together in memory: one write without a spool."""


class Compacted(Model):
    """A log as it lies in the store. ``truncated`` says why it is not whole; empty = it is."""

    bytes: int = 0
    lines: int = 0
    sha256: str
    truncated: str = ""
    last_line: str = ""
    parts: list[int] = []


async def compact_step(
    store: ObjectStore, key: str, segments: Sequence[Segment], record: StepRecord | None, *, unconfirmed: str
) -> Compacted:
    """Write a step's log to ``key``, unless it is there. A log without a byte is not written at all.

    ``record`` is what the agent says of it; without one, ``unconfirmed`` is why the log may lack its end. A log
    whose parts the store has confirmed stays in them.
    """
    if record is not None and record.parts and lie_whole(segments, record):
        return Compacted(**record.model_dump(include=set(Compacted.model_fields)))
    stream = _Stream(store, segments, record)
    try:
        if sum(segment.size for segment in segments) <= _SMALL:
            whole = b"".join([chunk async for chunk in stream.chunks()])
            if whole:
                await store.put(key, whole, if_absent=True)
        else:
            await store.put(key, stream.chunks(), if_absent=True)
    except Conflict:
        return await _adopt(store, key, _Stream(store, segments, record), record, unconfirmed)
    return _compacted(stream.written, stream.truncated(unconfirmed))


async def read_lines(store: ObjectStore, segments: Sequence[Segment]) -> bytes:
    """What was said in the setup log so far."""
    parts = []
    for segment in segments:
        try:
            parts.append(await read(store, segment.key))
        except NotFound:  # another worker has sealed and deletes
            continue
    return b"".join(parts)


async def compact_setup(store: ObjectStore, key: str, lines: bytes, last: bytes = b"") -> Compacted:
    """Write the setup log, ``last`` at its end. To one that is there only lines that it lacks are added."""
    whole = lines + last
    if whole:
        try:
            await store.put(key, whole, if_absent=True)
        except Conflict:  # of a worker that was killed before its seal, or is about to write it
            there = await read(store, key)
            whole = whole if whole.startswith(there) else there + lines_not_in(there, lines)
            if whole != there:
                await store.put(key, whole)
    found = Digest()
    await found.add(whole)
    return _compacted(found, "")


def lines_not_in(there: bytes, lines: bytes) -> bytes:
    """Those of ``lines`` that ``there`` lacks, in their order. Setup lines have a time and so are unique."""
    known = set(there.splitlines())
    return b"".join(line for line in lines.splitlines(keepends=True) if line.rstrip(b"\n") not in known)


class _Stream:
    """The bytes of a step's log, with a marker where segments are missing, and what was found on the way."""

    def __init__(self, store: ObjectStore, segments: Sequence[Segment], record: StepRecord | None) -> None:
        self._store = store
        self._segments = segments
        self._record = record
        self._source = Digest()  # what the agent wrote
        self.written = self._source  # the same with our markers; one hash does for both until there is a marker
        self._missing = 0
        self._gap_at = -1

    async def chunks(self) -> AsyncIterator[bytes]:
        at = 0
        for segment in self._segments:
            begin = segment.offset or 0
            if begin + segment.size <= at:
                continue
            if begin > at:
                yield await self._gap(at, begin)
                at = begin
            try:
                async for chunk in self._store.get(segment.key, offset=at - begin):
                    at += len(chunk)
                    await self._source.add(chunk)
                    if self.written is not self._source:
                        await self.written.add(chunk)
                    yield chunk
            except NotFound:  # the next segment, or the end, shows what is missing
                continue
        if self._record is not None and self._record.bytes > at:
            yield await self._gap(at, self._record.bytes)

    async def _gap(self, at: int, end: int) -> bytes:
        if self._gap_at < 0:
            self._gap_at = at
        self._missing += end - at
        if self.written is self._source:
            self.written = self._source.copy()
        newline = "" if self.written.ends_line else "\n"
        marker = f"{newline}[runyard: {end - at} bytes of this log are missing here]\n".encode()
        await self.written.add(marker)
        return marker

    def truncated(self, unconfirmed: str) -> str:
        """Why the log is not whole; empty when it is what the agent says it wrote."""
        if self._missing:
            return f"{self._missing} bytes are missing, the first at byte {self._gap_at}"
        if self._record is None:
            return unconfirmed
        if (self._source.bytes, self._source.sha256) != (self._record.bytes, self._record.sha256):
            return (
                f"{self._source.bytes} bytes are in the store that are not what the agent wrote (size or digest)"
            )
        return self._record.truncated


async def _adopt(
    store: ObjectStore, key: str, stream: _Stream, record: StepRecord | None, unconfirmed: str
) -> Compacted:
    """The log was there: say of it what is true of it."""
    found = await digest(store.get(key))
    if record is not None and found.sha256 == record.sha256:
        return _compacted(found, record.truncated)
    async for _ in stream.chunks():
        pass
    same = stream.written.sha256 == found.sha256
    return _compacted(
        found, stream.truncated(unconfirmed) if same else "it was cut short when it was put together"
    )


def _compacted(found: Digest, truncated: str) -> Compacted:
    return Compacted(
        bytes=found.bytes,
        lines=found.lines,
        sha256=found.sha256,
        truncated=truncated,
        last_line=found.last_line,
    )
