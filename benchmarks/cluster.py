"""A cluster with a bucket as in use: the worker a process of its own, its pods, a Temporal server beside it.

Where it is comes from `deploy/lab env`: KUBECONFIG, S3_ENDPOINT, S3_ACCESS_KEY and S3_SECRET_KEY. The node must be
this machine: the processes of its pods are looked at from here, they read a folder of ours (`SHARED`), and the
store is put to sleep by a signal. So it is the lab, and one that nobody else uses meanwhile.
"""

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.pod import BUCKET, Bucket, open_bucket
from runyard.client import Run, Runyard
from runyard.dialogue import Manifest
from runyard.errors import ClusterUnavailable
from runyard.executors.kubernetes import fields, names
from runyard.executors.kubernetes.api import Api, Refused
from runyard.executors.kubernetes.fields import Json
from runyard.executors.kubernetes.watch import main_ended
from runyard.records.logs import Seal, load_manifest, load_seal
from runyard.store import paths
from workers.embedded import embedded_server

TASK_IMAGE: Final = "lab.local/task:1"
OUR_IMAGE: Final = "lab.local/runyard:dev"
SHARED: Final = "/shared"
"""Where pods see the folder `Cluster.shared`."""

ROOT: Final = Path(__file__).parents[1]
_SERVING_S: Final = 120
_WORKER: Final = "from runyard.cli import main; main()"
_HIGH_WATER: Final = re.compile(r"VmHWM:\s+(\d+) kB")


@dataclass(kw_only=True)
class Worker:
    """`runyard worker`, which serves the runs too."""

    process: asyncio.subprocess.Process
    began_s: float  # when it was started, by the monotonic clock
    serves_s: float  # and when it said that it serves

    @property
    def pid(self) -> int:
        return self.process.pid

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


@dataclass(kw_only=True)
class Cluster:
    api: Api
    yard: Runyard
    bucket: Bucket
    place: Path
    lab: Path  # its state
    address: str  # of the Temporal server
    _workers: list[Worker] = field(default_factory=list)

    @property
    def shared(self) -> Path:
        return self.place / "shared"

    async def start_worker(self, **settings: str) -> Worker:
        """At work; dead in the end."""
        began_s = time.monotonic()
        with (self.place / "worker.log").open("ab") as said:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _WORKER, "worker", "--executor", "kubernetes"),
                env=self._environment() | {f"RUNYARD_{name.upper()}": value for name, value in settings.items()},
                stdout=asyncio.subprocess.PIPE,
                stderr=said,
            )
        assert process.stdout is not None
        async with asyncio.timeout(_SERVING_S):
            line = await process.stdout.readline()
        worker = Worker(process=process, began_s=began_s, serves_s=time.monotonic())
        self._workers.append(worker)
        assert b"serving" in line, (self.place / "worker.log").read_text()[-2000:]
        return worker

    @contextlib.asynccontextmanager
    async def worker(self, **settings: str) -> AsyncIterator[Worker]:
        worker = await self.start_worker(**settings)
        try:
            yield worker
        finally:
            await worker.kill()

    async def close(self) -> None:
        """Also after a measurement that was interrupted: nothing is left behind."""
        for worker in self._workers:
            await worker.kill()
        while left := list(fields.parts(await self.api.page("pods", labelSelector=names.SELECTOR), "items")):
            for body in left:
                name, uid = fields.text(body, "metadata", "name"), fields.text(body, "metadata", "uid")
                with contextlib.suppress(Refused):
                    await self.api.delete("pods", name, uid=uid, grace_s=0)

    def _environment(self) -> dict[str, str]:
        shared = {"name": "shared", "hostPath": {"path": str(self.shared)}}
        main = {"name": names.MAIN, "volumeMounts": [{"name": "shared", "mountPath": SHARED}]}
        # the lab's store is on the loopback of its node
        template = {"spec": {"hostNetwork": True, "volumes": [shared], "containers": [main]}}
        (self.place / "template.yml").write_text(json.dumps(template))
        endpoint, access_key, secret_key = self.bucket.words
        others = ("RUNYARD_", "TEMPORAL_", "PYTHONDONTWRITEBYTECODE")  # modules are compiled, as in the image
        keep = {n: value for n, value in os.environ.items() if not n.startswith(others)}
        return keep | {
            "PYTHONPATH": str(ROOT),
            "PYTHONPYCACHEPREFIX": str(self.place / "compiled"),
            "TEMPORAL_ADDRESS": self.address,
            "RUNYARD_STATE": str(self.place),
            "RUNYARD_SETTINGS": str(self.place / "none.toml"),
            "RUNYARD_STORE": "s3",
            "RUNYARD_S3_ENDPOINT": endpoint,
            "RUNYARD_S3_BUCKET": BUCKET,
            "RUNYARD_S3_ACCESS_KEY": access_key,
            "RUNYARD_S3_SECRET_KEY": secret_key,
            "RUNYARD_KUBERNETES_NAMESPACE": self.api.namespace,
            "RUNYARD_KUBERNETES_AGENT_IMAGE": OUR_IMAGE,
            "RUNYARD_KUBERNETES_TEMPLATE": str(self.place / "template.yml"),
        }

    async def start(self, tasks: Sequence[dict[str, Any]]) -> Run:
        file = {"runs": [{"name": "bench", "tasks": list(tasks)}]}
        return await self.yard.start(json.dumps(file), executor="kubernetes")

    async def task_ids(self, run: Run) -> dict[str, str]:
        return {task.name: task.id for task in (await run.describe()).tasks}

    async def manifest(self, task_id: str) -> Manifest:
        manifest = await load_manifest(self.yard.store, task_id, 1)
        assert manifest is not None
        return manifest

    async def seal(self, task_id: str) -> Seal:
        seal = await load_seal(self.yard.store, task_id, 1)
        assert seal is not None
        return seal

    def took_s(self, task_id: str) -> float:
        """From the agent's claim, before the first step, to its manifest, when all is in the store; its clock."""
        # a listing has milliseconds, a HEAD whole seconds
        found = self.bucket.client.list_objects(BUCKET, paths.attempt(task_id, 1))
        times = {each.object_name: each.last_modified for each in found}
        first, last = times[f"{paths.attempt(task_id, 1)}started"], times[paths.manifest(task_id, 1)]
        assert first is not None
        assert last is not None
        return float((last - first).total_seconds())

    @contextlib.contextmanager
    def store_asleep(self) -> Iterator[None]:
        """It takes connections and answers nothing."""
        pid = int((self.lab / "run" / "minio").read_text().split()[0])
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def store_dead(self) -> Iterator[None]:
        self._lab("stop", "minio", "--kill")
        try:
            yield
        finally:
            self._lab("start", "minio")

    def _lab(self, *words: str) -> None:
        environ = os.environ | {"RUNYARD_LAB_STATE": str(self.lab)}
        subprocess.run([sys.executable, str(ROOT / "deploy" / "lab"), *words], env=environ, check=True)


def task(name: str, *steps: str | dict[str, Any], image: str = TASK_IMAGE, **more: Any) -> dict[str, Any]:
    runs = [{"run": step} if isinstance(step, str) and step != "restore_workspace" else step for step in steps]
    return {"name": name, "runtime": {"containers": [{"image": image}]}, "steps": runs, **more}


@contextlib.asynccontextmanager
async def open_cluster(place: Path) -> AsyncIterator[Cluster]:
    kubeconfig = os.environ.get("KUBECONFIG", "")
    if not kubeconfig:
        raise SystemExit('no cluster: `make lab`, then `eval "$(python3 deploy/lab env)"`')
    _furnish(place)
    async with contextlib.AsyncExitStack() as stack:
        bucket = stack.enter_context(open_bucket(place))
        api = await Api.open(kubeconfig=Path(kubeconfig), context="", namespace="default")
        stack.push_async_callback(api.close)
        settings = bucket.settings(state=place)
        server = await stack.enter_async_context(embedded_server(place / "server", headless=True, ephemeral=True))
        yard = await stack.enter_async_context(Runyard.over(server.client, settings))
        lab = Path(kubeconfig).parent
        cluster = Cluster(api=api, yard=yard, bucket=bucket, place=place, lab=lab, address=server.address)
        stack.push_async_callback(cluster.close)
        yield cluster


def _furnish(place: Path) -> None:
    place.chmod(0o755)  # pods may be other users
    (place / "shared").mkdir()


# Pods, as the API server tells of them


class Pods:
    """Those of one run: all that were ever made, and what each is now."""

    def __init__(self) -> None:
        self.made: set[str] = set()  # uids
        self.present: dict[str, Json] = {}
        self._news = asyncio.Event()

    async def until(self, true: Callable[["Pods"], bool], *, within_s: float = 300) -> float:
        """When it was so, by the monotonic clock."""
        async with asyncio.timeout(within_s):
            while not true(self):
                self._news.clear()
                await self._news.wait()
        return time.monotonic()

    @property
    def running(self) -> int:
        return sum(_main_runs(body) for body in self.present.values())

    @property
    def caretakers(self) -> list[str]:
        """The process that has each pod."""
        notes = (fields.text(body, "metadata", "annotations", names.OWNER) for body in self.present.values())
        return [note.partition(" ")[0] for note in notes]

    async def _watch(self, api: Api, run: Run) -> None:
        """Listed anew whenever the stream ends, as it may at any time."""
        label = f"{names.RUN}={names.label_value(run.id)}"
        while True:
            page = await api.page("pods", limit=1000, labelSelector=label)
            self.present = {fields.text(body, "metadata", "uid"): body for body in fields.parts(page, "items")}
            self.made |= set(self.present)
            self._news.set()
            query = {"labelSelector": label, "resourceVersion": fields.text(page, "metadata", "resourceVersion")}
            with contextlib.suppress(Refused, ClusterUnavailable):
                async for event in api.watch("pods", idle_s=90, query=query):
                    self._take(event["type"], event["object"])

    def _take(self, kind: str, body: Json) -> None:
        uid = fields.text(body, "metadata", "uid")
        if kind == "DELETED":
            self.present.pop(uid, None)
        elif uid:  # a bookmark has none
            self.made.add(uid)
            self.present[uid] = body
        self._news.set()


def _main_runs(body: Json) -> bool:
    return not main_ended(body) and any(
        fields.text(each, "name") == names.MAIN and "running" in fields.part(each, "state")
        for each in fields.parts(body, "status", "containerStatuses")
    )


@contextlib.asynccontextmanager
async def watched(cluster: Cluster, run: Run) -> AsyncIterator[Pods]:
    pods = Pods()
    watching = asyncio.create_task(pods._watch(cluster.api, run))
    try:
        yield pods
    finally:
        watching.cancel()
        await asyncio.wait([watching])


# Processes of this machine


@dataclass(kw_only=True)
class AgentsUse:
    """Of the agents of all pods, as the system notes it: true on a busy machine too, unlike a pace."""

    largest_kb: int = 0  # resident, at any time
    cpu_s: dict[Path, float] = field(default_factory=dict)  # of each that was ever seen

    @property
    def most_mb(self) -> float:
        return self.largest_kb * 1024 / 1e6

    def look(self, process: Path) -> None:
        self.largest_kb = max(self.largest_kb, _high_water_kb(process))
        with contextlib.suppress(OSError):
            self.cpu_s[process] = processor_s(int(process.name))


@contextlib.asynccontextmanager
async def agents_use() -> AsyncIterator[AgentsUse]:
    """What is used while the block runs, by agents that are looked at twenty times a second."""
    use = AgentsUse()

    async def look() -> None:
        known: set[Path] = set()
        for turn in itertools.count():
            if turn % 10 == 0:
                known = set(_agents())
            for process in known:
                use.look(process)
            await asyncio.sleep(0.05)

    looking = asyncio.create_task(look())
    try:
        yield use
    finally:
        looking.cancel()


def _agents() -> Iterator[Path]:
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if b"/opt/runyard/agent.pyc" in (process / "cmdline").read_bytes():
                    yield process


def processor_s(pid: int) -> float:
    """What a process has used of the processors so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> tuple[float, float]:
    """Now, and at most so far."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, _high_water_kb(Path(f"/proc/{pid}")) * 1024 / 1e6


def _high_water_kb(process: Path) -> int:
    with contextlib.suppress(OSError):
        found = _HIGH_WATER.search((process / "status").read_text())
        return int(found[1]) if found else 0  # a zombie has none
    return 0
