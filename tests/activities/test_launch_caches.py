"""What a task's pod is told of caches, services and archives, and how much of it there may be."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from activities.launch import ASSIGNMENT_BYTES, KNOWN_BYTES, build_launch
from activities.signatures import TaskAttempt
from runyard.dialogue import ArchiveRecord
from runyard.errors import ConfigError
from runyard.executors.base import Launch
from runyard.spec.plan import (
    Container,
    Readiness,
    RestoreCacheStep,
    RestoreWorkspaceStep,
    RunPlan,
    RunStep,
    SaveCacheStep,
    Step,
    TaskPlan,
)
from runyard.store import paths
from runyard.store.base import FolderTarget, ObjectInfo, ObjectStore, Target, UrlTarget
from runyard.store.posix import PosixStore
from runyard.store.posixflat import PosixFlatStore

ATTEMPT = TaskAttempt(run_id="run", task="t", task_id="id", attempt=1, at=(0, 0), header=0)


class Presigning(PosixFlatStore):
    """A folder that gives addresses as an object store does: long, and new ones each time."""

    signed = 0

    def target(self, prefix: str, *, expires_s: float) -> Target:
        self.signed += 1
        return UrlTarget(
            url="https://s3/b", prefix=prefix, fields={"signature": str(self.signed)}, claim="https://c"
        )

    def source(self, key: str, *, expires_s: float) -> str:
        self.signed += 1
        return f"https://s3/b/{key}?signature={self.signed:0400d}"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Presigning]:
    made = Presigning(tmp_path / "store", durable=False)
    yield made
    await made.close()


async def launch(store: ObjectStore, *steps: Step, task: dict[str, object] | None = None, **run: object) -> Launch:
    facts: dict[str, object] = {"containers": [Container(image="i")], **(task or {})}
    plan = TaskPlan(id="id", name="t", steps=list(steps), **facts)  # type: ignore[arg-type]
    header = RunPlan(run_id="run", name="r", cache_group="g", **run)  # type: ignore[arg-type]
    return await build_launch(store, header, plan, ATTEMPT, outputs_of={}, owner="o", log_bytes=1 << 20)


async def write_entry(store: ObjectStore, group: str, key: str) -> ObjectInfo:
    prefix, stem = paths.cache_group(group), paths.escape(key)
    await store.put(f"{prefix}{stem}!0.tar.gz", b"x")
    facts = f'{{"key": "{key}", "file": "{stem}!0.tar.gz", "size": 1, "sha256": "{"0" * 64}"}}'
    return await store.put(f"{prefix}{stem}.json", facts.encode())


async def test_entries_of_the_own_group_then_of_the_other(store: Presigning) -> None:
    for group, key in (("g", "k-1"), ("other", "k-2"), ("g", "else"), ("other", "k-3")):
        await write_entry(store, group, key)
    made = await launch(store, RestoreCacheStep(keys=["k-{{ os }}"]), cache_fallback="other")
    caches = made.assignment.caches
    assert [(entry.key, entry.fallback) for entry in caches.known] == [
        ("k-1", False),
        ("k-3", True),
        ("k-2", True),
    ]
    assert (caches.read, caches.fallback, caches.write) == (None, None, None)


async def test_a_key_to_be_saved_is_known_where_it_is_there(store: Presigning) -> None:
    await write_entry(store, "g", "k-1")
    await write_entry(store, "other", "k-1")
    made = await launch(store, SaveCacheStep(key="k-1"), cache_fallback="other")
    assert [(entry.key, entry.fallback) for entry in made.assignment.caches.known] == [("k-1", False)]
    assert made.assignment.caches.write is not None


async def test_a_read_only_group(store: Presigning, tmp_path: Path) -> None:
    steps: list[Step] = [SaveCacheStep(key="k"), RestoreCacheStep(keys=["k"])]
    assert (await launch(store, *steps, cache_read_only=True)).assignment.caches.write is None
    assert (await launch(store, *steps)).assignment.caches.write is not None


async def test_folders_are_the_agent_s_to_look_into(tmp_path: Path) -> None:
    plain = PosixStore(tmp_path / "plain", durable=False)
    await write_entry(plain, "g", "k")
    caches = (await launch(plain, RestoreCacheStep(keys=["k"]), cache_fallback="other")).assignment.caches
    assert caches.known == []
    assert isinstance(caches.read, FolderTarget)
    assert isinstance(caches.fallback, FolderTarget)
    assert caches.read.folder != caches.fallback.folder
    await plain.close()


async def test_signatures_are_not_what_was_asked(store: Presigning) -> None:
    """A second try of the activity must find its own pod again, whatever has come into the cache meanwhile."""
    steps: list[Step] = [RestoreCacheStep(keys=["k"]), SaveCacheStep(key="k"), RunStep(command="x")]
    first = await launch(store, *steps)
    await write_entry(store, "g", "k")
    second = await launch(store, *steps)
    assert first.assignment != second.assignment
    assert first.digest == second.digest
    assert (await launch(store, *steps[:2], RunStep(command="y"))).digest != first.digest


async def test_entries_that_would_fill_the_secret_are_left_out(store: Presigning) -> None:
    for n in range(200):
        await write_entry(store, "g", f"{n:0190d}")
    made = await launch(store, RestoreCacheStep(keys=["{{ os }}"]))
    size = len(made.assignment.model_dump_json())
    assert 100 < len(made.assignment.caches.known) < 200
    assert KNOWN_BYTES * 0.9 < size < KNOWN_BYTES + 4096


async def test_too_many_archives_are_refused_with_a_sentence(store: Presigning) -> None:
    layers = [f"a{n}" for n in range(1200)]
    for layer in layers:
        record = ArchiveRecord(step=0, file="0.tar.gz", size=1, sha256="0" * 64, files=1)
        await store.put(f"{paths.archives(layer)}0.tar.gz", b"x")
        await store.put(f"{paths.archives(layer)}0.json", record.model_dump_json().encode())
    with pytest.raises(ConfigError, match="restores 1200 archives") as caught:
        await launch(store, RestoreWorkspaceStep(), task={"layers": layers})
    assert "Secret" in caught.value.message
    half = await launch(store, RestoreWorkspaceStep(), task={"layers": layers[:600]})
    assert len(half.assignment.model_dump_json()) < ASSIGNMENT_BYTES


async def test_services_that_the_agent_can_ask(store: Presigning) -> None:
    containers = [
        Container(image="main", ready=Readiness(port=1)),
        Container(image="postgres:16", name="db", ready=Readiness(port=5432, timeout_s=90)),
        Container(image="web", ready=Readiness(port=80, path="/health")),
        Container(image="other", ready=Readiness(command="true")),
        Container(image="silent"),
    ]
    made = await launch(store, RunStep(command="x"), task={"containers": containers})
    found = [(each.name, each.port, each.path, each.timeout_s) for each in made.assignment.services]
    assert found == [("db", 5432, "", 90), ("web", 80, "/health", 60)]
