"""Lines of groups and executors, as they are now: asked of the workflows that keep them."""

import asyncio
from datetime import timedelta
from typing import Final

from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.service import RPCError, RPCStatusCode

from runyard.errors import NotFound, ServerUnavailable
from runyard.spec.group import DESCRIBE, LINE_WORKFLOW, LINES_QUEUE, LineView, check_group, root_line

ANSWER_S: Final = 10.0
_SILENT: Final = (RPCStatusCode.FAILED_PRECONDITION, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED)


async def read_line(client: Client, group: str) -> LineView:
    """The line of this group's root: other groups of the root are in it too.

    Raises InvalidRequest, NotFound (no run of it has ever been started), ServerUnavailable, RPCError.
    """
    try:
        return await _ask(client, root_line(check_group(group)))
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND and "namespace" not in error.message.lower():
            raise NotFound(
                f"no run of {group} is known", remedy="`runyard group list` shows the lines that are there."
            ) from error
        raise


async def list_lines(client: Client, *, limit: int) -> tuple[LineView, ...]:
    """The lines that are open, at most ``limit``, by id. Raises ServerUnavailable, RPCError."""
    query = f"WorkflowType = '{LINE_WORKFLOW}' AND ExecutionStatus = 'Running'"
    ids = sorted([execution.id async for execution in client.list_workflows(query, limit=limit)])
    return tuple(await asyncio.gather(*(_ask(client, line_id) for line_id in ids)))


async def _ask(client: Client, line_id: str) -> LineView:
    handle = client.get_workflow_handle(line_id)
    try:
        wait = timedelta(seconds=ANSWER_S)
        view: LineView = await handle.query(DESCRIBE, result_type=LineView, rpc_timeout=wait)
        return view
    except WorkflowQueryFailedError as error:
        raise ServerUnavailable(f"the line {line_id} cannot be described: {error.message[:300]}") from error
    except RPCError as error:
        if error.status in _SILENT:
            raise ServerUnavailable(
                f"no worker answers on the queue {LINES_QUEUE}",
                remedy="Start one with `runyard worker`; `runyard dev` has one.",
            ) from error
        raise
