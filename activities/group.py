"""The activities of lines: a run's stay in one, and the watch over a run that has its turn.

Both wait, for hours if need be, in a long poll for the end of a workflow: of the line, so that it can be started
again for those who wait, and of the run, so that the next one has its turn. They cost a worker next to nothing.
"""

import asyncio
import contextlib
from typing import Final

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowFailureError
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.service import RPCError, RPCStatusCode

from activities.pulse import Pulse
from activities.signatures import STAY_IN_LINE, WATCH_RUN, WatchRun
from activities.statuses import describe, is_open
from runyard.spec.group import ENTER, LINE_MEMO, LINE_WORKFLOW, LINES_QUEUE, Entry, LineState
from runyard.worklog import about

HISTORY_EVENTS: Final = 4_000
"""A line is told when to continue as new, so that the number can change without breaking lines that are open."""

PAUSE_S: Final = 0.2
"""A line that ends again and again must not be started in a tight loop."""


class GroupActivities:
    """They need a connection only: a line is known to Temporal alone."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @activity.defn(name=STAY_IN_LINE)
    async def stay_in_line(self, entry: Entry) -> None:
        """Enter, and enter again whenever the line has ended, until cancelled: the run has its turn, or has ended.

        A line is started with what the last one knew. Between reading that and the start another line could in
        theory have begun and ended, which would give a number twice: it would have to be terminated within
        milliseconds of its own start.
        """
        about(run=entry.run_id)
        async with Pulse():
            while True:
                last = (await self._last_state(entry.line)).model_copy(update={"history_events": HISTORY_EVENTS})
                handle = await self._client.start_workflow(
                    LINE_WORKFLOW,
                    last,
                    id=entry.line,
                    task_queue=LINES_QUEUE,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                    start_signal=ENTER,
                    start_signal_args=[entry],
                    static_summary=f"line of {entry.line.partition(':')[2]}",
                    memo={LINE_MEMO: last},  # it may be terminated before it has written its own
                )
                await self._until_ended(entry.line, handle.first_execution_run_id or "")
                if not await self._is_open(entry.run_id, entry.execution_id):
                    return  # a run that has ended takes no number
                await asyncio.sleep(PAUSE_S)

    @activity.defn(name=WATCH_RUN)
    async def watch_run(self, watch: WatchRun) -> None:
        """Returns when the run has ended: succeeded, failed, cancelled, terminated, timed out or deleted."""
        about(run=watch.run_id)
        async with Pulse():
            run_id = watch.execution_id
            while True:
                await self._until_ended(watch.run_id, run_id)
                last = await describe(self._client, watch.run_id)
                if not _is_of(last, watch.execution_id):
                    return
                assert last is not None  # reset from the UI: a new execution goes on in its place
                run_id = last.run_id

    async def _until_ended(self, workflow_id: str, run_id: str) -> None:
        """Until this execution and those that continue it have ended."""
        handle = self._client.get_workflow_handle(workflow_id, run_id=run_id or None)
        try:
            with contextlib.suppress(WorkflowFailureError):
                await handle.result(follow_runs=True)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise

    async def _last_state(self, line: str) -> LineState:
        """What the last line knew; nothing is read of one that is open, since it will only be signalled."""
        last = await describe(self._client, line)
        if last is None or is_open(last):
            return LineState()
        kept = await last.memo_value(LINE_MEMO, LineState(), type_hint=LineState)
        return kept if isinstance(kept, LineState) else LineState()

    async def _is_open(self, run_id: str, execution_id: str) -> bool:
        return _is_of(await describe(self._client, run_id), execution_id)


def _is_of(found: WorkflowExecutionDescription | None, execution_id: str) -> bool:
    """Whether it is open, and the run that is meant: not another one that has its id by now."""
    if found is None or not is_open(found):
        return False
    first = found.raw_description.workflow_execution_info.first_run_id
    return (first or found.run_id) == execution_id
