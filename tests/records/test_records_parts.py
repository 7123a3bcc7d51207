"""Logs that stay in the segments that the store has confirmed: sealed without a look inside, read as any other."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from agentlike import LOST, SUCCESS, TASK, record, write_segments
from chunks import whole
from cutting import ShuffledStore, dump, every_cut

from runyard.dialogue import Manifest
from runyard.records.logs import Seal, load_manifest, load_seal, seal
from runyard.records.reader import LogReader
from runyard.records.sharing import sweep
from runyard.store import paths
from runyard.store.base import ObjectStore

NewStore = Callable[[], Awaitable[ObjectStore]]
LINES = [b"line %03d\n" % n for n in range(30)]
LOG = b"".join(LINES)
PARTS = [0, 90, 198]
"""Of ten, twelve and eight lines; the first and the last came line by line, and were written once more as one."""


async def write_parts(store: ObjectStore, *, log: bytes = LOG, **more: object) -> Manifest:
    """As an agent leaves a log in a bucket: parts, and beside them the small segments that some are made of."""
    await write_segments(store, 0, [(n * 9, line) for n, line in enumerate(LINES) if not 10 <= n < 22])
    ends = [*PARTS[1:], len(LOG)]
    await write_segments(store, 0, [(begin, LOG[begin:end]) for begin, end in zip(PARTS, ends, strict=True)])
    manifest = Manifest(seal="complete", steps=[record(0, log, parts=PARTS, **more), record(1, b"")])
    await store.put(paths.manifest(TASK, 1), manifest.model_dump_json().encode())
    return manifest


async def seal_it(store: ObjectStore) -> Seal:
    return await seal(store, TASK, 1, manifest=await load_manifest(store, TASK, 1), end=SUCCESS)


async def names(store: ObjectStore) -> list[str]:
    prefix = paths.attempt(TASK, 1)
    return [info.key.removeprefix(prefix) async for info in store.list(prefix)]


class Watched(ShuffledStore):
    """Notes which objects are read."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner, seed=1)
        self.read: list[str] = []

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        self.read.append(key)
        async for chunk in super().get(key, offset=offset, length=length):
            yield chunk


@pytest.mark.promise(4)
async def test_it_is_sealed_without_a_byte_of_it_being_read(store: ObjectStore) -> None:
    await write_parts(store)
    watched = Watched(store)
    sealed = await seal_it(watched)
    assert {key.rpartition("/")[2] for key in watched.read} <= {"manifest.json", "seal.json"}
    assert (sealed.complete, sealed.end.log_complete, sealed.end.log_bytes) == (True, True, len(LOG))
    step = sealed.steps[0]
    assert (step.bytes, step.lines, step.parts) == (len(LOG), 30, PARTS)
    assert step.sha256 == hashlib.sha256(LOG).hexdigest()
    left = ["manifest.json", "seal.json", *(f"segments/0/{offset:016d}" for offset in PARTS)]
    assert await names(store) == left


async def test_it_is_read_from_any_place(store: ObjectStore) -> None:
    await write_parts(store)
    reader = LogReader(store, TASK, 1, poll_s=0.001)
    for _ in ("live", "sealed"):
        for offset in (0, 1, 89, 90, 91, 197, 198, len(LOG) - 1, len(LOG), len(LOG) + 5):
            assert await whole(reader.read(0, offset=offset)) == LOG[offset:]
        await seal_it(store)
    assert [text async for _, text in reader.lines(0)] == LOG.decode().splitlines()
    assert await reader.steps() == [0, 1]


@pytest.mark.promise(4)
@pytest.mark.parametrize("at", PARTS)
@pytest.mark.parametrize("what", ["gone", "short"])
async def test_a_part_that_is_not_what_it_was_is_a_gap(store: ObjectStore, at: int, what: str) -> None:
    """Then the log is put together of what there is; what small segments still have is not missing."""
    await write_parts(store)
    key = f"{paths.segments(TASK, 1, 0)}{at:016d}"
    if what == "gone":
        await store.delete(key)
    else:
        await store.put(key, LOG[at : at + 4])
    sealed = await seal_it(store)
    missing = {0: 9, 90: 108, 198: 9}[at] - (4 if what == "short" else 0)
    assert f"{missing} bytes are missing" in sealed.truncated
    assert not sealed.complete
    assert sealed.steps[0].parts == []
    text = await whole(LogReader(store, TASK, 1).read(0))
    assert hashlib.sha256(text).hexdigest() == sealed.steps[0].sha256
    assert b"bytes of this log are missing here" in text
    assert not [name for name in await names(store) if name.startswith("segments/")]


async def test_a_log_that_was_cut_stays_in_its_parts(store: ObjectStore) -> None:
    await write_parts(store, truncated="cap of 270 bytes")
    sealed = await seal_it(store)
    assert (sealed.complete, sealed.steps[0].parts) == (False, PARTS)
    assert sealed.truncated == "step 0: cap of 270 bytes"


@pytest.mark.parametrize(
    "parts", [[90, 198], [0, 198, 90], [0, 90, 90, 198], [0, 90, 198, 270], [0, 90, 198, 999]]
)
async def test_parts_that_make_no_log_are_not_believed(store: ObjectStore, parts: list[int]) -> None:
    manifest = await write_parts(store)
    wrong = manifest.steps[0].model_copy(update={"parts": parts})
    sealed = await seal(store, TASK, 1, manifest=manifest.model_copy(update={"steps": [wrong]}), end=SUCCESS)
    assert (sealed.complete, sealed.steps[0].parts) == (True, [])
    assert await whole(LogReader(store, TASK, 1).read(0)) == LOG


@pytest.mark.promise(9)
async def test_whoever_dies_while_sealing_changes_nothing(new_store: NewStore) -> None:
    async def prepared() -> ObjectStore:
        store = await new_store()
        await write_parts(store)
        return store

    async def check(store: ObjectStore) -> None:
        sealed = await load_seal(store, TASK, 1)
        assert sealed is not None
        assert (sealed.complete, sealed.steps[0].parts) == (True, PARTS)
        assert await whole(LogReader(store, TASK, 1).read(0)) == LOG
        assert len(await names(store)) == 5

    assert await every_cut(prepared, seal_it, check) > 20


@pytest.mark.parametrize("seed", range(20))
async def test_several_workers_and_a_reader_at_the_same_time(store: ObjectStore, seed: int) -> None:
    """One of the workers takes the agent for lost: whichever seal is first is true, and the reader gets all."""
    manifest = await write_parts(store)
    stores = [ShuffledStore(store, seed=seed * 10 + n) for n in range(3)]
    following = asyncio.create_task(whole(LogReader(stores[0], TASK, 1, poll_s=0.001).follow(0)))
    first, second = await asyncio.gather(
        seal(stores[1], TASK, 1, manifest=manifest, end=SUCCESS),
        seal(stores[2], TASK, 1, manifest=None, end=LOST),
    )
    assert first == second == await load_seal(store, TASK, 1)
    assert await following == LOG
    assert await whole(LogReader(store, TASK, 1).read(0)) == LOG


@pytest.mark.promise(4)
async def test_a_reader_of_small_segments_goes_on_in_what_they_became(store: ObjectStore) -> None:
    """It is in the middle of them when they are written once more, and behind the first when they are deleted."""
    await write_segments(store, 0, [(n * 9, line) for n, line in enumerate(LINES[:5])])
    following = LogReader(store, TASK, 1, poll_s=0.001).follow(0)
    given = await anext(following)
    await write_parts(store)
    await seal_it(store)
    assert given + await whole(following) == LOG


async def test_the_cleanup_takes_the_parts_with_the_rest(store: ObjectStore) -> None:
    await write_parts(store)
    await seal_it(store)
    (deleted,) = (await sweep(store, [paths.log_item(TASK)])).values()
    assert (deleted.objects, await dump(store)) == (5, {})
