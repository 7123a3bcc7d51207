"""The setup log: in order, nothing lost, whoever writes."""

import asyncio
from datetime import UTC, datetime, timedelta

from agentlike import SUCCESS, TASK

from runyard.records.logs import seal
from runyard.records.setup import SetupLog
from runyard.store import paths
from runyard.store.base import ObjectStore, read

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


async def sealed_text(store: ObjectStore) -> str:
    await seal(store, TASK, 1, manifest=None, end=SUCCESS)
    return (await read(store, paths.step_log(TASK, 1, paths.SETUP))).decode()


async def test_lines_have_their_time_and_further_lines_are_indented(store: ObjectStore) -> None:
    log = SetupLog(store, TASK, 1, clock=lambda: NOON)
    await log.say("one", "", "two\nand more", "  \n")
    await log.say("", " ")
    assert await sealed_text(store) == ("2025-03-01T12:00:00.000Z one\n2025-03-01T12:00:00.000Z two\n  and more\n")


async def test_what_cannot_be_encoded_is_replaced(store: ObjectStore) -> None:
    await SetupLog(store, TASK, 1, clock=lambda: NOON).say("odd \ud800 é")
    assert await sealed_text(store) == "2025-03-01T12:00:00.000Z odd ? é\n"


async def test_many_lines_of_many_workers_in_one_millisecond(store: ObjectStore) -> None:
    logs = [SetupLog(store, TASK, 1, clock=lambda: NOON) for _ in range(5)]

    async def talk(number: int) -> None:
        for n in range(12):
            await logs[number].say(f"worker {number} says {n}")

    await asyncio.gather(*(talk(number) for number in range(5)))
    lines = [line.split(" ", 1)[1] for line in (await sealed_text(store)).splitlines()]
    assert sorted(lines) == sorted(f"worker {w} says {n}" for w in range(5) for n in range(12))
    for number in range(5):
        mine = [line for line in lines if line.startswith(f"worker {number}")]
        assert mine == [f"worker {number} says {n}" for n in range(12)]


async def test_a_clock_that_is_set_back_does_not_change_the_order(store: ObjectStore) -> None:
    times = [NOON, NOON - timedelta(hours=1), NOON + timedelta(seconds=1)]
    waiting = iter(times)
    log = SetupLog(store, TASK, 1, clock=lambda: next(waiting))
    for n in range(3):
        await log.say(str(n))
    assert [line[-1] for line in (await sealed_text(store)).splitlines()] == ["0", "1", "2"]
