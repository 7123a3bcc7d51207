"""Whole runs on the lab, Temporal and a bucket included, in places with rules of their own.

A *place* is a namespace and an executor with its template: what an administrator would set up. Each has a queue
of its own, so one worker serves all of them, and all rows of a table run beside each other: a fault of one must
not reach another.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from chunks import whole
from kubernetes.aio.client import ApiClient, ApiException, CoreV1Api
from lab import Lab
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from yard import SANDBOX

from runyard.executors.kubernetes.executor import KubernetesExecutor
from runyard.executors.kubernetes.pod import ALLOWABLE, Rules
from runyard.executors.kubernetes.template import Manifest, merge
from runyard.executors.kubernetes.verdict import Patience
from runyard.records.logs import Seal, load_seal
from runyard.records.reader import LogReader
from runyard.records.runs import read_result
from runyard.settings import Settings
from runyard.spec.cleanup import Retention
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunResult, RunView, task_id
from runyard.store import paths
from runyard.store.base import ObjectStore
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

    async def serve(self, places: Mapping[str, Place], *, retention: Retention | None = None) -> dict[str, Spot]:
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
        for worker in build_workers(self.client, self.store, executors, runner=SANDBOX, retention=retention):
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
        reader = LogReader(self.store, self.id_of(handle, task), attempt)
        return await whole(reader.read(step))

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


async def answered(request: Callable[[], Awaitable[object]], *, within_s: float = 90) -> object:
    """The answer to a request that the API server refuses, or cannot take, for a while."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                return await request()
            except (ApiException, OSError):
                await asyncio.sleep(0.2)


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
