"""A worker that dies before a cleanup has even begun keeps nobody waiting for long."""

import signal
import time

import pytest
from old_runs import keys, put_run
from temporalio.api.enums.v1 import TimeoutType
from temporalio.client import Client
from yard import Work

from runyard.client import Runyard
from runyard.client.cleanup import clean
from runyard.settings import Settings
from runyard.store.posix import PosixStore
from workflows.cleanup import PLAN_BEAT


@pytest.mark.promise(9)
async def test_a_worker_that_dies_while_it_plans_is_missed_by_its_heartbeat(
    client: Client, store: PosixStore, work: Work
) -> None:
    """Without one it would be missed after the minute that an activity of this kind may take."""
    await put_run(store, "run", tasks=["task"], days_ago=400)
    dying = await work("plan.asked")
    started = await clean(Runyard(client, store, settings=Settings()))
    await dying.wait()
    assert dying.returncode == -signal.SIGKILL
    died_s = time.monotonic()
    await work()
    await started.result()
    assert time.monotonic() - died_s < PLAN_BEAT.total_seconds() + 30
    assert await keys(store) == []
    assert await _missed_by(client, started.id) == TimeoutType.TIMEOUT_TYPE_HEARTBEAT


async def _missed_by(client: Client, workflow_id: str) -> TimeoutType.ValueType:
    """Which timeout ended the first try of the first activity."""
    async for event in client.get_workflow_handle(workflow_id).fetch_history_events():
        if event.HasField("activity_task_started_event_attributes"):
            tried = event.activity_task_started_event_attributes
            return tried.last_failure.timeout_failure_info.timeout_type
    raise AssertionError("no activity was started")
