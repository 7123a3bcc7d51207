"""Entries of caches: listed, looked at, removed; keys are whatever users write."""

import os
import time

import pytest
from cutting import every_cut

from runyard.errors import NotFound
from runyard.records.caches import list_caches, list_groups, remove_cache, stat_cache
from runyard.store import paths
from runyard.store.base import ObjectStore
from runyard.store.posix import PosixStore

KEYS = ["go-1", "go-10", "go-1.json", "go-1.tar.gz", "a/b c", "..", "100%", "☺", "go-1.json.tar.gz"]


async def write_cache(store: ObjectStore, group: str, key: str, data: bytes = b"x") -> None:
    stem = paths.cache_group(group) + paths.escape(key)
    await store.put(f"{stem}.tar.gz", data)
    await store.put(f"{stem}.json", b"{}")


async def test_list(store: ObjectStore) -> None:
    for n, key in enumerate(KEYS):
        await write_cache(store, "project/web", key, b"x" * n)
    await write_cache(store, "other", "go-1")
    await store.put(paths.cache_group("project/web") + "half.json", b"{}")
    found = await list_caches(store, "project/web")
    assert [(entry.key, entry.size) for entry in found] == sorted((key, n) for n, key in enumerate(KEYS))
    assert all(entry.group == "project/web" and entry.created <= entry.used for entry in found)
    assert await list_caches(store, "project") == []
    assert sorted(await list_groups(store)) == ["other", "project/web"]


@pytest.mark.parametrize("key", KEYS)
async def test_each_key_is_its_own(store: ObjectStore, key: str) -> None:
    for each in KEYS:
        await write_cache(store, "g", each)
    assert (await stat_cache(store, "g", key)).key == key
    await remove_cache(store, "g", key)
    assert [entry.key for entry in await list_caches(store, "g")] == sorted(each for each in KEYS if each != key)
    for call in (stat_cache, remove_cache):
        with pytest.raises(NotFound, match="has no entry"):
            await call(store, "g", key)


async def test_use_is_the_time_of_the_record(new_store: object, tmp_path: os.PathLike[str]) -> None:
    store = PosixStore(tmp_path / "s", durable=False)  # type: ignore[operator]
    await write_cache(store, "g", "k")
    before = await stat_cache(store, "g", "k")
    later = time.time() + 1000
    os.utime(store.source(f"{paths.cache_group('g')}k.json", expires_s=1), (later, later))
    after = await stat_cache(store, "g", "k")
    assert after.created == before.created
    assert after.used.timestamp() == pytest.approx(later, abs=0.01)


async def test_a_removal_that_is_cut_is_done_by_the_next(new_store: object) -> None:
    async def make() -> ObjectStore:
        store = await new_store()  # type: ignore[operator]
        await write_cache(store, "g", "k")
        return store  # type: ignore[no-any-return]

    async def remove(store: ObjectStore) -> None:
        try:
            await remove_cache(store, "g", "k")
        except NotFound:
            assert await list_caches(store, "g") == []

    async def check(store: ObjectStore) -> None:
        assert await list_caches(store, "g") == []

    assert await every_cut(make, remove, check) == 10
