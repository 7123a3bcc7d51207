"""Who dies when: workers, nests, agents, folders. Local processes only."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from killed_worker import POINTS
from yards import launch, leftover, silent, until

from runyard.executors.local import process
from runyard.executors.local.executor import LocalExecutor
from runyard.reasons import Reason
from runyard.spec.run import PodRef

Workers = Callable[..., LocalExecutor]


def nest_of(folder: Path, name: str) -> dict[str, object]:
    seen: dict[str, object] = json.loads((folder / "tasks" / name / "nest.json").read_text())
    return seen


def children(pid: object) -> list[process.Row]:
    return [row for row in process.table() if row.parent == pid and not row.zombie]


async def killed_worker(folder: Path, asked: object, point: str) -> int:
    file = folder / "launch.json"
    file.write_text(asked.model_dump_json())  # type: ignore[attr-defined]
    program = Path(__file__).with_name("killed_worker.py")
    done = await asyncio.create_subprocess_exec(sys.executable, str(program), str(folder), str(file), point)
    return await done.wait()


@pytest.mark.promise(2)
@pytest.mark.promise(5)
@pytest.mark.promise(9)
@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_killed_at_any_point_changes_nothing(workers: Workers, tmp_path: Path, point: str) -> None:
    marks = tmp_path / "marks"
    asked = launch(tmp_path, f"echo ran >>{marks}; sleep 0.2; exit 3")
    assert await killed_worker(tmp_path, asked, point) == -signal.SIGKILL
    worker = workers()
    if point.partition(":")[0] in ("kill", "put_away", "remove_tree"):
        # The verdict is in the store by now: what is left to do is the delete.
        await worker.delete(PodRef(name=asked.name, uid=""))
        assert marks.read_text() == "ran\n"
    else:
        pod = await worker.start(asked, silent)
        ended = await worker.follow(pod, owner="two", report=silent)
        await worker.delete(pod)
        assert (ended.exit_code, ended.receipt) == (3, "0 3;sealed;")
        assert marks.read_text() == "ran\n"
    assert leftover(tmp_path) == []
    assert [seen async for seen in worker.list()] == []


@pytest.mark.promise(1)
@pytest.mark.promise(5)
async def test_a_killed_nest_is_a_pod_gone_and_leaves_no_process(workers: Workers, tmp_path: Path) -> None:
    worker = workers()
    asked = launch(tmp_path, "setsid sh -c 'sleep 300' & sleep 300")
    pod = await worker.start(asked, silent)
    follower = asyncio.create_task(worker.follow(pod, owner="one", report=silent))
    await until((tmp_path / asked.name / "started").exists)
    os.kill(int(str(nest_of(tmp_path, pod.name)["pid"])), signal.SIGKILL)
    ended = await follower
    assert ended.gone
    assert ended.exit_code is None
    assert leftover(tmp_path) == []
    manifest = json.loads((tmp_path / asked.name / "manifest.json").read_text())
    assert manifest["seal"] == "truncated"


@pytest.mark.promise(1)
async def test_a_nest_killed_while_nobody_looks_is_never_a_success(workers: Workers, tmp_path: Path) -> None:
    asked = launch(tmp_path, "sleep 0.5")
    pod = await workers().start(asked, silent)
    await until((tmp_path / asked.name / "started").exists)
    os.kill(int(str(nest_of(tmp_path, pod.name)["pid"])), signal.SIGKILL)
    await until(lambda: leftover(tmp_path) == [])
    ended = await workers().follow(pod, owner="two", report=silent)
    assert ended.gone
    assert ended.exit_code is None


async def test_a_killed_agent_ends_the_task(workers: Workers, tmp_path: Path) -> None:
    worker = workers()
    asked = launch(tmp_path, "sleep 300", grace_s=2)
    pod = await worker.start(asked, silent)
    await until((tmp_path / asked.name / "started").exists)
    nest = nest_of(tmp_path, pod.name)["pid"]
    agents = [
        row for row in children(nest) if b"nest import main" in Path(f"/proc/{row.pid}/cmdline").read_bytes()
    ]
    os.kill(agents[0].pid, signal.SIGKILL)
    ended = await worker.follow(pod, owner="one", report=silent)
    assert ended.reason is Reason.AGENT_LOST
    assert "signal 9" in ended.message
    assert ended.exit_code != 0


async def test_an_agent_that_fails_says_why(workers: Workers, tmp_path: Path) -> None:
    worker = workers()
    pod = await worker.start(launch(tmp_path, "true", environment={"AGENT_FAILS": "1"}), silent)
    ended = await worker.follow(pod, owner="one", report=silent)
    assert ended.reason is Reason.AGENT_LOST
    assert "the store is on fire" in ended.message
    assert "exit code 70" in ended.message


async def test_main_killed_by_somebody_is_a_signal(workers: Workers, tmp_path: Path) -> None:
    worker = workers()
    asked = launch(tmp_path, 'kill -9 "$PPID"; sleep 300')
    pod = await worker.start(asked, silent)
    ended = await worker.follow(pod, owner="one", report=silent)
    assert (ended.signal, ended.exit_code, ended.reason) == (9, 137, None)
    assert leftover(tmp_path) == []


@pytest.mark.promise(5)
@pytest.mark.parametrize("end", ["delete", "stop", "by itself", "deadline"])
async def test_daemons_of_a_step_go_with_their_task(workers: Workers, tmp_path: Path, end: str) -> None:
    worker = workers()
    daemon = tmp_path / "daemon"
    step = f"(env -i setsid sh -c 'echo $$ >{daemon}; sleep 301' >/dev/null 2>&1 &) ; "
    step += f"while [ ! -s {daemon} ]; do sleep 0.01; done; "
    asked = launch(
        tmp_path,
        step + ("true" if end == "by itself" else "sleep 300"),
        deadline_s=1 if end == "deadline" else None,
    )
    pod = await worker.start(asked, silent)
    await until(lambda: daemon.exists() and bool(daemon.read_text()))
    pid = int(daemon.read_text())
    if end == "delete":
        await worker.delete(pod)
    elif end == "stop":
        await worker.stop(pod, grace_s=5)
    if end != "delete":
        ended = await worker.follow(pod, owner="one", report=silent)
        assert (ended.exit_code == 0) == (end == "by itself")
    row = process.look(pid)
    assert row is None or row.zombie


@pytest.mark.promise(7)
async def test_timeouts_and_stops_hold_without_a_worker(workers: Workers, tmp_path: Path) -> None:
    asked = launch(tmp_path, "trap '' TERM; while :; do sleep 1; done", deadline_s=0.5, grace_s=0.3)
    assert await killed_worker(tmp_path, asked, "claimed:after") == -signal.SIGKILL
    status = tmp_path / "tasks" / asked.name / "status.json"
    await until(lambda: status.exists() and json.loads(status.read_text())["swept"])
    assert leftover(tmp_path) == []
    worker = workers()
    ended = await worker.follow(await worker.start(asked, silent), owner="two", report=silent)
    assert ended.reason is Reason.TIMEOUT_RUN


@pytest.mark.promise(5)
@pytest.mark.parametrize("worker_lives", [True, False])
async def test_a_folder_removed_by_hand(workers: Workers, tmp_path: Path, worker_lives: bool) -> None:
    worker = workers()
    pod = await worker.start(launch(tmp_path, "sleep 300"), silent)
    follower = asyncio.create_task(worker.follow(pod, owner="one", report=silent)) if worker_lives else None
    await until((tmp_path / pod.name / "started").exists)
    shutil.rmtree(tmp_path / "tasks" / pod.name)
    ended = await (follower or workers().follow(pod, owner="two", report=silent))
    assert ended.gone
    assert leftover(tmp_path) == []
    await worker.delete(pod)


@pytest.mark.promise(5)
async def test_a_folder_removed_by_hand_then_deleted(workers: Workers, tmp_path: Path) -> None:
    worker = workers()
    pod = await worker.start(launch(tmp_path, "sleep 300"), silent)
    await until((tmp_path / pod.name / "started").exists)
    shutil.rmtree(tmp_path / "tasks" / pod.name)
    await worker.delete(pod)
    assert leftover(tmp_path) == []


async def test_a_pid_that_is_used_again_is_not_the_nest(workers: Workers, tmp_path: Path) -> None:
    worker = workers()
    pod = await worker.start(launch(tmp_path, "true"), silent)
    await worker.follow(pod, owner="one", report=silent)
    place = tmp_path / "tasks" / pod.name
    innocent = await asyncio.create_subprocess_exec("sleep", "300")
    try:
        (place / "status.json").unlink()
        (place / "nest.json").write_text(json.dumps({"pid": innocent.pid, "started": "1", "uid": pod.uid}))
        await worker.stop(pod, grace_s=0)
        assert (await workers().follow(pod, owner="two", report=silent)).gone
        await worker.delete(pod)
        row = process.look(innocent.pid)
        assert row is not None
        assert not row.zombie
    finally:
        with contextlib.suppress(ProcessLookupError):
            innocent.kill()
        await innocent.wait()


async def test_a_delete_before_the_nest_has_come_forbids_it(workers: Workers, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    asked = launch(tmp_path, f"echo ran >>{marks}")
    assert await killed_worker(tmp_path, asked, "spawn:before") == -signal.SIGKILL
    worker = workers()
    assert [seen.running async for seen in worker.list()] == [False]
    await worker.delete(PodRef(name=asked.name, uid=""))
    assert [seen async for seen in worker.list()] == []
    assert not marks.exists()


async def test_a_pod_that_no_nest_ever_took_is_gone(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runyard.executors.local.executor._CLAIM_S", 0.1)
    asked = launch(tmp_path, "true")
    assert await killed_worker(tmp_path, asked, "spawn:before") == -signal.SIGKILL
    worker = workers()
    (seen,) = [seen async for seen in worker.list()]
    ended = await worker.follow(seen.pod, owner="two", report=silent)
    assert ended.gone
    assert "never began" in ended.message
