"""What `doctor` asks of a cluster: may we, is there room, would it take a pod, which agent is in the image.

The API server is asked itself: a SelfSubjectAccessReview for each right, and a create as a dry run, which goes
through quotas, limit ranges, pod security and webhooks and makes nothing. To work that out from the objects of the
namespace was turned down: it would be a second, worse admission. Only `agent_version` makes a pod.
"""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from runyard.dialogue import Assignment
from runyard.errors import ExecutorError, ImagePull
from runyard.executors.base import Launch
from runyard.executors.kubernetes import fields, names, quota
from runyard.executors.kubernetes.api import Api, Refused
from runyard.executors.kubernetes.pod import Rules, build_pod, build_secret
from runyard.executors.kubernetes.template import Manifest
from runyard.spec.plan import Container, RunStep, TaskPlan
from runyard.store.base import UrlTarget

RIGHTS: Final[Mapping[str, tuple[str, ...]]] = {
    "pods": ("get", "list", "watch", "create", "patch", "delete"),
    "secrets": ("get", "create", "delete"),
}
"""All that the executor does in its namespace, by resource."""

NICE: Final[Mapping[str, tuple[str, ...]]] = {"events": ("list",), "resourcequotas": ("list", "watch")}
"""What people see less without: why a pod does not begin; how full a quota is, and that there is room again."""

_VERSION: Final = "import runyard; print(runyard.__version__)"
_SAID: Final = "/dev/termination-log"
_PATIENCE_S, _LOOK_S = 60.0, 0.5


@dataclass(frozen=True, kw_only=True)
class Quota:
    """``used`` and ``hard`` as Kubernetes writes them, by resource."""

    name: str
    used: Mapping[str, str]
    hard: Mapping[str, str]

    def __str__(self) -> str:
        numbers = (f"{self.used.get(name, '?')} of {most} {name}" for name, most in self.hard.items())
        return f"{self.name}: {', '.join(numbers)}"


async def missing_rights(api: Api, rights: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Verbs that this account may not use, by resource. Raises Refused, ClusterUnavailable."""
    asked = [(resource, verb) for resource, verbs in rights.items() for verb in verbs]
    allowed = await asyncio.gather(*(api.may(verb, resource) for resource, verb in asked))
    missing: dict[str, list[str]] = {}
    for (resource, verb), yes in zip(asked, allowed, strict=True):
        if not yes:
            missing.setdefault(resource, []).append(verb)
    return missing


async def quotas(api: Api) -> list[Quota]:
    """Those of the namespace. Raises Refused, ClusterUnavailable."""
    page = await api.page("resourcequotas")
    return [
        Quota(
            name=fields.text(each, "metadata", "name"),
            used={name: str(value) for name, value in fields.part(each, "status", "used").items()},
            hard={name: str(value) for name, value in fields.part(each, "status", "hard").items()},
        )
        for each in fields.parts(page, "items")
    ]


async def try_pod(api: Api, rules: Rules) -> str:
    """Whether a pod of a task that asks for nothing, and its Secret, would be taken: what they would wait for.

    Raises what the executor's start would raise, and ClusterUnavailable.
    """
    launch = _launch(rules)
    try:
        await api.create("pods", build_pod(launch, rules, process="doctor"), dry_run=True)
        await api.create("secrets", build_secret(launch, "of-no-pod"), dry_run=True)
    except Refused as error:
        if (short := quota.shortage(error)) is not None:
            return str(short)
        raise quota.as_error(error) from error
    return ""


async def agent_version(api: Api, rules: Rules) -> str:
    """What the image of the agent says its version is, by a pod of some seconds; "" = it does not say.

    Raises ImagePull where the nodes cannot have it, ExecutorError, ClusterUnavailable.
    """
    try:
        made = await api.create("pods", _asker(rules))
    except Refused as error:
        raise quota.as_error(error) from error
    name, uid = fields.text(made, "metadata", "name"), fields.text(made, "metadata", "uid")
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await _heard(api, name)
    except TimeoutError:
        raise ExecutorError(f"the pod {name}, which asks the agent's image, has not run in time") from None
    except Refused as error:
        raise ExecutorError(f"the pod {name}, which asks the agent's image, is gone: {error.message}") from error
    finally:
        await api.delete("pods", name, uid=uid, grace_s=0)


async def _heard(api: Api, name: str) -> str:
    while True:
        pod = await api.get("pods", name)
        for status in fields.parts(pod, "status", "containerStatuses"):
            if waits := _why_not(status):
                raise ImagePull(
                    waits, remedy="Correct RUNYARD_KUBERNETES_AGENT_IMAGE, or give the nodes a way to it."
                )
            if fields.part(status, "state", "terminated"):
                said = fields.text(status, "state", "terminated", "message").split()
                return said[0] if said and fields.whole(status, "state", "terminated", "exitCode") == 0 else ""
        await asyncio.sleep(_LOOK_S)


def _why_not(status: Mapping[str, Any]) -> str:
    reason = fields.text(status, "state", "waiting", "reason")
    if reason in ("", "ContainerCreating", "PodInitializing"):
        return ""
    return f"{reason}: {fields.text(status, 'state', 'waiting', 'message')}"


def _launch(rules: Rules) -> Launch:
    name = f"doctor-{secrets.token_hex(6)}"
    target = UrlTarget(url="", prefix="", fields={})
    task = TaskPlan(
        id=name, name="doctor", containers=[Container(image=rules.agent_image)], steps=[RunStep(command="true")]
    )
    return Launch(
        name=name,
        run_id=name,
        attempt=1,
        task=task,
        script="true",
        assignment=Assignment(run_id=name, task="doctor", attempt=1, steps=[], logs=target),
        digest="",
        owner="doctor",
        deadline_s=_PATIENCE_S,
    )


def _asker(rules: Rules) -> Manifest:
    """As any pod of ours, so that the template counts, but with one container that only says its version.

    It carries our labels: should this process die in between, the cleanup finds a pod without a run.
    """
    pod = build_pod(_launch(rules), rules, process="doctor")
    (agent,) = (each for each in pod["spec"]["containers"] if each["name"] == names.AGENT)
    script = f'"$0" -c "{_VERSION}" >{_SAID} 2>&1'
    only = {
        **{key: agent[key] for key in ("name", "image", "imagePullPolicy", "securityContext") if key in agent},
        "command": ["/bin/sh", "-c", script, rules.agent_command[0]],
        "resources": agent.get("resources", {}),
    }
    pod["spec"] = {**pod["spec"], "containers": [only], "volumes": []}
    return pod
