"""`make lab-run`: forty tasks in five layers through a quota of two pods, on a real kubelet, with a real bucket.

What it is measured against is the *floor*: bare pods of the same shape (two containers, host network) in the same
layers, two at once, created, watched until their containers are terminated, and deleted; nothing else.

Requests are counted in the API server's audit log, which says who asked: the kubelet reads a pod before it writes
its status, also one that has just gone (404), and that is not ours.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from images import IMAGES, REPOSITORY, build_image
from kubernetes.aio.client import ApiClient, ApiException, CoreV1Api
from kubernetes.aio.config import new_client_from_config
from kubernetes.aio.watch import Watch
from minio import Minio
from node import Node
from place import place_of
from problems import Problem

LAYERS = (8, 8, 8, 8, 8)  # of examples/quota.yml
TASKS = sum(LAYERS)
QUOTA = "two-pods"
ROOM = 2  # pods that the quota admits
IMAGE = "lab.local/task:1"
EXAMPLE = REPOSITORY / "examples" / "quota.yml"

CLUSTER = "kubelab/"
"""How the user agents of the node's own components begin."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    seconds: float
    requests: Counter[str]  # who asked, verb, resource and code → how many


class Room:
    """A namespace with a quota, a bucket, and the counters of the API server."""

    def __init__(self, node: Node, api: ApiClient, namespace: str) -> None:
        self.node, self.namespace = node, namespace
        self.core: Any = CoreV1Api(api)  # takes plain objects too, of which its types know nothing

    def requests(self) -> Counter[str]:
        """What pods and Secrets of the namespace were asked for so far, and by whom; watches aside."""
        log = self.node.place.audit_log
        if not log.exists():
            raise Problem("the lab is one of an earlier version: take it down (`make lab-down`)")
        total: Counter[str] = Counter()
        for line in log.read_text().splitlines():
            event = json.loads(line)
            if event["objectRef"].get("namespace") == self.namespace:
                who = "the cluster" if event["userAgent"].startswith(CLUSTER) else "ours"
                code = event.get("responseStatus", {}).get("code", "no answer")
                total[f"{who}: {event['verb']} {event['objectRef']['resource']} {code}"] += 1
        return total


async def main() -> int:
    place = place_of()
    node = Node(place)
    node.hold(os.getpid())
    try:
        node.load_images([build_image(place, name) for name in IMAGES])
        async with _room(node) as room:
            floor = await _floor(room)
            await _limit(room)
            print(f"floor: {TASKS} bare pods, {ROOM} at once, in {floor.seconds:.1f} s", flush=True)
            return await _run(room, floor)
    finally:
        node.release(os.getpid())


@asynccontextmanager
async def _room(node: Node) -> AsyncIterator[Room]:
    name = f"quota-{uuid.uuid4().hex[:8]}"
    async with await new_client_from_config(str(node.place.kubeconfig)) as api:  # type: ignore[no-untyped-call]
        room = Room(node, api, name)
        await room.core.create_namespace({"metadata": {"name": name}})
        try:
            await _until(room, room.core.read_namespaced_service_account, "default")
            yield room
        finally:
            await room.core.delete_collection_namespaced_pod(name, grace_period_seconds=0)
            await room.core.delete_namespace(name)


async def _limit(room: Room) -> None:
    """Only after the floor: a quota counts a pod after it has gone, and bare pods do not wait for that."""
    quota = {"metadata": {"name": QUOTA}, "spec": {"hard": {"pods": str(ROOM)}}}
    await room.core.create_namespaced_resource_quota(room.namespace, quota)
    await _until(room, room.core.read_namespaced_resource_quota, QUOTA, lambda quota: bool(quota.status.hard))


async def _until(
    room: Room, read: Callable[[str, str], Awaitable[Any]], name: str, ready: Callable[[Any], bool] = bool
) -> None:
    """Controllers make the account, and count for the quota."""
    async with asyncio.timeout(30):
        while True:
            try:
                if ready(await read(name, room.namespace)):
                    return
            except ApiException as error:
                if error.status != 404:
                    raise
            await asyncio.sleep(0.05)


async def _floor(room: Room) -> Measured:
    ended: dict[str, asyncio.Event] = {}
    watching = asyncio.create_task(_watch(room, ended))
    before, began = room.requests(), time.monotonic()
    slots = asyncio.Semaphore(ROOM)
    for layer, width in enumerate(LAYERS):
        async with asyncio.TaskGroup() as tasks:
            for number in range(width):
                tasks.create_task(_bare(room, f"floor-{layer}-{number}", slots, ended))
    seconds = time.monotonic() - began
    watching.cancel()
    await asyncio.wait({watching})
    return Measured(seconds=seconds, requests=room.requests() - before)


async def _bare(room: Room, name: str, slots: asyncio.Semaphore, ended: dict[str, asyncio.Event]) -> None:
    containers = [{"name": each, "image": IMAGE, "command": ["true"]} for each in ("main", "agent")]
    spec = {"restartPolicy": "Never", "hostNetwork": True, "containers": containers}
    ended[name] = asyncio.Event()
    async with slots:
        await room.core.create_namespaced_pod(room.namespace, {"metadata": {"name": name}, "spec": spec})
        await ended[name].wait()
        await room.core.delete_namespaced_pod(name, room.namespace, grace_period_seconds=0)


async def _watch(room: Room, ended: dict[str, asyncio.Event]) -> None:
    async with Watch() as watch:  # type: ignore[no-untyped-call]
        async for event in watch.stream(room.core.list_namespaced_pod, room.namespace):
            pod = event["raw_object"]
            statuses = pod["status"].get("containerStatuses", ())
            if len(statuses) == 2 and all("terminated" in status["state"] for status in statuses):
                ended[pod["metadata"]["name"]].set()


async def _run(room: Room, floor: Measured) -> int:
    with tempfile.TemporaryDirectory(prefix="lab-run-") as folder:
        environ = os.environ | _settings(room, Path(folder))
        program = [sys.executable, "-m", "runyard"]
        before = room.requests()
        running = await asyncio.create_subprocess_exec(*program, "exec", "--no-ui", str(EXAMPLE), env=environ)
        code = await running.wait()
        requests = room.requests() - before
        alone = environ | {"TEMPORAL_ADDRESS": "127.0.0.1:1"}  # only what the bucket says
        listing = await asyncio.create_subprocess_exec(
            *program, "run", "list", "--output", "json", env=alone, stdout=asyncio.subprocess.PIPE
        )
        listed, _ = await listing.communicate()
    (ended,) = json.loads(listed)["runs"]
    ours = Measured(seconds=_seconds(ended), requests=requests)
    # a list begins the worker's watch: once, and not for a task
    each = {what: number for what, number in requests.items() if what.startswith("ours") and ": list " not in what}
    asked = sum(each.values()) / TASKS
    by_kind = "; ".join(f"{what} × {number}" for what, number in sorted(requests.items()))
    print(f"API requests: {by_kind}")
    print(
        f"{TASKS} tasks in {len(LAYERS)} layers through a quota of {ROOM} pods: {ended['result']} in "
        f"{ours.seconds:.1f} s, {floor.seconds / ours.seconds:.0%} of the floor's pace ({floor.seconds:.1f} s), "
        f"{asked:.2f} API requests a task"
    )
    return code


def _seconds(run: dict[str, str]) -> float:
    """Of the run itself: its server and worker were started before."""
    created, ended = (datetime.fromisoformat(run[name]) for name in ("created_at", "ended_at"))
    return (ended - created).total_seconds()


def _settings(room: Room, folder: Path) -> dict[str, str]:
    """Of the workers of the run. Pods use the node's network: the bucket is on this machine's loopback only."""
    keys = room.node.keys()
    credentials, template = folder / "credentials", folder / "template.yaml"
    credentials.touch(mode=0o600)
    credentials.write_text(
        f"[default]\naws_access_key_id = {keys.s3_access}\naws_secret_access_key = {keys.s3_secret}\n"
    )
    template.write_text(json.dumps({"spec": {"hostNetwork": True}}))
    endpoint = f"127.0.0.1:{room.node.place.s3_port}"
    Minio(endpoint, access_key=keys.s3_access, secret_key=keys.s3_secret, secure=False).make_bucket(room.namespace)
    return {
        "PYTHONPATH": str(REPOSITORY),
        "RUNYARD_STATE": str(folder / "state"),
        "RUNYARD_EXECUTOR": "kubernetes",
        "RUNYARD_KUBERNETES_KUBECONFIG": str(room.node.place.kubeconfig),
        "RUNYARD_KUBERNETES_NAMESPACE": room.namespace,
        "RUNYARD_KUBERNETES_AGENT_IMAGE": "lab.local/runyard:dev",
        "RUNYARD_KUBERNETES_TEMPLATE": str(template),
        "RUNYARD_STORE": "s3",
        "RUNYARD_S3_BUCKET": room.namespace,
        "RUNYARD_S3_ENDPOINT": f"http://{endpoint}",
        "RUNYARD_S3_CREDENTIALS_FILE": str(credentials),
    }


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except Problem as problem:
        sys.exit(f"lab: {problem}")
