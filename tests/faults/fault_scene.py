"""Whole runs on the lab that something goes wrong with: places with rules of their own, and what provokes a fault.

A *place* is a namespace and an executor with its template: what an administrator would set up. Each has a queue
of its own, so one worker serves all of them, and all rows of a table run beside each other: a fault of one must
not reach another.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client import ApiClient, ApiException, CoreV1Api
from kubernetes.aio.watch import Watch
from lab import Lab
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from yard import SANDBOX

from runyard.executors.kubernetes.executor import KubernetesExecutor
from runyard.executors.kubernetes.pod import ALLOWABLE, Rules
from runyard.executors.kubernetes.template import Manifest, merge
from runyard.executors.kubernetes.verdict import Patience
from runyard.records.logs import Seal, load_seal
from runyard.records.runs import read_result
from runyard.settings import Settings
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult, RunView, task_id
from runyard.store import paths
from runyard.store.base import ObjectStore, read
from runyard.store.open import open_store
from workers.serve import build_workers

GONE_S = 60
AGENT_COMMAND = ["python3", "-I", "/opt/runyard/agent.pyc"]
HOST_NETWORK: Manifest = {"spec": {"hostNetwork": True}}
"""The lab's MinIO is on the loopback of its node."""

Handle = WorkflowHandle[object, RunResult]

LATE_CANCEL = pytest.mark.filterwarnings("ignore:Cannot find activity to cancel:UserWarning")
"""The SDK's words when a cancel arrives just after the activity has ended; as an error it would end the worker."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """``labels`` or ``furnish`` (what is put into it first) make it a namespace of its own."""

    template: Manifest = field(default_factory=dict)
    patience: Patience = field(default_factory=lambda: Patience(pull_s=3, config_s=2, start_s=5))
    labels: Mapping[str, str] = field(default_factory=dict)
    furnish: "Callable[[Scene, str], Awaitable[None]] | None" = None


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A place that is ready: its namespace, and the executor that a run asks for."""

    namespace: str
    executor: str


@dataclass(kw_only=True)
class Scene:
    """A bucket, a namespace, and whoever is needed to look at them."""

    lab: Lab
    client: Client
    api: ApiClient
    namespace: str
    bucket: str
    store: ObjectStore
    settings: Settings
    stack: contextlib.AsyncExitStack

    @property
    def core(self) -> CoreV1Api:
        return CoreV1Api(self.api)

    async def serve(self, places: Mapping[str, Place]) -> dict[str, Spot]:
        """One worker, in this process, for all these places and for the runs themselves."""
        spots: dict[str, Spot] = {}
        executors = []
        for name, place in places.items():
            namespace = self.namespace
            if place.labels or place.furnish:
                namespace = await self.stack.enter_async_context(self.lab.namespace(labels=dict(place.labels)))
            if place.furnish is not None:
                await place.furnish(self, namespace)
            executor = self.executor(f"kubernetes-{name}-{uuid.uuid4().hex[:6]}", namespace, place)
            executors.append(executor)
            self.stack.push_async_callback(executor.close)
            spots[name] = Spot(namespace=namespace, executor=executor.name)
        for worker in build_workers(self.client, self.store, executors, runner=SANDBOX):
            await self.stack.enter_async_context(worker)
        return spots

    def executor(self, name: str, namespace: str, place: Place) -> KubernetesExecutor:
        rules = Rules(
            agent_image=self.lab.image_runyard,
            agent_command=AGENT_COMMAND,
            template=merge(HOST_NETWORK, place.template),
            allow=frozenset(ALLOWABLE),
        )
        return KubernetesExecutor(
            name=name,
            rules=rules,
            kubeconfig=self.lab.kubeconfig,
            namespace=namespace,
            patience=place.patience,
        )

    async def start(self, executor: str, tasks: Sequence[Mapping[str, Any]], **request: object) -> Handle:
        return await self.client.start_workflow(
            WORKFLOW,
            {"file": {"runs": [{"name": "r", "tasks": [dict(task) for task in tasks]}]}, "executor": executor}
            | request,
            id=f"fault-{uuid.uuid4().hex[:12]}",
            task_queue=RUNS_QUEUE,
            result_type=RunResult,
        )

    async def ended(self, handle: Handle, *, within_s: float = 150) -> RunView:
        """Its tasks after its end, as the store remembers them."""
        async with asyncio.timeout(within_s):
            with contextlib.suppress(WorkflowFailureError):
                await handle.result()
        return await read_result(self.store, handle.id)

    def id_of(self, handle: Handle, task: str) -> str:
        return task_id(handle.id, handle.first_execution_run_id or "", task)

    async def seal(self, handle: Handle, task: str, attempt: int = 1) -> Seal | None:
        return await load_seal(self.store, self.id_of(handle, task), attempt)

    async def log(self, handle: Handle, task: str, *, attempt: int = 1, step: int = 0) -> bytes:
        return await read(self.store, paths.step_log(self.id_of(handle, task), attempt, step))

    async def begun(self, handle: Handle, task: str, *, within_s: float = 90) -> "Pod":
        """The pod of a task whose first step has printed something."""
        logs = paths.attempt(self.id_of(handle, task), 1)
        async with asyncio.timeout(within_s):
            while not [info async for info in self.store.list(f"{logs}segments/")]:
                await asyncio.sleep(0.2)
            return await self.pod(handle, task)

    async def pod(self, handle: Handle, task: str) -> "Pod":
        """As it is now: the task's only one."""
        (found,) = [pod for pod in await self.pods(handle) if pod.task == task]
        return found

    async def pods(self, handle: Handle) -> "list[Pod]":
        listed = await self.core.list_pod_for_all_namespaces(label_selector=f"runyard.dev/run={handle.id}")
        return [Pod.of(item) for item in listed.items]

    async def left(self, handle: Handle) -> list[str]:
        """Pods and Secrets of a run."""
        label = f"runyard.dev/run={handle.id}"
        pods = await self.core.list_pod_for_all_namespaces(label_selector=label)
        secrets = await self.core.list_secret_for_all_namespaces(label_selector=label)
        return [each.metadata.name for each in (*pods.items, *secrets.items)]

    async def gone(self, handle: Handle) -> None:
        """Nothing of a run that has ended is left, in time."""
        async with asyncio.timeout(GONE_S):
            while await self.left(handle):
                await asyncio.sleep(0.2)


@dataclass(frozen=True, kw_only=True)
class Pod:
    name: str
    namespace: str
    uid: str
    task: str

    @classmethod
    def of(cls, item: Any) -> "Pod":
        meta = item.metadata
        return cls(
            name=meta.name,
            namespace=meta.namespace,
            uid=meta.uid,
            task=meta.annotations["runyard.dev/task-name"],
        )


@contextlib.asynccontextmanager
async def open_scene(lab: Lab, client: Client, folder: Path, **more: object) -> AsyncIterator[Scene]:
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(lab.api())
        namespace = await stack.enter_async_context(lab.namespace())
        bucket = await stack.enter_async_context(lab.bucket())
        settings = Settings.model_validate(
            {
                "state": folder,
                "store": "s3",
                "s3_endpoint": lab.s3_endpoint,
                "s3_bucket": bucket,
                "s3_access_key": lab.access_key,
                "s3_secret_key": lab.secret_key,
                **more,
            }
        )
        store = open_store(settings)
        stack.push_async_callback(store.close)
        async with contextlib.AsyncExitStack() as inner:  # workers go first: they use all of the above
            yield Scene(
                lab=lab,
                client=client,
                api=api,
                namespace=namespace,
                bucket=bucket,
                store=store,
                settings=settings,
                stack=inner,
            )


# What provokes a fault


async def evict(scene: Scene, pod: Pod) -> None:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod.name}}
    await scene.core.create_namespaced_pod_eviction(pod.name, pod.namespace, body)


async def delete_gracefully(scene: Scene, pod: Pod) -> None:
    await scene.core.delete_namespaced_pod(pod.name, pod.namespace, grace_period_seconds=5)


async def delete_by_force(scene: Scene, pod: Pod) -> None:
    await scene.core.delete_namespaced_pod(pod.name, pod.namespace, grace_period_seconds=0)


async def delete_namespace(scene: Scene, pod: Pod) -> None:
    await scene.core.delete_namespace(pod.namespace)


async def kill_agent(scene: Scene, pod: Pod) -> None:
    """As the kernel does it: the lab's node is this machine."""
    pids = processes_of(pod.uid, "agent.pyc")
    assert pids, f"no agent of {pod.name} on this machine"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


async def preempt(scene: Scene, pod: Pod) -> None:
    """A pod of a higher class, which fits on the node only without that one."""
    container = {"name": "x", "image": scene.lab.image_task, "command": ["true"]}
    container["resources"] = {"requests": {"cpu": f"{(os.cpu_count() or 1) * 1000 - 900}m"}}
    spec = {"restartPolicy": "Never", "priorityClassName": "system-cluster-critical", "containers": [container]}
    higher = {"metadata": {"generateName": "higher-"}, "spec": spec}
    await scene.core.create_namespaced_pod(pod.namespace, higher)


def processes_of(uid: str, words: str) -> list[int]:
    """Processes in the containers of that pod whose command line has these words."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            groups = (entry / "cgroup").read_text()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if re.search(rf"pod{uid}", groups.replace("_", "-")) and words in command:
                found.append(int(entry.name))
    return found


async def answered(request: Callable[[], Awaitable[object]], *, within_s: float = 90) -> object:
    """The answer to a request that the API server refuses, or cannot take, for a while."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                return await request()
            except (ApiException, OSError):
                await asyncio.sleep(0.2)


# Workers that can be killed


@dataclass(kw_only=True)
class Workers:
    """`runyard worker` in processes of their own, which serve the runs too. All are dead in the end."""

    scene: Scene
    executor: str
    template: Manifest = field(default_factory=dict)
    started: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def __aenter__(self) -> "Workers":
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.started:
            await kill(process)

    async def start(self, **environment: str) -> asyncio.subprocess.Process:
        """Another one, at work."""
        log = self.scene.settings.state / f"worker-{len(self.started)}.log"
        program = "from runyard.cli import main; main()"
        with log.open("ab") as said:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", program, "worker", "--executor", self.executor),
                env=self._environment() | environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=said,
                cwd=Path(__file__).parents[2],
            )
        self.started.append(process)
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 120)
        assert b"serving" in line, log.read_text()[-2000:]
        return process

    def _environment(self) -> dict[str, str]:
        scene, settings = self.scene, self.scene.settings
        template = settings.state / "template.yml"
        template.write_text(json.dumps(merge(HOST_NETWORK, self.template)))
        keep = {
            name: value for name, value in os.environ.items() if not name.startswith(("RUNYARD_", "TEMPORAL_"))
        }
        return keep | {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "TEMPORAL_ADDRESS": scene.client.service_client.config.target_host,
            "RUNYARD_STATE": str(settings.state),
            "RUNYARD_SETTINGS": str(settings.state / "none.toml"),
            "RUNYARD_STORE": "s3",
            "RUNYARD_S3_ENDPOINT": settings.s3_endpoint,
            "RUNYARD_S3_BUCKET": settings.s3_bucket,
            "RUNYARD_S3_ACCESS_KEY": settings.s3_access_key,
            "RUNYARD_S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
            "RUNYARD_KUBERNETES_KUBECONFIG": str(scene.lab.kubeconfig),
            "RUNYARD_KUBERNETES_NAMESPACE": scene.namespace,
            "RUNYARD_KUBERNETES_AGENT_IMAGE": scene.lab.image_runyard,
            "RUNYARD_KUBERNETES_TEMPLATE": str(template),
            "RUNYARD_KUBERNETES_ALLOW": json.dumps(["node_selector"]),
        }


async def kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def workers_of(scene: Scene, **more: Any) -> Workers:
    return Workers(scene=scene, executor=f"kubernetes-{uuid.uuid4().hex[:8]}", **more)


@contextlib.asynccontextmanager
async def counted_pods(scene: Scene) -> AsyncIterator[set[str]]:
    """The uids of all pods that are ever made in the scene's namespace while the block runs."""
    uids: set[str] = set()

    async def watch() -> None:
        async with Watch().stream(scene.core.list_namespaced_pod, scene.namespace) as events:
            async for event in events:
                uids.add(event["object"].metadata.uid)

    task = asyncio.create_task(watch())
    try:
        yield uids
    finally:
        ended = task.done()
        task.cancel()
        await asyncio.wait([task])
        assert not ended, "the watch ended before the block"


# Tasks whose logs are known


def lines(name: str, count: int) -> bytes:
    """What `counting` prints."""
    return b"".join(f"{name} {n} is a line that must not be lost\n".encode() for n in range(count))


def counting(name: str, count: int, *, every_s: float = 0.05, code: int = 0, **more: Any) -> dict[str, Any]:
    """A task that prints known lines one after another, and ends with ``code``."""
    step = (
        f"n=0; while [ $n -lt {count} ]; do echo '{name}' $n 'is a line that must not be lost'; "
        f"n=$((n+1)); sleep {every_s}; done; exit {code}"
    )
    image = {"image": "lab.local/task:1"}
    return {"name": name, "runtime": {"containers": [image]}, "steps": [{"run": step}], **more}
