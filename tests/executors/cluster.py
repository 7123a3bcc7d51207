"""A real cluster for the tests of the executor: namespaces, executors, launches with the real main and agent.

Where it is comes from the fixture `lab`, or from RUNYARD_LAB_KUBECONFIG, RUNYARD_LAB_IMAGE (of tasks; with
python3, git, zstd and a shell) and RUNYARD_LAB_AGENT_IMAGE (with the agent; without it the first serves for
both). Main and agent write to a folder of this machine, so the cluster's node must be this machine. The agent is
the one of this checkout.
"""

import asyncio
import contextlib
import hashlib
import os
import time
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes.config
import pytest
from kubernetes.aio import client, config
from urllib3.exceptions import InsecureRequestWarning
from yards import Yard, launch, until

import runyard.agent
from runyard.executors.base import Launch
from runyard.executors.kubernetes.executor import KubernetesExecutor
from runyard.executors.kubernetes.pod import Rules
from runyard.executors.kubernetes.template import Manifest, merge
from runyard.executors.kubernetes.verdict import Patience
from runyard.script import compile_script
from runyard.spec.plan import Container

AGENT = ["python3", "-I", "/opt/runyard/agent.py"]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    kubeconfig: Path
    image: str
    agent_image: str = ""
    namespace: str = "default"

    @contextlib.asynccontextmanager
    async def core(self) -> AsyncIterator[client.CoreV1Api]:
        """The cluster as anybody else sees it: by the client's own calls, not by ours."""
        configuration = client.Configuration()
        await config.load_kube_config(str(self.kubeconfig), client_configuration=configuration)
        async with client.ApiClient(configuration) as connected:
            yield client.CoreV1Api(connected)

    def executor(
        self,
        folder: Path,
        *,
        template: Manifest | None = None,
        kind: type[KubernetesExecutor] = KubernetesExecutor,
        **more: Any,
    ) -> KubernetesExecutor:
        """An executor whose pods see ``folder`` at the same path."""
        rules = {key: more.pop(key) for key in list(more) if key in Rules.__dataclass_fields__}
        return kind(
            rules=Rules(
                **{
                    "agent_image": self.agent_image or self.image,
                    "agent_command": AGENT,
                    "template": merge(surroundings(folder), template or {}),
                    **rules,
                }
            ),
            **{
                "kubeconfig": self.kubeconfig,
                "namespace": self.namespace,
                "patience": Patience(pull_s=3, config_s=2, start_s=5),
                **more,
            },
        )

    def launch(self, folder: Path, command: str = "true", **more: Any) -> Launch:
        """A pod with the real pair."""
        update = more.pop("task", {})
        name = more.pop("name", "") or f"pod-{uuid.uuid4().hex[:12]}"
        asked = launch(folder, command, name=name, **more)
        task = asked.task.model_copy(update={"containers": [Container(image=self.image)], **update})
        digest = asked.digest or hashlib.sha256(f"{name}{command}".encode()).hexdigest()
        environment = {key: value for key, value in asked.environment.items() if key != "STEP"}
        change = {"task": task, "script": compile_script(task), "digest": digest, "environment": environment}
        return asked.model_copy(update=change)


def surroundings(folder: Path) -> Manifest:
    """What ties every pod to this machine: the agent of this checkout, and a folder as its store."""
    agent = {"name": "agent-program", "hostPath": {"path": runyard.agent.__file__}}
    store = {"name": "store", "hostPath": {"path": str(folder)}}
    here = {"name": "store", "mountPath": str(folder)}
    program = {"name": "agent-program", "mountPath": "/opt/runyard/agent.py"}
    main = {"name": "main", "volumeMounts": [here]}
    return {
        "spec": {
            "volumes": [agent, store],
            "containers": [main, {"name": "agent", "volumeMounts": [here, program]}],
        }
    }


def find_lab(request: pytest.FixtureRequest) -> Cluster:
    with contextlib.suppress(pytest.FixtureLookupError):
        lab = request.getfixturevalue("lab")
        return Cluster(kubeconfig=lab.kubeconfig, image=lab.image_task, agent_image=lab.image_runyard)
    kubeconfig = os.environ.get("RUNYARD_LAB_KUBECONFIG", "")
    if not kubeconfig:
        pytest.skip("needs a real kubelet: RUNYARD_LAB_KUBECONFIG names no kubeconfig of a lab")
    return Cluster(
        kubeconfig=Path(kubeconfig),
        image=os.environ.get("RUNYARD_LAB_IMAGE", "lab.local/kube-test:1"),
        agent_image=os.environ.get("RUNYARD_LAB_AGENT_IMAGE", ""),
    )


@contextlib.contextmanager
def fresh_namespace(cluster: Cluster, labels: dict[str, str] | None = None) -> Iterator[Cluster]:
    """Deleted afterwards with all that is in it."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    with _core(cluster) as core:
        core.create_namespace({"metadata": {"name": name, "labels": labels or {}}})
        latest = time.monotonic() + 60
        while not core.list_namespaced_service_account(name).items:  # no pod is admitted before
            assert time.monotonic() < latest
            time.sleep(0.05)
    try:
        yield replace(cluster, namespace=name)
    finally:
        with _core(cluster) as core:
            core.delete_collection_namespaced_pod(name, grace_period_seconds=0)
            core.delete_namespace(name)


@contextlib.asynccontextmanager
async def two_pods_only(cluster: Cluster) -> AsyncIterator[Cluster]:
    """A namespace with a quota of two pods, and of 1 GiB of memory."""
    async with limited_namespace(cluster, {"pods": "2", "limits.memory": "1Gi"}) as small:
        yield small


@contextlib.asynccontextmanager
async def limited_namespace(cluster: Cluster, hard: dict[str, str]) -> AsyncIterator[Cluster]:
    """A namespace with the quota `team`, which the cluster counts already."""
    with fresh_namespace(cluster) as small:
        async with small.core() as core:
            await core.create_namespaced_resource_quota(
                small.namespace, {"metadata": {"name": "team"}, "spec": {"hard": hard}}
            )

            async def counted() -> bool:
                quota = await core.read_namespaced_resource_quota("team", small.namespace)
                return bool(quota.status.hard)

            await until(counted, guard_s=60)
        yield small


@contextlib.contextmanager
def _core(cluster: Cluster) -> Iterator[kubernetes.client.CoreV1Api]:
    with warnings.catch_warnings(), kubernetes.config.new_client_from_config(str(cluster.kubeconfig)) as connected:
        warnings.simplefilter("ignore", InsecureRequestWarning)  # a lab signs its own certificates
        yield kubernetes.client.CoreV1Api(connected)


@contextlib.asynccontextmanager
async def cluster_yard(cluster: Cluster, folder: Path) -> AsyncIterator[Yard]:
    opened: list[KubernetesExecutor] = []

    def again() -> KubernetesExecutor:
        opened.append(cluster.executor(folder, pods=4))
        return opened[-1]

    first = again()
    yield Yard(first, again, folder, "kubernetes", ask=cluster.launch)
    await asyncio.gather(*[first.delete(seen.pod) async for seen in first.list()])
    assert [seen async for seen in first.list()] == []
    for executor in opened:
        await executor.close()
