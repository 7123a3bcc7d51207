"""A run by workers that are pods of our image, as the chart makes them, with Temporal beside them."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from kubernetes.aio.client import ApiClient, ApiException, AppsV1Api, CoreV1Api
from lab import Lab
from minio_server import free_port
from release import Values, create, helm, render
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment
from yard import temporal_program

from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult
from runyard.temporal import data_converter

__all__ = ["helm"]  # a fixture

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(600)]

FILE = """
runs:
  - name: two
    tasks:
      - name: greet
        runtime: {containers: [{image: "lab.local/task:1"}]}
        steps:
          - run: 'echo "hello from $RUNYARD_TASK"'
          - run: 'mkdir out && echo kept > out/file'
          - save_to_workspace: {contents: [{source_dir: out}]}
      - name: read
        depends: [greet]
        runtime: {containers: [{image: "lab.local/task:1"}]}
        steps: [{restore_workspace: {}}, {run: 'grep kept file'}]
"""


@pytest_asyncio.fixture
async def alone() -> AsyncIterator[Client]:
    """A Temporal server that no other test's worker serves: the workers here are in pods."""
    async with await WorkflowEnvironment.start_local(
        data_converter=data_converter(), dev_server_existing_path=temporal_program()
    ) as environment:
        yield environment.client


async def test_workers_in_pods_run_a_run_and_leave_its_log_and_nothing_else(
    helm: Path, lab: Lab, alone: Client
) -> None:
    async with lab.namespace() as own, lab.namespace() as tasks, lab.bucket() as bucket, lab.api() as api:
        core = CoreV1Api(api)
        credentials = f"[default]\naws_access_key_id={lab.access_key}\naws_secret_access_key={lab.secret_key}\n"
        secret = {"metadata": {"name": "s3"}, "stringData": {"credentials": credentials}}
        await core.create_namespaced_secret(own, secret)
        await create(api, render(helm, _values(lab, api, alone, bucket, tasks), namespace=own))
        try:
            request = {"file": FILE, "executor": "kubernetes"}
            handle = await alone.start_workflow(
                WORKFLOW, request, id="in-pods", task_queue=RUNS_QUEUE, result_type=RunResult
            )
            async with asyncio.timeout(240):
                ended = await handle.result()
            assert ended.result == "success", ended
            assert not (await core.list_namespaced_pod(tasks)).items
            left = await core.list_namespaced_secret(tasks)
            assert not left.items
        finally:
            said = await _said(core, own)
            for name in ("ry-runyard-runs", "ry-runyard-kubernetes"):
                await AppsV1Api(api).delete_namespaced_deployment(name, own)
        assert "serving runs at" in said["runs"], "and no executor: these have no rights in the cluster"
        assert "serving kubernetes at" in said["kubernetes"]
        store = lab.minio()
        logs = [entry.object_name for entry in store.list_objects(bucket, recursive=True)]
        texts = [store.get_object(bucket, name).data for name in logs if "/segments/0/" in name]
        assert b"hello from greet\n" in texts


async def test_a_workers_probes_find_it_ready(helm: Path, lab: Lab, alone: Client) -> None:
    """And what it says of itself is JSON, line by line."""
    async with lab.namespace() as own, lab.bucket() as bucket, lab.api() as api:
        core = CoreV1Api(api)
        credentials = f"[default]\naws_access_key_id={lab.access_key}\naws_secret_access_key={lab.secret_key}\n"
        secret = {"metadata": {"name": "s3"}, "stringData": {"credentials": credentials}}
        await core.create_namespaced_secret(own, secret)
        values = _values(lab, api, alone, bucket, own)
        port = free_port()
        values |= {"metrics": {"enabled": True, "port": port}, "log": {"format": "json"}}
        values["queues"][0]["replicas"] = 0
        await create(api, render(helm, values, namespace=own))
        try:
            async with asyncio.timeout(120):
                while not await _is_ready(core, own):
                    await asyncio.sleep(0.5)
            page = await asyncio.to_thread(_get, f"http://127.0.0.1:{port}/metrics")
            assert "temporal_" in page
        finally:
            said = await _said(core, own)
            await AppsV1Api(api).delete_namespaced_deployment("ry-runyard-runs", own)
        lines = [json.loads(line) for line in said["runs"].splitlines()]
        assert lines[0]["message"].startswith("serving runs at")


async def _is_ready(core: CoreV1Api, namespace: str) -> bool:
    pods = (await core.list_namespaced_pod(namespace)).items
    return any(each.ready for pod in pods for each in pod.status.container_statuses or [])


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return str(answer.read().decode())


def _values(lab: Lab, api: ApiClient, temporal: Client, bucket: str, tasks: str) -> Values:
    repository, _, tag = lab.image_runyard.partition(":")
    server = urlsplit(api.configuration.host)
    return {
        "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
        "temporal": {"address": temporal.service_client.config.target_host},
        "store": {"s3": {"bucket": bucket, "endpoint": lab.s3_endpoint, "existingSecret": "s3"}},
        # the lab's servers are on the loopback, and it has no proxy for the API server's address in the cluster
        "hostNetwork": True,
        "metrics": {"enabled": False},  # and so two workers of this node would want one port
        "log": {"format": "text"},
        "extraEnv": [
            {"name": "KUBERNETES_SERVICE_HOST", "value": server.hostname},
            {"name": "KUBERNETES_SERVICE_PORT", "value": str(server.port)},
        ],
        "runs": {"replicas": 1},
        "queues": [
            {"name": "kubernetes", "namespace": tasks, "replicas": 1, "template": {"spec": {"hostNetwork": True}}}
        ],
    }


async def _said(core: CoreV1Api, namespace: str) -> dict[str, str]:
    """The workers' logs by component; printed too, for whoever reads a failure."""
    said = {}
    for pod in (await core.list_namespaced_pod(namespace)).items:
        try:
            text = await core.read_namespaced_pod_log(pod.metadata.name, namespace)
        except ApiException as error:
            text = f"no log: {error.reason}; {pod.status.container_statuses}"
        said[pod.metadata.labels["app.kubernetes.io/component"]] = text
        print(f"--- {pod.metadata.name}\n{text[-3000:]}")
    return said
