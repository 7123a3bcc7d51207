"""``Run``: one run, whether it goes on, has ended, or is only remembered by the store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from temporalio.client import (
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError
from temporalio.exceptions import TimeoutError as TemporalTimeout
from temporalio.service import RPCError, RPCStatusCode

from runyard.client.logs import LogLine, read_logs
from runyard.client.planned import Planned, complete, read_planned, read_view
from runyard.client.remote import from_application, unknown_task
from runyard.client.served import QueueWatch
from runyard.errors import (
    Conflict,
    Corrupt,
    InvalidRequest,
    NotFound,
    RemoteError,
    RunyardError,
    ServerUnavailable,
)
from runyard.records.runs import read_passing
from runyard.records.segments import Log
from runyard.spec.run import RUNS_QUEUE, ApprovalRequest, RunResult, RunView, TaskRequest, TaskView
from runyard.temporal import CLOSING

if TYPE_CHECKING:
    from runyard.client.yard import Runyard

T = TypeVar("T")

ANSWER_S: Final = 10.0
"""How long a worker may take for an answer before we say that there is none."""

AGAIN_S: Final = 0.7
ASKED: Final = 3
"""After this long it is asked again, so often in all: a question that met an execution in its last moment, before
the run went on as another, is answered by a replay of all of it, and the new execution answers sooner."""

FULL_S: Final = 0.2
"""The server holds few questions for a run whose worker is busy, and refuses more: after this it is asked anew."""

REST_S: Final = 0.5
"""After this a wait for the run's end that the server broke off begins anew."""

LOOK_S: Final = 0.05
LOOKS: Final = 20
"""An execution announces that moment. Where it has left no view of the run for it, it is looked so often, in these
steps, whether the next one is there."""

FRESH_EVENTS: Final = 3
"""The history of an execution that has not had its first workflow task yet."""

_NO_WORKER: Final = f"no worker answers on the queue {RUNS_QUEUE}"


class Run:
    """A handle on one run; nothing is asked before a method is called."""

    def __init__(self, yard: "Runyard", run_id: str) -> None:
        self._yard = yard
        self._planned: dict[str, Planned] = {}
        self._queue = QueueWatch()
        self.id = run_id

    @property
    def ui(self) -> str:
        """Its address in the Temporal UI, empty where that is not known."""
        return self._yard.ui_of(self.id)

    @property
    def _handle(self) -> WorkflowHandle[object, RunResult]:
        return self._yard.client.get_workflow_handle(self.id, result_type=RunResult)

    # looking

    async def describe(self) -> RunView:
        """The run now: from a worker while it goes on, from the store when it has ended.

        Without either it is what Temporal itself knows, with no tasks. Raises NotFound, ServerUnavailable.
        """
        if not self._yard.online:
            return await self._remembered()
        try:
            if view := await self._ask():
                return view
            description = await self._handle.describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND and "namespace" not in error.message.lower():
                return await self._remembered()
            raise self._explain(error) from error
        if description.status is WorkflowExecutionStatus.RUNNING:
            return await self._summary(description, cause=_NO_WORKER)
        return await self._stored() or await self._summary(description, cause=await self._cause())

    async def watch(self, interval_s: float = 0.5) -> AsyncIterator[RunView]:
        """The run at every change, looked for each ``interval_s`` seconds; the last one is its end."""
        if not self._yard.online:
            yield await self._remembered()
            return
        await self._exists()
        ended = asyncio.create_task(self._wait())
        last: RunView | None = None
        try:
            while True:
                done = ended.done()
                view = await self.describe() if done else await self._ask() or await self.describe()
                if view != last:
                    yield view
                last = view
                if done:
                    return
                await asyncio.wait({ended}, timeout=interval_s)
        finally:
            ended.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ended

    async def result(self) -> RunResult:
        """Wait for the end. A run that failed is a result too.

        Raises what kept it from being a run at all: InvalidRunFile, InvalidRequest, RemoteError; NotFound.
        """
        if not self._yard.online:
            return _result_of(await self._remembered())
        try:
            return await self._handle.result()
        except WorkflowFailureError as error:
            return await self._failed(error)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND and "namespace" not in error.message.lower():
                return _result_of(await self._remembered())
            raise self._explain(error) from error

    async def logs(
        self,
        task: str,
        *,
        step: Log | None = None,
        attempt: int | None = None,
        follow: bool = False,
        lines: int | None = None,
    ) -> AsyncIterator[LogLine]:
        """A task's log: all steps in order, or one (a number from 0, or `setup`).

        Of the last attempt, or the one that is given; with ``follow`` as it grows, over all attempts from the
        present one, to the task's end. ``lines`` = only so many, the last ones. A task that never came to a
        step has its setup log only. Raises NotFound (run, task, step), StoreError.
        """
        chosen = read_logs(self, self._yard.store, task, step=step, attempt=attempt, follow=follow, lines=lines)
        async with contextlib.aclosing(chosen) as found:
            async for line in found:
                yield line

    # deciding

    async def cancel(self) -> None:
        """Ask for the end of the whole run. Returns at once; `result` waits. Raises Conflict when it has ended."""
        try:
            description = await self._handle.describe()
            if description.status is not WorkflowExecutionStatus.RUNNING:  # the server would say yes to it
                raise Conflict(f"run {self.id} has ended already")
            await self._handle.cancel()
        except RPCError as error:
            await self._raise_for(error)

    async def approve(self, task: str, *, by: str) -> TaskView:
        """Approve a task that waits for it. Raises NotFound, Conflict (it does not wait; approved already)."""
        return await self._update("approve", ApprovalRequest(task=task, by=by))

    async def reject(self, task: str, *, by: str, reason: str = "") -> TaskView:
        """Refuse a task that waits for approval: it fails. Raises NotFound, Conflict."""
        return await self._update("reject", ApprovalRequest(task=task, by=by, reason=reason))

    async def cancel_task(self, task: str, *, by: str = "", reason: str = "") -> TaskView:
        """End one task; a held one is given up. Raises NotFound, Conflict (it has ended)."""
        return await self._update("cancel_task", TaskRequest(task=task, by=by, reason=reason))

    async def retry_task(self, task: str, *, by: str = "", reason: str = "") -> TaskView:
        """Try a held task again. Raises NotFound, Conflict (it is not held)."""
        return await self._update("retry_task", TaskRequest(task=task, by=by, reason=reason))

    async def _update(self, name: str, request: ApprovalRequest | TaskRequest) -> TaskView:
        try:
            async with asyncio.timeout(ANSWER_S):
                view: TaskView = await self._handle.execute_update(name, request, result_type=TaskView)
                return view
        except WorkflowUpdateFailedError as error:
            raise await self._refused(error, request.task) from error
        except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError) as error:
            if (task := asyncio.current_task()) and task.cancelling():
                raise asyncio.CancelledError from error  # the SDK hides a cancel of our caller's in its own error
            raise ServerUnavailable(f"{_NO_WORKER}: nobody took the {name}", remedy=_start_worker()) from error
        except RPCError as error:
            await self._raise_for(error)

    async def _refused(self, error: WorkflowUpdateFailedError, task: str) -> RunyardError:
        cause = error.cause
        if not isinstance(cause, ApplicationError):
            return RemoteError(str(cause or error))
        if cause.type == "not_found":
            return unknown_task(task, [each.name for each in (await self.describe()).tasks], run_id=self.id)
        return from_application(cause)

    # inside

    async def _ask(self) -> RunView | None:
        """The worker's answer; None when none answers in time, or when the run has just ended or is forgotten."""
        try:
            view = await self._view()
        except WorkflowQueryFailedError as error:
            raise RemoteError(f"the worker cannot describe {self.id}: {error.message[:300]}") from error
        except RPCError as error:
            quiet = (RPCStatusCode.FAILED_PRECONDITION, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.NOT_FOUND)
            if error.status in (*quiet, RPCStatusCode.CANCELLED, RPCStatusCode.RESOURCE_EXHAUSTED):
                return None
            raise self._explain(error) from error
        if view is None:
            return None
        if not view.name:  # not read yet: a graph without tasks looks as if all of them had ended
            view = view.model_copy(update={"phase": "queued", "result": "unknown", "ended_at": None})
        return self._yard.with_ui(await self._queue.tell(self._yard.client, view))

    async def _view(self) -> RunView | None:
        """As the open execution has it or, where that cannot answer now, as the last one left it.

        None where the run has ended: a question to such an execution would be answered by a replay of it.
        """
        for _ in range(LOOKS):
            description = await self._handle.describe()
            if description.status is not WorkflowExecutionStatus.RUNNING:
                return None
            closing = await description.memo_value(CLOSING, "")
            closes = closing == description.run_id
            begins = description.history_length <= FRESH_EVENTS
            if closing and (closes or begins) and (view := await self._left_by(closing)):
                return view
            if not closes:
                break
            await asyncio.sleep(LOOK_S)
        return await _first(self._query, after_s=AGAIN_S)

    async def _left_by(self, execution: str) -> RunView | None:
        """The view that this execution left for the next one's first moment, if it did."""
        with contextlib.suppress(NotFound, Corrupt):
            passing = await read_passing(self._yard.store, self.id)
            return complete(passing.view, await self.planned()) if passing.by == execution else None
        return None

    async def _query(self) -> RunView:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + ANSWER_S
        while True:
            try:
                answer: dict[str, Any] = await self._handle.query(
                    "describe", result_type=dict[str, Any], rpc_timeout=timedelta(seconds=ANSWER_S)
                )
            except RPCError as error:
                if error.status is not RPCStatusCode.RESOURCE_EXHAUSTED or loop.time() > until_s:
                    raise
                await asyncio.sleep(FULL_S)
            else:
                return read_view(answer, await self.planned())

    async def planned(self) -> Mapping[str, Planned]:
        """Each task's id and parents, from the stored plan; empty before there is one. Raises StoreError."""
        if not self._planned:
            self._planned = await read_planned(self._yard.store, self.id)
        return self._planned

    async def _stored(self) -> RunView | None:
        view = await self._yard.stored(self.id)
        return complete(view, await self.planned()) if view else None

    async def _exists(self) -> None:
        try:
            await self._handle.describe()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND or await self._yard.stored(self.id) is None:
                await self._raise_for(error)

    async def _wait(self) -> None:
        """Until it has ended, in whatever way. Who waits asks other things besides, and hears what is wrong."""
        while True:
            try:
                await self._handle.result(follow_runs=True)
                return
            except WorkflowFailureError:
                return
            except RPCError as error:
                if error.status is RPCStatusCode.NOT_FOUND:
                    return
                await asyncio.sleep(REST_S)

    async def _remembered(self) -> RunView:
        view = await self._stored()
        if view is None and not self._yard.online:
            self._yard.client  # noqa: B018 - raises why there is no server
        if view is None:
            raise await self._yard.unknown_run(self.id)
        return view

    async def _summary(self, description: WorkflowExecutionDescription, *, cause: str = "") -> RunView:
        return self._yard.summarise(description, await description.memo(), cause=cause)

    async def _cause(self) -> str:
        """Of a run that has ended without a record, such as one whose file was not valid."""
        try:
            return (await self.result()).cause
        except RunyardError as error:
            return " · ".join(error.message.splitlines())

    async def _failed(self, error: WorkflowFailureError) -> RunResult:
        cause = error.cause
        if isinstance(cause, ApplicationError) and cause.type == "RunFailed":
            detail = next(iter(cause.details), None)
            if isinstance(detail, Mapping):
                return RunResult.model_validate(detail)
        if isinstance(cause, ApplicationError):
            raise from_application(cause) from error
        if view := await self._yard.stored(self.id):
            return _result_of(view)
        if isinstance(cause, CancelledError | TerminatedError):
            word = "cancelled" if isinstance(cause, CancelledError) else "terminated from outside"
            return RunResult(id=self.id, phase="cancelled", result="stopped", cause=word)
        if isinstance(cause, TemporalTimeout):
            return RunResult(id=self.id, phase="finished", result="failed", cause="the workflow timed out")
        raise RemoteError(str(cause or error)) from error

    def _explain(self, error: RPCError) -> RunyardError:
        return self._yard.explain(error, what=f"run {self.id}")

    async def _raise_for(self, error: RPCError) -> NoReturn:
        """For what changes a run: one that has ended and one that is not there are told apart."""
        gone = error.status is RPCStatusCode.NOT_FOUND and "namespace" not in error.message.lower()
        if gone and ("completed" in error.message or await self._yard.stored(self.id)):
            raise Conflict(f"run {self.id} has ended already") from error
        if gone:
            raise await self._yard.unknown_run(self.id) from error
        if error.status is RPCStatusCode.DEADLINE_EXCEEDED:
            raise ServerUnavailable(_NO_WORKER, remedy=_start_worker()) from error
        if error.status is RPCStatusCode.INVALID_ARGUMENT:
            raise InvalidRequest(error.message[:300]) from error
        raise self._explain(error) from error


def _start_worker() -> str:
    return "Start one with `runyard worker`; `runyard dev` has one."


def _result_of(view: RunView) -> RunResult:
    return RunResult(id=view.id, phase=view.phase, result=view.result, cause=view.cause, counts=view.counts)


async def _first(ask: Callable[[], Coroutine[None, None, T]], *, after_s: float) -> T:
    """The first answer, the question being put again every ``after_s`` seconds, ``ASKED`` times at most."""
    asked = {asyncio.create_task(ask())}
    try:
        while True:
            last = len(asked) == ASKED
            done, _ = await asyncio.wait(
                asked, timeout=None if last else after_s, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return done.pop().result()
            asked.add(asyncio.create_task(ask()))
    finally:
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
