"""What can go wrong with a task on Kubernetes, a row each: what provokes it, and what people are told.

A row has its place (a namespace and a pod template, as administrators make them) or is provoked from outside once
its first step has printed something.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import provoked
from kubernetes.aio.client import AdmissionregistrationV1Api, ApiException
from lab_scene import Place, Pod, Scene, answered

from runyard.executors.kubernetes.verdict import Patience
from runyard.reasons import Reason

TASK, NONE = "lab.local/task:1", "lab.local/none:1"
HUNGRY = "exec tail /dev/zero"
SLEEP = "echo begun; sleep 120"


@dataclass(frozen=True, kw_only=True)
class Row:
    """``says``: words of the sentence. ``log``: the whole log is there, since main and agent lived to seal it.

    ``provoke`` is done once the task's first step has printed something.
    """

    reason: Reason
    says: str
    remedy: str
    command: str = "true"
    image: str = TASK
    services: list[dict[str, Any]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    log: bool = False
    place: str = ""
    provoke: Callable[[Scene, Pod], Awaitable[None]] | None = None


def container(name: str, **more: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": name, **more}]}}


def memory(size: str) -> dict[str, Any]:
    return {"limits": {"memory": size}, "requests": {"memory": "8Mi"}}


def service(*words: str, **more: Any) -> dict[str, Any]:
    return {"name": "db", "image": TASK, "entrypoint": list(words), **more}


# Places


async def furnish_limits(scene: Scene, namespace: str) -> None:
    limits = [{"type": "Container", "max": {"memory": "64Mi"}}]
    body = {"metadata": {"name": "small"}, "spec": {"limits": limits}}
    await scene.core.create_namespaced_limit_range(namespace, body)


async def furnish_quota(scene: Scene, namespace: str) -> None:
    """A quota of one pod, of which somebody else has made use."""
    body = {"metadata": {"name": "team"}, "spec": {"hard": {"pods": "1", "limits.cpu": "9"}}}
    await scene.core.create_namespaced_resource_quota(namespace, body)
    limits = {"limits": {"cpu": "10m"}}
    containers = [{"name": "x", "image": TASK, "command": ["sleep", "600"], "resources": limits}]
    other = {"metadata": {"name": "other"}, "spec": {"containers": containers, "terminationGracePeriodSeconds": 0}}
    await answered(lambda: scene.core.create_namespaced_pod(namespace, other))


async def furnish_policy(scene: Scene, namespace: str) -> None:
    """An admission policy of this namespace: no image but those of a registry that we do not use."""
    name = f"images-{uuid.uuid4().hex[:6]}"
    admission = AdmissionregistrationV1Api(scene.api)
    here = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    check = {
        "expression": "object.spec.containers.all(c, c.image.startsWith('registry.example/'))",
        "message": "images come from registry.example",
    }
    policy = {"failurePolicy": "Fail", "matchConstraints": {"resourceRules": [rule]}, "validations": [check]}
    binding = {"policyName": name, "validationActions": ["Deny"], "matchResources": {"namespaceSelector": here}}
    body = {"metadata": {"name": name}}
    await admission.create_validating_admission_policy({**body, "spec": policy})
    scene.stack.push_async_callback(admission.delete_validating_admission_policy, name)
    await admission.create_validating_admission_policy_binding({**body, "spec": binding})
    scene.stack.push_async_callback(admission.delete_validating_admission_policy_binding, name)
    pod = {"metadata": {"name": "try"}, "spec": {"containers": [{"name": "x", "image": TASK}]}}
    async with asyncio.timeout(60):
        while True:  # it takes the API server a moment to hear of it
            try:
                await scene.core.create_namespaced_pod(namespace, pod, dry_run="All")
            except ApiException as error:
                if "images come from" in (error.body or ""):
                    return
            await asyncio.sleep(0.2)


async def furnish_nothing(_: Scene, __: str) -> None:
    """A namespace of its own is enough."""


ABSENT = {"configMapKeyRef": {"name": "absent", "key": "x"}}
NO_KEY = {"configMapKeyRef": {"name": "present", "key": "absent"}}
VOLUME = {"name": "absent", "configMap": {"name": "absent"}}
AGENT_DIES_OF_MEMORY = f"python3 -I /opt/runyard/agent.pyc & sleep 5; {HUNGRY}"

PLACES = {
    "": Place(),
    "config-map": Place(template=container("main", env=[{"name": "X", "valueFrom": ABSENT}])),
    "config-key": Place(template=container("main", env=[{"name": "X", "valueFrom": NO_KEY}])),
    "volume": Place(
        template={
            "spec": {
                "volumes": [VOLUME],
                "containers": [{"name": "main", "volumeMounts": [{"name": "absent", "mountPath": "/absent"}]}],
            }
        }
    ),
    "never": Place(template=container("main", imagePullPolicy="Never")),
    "patient": Place(patience=Patience(pull_s=18)),
    "command": Place(template=container("main", command=["/no/such/shell"])),
    "oom-main": Place(template=container("main", command=["sh", "-c", HUNGRY], resources=memory("40Mi"))),
    "oom-service": Place(template=container("svc-db", resources=memory("40Mi"))),
    "agent-image": Place(template=container("agent", image=NONE)),
    "agent-memory": Place(
        template=container("agent", command=["sh", "-c", AGENT_DIES_OF_MEMORY], resources=memory("64Mi"))
    ),
    "restricted": Place(labels={"pod-security.kubernetes.io/enforce": "restricted"}),
    "policy": Place(furnish=furnish_policy),
    "limits": Place(furnish=furnish_limits),
    "quota": Place(furnish=furnish_quota, template=container("agent", resources={"limits": {"cpu": "10m"}})),
    "ending": Place(furnish=furnish_nothing),
}

ROWS = {
    "code": Row(reason=Reason.EXIT_CODE, command="exit 7", says="exit code 7", remedy="step's log", log=True),
    "signal": Row(reason=Reason.EXIT_CODE, command="kill -9 $$", says="137", remedy="step's log", log=True),
    "no-program": Row(reason=Reason.EXIT_CODE, command="nosuch", says="127", remedy="step's log", log=True),
    "no-x": Row(
        reason=Reason.EXIT_CODE,
        command="echo true >it; ./it",
        says="exit code 126",
        remedy="step's log",
        log=True,
    ),
    "bad-shell": Row(
        reason=Reason.EXIT_CODE,
        says="exit code 127",
        remedy="step's log",
        more={"shell": "/no/such/shell -e"},
        log=True,
    ),
    "oom-child": Row(
        reason=Reason.OOM_KILLED,
        command=HUNGRY,
        says="more memory than its limit",
        remedy="resources",
        more={"resources": {"memory": "40Mi"}},
        log=True,
    ),
    "oom-main": Row(reason=Reason.OOM_KILLED, place="oom-main", says="more memory", remedy="resources"),
    "oom-service": Row(
        reason=Reason.SERVICE_FAILED,
        place="oom-service",
        command=SLEEP,
        services=[service("sh", "-c", f"sleep 2; {HUNGRY}")],
        says="service db used more memory than its limit",
        remedy="service's image",
    ),
    "missing": Row(reason=Reason.IMAGE_PULL, image=NONE, says=NONE, remedy="registry"),
    "back-off": Row(reason=Reason.IMAGE_PULL, place="patient", image=NONE, says="Back-off", remedy="registry"),
    "never": Row(reason=Reason.IMAGE_PULL, place="never", image=NONE, says="policy of Never", remedy="registry"),
    "name": Row(
        reason=Reason.INVALID_IMAGE_NAME, image="lab.local/UP:1", says="lab.local/UP:1", remedy="run file"
    ),
    "no-shell": Row(reason=Reason.START_ERROR, image="lab.local/pause:1", says="did not start", remedy="shell"),
    "command": Row(reason=Reason.START_ERROR, place="command", says="/no/such/shell", remedy="command"),
    "workdir": Row(
        reason=Reason.EXIT_CODE,
        says="exit code 126",
        remedy="step's log",
        more={"working_dir": "/etc/passwd"},
        log=True,
    ),
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
    "config-map": Row(
        reason=Reason.CONFIG_ERROR, place="config-map", says='configmap "absent" not found', remedy="Create it"
    ),
    "config-key": Row(
        reason=Reason.CONFIG_ERROR, place="config-key", says="couldn't find key absent", remedy="Create it"
    ),
    "volume": Row(
        reason=Reason.TIMEOUT_PENDING,
        place="volume",
        says='configmap "absent" not found',
        remedy="waited for",
        more={"timeouts": {"pending": "20s"}},
    ),
    "service": Row(
        reason=Reason.SERVICE_FAILED,
        command=SLEEP,
        services=[service("sh", "-c", "sleep 1; exit 4")],
        says="service db ended with exit code 4",
        remedy="service's image",
    ),
    "unready": Row(
        reason=Reason.SERVICE_FAILED,
        services=[service("sleep", "60", ready={"port": 5999, "timeout": "3s"})],
        says="db",
        remedy="service's image",
    ),
    "too-large": Row(
        reason=Reason.TIMEOUT_PENDING,
        says="Insufficient memory",
        remedy="waited for",
        more={"resources": {"memory": "9Ti"}, "timeouts": {"pending": "5s"}},
    ),
    "selector": Row(
        reason=Reason.TIMEOUT_PENDING,
        says="node affinity/selector",
        remedy="waited for",
        more={"pod": {"node_selector": {"no": "such"}}, "timeouts": {"pending": "5s"}},
    ),
    "run": Row(
        reason=Reason.TIMEOUT_RUN,
        command=SLEEP,
        says="longer than 5 s",
        remedy="timeout",
        more={"timeouts": {"run": "5s"}},
    ),
    "step": Row(
        reason=Reason.TIMEOUT_STEP,
        command=SLEEP,
        says="longer than its timeout",
        remedy="timeout",
        more={"timeouts": {"step": "2s"}},
        log=True,
    ),
    "queue": Row(
        reason=Reason.TIMEOUT_QUEUE,
        place="quota",
        says="quota team: 1 of 1 pods in use",
        remedy="capacity",
        more={"resources": {"cpu": "0.01"}, "timeouts": {"queue": "10s"}},
    ),
    "beyond": Row(
        reason=Reason.QUOTA,
        place="quota",
        says="more than the quota team allows at all",
        remedy="Raise the quota",
        more={"resources": {"cpu": "10"}},
    ),
    "unspecified": Row(reason=Reason.CONFIG_ERROR, place="quota", says="must specify", remedy="Create"),
    "limits": Row(
        reason=Reason.NOT_ADMITTED,
        place="limits",
        says="maximum memory usage per Container is 64Mi",
        remedy="rule",
        more={"resources": {"memory": "128Mi"}},
    ),
    "restricted": Row(reason=Reason.NOT_ADMITTED, place="restricted", says="violates PodSecurity", remedy="rule"),
    "policy": Row(
        reason=Reason.NOT_ADMITTED, place="policy", says="images come from registry.example", remedy="rule"
    ),
    "agent-image": Row(
        reason=Reason.IMAGE_PULL, place="agent-image", says=f"the agent's image {NONE}", remedy="registry"
    ),
    "agent-memory": Row(
        reason=Reason.AGENT_LOST,
        place="agent-memory",
        command=SLEEP,
        says="agent used more memory than its limit",
        remedy="setup log",
    ),
    "agent-killed": Row(
        reason=Reason.AGENT_LOST,
        command=SLEEP,
        says="agent ended with exit code 137",
        remedy="setup log",
        provoke=provoked.kill_agent,
    ),
    "evicted": Row(
        reason=Reason.EVICTED,
        command=SLEEP,
        says="Eviction API",
        remedy="requests",
        provoke=provoked.evict,
        log=True,
    ),
    "preempted": Row(
        reason=Reason.PREEMPTED,
        command=SLEEP,
        says="higher priority",
        remedy="retry",
        more={"resources": {"cpu": "1"}},
        provoke=provoked.preempt,
        log=True,
    ),
    "deleted": Row(
        reason=Reason.LOST,
        command=SLEEP,
        says="somebody deleted the pod",
        remedy="who removed it",
        provoke=provoked.delete_gracefully,
        log=True,
    ),
    "forced": Row(
        reason=Reason.LOST,
        command=SLEEP,
        says="somebody deleted the pod",
        remedy="who removed it",
        provoke=provoked.delete_by_force,
    ),
    "ending": Row(
        reason=Reason.LOST,
        place="ending",
        command=SLEEP,
        says="somebody deleted the pod",
        remedy="who removed it",
        provoke=provoked.delete_namespace,
        log=True,
    ),
    "too-late": Row(
        reason=Reason.CONFIG_ERROR,
        place="ending",
        says="being terminated",
        remedy="Create it",
        more={"depends": [{"task": "ending", "conditions": ["on_failure"]}]},
    ),
}


def task(name: str, row: Row) -> dict[str, Any]:
    return {
        "name": name,
        "runtime": {"containers": [{"image": row.image}, *row.services]},
        "steps": [{"run": row.command}],
        **row.more,
    }
