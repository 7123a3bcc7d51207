"""The list of runs where only the store remembers them, page by page."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runyard.client import Runyard
from runyard.errors import InvalidRequest, ServerUnavailable
from runyard.records.ended import complete_index, list_ended, write_entry
from runyard.records.runs import read_result, write_result
from runyard.settings import Settings
from runyard.spec.run import RunView
from runyard.store import paths
from runyard.store.base import ObjectStore

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def offline(store: ObjectStore, tmp_path: Path) -> Runyard:
    return Runyard(None, store, settings=Settings(state=tmp_path), away=ServerUnavailable("away"))


async def put(store: ObjectStore, number: int, **fields: object) -> None:
    ended = NOW - timedelta(hours=number // 3 * 10)  # three of each moment: a page may end between them
    view = RunView(id=f"r{number:02}", phase="finished", result="success", created_at=ended, ended_at=ended)
    await write_result(store, view.model_copy(update=fields))


async def all_ids(yard: Runyard, limit: int) -> list[str]:
    found, after = [], ""
    while True:
        page = await yard.page(limit=limit, after=after)
        found += [view.id for view in page.runs]
        assert len(page.runs) <= limit
        if not (after := page.next):
            return found


@pytest.mark.parametrize("limit", [1, 2, 7, 50])
@pytest.mark.parametrize("indexed", [True, False])
async def test_pages_have_each_run_once(offline: Runyard, store: ObjectStore, limit: int, indexed: bool) -> None:
    for number in reversed(range(20)):
        await put(store, number)
    if indexed:
        await complete_index(store)
    found = await all_ids(offline, limit)
    assert sorted(found) == [f"r{number:02}" for number in range(20)]
    if indexed:
        assert found == sorted(found)


async def test_filters(offline: Runyard, store: ObjectStore) -> None:
    await put(store, 0, group="/p/web", owner="ann", cause="Lint failed", result="failed")
    await put(store, 1, group="/p/web/branch", trigger="push")
    await put(store, 2, group="/p/website")
    await complete_index(store)

    async def ids(**filters: object) -> list[str]:
        return [view.id for view in await offline.list(**filters)]  # type: ignore[arg-type]

    assert await ids(group="/p/web") == ["r00"]
    assert await ids(below="/p/web/") == ["r00", "r01"]
    assert await ids(owner="ann") == await ids(phase="failed") == await ids(text="lint") == ["r00"]
    assert await ids(trigger="push") == ["r01"]
    assert await ids(since=NOW + timedelta(seconds=1)) == []


async def test_the_index_is_made_anew_from_the_results(offline: Runyard, store: ObjectStore) -> None:
    await put(store, 0)
    async for info in store.list(paths.ENDED):
        await store.delete(info.key)
    assert [view.id for view in await offline.list()] == ["r00"]
    assert await complete_index(store) == 1
    assert await complete_index(store) == 0
    assert [view.id for view in await offline.list()] == ["r00"]


async def test_the_index_made_anew_has_nothing_that_no_result_has(offline: Runyard, store: ObjectStore) -> None:
    """What a crash between the two left, or a person who removed records by hand."""
    for n in range(3):
        await put(store, n)
    assert await complete_index(store) == 3
    await store.delete(paths.result("r01"))
    entry = (await read_result(store, "r02")).model_copy(update={"ended_at": NOW - timedelta(days=9)})
    await write_entry(store, entry)
    async for info in store.list(paths.ENDED):
        if "r00" in info.key:
            await store.delete(info.key)
    assert sorted(view.id for view in await offline.list()) != ["r00", "r02"]
    assert await complete_index(store, anew=True) == 2
    ended = [each async for each in list_ended(store)]
    assert sorted(each.run_id for each in ended) == ["r00", "r02"]
    assert sorted(view.id for view in await offline.list()) == ["r00", "r02"]


async def test_a_cursor_that_is_none(offline: Runyard) -> None:
    with pytest.raises(InvalidRequest):
        await offline.page(after="nonsense")
