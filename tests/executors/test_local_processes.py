"""What a local task sees of the machine, and what it leaves on it."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from yards import SECRETS, launch, silent, until

import runyard
from runyard.errors import ConfigError, InvalidRequest, StartError
from runyard.executors.base import Ended, Progress
from runyard.executors.local import nest_files, process
from runyard.executors.local.executor import LocalExecutor
from runyard.executors.secrets import EnvironmentSecrets
from runyard.reasons import Reason
from runyard.spec.plan import FromSecret
from runyard.spec.run import PodRef

Workers = Callable[..., LocalExecutor]


async def run(worker: LocalExecutor, folder: Path, command: str, **more: object) -> Ended:
    pod = await worker.start(launch(folder, command, **more), silent)  # type: ignore[arg-type]
    ended = await worker.follow(pod, owner="one", report=silent)
    await worker.delete(pod)
    return ended


async def test_the_environment_is_clean(workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_WORKER_ONLY", "x")
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example")
    seen = tmp_path / "seen"
    await run(workers(), tmp_path, f"env >{seen}; pwd >>{seen}", environment={"MINE": "a\nb", "RUNYARD_POD": "1"})
    text = seen.read_text()
    assert "OF_THE_WORKER_ONLY" not in text
    assert "RUNYARD_POD=" not in text  # it would have main signal every process that it can
    assert "CI=true\n" in text
    assert "MINE=a\nb\n" in text
    assert "PIP_INDEX_URL=https://index.example\n" in text
    assert f"HOME={tmp_path}/tasks/" in text
    assert text.endswith("/home\n")


async def test_what_the_settings_name_is_passed_on(tmp_path: Path) -> None:
    worker = LocalExecutor(
        tmp_path / "tasks",
        slots=1,
        secrets=EnvironmentSecrets({}),
        pass_environment=["EXTRA_*"],
        environ={"EXTRA_ONE": "1", "OTHER": "2", "PATH": os.environ["PATH"]},
        agent=Path(__file__).with_name("small_agent.py"),
    )
    assert (await run(worker, tmp_path, '[ "$EXTRA_ONE" = 1 ] && [ -z "${OTHER:-}" ]')).exit_code == 0
    await worker.close()


async def test_signals_are_as_a_program_expects_them(workers: Workers, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    await run(workers(), tmp_path, f"grep -E 'Sig(Ign|Blk)' /proc/self/status >{seen}")
    sets = {line.split()[0]: int(line.split()[1], 16) for line in seen.read_text().splitlines()}
    background_in_sh = (1 << 1) | (1 << 2)  # a shell without job control has its background ignore INT and QUIT
    assert sets["SigBlk:"] == 0
    assert sets["SigIgn:"] & ~background_in_sh & 0x7FFFFFFF == 0  # the C library ignores two of its own above


async def test_no_secret_is_on_a_command_line_or_on_the_disk(workers: Workers, tmp_path: Path) -> None:
    worker = workers()
    ready = tmp_path / "ready"
    value = SECRETS["RUNYARD_SECRET_TOKEN"].encode()
    digest = hashlib.sha256(value * 2).hexdigest()
    asked = launch(
        tmp_path,
        f'printf %s%s "$TOKEN" "$OTHER" | sha256sum | grep -q {digest} && touch {ready}; sleep 300',
        environment={"TOKEN": FromSecret(from_secret="token")},
        secrets={"OTHER": "token"},
    )
    pod = await worker.start(asked, silent)
    await until(ready.exists)
    lines = command_lines()
    assert sum(pod.uid.encode() in line for line in lines) == 2  # the nest, and its fork: the agent
    assert not any(value in line for line in lines)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"pod.json", "script", "nest.json", "assignment.json"}
    assert not [path for path in files if value in path.read_bytes()]


def command_lines() -> list[bytes]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes())
    return lines


async def test_a_missing_secret_leaves_nothing(workers: Workers, tmp_path: Path) -> None:
    worker = workers()
    asked = launch(tmp_path, "true", environment={"TOKEN": FromSecret(from_secret="nope")})
    with pytest.raises(ConfigError, match="RUNYARD_SECRET_NOPE"):
        await worker.start(asked, silent)
    assert [seen async for seen in worker.list()] == []
    await worker.delete(PodRef(name=asked.name, uid=""))


@pytest.mark.parametrize("environment", [{"A=B": "x"}, {"": "x"}, {"A": "x\0y"}])
async def test_variables_that_cannot_be_set(workers: Workers, tmp_path: Path, environment: dict[str, str]) -> None:
    with pytest.raises(StartError):
        await workers().start(launch(tmp_path, "true", environment=dict(environment)), silent)


async def test_a_large_environment(workers: Workers, tmp_path: Path) -> None:
    large = {f"V{n}": "x" * 10_000 for n in range(40)}
    assert (await run(workers(), tmp_path, '[ "${#V39}" = 10000 ]', environment=dict(large))).exit_code == 0


async def test_an_environment_larger_than_the_system_takes(workers: Workers, tmp_path: Path) -> None:
    ended = await run(workers(), tmp_path, "true", environment={"V": "x" * 10_000_000})
    assert ended.reason is Reason.START_ERROR
    assert "too long" in ended.message
    assert ended.exit_code == 126


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".lock"])
async def test_a_name_that_is_no_folder(workers: Workers, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await workers().delete(PodRef(name=name, uid=""))


async def test_slots_are_shared_by_the_workers_of_a_machine(workers: Workers, tmp_path: Path) -> None:
    first, second = workers(slots=1), workers(slots=1)
    pod = await first.start(launch(tmp_path, "sleep 300"), silent)
    waits: list[Progress] = []
    later = asyncio.create_task(second.start(launch(tmp_path, "true"), waits.append))
    await until(lambda: bool(waits))
    assert waits[0].state == "waiting"
    assert "1 of 1 slots" in waits[0].message
    await first.delete(pod)
    assert (await second.follow(await later, owner="one", report=silent)).exit_code == 0


async def test_what_a_task_made_read_only_is_removed(workers: Workers, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o555)
    await run(workers(), tmp_path, f"mkdir -p a/b; touch a/b/c; ln -s {outside} a/link; chmod 0 a/b; chmod 555 a")
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == [".lock"]
    assert outside.stat().st_mode & 0o777 == 0o555


async def test_folders_are_kept_where_the_settings_say_so(workers: Workers, tmp_path: Path) -> None:
    worker = workers(keep_folders=True)
    asked = launch(tmp_path, "echo kept >file")
    pod = await worker.start(asked, silent)
    await worker.follow(pod, owner="one", report=silent)
    await worker.delete(pod)
    assert [seen async for seen in worker.list()] == []
    (kept,) = (tmp_path / "tasks" / ".kept").iterdir()
    assert (kept / "home" / "file").read_text() == "kept\n"


async def test_what_a_killed_worker_left_half_done_is_removed(workers: Workers, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    for name in (".gone-x", ".new-old", ".new-young"):
        (tasks / name / "home").mkdir(parents=True)
    os.utime(tasks / ".new-old", (0, 0))
    await run(workers(), tmp_path, "true")
    assert {path.name for path in tasks.iterdir()} == {".lock", ".new-young"}


async def test_a_task_over_its_memory_limit(workers: Workers, tmp_path: Path) -> None:
    hungry = "python3 -c 'import time; x = bytearray(300 << 20); time.sleep(300)' || exit 7"
    ended = await run(workers(), tmp_path, hungry, memory_bytes=100 << 20)
    assert (ended.reason, ended.exit_code) == (Reason.OOM_KILLED, 7)
    assert str(100 << 20) in ended.message
    assert ended.receipt == "0 7;sealed;"


async def test_a_task_below_its_memory_limit(workers: Workers, tmp_path: Path) -> None:
    modest = "python3 -c 'import time; x = bytearray(20 << 20); time.sleep(0.5)'"
    assert (await run(workers(), tmp_path, modest, memory_bytes=200 << 20)).exit_code == 0


async def test_the_folder_is_the_users_alone(workers: Workers, tmp_path: Path) -> None:
    worker = workers()
    pod = await worker.start(launch(tmp_path, "true"), silent)
    await worker.follow(pod, owner="one", report=silent)
    assert (tmp_path / "tasks" / pod.name).stat().st_mode & 0o077 == 0
    assert not [path for path in (tmp_path / "tasks" / pod.name).rglob("*") if path.is_fifo()]


async def test_an_agent_that_is_slow_to_seal_is_waited_for(workers: Workers, tmp_path: Path) -> None:
    worker = workers()
    asked = launch(tmp_path, 'kill -9 "$PPID"', environment={"AGENT_SEALS_S": "0.5"})
    pod = await worker.start(asked, silent)
    await worker.follow(pod, owner="one", report=silent)
    assert (tmp_path / asked.name / "manifest.json").exists()


@pytest.mark.skipif(not process.LINUX, reason="only /proc tells what a process is deaf to")
async def test_a_task_hears_what_its_worker_is_deaf_to(workers: Workers, tmp_path: Path) -> None:
    """As one is that a script has put into the background. What begins deaf stays so in a shell."""
    seen, numbers = tmp_path / "seen", (signal.SIGINT, signal.SIGQUIT)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        await run(workers(), tmp_path, f"grep SigIgn /proc/$PPID/status >{seen}")
    finally:
        for number, hearing in before.items():
            signal.signal(number, hearing)
    deaf = int(seen.read_text().split()[1], 16)
    assert [number for number in numbers if deaf >> (number - 1) & 1] == []


async def test_a_start_makes_no_child_that_nobody_waits_for(workers: Workers, tmp_path: Path) -> None:
    """Only of its own: what other tests have started in this process, and left, may still be on its way out."""
    worker = workers()
    pids = []
    for _ in range(3):
        pod = await worker.start(launch(tmp_path, "true"), silent)
        await worker.follow(pod, owner="one", report=silent)
        taken = (tmp_path / "tasks" / pod.name / nest_files.CLAIM).read_text()
        pids.append(json.loads(taken)["pid"])
        await worker.delete(pod)
    await until(lambda: not any(process.look(pid) for pid in pids))


@pytest.mark.parametrize("text", ["", "plain", 'a "quoted" \\ word', "\x00\x1f\x7f\n\t", "ü € \U0001f600"])
def test_any_text_comes_through_the_status(text: str) -> None:
    assert json.loads(nest_files.as_json(text)) == text


def test_the_nest_starts_without_anything_heavy() -> None:
    program = "import sys; sys.path.append(sys.argv[1]); import runyard.executors.local.nest; print(*sys.modules)"
    root = Path(runyard.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(root)], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "runyard.executors.local.nest" in loaded
    heavy = {"json", "re", "typing", "contextlib", "subprocess", "traceback", "ctypes", "pydantic", "asyncio"}
    assert loaded & heavy == set()
