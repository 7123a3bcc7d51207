"""The bars on a cluster: pods of the real kubelet, against bare pods on the same kubelet in turn.

    python -m benchmarks kubernetes [--repeats 50] [--only MEASURE]

with what `deploy/lab env` says in the environment: KUBECONFIG, and S3_ENDPOINT, S3_ACCESS_KEY and S3_SECRET_KEY.

The *floor* is who makes a bare pod, watches until its container is `terminated`, and deletes it with grace 0. It
comes in three shapes: one container; two, as ours have; and one whose phase is waited for, as is usual. All of
them and ours run in turn on the same node, so only ratios and differences say something.

Everything is as in use, the real images and a real bucket; the pods of the floor, too, are on the node's network,
which is where the lab's bucket can be reached. Requests are counted by the API server, without the watch and
without those of the node and the scheduler, which ask for other kinds or subresources.
"""

import asyncio
import json
import os
import re
import resource
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.cluster import OUR_IMAGE, TASK_IMAGE
from benchmarks.cpu import Accounts
from benchmarks.pod import open_bucket
from benchmarks.rows import Row, Samples
from runyard.client import Runyard
from runyard.dialogue import Assignment
from runyard.executors.base import Launch, Progress
from runyard.executors.kubernetes import fields
from runyard.executors.kubernetes.api import Api
from runyard.executors.kubernetes.executor import KubernetesExecutor
from runyard.executors.kubernetes.pod import Rules
from runyard.executors.kubernetes.watch import main_ended, phase_ended
from runyard.script import compile_script
from runyard.spec.plan import Container, RunStep, TaskPlan
from runyard.store.base import ObjectStore
from runyard.store.open import open_store
from workers.embedded import embedded_server
from workers.serve import build_workers

CHAIN: Final = 20
MANY, AT_ONCE = 200, 20
SOME: Final = 60
LIVE: Final = 100
_FLOOR_LABEL = "runyard.dev/floor"
_WRITES = re.compile(
    r'apiserver_request_total\{[^}]*resource="(pods|secrets)"[^}]*subresource=""[^}]*'
    r'verb="(POST|DELETE|PATCH|PUT)"[^}]*\} (\S+)'
)


@dataclass
class FloorPods:
    """Bare pods, and one watch for all of them."""

    api: Api
    image: str
    _waiting: dict[str, tuple[Callable[[Any], bool], asyncio.Event]] = field(default_factory=dict)

    async def watch(self) -> None:
        page = await self.api.page("pods", labelSelector=_FLOOR_LABEL)
        version = page["metadata"]["resourceVersion"]
        while True:
            query = {"labelSelector": _FLOOR_LABEL, "resourceVersion": version}
            async for event in self.api.watch("pods", idle_s=600, query=query):
                body = event["object"]
                version = body["metadata"]["resourceVersion"]
                until, done = self._waiting.get(fields.text(body, "metadata", "name"), (_never, asyncio.Event()))
                if until(body):
                    done.set()

    async def one(self, *, containers: int = 1, until: Callable[[Any], bool] = main_ended) -> None:
        name = f"floor-{uuid.uuid4().hex[:10]}"
        done = asyncio.Event()
        self._waiting[name] = until, done
        made = await self.api.create("pods", self._manifest(name, containers))
        await done.wait()
        await self.api.delete("pods", name, uid=made["metadata"]["uid"], grace_s=0)
        del self._waiting[name]

    def _manifest(self, name: str, containers: int) -> dict[str, Any]:
        names = ["main", "agent"][:containers]
        return {
            "metadata": {"name": name, "labels": {_FLOOR_LABEL: "1"}},
            "spec": {
                "restartPolicy": "Never",
                "hostNetwork": True,
                "automountServiceAccountToken": False,
                "containers": [{"name": n, "image": self.image, "command": ["/bin/true"]} for n in names],
            },
        }


def _never(_: Any) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Bench:
    floor: FloorPods
    executor: KubernetesExecutor
    yard: Runyard
    store: ObjectStore
    image: str
    api: Api

    def launch(self, command: str = "true") -> Launch:
        name = f"ours-{uuid.uuid4().hex[:10]}"
        step = RunStep(command=command)
        task = TaskPlan(id=name, name="task", containers=[Container(image=self.image)], steps=[step])
        target = self.store.target(f"bench/{name}/", expires_s=3600)
        return Launch(
            name=name,
            run_id="bench",
            attempt=1,
            task=task,
            script=compile_script(task),
            assignment=Assignment(run_id="bench", task="task", attempt=1, steps=[step], logs=target),
            digest=name,
            owner="bench",
        )

    async def ours(self) -> tuple[float, float]:
        """One task at the executor: seconds in all, and from the news of its end until it is deleted."""
        begin = time.perf_counter()
        pod = await self.executor.start(self.launch(), _silent)
        ended = await self.executor.follow(pod, owner="bench", report=_silent)
        seen = time.perf_counter()
        assert (ended.exit_code, ended.receipt) == (0, "0 0;sealed;"), ended
        await self.executor.delete(pod)
        return time.perf_counter() - begin, time.perf_counter() - seen

    async def run(self, tasks: int, *, chained: bool, concurrency: int = 500) -> float:
        """Seconds from asking for a run to its end."""
        file = {"runs": [{"name": "bench", "concurrency": concurrency, "tasks": self._tasks(tasks, chained)}]}
        begin = time.perf_counter()
        run = await self.yard.start(json.dumps(file), executor="kubernetes")
        result = await run.result()
        assert result.result == "success", result
        return time.perf_counter() - begin

    def _tasks(self, tasks: int, chained: bool) -> list[dict[str, Any]]:
        return [
            {
                "name": f"t{n}",
                "runtime": {"containers": [{"image": self.image}]},
                "steps": [{"run": "true"}],
                "depends": [f"t{n - 1}"] if chained and n else [],
            }
            for n in range(tasks)
        ]


def _silent(_: Progress) -> None:
    """Nobody listens."""


@asynccontextmanager
async def bench(place: Path) -> AsyncIterator[Bench]:
    kubeconfig = Path(os.environ["KUBECONFIG"])
    executor = KubernetesExecutor(
        rules=Rules(
            agent_image=OUR_IMAGE,
            agent_command=["python3", "-I", "-S", "/opt/runyard/agent.pyc"],
            template={"spec": {"hostNetwork": True}},
        ),
        kubeconfig=kubeconfig,
        namespace="default",
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(executor.close)
        settings = stack.enter_context(open_bucket(place)).settings(state=place)
        store = open_store(settings)
        stack.push_async_callback(store.close)
        api = await Api.open(kubeconfig=kubeconfig, context="", namespace="default")
        stack.push_async_callback(api.close)
        floor = FloorPods(api, TASK_IMAGE)
        watching = asyncio.create_task(floor.watch())
        stack.push_async_callback(_cancelled, watching)
        server = await stack.enter_async_context(embedded_server(place / "server", headless=True, ephemeral=True))
        for worker in build_workers(server.client, store, [executor])[:2]:
            await stack.enter_async_context(worker)
        yard = await stack.enter_async_context(Runyard.over(server.client, settings))
        yield Bench(floor=floor, executor=executor, yard=yard, store=store, image=TASK_IMAGE, api=api)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


async def _timed(work: Awaitable[object]) -> float:
    begin = time.perf_counter()
    await work
    return time.perf_counter() - begin


async def single(bench: Bench, repeats: int) -> list[Row]:
    one, two, phase, ours, deleted = Samples(), Samples(), Samples(), Samples(), Samples()
    await bench.ours()  # the first of all opens connections
    for _ in range(repeats):
        one.add(await _timed(bench.floor.one()) * 1e3)
        seconds, after = await bench.ours()
        ours.add(seconds * 1e3)
        deleted.add(after * 1e3)
        two.add(await _timed(bench.floor.one(containers=2)) * 1e3)
        phase.add(await _timed(bench.floor.one(until=phase_ended)) * 1e3)
    more, tail = ours.median - one.median, _p99(ours) - _p99(one)
    return [
        Row("one no-op task, create to deleted", ours.text("ms"), "< phase", ours.median < phase.median),
        Row("bare pod of one container", one.text("ms")),
        Row("bare pod of two containers", two.text("ms")),
        Row("bare pod, waiting for the phase", phase.text("ms")),
        Row("ours above one container, median", f"{more:.0f} ms", "≤ 150 ms", more <= 150),
        Row("ours above one container, p99", f"{tail:.0f} ms", "≤ 400 ms", tail <= 400),
        Row("`terminated` seen to deleted", deleted.text("ms"), "≤ 100 ms", deleted.median <= 100),
        Row("the same, p99", f"{_p99(deleted):.0f} ms", "≤ 1,500 ms", _p99(deleted) <= 1500),
    ]


def _p99(samples: Samples) -> float:
    return sorted(samples.values)[int(0.99 * (len(samples.values) - 1) + 0.5)]


async def chain(bench: Bench, repeats: int) -> list[Row]:
    floor, ours = Samples(), Samples()
    for _ in range(max(1, repeats // 10)):

        async def one_after_another() -> None:
            for _ in range(CHAIN):
                await bench.floor.one()

        floor.add(await _timed(one_after_another()) / CHAIN * 1e3)
        ours.add(await bench.run(CHAIN, chained=True) / CHAIN * 1e3)
    more = ours.median - floor.median
    return [
        Row(f"chain of {CHAIN}, a whole run", ours.text("ms an edge")),
        Row("bare pods one after another", floor.text("ms an edge")),
        Row("ours above the floor", f"{more:.0f} ms an edge", "≤ 120 ms", more <= 120),
    ]


async def many(bench: Bench, repeats: int) -> list[Row]:
    one, two, ours, requests, own = Samples(), Samples(), Samples(), Samples(), Samples()
    for _ in range(max(1, repeats // 25)):
        for samples, containers in ((one, 1), (two, 2)):
            samples.add(MANY / await _timed(_at_once(partial(bench.floor.one, containers=containers))))
        before, asked = await _writes(bench.api), sum(bench.executor.requests.values())
        ours.add(MANY / await bench.run(MANY, chained=False, concurrency=AT_ONCE))
        requests.add((await _writes(bench.api) - before) / MANY)
        own.add((sum(bench.executor.requests.values()) - asked) / MANY)
    share = ours.median / two.median
    return [
        Row(f"{MANY} tasks, {AT_ONCE} in flight, a whole run", ours.text("pods/s")),
        Row("bare pods of two containers", two.text("pods/s")),
        Row("bare pods of one container", one.text("pods/s")),
        Row("ours of two containers", f"{share:.0%}", "≥ 90 %", share >= 0.9),
        Row("API requests a task, and deletes of the cluster's garbage collector", requests.text("requests")),
        Row("of which our own", own.text("requests"), "≤ 4", round(own.median, 2) <= 4),
    ]


async def _at_once(work: Callable[[], Awaitable[None]], pods: int = MANY) -> None:
    turns = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with turns:
            await work()

    await asyncio.gather(*(one() for _ in range(pods)))


async def _writes(api: Api) -> float:
    """Requests so far that make, change or delete pods and secrets, by the API server's own count."""
    text = await api.server_metrics()
    return sum(float(count) for _, _, count in _WRITES.findall(text))


async def memory(bench: Bench, repeats: int) -> list[Row]:
    """A worker's memory and processor time with many running pods."""
    pods = await asyncio.gather(*(bench.executor.start(bench.launch("sleep 300"), _silent) for _ in range(LIVE)))
    running = asyncio.Semaphore(0)

    def report(progress: Progress) -> None:
        if progress.state == "running":
            running.release()

    follows = [asyncio.create_task(bench.executor.follow(pod, owner="bench", report=report)) for pod in pods]
    for _ in pods:
        await running.acquire()
    begin, used = time.perf_counter(), _cpu_s()
    await asyncio.sleep(30)
    share = (_cpu_s() - used) / (time.perf_counter() - begin)
    resident = _resident_mb()
    for follow in follows:
        follow.cancel()
    await asyncio.gather(*(bench.executor.delete(pod) for pod in pods))
    return [
        Row(f"memory of a worker with {LIVE} running pods", f"{resident:.0f} MB", "≤ 200 MB", resident <= 200),
        Row("its processor", f"{share:.1%} of a core", "≤ 10 %", share <= 0.1),
    ]


async def cpu(bench: Bench, repeats: int) -> list[Row]:
    """Who uses the processors: milliseconds a pod, of bare pods of two containers and of a whole run."""

    async def floor() -> None:
        await _at_once(lambda: bench.floor.one(containers=2), SOME)

    async def ours() -> None:
        await bench.run(SOME, chained=False, concurrency=AT_ONCE)

    found: dict[str, tuple[Samples, Samples]] = {}
    with Accounts.open(Path(os.environ["KUBECONFIG"]).parent) as accounts:
        for _ in range(max(1, repeats // 25)):
            for shape, work in enumerate((floor, ours)):
                before = accounts.used_s()
                await work()
                spent = {part: (used - before[part]) / SOME * 1e3 for part, used in accounts.used_s().items()}
                for part, each_ms in {**spent, "everything": sum(spent.values())}.items():
                    found.setdefault(part, (Samples(), Samples()))[shape].add(each_ms)
    return [
        Row(f"processor a pod: {part}", f"{ours.median:.0f} ms; bare: {floor.median:.0f} ms")
        for part, (floor, ours) in found.items()
    ]


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


MEASURES: Final = {"single": single, "chain": chain, "many": many, "memory": memory, "cpu": cpu}


async def measure(place: Path, *, repeats: int, only: str) -> AsyncIterator[Row]:
    async with bench(place) as ready:
        for name, take in MEASURES.items():
            if only in ("", name):
                for row in await take(ready, repeats):
                    yield row
