"""The words that drive a pod of the memory executor, and what it leaves in the store."""

import asyncio
import hashlib
import tarfile
from pathlib import Path

import pytest
from yards import launch, silent

from runyard.dialogue import Assignment, CacheAccess, Manifest, StoredArchive
from runyard.errors import StartError
from runyard.executors.base import Ended, Launch
from runyard.executors.memory import MemoryExecutor
from runyard.reasons import Reason
from runyard.script import parse_receipt
from runyard.spec.plan import (
    Container,
    RestoreCacheStep,
    RestoreWorkspaceStep,
    RunStep,
    SaveCacheStep,
    SaveToWorkspaceStep,
    Step,
    TaskPlan,
)
from runyard.store.base import FolderTarget, UrlTarget


async def play(
    folder: Path, *steps: Step | str, restore: list[StoredArchive] | None = None, **more: object
) -> Ended:
    whole = [RunStep(command=step) if isinstance(step, str) else step for step in steps]
    caches = FolderTarget(folder=str(folder / "caches"))
    asked = Launch.model_validate(
        {
            "name": "pod",
            "run_id": "run",
            "attempt": 1,
            "task": TaskPlan(id="id", name="t", containers=[Container(image="x")], steps=whole),
            "script": "",
            "assignment": Assignment(
                run_id="run",
                task="t",
                attempt=1,
                steps=whole,
                logs=FolderTarget(folder=str(folder / "logs")),
                archives=FolderTarget(folder=str(folder / "archives")),
                restore=restore or [],
                caches=CacheAccess(read=caches, write=caches),
            ),
            "digest": "d",
            "owner": "one",
            **more,
        }
    )
    executor = MemoryExecutor()
    return await executor.follow(await executor.start(asked, silent), owner="one", report=silent)


def manifest(folder: Path) -> Manifest:
    return Manifest.model_validate_json((folder / "logs" / "manifest.json").read_text())


async def test_log_outputs_and_digest(tmp_path: Path) -> None:
    text = "print one\nlines 3\necho $WHO\nignored word\noutput K=v=$WHO"
    ended = await play(tmp_path, text, environment={"WHO": "me"})
    (step,) = manifest(tmp_path).steps
    stored = (tmp_path / "logs" / "segments" / "0" / "0000000000000000").read_bytes()
    assert stored == b"one\n1\n2\n3\nme\n"
    assert (step.bytes, step.lines, step.last_line) == (len(stored), 5, "me")
    assert step.sha256 == hashlib.sha256(stored).hexdigest()
    assert manifest(tmp_path).outputs == {"K": "v=me"}
    assert (ended.exit_code, ended.receipt) == (0, "0 0;sealed;")


async def test_segments_are_named_by_their_offset(tmp_path: Path) -> None:
    await play(tmp_path, "print abc\nsleep 0\nprint d")
    assert sorted(path.name for path in (tmp_path / "logs" / "segments" / "0").iterdir()) == [
        f"{0:016d}",
        f"{4:016d}",
    ]


async def test_a_task_without_output_costs_two_files(tmp_path: Path) -> None:
    await play(tmp_path, "true")
    assert sorted(path.name for path in (tmp_path / "logs").rglob("*")) == ["manifest.json", "started"]


async def test_after_a_failure_only_the_steps_that_ask_for_it(tmp_path: Path) -> None:
    ended = await play(
        tmp_path,
        "exit 4",
        "true",
        RunStep(command="exit 5", when="on_failure"),
        RunStep(command="true", when="always"),
        RunStep(command="true", when="always", skip=True),
    )
    assert (ended.exit_code, ended.receipt) == (4, "0 4;2 5;3 0;sealed;")


@pytest.mark.promise(1)
async def test_a_pod_that_vanishes_leaves_no_manifest(tmp_path: Path) -> None:
    ended = await play(tmp_path, "print x\nvanish")
    assert ended.gone
    assert (tmp_path / "logs" / "started").exists()
    assert not (tmp_path / "logs" / "manifest.json").exists()


async def test_signal_and_oom(tmp_path: Path) -> None:
    ended = await play(tmp_path / "a", "signal 11")
    assert (ended.exit_code, ended.signal, parse_receipt(ended.receipt).sealed) == (139, 11, False)
    assert manifest(tmp_path / "a").seal == "truncated"
    ended = await play(tmp_path / "b", "oom")
    assert (ended.exit_code, ended.reason, ended.receipt) == (137, Reason.OOM_KILLED, "0 137;sealed;")


async def test_a_step_timeout(tmp_path: Path) -> None:
    ended = await play(tmp_path, RunStep(command="hang", timeout_s=0.05))
    assert parse_receipt(ended.receipt).timed_out == 0
    assert (ended.exit_code, parse_receipt(ended.receipt).sealed) == (124, True)


async def test_a_slow_start_is_before_the_beginning(tmp_path: Path) -> None:
    ended = await play(tmp_path, "slow_start 0.05\nprint x")
    assert ended.exit_code == 0


async def test_archives_are_stored_and_verified(tmp_path: Path) -> None:
    ended = await play(tmp_path, SaveToWorkspaceStep())
    assert ended.exit_code == 0
    (record,) = manifest(tmp_path).archives
    file = tmp_path / "archives" / record.file
    assert (record.size, record.sha256) == (file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
    with tarfile.open(file) as tar:
        assert len(tar.getnames()) == record.files
    stored = StoredArchive(
        task="t", step=0, file=record.file, source=str(file), size=record.size, sha256=record.sha256
    )
    assert (await play(tmp_path / "b", RestoreWorkspaceStep(), restore=[stored])).exit_code == 0
    spoilt = stored.model_copy(update={"sha256": "0" * 64})
    assert (await play(tmp_path / "c", RestoreWorkspaceStep(), restore=[spoilt])).exit_code == 1
    lost = stored.model_copy(update={"source": str(tmp_path / "none")})
    assert (await play(tmp_path / "d", RestoreWorkspaceStep(), restore=[lost])).exit_code == 1


async def test_caches_miss_then_save_then_hit(tmp_path: Path) -> None:
    steps: list[Step] = [RestoreCacheStep(keys=["k-1", "k-"]), SaveCacheStep(key="k-2"), SaveCacheStep(key="k-2")]
    await play(tmp_path, *steps, RestoreCacheStep(keys=["k-1", "k-"]))
    assert [(cache.outcome, cache.key) for cache in manifest(tmp_path).caches] == [
        ("miss", "k-1"),
        ("saved", "k-2"),
        ("exists", "k-2"),
        ("hit", "k-2"),
    ]


async def test_a_store_without_folders_is_refused_in_words(tmp_path: Path) -> None:
    asked = Launch(
        name="pod",
        run_id="run",
        attempt=1,
        task=TaskPlan(id="id", name="t", containers=[Container(image="x")]),
        script="",
        assignment=Assignment(
            run_id="run", task="t", attempt=1, steps=[], logs=UrlTarget(url="http://s/", prefix="p", fields={})
        ),
        digest="d",
        owner="one",
    )
    with pytest.raises(StartError, match="posix"):
        await MemoryExecutor().start(asked, silent)


async def test_a_cancel_of_a_delete_is_a_cancel(tmp_path: Path) -> None:
    """Whoever deletes in a loop would go on for ever otherwise. The pod is left to the next delete."""
    executor = MemoryExecutor()
    pod = await executor.start(launch(tmp_path, "sleep 600"), silent)
    deleting = asyncio.create_task(executor.delete(pod))
    await asyncio.sleep(0)  # it waits for the pod's end
    deleting.cancel()
    async with asyncio.timeout(30):
        await asyncio.wait([deleting])
        assert deleting.cancelled()
        await executor.delete(pod)
    assert [each async for each in executor.list()] == []
