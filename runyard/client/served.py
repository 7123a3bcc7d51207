"""Whether anybody serves the queue of an executor: the one thing a run that waits for ever cannot say itself.

A workflow does not see who polls, so this is asked of the server, by whoever looks at the run: it costs the run
nothing, and a history knows nothing of it. Turned down: a warning at `run start`, which is no news to a start by
JSON, and is wrong where the worker comes a second later.
"""

import asyncio
import shlex
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.service import RPCError

from runyard.spec.run import RunView, executor_queue

if TYPE_CHECKING:
    from temporalio.client import Client

PATIENCE_S: Final = 3.0
"""A task that has been queued for less is of no concern: its worker may be about to take it, or to start."""

AGAIN_S: Final = 5.0
ANSWER_S: Final = 1.0


async def count_pollers(client: "Client", queue: str, *, timeout_s: float | None = None) -> int:
    """How many workers have asked this queue for activities in the last five minutes. Raises RPCError."""
    answer = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        ),
        timeout=None if timeout_s is None else timedelta(seconds=timeout_s),
    )
    return len(answer.pollers)


class QueueWatch:
    """Of one run: looks again every ``AGAIN_S`` seconds at most, and only while something has waited for long."""

    def __init__(self) -> None:
        self._due_s = 0.0
        self._served = True

    async def tell(self, client: "Client", view: RunView) -> RunView:
        """The view of an open run, and in it what it really waits for. If that cannot be found out, as it was."""
        if not view.executor or not _waits_for_long(view):
            return view
        queue = executor_queue(view.executor)
        if (now_s := asyncio.get_running_loop().time()) >= self._due_s:
            self._served = await _is_served(client, queue)
            self._due_s = now_s + AGAIN_S
        if self._served:
            return view
        return _undeleted(view, queue) if view.phase == "finished" else _unplaced(view, queue)


async def _is_served(client: "Client", queue: str) -> bool:
    try:
        return await count_pollers(client, queue, timeout_s=ANSWER_S) > 0
    except RPCError:  # not allowed, or no answer: nothing is claimed
        return True


def _waits_for_long(view: RunView) -> bool:
    """By either clock: one that is wrong, ours or the server's, only makes us ask sooner."""
    now, patience = datetime.now(UTC), timedelta(seconds=PATIENCE_S)
    if view.phase == "finished":  # and open all the same: pods are to be deleted
        return all(abs(now - task.ended_at) >= patience for task in view.tasks if task.ended_at is not None)
    if not view.counts.get("queued"):
        return False
    queued = (task.queued_at for task in view.tasks if task.status == "queued")
    return any(at is not None and abs(now - at) >= patience for at in queued)


def _unplaced(view: RunView, queue: str) -> RunView:
    words = f"no worker serves the queue {queue}: start one with `runyard worker --executor {view.executor}`"
    told = {"message": f"waits for a worker of the queue {queue}"}
    tasks = [task.model_copy(update=told) if task.status == "queued" else task for task in view.tasks]
    return view.model_copy(update={"cause": "; ".join(filter(None, (words, view.cause))), "tasks": tasks})


def _undeleted(view: RunView, queue: str) -> RunView:
    """It looks as if it had ended, and whoever waits for its end waits for ever."""
    words = (
        f"no worker serves the queue {queue}: the run stays open until one has seen to its pods;"
        f" if there will never be one, `temporal workflow terminate --workflow-id {shlex.quote(view.id)}`"
    )
    return view.model_copy(
        update={
            "phase": "running",
            "result": "unknown",
            "ended_at": None,
            "cause": "; ".join(filter(None, (words, view.cause))),
        }
    )
