"""One worker process: which queue it serves, and with what.

The queue `runyard` has the workflows and the activities that need the store only; each executor has a queue of
its own, so that a cluster, an architecture or a pool of GPUs is a queue.
"""

import asyncio
import math
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import timedelta

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Worker, WorkflowRunner

from activities.cleanup import CleanupActivities
from activities.faults import Fault, no_fault
from activities.group import GroupActivities
from activities.reap import PodWatch, ReapActivities
from activities.run import RunActivities
from activities.task import TaskActivities
from runyard import __version__
from runyard.errors import ConfigError
from runyard.executors.base import Executor
from runyard.executors.open import open_executor
from runyard.metrics import NO_METRICS, Metrics
from runyard.settings import HEARTBEAT_S, Settings
from runyard.spec.cleanup import DAY_S, Retention
from runyard.spec.group import LINES_QUEUE, NO_CAPS, Caps
from runyard.spec.run import RUNS_QUEUE, executor_queue
from runyard.store.base import ObjectStore
from runyard.store.open import open_store
from runyard.temporal import SEARCH_ATTRIBUTES
from runyard.traces import NO_TRACES, Traces
from workers.leaving import Leaving
from workers.runner import Runner, collect_rarely
from workers.traces import traced
from workflows.cleanup import CleanupWorkflow
from workflows.group import GroupWorkflow
from workflows.run import RunWorkflow

RUNNER = Runner()

BUILD_ID = f"runyard-{__version__}"
"""What histories say about who made them. The SDK's own would be a digest of every module that is loaded: it reads
all of them once more, and compiles anew what keeps no bytecode, which was a fifth of a worker's start."""

LONG_TASKS = 2_000
"""Activities at once for an executor: they wait in the loop and cost next to nothing."""


async def serve(
    client: Client,
    settings: Settings,
    *,
    runs: bool = True,
    executors: Sequence[str] = ("local",),
    metrics: Metrics = NO_METRICS,
    ready: asyncio.Event | None = None,
    tied: bool = False,
) -> None:
    """Serve until cancelled; then let go of what runs, which others adopt. With ``tied`` there are no others.

    Raises ConfigError when the namespace lacks the search attributes and this client may not add them.
    """
    store = open_store(settings)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        traces = await stack.enter_async_context(traced())
        opened = [open_executor(name, settings, metrics=metrics, tied=tied) for name in executors]
        for executor in opened:
            stack.push_async_callback(executor.close)
        if runs:
            await require_search_attributes(client)
        for worker in build_workers(
            client,
            store,
            opened,
            runs=runs,
            log_bytes=settings.log_bytes,
            caps=Caps(project_runs=settings.project_runs, executor_runs=settings.executor_runs),
            heartbeat_s=settings.heartbeat_s,
            retention=retention_of(settings),
            metrics=metrics,
            traces=traces,
            looked_after=[*executors, settings.executor, *settings.cleanup_executors],
        ):
            await stack.enter_async_context(worker)
        collect_rarely()
        if ready is not None:
            ready.set()
        await asyncio.Event().wait()


def build_workers(
    client: Client,
    store: ObjectStore,
    executors: Sequence[Executor],
    *,
    runs: bool = True,
    log_bytes: int = 1 << 30,
    caps: Caps = NO_CAPS,
    heartbeat_s: float = HEARTBEAT_S,
    retention: Retention | None = None,
    looked_after: Sequence[str] = (),
    metrics: Metrics = NO_METRICS,
    traces: Traces = NO_TRACES,
    fault: Fault = no_fault,
    runner: WorkflowRunner = RUNNER,
) -> list[AbstractAsyncContextManager[object]]:
    """The Temporal workers and what goes with them, not started yet. ``fault`` and ``runner`` are for tests.

    A cleanup goes by ``retention``, and looks at the pods of ``executors`` and of those that are ``looked_after``.
    """
    names = [*(executor.name for executor in executors), *looked_after]
    kept = retention or Retention()
    cleanup = CleanupActivities(store, client, retention=kept, executors=names, fault=fault)
    run = RunActivities(store, caps=caps, heartbeat_s=heartbeat_s, metrics=metrics, traces=traces, fault=fault)
    workers: list[AbstractAsyncContextManager[object]] = []
    if runs:
        workers.append(Leaving(_run_worker(client, run, cleanup, runner)))
    for executor in executors:
        tasks = TaskActivities(store, executor, log_bytes=log_bytes, metrics=metrics, traces=traces, fault=fault)
        worker = Worker(
            client,
            task_queue=executor_queue(executor.name),
            activities=[
                tasks.schedule_task,
                tasks.fetch_task,
                tasks.delete_task,
                ReapActivities(executor, client, metrics=metrics).reap_pods,
            ],
            build_id=BUILD_ID,
            max_concurrent_activities=LONG_TASKS,
        )
        workers.append(Leaving(worker))
        workers.append(PodWatch(executor, client, metrics=metrics))
    return [*workers, Leaving(_line_worker(client, runner))] if runs else workers


def _line_worker(client: Client, runner: WorkflowRunner) -> Worker:
    """Lines have a queue of their own: their activities wait for hours, those of runs must not wait for them."""
    groups = GroupActivities(client)
    return Worker(
        client,
        task_queue=LINES_QUEUE,
        workflows=[GroupWorkflow],
        activities=[groups.stay_in_line, groups.watch_run],
        workflow_runner=runner,
        build_id=BUILD_ID,
        max_concurrent_workflow_tasks=4,
        max_concurrent_workflow_task_polls=2,
        max_concurrent_activity_task_polls=2,
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=3),
        max_concurrent_activities=LONG_TASKS,
    )


def retention_of(settings: Settings) -> Retention:
    """The rules of cleanups as the settings give them: in days, `inf` for ever."""

    def seconds(days: float) -> float | None:
        return None if math.isinf(days) else days * DAY_S

    return Retention(
        logs_s=seconds(settings.keep_logs_days),
        archives_s=seconds(settings.keep_archives_days),
        runs_s=seconds(settings.keep_runs_days),
        runs_per_group=settings.keep_runs_per_group,
        total_bytes=settings.keep_bytes,
        caches_s=seconds(settings.keep_caches_days),
        cache_bytes=settings.keep_cache_bytes,
        objects_per_s=settings.cleanup_objects_per_s,
    )


def _run_worker(client: Client, run: RunActivities, cleanup: CleanupActivities, runner: WorkflowRunner) -> Worker:
    return Worker(
        client,
        task_queue=RUNS_QUEUE,
        workflows=[RunWorkflow, CleanupWorkflow],
        activities=[
            run.prepare_run,
            run.record_run,
            run.leave_view,
            cleanup.plan_cleanup,
            cleanup.survey,
            cleanup.clean,
            cleanup.remove_run,
        ],
        workflow_runner=runner,
        build_id=BUILD_ID,
        max_concurrent_workflow_tasks=8,
        # a dead worker's runs go to the others after this long, not after ten seconds
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=3),
        max_concurrent_activities=20,
    )


async def require_search_attributes(client: Client) -> None:
    """Add what is missing. Adding again with another type is answered with OK and changes nothing: so look."""
    service = client.operator_service
    try:
        known = await service.list_search_attributes(ListSearchAttributesRequest(namespace=client.namespace))
        present = {name: _word(kind) for name, kind in known.custom_attributes.items()}
        missing = {name: kind for name, kind in SEARCH_ATTRIBUTES.items() if name not in present}
        if missing:
            await service.add_search_attributes(
                AddSearchAttributesRequest(
                    namespace=client.namespace,
                    search_attributes={name: _kind(kind) for name, kind in missing.items()},
                )
            )
    except RPCError as error:
        raise ConfigError(
            f"the search attributes of namespace {client.namespace} cannot be made: {error.message}",
            remedy="Have an administrator run `runyard doctor --fix`.",
        ) from error
    wrong = [f"{n} is {present[n]}, not {k}" for n, k in SEARCH_ATTRIBUTES.items() if present.get(n, k) != k]
    if wrong:
        raise ConfigError("search attributes of another type: " + ", ".join(wrong))


def _kind(word: str) -> IndexedValueType.ValueType:
    names = {"Keyword": "KEYWORD", "KeywordList": "KEYWORD_LIST", "Int": "INT"}
    return IndexedValueType.Value(f"INDEXED_VALUE_TYPE_{names[word]}")


def _word(kind: IndexedValueType.ValueType) -> str:
    name = IndexedValueType.Name(kind).removeprefix("INDEXED_VALUE_TYPE_")
    return "".join(part.capitalize() for part in name.split("_"))
