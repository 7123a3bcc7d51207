"""Archives are found in the order asked for, and what is not what was saved is told."""

from pathlib import Path
from urllib.request import urlopen

import pytest
from agentlike import LOST, SUCCESS, TASK, write_archive

from runyard.dialogue import ArchiveRecord, Manifest
from runyard.errors import Corrupt, NotFound
from runyard.records.archives import list_archives, verify_archives
from runyard.records.logs import seal
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


async def seal_attempt(store: ObjectStore, attempt: int, *saved: ArchiveRecord) -> None:
    """As one that its agent has seen through, with these archives; with none of them, as one that has failed."""
    end = SUCCESS if saved else LOST
    manifest = Manifest(seal="complete", archives=list(saved))
    assert (await seal(store, TASK, attempt, manifest=manifest, end=end)).complete


async def listed(store: ObjectStore) -> list[str]:
    return [each.file for each in await list_archives(store, [TASK])]


async def test_what_only_an_earlier_attempt_saved_is_not_listed(store: ObjectStore) -> None:
    """A step for failures saved its core dump; the next attempt succeeded, and its children got that dump too."""
    early, late = [await write_archive(store, step, b"x") for step in (2, 1)]
    await seal_attempt(store, 1, early)
    assert await listed(store) == ["2.tar.gz"]
    await seal_attempt(store, 2, late)
    assert await listed(store) == ["1.tar.gz"]
    await seal_attempt(store, 10)  # the tenth is the last one, and it saved none
    assert await listed(store) == []


async def test_the_last_attempt_may_be_sealed_before_an_earlier_one(store: ObjectStore) -> None:
    """An attempt that nobody fetched is sealed with the delete of its pod, which has time."""
    early, late = [await write_archive(store, step, b"x") for step in (2, 1)]
    await store.put(f"{paths.attempt(TASK, 1)}started", b"")
    await seal_attempt(store, 2, late)
    assert await listed(store) == ["1.tar.gz"]
    await seal_attempt(store, 1, early)
    assert await listed(store) == ["1.tar.gz"]


async def test_where_the_last_seal_is_not_whole_all_that_is_there_is_listed(store: ObjectStore) -> None:
    """An agent that was killed has left no word of what it saved."""
    early, _ = [await write_archive(store, step, b"x") for step in (1, 2)]
    await seal_attempt(store, 1, early)
    sealed = await seal(store, TASK, 2, manifest=None, end=LOST)
    assert not sealed.complete
    assert await listed(store) == ["1.tar.gz", "2.tar.gz"]


async def test_an_archive_that_a_seal_names_and_that_is_gone_is_told(store: ObjectStore) -> None:
    saved = [await write_archive(store, step, b"x") for step in (1, 2)]
    await seal_attempt(store, 1, *saved)
    await store.delete(f"{paths.archives(TASK)}2.tar.gz")
    await store.delete(f"{paths.archives(TASK)}2.json")
    with pytest.raises(NotFound, match=r"archive 2\.tar\.gz of task"):
        await listed(store)


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
