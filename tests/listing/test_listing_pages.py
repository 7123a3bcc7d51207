"""The list of runs where only the store remembers them, page by page."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import JsonValue

from runyard.client import Runyard
from runyard.client.starting import keyed_run_id
from runyard.errors import Conflict, InvalidRequest, ServerUnavailable
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


class Forgetful:
    """A Temporal whose retention is over: it takes any id."""

    namespace = "default"

    def __init__(self) -> None:
        self.started: list[str] = []

    async def start_workflow(self, *_: object, **how: object) -> None:
        self.started.append(str(how["id"]))


async def test_a_start_that_comes_again_long_after_the_end(store: ObjectStore, tmp_path: Path) -> None:
    client, key = Forgetful(), "push 3f2c1d9"
    yard = Runyard(client, store, settings=Settings(state=tmp_path))  # type: ignore[arg-type]
    runtime = {"containers": [{"image": "x"}]}
    file: dict[str, JsonValue] = {"runs": [{"name": "deploy", "tasks": [{"name": "t", "runtime": runtime}]}]}
    await put(store, 0, id=keyed_run_id("deploy", key))
    assert (await yard.start(file, idempotency_key=key)).id == keyed_run_id("deploy", key)
    with pytest.raises(Conflict, match="exists already"):
        await yard.start(file, run_id=keyed_run_id("deploy", key))
    assert client.started == []
    await yard.start(file, idempotency_key="another")
    assert client.started == [keyed_run_id("deploy", "another")]


async def test_open_runs_behind_one_that_continued_as_new(
    offline: Runyard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporal sorts by the start of the last execution, and a run's own start may be hours before."""
    hours = {"b": (9, 9), "continued": (8, 1), "c": (7, 7), "d": (6, 6)}

    async def visible(query: str, **_: object) -> AsyncIterator[tuple[RunView, datetime]]:
        before = re.search(r"StartTime < '([^']+)'", query)
        for run_id, (started, created) in hours.items():
            at, created_at = NOW + timedelta(hours=started), NOW + timedelta(hours=created)
            if before is None or at < datetime.fromisoformat(before[1]):
                yield RunView(id=run_id, phase="running", created_at=created_at), at

    monkeypatch.setattr(offline, "visible", visible)
    found, after = [], ""
    for _ in range(4):
        page = await offline.page(limit=2, after=after, phase="open")
        found += [view.id for view in page.runs]
        if not (after := page.next):
            break
    assert found == list(hours)
