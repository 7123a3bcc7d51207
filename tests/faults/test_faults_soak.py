"""All faults, in a random order, for a quarter of an hour: no wrong verdict, no lost line, nothing left or stuck.

    RUNYARD_SOAK_MINUTES=15 RUNYARD_SOAK_SEED=… make soak ARGS=tests/faults/test_faults_soak.py

In each round a run of tasks that print known lines goes on, in the care of workers that are killed and put to
sleep; somebody deletes, evicts or robs of their agents some of its pods; beside it are runs with some of the
faults of the table (fault_rows.py); and meanwhile parts of the node or the store are away. No fault comes again
before all have been there, and a whole soak goes on until they have. A seed tells the faults and their moments,
not what else the machine does: a failure comes again with it often, not always.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import provoked
import pytest
from aiohttp import ClientError
from fault_rows import PLACES, ROWS, Row, task
from kubernetes.aio.client import ApiException
from lab import Lab
from lab_scene import LATE_CANCEL, Handle, Pod, Scene, Spot, counting, lines, open_scene
from lab_workers import Workers, kill, workers_of
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from runyard.errors import RunyardError
from runyard.executors.kubernetes.verdict import Patience
from runyard.reasons import Reason
from runyard.spec.run import RunView

WHOLE_MINUTES = 15
MINUTES = float(os.environ.get("RUNYARD_SOAK_MINUTES") or WHOLE_MINUTES)
SEED = int(os.environ.get("RUNYARD_SOAK_SEED") or random.randrange(1_000_000))
STUCK_S = 420  # the longest outage, the longest patience and the longest timeout together are less than half of it

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.soak,
    pytest.mark.timeout(60 * MINUTES + 2 * STUCK_S),
    LATE_CANCEL,
]

OUTAGES_S = {"kubelet": 30.0, "apiserver": 30.0, "containerd": 20.0, "minio": 60.0}
Provoke = Callable[[Scene, Pod], Awaitable[None]]
TO_PODS: dict[str, tuple[Provoke, Reason]] = {
    "evicted": (provoked.evict, Reason.EVICTED),
    "deleted": (provoked.delete_gracefully, Reason.LOST),
    "forced": (provoked.delete_by_force, Reason.LOST),
    "agent-killed": (provoked.kill_agent, Reason.AGENT_LOST),
}
TO_WORKERS = ("killed", "asleep")
ONCE = ("ending", "too-late")  # their place is gone after them
TABLE = {name: row for name, row in ROWS.items() if name not in ONCE}
# what passes by itself must have the time for it: here the node is away for longer than the table's tests wait
ENOUGH = Patience(pull_s=40, config_s=10, start_s=30)


@dataclass(kw_only=True)
class Found:
    """What must be empty in the end."""

    verdicts: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    tasks: int = 0
    faults: list[str] = field(default_factory=list)


class Deck:
    """Deals things in a random order, all of them before any comes again."""

    def __init__(self, what: str, things: Iterable[str]) -> None:
        self._things = sorted(things)
        self._chance = random.Random(f"{SEED} {what}")
        self._left: list[str] = []
        self.unseen = set(self._things)

    def deal(self, count: int = 1) -> list[str]:
        if len(self._left) < count:
            self._left += self._chance.sample(self._things, len(self._things))
        dealt, self._left = self._left[:count], self._left[count:]
        self.unseen -= set(dealt)
        return dealt


@dataclass(kw_only=True)
class Soak:
    scene: Scene
    spots: dict[str, Spot]
    workers: Workers
    found: Found = field(default_factory=Found)
    rows: Deck = field(default_factory=lambda: Deck("rows", TABLE))
    outages: Deck = field(default_factory=lambda: Deck("outages", [*OUTAGES_S, *TO_WORKERS]))
    victims: Deck = field(default_factory=lambda: Deck("victims", TO_PODS))

    @property
    def unseen(self) -> set[str]:
        """The faults that have not been there yet."""
        return self.rows.unseen | self.outages.unseen | self.victims.unseen

    async def round(self, number: int) -> None:
        """One run with known lines, some with faults of the table, and an outage."""
        chance = chance_of(number, "round")
        chosen, (outage,) = self.rows.deal(4), self.outages.deal()
        victims = {f"victim {fault}": fault for fault in self.victims.deal(2)}
        counted = {f"count {n}": (chance.randrange(20, 600), chance.choice((0, 0, 7))) for n in range(4)}
        self.found.faults.append(f"{number}: {outage}, {', '.join([*victims.values(), *chosen])}")
        print(self.found.faults[-1], flush=True)
        await asyncio.gather(
            self._known(number, counted, victims),
            self._outage(outage, chance_of(number, "outage")),
            *(self._row(number, name, TABLE[name]) for name in chosen),
        )

    # the run with known lines

    async def _known(self, number: int, counted: dict[str, tuple[int, int]], victims: dict[str, str]) -> None:
        chance = chance_of(number, "known")
        every_s = chance.choice((0.02, 0.05, 0.1))
        tasks = [counting(name, count, every_s=every_s, code=code) for name, (count, code) in counted.items()]
        tasks += [counting(name, 100_000, every_s=0.05) for name in victims]
        handle = await self.scene.start(self.workers.executor, tasks)
        moments = [chance.uniform(0, 8) for _ in victims]
        hits = [
            self._hit(handle, name, TO_PODS[fault][0], after_s)
            for (name, fault), after_s in zip(victims.items(), moments, strict=True)
        ]
        view = await self._ended(number, handle, *hits)
        if view is None:
            return
        for name, (count, code) in counted.items():
            self._judge(number, view, name, Reason.EXIT_CODE if code else Reason.SUCCESS)
            await self._compare(number, handle, name, lines(name, count), whole=True)
        for name, fault in victims.items():
            self._judge(number, view, name, TO_PODS[fault][1])
            await self._compare(number, handle, name, lines(name, 100_000), whole=False)

    async def _hit(self, handle: Handle, name: str, provoke: Provoke, after_s: float = 0) -> None:
        try:
            pod: Pod = await until_done(lambda: self.scene.begun(handle, name, within_s=STUCK_S))
            await asyncio.sleep(after_s)
            await until_done(lambda: provoke(self.scene, pod))
        except (ApiException, AssertionError, TimeoutError, ValueError) as error:  # it is not there any more
            self.found.verdicts.append(f"{handle.id}: {name} could not be hit: {error!r}")

    # a run with one fault of the table

    async def _row(self, number: int, name: str, row: Row) -> None:
        handle = await self.scene.start(self.spots[row.place].executor, [task(name, row)])
        hits = [self._hit(handle, name, row.provoke)] if row.provoke else []
        view = await self._ended(number, handle, *hits)
        if view is None:
            return
        self._judge(number, view, name, row.reason)

    # what is away meanwhile

    async def _outage(self, what: str, chance: random.Random) -> None:
        await asyncio.sleep(chance.uniform(1, 10))
        if what in OUTAGES_S:
            away_s = chance.uniform(1, OUTAGES_S[what])
            await self.scene.lab.stop(what, kill=chance.random() < 0.7)
            try:
                await asyncio.sleep(away_s)
            finally:
                await self.scene.lab.start(what)
            return
        oldest = next(process for process in self.workers.started if process.returncode is None)
        if what == "killed":
            await kill(oldest)
            await self.workers.start()
        else:
            oldest.send_signal(signal.SIGSTOP)
            await asyncio.sleep(chance.uniform(2, 20))
            oldest.send_signal(signal.SIGCONT)

    # the verdicts

    async def _ended(self, number: int, handle: Handle, *hits: Coroutine[None, None, None]) -> RunView | None:
        hitting = [asyncio.create_task(hit) for hit in hits]
        try:
            view: RunView = await until_done(lambda: self.scene.ended(handle, within_s=STUCK_S))
        except TimeoutError:
            self.found.stuck.append(f"round {number}: {handle.id}")
            return None
        finally:  # a task that ended before it could be hit is judged by its reason
            for each in hitting:
                each.cancel()
            await asyncio.gather(*hitting, return_exceptions=True)
        self.found.tasks += len(view.tasks)
        try:
            await until_done(lambda: self.scene.gone(handle))
        except TimeoutError:
            self.found.left.append(f"round {number}: {await self.scene.left(handle)}")
        return view

    def _judge(self, number: int, view: RunView, name: str, wanted: Reason) -> None:
        (found,) = (each for each in view.tasks if each.name == name)
        if found.reason is not wanted:
            self.found.verdicts.append(f"round {number}: {name}: {found.reason} {found.message}, not {wanted}")

    async def _compare(self, number: int, handle: Handle, name: str, known: bytes, *, whole: bool) -> None:
        """A log that says that it is whole is what was written; one that was cut is the beginning of that."""
        seal = await self.scene.seal(handle, name)
        step = seal.steps[0] if seal and seal.steps else None
        log = await self.scene.log(handle, name) if step else b""
        if whole and not (seal and seal.complete and log == known):
            why = seal.truncated if seal else "no seal"
            self.found.lines.append(f"round {number}: {name}: {len(log)} of {len(known)} bytes: {why}")
        elif not known.startswith(log):
            self.found.lines.append(f"round {number}: {name}: not what was written: …{log[-120:]!r}")


def chance_of(number: int, what: str) -> random.Random:
    """One for each strand of a round, so that what one draws does not hang on how fast another is."""
    return random.Random(f"{SEED} {number} {what}")


async def until_done(act: Callable[[], Awaitable[Any]]) -> Any:
    """Once the API server and the store answer, which are away now and then, or Temporal, on a busy machine."""
    while True:
        try:
            return await act()
        except (ApiException, ClientError, OSError, RPCError, RunyardError) as error:
            if isinstance(error, TimeoutError) or getattr(error, "status", 0) in (404, RPCStatusCode.NOT_FOUND):
                raise
            await asyncio.sleep(0.5)


@pytest.fixture
async def soak(lab: Lab, client: Client, tmp_path: Path) -> AsyncIterator[Soak]:
    async with open_scene(lab, client, tmp_path) as scene:
        for kind in ("secret", "config_map"):
            body = {"metadata": {"name": "present"}}
            await getattr(scene.core, f"create_namespaced_{kind}")(scene.namespace, body)
        places = {name: replace(place, patience=ENOUGH) for name, place in PLACES.items() if name not in ONCE}
        spots = await scene.serve(places)
        async with workers_of(scene) as workers:
            await workers.start()
            await workers.start()
            try:
                yield Soak(scene=scene, spots=spots, workers=workers)
            finally:
                for process in workers.started:
                    with contextlib.suppress(ProcessLookupError):
                        process.send_signal(signal.SIGCONT)


@pytest.mark.promise(1)
@pytest.mark.promise(4)
@pytest.mark.promise(5)
@pytest.mark.promise(9)
async def test_a_soak_of_all_faults(soak: Soak) -> None:
    print(f"RUNYARD_SOAK_SEED={SEED} RUNYARD_SOAK_MINUTES={MINUTES:g}", flush=True)
    until, number = time.monotonic() + 60 * MINUTES, 0
    while time.monotonic() < until or (MINUTES >= WHOLE_MINUTES and soak.unseen):
        number += 1
        await soak.round(number)
    found = soak.found
    print(f"{number} rounds, {found.tasks} tasks; not there: {sorted(soak.unseen)}", flush=True)
    wrong = [*found.verdicts, *found.lines, *found.left, *found.stuck]
    print("\n".join(wrong), flush=True)
    assert wrong == [], f"seed {SEED}: {found.faults}"
