"""A worker whose end does not come is left behind, and holds nobody up."""

import asyncio
import uuid

import pytest
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from workers.leaving import Leaving


@activity.defn
async def nothing() -> None:
    pass


def worker_of(client: Client) -> Worker:
    return Worker(client, task_queue=f"leaving-{uuid.uuid4().hex}", activities=[nothing])


async def test_an_end_in_time(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    worker = worker_of(client)
    async with asyncio.timeout(30), Leaving(worker):
        await asyncio.sleep(0.05)
        assert worker.is_running
    assert worker.is_shutdown
    assert "left behind" not in caplog.text


async def test_an_end_that_does_not_come(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.leaving.LEAVE_S", 0.2)
    worker = worker_of(client)
    finalize = worker._bridge_worker.finalize_shutdown

    async def never() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(worker._bridge_worker, "finalize_shutdown", never)
    async with asyncio.timeout(30), Leaving(worker):
        pass
    assert f"the worker of the queue {worker.task_queue} did not end" in caplog.text
    await finalize()


async def test_what_goes_wrong_in_the_block_comes_out_of_it(client: Client) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Leaving(worker_of(client)):
            raise ZeroDivisionError
