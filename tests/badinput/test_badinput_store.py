"""The store goes away, fills up or refuses, while a run is under way."""

import asyncio
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from bad_scene import Handle, Played, at_work, end, everything_below, file, play, small_disk, task, until
from temporalio.client import Client
from yard import Yard

from runyard.records.runs import read_result
from runyard.settings import Settings


def settings_of(tmp_path: Path, store: Path) -> Settings:
    return Settings(state=tmp_path / "state", store_folder=store)


async def pending_error(handle: Handle, words: str) -> str:
    """The last failure of an activity that Temporal tries again, once it says this: what the UI shows."""
    for _ in range(600):
        described = (await handle.describe()).raw_description
        for activity in described.pending_activities:
            if words in activity.last_failure.message:
                return activity.last_failure.message
        await asyncio.sleep(0.05)
    raise AssertionError(f"no activity failed with {words!r}")


@pytest.mark.promise(9)
async def test_a_read_only_store_holds_the_run_up_and_says_so(client: Client, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=8m") as disk:
        async with at_work(client, settings_of(tmp_path, disk / "store")) as yard:
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            handle = await yard.start(file(task("t", "echo fine")))
            said = await pending_error(handle, "Read-only file system")
            assert "right to read, write, list and delete" in said
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            played = await end(yard, handle)
            assert played["t"].status == "success"
            assert await played.log("t") == b"fine\n"


@pytest.mark.promise(9)
async def test_a_full_store_holds_the_run_up_and_says_so(client: Client, tmp_path: Path) -> None:
    """Full before the start: the plan waits for room. Full while a step writes: the step waits for room."""
    with small_disk(tmp_path / "disk", "size=4m") as disk:
        ballast = disk / "ballast"
        async with at_work(client, settings_of(tmp_path, disk / "store")) as yard:
            subprocess.run(["sh", "-c", f"cat /dev/zero >{ballast}"], capture_output=True, check=False)
            wait = f"while [ ! -e {tmp_path}/gate ]; do sleep 0.05; done"
            command = f"echo begun\n{wait}\nhead -c 200000 /dev/zero\necho last"
            handle = await yard.start(file(task("t", command, timeouts={"run": "2m"})))
            said = await pending_error(handle, "no room left")
            assert "Free space" in said
            ballast.unlink()
            await until(
                lambda: b"begun" in everything_below(disk / "store" / "data" / "logs"), "the step to begin"
            )
            subprocess.run(["sh", "-c", f"cat /dev/zero >{ballast}"], capture_output=True, check=False)
            (tmp_path / "gate").touch()
            await until(lambda: b"no room left" in everything_below(tmp_path / "state"), "the agent to complain")
            ballast.unlink()
            played = await end(yard, handle)
            assert played["t"].status == "success"
            assert await played.log("t") == b"begun\n" + bytes(200_000) + b"last\n"
            assert (await played.seal("t")).complete


async def running(yard: Yard, tmp_path: Path) -> Handle:
    """A run whose first task has begun, and ends when there is a file `gate`."""
    command = f"echo begun\nwhile [ ! -e {tmp_path}/gate ]; do sleep 0.05; done\necho last"
    save = {"save_to_workspace": {"contents": [{"paths": ["**"]}]}}
    handle = await yard.start(
        file(task("first", command, "echo x >file", save), task("second", {"restore_workspace": {"dest_dir": "."}},
             "cat file", depends=["first"]))
    )  # fmt: skip
    await until(lambda: b"begun" in everything_below(tmp_path / "store" / "data" / "logs"), "the step to begin")
    return handle


Way = Callable[[Path], Awaitable[None]]


@pytest.mark.promise(9)
async def test_a_store_moved_away_and_put_back(local_yard: Yard, tmp_path: Path) -> None:
    """As when a disk is unmounted: nothing may be written into the hole, and all is there at the end."""
    handle = await running(local_yard, tmp_path)
    store, away = tmp_path / "store", tmp_path / "away"
    store.rename(away)
    (tmp_path / "gate").touch()
    await until(
        lambda: b"its disk is not mounted" in everything_below(tmp_path / "state"), "the agent to complain"
    )
    assert not store.exists()
    away.rename(store)
    played = await end(local_yard, handle)
    assert played.view.counts == {"success": 2}, played.cause
    assert await played.log("first") == b"begun\nlast\n"
    assert await played.log("second", 1) == b"x\n"
    assert (await read_result(local_yard.store, handle.id)).result == "success"


async def test_a_store_that_was_lost_for_good(local_yard: Yard, tmp_path: Path) -> None:
    """Emptied under a run: the run does not hang and says what is missing."""
    handle = await running(local_yard, tmp_path)
    for name in ("runs", "logs"):
        shutil.rmtree(tmp_path / "store" / "data" / name)
    (tmp_path / "gate").touch()
    played: Played = await end(local_yard, handle)
    assert played.view.result == "failed"
    assert played["second"].status == "failed"
    assert f"`runs/{handle.id}/plan.jsonl`" in played["second"].message, played["second"]


async def test_a_store_that_cannot_be_made(client: Client, tmp_path: Path) -> None:
    from runyard.errors import StoreError

    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        async with at_work(client, settings_of(tmp_path, tmp_path / "file" / "store")) as yard:
            await play(yard, task("t", "echo"))
