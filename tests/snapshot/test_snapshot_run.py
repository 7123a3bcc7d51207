"""Direct runs from the client's side to the task's: the checkout may be gone before the first task starts."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from snapshot.snapshot_scene import git, init
from temporalio.client import Client
from yard import working

from runyard.client import Runyard
from runyard.client.cleanup import remove_run
from runyard.errors import InvalidRequest, NotFound
from runyard.executors.open import open_executor
from runyard.records.runs import read_plan
from runyard.records.snapshots import read_manifest
from runyard.settings import Settings
from runyard.spec.plan import Snapshot, Source
from runyard.store import paths
from runyard.store.posix import PosixStore

FILE = """
runs:
  - name: direct
    tasks:
      - name: look
        runtime: {containers: [{image: alpine}]}
        steps:
          - clone
          - run: |
              cat file new
              git status --porcelain
              git describe --tags --dirty
              echo "$RUNYARD_GIT_BRANCH $RUNYARD_GIT_COMMIT"
      - name: on-main
        runtime: {containers: [{image: alpine}]}
        when: {branch: main}
        steps: [{run: echo main}]
      - name: on-other
        runtime: {containers: [{image: alpine}]}
        when: {branch: other}
        steps: [{run: echo other}]
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state", store_folder=tmp_path / "store")


@pytest.fixture
def idle(client: Client, store: PosixStore, settings: Settings) -> Runyard:
    """A client where no worker serves."""
    return Runyard(client, store, settings=settings)


@pytest_asyncio.fixture
async def runs(idle: Runyard, local_yard: object) -> AsyncIterator[Runyard]:
    yield idle


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = init(tmp_path / "checkout", file="1\n")
    git(folder, "tag", "v1")
    (folder / "file").write_text("changed\n")
    (folder / "new").write_text("new\n")
    return folder


async def test_from_a_checkout_that_is_gone(
    idle: Runyard, client: Client, store: PosixStore, settings: Settings, checkout: Path
) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    run = await idle.start(FILE, local=checkout, owner="ann")
    shutil.rmtree(checkout)
    async with working(client, store, [open_executor("local", settings)]):
        assert (await run.result()).result == "success"
    lines = [str(line) async for line in run.logs("look") if line.step == 1]
    assert lines == ["changed", "new", " M file", "?? new", "v1-dirty", f"main {commit}"]
    view = await run.describe()
    assert {task.name: task.status for task in view.tasks} == {
        "look": "success",
        "on-main": "success",
        "on-other": "skipped",
    }
    plan = (await read_plan(store, run.id)).run
    assert plan.source.snapshot is not None
    assert plan.source.snapshot.changed == 2
    assert plan.cache_group == f"user/ann/repo/{plan.source.snapshot.repository}"


async def test_what_is_given_wins_over_what_is_found(idle: Runyard, store: PosixStore, checkout: Path) -> None:
    run = await idle.start(FILE, local=checkout, source=Source(branch="other"), cache_group="shared")
    description = await idle.client.get_workflow_handle(run.id).describe()
    assert (await description.memo())["branch"] == "other"
    request = (await idle.client.get_workflow_handle(run.id).fetch_history()).events[0]
    payload = request.workflow_execution_started_event_attributes.input.payloads[0]
    assert b'"cache_group":"shared"' in payload.data
    await idle.client.get_workflow_handle(run.id).terminate()


async def test_the_run_refers_to_all_of_it_before_it_is_started(
    idle: Runyard, store: PosixStore, checkout: Path
) -> None:
    run = await idle.start(FILE, local=checkout)
    keys = [info.key async for info in store.list(paths.SNAPSHOTS)]
    items = {key.removesuffix("/data/content") for key in keys if key.endswith("/data/content")}
    assert len(items) >= 3, "a pack, one of the listing, a manifest"
    assert items == {key.removesuffix(f"/runs/{run.id}") for key in keys if "/runs/" in key}
    await idle.client.get_workflow_handle(run.id).terminate()


async def test_a_second_run_of_one_snapshot_refers_to_it_too(runs: Runyard, checkout: Path) -> None:
    """As a restart does, or another program with plain JSON: the run itself sees to it."""
    first = await runs.start(FILE, local=checkout)
    assert (await first.result()).result == "success"
    source = (await read_plan(runs.store, first.id)).run.source
    second = await runs.start(FILE, source=source)
    assert (await second.result()).result == "success"
    assert source.snapshot is not None
    packs = [pack.id for pack in (await read_manifest(runs.store, source.snapshot)).packs]
    for each in [*packs, source.snapshot.id]:
        item = paths.snapshot_item(source.snapshot.repository, each)
        await runs.store.stat(paths.runid(item, second.id))


async def test_a_removed_run_takes_its_share_with_it(runs: Runyard, store: PosixStore, checkout: Path) -> None:
    """What another run refers to stays, a pack of both too."""
    first = await runs.start(FILE, local=checkout)
    assert (await first.result()).result == "success"
    (checkout / "more").write_text("more\n")
    second = await runs.start(FILE, local=checkout)
    assert (await second.result()).result == "success"
    source = (await read_plan(store, second.id)).run.source
    both = {info.key async for info in store.list(paths.SNAPSHOTS)}
    report = await remove_run(runs, first.id)
    left = {info.key async for info in store.list(paths.SNAPSHOTS)}
    assert left == {key for key in both if paths.runid(paths.item_of(key) or "", second.id) in both} - {
        key for key in both if key.endswith(first.id)
    }
    assert report.deleted["snapshots"].items >= 1
    assert source.snapshot is not None
    await read_manifest(store, source.snapshot)
    await remove_run(runs, second.id)
    assert [info.key async for info in store.list(paths.SNAPSHOTS)] == []


async def test_a_snapshot_that_is_gone_fails_the_run_with_a_sentence(runs: Runyard) -> None:
    snapshot = Snapshot(repository="0" * 32, id=f"{'a' * 64}-{'b' * 8}")
    run = await runs.start(FILE, source=Source(snapshot=snapshot))
    with pytest.raises(NotFound, match="is not in the store any more"):
        await run.result()


def test_a_tag_that_is_given_is_not_on_a_branch() -> None:
    found = Source(branch="main", commit="1" * 40)
    assert found.told(tag="v1") == Source(tag="v1", commit="1" * 40)
    assert found.told(commit="2" * 40, tag="") == Source(branch="main", commit="2" * 40)
    assert found.told() == found


async def test_no_checkout_starts_nothing(idle: Runyard, tmp_path: Path, store: PosixStore) -> None:
    with pytest.raises(InvalidRequest, match="is not in a git checkout"):
        await idle.start(FILE, local=tmp_path)
    assert not [info async for info in store.list(paths.SNAPSHOTS)]
