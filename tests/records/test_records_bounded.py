"""Many calls, some at a time, and the first error."""

import asyncio

import pytest

from runyard.errors import StoreFull
from runyard.records.bounded import for_each


@pytest.mark.parametrize("count", [0, 1, 5, 200])
async def test_results_in_order_and_never_more_than_the_limit_at_once(count: int) -> None:
    running = most = 0

    async def double(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(1 + n % 5):
            await asyncio.sleep(0)
        running -= 1
        return 2 * n

    assert await for_each(range(count), double, limit=7) == [2 * n for n in range(count)]
    assert most == min(count, 7)


async def test_the_first_error_stops_the_rest_and_comes_as_it_is() -> None:
    begun: list[int] = []

    async def fail_at_three(n: int) -> None:
        begun.append(n)
        await asyncio.sleep(0)
        if n == 3:
            raise StoreFull("no room")
        await asyncio.Event().wait()

    with pytest.raises(StoreFull, match="no room"):
        await for_each(range(100), fail_at_three, limit=5)
    assert begun == [0, 1, 2, 3, 4]


async def test_a_cancel_ends_all_calls() -> None:
    running = 0

    async def wait(_: int) -> None:
        nonlocal running
        running += 1
        try:
            await asyncio.Event().wait()
        finally:
            running -= 1

    working = asyncio.create_task(for_each(range(10), wait, limit=4))
    while running < 4:
        await asyncio.sleep(0)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert running == 0
