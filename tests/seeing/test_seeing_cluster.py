"""A trace of a run in pods: all phases, and the step's place in it, which is told to main only."""

import asyncio
import contextlib
from pathlib import Path

import pytest
from chunks import whole
from collector import collecting
from kubernetes.aio.client import CoreV1Api
from lab import Lab
from temporalio.client import Client
from yard import SANDBOX, Yard

from runyard.executors.kubernetes.executor import KubernetesExecutor
from runyard.executors.kubernetes.pod import Rules
from runyard.records.reader import LogReader
from runyard.settings import Settings
from runyard.spec.run import task_id
from runyard.store.open import open_store
from runyard.traces import Place
from workers.serve import build_workers
from workers.traces import traced

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(300)]

PHASES = {"queue", "schedule", "pull", "start", "run", "drain", "archive", "delete"}


async def test_a_run_in_pods_is_one_tree_with_every_phase(
    client: Client, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {
        "name": "a",
        "runtime": {"containers": [{"image": lab.image_task}]},
        "steps": [{"run": 'printf %s "$TRACEPARENT"'}],
    }
    async with contextlib.AsyncExitStack() as stack:
        collector = stack.enter_context(collecting())
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        namespace, bucket = (
            await stack.enter_async_context(lab.namespace()),
            await stack.enter_async_context(lab.bucket()),
        )
        core = CoreV1Api(await stack.enter_async_context(lab.api()))
        store = open_store(
            Settings(
                state=Path("/nowhere"),
                store="s3",
                s3_endpoint=lab.s3_endpoint,
                s3_bucket=bucket,
                s3_access_key=lab.access_key,
                s3_secret_key=lab.secret_key,
            )
        )
        stack.push_async_callback(store.close)
        rules = Rules(
            agent_image=lab.image_runyard,
            agent_command=["python3", "-I", "/opt/runyard/agent.pyc"],
            template={"spec": {"hostNetwork": True}},
        )
        executor = KubernetesExecutor(rules=rules, kubeconfig=lab.kubeconfig, namespace=namespace)
        stack.push_async_callback(executor.close)
        async with traced() as traces, contextlib.AsyncExitStack() as serving:
            for worker in build_workers(client, store, [executor], traces=traces, runner=SANDBOX):
                await serving.enter_async_context(worker)
            yard = Yard(client, store, executor)
            handle = await yard.start({"runs": [{"name": "build", "tasks": [task]}]})
            told = await _environments(core, namespace)
            await handle.result()
        reader = LogReader(store, task_id(handle.id, handle.first_execution_run_id or "", "a"), 1)
        log = await whole(reader.read(0))
    (attempt,) = collector.below(collector.named("build")).values()
    assert set(collector.below(attempt)) == PHASES
    assert len({span.span_id for span in collector.spans}) == len(collector.spans)
    place = str(Place(trace=attempt.trace_id.hex(), span=attempt.span_id.hex()))
    assert log.decode() == place
    assert told == {"main": place, "agent": ""}


async def _environments(core: CoreV1Api, namespace: str) -> dict[str, str]:
    """What each container of the first pod that there is has as TRACEPARENT."""
    while not (pods := (await core.list_namespaced_pod(namespace)).items):
        await asyncio.sleep(0.05)
    return {
        each.name: next((pair.value for pair in each.env if pair.name == "TRACEPARENT"), "")
        for each in pods[0].spec.containers
    }
