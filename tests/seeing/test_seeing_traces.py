"""Traces as a collector gets them: one tree a run, the same ids whoever tells, and the steps know theirs."""

import asyncio
import contextlib
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from collector import Collector, Span, collecting
from minio_server import free_port
from seen_worker import worker
from temporalio.client import Client, WorkflowFailureError
from temporalio.worker import Worker
from yard import SANDBOX, Yard

from activities.faults import no_fault
from activities.launch import build_launch
from activities.signatures import TaskAttempt
from runyard.cli.checks import machine
from runyard.executors.base import Executor, Launch
from runyard.executors.memory import MemoryExecutor
from runyard.executors.open import open_executor
from runyard.settings import Settings
from runyard.spec.plan import Container, RunPlan, RunStep, TaskPlan
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult, task_id
from runyard.store import paths
from runyard.store.base import ObjectStore, read
from runyard.traces import Place, parse
from workers.serve import build_workers
from workers.traces import traced

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def file_of(**tasks: list[str]) -> dict[str, object]:
    """A chain of tasks, each with these steps."""
    names = list(tasks)
    return {
        "runs": [
            {
                "name": "build",
                "tasks": [
                    {
                        "name": name,
                        "runtime": {"containers": [{"image": "busybox"}]},
                        "steps": [{"run": step} for step in steps],
                        "depends": names[number - 1 : number] if number else [],
                    }
                    for number, (name, steps) in enumerate(tasks.items())
                ],
            }
        ]
    }


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        yield collector


@contextlib.asynccontextmanager
async def tracing(
    client: Client, store: ObjectStore, executor: Executor, *, fault: Callable[[str], None] = no_fault
) -> AsyncIterator[Yard]:
    """A worker as `serve` makes it. When the block is over, the collector has all its spans."""
    async with contextlib.AsyncExitStack() as stack:
        traces = await stack.enter_async_context(traced())
        workers: list[Worker] = build_workers(
            client, store, [executor], traces=traces, runner=SANDBOX, fault=fault
        )
        for worker in workers:
            await stack.enter_async_context(worker)
        yield Yard(client, store, executor)


def facts(span: Span) -> dict[str, str]:
    return {each.key: each.value.string_value for each in span.attributes if each.value.string_value}


def place(span: Span) -> str:
    return str(Place(trace=span.trace_id.hex(), span=span.span_id.hex()))


async def test_a_run_is_one_tree_and_its_steps_know_their_place_in_it(
    client: Client, store: ObjectStore, tmp_path: Path, collector: Collector
) -> None:
    executor = open_executor("local", Settings(state=tmp_path / "state", store_folder=tmp_path / "store"))
    async with tracing(client, store, executor) as yard:
        handle = await yard.start(
            file_of(a=["sleep 0.2", 'printf "at %s" "$TRACEPARENT"'], b=["exit 3"]), project="web"
        )
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        execution = (await handle.describe()).raw_description.workflow_execution_info.first_run_id
    await executor.close()

    assert collector.services == {"runyard"}
    assert len({span.span_id for span in collector.spans}) == len(collector.spans), "no span came twice"
    assert len({span.trace_id for span in collector.spans}) == 1
    root = collector.named("build")
    assert root.parent_span_id == b""
    assert facts(root)["cicd.pipeline.run.id"] == handle.id
    assert facts(root)["cicd.pipeline.result"] == "failure"
    assert facts(root)["runyard.project"] == "web"
    assert root.status.message == "1 of 2 tasks failed: b"
    attempts = collector.below(root)
    assert set(attempts) == {"a", "b"}
    for attempt in attempts.values():
        phases = collector.below(attempt)
        assert set(phases) == {"queue", "start", "run", "drain", "archive", "delete"}, (
            "as far as they are known here"
        )
        assert root.start_time_unix_nano <= attempt.start_time_unix_nano <= attempt.end_time_unix_nano
        assert attempt.end_time_unix_nano <= root.end_time_unix_nano
        order = [phases[name] for name in ("queue", "start", "run", "archive", "delete")]
        starts = [span.start_time_unix_nano for span in order]
        assert starts == sorted(starts)
        assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in phases.values())
    run = collector.below(attempts["a"])["run"]
    assert run.end_time_unix_nano - run.start_time_unix_nano >= 200_000_000
    assert facts(attempts["a"])["cicd.pipeline.task.run.result"] == "success"
    assert facts(attempts["b"])["runyard.reason"] == "exit_code"
    assert "exit code 3" in attempts["b"].status.message

    log = await read(store, paths.step_log(task_id(handle.id, execution, "a"), 1, 1))
    assert log.decode() == f"at {place(attempts['a'])}"


@pytest.mark.parametrize("where", ["schedule.started", "fetch.ended", "fetch.sealed", "delete.deleted"])
async def test_a_try_that_is_cut_short_doubles_no_span(
    client: Client, store: ObjectStore, collector: Collector, where: str
) -> None:
    cut = []

    def fault(point: str) -> None:
        if point == where and not cut:
            cut.append(point)
            raise ConnectionError("cut")

    executor = MemoryExecutor()
    async with tracing(client, store, executor, fault=fault) as yard:
        await (await yard.start(file_of(a=["print hello"]))).result()
    await executor.close()
    assert cut
    (attempt,) = collector.below(collector.named("build")).values()
    ids = [span.span_id for span in collector.spans if span.name != "delete"]
    assert len(set(ids)) == len(ids)
    assert len({span.span_id for span in collector.spans if span.name == "delete"}) == 1
    names = {span.name for span in collector.spans if span.parent_span_id == attempt.span_id}
    # what was known only to the try that sealed it, and died before it could tell, is not made up
    lost = {"start", "drain", "archive"} if where == "fetch.sealed" else set()
    assert names == {"queue", "start", "run", "drain", "archive", "delete"} - lost


@pytest.mark.timeout(120)
async def test_a_worker_that_is_killed_leaves_one_tree(
    client: Client, tmp_path: Path, collector: Collector
) -> None:
    """The second worker tells of what the first one began, under the same ids."""
    gate = tmp_path / "gate"
    file = file_of(a=[f"touch {gate}.begun; while ! [ -e {gate} ]; do sleep 0.1; done"], b=["true"])
    soon = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
    with worker(client, tmp_path, **soon) as first:
        handle = await client.start_workflow(
            WORKFLOW,
            {"file": file, "executor": "local"},
            id=f"killed-{tmp_path.name}",
            task_queue=RUNS_QUEUE,
            result_type=RunResult,
        )
        async with asyncio.timeout(60):
            while not Path(f"{gate}.begun").exists():
                await asyncio.sleep(0.1)
        first.kill()
        first.wait()
        gate.touch()
        with worker(client, tmp_path, **soon):
            await handle.result()
    root = collector.named("build")
    attempts = collector.below(root)
    assert set(attempts) == {"a", "b"}
    for attempt in attempts.values():
        assert {"start", "run", "drain", "archive", "delete"} <= set(collector.below(attempt))
    assert len({span.span_id for span in collector.spans}) == len(collector.spans)
    assert len({span.trace_id for span in collector.spans}) == 1


async def test_the_callers_trace_is_gone_on_with(client: Client, store: ObjectStore, collector: Collector) -> None:
    executor = MemoryExecutor()
    async with tracing(client, store, executor) as yard:
        await (await yard.start(file_of(a=["echo $TRACEPARENT"]), traceparent=CALLER)).result()
    await executor.close()
    caller = parse(CALLER)
    assert caller is not None
    root = collector.named("build")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (caller.trace, caller.span)
    assert {span.trace_id.hex() for span in collector.spans} == {caller.trace}


async def test_what_the_caller_does_not_sample_is_not_sent(
    client: Client, store: ObjectStore, collector: Collector
) -> None:
    executor = MemoryExecutor()
    unsampled = CALLER[:-1] + "0"
    async with tracing(client, store, executor) as yard:
        handle = await yard.start(file_of(a=["output at=$TRACEPARENT"]), traceparent=unsampled)
        await handle.result()
        outputs = await _outputs(store, yard, handle.id)
    await executor.close()
    assert collector.spans == []
    assert outputs == {"at": unsampled}, "a step may still go on with it"


async def test_a_worker_that_tells_nobody_hands_the_callers_place_on(yard: Yard) -> None:
    handle = await yard.start(file_of(a=["output at=$TRACEPARENT"]), traceparent=CALLER)
    await handle.result()
    assert await _outputs(yard.store, yard, handle.id) == {"at": CALLER}
    handle = await yard.start(file_of(a=["output at=[$TRACEPARENT]"]))
    await handle.result()
    assert (await _outputs(yard.store, yard, handle.id))["at"] in ("[]", "[$TRACEPARENT]"), "and makes none up"


async def _outputs(store: ObjectStore, yard: Yard, run_id: str) -> dict[str, str]:
    from runyard.records.logs import load_seal

    described = await yard.client.get_workflow_handle(run_id).describe()
    execution = described.raw_description.workflow_execution_info.first_run_id
    seal = await load_seal(store, task_id(run_id, execution, "a"), 1)
    assert seal is not None
    return seal.outputs


async def test_a_restart_is_a_trace_of_its_own_with_a_link(
    client: Client, store: ObjectStore, collector: Collector
) -> None:
    executor = MemoryExecutor()
    async with tracing(client, store, executor) as yard:
        first = await yard.start(file_of(a=["print hello"], b=["exit 1"]), traceparent=CALLER)
        with pytest.raises(WorkflowFailureError):
            await first.result()
        second = await client.start_workflow(
            "RunWorkflow",
            {"restart": {"run": first.id}, "executor": "memory"},
            id=f"{first.id}-again",
            task_queue="runyard",
            result_type=RunResult,
        )
        with pytest.raises(WorkflowFailureError):
            await second.result()
    await executor.close()
    roots = {facts(span)["cicd.pipeline.run.id"]: span for span in collector.spans if span.name == "build"}
    again, earlier = roots[second.id], roots[first.id]
    assert again.trace_id != earlier.trace_id
    assert again.parent_span_id == b""
    assert [(link.trace_id, link.span_id) for link in again.links] == [(earlier.trace_id, earlier.span_id)]
    assert list(earlier.links) == []
    assert set(collector.below(again)) == {"b"}, "a kept task is the earlier run's"


async def test_a_traceparent_that_is_none_is_refused(yard: Yard) -> None:
    handle = await yard.start(file_of(a=["print hello"]), traceparent="latest")
    with pytest.raises(WorkflowFailureError) as failed:
        await handle.result()
    assert "traceparent" in str(failed.value.cause)


@pytest.mark.parametrize(
    "text",
    ["", "00", f"ff{CALLER[2:]}", CALLER.upper(), f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'1' * 32}-{'0' * 16}-01"],
)
def test_what_is_no_place(text: str) -> None:
    assert parse(text) is None


async def test_a_protocol_that_is_not_spoken_is_named_and_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "workers")  # a command that ran in this process before may have hushed it
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    async with traced() as traces:
        assert not traces.on
    assert "no traces are sent: traces are sent by http/protobuf, not by 'grpc'" in caplog.messages
    (found,) = [check for check in machine(Settings()) if check.name == "traces"]
    assert found.state == "warning"
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf" in found.remedy
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL")
    (found,) = [check for check in machine(Settings()) if check.name == "traces"]
    assert found.state == "ok"


def test_nothing_is_imported_where_nobody_asks() -> None:
    """The library costs a worker a tenth of a second and some megabytes."""
    probe = (
        "import asyncio, sys; from workers.traces import traced\n"
        "async def use():\n    async with traced() as traces: print(traces.on)\n"
        "asyncio.run(use()); import workers.serve\n"
        "print(sorted(name for name in sys.modules if name.startswith('opentelemetry')))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["False", "[]"]


async def test_a_collector_that_is_away_holds_nobody_up(
    client: Client, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The exporter would try again for ten seconds, and a worker that is told to end may have less."""
    caplog.set_level(logging.WARNING, "workers")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    executor = MemoryExecutor()
    async with asyncio.timeout(60):
        async with tracing(client, store, executor) as yard:
            assert (await (await yard.start(file_of(a=["print hello"]))).result()).result == "success"
    await executor.close()
    assert "spans are lost: the collector does not take them" in caplog.messages


async def test_a_pod_is_the_same_pod_whoever_is_told_of_its_spans(store: ObjectStore) -> None:
    """Else a worker without traces could not adopt what one with traces made, in the middle of an upgrade."""
    run = RunPlan(run_id="r", name="r")
    task = TaskPlan(id="t", name="t", containers=[Container(image="i")], steps=[RunStep(command="true")])
    attempt = TaskAttempt(run_id="r", task="t", task_id="t", attempt=1, at=(0, 0), header=0)

    async def launch(traceparent: str) -> Launch:
        return await build_launch(
            store, run, task, attempt, outputs_of={}, owner="o", log_bytes=1024, traceparent=traceparent
        )

    plain, traced_one = await launch(""), await launch(CALLER)
    assert traced_one.environment["TRACEPARENT"] == CALLER
    assert "TRACEPARENT" not in plain.environment
    assert plain.digest == traced_one.digest
