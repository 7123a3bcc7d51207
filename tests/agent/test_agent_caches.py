"""Caches: exact before prefix, the first whole one wins, and no trouble with them fails a task."""

import hashlib
import json
import os
import platform
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from agent_stage import Stage

from runyard.dialogue import CacheAccess, CacheRecord, StoredCache
from runyard.spec.plan import Content, RestoreCacheStep, RunStep, SaveCacheStep
from runyard.store.base import FolderTarget


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """The folder of a cache group."""
    return tmp_path / "caches" / "group"


class Caches:
    """Tasks one after another that share a cache group."""

    def __init__(self, stage: Stage, group: Path) -> None:
        self.first, self.group, self.count = stage, group, 0
        self.stage = stage

    def access(self, *, write: bool = True, known: list[StoredCache] | None = None) -> CacheAccess:
        target = FolderTarget(folder=str(self.group))
        read = None if known is not None else target
        return CacheAccess(read=read, known=known or [], write=target if write else None)

    def play(self, *steps: RunStep | SaveCacheStep | RestoreCacheStep, **more: object) -> list[CacheRecord]:
        self.count += 1
        self.stage = Stage(self.first.folder / str(self.count), self.first.shell, self.first.python)
        access = more.pop("access", self.access())
        code = self.stage.play(*steps, caches=access, **more)
        assert code == 0, [self.stage.log(n) for n in range(len(steps))]
        return self.stage.manifest.caches

    def save(self, key: str, text: str) -> CacheRecord:
        step = SaveCacheStep(key=key, contents=[Content(source_dir="~/c")])
        return self.play(RunStep(command=f"mkdir ~/c; echo {text} >~/c/file"), step)[0]

    def restore(self, *keys: str, **more: object) -> tuple[CacheRecord, str]:
        record = self.play(RestoreCacheStep(keys=list(keys), dest_dir="~/c"), **more)[0]
        file = self.stage.home / "c" / "file"
        return record, file.read_text().strip() if file.exists() else ""


@pytest.fixture
def caches(stage: Stage, group: Path) -> Caches:
    return Caches(stage, group)


def test_save_and_restore(caches: Caches) -> None:
    assert caches.save("go-1", "one").outcome == "saved"
    facts = json.loads((caches.group / "go-1.json").read_text())
    data = (caches.group / facts["file"]).read_bytes()
    assert (facts["key"], facts["size"], facts["files"]) == ("go-1", len(data), 1)
    assert facts["sha256"] == hashlib.sha256(data).hexdigest()
    assert facts["file"].startswith("go-1.tar.")
    record, text = caches.restore("go-1")
    assert (record.outcome, record.key, record.step, text) == ("hit", "go-1", 0, "one")
    assert sorted(os.listdir(caches.group)) == sorted(["go-1.json", facts["file"]])


def test_first_writer_wins(caches: Caches) -> None:
    caches.save("k", "one")
    assert caches.save("k", "two").outcome == "exists"
    assert caches.restore("k")[1] == "one"


def test_exact_before_newer_prefix(caches: Caches) -> None:
    for key, text in (("go-1", "exact"), ("go-10", "newer"), ("go-12", "newest"), ("g", "other")):
        caches.save(key, text)
        time.sleep(0.01)
    assert caches.restore("go-1")[1] == "exact"
    record, text = caches.restore("none", "go-")
    assert (record.key, text) == ("go-12", "newest")
    assert caches.restore("none", "go-11", "go-10")[1] == "newer"
    record, text = caches.restore("none", "nor this")
    assert (record.outcome, record.key, text) == ("miss", "none, nor this", "")


def test_restoring_marks_the_entry_as_used_and_not_as_newer(caches: Caches) -> None:
    caches.save("go-1", "older")
    time.sleep(0.01)
    caches.save("go-2", "newer")
    for path in caches.group.glob("*.json"):
        os.utime(path, (1000, 1000))
    caches.restore("go-1")
    assert (caches.group / "go-1.json").stat().st_mtime > 1000
    assert (caches.group / "go-2.json").stat().st_mtime == 1000
    assert caches.restore("go-")[1] == "newer"


def test_keys_of_any_words(caches: Caches) -> None:
    for key in ("a/b", "..", "ü {é}\n", "x.json", "x.tar.gz", "%2E"):
        assert caches.save(key, "it").outcome == "saved", key
        record, text = caches.restore(key)
        assert (record.outcome, record.key, text) == ("hit", key, "it")
    assert all(path.is_file() for path in caches.group.iterdir())
    assert caches.restore("a/")[0].key == "a/b"


def test_key_functions(caches: Caches) -> None:
    template = '{{ os }}-{{ arch }}-{{ md5sum "f" }}-{{ sha256sum "~/g" }}-{{ env "WHO" }}-{{ env "NO" }}'
    template += "-{{ year }}-{{ month }}-{{ day }}-{{ unixtime }}"
    before = datetime.now(UTC)
    steps = [RunStep(command="printf f >f; printf g >~/g; mkdir ~/c"), SaveCacheStep(key=template)]
    record = caches.play(*steps, environ={"WHO": "me too"})[0]
    parts = record.key.split("-")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    assert parts[:2] == [platform.system().lower(), machine]
    assert parts[2:6] == [hashlib.md5(b"f").hexdigest(), hashlib.sha256(b"g").hexdigest(), "me too", ""]
    assert "-".join(parts[6:9]) in {when.strftime("%Y-%m-%d") for when in (before, datetime.now(UTC))}
    assert abs(int(parts[9]) / 1e9 - before.timestamp()) < 600


def test_missing_file_in_a_key(caches: Caches) -> None:
    caches.save("other", "fallback")
    record, text = caches.restore('go-{{ md5sum "go.sum" }}', "other")
    assert (record.outcome, text) == ("hit", "fallback")
    record, _ = caches.restore('go-{{ md5sum "go.sum" }}')
    assert (record.outcome, record.key) == ("miss", "")
    assert "go.sum" in record.message
    record = caches.play(SaveCacheStep(key='go-{{ md5sum "go.sum" }}'))[0]
    assert record.outcome == "failed"
    assert "go.sum" in record.message


@pytest.mark.parametrize("key", ["{{ magic }}", "x" * 201, "{{ md5sum }}", "", "ü" * 200])
def test_key_that_cannot_be(caches: Caches, key: str) -> None:
    """The last one would be too long for a file's name."""
    record = caches.play(SaveCacheStep(key=key))[0]
    assert record.outcome == "failed"
    assert record.message


def test_missing_source(caches: Caches) -> None:
    record = caches.play(SaveCacheStep(key="k", contents=[Content(source_dir="~/none")]))[0]
    assert record.outcome == "failed"
    assert "~/none" in record.message
    assert not caches.group.exists() or os.listdir(caches.group) == []


def test_read_only_group(caches: Caches) -> None:
    caches.save("k", "one")
    record = caches.play(SaveCacheStep(key="l", contents=[Content()]), access=caches.access(write=False))[0]
    assert record.outcome == "failed"
    assert "only read" in record.message
    assert caches.restore("k", access=caches.access(write=False))[1] == "one"


def test_second_group_is_looked_into_after_the_own(caches: Caches, tmp_path: Path) -> None:
    second = tmp_path / "caches" / "second"
    own, caches.group = caches.group, second
    caches.save("go-1", "second-1")
    caches.save("go-2", "second-2")
    caches.group = own
    access = caches.access().model_copy(update={"fallback": FolderTarget(folder=str(second))})
    assert caches.restore("go-2", access=access)[1] == "second-2"
    caches.save("go-0", "own")
    assert caches.restore("go-1", access=access)[1] == "second-1"  # exact, before the newest of the own
    assert caches.restore("go-", access=access)[1] == "own"
    assert caches.restore("go-3", "go-1", access=access)[1] == "second-1"
    step = SaveCacheStep(key="go-1", contents=[Content()])
    assert caches.play(step, access=access)[0].outcome == "saved"  # the own group had none
    assert len(list(second.glob("*.json"))) == 2


@pytest.mark.parametrize(("key", "outcome"), [("k" * 200, "saved"), ("k" * 201, "failed"), ("/" * 67, "failed")])
def test_longest_keys(caches: Caches, key: str, outcome: str) -> None:
    record = caches.save(key, "it")
    assert record.outcome == outcome
    if outcome == "saved":
        assert caches.restore(key)[1] == "it"
    else:
        assert "1 to 200 characters" in record.message


def test_no_caches_at_all(stage: Stage) -> None:
    steps = [RestoreCacheStep(keys=["a"]), SaveCacheStep(key="a", contents=[Content()])]
    assert stage.play(*steps) == 0
    assert [record.outcome for record in stage.manifest.caches] == ["miss", "failed"]


@pytest.mark.parametrize("damage", ["archive", "json", "no archive"])
def test_damaged_entry(caches: Caches, damage: str) -> None:
    caches.save("k", "one")
    archive = next(path for path in caches.group.iterdir() if path.suffix != ".json")
    if damage == "archive":
        archive.write_bytes(b"something else")
    elif damage == "json":
        (caches.group / "k.json").write_text('{"key": ')
    else:
        archive.unlink()
    record, text = caches.restore("k")
    assert record.outcome == ("failed" if damage == "archive" else "miss")
    assert text == ""


def test_entry_whose_writer_died_halfway_is_finished_by_the_next(caches: Caches) -> None:
    """He had stored the archive, not yet what describes it."""
    caches.save("k", "one")
    (caches.group / "k.json").unlink()
    assert caches.save("k", "two").outcome == "saved"
    assert caches.restore("k")[1] == "one"


@pytest.mark.parametrize("count", [5, pytest.param(20, marks=pytest.mark.soak)])
def test_writers_at_the_same_moment(caches: Caches, count: int) -> None:
    """Exactly one wins, and what is restored is, byte for byte, what one of them had."""
    stages = []
    for i in range(count):
        stage = Stage(caches.first.folder / f"w{i}", caches.first.shell, caches.first.python)
        command = f"mkdir ~/c; echo {i} >~/c/file; head -c 300000 /dev/urandom >~/c/more"
        step = SaveCacheStep(key="k", contents=[Content(source_dir="~/c")])
        stage.prepare(RunStep(command=command), step, caches=caches.access())
        stage.start_agent()
        stage.start_main()
        stages.append(stage)
    assert [process.wait(60) for stage in stages for process in stage.processes] == [0] * 2 * count
    outcomes = sorted(stage.manifest.caches[0].outcome for stage in stages)
    assert outcomes.count("saved") == 1
    assert set(outcomes) == {"saved", "exists"}
    assert caches.restore("k")[0].outcome == "hit"
    more = (caches.stage.home / "c" / "more").read_bytes()
    (same,) = [stage for stage in stages if (stage.home / "c" / "more").read_bytes() == more]
    assert (same.home / "c" / "file").read_text() == (caches.stage.home / "c" / "file").read_text()
    assert len(os.listdir(caches.group)) == 2
    for stage in stages:
        stage.end()


def test_known_entries_where_there_is_no_folder(caches: Caches, tmp_path: Path) -> None:
    known = []
    for i, key in enumerate(["go-1", "go-2", "go-3"]):
        caches.save(key, key)
        facts = json.loads((caches.group / f"{key}.json").read_text())
        moved = tmp_path / f"moved-{facts['file']}"
        shutil.move(caches.group / facts["file"], moved)
        when = datetime(2025, 1, [3, 9, 5][i], tzinfo=UTC)
        known.append(
            StoredCache(
                key=key,
                file=facts["file"],
                source=str(moved),
                size=facts["size"],
                sha256=facts["sha256"],
                modified_at=when,
            )
        )
    shutil.rmtree(caches.group)
    access = caches.access(known=known)
    assert caches.restore("go-1", access=access)[1] == "go-1"
    assert caches.restore("go-", access=access)[1] == "go-2"
    assert caches.restore("x", access=access)[0].outcome == "miss"
    record = caches.play(SaveCacheStep(key="go-3", contents=[Content()]), access=access)[0]
    assert record.outcome == "exists"
