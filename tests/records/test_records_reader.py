"""Readers of logs that grow, are sealed under their hands, or are not there yet: every byte once."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from agentlike import LOST, SUCCESS, TASK, pieces, record, write_attempt, write_segments
from chunks import whole
from cutting import CuttingStore, ShuffledStore

from runyard.dialogue import Manifest
from runyard.errors import NotFound
from runyard.records.logs import seal
from runyard.records.reader import MAX_LINE, LogReader
from runyard.records.segments import Log
from runyard.records.setup import SetupLog
from runyard.store import paths
from runyard.store.base import ObjectInfo, ObjectStore

LOGS = (b"first\nsecond\n", b"", b"third, longer than a segment, without an end")


def reader(store: ObjectStore) -> LogReader:
    return LogReader(store, TASK, 1, poll_s=0.001)


async def lines_of(lines: AsyncIterator[tuple[Log, str]]) -> list[tuple[Log, str]]:
    return [line async for line in lines]


async def words(store: ObjectStore) -> str:
    return (await whole(reader(store).read(paths.SETUP))).decode()


@pytest.fixture(params=["live", "sealed"])
async def kept(request: pytest.FixtureRequest, store: ObjectStore) -> ObjectStore:
    """A task with logs: one that runs, and the same when it is sealed."""
    await SetupLog(store, TASK, 1).say("scheduled")
    manifest = await write_attempt(store, *LOGS)
    if request.param == "sealed":
        await seal(store, TASK, 1, manifest=manifest, end=SUCCESS)
    return store


async def test_reads_the_same_live_and_sealed(kept: ObjectStore) -> None:
    for step, log in enumerate(LOGS):
        for offset in (0, 1, 9, 10, 11, len(log), len(log) + 5):
            assert await whole(reader(kept).read(step, offset=offset)) == log[offset:]
    setup = await words(kept)
    assert setup.endswith("Z scheduled\n")
    assert await whole(reader(kept).read(paths.SETUP, offset=5)) == setup[5:].encode()


async def test_steps(kept: ObjectStore) -> None:
    found = await reader(kept).steps()
    assert [log for log in found if log != 1] == ["setup", 0, 2]  # live, an empty log does not show


async def test_lines_come_log_by_log(kept: ObjectStore) -> None:
    setup, *rest = await lines_of(reader(kept).lines())
    assert setup[0] == paths.SETUP
    assert rest == [(0, "first"), (0, "second"), (2, LOGS[2].decode())]
    assert await lines_of(reader(kept).lines(0)) == [(0, "first"), (0, "second")]


async def test_nothing_there(store: ObjectStore) -> None:
    assert await reader(store).steps() == []
    assert await whole(reader(store).read(0)) == b""
    assert await lines_of(reader(store).lines()) == []


async def test_steps_in_the_order_of_their_numbers_without_reading_all_segments(store: ObjectStore) -> None:
    for step in (0, 2, 10, 9, 100):
        await write_segments(store, step, pieces(b"x" * 40, 1))
    await SetupLog(store, TASK, 1).say("x")
    counting = CuttingStore(store)
    assert await reader(counting).steps() == ["setup", 0, 2, 9, 10, 100]
    assert counting.names["list"] == 7


async def test_a_step_that_a_sealed_task_does_not_have(store: ObjectStore) -> None:
    await seal(store, TASK, 1, manifest=await write_attempt(store, *LOGS), end=SUCCESS)
    with pytest.raises(NotFound, match="no step 3"):
        await whole(reader(store).read(3))
    assert await whole(reader(store).read(paths.SETUP)) == b""


async def test_following_waits_for_a_task_that_has_not_begun(store: ObjectStore) -> None:
    following = asyncio.create_task(whole(reader(store).follow(2)))
    everything = asyncio.create_task(lines_of(reader(store).lines(follow=True)))
    await asyncio.sleep(0.02)
    assert not following.done()
    manifest = await write_attempt(store, *LOGS)
    await asyncio.sleep(0.02)
    assert not following.done()  # the step may write more as long as the task runs
    await seal(store, TASK, 1, manifest=manifest, end=SUCCESS)
    assert await following == LOGS[2]
    assert sorted(await everything) == [(0, "first"), (0, "second"), (2, LOGS[2].decode())]


async def test_following_gives_lines_as_they_come(store: ObjectStore) -> None:
    lines = reader(store).lines(follow=True)
    log, at = b"", 0
    for n in range(5):
        line = b"line %d\n" % n
        await write_segments(store, 0, [(at, line)])
        log, at = log + line, at + len(line)
        assert await anext(lines) == (0, f"line {n}")
        await write_segments(store, 1, [(n * 2, b"x\n")])
        assert await anext(lines) == (1, "x")
    manifest = Manifest(seal="complete", steps=[record(0, log), record(1, b"x\n" * 5)])
    await seal(store, TASK, 1, manifest=manifest, end=SUCCESS)
    assert await lines_of(lines) == []


async def test_following_a_sealed_task_reads_it_and_ends(store: ObjectStore) -> None:
    await SetupLog(store, TASK, 1).say("scheduled")
    await seal(store, TASK, 1, manifest=await write_attempt(store, *LOGS), end=SUCCESS)
    assert await whole(reader(store).follow(0)) == LOGS[0]
    assert await whole(reader(store).follow(0, offset=4)) == LOGS[0][4:]
    assert [log for log, _ in await lines_of(reader(store).lines(follow=True))] == ["setup", 0, 0, 2]


async def test_following_a_log_with_a_gap_marks_it_once(store: ObjectStore) -> None:
    log = b"0123456789" * 3
    await write_segments(store, 0, [(0, log[:10]), (20, log[20:])])
    await write_segments(store, 1, [(0, b"of the next step\n")])
    following = asyncio.create_task(whole(reader(store).follow(0)))
    lines = reader(store).lines(follow=True)
    assert await anext(lines) == (1, "of the next step")  # the other logs go on
    await asyncio.sleep(0.02)
    manifest = Manifest(seal="complete", steps=[record(0, log), record(1, b"of the next step\n")])
    await seal(store, TASK, 1, manifest=manifest, end=SUCCESS)
    marked = b"0123456789\n[runyard: 10 bytes of this log are missing here]\n0123456789"
    assert await following == marked
    assert await lines_of(lines) == [(0, line) for line in marked.decode().split("\n")]


@pytest.mark.promise(4)
@pytest.mark.parametrize("seed", range(20))
async def test_every_byte_once_however_the_task_and_its_sealing_go(store: ObjectStore, seed: int) -> None:
    """Readers that began at any time, beside an agent that writes and workers that seal."""
    chance = random.Random(seed)
    logs = [chance.randbytes(chance.randrange(400)) for _ in range(3)]
    slow = ShuffledStore(store, seed=seed)

    async def agent() -> None:
        cuts = [(step, part) for step, log in enumerate(logs) for part in pieces(log, chance.randrange(1, 60))]
        for step, part in cuts:
            await write_segments(slow, step, [part])
        manifest = Manifest(seal="complete", steps=[record(n, log) for n, log in enumerate(logs)])
        await SetupLog(slow, TASK, 1).say("sealing")
        sealers = [
            seal(ShuffledStore(store, seed=seed + n), TASK, 1, manifest=manifest, end=SUCCESS) for n in (1, 2)
        ]
        await asyncio.gather(*sealers)

    async def read_later(step: int, offset: int, number: int) -> bytes:
        for _ in range(number * 40):
            await asyncio.sleep(0)
        return await whole(reader(ShuffledStore(store, seed=seed + 100 + number)).follow(step, offset=offset))

    working = asyncio.create_task(agent())
    asked = [(step, chance.choice((0, 0, 7, 200))) for step in (0, 1, 2, 0, 1, 2)]
    found = await asyncio.gather(*(read_later(step, offset, n) for n, (step, offset) in enumerate(asked)))
    await working
    assert found == [logs[step][offset:] for step, offset in asked]


@pytest.mark.promise(4)
async def test_sealed_in_the_middle_of_a_listing(store: ObjectStore) -> None:
    """The reader has a listing in hand whose segments are all gone when it comes to read them."""
    manifest = await write_attempt(store, *LOGS, size=4)

    class SealsMeanwhile(CuttingStore):
        async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
            infos = [info async for info in store.list(prefix, start_after=start_after)]
            for n, info in enumerate(infos):
                if n == 2:
                    await seal(store, TASK, 1, manifest=manifest, end=SUCCESS)
                yield info

    assert await whole(reader(SealsMeanwhile(store)).read(2)) == LOGS[2]


async def test_read_goes_on_in_the_sealed_log(store: ObjectStore) -> None:
    manifest = await write_attempt(store, *LOGS, size=4)
    chunks = reader(store).read(2)
    first = await anext(chunks)
    await seal(store, TASK, 1, manifest=manifest, end=SUCCESS)
    assert first + await whole(chunks) == LOGS[2]


async def test_setup_lines_before_those_that_were_given_come_too(store: ObjectStore) -> None:
    """A worker whose clock is behind writes lines that sort before what a reader has given."""
    prefix = paths.segments(TASK, 1, paths.SETUP)
    await store.put(f"{prefix}1700000000500-0000", b"B said\n")
    lines = reader(store).lines(follow=True)
    assert await anext(lines) == (paths.SETUP, "B said")
    await store.put(f"{prefix}1700000000100-0000", b"A said, with a slow clock\n")
    await store.put(f"{prefix}1700000000900-0000", b"C said\n")
    assert await anext(lines) == (paths.SETUP, "C said")
    await seal(store, TASK, 1, manifest=None, end=LOST)
    assert await lines_of(lines) == [(paths.SETUP, "A said, with a slow clock")]
    assert await words(store) == "A said, with a slow clock\nB said\nC said\n"


async def test_a_setup_log_in_the_seal_reads_like_any_other(store: ObjectStore) -> None:
    following = asyncio.create_task(lines_of(reader(store).lines(follow=True)))
    await asyncio.sleep(0.01)
    sealed = await seal(store, TASK, 1, manifest=None, end=LOST, setup=["one", "two"])
    assert await reader(store).steps() == [paths.SETUP]
    assert await words(store) == sealed.setup.text
    assert await whole(reader(store).read(paths.SETUP, offset=7)) == sealed.setup.text.encode()[7:]
    assert await following == [(paths.SETUP, line) for line in sealed.setup.text.splitlines()]


async def test_text_that_is_cut_anywhere(store: ObjectStore) -> None:
    text = "é☺\r\n\x1b[31mred\x1b[0m\n\n\u2028 is no end of a line\nend"
    await write_segments(store, 0, pieces(text.encode(), 1))
    assert [line for _, line in await lines_of(reader(store).lines(0))] == text.split("\n")


async def test_bytes_that_are_no_text(store: ObjectStore) -> None:
    await write_segments(store, 0, [(0, b"\xff\xfe\n\xe2\x98"), (5, b"\n\x00\n\xe2")])
    assert [line for _, line in await lines_of(reader(store).lines(0))] == ["��", "�", "\0", "�"]


async def test_a_line_of_many_megabytes_comes_in_pieces(store: ObjectStore) -> None:
    log = b"x" * (3 * MAX_LINE + 5) + b"\nshort\n" + b"y" * (MAX_LINE + 1)
    await write_segments(store, 0, pieces(log, 1 << 20))
    found = [line for _, line in await lines_of(reader(store).lines(0))]
    assert [len(line) for line in found] == [MAX_LINE, MAX_LINE, MAX_LINE, 5, 5, MAX_LINE, 1]
    assert "".join(found) == log.decode().replace("\n", "")


async def test_a_quiet_follower_asks_seldom(store: ObjectStore) -> None:
    counting = CuttingStore(store)
    following = asyncio.create_task(whole(LogReader(counting, TASK, 1, poll_s=0.05).follow(0)))
    await asyncio.sleep(0.5)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert 1 <= counting.names["list"] <= 11
    assert counting.names["get"] == counting.names["list"]  # each look without news asks for the seal
