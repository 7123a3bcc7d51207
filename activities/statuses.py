"""What Temporal knows of runs. "Not known" is an answer of its own; no answer is an error."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from runyard.errors import ServerUnavailable
from runyard.records.bounded import for_each
from runyard.records.fates import RunStatus

_AT_ONCE: Final = 16
_SHOWN_AT_ONCE: Final = 100


async def describe(client: Client, run_id: str) -> WorkflowExecutionDescription | None:
    """The newest execution of this id; None where Temporal has none. Raises ServerUnavailable."""
    try:
        return await client.get_workflow_handle(run_id).describe()
    except RPCError as error:
        missing = error.status is RPCStatusCode.NOT_FOUND and "namespace" not in error.message.lower()
        if missing or error.status is RPCStatusCode.INVALID_ARGUMENT:  # no run can have such an id
            return None
        raise ServerUnavailable(f"whether {run_id} is open cannot be found out: {error.message[:200]}") from error


def is_open(found: WorkflowExecutionDescription | None) -> bool:
    """Whether it goes on, in another execution perhaps."""
    going_on = (None, WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.CONTINUED_AS_NEW)
    return found is not None and found.status in going_on


async def ask(client: Client, run_id: str) -> RunStatus:
    """What Temporal knows of a run. Raises ServerUnavailable."""
    found = await describe(client, run_id)
    if found is None:
        return RunStatus()
    return RunStatus(open=True) if is_open(found) else RunStatus(closed_at=found.close_time or found.start_time)


class Statuses:
    """Asks for runs one by one, some at a time: visibility lags behind, and what it lacks may just have begun."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def ask(self, run_ids: Sequence[str]) -> Mapping[str, RunStatus]:
        """Raises ServerUnavailable."""

        async def one(run_id: str) -> RunStatus:
            return await ask(self._client, run_id)

        return dict(zip(run_ids, await for_each(run_ids, one, limit=_AT_ONCE), strict=True))

    async def closed(self, run_ids: Sequence[str]) -> dict[str, datetime]:
        """Those that have ended, and when. For whoever asks again soon: one that has just ended may be left out.

        What visibility shows as running is believed, a hundred at a time; the rest is asked for one by one.
        """
        running = set[str]()
        for at in range(0, len(run_ids), _SHOWN_AT_ONCE):
            running |= await self._shown_running(run_ids[at : at + _SHOWN_AT_ONCE])
        known = await self.ask([run_id for run_id in run_ids if run_id not in running])
        return {run_id: status.closed_at for run_id, status in known.items() if status.closed_at is not None}

    async def _shown_running(self, run_ids: Sequence[str]) -> set[str]:
        named = ", ".join(f"'{run_id}'" for run_id in run_ids if "'" not in run_id and "\\" not in run_id)
        if not named:
            return set()
        query = f"ExecutionStatus = 'Running' AND WorkflowId IN ({named})"
        try:
            return {each.id async for each in self._client.list_workflows(query)}
        except RPCError as error:
            raise ServerUnavailable(f"which runs are open cannot be found out: {error.message[:200]}") from error
