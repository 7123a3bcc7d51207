"""Sealing: what was written is what is kept, what is missing is marked, whoever dies in between."""

import asyncio
import hashlib
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from agentlike import LOST, SUCCESS, TASK, pieces, record, write_attempt, write_segments
from cutting import CuttingStore, Killed, ShuffledStore, dump, every_cut

from runyard.dialogue import Manifest
from runyard.errors import Corrupt, StoreUnavailable
from runyard.reasons import Reason
from runyard.records.logs import Seal, load_manifest, load_seal, seal
from runyard.records.setup import SetupLog
from runyard.spec.run import TaskEnd
from runyard.store import paths
from runyard.store.base import ObjectStore, read
from runyard.store.posix import PosixStore

NewStore = Callable[[], Awaitable[ObjectStore]]
LOGS = (b"first line\nsecond line\n", b"", b"no newline at the end, and longer than a segment")


async def seal_it(store: ObjectStore, *, end: TaskEnd = SUCCESS, setup: Sequence[str] = ()) -> Seal:
    """What fetch does, from whatever is there."""
    return await seal(store, TASK, 1, manifest=await load_manifest(store, TASK, 1), end=end, setup=setup)


async def log_of(store: ObjectStore, step: int) -> bytes:
    return await read(store, paths.step_log(TASK, 1, step))


@pytest.mark.promise(4)
async def test_a_sealed_log_is_what_was_written(store: ObjectStore) -> None:
    await SetupLog(store, TASK, 1).say("scheduled")
    await write_attempt(store, *LOGS)
    sealed = await seal_it(store)
    assert sealed.complete
    assert not sealed.truncated
    assert sealed.outputs == {"VERSION": "1.2"}
    assert sealed.notes == ["x"]
    for step, log in zip(sealed.steps, LOGS, strict=True):
        assert (step.bytes, step.sha256, step.complete) == (len(log), hashlib.sha256(log).hexdigest(), True)
    assert [step.lines for step in sealed.steps] == [2, 0, 1]
    assert await log_of(store, 0) == LOGS[0]
    assert await log_of(store, 2) == LOGS[2]
    assert sealed.end.log_bytes == sum(map(len, LOGS))
    assert sealed.end.log_complete
    assert sealed.end.last_line == LOGS[2].decode()
    assert sealed.setup.lines == 1
    assert sealed.setup.bytes == len(await read(store, paths.step_log(TASK, 1, "setup")))
    assert await load_seal(store, TASK, 1) == sealed
    prefix = paths.attempt(TASK, 1)
    kept = ["manifest.json", "seal.json", "setup.log", "started", "steps/0.log", "steps/2.log"]
    assert [info.key async for info in store.list(prefix)] == [prefix + name for name in kept]


async def test_a_second_call_returns_the_first_seal(store: ObjectStore) -> None:
    await write_attempt(store, *LOGS)
    first = await seal_it(store)
    before = await dump(store)
    assert await seal(store, TASK, 1, manifest=None, end=LOST) == first
    assert await dump(store) == before


@pytest.mark.promise(4)
@pytest.mark.parametrize("missing", [[0], [1], [4], [0, 1], [1, 3], [0, 1, 2, 3, 4]])
async def test_a_missing_segment_is_a_gap_that_is_marked_at_its_place(
    store: ObjectStore, missing: list[int]
) -> None:
    log = b"".join(b"line %03d\n" % n for n in range(5))
    await write_attempt(store, log, size=9)
    for n in missing:
        await store.delete(f"{paths.segments(TASK, 1, 0)}{n * 9:016d}")
    sealed = await seal_it(store)
    text = (await log_of(store, 0)).decode()
    assert not sealed.complete
    assert not sealed.end.log_complete
    assert sealed.end.status == "success"  # a log never makes a success a failure
    assert f"{9 * len(missing)} bytes are missing, the first at byte {9 * missing[0]}" in sealed.truncated
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("line")] == [
        f"line {n:03d}" for n in range(5) if n not in missing
    ]
    runs = sum(1 for n in missing if n - 1 not in missing)
    assert sum("bytes of this log are missing here" in line for line in lines) == runs
    assert lines[missing[0]].startswith("[runyard: ")
    step = sealed.steps[0]
    assert (step.bytes, step.sha256) == (len(text.encode()), hashlib.sha256(text.encode()).hexdigest())
    assert step.lines == len(lines)


async def test_a_gap_in_the_middle_of_a_line_begins_a_line_of_its_own(store: ObjectStore) -> None:
    await write_attempt(store, b"0123456789abcdefghij", size=5)
    await store.delete(f"{paths.segments(TASK, 1, 0)}{5:016d}")
    await seal_it(store)
    assert await log_of(store, 0) == b"01234\n[runyard: 5 bytes of this log are missing here]\nabcdefghij"


@pytest.mark.promise(4)
async def test_a_short_segment_is_a_gap(store: ObjectStore) -> None:
    await write_attempt(store, b"0123456789" * 3, size=10)
    await store.put(f"{paths.segments(TASK, 1, 0)}{10:016d}", b"0123")
    sealed = await seal_it(store)
    assert "6 bytes are missing, the first at byte 14" in sealed.truncated


@pytest.mark.promise(4)
async def test_changed_bytes_are_found_by_the_digest(store: ObjectStore) -> None:
    await write_attempt(store, b"0123456789" * 3, size=10)
    await store.put(f"{paths.segments(TASK, 1, 0)}{10:016d}", b"0123456x89")
    sealed = await seal_it(store)
    assert "not what the agent wrote" in sealed.steps[0].truncated
    assert not sealed.complete


async def test_more_bytes_than_the_manifest_says_are_kept_and_told(store: ObjectStore) -> None:
    manifest = await write_attempt(store, b"0123456789")
    await write_segments(store, 0, [(10, b"more")])
    await write_segments(store, 7, [(0, b"of a step that nobody named\n")])
    sealed = await seal(store, TASK, 1, manifest=manifest, end=SUCCESS)
    assert await log_of(store, 0) == b"0123456789more"
    assert await log_of(store, 7) == b"of a step that nobody named\n"
    assert "14 bytes" in sealed.steps[0].truncated
    assert "does not name" in sealed.steps[1].truncated


async def test_overlapping_segments_give_each_byte_once(store: ObjectStore) -> None:
    log = b"0123456789abcdefghij"
    manifest = Manifest(seal="complete", steps=[record(0, log)])
    await write_segments(store, 0, [(0, log[:8]), (3, log[3:6]), (5, log[5:12]), (8, log[8:])])
    sealed = await seal(store, TASK, 1, manifest=manifest, end=SUCCESS)
    assert sealed.complete
    assert await log_of(store, 0) == log


@pytest.mark.promise(3)
async def test_without_a_manifest_what_is_there_is_kept_and_the_reason_told(store: ObjectStore) -> None:
    await SetupLog(store, TASK, 1).say("scheduled")
    for step in (0, 2, 10):
        await write_segments(store, step, pieces(b"log of step %d\n" % step, 4))
    assert await load_manifest(store, TASK, 1) is None
    sealed = await seal_it(store, end=LOST)
    assert [step.n for step in sealed.steps] == [0, 2, 10]
    assert all(step.truncated == "the agent left no manifest: the pod is gone" for step in sealed.steps)
    assert sealed.steps[2].exit_code is None
    assert await log_of(store, 10) == b"log of step 10\n"
    assert sealed.end.last_line == "log of step 10"
    assert sealed.end.reason is Reason.LOST


async def test_a_task_that_never_began_has_a_whole_log_of_nothing(store: ObjectStore) -> None:
    end = TaskEnd(status="failed", reason=Reason.CONFIG_ERROR, began=False)
    sealed = await seal_it(store, end=end)
    assert sealed.complete
    assert sealed.end == end
    begun = await seal(store, TASK, 2, manifest=None, end=end.model_copy(update={"began": True}))
    assert not begun.complete


async def test_a_truncated_manifest_and_a_cap(store: ObjectStore) -> None:
    capped = record(0, b"capped\n", truncated="cap of 7 bytes")
    await write_segments(store, 0, [(0, b"capped\n")])
    sealed = await seal(store, TASK, 1, manifest=Manifest(seal="complete", steps=[capped]), end=SUCCESS)
    assert sealed.truncated == "step 0: cap of 7 bytes"
    cut = Manifest(seal="truncated", reason="main died")
    assert (await seal(store, TASK, 2, manifest=cut, end=LOST)).truncated == "main died"


async def test_an_unreadable_manifest_says_so(store: ObjectStore) -> None:
    await store.put(paths.manifest(TASK, 1), b'{"seal": "maybe"}')
    manifest = await load_manifest(store, TASK, 1)
    assert manifest is not None
    assert manifest.seal == "truncated"
    assert "cannot be read" in manifest.reason


async def test_an_unreadable_seal_is_corrupt(store: ObjectStore) -> None:
    await store.put(paths.seal(TASK, 1), b"{")
    with pytest.raises(Corrupt):
        await load_seal(store, TASK, 1)


async def test_unfinished_files_of_agents_are_passed_over(store: ObjectStore) -> None:
    await write_attempt(store, b"log\n")
    await store.put(f"{paths.segments(TASK, 1, 0)}0000000000000004.part", b"garbage")
    assert (await seal_it(store)).complete
    assert await log_of(store, 0) == b"log\n"


async def test_attempts_do_not_touch_each_other(store: ObjectStore) -> None:
    await write_attempt(store, b"one\n", attempt=1)
    await write_attempt(store, b"ten\n", attempt=10)
    await seal_it(store)
    assert await read(store, f"{paths.segments(TASK, 10, 0)}{0:016d}") == b"ten\n"
    assert await load_seal(store, TASK, 10) is None


# whoever dies


async def prepared(new_store: NewStore) -> ObjectStore:
    store = await new_store()
    await SetupLog(store, TASK, 1).say("scheduled")
    await SetupLog(store, TASK, 1).say("pulled", "started")
    await write_attempt(store, *LOGS, size=30)
    return store


def without_time(seal: Seal) -> Seal:
    return seal.model_copy(update={"sealed_at": SUCCESS.ended_at, "setup": None})


@pytest.mark.promise(3)
@pytest.mark.promise(4)
@pytest.mark.parametrize("error", [Killed, StoreUnavailable])
async def test_cut_at_every_call_and_repeated_the_result_is_the_same(
    new_store: NewStore, error: type[BaseException]
) -> None:
    whole = await prepared(new_store)
    want = without_time(await seal_it(whole))
    names = set(await dump(whole))

    async def make() -> ObjectStore:
        return await prepared(new_store)

    async def check(store: ObjectStore) -> None:
        kept = await load_seal(store, TASK, 1)
        assert kept is not None
        assert without_time(kept) == want
        assert kept.setup.lines == 3
        assert kept.setup.bytes == len(await read(store, paths.step_log(TASK, 1, "setup")))
        assert await log_of(store, 0) == LOGS[0]
        assert await log_of(store, 2) == LOGS[2]
        assert set(await dump(store)) == names

    cuts = await every_cut(make, seal_it, check, error=error)
    assert cuts >= 2 * 15  # list, reads, two logs, setup, seal, deletes


@pytest.mark.promise(4)
async def test_the_same_for_a_log_with_a_gap(new_store: NewStore) -> None:
    async def make() -> ObjectStore:
        store = await prepared(new_store)
        await store.delete(f"{paths.segments(TASK, 1, 2)}{0:016d}")
        return store

    want = without_time(await seal_it(await make()))
    assert "missing" in want.truncated

    async def check(store: ObjectStore) -> None:
        kept = await load_seal(store, TASK, 1)
        assert kept is not None
        assert without_time(kept) == want

    await every_cut(make, seal_it, check)


@pytest.mark.promise(4)
@pytest.mark.parametrize("seed", range(25))
async def test_several_workers_seal_at_a_time(new_store: NewStore, seed: int) -> None:
    """Whatever their order, one seal holds, it is everybody's, and it is true."""
    store = await prepared(new_store)

    async def work(number: int) -> Seal:
        return await seal_it(ShuffledStore(store, seed=seed * 10 + number))

    seals = await asyncio.gather(*(work(number) for number in range(4)))
    assert all(each == seals[0] for each in seals)
    assert seals[0].complete
    assert await log_of(store, 0) == LOGS[0]
    assert await log_of(store, 2) == LOGS[2]
    assert seals[0].setup.lines == 3
    assert [info.key async for info in store.list(f"{paths.attempt(TASK, 1)}segments/")] == []


@pytest.mark.promise(4)
@pytest.mark.parametrize("left", [[], [0], [1, 2]])
async def test_a_worker_that_finds_the_segments_going_does_not_spoil_the_log(
    store: ObjectStore, left: list[int]
) -> None:
    """It looked for a seal before there was one; then another sealed, and deleted most of what it would read."""
    manifest = await write_attempt(store, *LOGS, size=5)
    first = await seal(store, TASK, 1, manifest=manifest, end=SUCCESS)
    await store.delete(paths.seal(TASK, 1))
    await write_segments(store, 0, [(n * 5, LOGS[0][n * 5 : n * 5 + 5]) for n in left])
    late = await seal(store, TASK, 1, manifest=manifest, end=SUCCESS)
    assert late.steps == first.steps
    assert late.complete
    assert await log_of(store, 0) == LOGS[0]
    assert await log_of(store, 2) == LOGS[2]


async def test_setup_lines_that_come_after_a_crash_are_kept(store: ObjectStore) -> None:
    """Killed between the setup log and the seal: the next worker's lines go behind those that are there."""
    await SetupLog(store, TASK, 1).say("scheduled")
    await write_attempt(store, b"log\n")
    cutting = CuttingStore(store, at=6)
    with pytest.raises(Killed):
        await seal(cutting, TASK, 1, manifest=await load_manifest(store, TASK, 1), end=SUCCESS)
    assert cutting.names == {"list": 1, "get": 3, "put": 3}  # the third is the seal
    assert await read(store, paths.step_log(TASK, 1, "setup"))
    await SetupLog(store, TASK, 1).say("said by the next worker")
    sealed = await seal_it(store)
    text = await read(store, paths.step_log(TASK, 1, "setup"))
    assert [line.split(b" ", 1)[1] for line in text.splitlines()] == [b"scheduled", b"said by the next worker"]
    assert (sealed.setup.lines, sealed.setup.bytes) == (2, len(text))


async def test_lines_of_the_end_come_after_the_setup_log(store: ObjectStore) -> None:
    await SetupLog(store, TASK, 1).say("scheduled")
    sealed = await seal_it(store, setup=["step 1 failed", "", "see its log"])
    text = (await read(store, paths.step_log(TASK, 1, "setup"))).decode()
    assert [line.split(" ", 1)[1] for line in text.splitlines()] == ["scheduled", "step 1 failed", "see its log"]
    assert (sealed.setup.lines, sealed.setup.bytes, sealed.setup.text) == (3, len(text), "")


async def test_a_short_setup_log_is_in_the_seal_and_a_long_one_is_not(store: ObjectStore) -> None:
    short = await seal_it(store, setup=["odd \ud800 é"])
    assert short.setup.text.endswith("Z odd ? é\n")
    assert (short.setup.bytes, short.setup.lines) == (len(short.setup.text.encode()), 1)
    assert await load_seal(store, TASK, 1) == short
    long = await seal(store, TASK, 2, manifest=None, end=SUCCESS, setup=["x" * 5000])
    assert long.setup.text == ""
    assert long.setup.bytes == len(await read(store, paths.step_log(TASK, 2, "setup"))) > 5000


async def test_lines_that_come_between_a_killed_worker_and_the_next_are_kept(store: ObjectStore) -> None:
    """As above, but the killed one had written its last words too: they stay, and nothing is said twice."""
    await SetupLog(store, TASK, 1).say("scheduled")
    cutting = CuttingStore(store, at=4)
    with pytest.raises(Killed):
        await seal(cutting, TASK, 1, manifest=None, end=LOST, setup=["the pod is gone"])
    assert cutting.names == {"list": 1, "get": 2, "put": 2}
    await SetupLog(store, TASK, 1).say("adopted")
    await seal(store, TASK, 1, manifest=None, end=LOST, setup=["the pod is gone"])
    text = (await read(store, paths.step_log(TASK, 1, "setup"))).decode()
    assert [line.split(" ", 1)[1] for line in text.splitlines()] == ["scheduled", "the pod is gone", "adopted"]


async def test_a_tiny_task_costs_few_calls(new_store: NewStore) -> None:
    store = await new_store()
    await SetupLog(store, TASK, 1).say("scheduled")
    manifest = await write_attempt(store, b"", b"")
    counting = CuttingStore(store)
    await seal(counting, TASK, 1, manifest=manifest, end=SUCCESS)
    # list the segments, look for a seal, read a setup line; write setup log and seal, delete the segment
    assert counting.names == {"list": 1, "get": 2, "put": 2, "delete": 1}
    fewer = CuttingStore(await new_store())
    await seal(fewer, TASK, 1, manifest=manifest, end=SUCCESS, setup=["pod x"])
    assert fewer.names == {"list": 1, "put": 1}


async def test_a_large_log_is_put_together_in_little_memory(tmp_path: Path) -> None:
    store = PosixStore(tmp_path / "store", durable=False)
    block = b"".join(b"%015d\n" % n for n in range(65_536))  # 1 MiB
    digest = hashlib.sha256()
    for n in range(96):
        await write_segments(store, 0, [(n << 20, block)])
        digest.update(block)
    log = record(0, b"", bytes=96 << 20, lines=96 << 16, sha256=digest.hexdigest())
    manifest = Manifest(seal="complete", steps=[log])
    tracemalloc.start()
    try:
        sealed = await seal(store, TASK, 1, manifest=manifest, end=SUCCESS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sealed.complete
    assert sealed.steps[0].lines == 96 << 16
    assert peak < 16 << 20
