"""What goes wrong on a real kubelet, as a run tells it: reason, sentence, remedy; and nothing is left behind.

All rows are tasks of one run, at once: a fault of one must not reach another.
"""

import asyncio
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client import CoreV1Api
from lab import Lab
from temporalio.client import Client, WorkflowFailureError
from yard import working

from runyard.executors.kubernetes.executor import KubernetesExecutor
from runyard.executors.kubernetes.pod import Rules
from runyard.executors.kubernetes.verdict import Patience
from runyard.reasons import Reason
from runyard.records.logs import load_seal
from runyard.settings import Settings
from runyard.spec.run import task_id
from runyard.store.open import open_store

pytestmark = pytest.mark.kubernetes

GONE_S = 60


@dataclass(frozen=True, kw_only=True)
class Row:
    """``says``: words of the sentence. ``log``: the whole log is there, since main and agent lived to seal it."""

    reason: Reason
    says: str
    remedy: str
    command: str = "true"
    image: str = "lab.local/task:1"
    services: list[dict[str, Any]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    log: bool = False


ROWS = {
    "code": Row(reason=Reason.EXIT_CODE, command="exit 7", says="exit code 7", remedy="step's log", log=True),
    "signal": Row(reason=Reason.EXIT_CODE, command="kill -9 $$", says="137", remedy="step's log", log=True),
    "missing": Row(reason=Reason.IMAGE_PULL, image="lab.local/none:1", says="lab.local/none:1", remedy="registry"),
    "name": Row(
        reason=Reason.INVALID_IMAGE_NAME, image="lab.local/UP:1", says="lab.local/UP:1", remedy="run file"
    ),
    "no-shell": Row(reason=Reason.START_ERROR, image="lab.local/pause:1", says="did not start", remedy="shell"),
    "secret": Row(
        reason=Reason.CONFIG_ERROR,
        says='secret "absent" not found',
        remedy="Create it",
        more={"environment": {"TOKEN": {"from_secret": "absent"}}},
    ),
    "key": Row(
        reason=Reason.CONFIG_ERROR,
        says="couldn't find key absent",
        remedy="Create it",
        more={"environment": {"TOKEN": {"from_secret": "present/absent"}}},
    ),
    "service": Row(
        reason=Reason.SERVICE_FAILED,
        command="sleep 60",
        services=[{"name": "db", "image": "lab.local/task:1", "entrypoint": ["sh", "-c", "sleep 1; exit 4"]}],
        says="service db ended with exit code 4",
        remedy="service's image",
    ),
    "unready": Row(
        reason=Reason.SERVICE_FAILED,
        services=[
            {
                "name": "db",
                "image": "lab.local/task:1",
                "entrypoint": ["sleep", "60"],
                "ready": {"port": 5999, "timeout": "3s"},
            }
        ],
        says="db",
        remedy="service's image",
    ),
    "pending": Row(
        reason=Reason.TIMEOUT_PENDING,
        says="memory",
        remedy="waited for",
        more={"resources": {"memory": "9Ti"}, "timeouts": {"pending": "5s"}},
    ),
    "run": Row(
        reason=Reason.TIMEOUT_RUN, command="sleep 60", says="", remedy="timeout", more={"timeouts": {"run": "5s"}}
    ),
    "step": Row(
        reason=Reason.TIMEOUT_STEP,
        command="sleep 60",
        says="longer than its timeout",
        remedy="timeout",
        more={"timeouts": {"step": "2s"}},
        log=True,
    ),
}


def task(name: str, row: Row) -> dict[str, Any]:
    return {
        "name": name,
        "runtime": {"containers": [{"image": row.image}, *row.services]},
        "steps": [{"run": row.command}],
        **row.more,
    }


async def left(core: CoreV1Api, namespace: str) -> list[str]:
    pods = await core.list_namespaced_pod(namespace)
    secrets = await core.list_namespaced_secret(namespace)
    return [each.metadata.name for each in (*pods.items, *secrets.items) if each.metadata.name != "present"]


@pytest.mark.promise(5)
async def test_each_fault_has_its_reason_sentence_and_remedy(lab: Lab, client: Client, tmp_path: Path) -> None:
    async with lab.namespace() as namespace, lab.bucket() as bucket, lab.api() as api:
        core = CoreV1Api(api)
        present = {"metadata": {"name": "present"}, "stringData": {"value": "x"}}
        await core.create_namespaced_secret(namespace, present)
        store = open_store(
            Settings(
                state=tmp_path,
                store="s3",
                s3_endpoint=lab.s3_endpoint,
                s3_bucket=bucket,
                s3_access_key=lab.access_key,
                s3_secret_key=lab.secret_key,
            )
        )
        rules = Rules(
            agent_image=lab.image_runyard,
            agent_command=["python3", "-I", "/opt/runyard/agent.pyc"],
            template={"spec": {"hostNetwork": True}},
        )
        executor = KubernetesExecutor(
            rules=rules,
            kubeconfig=lab.kubeconfig,
            namespace=namespace,
            patience=Patience(pull_s=3, config_s=2, start_s=5),
        )
        async with working(client, store, [executor]) as yard:
            tasks = [task(f"{name}-{uuid.uuid4().hex[:4]}", row) for name, row in ROWS.items()]
            handle = await yard.start({"runs": [{"name": "r", "tasks": tasks}]})
            async with asyncio.timeout(150):
                with pytest.raises(WorkflowFailureError):
                    await handle.result()
            wrong = []
            for view in (await yard.view(handle)).tasks:
                row = ROWS[view.name.rpartition("-")[0]]
                remedy = view.reason.remedy if view.reason else ""
                if view.reason is not row.reason or row.says not in view.message or row.remedy not in remedy:
                    wrong.append((view.name, view.reason, view.message))
                seal = await load_seal(
                    store, task_id(handle.id, handle.first_execution_run_id or "", view.name), 1
                )
                if row.log and not (seal and seal.complete):
                    wrong.append((view.name, view.reason, f"the log is not whole: {seal and seal.truncated}"))
            async with asyncio.timeout(GONE_S):
                while await left(core, namespace):
                    await asyncio.sleep(0.2)
            assert wrong == []
        await executor.close()
        await store.close()
