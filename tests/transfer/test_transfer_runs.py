"""Runs exported from one yard and imported into another: shown, listed, read and restarted there."""

import asyncio
import io
import os
from datetime import timedelta
from pathlib import Path

import pytest
from minio_server import MinioServer
from temporalio.client import Client
from transfers import at_work, contents, exported, failed_run, file, keys, logs, members, runids, said, task

from runyard.client import Runyard
from runyard.client.cleanup import clean, remove_run
from runyard.errors import Conflict, NotFound
from runyard.records.runs import read_plan, read_result, write_result
from runyard.settings import Settings
from runyard.spec.cleanup import Retention
from runyard.store import paths
from runyard.store.base import ObjectStore


async def test_a_run_goes_elsewhere_whole(here: Runyard, there: Runyard, tmp_path: Path) -> None:
    run = await failed_run(here, tmp_path)
    before, lines = await run.describe(), {name: await logs(run, name) for name in ("make", "loud", "test")}
    made = await here.export_run(run.id, tmp_path / "run.tar")
    assert (tmp_path / "run.tar").stat().st_size == made.size_bytes
    assert not list(tmp_path.glob(".*.part"))

    got = await there.import_run(tmp_path / "run.tar")
    assert (got.there, got.members) == (False, made.members)
    away = there.run(run.id)
    view = await away.describe()
    assert view.imported_at is not None
    same = {"imported_at": None, "ui": "", "tasks": []}
    assert view.model_copy(update=same) == before.model_copy(update=same)
    assert [(t.name, t.status, t.attempt, t.exit_code, t.depends) for t in view.tasks] == [
        (t.name, t.status, t.attempt, t.exit_code, t.depends) for t in before.tasks
    ]
    assert {t.name: t.attempt for t in view.tasks}["again"] == 2
    assert [each.id for each in await there.list(project="web")] == [run.id]
    assert {name: await logs(away, name) for name in lines} == lines
    assert len(lines["loud"]) == 50_001
    for kind in ("logs/", "archives/"):
        assert await contents(there.store, kind) == await contents(here.store, kind), "byte for byte"
    old = {each.id for each in (await read_plan(here.store, run.id)).tasks}
    new = {each.id for each in (await read_plan(there.store, run.id)).tasks}
    assert not old & new, "a name is used once"


async def test_it_is_restarted_there_and_keeps_what_is_good(here: Runyard, there: Runyard, tmp_path: Path) -> None:
    run = await failed_run(here, tmp_path)
    await there.import_run(io.BytesIO(await exported(here, run.id)))
    (tmp_path / "ran").unlink()
    (tmp_path / "good").touch()
    second = await there.restart(run.id)
    assert (await second.result()).result == "success"
    assert (tmp_path / "ran").read_text().split() == ["test"]
    view = await second.describe()
    assert view.kept == {run.id: 3}
    assert await said(second) == ["hello"]


async def test_what_a_run_kept_of_earlier_ones_comes_along(here: Runyard, there: Runyard, tmp_path: Path) -> None:
    first = await failed_run(here, tmp_path)
    (tmp_path / "good").touch()
    second = await here.restart(first.id)
    assert (await second.result()).result == "success"
    await there.import_run(io.BytesIO(await exported(here, second.id)))
    away = there.run(second.id)
    assert {t.name: t.kept_from for t in (await away.describe()).tasks}["make"] == first.id
    assert await said(away) == ["hello"]
    third = await there.restart(second.id, tasks=["test"])
    assert (await third.result()).result == "success"
    assert (await third.describe()).kept == {first.id: 3}
    with pytest.raises(NotFound):
        await there.run(first.id).describe()


async def test_from_a_folder_into_a_real_minio(
    here: Runyard, elsewhere: Client, minio: MinioServer, tmp_path: Path
) -> None:
    run = await failed_run(here, tmp_path)
    await here.export_run(run.id, tmp_path / "run.tar")
    bucket = minio.store()
    yard = Runyard(elsewhere, bucket, settings=Settings(state=tmp_path / "s"))
    assert not (await yard.import_run(tmp_path / "run.tar")).there
    assert await logs(yard.run(run.id), "loud") == await logs(here.run(run.id), "loud")
    for kind in ("logs/", "archives/"):
        assert await contents(bucket, kind) == await contents(here.store, kind)
    back = await exported(yard, run.id)
    await bucket.close()
    async for again in at_work(elsewhere, _fresh(tmp_path), tmp_path):
        await again.import_run(io.BytesIO(back))
        (tmp_path / "good").touch()
        assert (await (await again.restart(run.id)).result()).result == "success"


def _fresh(folder: Path) -> ObjectStore:
    from runyard.store.posix import PosixStore

    return PosixStore(folder / "store-there")


async def test_a_checkout_of_a_direct_run_comes_along(here: Runyard, there: Runyard, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for words in (["init", "-q"], ["config", "user.email", "a@b"], ["config", "user.name", "a"]):
        await _git(checkout, *words)
    (checkout / "word").write_text("as it was\n")
    (checkout / "large").write_bytes(os.urandom(5 << 20))
    await _git(checkout, "add", "-A")
    await _git(checkout, "commit", "-qm", "one")
    (checkout / "new").write_text("not committed\n")
    steps = ["clone", {"run": "cat word new; wc -c < large"}, {"run": f"test -e {tmp_path}/good"}]
    build = {"name": "t", "runtime": {"containers": [{"image": "none"}]}, "steps": steps}
    run = await here.start(file(build), local=checkout)
    assert (await run.result()).result == "failed"
    await there.import_run(io.BytesIO(await exported(here, run.id)))
    (tmp_path / "good").touch()
    (checkout / "word").write_text("as it is now\n")
    second = await there.restart(run.id)
    assert (await second.result()).result == "success", await logs(second, "t")
    assert [line.strip() for line in await logs(second, "t")][-3:] == ["as it was", "not committed", str(5 << 20)]


async def _git(folder: Path, *words: str) -> None:
    process = await asyncio.create_subprocess_exec("git", "-C", str(folder), *words)
    assert await process.wait() == 0


async def test_an_open_run_and_one_that_is_nowhere(here: Runyard) -> None:
    run = await here.start(file(task("t", "sleep 600")))
    with pytest.raises(Conflict, match="has not ended"):
        await here.export_run(run.id, io.BytesIO())
    await run.cancel()
    with pytest.raises(NotFound):
        await here.export_run("nowhere", io.BytesIO())
    await run.result()
    assert members(await exported(here, run.id))


async def test_a_run_that_was_ended_from_outside(here: Runyard, there: Runyard, client: Client) -> None:
    run = await here.start(file(task("a", "echo done"), task("t", "sleep 600", depends=["a"])))
    while {t.name: t.status for t in (await run.describe()).tasks}.get("t") != "running":
        await asyncio.sleep(0.05)
    await client.get_workflow_handle(run.id).terminate()
    await there.import_run(io.BytesIO(await exported(here, run.id)))
    view = await there.run(run.id).describe()
    assert (view.phase, view.result, view.cause) == ("cancelled", "stopped", "terminated from outside")
    assert await logs(there.run(run.id), "a") == ["done"]


# the same file again, and other runs of the same id


async def test_the_same_file_again_changes_nothing(here: Runyard, there: Runyard, tmp_path: Path) -> None:
    run = await failed_run(here, tmp_path)
    data = await exported(here, run.id)
    assert (await here.import_run(io.BytesIO(data))).there, "where it comes from"
    await there.import_run(io.BytesIO(data))
    before = await keys(there.store)
    got = await there.import_run(io.BytesIO(data))
    assert (got.there, got.run.id) == (True, run.id)
    assert await keys(there.store) == before


async def test_two_at_once_are_one(here: Runyard, there: Runyard, tmp_path: Path) -> None:
    run = await failed_run(here, tmp_path)
    data = await exported(here, run.id)
    await asyncio.gather(*(there.import_run(io.BytesIO(data)) for _ in range(3)))
    tasks = {each.id for each in (await read_plan(there.store, run.id)).tasks}
    referred = {key.split("/")[1] for key in await keys(there.store, "logs/") if key.endswith(runids(run.id))}
    assert referred == tasks, "the others have let go"
    assert await said(there.run(run.id)) == ["hello"]
    await (await clean(there)).result()
    assert {key.split("/")[1] for key in await keys(there.store, "logs/")} == tasks
    assert await said(there.run(run.id)) == ["hello"]


async def test_another_run_of_the_same_id_is_never_overwritten(
    here: Runyard, there: Runyard, tmp_path: Path
) -> None:
    run = await failed_run(here, tmp_path)
    data = await exported(here, run.id)
    other = await there.start(file(task("t", "echo other")), run_id=run.id)
    with pytest.raises(Conflict):
        await there.import_run(io.BytesIO(data))
    await other.result()
    before = await keys(there.store)
    with pytest.raises(Conflict, match="another run of this id"):
        await there.import_run(io.BytesIO(data))
    for key in await keys(there.store, paths.run(run.id)):
        await there.store.delete(key)
    with pytest.raises(Conflict, match="Temporal has a closed run"):
        await there.import_run(io.BytesIO(data))
    assert set(await keys(there.store)) <= set(before)


async def test_removed_and_imported_again(here: Runyard, there: Runyard, tmp_path: Path) -> None:
    run = await failed_run(here, tmp_path)
    data = await exported(here, run.id)
    await there.import_run(io.BytesIO(data))
    first = {each.id for each in (await read_plan(there.store, run.id)).tasks}
    await remove_run(there, run.id)
    assert await keys(there.store) == []
    await there.import_run(io.BytesIO(data))
    second = {each.id for each in (await read_plan(there.store, run.id)).tasks}
    assert not first & second, "a delete that comes late finds nothing of it"
    assert await said(there.run(run.id)) == ["hello"]


# cleanups


async def test_its_retention_begins_with_the_import(here: Runyard, there: Runyard, tmp_path: Path) -> None:
    run = await failed_run(here, tmp_path)
    view = await read_result(here.store, run.id)
    assert view.ended_at is not None
    await write_result(here.store, view.model_copy(update={"ended_at": view.ended_at - timedelta(days=500)}))
    await there.import_run(io.BytesIO(await exported(here, run.id)))
    assert (await (await clean(there)).result()).deleted == {}
    assert await said(there.run(run.id)) == ["hello"]


async def test_cleanups_at_every_moment_of_an_import_take_nothing_of_it(
    here: Runyard, elsewhere: Client, tmp_path: Path
) -> None:
    run = await failed_run(here, tmp_path)
    data = await exported(here, run.id)
    keep = Retention(logs_s=0, archives_s=0)  # as eager as can be: only what is unknown and young stays
    async for yard in at_work(elsewhere, _fresh(tmp_path), tmp_path, retention=keep):
        slow = Slow(data, yard)
        await yard.import_run(slow)
        assert slow.looked > 24
        assert await said(yard.run(run.id)) == ["hello"]


class Slow(io.BytesIO):
    """A file that gives time for a cleanup between any two of its pieces."""

    def __init__(self, data: bytes, yard: Runyard) -> None:
        super().__init__(data)
        self.looked, self._yard, self._loop = 0, yard, asyncio.get_running_loop()

    def read(self, size: int | None = -1, /) -> bytes:
        self.looked += 1
        if self.looked % 12 == 0:
            asyncio.run_coroutine_threadsafe(_clean(self._yard), self._loop).result(60)
        return super().read(size)


async def _clean(yard: Runyard) -> None:
    await (await clean(yard)).result()


@pytest.mark.parametrize("at", [0.02, 0.3, 0.6, 0.95])
async def test_an_import_that_is_cut_off_leaves_nothing(
    here: Runyard, there: Runyard, tmp_path: Path, at: float
) -> None:
    run = await failed_run(here, tmp_path)
    data = await exported(here, run.id)

    class Cut(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > len(data) * at:
                loop.call_soon_threadsafe(importing.cancel)
            return super().read(size)

    loop = asyncio.get_running_loop()
    importing = asyncio.create_task(there.import_run(Cut(data)))
    with pytest.raises(asyncio.CancelledError):
        await importing
    with pytest.raises(NotFound):
        await there.run(run.id).describe()
    assert run.id not in [each.id for each in await there.list()]
    await (await clean(there)).result()
    assert await keys(there.store, "logs/") == await keys(there.store, "archives/") == []
    assert not (await there.import_run(io.BytesIO(data))).there
    assert await said(there.run(run.id)) == ["hello"]


async def test_one_that_died_between_its_records_is_completed_by_the_next(
    here: Runyard, there: Runyard, tmp_path: Path
) -> None:
    run = await failed_run(here, tmp_path)
    data = await exported(here, run.id)
    await there.import_run(io.BytesIO(data))
    tasks = {each.id for each in (await read_plan(there.store, run.id)).tasks}
    for name in ("plan.jsonl", "request.json", "result.json"):
        await there.store.delete(paths.run(run.id) + name)
    assert not (await there.import_run(io.BytesIO(data))).there
    assert {each.id for each in (await read_plan(there.store, run.id)).tasks} == tasks
    assert await said(there.run(run.id)) == ["hello"]
    (tmp_path / "good").touch()
    assert (await (await there.restart(run.id)).result()).result == "success"


async def test_what_a_cleanup_takes_during_an_export_ends_it(here: Runyard, tmp_path: Path) -> None:
    run = await failed_run(here, tmp_path)

    class Taking(io.BytesIO):
        def write(self, data: object, /) -> int:
            if not self.tell():
                for path in (tmp_path / "store" / "data" / "archives").glob("*/data/*"):
                    path.unlink()
            return super().write(data)  # type: ignore[arg-type]

    with pytest.raises(Conflict, match="removed or has changed while it was exported"):
        await here.export_run(run.id, Taking())


async def test_no_secret_is_in_it(elsewhere: Client, tmp_path: Path) -> None:
    secret = "s3cr3t-of-the-test"
    (tmp_path / "secrets.env").write_text(f"token={secret}\n")
    (tmp_path / "secrets.env").chmod(0o600)
    telling = task("t", "echo it is $TOKEN", environment={"TOKEN": {"from_secret": "token"}})
    async for yard in at_work(elsewhere, _fresh(tmp_path), tmp_path, secrets_file=tmp_path / "secrets.env"):
        run = await yard.start(file(telling))
        assert (await run.result()).result == "success"
        assert await logs(run, "t") == ["it is ***"]
        data = await exported(yard, run.id)
    assert b"it is ***" in data
    assert secret.encode() not in data
