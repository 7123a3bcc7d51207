"""Archives that cannot be made or unpacked: the task says why, and the run ends."""

import hashlib
import io
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from bad_scene import Played, at_work, end, file, play, small_disk, task, until
from temporalio.client import Client
from yard import Yard

from runyard.reasons import Reason
from runyard.records.runs import read_plan
from runyard.settings import Settings
from runyard.store import paths
from runyard.store.base import read

SAVE: dict[str, object] = {"save_to_workspace": {"contents": [{"source_dir": ".", "paths": ["**"]}]}}
RESTORE: dict[str, object] = {"restore_workspace": {"dest_dir": "."}}


def save(folder: str, *names: str) -> dict[str, object]:
    return {"save_to_workspace": {"contents": [{"source_dir": folder, "paths": list(names or ("**",))}]}}


async def test_missing_source_is_named(local_yard: Yard) -> None:
    played = await play(
        local_yard,
        task("folder", "echo made", save("no/such")),
        task("nothing matches", "echo made", save(".", "*.none")),
        task("after", RESTORE, "ls -A", depends=["nothing matches"]),
    )
    assert (played["folder"].status, played["folder"].reason) == ("failed", Reason.ARCHIVE_FAILED)
    assert b"no/such" in await played.log("folder", 1)
    assert played["nothing matches"].status == played["after"].status == "success"
    assert await played.log("after", 1) == b""


async def test_odd_things_in_a_folder(local_yard: Yard) -> None:
    """What is a file, a folder or a link within comes over; the rest is left out and named."""
    make = """
    mkdir -p 'a b/empty' sub
    printf x >'sub/ü 🚀
second line'
    ln -s '../sub' 'a b/link'
    ln -s nowhere dangling
    mkfifo pipe
    [ "$(id -u)" != 0 ] || mknod device c 1 3 || echo 'no device can be made here'
    chmod 640 'sub/ü 🚀
second line'
    """
    show = "find . -mindepth 1 | LC_ALL=C sort | tr '\\n' '|'; stat -c %a sub/*; readlink 'a b/link' dangling"
    played = await play(local_yard, task("make", make, SAVE), task("use", RESTORE, show, depends=["make"]))
    log = (await played.log("use", 1)).decode()
    assert played.view.counts == {"success": 2}, await played.log("make", 1)
    assert log == ("./a b|./a b/empty|./a b/link|./dangling|./sub|./sub/ü 🚀|second line|640\n../sub\nnowhere\n")
    said = await played.log("make", 1)
    assert b"pipe" in said
    if b"no device" not in await played.log("make", 0) and os.getuid() == 0:
        assert b"device" in said


@pytest.mark.parametrize(("target", "at"), [("/etc/passwd", "leaving"), ("../../../../etc", "sub/leaving")])
async def test_a_link_that_leaves_is_refused_at_saving(local_yard: Yard, target: str, at: str) -> None:
    played = await play(local_yard, task("t", f"mkdir -p sub; ln -s {target} {at}", SAVE))
    assert played["t"].reason is Reason.ARCHIVE_FAILED
    said = (await played.log("t", 1)).decode()
    assert at in said
    assert target in said


@pytest.mark.promise(4)
async def test_a_file_that_grows_while_it_is_packed(local_yard: Yard) -> None:
    """It is saved as it was at some moment, or its task fails and names it: what is restored is never garbage."""
    grow = "(while :; do echo line >>log; done) &\nwhile [ ! -s log ]; do :; done"
    use = "grep -vx line log || [ -s log ]"
    played = await play(local_yard, task("make", grow, SAVE), task("use", RESTORE, use, depends=["make"]))
    if played["make"].status == "success":
        assert played["use"].status == "success"
    else:
        assert played["make"].reason is Reason.ARCHIVE_FAILED
        assert b"log" in await played.log("make", 1)


async def harmful(yard: Yard, member: tarfile.TarInfo, content: bytes = b"x") -> Played:
    """A run whose archive is exchanged, record and all, between saving and restoring: a stranger's archive."""
    gate = file(
        task("make", "echo x >inside", SAVE),
        task("gate", "true", depends=["make"], approval=True),
        task("use", RESTORE, "find . -mindepth 1", depends=["gate", "make"]),
    )
    handle = await yard.start(gate)
    while {each.name: each.status for each in (await yard.view(handle)).tasks}.get("gate") != "approval":
        await until(lambda: True, "the next look")
    ids = {each.name: each.id for each in (await read_plan(yard.store, handle.id)).tasks}
    keys = [info.key async for info in yard.store.list(paths.archives(ids["make"]))]
    record = next(key for key in keys if key.endswith(".json"))
    archive = next(key for key in keys if not key.endswith(".json"))
    data = io.BytesIO()
    member.size = len(content) if member.isreg() else 0
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        tar.addfile(member, io.BytesIO(content))
    old = await read(yard.store, archive)
    await yard.store.delete(archive)
    await yard.store.put(archive.replace(".tar.zst", ".tar.gz"), data.getvalue())
    for key in (record, paths.seal(ids["make"], 1)):
        facts = (await read(yard.store, key)).decode()
        facts = facts.replace(hashlib.sha256(old).hexdigest(), hashlib.sha256(data.getvalue()).hexdigest())
        facts = facts.replace(f'"size":{len(old)}', f'"size":{len(data.getvalue())}')
        facts = facts.replace(f'"size": {len(old)}', f'"size": {len(data.getvalue())}')
        await yard.store.put(key, facts.replace(".tar.zst", ".tar.gz").encode())
    await handle.execute_update("approve", {"task": "gate", "by": "ann"})
    return await end(yard, handle)


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, 0o644
    return member


@pytest.mark.parametrize(
    "member",
    [
        _member("../escaped"),
        _member("/tmp/escaped"),
        _member("a/../../escaped"),
        _member("link", tarfile.SYMTYPE, "/etc/passwd"),
        _member("link", tarfile.SYMTYPE, "../../.."),
        _member("link", tarfile.LNKTYPE, "/etc/passwd"),
        _member("device", tarfile.CHRTYPE),
        _member("disk", tarfile.BLKTYPE),
        _member("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda member: f"{member.type.decode()} {member.name} {member.linkname}",
)
async def test_a_harmful_archive_is_refused_and_named(
    local_yard: Yard, tmp_path: Path, member: tarfile.TarInfo
) -> None:
    played = await harmful(local_yard, member)
    assert (played["use"].status, played["use"].reason) == ("failed", Reason.ARCHIVE_FAILED)
    said = (await played.log("use", 0)).decode()
    assert member.name in said
    assert not list(tmp_path.rglob("escaped"))
    assert not Path("/tmp/escaped").exists()


@pytest_asyncio.fixture
async def small(client: Client, tmp_path: Path) -> AsyncIterator[tuple[Yard, Path]]:
    """A worker whose store has 8 MiB."""
    with small_disk(tmp_path / "disk", "size=8m") as disk:
        async with at_work(client, Settings(state=tmp_path / "state", store_folder=disk / "store")) as yard:
            yield yard, disk


async def test_an_archive_larger_than_the_stores_disk(small: tuple[Yard, Path]) -> None:
    yard, disk = small
    big = "head -c 20000000 /dev/urandom >big"
    played = await play(yard, task("t", big, SAVE), task("other", "echo fine", depends=[{"t": ["always"]}]))
    assert (played["t"].status, played["t"].reason) == ("failed", Reason.ARCHIVE_FAILED)
    assert b"o room left in the store" in await played.log("t", 1)
    assert played["other"].status == "success"
    left = sum(path.stat().st_size for path in disk.rglob("*") if path.is_file())
    assert left < 1_000_000  # what was half written is gone, so that others have room


async def test_a_disk_of_tasks_too_small_for_an_archive(client: Client, tmp_path: Path) -> None:
    with small_disk(tmp_path / "tasks", "size=8m") as tasks:
        settings = Settings(state=tmp_path / "state", store_folder=tmp_path / "store", local_folder=tasks)
        make = "head -c 6000000 /dev/zero >big; head -c 6000000 /dev/zero >big2 || { rm big2; exit 0; }"
        async with at_work(client, settings) as yard:
            played = await play(
                yard,
                task("one", "head -c 5000000 /dev/zero >one", SAVE),
                task("two", "head -c 5000000 /dev/zero >two", SAVE, depends=["one"]),
                task("full", make),
                task("use", RESTORE, depends=["one", "two", "full"]),
                concurrency=1,
            )
    assert played["full"].status == "success"
    assert (played["use"].status, played["use"].reason) == ("failed", Reason.ARCHIVE_FAILED), played["use"]
    assert b"no room left for 'two' in" in await played.log("use", 0)
