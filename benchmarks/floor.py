"""The floor under the engine: the same graph with three empty activities a task, and nothing else.

It has no store, no state to show, no retries, no messages. It continues as new like any workflow of that size
must; since it carries nothing over it lets what is in flight end first.
"""

import asyncio
from dataclasses import dataclass, field, replace
from datetime import timedelta

from temporalio import activity, workflow

QUEUE = "floor"


@dataclass
class FloorInput:
    """``parents[i]`` are the indexes of the tasks that task i waits for."""

    parents: list[list[int]]
    window: int = 500
    done: list[bool] = field(default_factory=list)


@activity.defn(name="empty")
async def empty() -> None:
    """Nothing."""


@workflow.defn(name="Floor")
class Floor:
    @workflow.run
    async def run(self, given: FloorInput) -> None:
        self.done = given.done or [False] * len(given.parents)
        self.left = [sum(not self.done[p] for p in parents) for parents in given.parents]
        self.children: list[list[int]] = [[] for _ in given.parents]
        for child, parents in enumerate(given.parents):
            for parent in parents:
                self.children[parent].append(child)
        self.ready = [i for i, left in enumerate(self.left) if left == 0 and not self.done[i]]
        self.active = self.open = 0
        while True:
            stop = workflow.info().is_continue_as_new_suggested()
            while self.ready and self.active < given.window and not stop:
                self.active += 1
                self.open += 1
                asyncio.create_task(self.task(self.ready.pop(0)))  # noqa: RUF006
            if self.open == 0:
                break
            before = self.open + self.active
            await workflow.wait_condition(lambda b=before: self.open + self.active != b)  # type: ignore[misc]
        if not all(self.done):
            workflow.continue_as_new(replace(given, done=self.done))

    async def task(self, index: int) -> None:
        await self.call()
        await self.call()
        self.active -= 1
        self.done[index] = True
        for child in self.children[index]:
            self.left[child] -= 1
            if self.left[child] == 0:
                self.ready.append(child)
        await self.call()
        self.open -= 1

    async def call(self) -> None:
        await workflow.execute_activity("empty", start_to_close_timeout=timedelta(minutes=1))
