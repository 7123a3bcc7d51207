"""What Temporal knows of runs. "Not known" is an answer of its own; no answer is an error."""

from collections.abc import Mapping, Sequence

from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from runyard.errors import ServerUnavailable
from runyard.records.bounded import for_each
from runyard.records.fates import RunStatus

_AT_ONCE = 16


class Statuses:
    """Asks for runs one by one, some at a time: visibility lags behind, and what it lacks may just have begun."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def ask(self, run_ids: Sequence[str]) -> Mapping[str, RunStatus]:
        """Raises ServerUnavailable."""
        return dict(zip(run_ids, await for_each(run_ids, self._ask, limit=_AT_ONCE), strict=True))

    async def _ask(self, run_id: str) -> RunStatus:
        try:
            found = await self._client.get_workflow_handle(run_id).describe()
        except RPCError as error:
            missing = error.status is RPCStatusCode.NOT_FOUND and "namespace" not in error.message.lower()
            if missing or error.status is RPCStatusCode.INVALID_ARGUMENT:  # no run can have such an id
                return RunStatus()
            raise ServerUnavailable(
                f"whether {run_id} is open cannot be found out: {error.message[:200]}"
            ) from error
        if found.status in (None, WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.CONTINUED_AS_NEW):
            return RunStatus(open=True)
        return RunStatus(closed_at=found.close_time or found.start_time)
