"""The executor of local processes: the worker's side of a pod; the other side is the nest.

Everything that must survive this process is in the pod's folder (see folder.py); what is kept here is only
what makes waiting cheap. Calls to the file system are made in the event loop itself: they touch a few small
files of one folder, which takes less time than handing them to a thread. Only the removal of a task's
folder, which may hold a hundred thousand files, goes to a thread.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from runyard.errors import ConfigError, Conflict, ExecutorError, Fenced, StartError
from runyard.executors.base import Ended, Launch, PodSeen, Progress, Report, Secrets
from runyard.executors.local import folder, process, surroundings
from runyard.executors.local.exits import Exit
from runyard.executors.local.folder import Facts, NestSeen, PodFolder, Status
from runyard.executors.local.room import Room, locked
from runyard.executors.local.starter import AGENT, MARK, Starter
from runyard.reasons import Reason
from runyard.spec.plan import TaskPlan
from runyard.spec.run import PodRef

_OWNER_S = 1.0  # how often a follower looks whether the pod is still its own
_CLAIM_S = 60.0  # how long a nest may take from its start until it has taken its pod
_LAST_WORDS_S = 10.0  # how long the agent of a killed nest may take to store the rest
_FORCE_S = 5.0  # how long a nest may take to kill its pod
_STALE_S = 600.0  # a half-made folder of this age has no maker any more


class LocalExecutor:
    """Tasks as processes. ``environ`` is what tasks inherit from, by default the worker's environment.

    ``tied``: the tasks end when this process does, however that comes about: nobody would adopt them.
    """

    name = "local"
    spool_bytes = 0

    def __init__(
        self,
        tasks: Path,
        *,
        slots: int,
        secrets: Secrets,
        keep_folders: bool = False,
        pass_environment: list[str] | None = None,
        environ: Mapping[str, str] | None = None,
        agent: Path = AGENT,
        tied: bool = False,
    ) -> None:
        self._tasks = tasks.absolute()
        self._room = Room(self._tasks, slots)
        self._keep = keep_folders
        self._starter = Starter(
            self._tasks,
            secrets=secrets,
            environ=os.environ if environ is None else environ,
            more=pass_environment or [],
            agent=agent,
            tied=tied,
        )
        self._node = socket.gethostname()
        self._nests: dict[int, Exit] = {}  # the nests that are our children: each must be waited for
        self._claims: dict[str, asyncio.Event] = {}  # uid → its nest, on the way, has taken the pod or gone
        self._takeovers: dict[str, asyncio.Event] = {}  # uid → wakes its followers of this process
        self._ready = False

    def validate(self, task: TaskPlan) -> list[str]:
        return surroundings.refusals(task)

    def notes(self, task: TaskPlan) -> list[str]:
        return surroundings.remarks(task)

    # Start

    async def start(self, launch: Launch, report: Report) -> PodRef:
        pod = PodFolder(self._tasks, launch.name)
        values = self._starter.values(launch)  # before anything is made: a missing secret leaves nothing behind
        await self._prepare()
        if pod.facts() is None:
            with contextlib.suppress(FileExistsError):  # somebody else was faster: then it is adopted
                facts, taken = await self._room.take(launch, lambda: self._make(launch, values), report)
                # the pod is there and its nest on the way: who follows waits for it, while Temporal takes its time
                self._claims[facts.uid] = taken
                return PodRef(name=pod.name, uid=facts.uid)
        present = pod.facts()
        if present is None:
            raise ExecutorError(f"{pod.path} is in the way or was deleted meanwhile: it is no pod")
        return await self._adopt(pod, present, launch, values)

    def _make(self, launch: Launch, values: dict[str, str]) -> tuple[Facts, asyncio.Event]:
        """Folder and nest in one go: no cancel comes in between."""
        try:
            facts = folder.make(self._tasks, launch)
        except FileExistsError:
            raise
        except OSError as error:
            raise ExecutorError(f"no folder can be made for the task: {error}") from error
        return facts, self._spawn(facts, launch, values)

    async def _adopt(self, pod: PodFolder, facts: Facts, launch: Launch, values: dict[str, str]) -> PodRef:
        if facts.digest != launch.digest:
            raise Conflict(f"there is a pod {pod.name} that was asked for with other words")
        self._take_over(pod, facts.uid, launch.owner)
        if pod.nest() is None:
            await self._claimed(pod, self._spawn(facts, launch, values))
        return PodRef(name=pod.name, uid=facts.uid)

    def _spawn(self, facts: Facts, launch: Launch, values: dict[str, str]) -> asyncio.Event:
        """Start a nest. If the pod has one already, this one goes away by itself."""
        pid, taken = self._starter.start(facts, launch, values)
        self._wait_for_child(pid)
        return taken

    async def _claimed(self, pod: PodFolder, taken: asyncio.Event) -> None:
        """Wait until a nest has taken the pod. Raises StartError with the nest's last words."""
        await _first(taken, timeout_s=_CLAIM_S)
        if pod.nest() is None and (facts := pod.facts()) is not None:
            pod.bury(facts.uid)  # what has not come by now must not come later
            if (seen := pod.nest()) is not None and seen.pid:
                return
            words = pod.log_tail("nest.log")
            raise StartError("the supervisor of the task did not start" + (f": {words}" if words else ""))

    # Follow

    async def follow(self, pod: PodRef, *, owner: str, report: Report) -> Ended:
        place = PodFolder(self._tasks, pod.name)
        facts = place.facts()
        if facts is None or facts.uid != pod.uid:
            return await self._gone(pod.uid, "its folder is not there")
        self._take_over(place, pod.uid, owner)
        if (claim := self._claims.pop(pod.uid, None)) is not None:
            try:
                await self._claimed(place, claim)
            except StartError as error:
                return Ended(reason=Reason.START_ERROR, message=error.message, node=self._node)
        seen = await self._nest_of(place, pod.uid)
        if seen is None:
            return await self._gone(pod.uid, "its supervisor never began")
        if seen.running:
            report(Progress(state="running", message="runs", node=self._node, pid=seen.pid))
            await self._until_ended(place, pod.uid, owner, seen)
        return await self._ended(place, pod.uid, owner, report)

    def _take_over(self, place: PodFolder, uid: str, owner: str) -> None:
        place.own(owner)
        if uid in self._takeovers:
            self._takeovers.pop(uid).set()

    async def _nest_of(self, place: PodFolder, uid: str) -> NestSeen | None:
        """The nest. One that was started by a worker that is gone is given some seconds to take its pod."""
        until = asyncio.get_running_loop().time() + _CLAIM_S
        # Nothing tells of its coming: it is nobody's child, and its pid is not known yet.
        while place.nest() is None and place.facts() is not None and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        place.bury(uid)
        seen = place.nest()
        return seen if seen is not None and seen.pid else None

    async def _until_ended(self, place: PodFolder, uid: str, owner: str, seen: NestSeen) -> None:
        """Until the nest is gone. Raises Fenced when another owner has written its name."""
        ended = asyncio.Event()
        watch = Exit(seen.pid, seen.started, ended.set)
        try:
            while not ended.is_set():
                taken = self._takeovers.setdefault(uid, asyncio.Event())
                await _first(ended, taken, timeout_s=_OWNER_S)
                present = place.owner()
                if present is None:
                    return  # the folder was removed by somebody
                _check(present, owner)
        finally:
            watch.close()

    async def _ended(self, place: PodFolder, uid: str, owner: str, report: Report) -> Ended:
        present = place.owner()
        if present is not None:
            _check(present, owner)
        self._takeovers.pop(uid, None)
        status = place.status()
        if status is None:
            words = place.log_tail("nest.log")
            await self._sweep(uid, agent_s=_LAST_WORDS_S)
            return Ended(
                gone=True,
                message="its supervisor was killed or its folder removed" + (f": {words}" if words else ""),
                receipt=place.log_tail("receipt"),
                node=self._node,
            )
        if not status.swept:
            await self._sweep(uid)
        report(Progress(state="ended", message=status.message or "ended", node=self._node))
        return _as_ended(status, self._node)

    async def _gone(self, uid: str, message: str) -> Ended:
        await self._sweep(uid)
        return Ended(gone=True, message=message, node=self._node)

    # End

    async def stop(self, pod: PodRef, *, grace_s: float) -> None:
        place = PodFolder(self._tasks, pod.name)
        facts = place.facts()
        if facts is None or (pod.uid and facts.uid != pod.uid):
            return
        place.ask_to_stop(grace_s)  # also for a nest that has not begun yet
        seen = place.nest()
        if seen is not None and seen.pid:
            process.kill(seen.pid, seen.started, signal.SIGTERM)

    async def delete(self, pod: PodRef) -> None:
        place = PodFolder(self._tasks, pod.name)
        facts = place.facts()
        if facts is None or (pod.uid and facts.uid != pod.uid):
            if pod.uid:
                await self._sweep(pod.uid)  # its folder may have been removed by hand
            return
        place.bury(facts.uid)
        await self._kill(place, facts.uid)
        gone = await self._put_away(place, facts.uid)
        self._takeovers.pop(facts.uid, None)
        self._claims.pop(facts.uid, None)
        self._room.look_again()
        if gone is not None:
            # A thread, since a task may leave a hundred thousand files.
            await asyncio.to_thread(folder.remove_tree, gone)

    async def _kill(self, place: PodFolder, uid: str) -> None:
        seen = place.nest()
        if seen is not None and seen.running:
            process.kill(seen.pid, seen.started, signal.SIGUSR1)
            ended = asyncio.Event()
            watch = Exit(seen.pid, seen.started, ended.set)
            try:
                await _first(ended, timeout_s=_FORCE_S)
            finally:
                watch.close()
        status = place.status()
        if status is None or not status.swept:
            await self._sweep(uid)

    async def _put_away(self, place: PodFolder, uid: str) -> Path | None:
        """Free the name, unless it is another pod's by now."""
        async with locked(self._tasks):
            facts = place.facts()
            if facts is None or facts.uid != uid:
                return None
            return folder.put_away(self._tasks, place, keep=self._keep)

    async def _sweep(self, uid: str, *, agent_s: float = 0) -> None:
        """Kill what a killed nest has left. The agent comes last: it may take ``agent_s`` to store the rest."""
        await _kill_carriers(f"{MARK}={uid}.main")
        until = asyncio.get_running_loop().time() + agent_s
        while asyncio.get_running_loop().time() < until and process.carrying(f"{MARK}={uid}"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await _kill_carriers(f"{MARK}={uid}", f"{MARK}={uid}.main")

    # The rest

    async def list(self, *, fresh: bool = True) -> AsyncIterator[PodSeen]:
        for place in folder.pods(self._tasks):
            facts = place.facts()
            if facts is None:
                continue
            seen = place.nest()
            alive = seen.running if seen is not None else facts.uid in self._claims
            yield PodSeen(
                pod=PodRef(name=place.name, uid=facts.uid),
                run_id=facts.run_id,
                task=facts.task,
                attempt=facts.attempt,
                running=alive and not place.ended(),  # its supervisor may have some last words, as for a slot
                created_at=facts.created_at,
            )

    async def close(self) -> None:
        for watch in self._nests.values():
            watch.close()
        self._nests.clear()
        self._starter.close()

    async def _prepare(self) -> None:
        """The tasks folder, without what a killed worker left half made or half removed."""
        if self._ready and self._tasks.is_dir():
            return
        try:
            self._tasks.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"the folder for tasks cannot be made: {error}") from error
        for path in folder.leftovers(self._tasks, older_than_s=_STALE_S):
            await asyncio.to_thread(folder.remove_tree, path)  # a thread: it may hold very many files
        self._ready = True

    def _wait_for_child(self, pid: int) -> None:
        row = process.look(pid)

        def ended() -> None:
            self._nests.pop(pid, None)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            self._room.look_again()

        self._nests[pid] = Exit(pid, row.started if row else "", ended)


def _as_ended(status: Status, node: str) -> Ended:
    return Ended(
        exit_code=status.exit_code,
        signal=status.signal,
        reason=Reason(status.reason) if status.reason else None,
        message=status.message,
        receipt=status.receipt,
        started_at=_moment(status.started_at),
        ended_at=_moment(status.ended_at),
        node=node,
    )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _check(present: str, owner: str) -> None:
    if present != owner:
        raise Fenced(f"{present or 'another caretaker'} has taken the task over")


async def _first(*events: asyncio.Event, timeout_s: float) -> None:
    """Until one of them is set, or the time is over."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _kill_carriers(*marks: str) -> None:
    """Kill until no process is left that carries one of the marks."""
    until = asyncio.get_running_loop().time() + _FORCE_S
    while rows := process.carrying(*marks):
        for row in rows:
            process.kill(row.pid, row.started)
        if asyncio.get_running_loop().time() > until:
            pids = ", ".join(str(row.pid) for row in rows)
            raise ExecutorError(f"processes of the task cannot be killed: {pids}")
        await asyncio.sleep(0.005)
