"""Caches of tasks in pods: what agents hear of, and how what they brought becomes an entry."""

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable

import pytest
from cutting import CuttingStore, every_cut

from runyard.dialogue import CacheRecord, Manifest
from runyard.errors import StoreDenied, StoreUnavailable
from runyard.records.caches import list_caches, list_leftovers, remove_cache, stat_cache
from runyard.records.podcaches import KNOWN_ENTRIES, CacheFacts, known_caches, settle_caches
from runyard.store import paths
from runyard.store.base import ObjectStore, read

GROUP = paths.cache_group("g")


async def bring(store: ObjectStore, key: str, data: bytes = b"it", *, step: int = 0) -> CacheRecord:
    """As the agent does: an archive under a name of its own, and what its manifest says of it."""
    file = f"{paths.escape(key)}!{os.urandom(8).hex()}.tar.zst"
    await store.put(GROUP + file, data)
    digest = hashlib.sha256(data).hexdigest()
    return CacheRecord(step=step, key=key, outcome="saved", file=file, size=len(data), sha256=digest, files=1)


async def settle(store: ObjectStore, *records: CacheRecord) -> list[CacheRecord]:
    manifest = Manifest(seal="complete", caches=list(records))
    return (await settle_caches(store, manifest, group="g", fallback="second")).caches


async def known(store: ObjectStore, *templates: str, group: str = "g") -> list[str]:
    return [entry.key for entry in await known_caches(store, group, templates, expires_s=60)]


@pytest.mark.parametrize("key", ["go-1", "a/b", "..", "x.json", "é!", "go-1.used", "go-1.tar.gz"])
async def test_what_is_brought_is_an_entry_once_it_is_settled(store: ObjectStore, key: str) -> None:
    record = await bring(store, key)
    assert await known(store, key) == []
    assert await list_caches(store, "g") == []
    assert [info.key for info in await list_leftovers(store, "g")] == [GROUP + record.file]
    assert await settle(store, record) == [record]
    (entry,) = await known_caches(store, "g", [key], expires_s=60)
    assert (entry.key, entry.file, entry.size, entry.sha256) == (key, record.file, 2, record.sha256)
    assert await read(store, GROUP + entry.file) == b"it"
    assert (await stat_cache(store, "g", key)).file == record.file
    assert await list_leftovers(store, "g") == []
    await remove_cache(store, "g", key)
    assert [info async for info in store.list(GROUP)] == []


async def test_one_of_twenty_wins_and_the_others_leave_nothing(store: ObjectStore) -> None:
    records = [await bring(store, "k", f"{n}".encode()) for n in range(20)]
    settled = [caches[0] for caches in await asyncio.gather(*(settle(store, record) for record in records))]
    winners = [record for record in settled if record.outcome == "saved"]
    assert len(winners) == 1
    assert [record.outcome for record in settled].count("exists") == 19
    facts = CacheFacts.model_validate_json(await read(store, f"{GROUP}k.json"))
    assert facts.file == winners[0].file
    keys = {info.key async for info in store.list(GROUP)}
    assert keys == {f"{GROUP}k.json", GROUP + facts.file}


async def test_settling_that_is_cut_is_done_by_the_next(new_store: Callable[[], Awaitable[ObjectStore]]) -> None:
    brought: list[CacheRecord] = []

    async def make() -> ObjectStore:
        store = await new_store()
        brought[:] = [await bring(store, "k"), await bring(store, "l"), await bring(store, "k", b"other")]
        return store

    async def act(store: ObjectStore) -> None:
        await settle(store, *brought)

    async def check(store: ObjectStore) -> None:
        assert sorted(await known(store, "")) == ["k", "l"]
        assert await list_leftovers(store, "g") == []

    assert await every_cut(make, act, check) > 5


async def test_again_after_a_crash_it_is_still_ours(store: ObjectStore) -> None:
    first, second = await bring(store, "k"), await bring(store, "k")
    for _ in range(2):
        assert [record.outcome for record in await settle(store, first, second)] in (
            ["saved", "exists"],
            ["exists", "saved"],
        )


async def test_archive_that_is_not_whole_becomes_no_entry(store: ObjectStore) -> None:
    record = await bring(store, "k")
    (settled,) = await settle(store, record.model_copy(update={"size": 3}))
    assert (settled.outcome, settled.message) == ("failed", "its archive is not whole in the store")
    assert [info async for info in store.list(GROUP)] == []
    (settled,) = await settle(store, record)
    assert settled.outcome == "failed"
    assert await known(store, "k") == []


@pytest.mark.parametrize("file", ["k.json", "k.tar.zst", "l!0.tar.zst", "k!x/../l.json", "k!../../x.tar.zst"])
async def test_agent_that_names_what_is_not_its_own(store: ObjectStore, file: str) -> None:
    record = CacheRecord(step=0, key="k", outcome="saved", file=file, size=1, sha256="0" * 64)
    (settled,) = await settle(store, record)
    assert settled.outcome == "failed"
    assert [info async for info in store.list("")] == []


async def test_store_that_refuses_fails_no_task(store: ObjectStore) -> None:
    record = await bring(store, "k")
    cutting = CuttingStore(store, at=1, error=lambda: StoreDenied("no"))
    (settled,) = await settle(cutting, record)
    assert (settled.outcome, settled.message) == ("failed", "no")


async def test_store_that_is_away_is_asked_again(store: ObjectStore) -> None:
    record = await bring(store, "k")
    with pytest.raises(StoreUnavailable):
        await settle(CuttingStore(store, at=1, error=lambda: StoreUnavailable("away")), record)
    assert (await settle(store, record))[0].outcome == "saved"


async def test_use_is_noted_beside_the_entry(store: ObjectStore) -> None:
    record = await bring(store, "k")
    await settle(store, record)
    before = await stat_cache(store, "g", "k")
    hit = CacheRecord(step=0, key="k", outcome="hit", file=record.file)
    assert await settle(store, hit, hit.model_copy(update={"fallback": True})) == [
        hit,
        hit.model_copy(update={"fallback": True}),
    ]
    after = await stat_cache(store, "g", "k")
    assert after.created == before.created
    assert after.used > before.used
    assert [info.key async for info in store.list(paths.cache_group("second"))] == ["caches/second/k.used"]
    assert await known(store, "k") == ["k"]


async def test_templates_say_what_may_be_wanted(store: ObjectStore) -> None:
    for key in ("go-1", "go-2", "node-1", "gone", "..", ".a"):
        await settle(store, await bring(store, key))
    assert sorted(await known(store, 'go-{{ md5sum "go.sum" }}')) == ["go-1", "go-2"]
    assert sorted(await known(store, "go-{{ arch }}", "go-1", "node-")) == ["go-1", "go-2", "node-1"]
    assert sorted(await known(store, "go")) == ["go-1", "go-2", "gone"]
    assert await known(store, "..") == [".."] or ".." in await known(store, "..")
    assert ".a" in await known(store, ".{{ os }}")
    assert len(await known(store, "{{ os }}")) == 6
    assert await known(store, "other") == []
    assert await known(store, "go", group="h") == []


async def test_the_newest_are_known_and_whole_keys_always(store: ObjectStore) -> None:
    for n in range(KNOWN_ENTRIES + 5):
        await settle(store, await bring(store, f"k-{n:04d}"))
    found = await known(store, "k-{{ os }}")
    assert found == [f"k-{n:04d}" for n in range(KNOWN_ENTRIES + 4, 4, -1)]
    found = await known(store, "k-{{ os }}", "k-0000")
    assert len(found) == KNOWN_ENTRIES
    assert found[-1] == "k-0000"
