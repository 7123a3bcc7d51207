"""Record what a real kubelet says of pods in trouble, for test_kubernetes_verdict.py.

    RUNYARD_LAB_KUBECONFIG=… python tests/executors/record_statuses.py [SCENARIO …]

Each scenario is a pod as the executor makes it, with something wrong, and a moment at which its status is taken.
The files are the pods as the API server sent them, less what no verdict is made of (`watch.trim`).
"""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cluster import AGENT, Cluster, fresh_namespace, surroundings

from runyard.executors.kubernetes import fields, pod
from runyard.executors.kubernetes.api import Api, Refused
from runyard.executors.kubernetes.template import Manifest, merge
from runyard.executors.kubernetes.watch import trim
from runyard.spec.plan import Container

STATUSES = Path(__file__).with_name("kubernetes_statuses")
Body = dict[str, Any]
Act = Callable[["Stage", str, Body], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """``act`` is done once the pod is ``at``; the status is taken when it is ``until``, or gone."""

    command: str = "true"
    over: Manifest = field(default_factory=dict)
    until: Callable[[Body], bool]
    at: Callable[[Body], bool] | None = None
    act: Act | None = None
    task: dict[str, Any] = field(default_factory=dict)


@dataclass
class Stage:
    api: Api
    cluster: Cluster
    folder: Path

    async def delete(self, name: str, body: Body, grace_s: int) -> None:
        await self.api.delete("pods", name, uid=body["metadata"]["uid"], grace_s=grace_s)

    async def evict(self, name: str, _: Body) -> None:
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        await self.api.create(f"pods/{name}/eviction", body)


def state(name: str, kind: str, *reasons: str) -> Callable[[Body], bool]:
    def is_so(body: Body) -> bool:
        for each in fields.parts(body, "status", "containerStatuses"):
            found = fields.part(each, "state")
            if fields.text(each, "name") == name and kind in found:
                return not reasons or fields.text(found, kind, "reason") in reasons
        return False

    return is_so


def main(**more: Any) -> Manifest:
    return {"spec": {"containers": [{"name": "main", **more}]}}


def agent(**more: Any) -> Manifest:
    return {"spec": {"containers": [{"name": "agent", **more}]}}


def secret_env(secret: str, key: str) -> Manifest:
    ref = {"secretKeyRef": {"name": secret, "key": key}}
    return main(env=[{"name": "TOKEN", "valueFrom": ref}])


def phase(*words: str) -> Callable[[Body], bool]:
    return lambda body: fields.text(body, "status", "phase") in words


def never(_: Body) -> bool:
    return False


def unscheduled(body: Body) -> bool:
    return any(
        fields.text(c, "type") == "PodScheduled" and fields.text(c, "reason") == "Unschedulable"
        for c in fields.parts(body, "status", "conditions")
    )


async def delete_gracefully(stage: Stage, name: str, body: Body) -> None:
    await stage.delete(name, body, 10)


async def delete_at_once(stage: Stage, name: str, body: Body) -> None:
    await stage.delete(name, body, 0)


async def evict(stage: Stage, name: str, body: Body) -> None:
    await stage.evict(name, body)


async def preempt(stage: Stage, name: str, body: Body) -> None:
    """A pod of a higher class that fits on the node only without the first."""
    cpu = _free_cpu()
    higher = {
        "metadata": {"name": f"{name}-higher"},
        "spec": {
            "priorityClassName": "system-cluster-critical",
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "x", "image": stage.cluster.image, "resources": {"requests": {"cpu": cpu}}}],
        },
    }
    await stage.api.create("pods", higher)


def _free_cpu() -> str:
    return f"{(os.cpu_count() or 1) * 1000 - 700}m"


HUNGRY = "head -c 200m /dev/zero | tail"
SLEEP = "echo begins; sleep 60"
SMALL = {"limits": {"memory": "40Mi"}}
MAIN_ENDED = state("main", "terminated")
MAIN_RUNS = state("main", "running")

SCENARIOS: dict[str, Scenario] = {
    "success": Scenario(until=MAIN_ENDED),
    "success_with_phase": Scenario(until=phase("Succeeded")),
    "exit_code": Scenario(command="exit 3", until=MAIN_ENDED),
    "signal_in_step": Scenario(command="kill -9 $$", until=MAIN_ENDED),
    "oom_main": Scenario(
        over=main(
            resources=SMALL, command=["python3", "-c", "import time; x = bytearray(200 << 20); time.sleep(9)"]
        ),
        until=MAIN_ENDED,
    ),
    "oom_child": Scenario(command=HUNGRY, over=main(resources=SMALL), until=MAIN_ENDED),
    "evicted_by_api": Scenario(command=SLEEP, until=MAIN_ENDED, at=MAIN_RUNS, act=evict),
    "deleted_gracefully": Scenario(command=SLEEP, until=MAIN_ENDED, at=MAIN_RUNS, act=delete_gracefully),
    "deleted_gracefully_gone": Scenario(command=SLEEP, until=never, at=MAIN_RUNS, act=delete_gracefully),
    "deleted_by_force": Scenario(command=SLEEP, until=never, at=MAIN_RUNS, act=delete_at_once),
    "deadline": Scenario(command=SLEEP, over={"spec": {"activeDeadlineSeconds": 3}}, until=MAIN_ENDED),
    "deadline_while_it_waits": Scenario(
        over=merge(main(image="lab.local/none:1"), {"spec": {"activeDeadlineSeconds": 3}}), until=phase("Failed")
    ),
    "image_missing": Scenario(over=main(image="lab.local/none:1"), until=state("main", "waiting", "ErrImagePull")),
    "image_back_off": Scenario(
        over=main(image="lab.local/none:1"), until=state("main", "waiting", "ImagePullBackOff")
    ),
    "image_never_pulled": Scenario(
        over=main(image="lab.local/none:1", imagePullPolicy="Never"),
        until=state("main", "waiting", "ErrImageNeverPull"),
    ),
    "image_name_invalid": Scenario(
        over=main(image="Lab.local/UPPER:1"), until=state("main", "waiting", "InvalidImageName")
    ),
    "secret_missing": Scenario(
        over=secret_env("absent", "value"), until=state("main", "waiting", "CreateContainerConfigError")
    ),
    "secret_key_missing": Scenario(
        over=secret_env("present", "absent"), until=state("main", "waiting", "CreateContainerConfigError")
    ),
    "root_where_none_may_be": Scenario(
        over=main(securityContext={"runAsNonRoot": True}),
        until=state("main", "waiting", "CreateContainerConfigError"),
    ),
    "no_shell": Scenario(over=main(image="lab.local/pause:1"), until=MAIN_ENDED),
    "bad_working_dir": Scenario(over=main(workingDir="/etc/passwd"), until=MAIN_ENDED),
    "unschedulable_selector": Scenario(over={"spec": {"nodeSelector": {"no": "such"}}}, until=unscheduled),
    "unschedulable_memory": Scenario(over=main(resources={"requests": {"memory": "900Ti"}}), until=unscheduled),
    "refused_by_node": Scenario(
        over=merge(main(resources={"requests": {"memory": "900Ti"}}), {"spec": {"nodeName": "localhost"}}),
        until=phase("Failed"),
    ),
    "preempted": Scenario(
        command=SLEEP,
        over=main(resources={"requests": {"cpu": "800m"}}),
        until=MAIN_ENDED,
        at=MAIN_RUNS,
        act=preempt,
    ),
    "agent_fails_first": Scenario(
        over=agent(command=["sh", "-c", "echo no way >&2; exit 9"]), until=state("agent", "terminated")
    ),
    "agent_fails_in_step": Scenario(
        command=SLEEP,
        over=agent(
            command=["sh", "-c", "python3 -I /opt/runyard/agent.py & sleep 3; echo out of luck >&2; exit 9"]
        ),
        until=lambda body: state("agent", "terminated")(body) and MAIN_RUNS(body),
    ),
    "agent_lost_told_by_main": Scenario(
        command="sleep 5",
        over=agent(
            command=["sh", "-c", "python3 -I /opt/runyard/agent.py & sleep 3; echo out of luck >&2; exit 9"]
        ),
        until=lambda body: state("agent", "terminated")(body) and MAIN_ENDED(body),
    ),
    "agent_out_of_memory": Scenario(
        over=agent(
            command=["python3", "-c", "import time; x = bytearray(200 << 20); time.sleep(9)"],
            resources={"requests": {"memory": "16Mi"}, **SMALL},
        ),
        until=state("agent", "terminated"),
    ),
    "agent_image_missing": Scenario(
        over=agent(image="lab.local/none:1"), until=state("agent", "waiting", "ImagePullBackOff")
    ),
    "agent_image_never_pulled": Scenario(
        over=agent(image="lab.local/none:1", imagePullPolicy="Never"),
        until=state("agent", "waiting", "ErrImageNeverPull"),
    ),
    "agent_without_secret": Scenario(
        over=agent(env=[{"name": "X", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "x"}}}]),
        until=state("agent", "waiting", "CreateContainerConfigError"),
    ),
    "service_fails": Scenario(
        command=SLEEP,
        task={"service": ["sh", "-c", "echo no data folder >&2; exit 7"]},
        until=state("svc-db", "terminated"),
    ),
    "running": Scenario(command=SLEEP, until=MAIN_RUNS),
    "creating": Scenario(until=state("main", "waiting", "ContainerCreating")),
}


async def record(stage: Stage, name: str, scenario: Scenario) -> None:
    service = scenario.task.get("service")
    image = stage.cluster.image
    containers = [Container(image=image)]
    if service:
        containers.append(Container(name="db", image=image, entrypoint=service))
    asked = stage.cluster.launch(
        stage.folder, scenario.command, name=name.replace("_", "-"), task={"containers": containers}
    )
    rules = pod.Rules(
        agent_image=stage.cluster.agent_image or image,
        agent_command=AGENT,
        template=merge(surroundings(stage.folder), scenario.over),
    )
    made = await stage.api.create("pods", pod.build_pod(asked, rules, process="recorder"))
    await stage.api.create("secrets", pod.build_secret(asked, made["metadata"]["uid"]))
    query = {
        "fieldSelector": f"metadata.name={asked.name}",
        "resourceVersion": made["metadata"]["resourceVersion"],
    }
    acted = scenario.act is None
    last = made
    async for event in stage.api.watch("pods", idle_s=90, query=query):
        if event["type"] == "BOOKMARK":
            continue
        last = event["object"]
        if not acted and scenario.at is not None and scenario.at(last):
            acted = True
            await asyncio.sleep(1)  # the step has begun, too
            if scenario.act is not None:
                await scenario.act(stage, asked.name, last)
        if event["type"] == "DELETED" or scenario.until(last):
            save(name, last, gone=event["type"] == "DELETED")
            break
    with contextlib.suppress(Refused):
        await stage.delete(asked.name, last, 0)


def save(name: str, body: Body, *, gone: bool) -> None:
    kept = {"gone": gone, "pod": trim(body)}
    (STATUSES / f"{name}.json").write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    print(f"{name}: recorded", flush=True)


async def run(names: list[str]) -> None:
    known = Cluster(
        kubeconfig=Path(os.environ["RUNYARD_LAB_KUBECONFIG"]),
        image=os.environ.get("RUNYARD_LAB_IMAGE", "lab.local/kube-test:1"),
        agent_image=os.environ.get("RUNYARD_LAB_AGENT_IMAGE", ""),
    )
    folder = Path(tempfile.mkdtemp(prefix="runyard-record-"))
    with fresh_namespace(known) as cluster:
        api = await Api.open(kubeconfig=cluster.kubeconfig, context="", namespace=cluster.namespace)
        await api.create("secrets", {"metadata": {"name": "present"}, "stringData": {"value": "x"}})
        turns = asyncio.Semaphore(4)

        async def one(name: str) -> None:
            async with turns:
                try:
                    async with asyncio.timeout(120):
                        await record(Stage(api, cluster, folder), name, SCENARIOS[name])
                except (TimeoutError, Refused) as error:
                    print(f"{name}: NOT recorded: {error!r}", flush=True)

        await asyncio.gather(*(one(name) for name in names))
        await api.close()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1:] or list(SCENARIOS)))
