"""An executor without processes: the fake of the seam, shipped since tests and benchmarks of others need it too.

A pod is an asyncio task inside this object, and what it does is the text of its run steps (see memory_pod).
Everything else is as with a real executor: room, adoption by digest, fencing by owner, uids, the objects that
the agent leaves in the store. The object is the cluster: to play a worker that dies and another that goes
on, keep the object and give it to the next worker.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from runyard.errors import Conflict, ExecutorError, Fenced
from runyard.executors.base import Ended, Launch, PodSeen, Progress, Report
from runyard.executors.line import Line
from runyard.executors.memory_pod import PodPlay
from runyard.reasons import Reason
from runyard.spec.plan import TaskPlan
from runyard.spec.run import PodRef


class _Pod:
    def __init__(self, uid: str, launch: Launch) -> None:
        self.uid = uid
        self.launch = launch
        self.owner = launch.owner
        self.created_at = datetime.now(UTC)
        self.play = PodPlay(launch)
        self.life: asyncio.Task[Ended]
        self.changed = asyncio.Event()  # another owner, or the end; a new one each time


_START_POLL_S = 0.05


class MemoryExecutor:
    """Pods in memory: ``slots`` at once (None = any number), each created only after ``create_s`` seconds."""

    name = "memory"
    spool_bytes = 0

    def __init__(self, *, slots: int | None = None, create_s: float = 0) -> None:
        self._slots = slots
        self._create_s = create_s
        self._pods: dict[str, _Pod] = {}
        self._alive = 0
        self._line = Line()
        self._freed = asyncio.Event()
        self._uids = itertools.count(1)

    def validate(self, task: TaskPlan) -> list[str]:
        if len(task.containers) > 1:
            return ["services do not run in memory; the executors `docker` and `kubernetes` run them"]
        return []

    def notes(self, task: TaskPlan) -> list[str]:
        return ["Nothing really runs: the steps are played in memory."]

    async def start(self, launch: Launch, report: Report) -> PodRef:
        if self._create_s:
            await asyncio.sleep(self._create_s)
        if launch.name not in self._pods:
            await self._room(launch, report)
        pod = self._pods.get(launch.name) or self._make(launch)
        if pod.launch.digest != launch.digest:
            raise Conflict(f"there is a pod {launch.name} that was asked for with other words")
        _take_over(pod, launch.owner)
        return PodRef(name=launch.name, uid=pod.uid)

    async def follow(self, pod: PodRef, *, owner: str, report: Report) -> Ended:
        seen = self._find(pod)
        if seen is None:
            return Ended(gone=True, message="the pod is not there")
        _take_over(seen, owner)
        reported = False
        while not seen.life.done():
            if seen.play.running and not reported:
                reported = True
                report(Progress(state="running", message="runs", node="memory"))
            with contextlib.suppress(TimeoutError):  # nothing tells when a slow start is over: look
                async with asyncio.timeout(None if reported else _START_POLL_S):
                    await seen.changed.wait()
            if seen.owner != owner:
                raise Fenced(f"{seen.owner or 'another caretaker'} has taken the task over")
        report(Progress(state="ended", message="ended", node="memory"))
        if seen.life.cancelled():
            return Ended(gone=True, message="the pod was deleted")
        return seen.life.result()

    async def stop(self, pod: PodRef, *, grace_s: float) -> None:
        seen = self._find(pod)
        if seen is not None and not seen.life.done():
            seen.play.term.set()
            asyncio.get_running_loop().call_later(grace_s, seen.play.kill.set)

    async def delete(self, pod: PodRef) -> None:
        seen = self._find(pod)
        if seen is None:
            return
        seen.life.cancel()
        await asyncio.wait([seen.life])
        if self._pods.get(pod.name) is seen:
            del self._pods[pod.name]

    async def list(self, *, fresh: bool = True) -> AsyncIterator[PodSeen]:
        for name, pod in tuple(self._pods.items()):
            yield PodSeen(
                pod=PodRef(name=name, uid=pod.uid),
                run_id=pod.launch.run_id,
                task=pod.launch.task.name,
                attempt=pod.launch.attempt,
                running=not pod.life.done(),
                created_at=pod.created_at,
            )

    async def close(self) -> None:
        """The cluster stays: pods go on, for the next worker that is given this object."""

    def _find(self, ref: PodRef) -> _Pod | None:
        pod = self._pods.get(ref.name)
        return pod if pod is not None and ref.uid in ("", pod.uid) else None

    async def _room(self, launch: Launch, report: Report) -> None:
        """Wait until a slot is free and take it, or until somebody else has made the pod."""
        if self._slots is None:
            return
        async with self._line.place(priority=launch.priority, owner=launch.run_owner) as place:
            while launch.name not in self._pods:
                if not place.is_first.is_set():
                    report(_waiting(f"{self._slots} slots, others are before it"))
                    await place.first()
                elif self._alive < self._slots:
                    place.serve()
                    self._make(launch)
                else:
                    report(_waiting(f"{self._alive} of {self._slots} slots are in use"))
                    self._freed.clear()
                    await self._freed.wait()

    def _make(self, launch: Launch) -> _Pod:
        pod = _Pod(f"m{next(self._uids)}", launch)
        self._alive += 1
        self._pods[launch.name] = pod
        pod.life = asyncio.get_running_loop().create_task(_live(pod.play))

        def ended(_: asyncio.Task[Ended]) -> None:
            self._alive -= 1
            self._freed.set()
            pod.changed.set()

        pod.life.add_done_callback(ended)
        return pod


async def _live(play: PodPlay) -> Ended:
    try:
        return await play.run()
    except (OSError, ValueError, ExecutorError) as error:
        return Ended(exit_code=125, reason=Reason.AGENT_LOST, message=f"{type(error).__name__}: {error}")


def _take_over(pod: _Pod, owner: str) -> None:
    if pod.owner != owner:
        pod.owner = owner
        pod.changed.set()
        if not pod.life.done():
            pod.changed = asyncio.Event()


def _waiting(why: str) -> Progress:
    return Progress(state="waiting", message=f"waits for room: {why}")
