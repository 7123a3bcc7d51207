"""Where main and agent meet in their pod, and which of it are volumes.

A pod that has any volume waits until the kubelet, which looks every 0.3 s, finds all of them mounted; one without
waits for nothing (a no-op: 0.89 s against 1.25 s in the median), and a kubelet that hears of a pod's end once a
second then often hears of it a second sooner. So a task of which the agent neither reads nor writes files gets no
volume: the two meet in the pod's ``/dev/shm``, which runtimes share among a pod's containers, as they do their
IPC namespace. Everybody else meets in volumes: what a step leaves there may be large, services must not see the
dialogue, and a sandboxed runtime, or a template with volumes of its own, makes other rules.

Turned down: a volume made by main (nothing else is shared), and HOME in memory (it is 64 MB).
"""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from runyard.executors.base import Launch
from runyard.executors.kubernetes import folders, names
from runyard.executors.kubernetes.template import Manifest
from runyard.spec.plan import Container, TaskPlan

LONG_BYTES = 100 << 10  # the kernel takes 128 KiB as one argument or variable


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """A folder of both containers, one of the agent, and HOME where main cannot make the usual one."""

    dialogue: str
    spool: str
    spare_home: str = ""


VOLUMES = Meeting(dialogue=f"{folders.DIALOGUE}/dialogue", spool=f"{folders.DIALOGUE}/spool")
MEMORY = Meeting(dialogue="/dev/shm/.runyard", spool="/tmp/runyard-spool", spare_home="/tmp/runyard")
_LETTERS = f"{folders.DIALOGUE}/letters"


def may_meet_in_memory(task: TaskPlan) -> bool:
    """As far as the task itself is concerned. Its files are then its image's: HOME may have to be elsewhere."""
    uid = (task.user or task.containers[0].user).partition(":")[0]
    return uid in ("", "0", "root") and len(task.containers) == 1 and not folders.uses_agent(task)


def needs_volumes(manifest: Manifest) -> bool:
    """Whether a pod that is to meet in memory cannot, for what a template or a run file has laid over it."""
    spec = manifest["spec"]
    if spec.get("volumes") or spec.get("hostIPC") or spec.get("runtimeClassName"):
        return True
    own = [each.get("securityContext") or {} for each in spec["containers"] if each["name"] != names.AGENT]
    users = [each.get("runAsUser") for each in (spec.get("securityContext") or {}, *own)]
    return any(users) or any(
        (each.get("securityContext") or {}).get("readOnlyRootFilesystem") for each in spec["containers"]
    )


def letters(launch: Launch) -> dict[str, str]:
    """What has to come as a file, by its key in the Secret: too long for a variable or an argument."""
    words = {names.ASSIGNMENT_KEY: launch.assignment.model_dump_json(), names.SCRIPT_KEY: launch.script}
    return {key: text for key, text in words.items() if len(text.encode()) > LONG_BYTES}


def volumes(launch: Launch, at: Meeting, written: Mapping[str, str]) -> list[Manifest]:
    """Those of the pod: what the two share, letters, and the tmpfs that the run file asks for."""
    made: list[Manifest] = []
    if at is VOLUMES:
        # the spool has no size limit: whole archives are packed there, too
        shared = ["dialogue", "spool", *(name for name, _ in _shared_folders(launch.task))]
        made += [{"name": name, "emptyDir": {}} for name in shared]
    # one volume for each: main must not see the assignment
    made += [_letter(launch.name, key) for key in written]
    return [*made, *_tmpfs(launch.task)]


def main_mounts(launch: Launch, at: Meeting, written: Mapping[str, str]) -> list[Manifest]:
    return [
        *_shared(launch.task, at),
        *_letter_mounts(names.SCRIPT_KEY, written),
        *tmpfs_mounts(0, launch.task.containers[0]),
    ]


def agent_mounts(launch: Launch, at: Meeting, written: Mapping[str, str]) -> list[Manifest]:
    """With each tmpfs of main that lies in what the two share: behind it the agent would see another folder."""
    spool = [{"name": "spool", "mountPath": at.spool}] if at is VOLUMES else []
    places = folders.common(launch.task) if at is VOLUMES else []
    laid_over = [
        mount
        for mount in tmpfs_mounts(0, launch.task.containers[0])
        if any(posixpath.normpath(mount["mountPath"]).startswith(f"{each}/") for each in places)
    ]
    return [*_shared(launch.task, at), *laid_over, *spool, *_letter_mounts(names.ASSIGNMENT_KEY, written)]


def tmpfs_mounts(n: int, container: Container) -> list[Manifest]:
    return [{"name": f"tmpfs-{n}-{m}", "mountPath": volume.path} for m, volume in enumerate(container.volumes)]


def letter_path(key: str) -> str:
    return f"{_LETTERS}/{key}/letter"


def _letter_mounts(key: str, written: Mapping[str, str]) -> list[Manifest]:
    return [{"name": key, "mountPath": f"{_LETTERS}/{key}", "readOnly": True}] if key in written else []


def _letter(secret: str, key: str) -> Manifest:
    items = [{"key": key, "path": "letter"}]  # readable for any user that the container may run as
    return {"name": key, "secret": {"secretName": secret, "items": items, "defaultMode": 0o444}}


def _shared(task: TaskPlan, at: Meeting) -> list[Manifest]:
    if at is not VOLUMES:
        return []
    return [{"name": n, "mountPath": folder} for n, folder in (("dialogue", at.dialogue), *_shared_folders(task))]


def _shared_folders(task: TaskPlan) -> list[tuple[str, str]]:
    """Volumes of files, and where they are: one each, since a `subPath` costs the kubelet four programs."""
    others = enumerate(folders.shared(task), 1)
    return [("work", folders.HOME), *((f"work-{n}", posixpath.normpath(folder)) for n, folder in others)]


def _tmpfs(task: TaskPlan) -> list[Manifest]:
    made: list[Manifest] = []
    for n, container in enumerate(task.containers):
        for m, volume in enumerate(container.volumes):
            memory: Manifest = {"medium": "Memory"}
            if volume.size_bytes is not None:
                memory["sizeLimit"] = str(volume.size_bytes)
            made.append({"name": f"tmpfs-{n}-{m}", "emptyDir": memory})
    return made
