"""The history of one run, read as it grows: over all of its executions, each event once."""

from datetime import UTC, datetime

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryResponse,
)
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from runyard.client.transitions import Transcript
from runyard.spec.events import Event

_PAGE = 1_000


class History:
    """``since``: what happened before is not wanted; it may come all the same."""

    def __init__(self, client: Client, run_id: str, *, since: datetime) -> None:
        self._client = client
        self._since = since
        self._transcript = Transcript(run_id, client.data_converter)
        self._execution = ""
        self._token = b""
        self._read = 0  # the last event of this execution
        self.run_id = run_id

    @property
    def closed(self) -> bool:
        """The run's end was given."""
        return self._transcript.closed

    async def news(self) -> list[Event]:
        """What has come since the last call, as far as the server has it now. Raises RPCError."""
        now = await self._client.get_workflow_handle(self.run_id).describe()
        is_open = now.status is WorkflowExecutionStatus.RUNNING
        if not self._execution:
            self._execution = await self._first(now.run_id)
        found: list[Event] = []
        while not self.closed:
            waits = is_open and self._execution == now.run_id
            found += await self._read_on(until=now.history_length if waits else None)
            if waits or not self._transcript.next:
                break
            self._execution, self._token, self._read = self._transcript.next, b"", 0
        return found

    async def _first(self, execution: str) -> str:
        """The execution to begin with: the last one that began before ``since``, else the first that is left."""
        while True:
            page = await self._page(execution, size=1)
            event = page.history.events[0]
            before = event.workflow_execution_started_event_attributes.continued_execution_run_id
            if not before or event.event_time.ToDatetime(tzinfo=UTC) < self._since:
                return execution
            try:
                await self._page(before, size=1)
            except RPCError as error:
                if (
                    error.status is RPCStatusCode.NOT_FOUND
                ):  # the server keeps each execution for a time of its own
                    return execution
                raise
            execution = before

    async def _read_on(self, *, until: int | None) -> list[Event]:
        """To this event of an execution that goes on, or to the end of one that has ended."""
        found: list[Event] = []
        while until is None or self._read < until:
            page = await self._page(self._execution, token=self._token, waits=until is not None)
            for event in page.history.events:
                found += await self._take(event)
            self._token = page.next_page_token
            if not self._token:
                break
        return found

    async def _take(self, event: HistoryEvent) -> list[Event]:
        if event.event_id <= self._read:
            return []
        self._read = event.event_id
        return await self._transcript.read(event)

    async def _page(
        self, execution: str, *, token: bytes = b"", size: int = _PAGE, waits: bool = False
    ) -> GetWorkflowExecutionHistoryResponse:
        """``waits`` is for a token that can be used again when the history has grown."""
        request = GetWorkflowExecutionHistoryRequest(
            namespace=self._client.namespace,
            execution=WorkflowExecution(workflow_id=self.run_id, run_id=execution),
            maximum_page_size=size,
            next_page_token=token,
            wait_new_event=waits,
        )
        return await self._client.workflow_service.get_workflow_execution_history(request, retry=True)
