"""Agent and main against a real MinIO, as in a pod but for the containers."""

import hashlib
import json
import os
import re
import time
from pathlib import Path

import pytest
from agent_stage import Stage
from minio_for_agent import MinioServer
from test_agent_dialogue import until

from runyard.dialogue import CacheAccess, Manifest, StoredArchive, StoredCache
from runyard.spec.plan import (
    Content,
    RestoreCacheStep,
    RestoreWorkspaceStep,
    RunStep,
    SaveCacheStep,
    SaveToWorkspaceStep,
)

LINES = "import sys\nfor i in range({}): sys.stdout.write('%0100d\\n' % i)"


def manifest_of(minio: MinioServer, prefix: str) -> Manifest:
    return Manifest.model_validate_json(minio.get(f"{prefix}manifest.json"))


def lines_of(stage: Stage, count: int) -> RunStep:
    """So many lines of 101 bytes, as fast as it goes."""
    (stage.folder / "lines.py").write_text(LINES.format(count))
    return RunStep(command=f"{stage.python} -I -S {stage.folder}/lines.py")


def test_task_from_begin_to_seal(stage: Stage, minio: MinioServer, prefix: str) -> None:
    steps = [
        RunStep(command="echo a; head -c 9000000 /dev/zero"),
        RunStep(command="printf '\\r\\n--runyard\\r\\n'; echo k=v >>$RUNYARD_OUTPUT"),
    ]
    assert stage.play(*steps, logs=minio.target(prefix)) == 0
    assert minio.log(prefix, 0) == b"a\n" + bytes(9_000_000)
    assert minio.log(prefix, 1) == b"\r\n--runyard\r\n"
    manifest = manifest_of(minio, prefix)
    assert (manifest.seal, manifest.outputs, manifest.notes) == ("complete", {"k": "v"}, [])
    assert json.loads(minio.get(f"{prefix}started"))["run_id"] == "run"
    assert stage.receipt.sealed
    assert stage.words("agent.log") == ""


@pytest.mark.promise(4)
def test_log_stays_in_few_parts_however_it_came(stage: Stage, minio: MinioServer, prefix: str) -> None:
    """A slow step, a fast one, one that is both, and one that says nothing; the worker reads none of them."""
    slow = "for i in 1 2 3 4; do echo $i; sleep 0.7; done"
    steps = [
        RunStep(command=slow),
        lines_of(stage, 200_000),
        RunStep(command=f"{slow}; head -c 9000000 /dev/zero; {slow}"),
        RunStep(command=":"),
    ]
    assert stage.play(*steps, logs=minio.target(prefix)) == 0
    manifest = manifest_of(minio, prefix)
    for step in manifest.steps:
        ends = [*step.parts[1:], step.bytes]
        sizes = [end - begin for begin, end in zip(step.parts, ends, strict=False)]
        there = [minio.get(f"{prefix}segments/{step.n}/{offset:016d}") for offset in step.parts]
        assert [len(each) for each in there] == sizes
        assert hashlib.sha256(b"".join(there)).hexdigest() == step.sha256
    assert [len(step.parts) for step in manifest.steps[::3]] == [1, 0]
    assert all(2 <= len(step.parts) <= 6 for step in manifest.steps[1:3])
    assert manifest.steps[2].last_line == "4"


@pytest.mark.promise(2)
def test_two_pods_of_one_attempt_run_its_steps_once(stage: Stage, minio: MinioServer, prefix: str) -> None:
    stages = [Stage(stage.folder / str(i), stage.shell, stage.python) for i in range(4)]
    for each in stages:
        each.prepare(RunStep(command=f"echo ran >>{stage.folder}/ran"), logs=minio.target(prefix))
        each.start_agent()
        each.start_main()
    codes = sorted(each.processes[1].wait(60) for each in stages)
    assert codes == [0, 125, 125, 125]
    assert (stage.folder / "ran").read_text() == "ran\n"
    assert sum(each.receipt.started_before for each in stages) == 3
    for each in stages:
        each.end()


@pytest.mark.promise(9)
def test_step_runs_on_while_the_store_is_away(stage: Stage, minio: MinioServer, prefix: str) -> None:
    """30 MB go into the spool; once the store is back all is there, and the setup log says what was."""
    spool = stage.folder / "spool"
    spool.mkdir()
    command = "echo before; while [ ! -e ../away ]; do sleep 0.1; done; head -c 30000000 /dev/zero; : >../written"
    stage.prepare(RunStep(command=command), logs=minio.target(prefix))
    agent = stage.start_agent({"RUNYARD_SPOOL": str(spool), "RUNYARD_SPOOL_BYTES": str(64 << 20)})
    main = stage.start_main()
    until(lambda: minio.keys(f"{prefix}segments/0/"))
    minio.kill()
    (stage.home / "away").touch()
    until((stage.home / "written").exists)
    until(lambda: "trying again" in stage.words("agent.log"))
    assert list(spool.iterdir())
    time.sleep(6)  # an outage that is worth a line
    assert main.poll() is None
    minio.start()
    assert main.wait(60) == 0
    assert agent.wait(60) == 0
    assert minio.log(prefix, 0) == b"before\n" + bytes(30_000_000)
    manifest = manifest_of(minio, prefix)
    assert manifest.seal == "complete"
    assert re.search(r"the store was away for \d+ s", manifest.notes[0])
    (setup,) = minio.keys(f"{prefix}segments/setup/")
    assert manifest.notes[0] in minio.get(setup).decode()
    assert re.fullmatch(r"\d{13}-9\d{3}", setup.rpartition("/")[2])
    assert list(spool.iterdir()) == []


@pytest.mark.promise(9)
def test_step_waits_when_the_spool_is_full(stage: Stage, minio: MinioServer, prefix: str) -> None:
    spool = stage.folder / "spool"
    spool.mkdir()
    command = "echo before; while [ ! -e ../away ]; do sleep 0.1; done; head -c 60000000 /dev/zero; : >../written"
    stage.prepare(RunStep(command=command), logs=minio.target(prefix))
    agent = stage.start_agent({"RUNYARD_SPOOL": str(spool), "RUNYARD_SPOOL_BYTES": str(10 << 20)})
    main = stage.start_main()
    until(lambda: minio.keys(f"{prefix}segments/0/"))
    minio.kill()
    (stage.home / "away").touch()
    until(lambda: "the step waits for the store" in stage.words("agent.log"))
    assert not (stage.home / "written").exists()
    assert sum(path.stat().st_size for path in spool.iterdir()) <= 10 << 20
    minio.start()
    assert main.wait(60) == 0
    assert agent.wait(60) == 0
    assert minio.log(prefix, 0) == b"before\n" + bytes(60_000_000)
    assert "the step was held up" in manifest_of(minio, prefix).notes[0]


@pytest.mark.promise(9)
def test_store_that_is_killed_again_and_again(stage: Stage, minio: MinioServer, prefix: str) -> None:
    """Connections are cut in the middle of a segment; nothing is lost or doubled."""
    stage.prepare(lines_of(stage, 600_000), logs=minio.target(prefix))
    agent = stage.start_agent()
    main = stage.start_main()
    for _ in range(3):
        before = len(minio.keys(f"{prefix}segments/0/"))
        until(lambda: len(minio.keys(f"{prefix}segments/0/")) > before or main.poll() is not None)  # noqa: B023
        minio.kill()
        minio.start()
    assert main.wait(60) == 0
    assert agent.wait(60) == 0
    assert minio.log(prefix, 0) == b"".join(b"%0100d\n" % i for i in range(600_000))
    assert manifest_of(minio, prefix).seal == "complete"


@pytest.mark.promise(4)
@pytest.mark.parametrize("killed", ["agent", "main"])
def test_kill_in_the_middle_of_a_log(stage: Stage, minio: MinioServer, prefix: str, killed: str) -> None:
    """What is in the store joins without a gap, and says itself that it is not whole."""
    command = "i=0; while :; do i=$((i+1)); echo line $i; [ $((i%1000)) -gt 0 ] || sleep 0.05; done"
    stage.prepare(RunStep(command=command), logs=minio.target(prefix))
    agent, main = stage.start_agent(), stage.start_main()
    until(lambda: len(minio.keys(f"{prefix}segments/0/")) > 2)
    (agent if killed == "agent" else main).kill()
    if killed == "agent":
        assert main.wait(60) == 125
        assert stage.receipt.agent_lost
        assert f"{prefix}manifest.json" not in minio.keys(prefix)
    else:
        assert agent.wait(60) == 0
        manifest = manifest_of(minio, prefix)
        assert (manifest.seal, manifest.steps[0].exit_code) == ("truncated", None)
        assert manifest.steps[0].bytes == len(minio.log(prefix, 0))
    log = minio.log(prefix, 0)
    whole = b"".join(b"line %d\n" % i for i in range(1, log.count(b"\n") + 2))
    assert whole.startswith(log)


def peak_rss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


@pytest.mark.promise(4)
@pytest.mark.parametrize("megabytes", [40, pytest.param(200, marks=pytest.mark.soak)])
def test_log_as_fast_as_it_can_be_written(stage: Stage, minio: MinioServer, prefix: str, megabytes: int) -> None:
    count = megabytes * 10_000
    wait = RunStep(command="while [ ! -e ../measured ]; do sleep 0.1; done")
    stage.prepare(lines_of(stage, count), wait, logs=minio.target(prefix))
    agent, main = stage.start_agent({"RUNYARD_COPY_LOG": "1"}), stage.start_main()
    until(lambda: stage.receipt.steps == {0: 0}, timeout_s=120)
    until(lambda: int(minio.keys(f"{prefix}segments/0/")[-1][-16:]) + (4 << 20) > count * 101, timeout_s=60)
    peak = peak_rss_bytes(agent.pid)
    (stage.home / "measured").touch()
    assert main.wait(60) == 0
    assert agent.wait(60) == 0
    digest = hashlib.sha256(b"".join(b"%0100d\n" % i for i in range(count)))
    assert manifest_of(minio, prefix).steps[0].sha256 == digest.hexdigest()
    assert hashlib.sha256(minio.log(prefix, 0)).hexdigest() == digest.hexdigest()
    assert peak < 100 << 20


@pytest.mark.soak
@pytest.mark.promise(9)
def test_store_away_for_a_minute(stage: Stage, minio: MinioServer, prefix: str) -> None:
    stage.prepare(lines_of(stage, 2_000_000), logs=minio.target(prefix))
    agent, main = stage.start_agent(), stage.start_main()
    until(lambda: len(minio.keys(f"{prefix}segments/0/")) > 1)
    minio.kill()
    time.sleep(60)
    assert main.poll() is None
    minio.start()
    assert main.wait(120) == 0
    assert agent.wait(60) == 0
    assert minio.log(prefix, 0) == b"".join(b"%0100d\n" % i for i in range(2_000_000))


# --- refused ----------------------------------------------------------------------------------------


def test_policy_that_has_expired(stage: Stage, minio: MinioServer, prefix: str) -> None:
    target = minio.target(prefix, expires_s=1)
    time.sleep(1.5)
    assert stage.play(RunStep(command="echo ran >../ran"), logs=target) == 125
    assert stage.receipt.store_refused
    assert "expired" in stage.receipt.message
    assert not (stage.home / "ran").exists()


def test_policy_that_expires_in_the_middle(stage: Stage, minio: MinioServer, prefix: str) -> None:
    """The claim holds, the log does not: the step itself is not to blame, and yet it is no success."""
    stale = minio.target(prefix, expires_s=1)
    time.sleep(1.5)
    fresh = minio.target(prefix)
    assert stage.play(RunStep(command="echo ran"), logs=stale.model_copy(update={"claim": fresh.claim})) == 125
    assert stage.receipt.steps == {0: 0}
    assert "expired" in stage.receipt.message
    assert not stage.receipt.sealed


def test_nothing_outside_the_prefix(stage: Stage, minio: MinioServer, prefix: str) -> None:
    target = minio.target(prefix).model_copy(update={"prefix": "other/"})
    assert stage.play(RunStep(command="echo ran"), logs=target) == 125
    assert "403" in stage.receipt.message
    assert minio.keys("other/") == []


def test_archive_that_is_too_large_for_the_store(stage: Stage, minio: MinioServer, prefix: str) -> None:
    steps = [
        RunStep(command="head -c 300000 /dev/urandom >big"),
        SaveToWorkspaceStep(contents=[Content(source_dir=".", paths=["**"])]),
    ]
    small = minio.target("archives/small/", most_bytes=100_000)
    assert stage.play(*steps, logs=minio.target(prefix), archives=small) == 1
    assert b"400" in minio.log(prefix, 1)
    assert b"EntityTooLarge" in minio.log(prefix, 1)
    assert manifest_of(minio, prefix).archives == []
    assert minio.keys("archives/small/") == []


# --- archives and caches ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_archive_of_many_files(stage: Stage, minio: MinioServer, prefix: str, tmp_path: Path, count: int) -> None:
    tree = stage.home / "tree"
    for i in range(count):
        folder = tree / str(i % 100)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(i)).write_bytes(os.urandom(i % 5000))
    base = f"archives/{tmp_path.name}/data/"
    save = SaveToWorkspaceStep(contents=[Content(source_dir="~/tree", paths=["**"])])
    spool = {"RUNYARD_SPOOL": str(tmp_path)}
    more = {"logs": minio.target(prefix), "archives": minio.target(base)}
    assert stage.play(save, secrets=spool, **more) == 0, minio.log(prefix, 0)
    (record,) = manifest_of(minio, prefix).archives
    assert record.checked
    data = minio.get(base + record.file)
    assert (len(data), hashlib.sha256(data).hexdigest()) == (record.size, record.sha256)
    assert json.loads(minio.get(f"{base}0.json"))["sha256"] == record.sha256
    stored = StoredArchive(
        task="t",
        step=0,
        file=record.file,
        source=minio.source(base + record.file),
        size=record.size,
        sha256=record.sha256,
    )
    other = Stage(stage.folder / "other", stage.shell, stage.python)
    target = minio.target(prefix.replace("/1/", "/2/"))
    assert other.play(RestoreWorkspaceStep(dest_dir="~/there"), logs=target, restore=[stored]) == 0
    for i in range(count):
        there = other.home / "there" / str(i % 100) / str(i)
        assert there.read_bytes() == (tree / str(i % 100) / str(i)).read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("tmp-")] == []


def test_cache_goes_up_unnamed_and_comes_down_by_its_url(
    stage: Stage, minio: MinioServer, prefix: str, tmp_path: Path
) -> None:
    """What the agent brings is no entry yet: a worker makes it one."""
    group = f"caches/{tmp_path.name}/"
    save = SaveCacheStep(key="go/{{ arch }}", contents=[Content(source_dir="~/c")])
    access = CacheAccess(write=minio.target(group))
    steps = [RunStep(command="mkdir ~/c; echo it >~/c/file"), save]
    assert stage.play(*steps, logs=minio.target(prefix), caches=access) == 0
    (record,) = manifest_of(minio, prefix).caches
    assert record.outcome == "saved"
    assert re.fullmatch(r"go%2F\w+![0-9a-f]{16}\.tar\.(zst|gz)", record.file)
    assert minio.keys(group) == [group + record.file]
    known = StoredCache(
        key=record.key,
        file=record.file,
        source=minio.source(group + record.file),
        size=record.size,
        sha256=record.sha256,
        modified_at="2026-01-01T00:00:00Z",
        fallback=True,
    )
    other = Stage(stage.folder / "other", stage.shell, stage.python)
    steps = [RestoreCacheStep(keys=["go/"], dest_dir="~/d"), RunStep(command="cat ~/d/file")]
    second = prefix.replace("/1/", "/2/")
    assert other.play(*steps, logs=minio.target(second), caches=CacheAccess(known=[known])) == 0
    (found,) = manifest_of(minio, second).caches
    assert (found.outcome, found.file, found.fallback) == ("hit", record.file, True)
    assert minio.log(second, 1) == b"it\n"
