"""A log that stays where its agent put it.

An agent that writes to a bucket compares what the store says it has with what was sent, and names in its manifest
the segments that a log consists of (`StepRecord.parts`). Such a log is sealed by a look at the sizes: no byte of
it passes through a worker, whatever its length, and nothing is copied. To put it together in the store (a copy
part by part) was turned down: it moves all bytes once more for one key instead of a few, and wants parts of 5 MiB.

Where anything does not fit, or nothing was confirmed (a folder says nothing about its disk; a lost agent left no
manifest), the log is put together and read on the way, as in `runyard.records.compact`.
"""

from collections.abc import AsyncIterator, Iterator, Sequence

from runyard.dialogue import StepRecord
from runyard.records.segments import Segment
from runyard.store import paths
from runyard.store.base import ObjectStore


def lie_whole(segments: Sequence[Segment], record: StepRecord) -> bool:
    """Whether the segments that the record names are there, each with the size that it should have."""
    there = {segment.offset: segment.size for segment in segments}
    expected = list(_spans(record.parts, record.bytes))
    whole = record.parts[:1] == [0] and all(size > 0 for _, size in expected)
    return whole and all(there.get(offset) == size for offset, size in expected)


def keys(task_id: str, attempt: int, step: int, parts: Sequence[int]) -> list[str]:
    """The objects that a log consists of."""
    return [f"{paths.segments(task_id, attempt, step)}{offset:016d}" for offset in parts]


async def read_parts(
    store: ObjectStore, task_id: str, attempt: int, step: int, parts: Sequence[int], *, size: int, offset: int
) -> AsyncIterator[bytes]:
    """A log of ``size`` bytes from ``offset`` on. Raises NotFound."""
    places = zip(keys(task_id, attempt, step, parts), _spans(parts, size), strict=True)
    for key, (begin, length) in places:
        skip = max(0, offset - begin)
        if skip < length:
            async for chunk in store.get(key, offset=skip, length=length - skip):
                yield chunk


def _spans(parts: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each part of a log of so many bytes."""
    for begin, end in zip(parts, [*parts[1:], size], strict=True):
        yield begin, end - begin
