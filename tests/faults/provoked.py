"""What somebody else does to a pod that runs."""

import contextlib
import os
import re
import signal
from pathlib import Path

from lab_scene import Pod, Scene


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
