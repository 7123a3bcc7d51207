"""What a cleanup does to a store: what goes, what stays and why, and that it goes on wherever it was cut."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from cutting import CuttingStore, every_cut
from old_runs import NOW, clean, keys, knowing, put_run
from pydantic import ValidationError

from runyard.errors import Conflict, StoreUnavailable
from runyard.records import expiry, sharing
from runyard.records.cachesweep import expire_caches
from runyard.records.expiry import How
from runyard.records.fates import OPEN, PINNED, UNKNOWN, UNREADABLE, YOUNG, RunStatus
from runyard.records.podcaches import CacheFacts
from runyard.records.runs import write_runids
from runyard.records.sharing import claim_kept, sweep
from runyard.settings import Settings
from runyard.spec.cleanup import Retention, Tally
from runyard.store import paths
from runyard.store.base import ObjectStore
from runyard.store.posix import PosixStore
from workers.serve import retention_of

NewStore = Callable[[], Awaitable[ObjectStore]]
AT_ONCE = Retention(logs_s=0, archives_s=0, runs_s=0, unknown_s=0)


async def test_an_old_run_goes_and_a_young_one_stays(folder_store: ObjectStore) -> None:
    store = folder_store
    await put_run(store, "old", tasks=["t1", "t2"], days_ago=100)
    await put_run(store, "young", tasks=["t3"], days_ago=1)
    before = [key for key in await keys(store) if "t3" in key or "young" in key]
    report = await clean(store)
    assert await keys(store) == before
    assert report.deleted["logs"] == Tally(items=2, objects=6, bytes=14)
    assert report.deleted["archives"] == Tally(items=2, objects=6, bytes=204)
    assert report.deleted["runs"].items == 1
    assert report.kept == {YOUNG: 3}
    assert report.examples["runs"] == ["old"]
    again = await clean(store)
    assert again.deleted == {}


async def test_archives_go_before_logs_and_logs_before_the_record(folder_store: ObjectStore) -> None:
    store = folder_store
    await put_run(store, "run", tasks=["t"], days_ago=0)
    record = {"runs", "ended"}
    stages = ((6, {"logs", "archives", *record}), (8, {"logs", *record}), (31, record), (91, set()))
    for days, left in stages:
        await clean(store, now=NOW + timedelta(days=days))
        assert {key.split("/")[0] for key in await keys(store)} == left


async def test_shared_data_stay_until_the_last_run_lets_go(folder_store: ObjectStore) -> None:
    store = folder_store
    await put_run(store, "first", tasks=["t1", "t2"], days_ago=100)
    await put_run(store, "restart", tasks=["t3"], kept=["t1"], days_ago=2)
    report = await clean(store)
    assert await keys(store, "logs/t2") == []
    assert await keys(store, "logs/t1/runs") == ["logs/t1/runs/restart"]
    assert len(await keys(store, "logs/t1/data")) == len(await keys(store, "archives/t1/data")) == 2
    assert report.deleted["logs"] == Tally(items=1, objects=4, bytes=7), (
        "the runid object of what stays counts too"
    )
    await clean(store, now=NOW + timedelta(days=100))
    assert await keys(store) == []


async def test_a_dry_run_says_the_same_and_does_nothing(folder_store: ObjectStore) -> None:
    await put_run(folder_store, "first", tasks=["t1", "t2"], days_ago=100)
    await put_run(folder_store, "restart", tasks=["t3"], kept=["t1"], days_ago=2)
    before = await keys(folder_store)
    said = await clean(folder_store, dry_run=True)
    assert await keys(folder_store) == before
    assert said == await clean(folder_store)


@pytest.mark.promise(6)
async def test_an_open_run_keeps_everything_whatever_its_age(folder_store: ObjectStore) -> None:
    store = folder_store
    await put_run(store, "open", tasks=["t1"], kept=["t2"], days_ago=None)
    await put_run(store, "again", tasks=["t2"], days_ago=500)  # an id that was used before, and is open now
    before = await keys(store)
    knows = knowing(open=RunStatus(open=True), again=RunStatus(open=True))
    report = await clean(store, now=NOW + timedelta(days=1000), knows=knows)
    assert await keys(store) == before
    assert set(report.kept) == {OPEN}


async def test_a_pinned_run_keeps_everything_until_it_is_let_go(folder_store: ObjectStore) -> None:
    store = folder_store
    await put_run(store, "run", tasks=["t1"], days_ago=500)
    await store.put(paths.keep("run"), b"")
    before = await keys(store)
    assert (await clean(store)).kept == {PINNED: 3}
    assert await keys(store) == before
    await store.delete(paths.keep("run"))
    await clean(store)
    assert await keys(store) == []


async def test_a_run_without_a_result_counts_from_its_end_in_temporal(folder_store: ObjectStore) -> None:
    store = folder_store
    await put_run(store, "terminated", tasks=["t1"], days_ago=None)
    closed = knowing(terminated=RunStatus(closed_at=NOW - timedelta(days=29)))
    assert (await clean(store, knows=closed)).deleted["archives"].items == 1
    assert await keys(store, "logs/t1/runs") == ["logs/t1/runs/terminated"]
    closed = knowing(terminated=RunStatus(closed_at=NOW - timedelta(days=91)))
    await clean(store, knows=closed)
    assert await keys(store) == []


async def test_what_nobody_knows_goes_when_it_is_old(folder_store: ObjectStore) -> None:
    store = folder_store
    await put_run(store, "lost", tasks=["t1"], days_ago=None)
    short = Retention(logs_s=0, archives_s=0, runs_s=0)
    assert (await clean(store, short, now=NOW + timedelta(hours=20))).kept == {UNKNOWN: 3}
    await clean(store, short, now=NOW + timedelta(hours=30))
    assert await keys(store) == []


async def test_orphans_go_at_once_whatever_a_crash_left(folder_store: ObjectStore) -> None:
    store = folder_store
    await store.put("logs/born/data/1/seal.json", b"{}")
    await store.put("logs/half/data/1/steps/0.log", b"left")
    await store.put("logs/half/tombstone", b"")
    await store.put("archives/only/tombstone", b"")
    await store.put("snapshots/uuid/pack/data/0", b"x")
    await store.put("snapshots/uuid/held/data/0", b"x")
    await store.put("snapshots/uuid/held/runs/young", b"")
    await put_run(store, "young", tasks=[], days_ago=1)
    report = await clean(store)
    assert {key.split("/")[0] for key in await keys(store)} == {"snapshots", "runs", "ended"}
    assert await keys(store, "snapshots") == ["snapshots/uuid/held/data/0", "snapshots/uuid/held/runs/young"]
    assert report.deleted["logs"].items == 2


async def test_what_is_not_ours_is_left_alone(folder_store: ObjectStore) -> None:
    strange = ["logs/README", "logs/t/notes/x", "elsewhere/data/1", "archives/t/0.tar.gz"]
    for key in strange:
        await folder_store.put(key, b"x")
    assert (await clean(folder_store, AT_ONCE)).deleted == {}
    assert sorted(await keys(folder_store)) == sorted(strange)


@pytest.mark.promise(6)
async def test_a_runid_object_of_another_version_counts_as_alive(folder_store: ObjectStore) -> None:
    store = folder_store
    for task in ("t1", "t2", "t3"):
        await put_run(store, f"run-{task}", tasks=[task], days_ago=500)
    await store.put("logs/t1/runs/future", b'{"version": 2}')
    await store.put("logs/t2/runs/v2/future", b"")
    await store.put(paths.result("run-t3"), b"what is this")
    report = await clean(store)
    for item in ("logs/t1", "logs/t2", "logs/t3", "archives/t3"):
        assert len(await keys(store, f"{item}/data/")) == 2
    assert await keys(store, "archives/t1") == []
    assert report.kept == {UNREADABLE: 5}


# retention


async def test_retention_of_nothing(folder_store: ObjectStore) -> None:
    await put_run(folder_store, "run", tasks=["t1"], days_ago=0)
    await put_run(folder_store, "open", tasks=["t2"], days_ago=None)
    await clean(folder_store, AT_ONCE, knows=knowing(open=RunStatus(open=True)))
    assert {key for key in await keys(folder_store) if "t1" in key or "/run/" in key} == set()
    assert len(await keys(folder_store, "logs/t2")) == 3


async def test_retention_for_ever(folder_store: ObjectStore) -> None:
    await put_run(folder_store, "run", tasks=["t1"], days_ago=5000)
    before = await keys(folder_store)
    assert (await clean(folder_store, Retention(logs_s=None, archives_s=None, runs_s=None))).kept == {YOUNG: 3}
    assert await keys(folder_store) == before


async def test_retention_that_changes_holds_from_the_next_cleanup_on(folder_store: ObjectStore) -> None:
    await put_run(folder_store, "run", tasks=["t1"], days_ago=10)
    day_s = 24 * 3600.0
    assert (await clean(folder_store, Retention(archives_s=20 * day_s))).deleted == {}
    await clean(folder_store, Retention(logs_s=5 * day_s, archives_s=20 * day_s))
    assert {key.split("/")[0] for key in await keys(folder_store)} == {"archives", "runs", "ended"}
    await clean(folder_store, Retention(runs_s=5 * day_s))
    assert await keys(folder_store) == [], "what has no record cannot be found, so it goes with it"


async def test_a_clock_set_back_removes_nothing(folder_store: ObjectStore) -> None:
    await put_run(folder_store, "run", tasks=["t1"], days_ago=-400)  # it ended in the future
    before = await keys(folder_store)
    await clean(folder_store)
    await clean(folder_store, now=NOW - timedelta(days=4000))
    assert await keys(folder_store) == before


@pytest.mark.parametrize(
    "setting",
    [{"keep_logs_days": -1}, {"keep_archives_days": "nan"}, {"keep_runs_per_group": 0}, {"cleanup_every_s": 0}],
)
def test_settings_that_cannot_be(setting: Mapping[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**setting)  # type: ignore[arg-type]


def test_settings_become_rules() -> None:
    keep = retention_of(Settings(keep_logs_days=0.5, keep_archives_days=float("inf"), keep_bytes=7))
    assert (keep.logs_s, keep.archives_s, keep.total_bytes) == (43_200, None, 7)


async def test_only_so_many_runs_of_a_group(folder_store: ObjectStore) -> None:
    for n in range(6):
        await put_run(folder_store, f"a{n}", tasks=[f"ta{n}"], days_ago=n, group="/a")
        await put_run(folder_store, f"n{n}", tasks=[f"tn{n}"], days_ago=n)
    await put_run(folder_store, "b", tasks=["tb"], days_ago=6, group="/b")
    await clean(folder_store, Retention(runs_per_group=2))
    left = {key.split("/")[1] for key in await keys(folder_store, "runs/")}
    assert left == {"a0", "a1", "b", *(f"n{n}" for n in range(6))}, "runs without a group are not counted"
    assert await keys(folder_store, "logs/ta2") == []


async def test_only_so_many_bytes(tmp_path: Path) -> None:
    store = PosixStore(tmp_path / "s", durable=False)
    for n in range(4):
        await put_run(store, f"run{n}", tasks=[f"t{n}"], days_ago=n + 0.5)
        written = time.time() - n * 24 * 3600
        for path in (tmp_path / "s").rglob(f"*/t{n}/data/**/*"):
            if path.is_file():
                os.utime(path, (written, written))
    assert (await clean(store, Retention(total_bytes=10_000))).deleted == {}
    await clean(store, Retention(total_bytes=250))  # one task has 109
    assert {key.split("/")[1] for key in await keys(store, "runs/")} == {"run0", "run1"}


# crashes


@pytest.mark.promise(6)
async def test_cut_anywhere_the_next_cleanup_goes_on(new_store: NewStore) -> None:
    async def put() -> ObjectStore:
        store = await new_store()
        await put_run(store, "old", tasks=["t1", "t2"], days_ago=100)
        await put_run(store, "young", tasks=[], kept=["t1"], days_ago=1)
        return store

    async def check(store: ObjectStore) -> None:
        left = await keys(store)
        assert [key for key in left if "t2" in key or "old" in key] == []
        assert len([key for key in left if "t1/data" in key]) == 4

    assert await every_cut(put, clean, check) > 40


async def test_a_store_that_fails_is_no_answer(folder_store: ObjectStore) -> None:
    """Whatever could not be found out: nothing goes for it."""
    await put_run(folder_store, "open", tasks=["t1"], days_ago=None)
    before = await keys(folder_store)
    knows = knowing(open=RunStatus(open=True))
    at = 0
    while True:
        store = CuttingStore(folder_store, at=at, error=StoreUnavailable)
        if at > 100:
            break
        try:
            await clean(store, knows=knows)
        except StoreUnavailable:
            at += 1
            continue
        break
    assert 5 < at < 100
    assert await keys(folder_store) == before


async def test_no_answer_from_temporal_is_no_answer(folder_store: ObjectStore) -> None:
    await put_run(folder_store, "run", tasks=["t1"], days_ago=500)
    before = await keys(folder_store)

    class Away:
        async def ask(self, ids: Sequence[str]) -> Mapping[str, RunStatus]:
            raise StoreUnavailable

    with pytest.raises(StoreUnavailable):
        await clean(folder_store, knows=Away())  # type: ignore[arg-type]
    assert await keys(folder_store) == before


# referring


async def test_who_refers_to_what_is_given_up_does_without(folder_store: ObjectStore) -> None:
    store = folder_store
    await put_run(store, "first", tasks=["t1", "t2"], days_ago=1)
    assert await claim_kept(store, "second", "logs/t1")
    assert not await claim_kept(store, "second", "logs/never")
    await store.put(paths.tombstone("logs/t2"), b"")
    assert not await claim_kept(store, "second", "logs/t2")
    with pytest.raises(Conflict, match="removed by a cleanup"):
        await write_runids(store, "first", logs=["t2"])
    assert await sweep(store, ["logs/t2"]) == {}, "a run refers to it still"
    assert len(await keys(store, "logs/t2/data")) == 2


async def test_of_neighbours_only_those_go_that_no_run_refers_to(
    folder_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lies between them, and however much an item holds."""
    monkeypatch.setattr(sharing, "BATCH", 10)
    monkeypatch.setattr(sharing, "BULK", 3)
    free = [f"t{n}" for n in range(1, 9, 2)]
    await put_run(folder_store, "over", tasks=[f"t{n}" for n in range(9)], days_ago=400)
    await put_run(folder_store, "young", tasks=[], kept=[f"t{n}" for n in range(0, 9, 2)])
    await asyncio.gather(*(folder_store.put(f"logs/t3/data/1/steps/{n}.log", b"x") for n in range(1, 25)))
    await asyncio.gather(*(folder_store.put(f"logs/t4/data/1/steps/{n}.log", b"x") for n in range(30)))
    stays = [key for key in await keys(folder_store, "logs/") if key.split("/")[1] not in free]
    report = await clean(folder_store)
    stays.remove("logs/t0/runs/over")
    assert await keys(folder_store, "logs/") == [key for key in stays if not key.endswith("/runs/over")]
    assert report.deleted["logs"] == Tally(items=4, objects=9 + 4 * 2 + 24, bytes=4 * 7 + 24)
    assert report.kept[YOUNG] == 2 * 5 + 1


async def test_pages_and_their_cursors(folder_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "PAGE", 3)
    for n in range(10):
        await put_run(folder_store, f"run {n}/x", tasks=[f"t{n}"], days_ago=100 * (n % 2))
    report = await clean(folder_store)
    assert report.deleted["runs"].items == report.deleted["logs"].items == 5
    assert len({key.split("/")[1] for key in await keys(folder_store, "runs/")}) == 5


# caches


async def test_caches_by_their_last_use_and_by_size(tmp_path: Path) -> None:
    store = PosixStore(tmp_path / "s", durable=False)
    for n, days in enumerate((0, 5, 10, 40)):
        for name, data in ((f"k{n}.tar.gz", b"x" * 100), (f"k{n}.json", b"{}")):
            info = await store.put(f"caches/g%2F1/{name}", data)
            then = time.time() - days * 24 * 3600
            os.utime(store.source(info.key, expires_s=1), (then, then))
    for name, days in (("torn.tar.gz", 9), ("written.tar.gz", 7), ("alone.json", 9)):
        info = await store.put(f"caches/other/{name}", b"y")
        then = time.time() - days * 24 * 3600
        os.utime(store.source(info.key, expires_s=1), (then, then))

    async def sweep_caches(retention: Retention) -> None:
        async for _ in expire_caches(store, retention, How(), now=NOW):
            pass

    await sweep_caches(Retention())
    assert await keys(store, "caches/other") == ["caches/other/written.tar.gz"]
    assert len(await keys(store, "caches/g%2F1")) == 6
    await sweep_caches(Retention(cache_bytes=200))
    assert await keys(store, "caches/g%2F1") == [
        f"caches/g%2F1/k{n}.{ending}" for n in (0, 1) for ending in ("json", "tar.gz")
    ]


async def test_a_cache_of_pods_lives_by_its_last_use(tmp_path: Path) -> None:
    store = PosixStore(tmp_path / "s", durable=False)
    archive, loser = f"k!{'a' * 16}.tar.zst", f"k!{'b' * 16}.tar.zst"
    record = b'{"file": "%s"}' % archive.encode()
    for name, data, days in ((archive, b"x", 50), ("k.json", record, 50), ("k.used", b"", 1), (loser, b"y", 9)):
        info = await store.put(f"caches/pods/{name}", data)
        then = time.time() - days * 24 * 3600
        os.utime(store.source(info.key, expires_s=1), (then, then))
    async for _ in expire_caches(store, Retention(), How(), now=NOW):
        pass
    assert await keys(store, "caches/pods") == sorted(f"caches/pods/{n}" for n in (archive, "k.json", "k.used"))
    async for _ in expire_caches(store, Retention(caches_s=3600), How(), now=NOW):
        pass
    assert await keys(store, "caches/pods") == []


async def test_caches_of_pods_keep_their_use_and_leave_nothing(folder_store: ObjectStore) -> None:
    """The mark of a use is no debris; an archive that waits for its task's end has a week for it."""
    store, archive = folder_store, f"k!{'0' * 16}.tar.zst"
    facts = CacheFacts(key="k", file=archive, size=1, sha256="0")
    for name, data in ((archive, b"x"), ("k.json", facts.model_dump_json().encode()), ("k.used", b"")):
        await store.put(f"caches/g/{name}", data)
    waiting = f"caches/g/k!{'1' * 16}.tar.zst"
    await store.put(waiting, b"y")

    async def sweep_after(days: float) -> None:
        async for _ in expire_caches(store, Retention(), How(), now=NOW + timedelta(days=days)):
            pass

    await sweep_after(7)
    assert len(await keys(store)) == 4
    await sweep_after(9)
    assert waiting not in await keys(store)
    assert len(await keys(store)) == 3
    await sweep_after(31)
    assert await keys(store) == []
