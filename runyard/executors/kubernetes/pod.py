"""From a launch to what the API takes: a pod and its Secret, as plain dictionaries.

The order in which the parts lie over each other: ours, then the administrator's template, then what the run file
asks for and the administrator allows, then what must be so for the pod to be ours at all.

The Secret belongs to the pod (an owner reference), so whatever becomes of us the cluster removes it with the
pod. It carries the agent's assignment, whose presigned URLs are keys to the store; a script that is too
long for an argument; credentials of registries. What is small comes as a variable, since that needs no mount.
"""

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runyard.errors import StartError
from runyard.executors.base import Launch
from runyard.executors.kubernetes import folders, mounts, names
from runyard.executors.kubernetes.mounts import Meeting
from runyard.executors.kubernetes.template import Manifest, merge
from runyard.spec.plan import Container, Environment, FromSecret, Resources, TaskPlan
from runyard.store.base import FolderTarget

ALLOWABLE = (
    *("annotations", "labels", "node_selector", "priority_class", "privileged"),
    *("runtime_class", "service_account", "tolerations"),
)
"""What the setting `kubernetes_allow` may name."""

SECRET_BYTES = 1 << 20
_MARGIN_S = 120  # what the kubelet's deadline adds to ours, which is exact but needs a living worker
_END_S = 3  # of the grace period, to kill a step, seal what there is and see the pod off within it
_SEAL_S = 20  # what an ended main may take to have its log stored

_RESTRICTED: Manifest = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
_AGENT_ROOT: Manifest = {
    "runAsUser": 0,
    "allowPrivilegeEscalation": False,
    # it reads and makes files of the user that main runs as, whatever their modes
    "capabilities": {"drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER"]},
}
_ARCH_LABEL = "kubernetes.io/arch"
_SECRET_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_SECRET_KEY = re.compile(r"[-._A-Za-z0-9]{1,253}")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the settings say of every pod. ``secrets`` is `SECRET/KEY` with `{name}` in it."""

    agent_image: str
    agent_command: list[str]
    template: Manifest = field(default_factory=dict)
    allow: frozenset[str] = frozenset()
    secrets: str = "{name}/value"
    one_uid: int | None = None
    spool_bytes: int = 1 << 30
    copy_log: bool = True
    deadline_s: float = 7 * 24 * 3600


def build_pod(launch: Launch, rules: Rules, *, process: str) -> Manifest:
    """The pod's manifest. ``process`` is who makes it (see `names.OWNER`)."""
    asked, fixed = _asked(launch.task), _fixed(launch, process)

    def meeting(at: Meeting) -> Manifest:
        return merge(merge(merge({"spec": _spec(launch, rules, at)}, rules.template), asked), fixed)

    if rules.one_uid is None and mounts.may_meet_in_memory(launch.task):
        made = meeting(mounts.MEMORY)
        if not mounts.needs_volumes(made):
            return made
    return meeting(mounts.VOLUMES)


def unreachable(launch: Launch, manifest: Manifest) -> str:
    """The folder that the store is in, if the pod's agent would not see it: what it wrote would be lost."""
    logs = launch.assignment.logs
    if not isinstance(logs, FolderTarget):
        return ""
    (agent,) = (each for each in manifest["spec"]["containers"] if each["name"] == names.AGENT)
    mounted = [mount.get("mountPath", "") for mount in agent.get("volumeMounts", [])]
    return "" if any(logs.folder.startswith(f"{path}/") for path in mounted if path) else logs.folder


def shape(manifest: Manifest) -> str:
    """What a quota looks at: pods that are alike in it ask the same of every quota."""
    spec = manifest["spec"]
    resources = [each.get("resources") for each in spec["containers"]]
    return json.dumps([resources, spec.get("priorityClassName"), spec.get("runtimeClassName")], sort_keys=True)


def build_secret(launch: Launch, pod_uid: str, *, auths: Mapping[str, Any] | None = None) -> Manifest:
    """The pod's Secret. Raises StartError where it holds more than a Secret may."""
    data = {names.ASSIGNMENT_KEY: launch.assignment.model_dump_json(), **mounts.letters(launch)}
    kind = "Opaque"
    if auths:
        kind = "kubernetes.io/dockerconfigjson"
        data[".dockerconfigjson"] = json.dumps({"auths": auths})
    size = sum(len(value.encode()) for value in data.values())
    if size > SECRET_BYTES - 4096:
        raise StartError(
            f"the task's script and what its agent must know are {size:,} bytes; on Kubernetes "
            f"{SECRET_BYTES:,} bytes is the most: keep long scripts in the repository"
        )
    owner = {"apiVersion": "v1", "kind": "Pod", "name": launch.name, "uid": pod_uid}
    metadata = {"name": launch.name, "labels": _labels(launch), "ownerReferences": [owner]}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": kind,
        "immutable": True,  # the kubelet then need not watch it
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }


def secret_of(name: str, pattern: str) -> tuple[str, str]:
    """Name and key of the Secret that ``{from_secret: name}`` means. `NAME/KEY` names the key itself.

    Secrets of a cluster have no capitals and underscores: `NPM_TOKEN` is the Secret `npm-token`. Keys have them.
    """
    name, _, key = name.partition("/")
    secret, _, usual_key = pattern.partition("/")
    lowered = name.lower().replace("_", "-")
    return secret.replace("{name}", lowered), key or usual_key.replace("{name}", name) or "value"


def refusals(task: TaskPlan, rules: Rules) -> list[str]:
    """Sentences on what a cluster, or its administrator, refuses in a task."""
    said = [*folders.refusals(task), *_refused_fields(task, rules), *_refused_users(task)]
    said += [
        f"`ready: {{command: ...}}` of the service {c.name or c.image} cannot be waited for on Kubernetes; "
        "name a `port`, or a `port` and a `path`"
        for c in task.containers[1:]
        if c.ready is not None and c.ready.port is None
    ]
    for name in sorted(_secrets_of(task)):
        secret, key = secret_of(name, rules.secrets)
        if not _SECRET_NAME.fullmatch(secret) or not _SECRET_KEY.fullmatch(key):
            said.append(
                f"the secret {name!r} would be the key {key!r} of the Secret {secret!r}: no such names can be"
            )
    services = [_service_name(n, c) for n, c in enumerate(task.containers[1:], 1)]
    said += [f"two services are called {name}" for name in sorted({s for s in services if services.count(s) > 1})]
    return said


def remarks(task: TaskPlan, rules: Rules) -> list[str]:
    """What of a task is not heeded."""
    said = []
    if task.containers[0].entrypoint:
        said.append("`entrypoint` of the first container is not heeded: its program is the steps.")
    user = task.user or task.containers[0].user
    if user and rules.one_uid is not None:
        said.append(f"`user: {user}` is not heeded: here everything runs as {rules.one_uid}.")
    return said


def _refused_fields(task: TaskPlan, rules: Rules) -> list[str]:
    asked = sorted(set(task.pod) & set(ALLOWABLE))
    said = [
        f"`pod: {{{key}: ...}}` is not allowed here; RUNYARD_KUBERNETES_ALLOW would have to name {key!r}"
        for key in asked
        if key not in rules.allow
    ]
    said += [f"`pod: {{{key}: ...}}` is not known" for key in sorted(set(task.pod) - set(ALLOWABLE))]
    if any(c.privileged for c in task.containers) and "privileged" not in rules.allow:
        said.append("`privileged` is not allowed here; RUNYARD_KUBERNETES_ALLOW would have to name 'privileged'")
    for key in ("labels", "annotations"):
        for name in _mapping(task.pod.get(key)):
            if "runyard.dev/" in name or name == names.MANAGED_BY:
                said.append(f"`pod: {{{key}: ...}}` cannot set {name}: it is Runyard's own")
    return said


def _refused_users(task: TaskPlan) -> list[str]:
    users = [task.user or task.containers[0].user, *(c.user for c in task.containers[1:])]
    return [
        f"`user: {user}` is a name, and Kubernetes takes numbers only: write the uid, or UID:GID"
        for user in users
        if user and user != "root" and not re.fullmatch(r"\d+(:\d+)?", user)
    ]


# The pod


def _fixed(launch: Launch, process: str) -> Manifest:
    annotations = {
        names.RUN_ID: launch.run_id,
        names.TASK_NAME: launch.task.name,
        names.DIGEST: launch.digest,
        names.OWNER: f"{process} {launch.owner}",
        names.GRACE: f"{launch.grace_s:g}",
        names.SHOWN: names.MAIN,
    }
    if launch.deadline_s is not None:
        annotations[names.DEADLINE] = f"{launch.deadline_s:g}"
    metadata = {"name": launch.name, "labels": _labels(launch), "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"restartPolicy": "Never"}}


def _labels(launch: Launch) -> dict[str, str]:
    return {
        names.MANAGED_BY: "runyard",
        names.RUN: names.label_value(launch.run_id),
        names.TASK: names.label_value(launch.task.name),
        names.ATTEMPT: str(launch.attempt),
    }


def _spec(launch: Launch, rules: Rules, at: Meeting) -> Manifest:
    task, written = launch.task, mounts.letters(launch)
    services = [_service(n, c, rules) for n, c in enumerate(task.containers[1:], 1)]
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil(launch.grace_s) + _SEAL_S,
        "activeDeadlineSeconds": _deadline(launch, rules),
        "securityContext": _pod_security(rules),
        # one after another is how a kubelet starts them: the agent, which takes longest to be ready, comes first
        "containers": [_agent(launch, rules, at, written), _main(launch, rules, at, written), *services],
        "volumes": mounts.volumes(launch, at, written),
    }
    if task.arch:
        spec["nodeSelector"] = {_ARCH_LABEL: task.arch}
    if task.registries:
        spec["imagePullSecrets"] = [{"name": launch.name}]
    return spec


def _deadline(launch: Launch, rules: Rules) -> int:
    """The kubelet's clock runs from the pod's start, also while an image is pulled: as long as that may take."""
    if launch.deadline_s is None:
        return math.ceil(rules.deadline_s)
    asked_s = launch.task.timeouts.pending_s
    pending_s = rules.deadline_s if asked_s is None else asked_s
    return math.ceil(launch.deadline_s + pending_s + launch.grace_s + _MARGIN_S)


def _pod_security(rules: Rules) -> Manifest:
    security: Manifest = {"seccompProfile": {"type": "RuntimeDefault"}}
    if rules.one_uid is not None:
        uid = rules.one_uid
        security |= {"runAsNonRoot": True, "runAsUser": uid, "runAsGroup": uid, "fsGroup": uid}
    return security


def _main(launch: Launch, rules: Rules, at: Meeting, written: Mapping[str, str]) -> Manifest:
    task, image = launch.task, launch.task.containers[0]
    environment: Environment = {"HOME": folders.HOME, **launch.environment}
    environment |= {variable: FromSecret(from_secret=secret) for variable, secret in launch.secrets.items()}
    ours = {
        "RUNYARD_DIR": at.dialogue,
        "RUNYARD_RECEIPT": "/dev/termination-log",
        "RUNYARD_POD": "1",
        "RUNYARD_GRACE_S": str(max(1, math.ceil(launch.grace_s) - _END_S)),
    }
    if at.spare_home and "HOME" not in launch.environment:
        ours["RUNYARD_HOME"] = at.spare_home
    script = ["-c", literal(launch.script)]
    if names.SCRIPT_KEY in written:
        script = [mounts.letter_path(names.SCRIPT_KEY)]
    return {
        "name": names.MAIN,
        "image": image.image,
        "command": ["/bin/sh", *script],
        "env": _env({**environment, **ours}, rules),
        "resources": _resources(task.resources),
        "securityContext": _security(image, rules, user=task.user or image.user, base=_RESTRICTED),
        "volumeMounts": mounts.main_mounts(launch, at, written),
    }


def _agent(launch: Launch, rules: Rules, at: Meeting, written: Mapping[str, str]) -> Manifest:
    secrets = {n: v for n, v in launch.environment.items() if isinstance(v, FromSecret)}
    secrets |= {variable: FromSecret(from_secret=secret) for variable, secret in launch.secrets.items()}
    assignment: Manifest = {"name": "RUNYARD_ASSIGNMENT"}
    if names.ASSIGNMENT_KEY in written:
        assignment["value"] = mounts.letter_path(names.ASSIGNMENT_KEY)
    else:
        assignment["valueFrom"] = {"secretKeyRef": {"name": launch.name, "key": names.ASSIGNMENT_KEY}}
    ours = {
        "RUNYARD_DIR": at.dialogue,
        "RUNYARD_SPOOL": at.spool,
        "RUNYARD_SPOOL_BYTES": str(rules.spool_bytes),
        "RUNYARD_COMMON": ":".join(folders.common(launch.task)) if at is mounts.VOLUMES else "",
        "RUNYARD_COPY_LOG": "1" if rules.copy_log else "",
        "RUNYARD_TERMINATION_LOG": "/dev/termination-log",
    }
    return {
        "name": names.AGENT,
        "image": rules.agent_image,
        "command": [literal(word) for word in rules.agent_command],
        "env": [*_env({**secrets, **ours}, rules), assignment],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        "securityContext": _RESTRICTED if rules.one_uid is not None else _AGENT_ROOT,
        # its last words come with its status: nobody has to ask for its log
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts.agent_mounts(launch, at, written),
    }


def _knows_a_secret(container: Container) -> bool:
    return any(isinstance(value, FromSecret) for value in container.environment.values())


def _service(n: int, container: Container, rules: Rules) -> Manifest:
    service: Manifest = {
        "name": _service_name(n, container),
        "image": container.image,
        "env": _env(container.environment, rules),
        # images of services often begin as root and step down: what they need for that stays
        "securityContext": _security(container, rules, user=container.user, base={}),
        # nobody masks what a service writes: where it knows a secret, the end of its log is not told
        "terminationMessagePolicy": "File" if _knows_a_secret(container) else "FallbackToLogsOnError",
        "volumeMounts": mounts.tmpfs_mounts(n, container),
    }
    if container.entrypoint:
        service["command"] = [literal(word) for word in container.entrypoint]
    return service


def _service_name(n: int, container: Container) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", container.name.lower()).strip("-")[:50].strip("-")
    return f"{names.SERVICE}{slug or n}"


def _security(container: Container, rules: Rules, *, user: str, base: Manifest) -> Manifest:
    if container.privileged:
        security: Manifest = {"privileged": True}
    else:
        security = dict(_RESTRICTED if rules.one_uid is not None else base)
    if user and rules.one_uid is None:
        uid, _, gid = user.partition(":")
        security["runAsUser"] = 0 if uid == "root" else int(uid)
        if gid:
            security["runAsGroup"] = int(gid)
    return security


def _env(environment: Mapping[str, Any], rules: Rules) -> list[Manifest]:
    result: list[Manifest] = []
    for name, value in environment.items():
        if isinstance(value, FromSecret):
            secret, key = secret_of(value.from_secret, rules.secrets)
            ref = {"name": secret, "key": key, "optional": False}
            result.append({"name": name, "valueFrom": {"secretKeyRef": ref}})
        elif isinstance(value, str):
            result.append({"name": name, "value": literal(value)})
    return result


def literal(words: str) -> str:
    """So written that the kubelet, which expands `$(NAME)` and `$$`, makes the same words of it again."""
    return words.replace("$", "$$")


def _resources(resources: Resources) -> Manifest:
    amounts = {}
    if resources.cpu is not None:
        amounts["cpu"] = f"{round(resources.cpu * 1000)}m"
    if resources.memory_bytes is not None:
        amounts["memory"] = str(resources.memory_bytes)
    if resources.disk_bytes is not None:
        amounts["ephemeral-storage"] = str(resources.disk_bytes)
    return {"requests": amounts, "limits": amounts} if amounts else {}


# What the run file asks for


def _asked(task: TaskPlan) -> Manifest:
    """Its `pod` section; only after `refusals` had nothing to say."""
    pod = task.pod
    spec: Manifest = {}
    if pod.get("node_selector"):
        spec["nodeSelector"] = _mapping(pod["node_selector"])
    if pod.get("tolerations"):
        spec["tolerations"] = pod["tolerations"]
    for key, field_ in (
        ("service_account", "serviceAccountName"),
        ("runtime_class", "runtimeClassName"),
        ("priority_class", "priorityClassName"),
    ):
        if pod.get(key):
            spec[field_] = pod[key]
    metadata = {key: _mapping(pod[key]) for key in ("labels", "annotations") if pod.get(key)}
    return {"metadata": metadata, "spec": spec}


def _mapping(value: object) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, Mapping) else {}


def _secrets_of(task: TaskPlan) -> set[str]:
    environments: list[Environment] = [task.environment, *(c.environment for c in task.containers)]
    environments += [step.environment for step in task.steps if step.type == "run"]
    return {v.from_secret for e in environments for v in e.values() if isinstance(v, FromSecret)}
