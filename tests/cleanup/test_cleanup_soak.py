"""Runs, restarts, cleanups and kills at once, for ten minutes (`RUNYARD_SOAK_MINUTES`), on real stores.

Nothing is kept for longer than its run and some seconds: so cleanups are at what restarts refer to, all the time.
A restart keeps the task that made an archive, waits, and then unpacks it: were the data deleted under its hands,
it would fail. It may be too late, and be told so, or may have to make the archive again; both are right.
"""

import asyncio
import os
import random
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio
from minio_server import MinioServer
from temporalio.client import Client

from runyard.client import Runyard
from runyard.client.cleanup import clean
from runyard.errors import RunyardError
from runyard.settings import Settings
from runyard.store import paths

SECONDS = 60 * float(os.environ.get("RUNYARD_SOAK_MINUTES", "10"))
WORKERS, RUNS_AT_ONCE, GONE_S = 3, 4, 60.0
TOO_LATE = ("not_found", "invalid_request")
"""The codes of a restart whose run a cleanup has removed."""

FILE = """
runs:
  - name: soak
    tasks:
      - name: make
        runtime: {containers: [{image: none}]}
        steps:
          - {run: 'echo "$RUNYARD_RUN_ID" > made'}
          - {save_to_workspace: {contents: [{paths: [made]}]}}
      - name: use
        runtime: {containers: [{image: none}]}
        depends: [make]
        steps: [{run: sleep $PAUSE}, {restore_workspace: {dest_dir: .}}, {run: 'test -s made && exit $CODE'}]
      - name: last
        runtime: {containers: [{image: none}]}
        depends: [use]
        steps: [{restore_workspace: {dest_dir: .}}, {run: test -s made}]
"""


class Soak:
    """What goes on, and what came of it."""

    def __init__(self, yard: Runyard, address: str, environment: dict[str, str], seed: int) -> None:
        self.yard = yard
        self.chance = random.Random(seed)
        self.ended: list[str] = []
        self.lost: list[str] = []
        self.seen: Counter[str] = Counter()
        self._command = [sys.executable, str(Path(__file__).with_name("soak_worker.py")), address]
        self._environment = environment
        self.workers: list[asyncio.subprocess.Process] = []

    async def work(self) -> None:
        self.workers.append(await asyncio.create_subprocess_exec(*self._command, env=self._environment))

    async def kill_workers(self, until: float) -> None:
        while time.monotonic() < until:
            await asyncio.sleep(self.chance.uniform(5, 20))
            await self._kill(self.chance.randrange(len(self.workers)))
            await self.work()

    async def end(self) -> None:
        while self.workers:
            await self._kill(0)

    async def _kill(self, number: int) -> None:
        worker = self.workers.pop(number)
        assert worker.returncode is None, "it ended by itself"
        worker.kill()
        await worker.wait()
        self.seen["killed workers"] += 1

    async def play_runs(self, until: float) -> None:
        """One after the other: new ones, and restarts of what has ended."""
        while time.monotonic() < until:
            environment = {"CODE": "1", "PAUSE": f"{self.chance.uniform(0, 4):.1f}"}
            if self.ended and self.chance.random() < 0.6:
                code = self.chance.choice(("0", "1"))
                await self._restart(self.chance.choice(self.ended[-12:]), environment | {"CODE": code})
                continue
            run = await self.yard.start(FILE, environment=environment, executor="local")
            if self.chance.random() < 0.1:
                await asyncio.sleep(self.chance.uniform(0, 4))
                await self.yard.client.get_workflow_handle(run.id).terminate("soak")
                self.seen["terminated"] += 1
                continue
            self._told(run.id, (await run.result()).counts, {"success": 1, "failed": 1, "skipped": 1})
            self.ended.append(run.id)

    async def _restart(self, of: str, environment: dict[str, str]) -> None:
        try:
            run = await self.yard.restart(of, failed=True, environment=environment)
            counts = (await run.result()).counts
        except RunyardError as error:
            self.seen["too late"] += 1
            if error.code not in TOO_LATE:
                self.lost.append(f"the restart of {of}: {error.code}: {error.message}")
            return
        fails = environment["CODE"] != "0"
        self._told(run.id, counts, {"success": 1, "failed": 1, "skipped": 1} if fails else {"success": 3})
        with suppress(RunyardError):  # removed by now
            self.seen["kept tasks"] += sum(bool(task.kept_from) for task in (await run.describe()).tasks)
        if fails:
            self.ended.append(run.id)

    def _told(self, run_id: str, counts: dict[str, int], wanted: dict[str, int]) -> None:
        self.seen["runs"] += 1
        if counts != wanted:
            self.lost.append(f"{run_id}: {counts}, not {wanted}")

    async def clean_up(self, until: float) -> None:
        while time.monotonic() < until:
            self.seen["cleaned objects"] += await self.clean()
            await asyncio.sleep(self.chance.uniform(0, 1))

    async def clean(self) -> int:
        report = await (await clean(self.yard, now=True)).result()
        return sum(tally.objects for tally in report.deleted.values())


@pytest_asyncio.fixture(params=["posix", "s3"])
async def soak(request: pytest.FixtureRequest, client: Client, tmp_path: Path) -> AsyncIterator[Soak]:
    seed = int(os.environ.get("RUNYARD_SOAK_SEED") or secrets.randbelow(10**6))
    print(f"RUNYARD_SOAK_SEED={seed}")
    given: dict[str, object] = {"keep_runs_days": 4 / 86_400}
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
        for _ in range(WORKERS):
            await soak.work()
        yield soak
        await soak.end()


S3 = ("store", "s3_endpoint", "s3_bucket", "s3_prefix", "s3_access_key", "s3_secret_key")


def _text(value: object) -> str:
    return str(value.get_secret_value() if hasattr(value, "get_secret_value") else value)


def processes_of(state: str, *, but: list[int]) -> list[int]:
    """Those whose command or environment names the folder: supervisors, agents, tasks."""
    done = subprocess.run(["ps", "axeww", "-o", "pid=,stat=,command="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in done.stdout.splitlines() if state in line]
    return [int(pid) for pid, stat, _ in rows if "Z" not in stat and int(pid) not in but]


@pytest.mark.soak
@pytest.mark.promise(5)
@pytest.mark.promise(6)
@pytest.mark.promise(9)
@pytest.mark.timeout(SECONDS + 900)
async def test_nothing_is_lost_and_nothing_is_left(soak: Soak, tmp_path: Path) -> None:
    until = time.monotonic() + SECONDS
    await asyncio.gather(
        soak.kill_workers(until), soak.clean_up(until), *(soak.play_runs(until) for _ in range(RUNS_AT_ONCE))
    )
    print(dict(soak.seen))
    assert soak.lost == []
    assert min(soak.seen[what] for what in ("runs", "kept tasks", "cleaned objects")) > 0, soak.seen
    deadline = time.monotonic() + GONE_S
    while left := processes_of(str(tmp_path), but=[worker.pid for worker in soak.workers]):
        assert time.monotonic() < deadline, f"processes of ended runs are left: {left}"
        await asyncio.sleep(0.5)
    await asyncio.sleep(5)  # the last run's time is over
    while await soak.clean():
        pass
    store = soak.yard.store
    assert [info.key async for info in store.list("") if info.key != paths.ENDED_WHOLE] == []
