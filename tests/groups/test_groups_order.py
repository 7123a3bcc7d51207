"""Runs of one group run one at a time, in the order of their numbers, which have no gaps and no doubles."""

import asyncio
from itertools import pairwise

from group_scene import Handle, drained, file, new_root, queued, running, span, until
from yard import Yard

from runyard.records.runs import read_result


async def test_two_runs_of_a_group_run_one_after_the_other(yard: Yard) -> None:
    group = f"{new_root()}/branch/main"
    first = await yard.start(file("sleep 0.5"), group=group)
    await until(yard, first, running)
    second = await yard.start(file("print $RUNYARD_RUN_COUNTER"), group=group)
    waiting = await until(yard, second, queued())
    assert waiting.counter == 2
    assert first.id in waiting.cause
    await asyncio.gather(first.result(), second.result())
    (one, _, end), (two, start, _) = [await span(yard, each) for each in (first, second)]
    assert (one, two) == (1, 2)
    assert end <= start


async def test_fifty_at_once_run_one_at_a_time_in_the_order_of_their_numbers(yard: Yard) -> None:
    group = f"{new_root()}/branch/main"
    handles: list[Handle] = await asyncio.gather(*(yard.start(file(), group=group) for _ in range(50)))
    await asyncio.gather(*(handle.result() for handle in handles))
    spans = sorted([await span(yard, handle) for handle in handles])
    started = [
        ((await read_result(yard.store, each.id)).counter, (await each.describe()).start_time) for each in handles
    ]
    waited = [at for _, at in sorted(started)[10:]]  # the first of them ran before the others had come
    assert waited == sorted(waited)
    assert [counter for counter, _, _ in spans] == list(range(1, 51))
    for (_, _, end), (_, start, _) in pairwise(spans):
        assert end <= start
    assert (await drained(yard, group)).counter == 50
