"""The lab: a real Kubernetes node and a real MinIO for the tests that need them (deploy/lab).

All processes of a test session share one lab, held under the number of the session's first process: the first
test that asks brings it up, the session's end takes it down, unless it was up before (`make lab`). A test that
wants something of its own takes a fresh namespace and a fresh bucket.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kubernetes.aio.client import ApiClient, ApiException, CoreV1Api
from kubernetes.aio.config import new_client_from_config
from minio import Minio

PROGRAM = Path(__file__).resolve().parents[1] / "deploy" / "lab"


@dataclass(frozen=True, kw_only=True)
class Lab:
    """What a test needs to know of it. The images are loaded, and nothing else can be pulled."""

    kubeconfig: Path
    s3_endpoint: str  # http://127.0.0.1:PORT
    access_key: str
    secret_key: str
    image_task: str = "lab.local/task:1"
    image_runyard: str = "lab.local/runyard:dev"

    @contextlib.asynccontextmanager
    async def api(self) -> AsyncIterator[ApiClient]:
        async with await new_client_from_config(config_file=str(self.kubeconfig)) as api:
            yield api

    @contextlib.asynccontextmanager
    async def namespace(self, *, labels: dict[str, str] | None = None) -> AsyncIterator[str]:
        """A fresh namespace, ready for pods; deleted afterwards with all that is in it."""
        name = f"test-{uuid.uuid4().hex[:10]}"
        async with self.api() as api:
            core = CoreV1Api(api)
            await core.create_namespace({"metadata": {"name": name, "labels": labels or {}}})
            try:
                await _service_account(core, name)
                yield name
            finally:
                # a namespace that ends lets its pods have their grace; nobody waits for these
                await core.delete_collection_namespaced_pod(name, grace_period_seconds=0)
                with contextlib.suppress(ApiException):  # a test may have deleted it
                    await core.delete_namespace(name)

    @contextlib.asynccontextmanager
    async def bucket(self) -> AsyncIterator[str]:
        """A fresh bucket; removed afterwards with all that is in it."""
        name = f"test-{uuid.uuid4().hex[:10]}"
        store = self.minio()
        await asyncio.to_thread(store.make_bucket, name)
        try:
            yield name
        finally:
            await asyncio.to_thread(_remove_bucket, store, name)

    def minio(self) -> Minio:
        endpoint = self.s3_endpoint.removeprefix("http://")
        return Minio(endpoint, access_key=self.access_key, secret_key=self.secret_key, secure=False)

    async def stop(self, component: str, *, kill: bool = False) -> None:
        """End a component (`containerd`, `etcd`, `apiserver`, `kubelet`, `minio`, …). `start` it again afterwards:
        the other tests need it."""
        await asyncio.to_thread(command, "stop", component, *(["--kill"] if kill else []))

    async def start(self, component: str) -> None:
        """Returns when it answers again."""
        await asyncio.to_thread(command, "start", component)


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The running lab. Skips where this machine cannot run one, with what is missing."""
    reasons = subprocess.run([sys.executable, str(PROGRAM), "check"], capture_output=True, text=True)
    if reasons.returncode:
        pytest.skip(f"no lab here: {'; '.join(reasons.stdout.split(chr(10))).strip('; ')}")
    command("hold", str(session_pid()))
    command("images")
    facts = json.loads(command("env", "--json"))
    os.environ["RUNYARD_LAB_KUBECONFIG"] = facts["KUBECONFIG"]
    return Lab(
        kubeconfig=Path(facts["KUBECONFIG"]),
        s3_endpoint=facts["S3_ENDPOINT"],
        access_key=facts["S3_ACCESS_KEY"],
        secret_key=facts["S3_SECRET_KEY"],
    )


def session_pid() -> int:
    """Of the process that outlives the whole session: of xdist's workers, it is the parent."""
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


def release_lab() -> None:
    """At the end of the session's first process. Costs nothing where no test asked for the lab."""
    if sys.platform == "linux" and os.geteuid() == 0 and "PYTEST_XDIST_WORKER" not in os.environ:
        command("release", str(os.getpid()))


def command(*words: str) -> str:
    done = subprocess.run([sys.executable, str(PROGRAM), *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"lab {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


async def _service_account(core: CoreV1Api, namespace: str) -> None:
    """No pod is admitted before the controllers have made it."""
    async with asyncio.timeout(30):
        while True:
            try:
                await core.read_namespaced_service_account("default", namespace)
            except ApiException as error:
                if error.status != 404:
                    raise
                await asyncio.sleep(0.02)
            else:
                return


def _remove_bucket(store: Minio, name: str) -> None:
    for entry in store.list_objects(name, recursive=True):
        store.remove_object(name, entry.object_name)
    store.remove_bucket(name)
