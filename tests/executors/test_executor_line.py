"""Who gets room next: by priority, then owners in turn, then first come."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

from runyard.executors.line import Line


class Desk:
    """One slot behind a line, given out by the test."""

    def __init__(self) -> None:
        self.line = Line()
        self.free = asyncio.Semaphore(0)
        self.served: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def ask(self, *names: str, owner: str = "", priority: int = 3) -> None:
        for name in names:
            self._tasks.append(asyncio.create_task(self._wait(name, owner, priority)))
        await asyncio.sleep(0)  # they have entered

    async def _wait(self, name: str, owner: str, priority: int) -> None:
        async with self.line.place(priority=priority, owner=owner) as place:
            await place.first()
            await self.free.acquire()
            while not place.is_first.is_set():  # somebody urgent has come meanwhile
                self.free.release()
                await place.first()
                await self.free.acquire()
            place.serve()
            self.served.append(name)

    async def give(self, number: int) -> list[str]:
        """Free so many slots, one after the other; who got them."""
        before = len(self.served)
        for _ in range(number):
            self.free.release()
            was = len(self.served)
            while len(self.served) == was:
                await asyncio.sleep(0)
        return self.served[before:]

    def cancel(self, index: int) -> None:
        self._tasks[index].cancel()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def desk() -> AsyncIterator[Desk]:
    made = Desk()
    yield made
    await made.close()


async def test_one_owner_is_served_first_come_first_served() -> None:
    async with desk() as here:
        await here.ask("a", "b", "c")
        assert await here.give(3) == ["a", "b", "c"]


async def test_priority_goes_before_everything_also_when_it_comes_last() -> None:
    async with desk() as here:
        await here.ask("a", "b", owner="ann")
        await here.ask("late", owner="bob", priority=5)
        await here.ask("now", owner="ann", priority=1)
        assert await here.give(4) == ["now", "a", "b", "late"]


async def test_owners_take_turns_whoever_came_first() -> None:
    async with desk() as here:
        await here.ask(*(f"a{n}" for n in range(600)), owner="ann")
        assert await here.give(5) == ["a0", "a1", "a2", "a3", "a4"]
        await here.ask(*(f"b{n}" for n in range(10)), owner="bob")
        served = await here.give(21)
        assert {f"b{n}" for n in range(10)} <= set(served)
        assert [name for name in served if name.startswith("b")] == [f"b{n}" for n in range(10)]
        assert not any(one[0] == two[0] == "b" for one, two in pairwise(served))


async def test_nobody_saves_up_turns_while_away() -> None:
    async with desk() as here:
        await here.ask(*(f"a{n}" for n in range(40)), owner="ann")
        await here.ask("b0", owner="bob")
        await here.give(30)
        await here.ask(*(f"b{n}" for n in range(1, 6)), owner="bob")
        served = await here.give(6)
        assert sum(name.startswith("a") for name in served) == 3


async def test_who_gives_up_is_passed_over() -> None:
    async with desk() as here:
        await here.ask("a", "b", "c")
        here.cancel(0)
        here.cancel(1)
        await asyncio.sleep(0)
        assert await here.give(1) == ["c"]


async def test_who_steps_out_lets_the_next_one_look_and_steps_back_to_the_head() -> None:
    line = Line()
    async with (
        line.place(priority=3, owner="a") as first,
        line.place(priority=3, owner="b") as other,
        line.place(priority=3, owner="a") as second,
    ):
        first.step_out()
        assert [place.is_first.is_set() for place in (first, other, second)] == [False, True, False]
        first.step_back()
        assert [place.is_first.is_set() for place in (first, other, second)] == [True, False, False]
        first.step_out()
        other.step_out()
        assert second.is_first.is_set()
    async with line.place(priority=3, owner="c") as last:  # nobody is left in it
        assert last.is_first.is_set()


async def test_who_steps_back_into_an_empty_line_is_first_and_not_served() -> None:
    line = Line()
    async with line.place(priority=3, owner="a") as first:
        first.step_out()
        async with line.place(priority=3, owner="b") as other:
            assert other.is_first.is_set()
            first.step_back()
            assert first.is_first.is_set()
