"""Runs, restarts, cleanups and kills at once, for ten minutes (`RUNYARD_SOAK_MINUTES`), on real stores.

Nothing is kept for longer than its run and some seconds: so cleanups are at what restarts refer to, all the time.
A restart keeps the task that made an archive, waits, and then unpacks it: were the data deleted under its hands,
it would end otherwise than it should. Meanwhile its client reads the log of the kept task. A restart may be too
late, and be told so, or may have to make the archive again; both are right.
"""

import asyncio
import os
import random
import secrets
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import pytest_asyncio
from minio_server import MinioServer
from temporalio.client import Client
from temporalio.service import RPCError

from runyard.client import Run, Runyard
from runyard.client.cleanup import clean
from runyard.client.planned import read_planned
from runyard.client.restarting import ask_state, wait_for_plan
from runyard.errors import NotFound, RunyardError, ServerUnavailable
from runyard.executors.open import open_executor
from runyard.settings import Settings
from runyard.store import paths

T = TypeVar("T")

MINUTES = float(os.environ.get("RUNYARD_SOAK_MINUTES", "10"))
WORKERS, RUNS_AT_ONCE = 3, 4
KEPT_S, GONE_S = 4.0, 60.0
STUCK_S = 300.0
"""After the last kill. Before it a run may take long: its workers die under it."""

TOO_LATE = ("not_found", "invalid_request")
"""The codes of a restart whose run a cleanup has removed."""

A_MINUTE = {
    "runs": 2.0,
    "restarts that kept data": 0.5,
    "kept data outlived its run": 0.3,
    "logs of kept tasks read": 0.3,
    "cleanups": 1.0,
    "deleted objects": 20.0,
    "killed workers": 1.0,
}
"""What has to happen for the soak to say anything: a tenth of what two cores do that have a load of ten. Where it
takes longer than the minutes given, the soak does, up to three times."""

FILE = """
runs:
  - name: soak
    tasks:
      - name: make
        runtime: {containers: [{image: none}]}
        steps:
          - {run: 'echo made; echo made > made'}
          - {save_to_workspace: {contents: [{paths: [made]}]}}
      - name: use
        runtime: {containers: [{image: none}]}
        depends: [make]
        steps: [{run: sleep $PAUSE}, {restore_workspace: {dest_dir: .}}, {run: test -s made}]
      - name: last
        runtime: {containers: [{image: none}]}
        depends: [use]
        steps: [{restore_workspace: {dest_dir: .}}, {run: test -s made}]
      - name: judge
        runtime: {containers: [{image: none}]}
        depends: [use]
        steps: [{run: exit $CODE}]
"""
"""Only `judge` may fail: so data that is gone shows in what a run's tasks came to, whatever it was to come to."""

COUNTS = {"0": {"success": 4}, "1": {"success": 3, "failed": 1}}


class Soak:
    """What goes on, and what came of it."""

    def __init__(self, yard: Runyard, address: str, environment: dict[str, str], seed: int) -> None:
        self.yard = yard
        self.chance = random.Random(seed)
        self.ended: deque[tuple[float, str]] = deque(maxlen=50)  # when, and which run
        self.lost: list[str] = []
        self._open: set[str] = set()
        self.seen: Counter[str] = Counter()
        self.workers: list[asyncio.subprocess.Process] = []
        self._began = time.monotonic()
        self._command = [sys.executable, str(Path(__file__).with_name("soak_worker.py")), address]
        self._environment = environment

    async def play(self) -> None:
        self._began = time.monotonic()
        async with asyncio.TaskGroup() as strands:
            going = [strands.create_task(self._play_runs()) for _ in range(RUNS_AT_ONCE)]
            going.append(strands.create_task(self._clean_up()))
            await self._kill_workers()
            _, stuck = await asyncio.wait(going, timeout=STUCK_S)
            if stuck:
                self.lost.append(f"a cleanup is stuck, or these runs are: {sorted(self._open)}")
            for strand in stuck:
                strand.cancel()

    @property
    def goes_on(self) -> bool:
        minutes = (time.monotonic() - self._began) / 60
        return minutes < MINUTES or (minutes < 3 * MINUTES and bool(self.rare))

    @property
    def rare(self) -> dict[str, int]:
        """What has not happened often enough."""
        return {what: self.seen[what] for what, often in A_MINUTE.items() if self.seen[what] < often * MINUTES}

    # workers

    async def work(self) -> None:
        """One more, at work: on a busy machine that takes as long as it takes."""
        worker = await asyncio.create_subprocess_exec(
            *self._command, env=self._environment, stdout=asyncio.subprocess.PIPE
        )
        self.workers.append(worker)
        assert worker.stdout is not None
        assert await worker.stdout.readline() == b"serving\n"

    async def end(self) -> None:
        while self.workers:
            await self._kill(0)

    async def _kill_workers(self) -> None:
        while self.goes_on:
            await asyncio.sleep(self.chance.uniform(5, 20))
            await self._kill(self.chance.randrange(len(self.workers)))
            self.seen["killed workers"] += 1
            await self.work()

    async def _kill(self, number: int) -> None:
        worker = self.workers.pop(number)
        assert worker.returncode is None, "it ended by itself"
        worker.kill()
        await worker.wait()

    # runs

    async def _play_runs(self) -> None:
        """One after the other: new ones, and restarts of what has ended."""
        while self.goes_on:
            code = self.chance.choice(("0", "1"))
            environment = {"CODE": code, "PAUSE": f"{self.chance.uniform(0, 4):.1f}"}
            if self.ended and self.chance.random() < 0.6:
                await self._restart(self._ended_about(self.chance.uniform(0, 3 * KEPT_S)), environment)
                continue
            run = await once(partial(self.yard.start, FILE, environment=environment, executor="local"))
            if self.chance.random() < 0.1:
                await asyncio.sleep(self.chance.uniform(0, 4))
                await self._terminate(run)
            else:
                await self._end(run, COUNTS[code])

    def _ended_about(self, ago_s: float) -> str:
        """The run that ended next to that moment: how many come too late does not hang on the machine's pace."""
        then = time.monotonic() - ago_s
        return min(self.ended, key=lambda each: abs(each[0] - then))[1]

    async def _terminate(self, run: Run) -> None:
        handle = self.yard.client.get_workflow_handle(run.id)
        with suppress(RPCError):  # it may have ended before
            await handle.terminate("soak")
            self.seen["terminated"] += 1
            return
        with suppress(NotFound):  # by now
            await patient(run.result)

    async def _restart(self, of: str, environment: dict[str, str]) -> None:
        try:
            run = await once(partial(self.yard.restart, of, tasks=["use"], environment=environment))
            planned = await patient(partial(wait_for_plan, run, patience_s=STUCK_S))
            kept = bool(planned and planned["make"].kept_from)
            if kept:
                await self._read_log(run)
            await self._end(run, COUNTS[environment["CODE"]])
        except RunyardError as error:
            self.seen["restarts that were too late"] += 1
            if error.code not in TOO_LATE:
                self.lost.append(f"the restart of {of}: {error.code}: {error.message}")
            return
        self.seen["restarts that kept data" if kept else "restarts that made data again"] += 1
        if kept and not await read_planned(self.yard.store, of):
            self.seen["kept data outlived its run"] += 1

    async def _read_log(self, run: Run) -> None:
        """Of the kept task, while the restart that refers to it goes on."""
        try:
            lines = [line.text async for line in run.logs("make", step=0)]
        except RunyardError as error:
            lines = [f"{error.code}: {error.message}"]
        if lines == ["made"]:
            self.seen["logs of kept tasks read"] += 1
        elif await patient(partial(ask_state, self.yard, run.id)) == "open":
            self.lost.append(f"{run.id}: the log of a task that it keeps: {lines}")

    async def _end(self, run: Run, counts: dict[str, int]) -> None:
        self._open.add(run.id)
        try:
            found = (await patient(run.result)).counts
        finally:
            self._open.discard(run.id)
        self.seen["runs"] += 1
        self.ended.append((time.monotonic(), run.id))
        if found != counts:
            self.lost.append(f"{run.id}: {found}, not {counts}")

    # cleanups

    async def _clean_up(self) -> None:
        while self.goes_on:
            self.seen["deleted objects"] += await self.clean()
            self.seen["cleanups"] += 1
            await asyncio.sleep(self.chance.uniform(0, 1))

    async def clean(self) -> int:
        async def act() -> int:
            report = await (await clean(self.yard, now=True)).result()
            return sum(tally.objects for tally in report.deleted.values())

        return await patient(act)

    # what is left

    async def left(self) -> list[str]:
        """Pods, and processes of any."""
        executor = open_executor("local", self.yard.settings)
        pods = [f"{pod.run_id} {pod.task} #{pod.attempt}" async for pod in executor.list()]
        await executor.close()
        workers = [worker.pid for worker in self.workers]
        return [*pods, *processes_of(str(self.yard.settings.state), but=workers)]


async def patient(act: Callable[[], Awaitable[T]]) -> T:
    """The answer; a server on a busy machine has none now and then."""
    while True:
        try:
            return await act()
        except (ServerUnavailable, RPCError):
            await asyncio.sleep(1)


async def once(start: Callable[..., Awaitable[Run]]) -> Run:
    """The run that this starts, however often it has to be asked for."""
    return await patient(partial(start, idempotency_key=secrets.token_hex(8)))


def processes_of(state: str, *, but: list[int]) -> list[str]:
    """Those whose command or environment names the folder: supervisors, agents, tasks."""
    done = subprocess.run(["ps", "axeww", "-o", "pid=,stat=,command="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in done.stdout.splitlines() if state in line]
    return [command[:200] for pid, stat, command in rows if "Z" not in stat and int(pid) not in but]


@pytest_asyncio.fixture(params=["posix", "s3"])
async def soak(request: pytest.FixtureRequest, client: Client, tmp_path: Path) -> AsyncIterator[Soak]:
    seed = int(os.environ.get("RUNYARD_SOAK_SEED") or secrets.randbelow(10**6))
    print(f"RUNYARD_SOAK_SEED={seed}")
    given: dict[str, object] = {"keep_runs_days": KEPT_S / 86_400}
    if request.param == "s3":
        minio: MinioServer = request.getfixturevalue("minio")
        given |= minio.settings().model_dump(include={*S3}, exclude_defaults=True)
    state = tmp_path / "state"
    settings = Settings.model_validate({"state": state, "executor": "local", "local_slots": 8, **given})
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")}
    environment |= {f"RUNYARD_{name.upper()}": _text(value) for name, value in given.items()}
    environment |= {"RUNYARD_STATE": str(state), "RUNYARD_LOCAL_SLOTS": "8"}
    async with Runyard.over(client, settings) as yard:
        soak = Soak(yard, client.service_client.config.target_host, environment, seed)
        try:
            await asyncio.gather(*(soak.work() for _ in range(WORKERS)))
            yield soak
        finally:
            await soak.end()


S3 = ("store", "s3_endpoint", "s3_bucket", "s3_prefix", "s3_access_key", "s3_secret_key")


def _text(value: object) -> str:
    return str(value.get_secret_value() if hasattr(value, "get_secret_value") else value)


@pytest.mark.soak
@pytest.mark.promise(5)
@pytest.mark.promise(6)
@pytest.mark.promise(9)
@pytest.mark.timeout(3 * 60 * MINUTES + 900)
async def test_nothing_is_lost_and_nothing_is_left(soak: Soak) -> None:
    await soak.play()
    print(dict(sorted(soak.seen.items())))
    assert soak.lost == []
    assert soak.rare == {}, "too little of these has happened to say anything"
    deadline = time.monotonic() + GONE_S
    while left := await soak.left():
        assert time.monotonic() < deadline, f"pods or processes of ended runs are left: {left}"
        await asyncio.sleep(0.5)
    await asyncio.sleep(KEPT_S + 1)  # the last run's time is over
    while await soak.clean():
        pass
    store = soak.yard.store
    assert [info.key async for info in store.list("") if info.key != paths.ENDED_WHOLE] == []
