"""Archives are found in the order asked for, and what is not what was saved is told."""

from pathlib import Path
from urllib.request import urlopen

import pytest
from agentlike import TASK, write_archive

from runyard.errors import Corrupt, NotFound
from runyard.records.archives import list_archives, verify_archives
from runyard.store import paths
from runyard.store.base import ObjectStore, read


async def test_archives_come_by_task_as_asked_and_by_step(store: ObjectStore) -> None:
    for task, steps in {"b": (10, 9, 2), "a": (0,), "empty": ()}.items():
        for step in steps:
            await write_archive(store, step, f"{task}{step}".encode(), task_id=task)
    await store.put(paths.archive_runid("b", "run-1"), b"")
    await store.put(paths.archives("b") + "2.tar.gz.part", b"unfinished")
    found = await list_archives(store, ["b", "empty", "a", "unknown"])
    assert [(each.task, each.step, each.file) for each in found] == [
        ("b", 2, "2.tar.gz"),
        ("b", 9, "9.tar.gz"),
        ("b", 10, "10.tar.gz"),
        ("a", 0, "0.tar.gz"),
    ]
    for each in found:
        address = each.source if each.source.startswith("http") else Path(each.source).as_uri()
        with urlopen(address) as file:
            data = file.read()
        assert data == f"{each.task}{each.step}".encode()
        assert each.size == len(data)
    assert await list_archives(store, []) == []


async def test_a_record_without_its_archive(store: ObjectStore) -> None:
    await write_archive(store, 1, b"x")
    await store.delete(f"{paths.archives(TASK)}1.tar.gz")
    with pytest.raises(NotFound, match=r"archive 1\.tar\.gz of task"):
        await list_archives(store, [TASK])


async def test_a_record_that_cannot_be_read(store: ObjectStore) -> None:
    await store.put(f"{paths.archives(TASK)}1.json", b"{")
    with pytest.raises(Corrupt, match=r"1\.json"):
        await list_archives(store, [TASK])


async def test_an_archive_of_another_size_is_not_offered(store: ObjectStore) -> None:
    await write_archive(store, 1, b"whole")
    await store.put(f"{paths.archives(TASK)}1.tar.gz", b"who")
    with pytest.raises(Corrupt, match="3 bytes; 5 were saved"):
        await list_archives(store, [TASK])


@pytest.mark.promise(3)
async def test_verify(store: ObjectStore) -> None:
    records = [await write_archive(store, step, b"data" * 100_000 * step) for step in (1, 2)]
    await verify_archives(store, TASK, records)
    key = f"{paths.archives(TASK)}2.tar.gz"
    data = await read(store, key)
    await store.put(key, data[:-1] + b"X")
    with pytest.raises(Corrupt, match="SHA-256"):
        await verify_archives(store, TASK, records)
    await store.put(key, data[:-1])
    with pytest.raises(Corrupt, match="were saved"):
        await verify_archives(store, TASK, records)
    await store.delete(key)
    with pytest.raises(NotFound, match="not in the store"):
        await verify_archives(store, TASK, records)
