"""What only a folder can do to a store: other processes, links, rights, a full disk, a folder that goes away."""

import asyncio
import contextlib
import errno
import gc
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from runyard.errors import Conflict, InvalidRequest, NotFound, StoreDenied, StoreFull, StoreUnavailable
from runyard.store.base import FolderTarget, read
from runyard.store.posix import PosixStore

FIRST = """
import asyncio, sys
from pathlib import Path
from runyard.errors import Conflict
from runyard.store.posix import PosixStore

async def main():
    store, won = PosixStore(Path(sys.argv[1]), durable=False), []
    sys.stdin.readline()
    for n in range(200):
        try:
            await store.put(f"locks/{n}", sys.argv[2].encode(), if_absent=True)
            won.append(n)
        except Conflict:
            pass
    print(*won)

asyncio.run(main())
"""

ENDLESS = """
import asyncio, sys
from pathlib import Path
from runyard.store.posix import PosixStore

async def main():
    store = PosixStore(Path(sys.argv[1]), durable=False)
    for n in range(10**9):
        body = str(n % 10).encode() * 3_000_000
        async def halves():
            yield body[:1_500_000]
            yield body[1_500_000:]
        await store.put("victim", halves())
        if n == 0:
            print("ready", flush=True)

asyncio.run(main())
"""

TINY_FILES = """
import asyncio, resource, signal, sys
from pathlib import Path
from runyard.errors import StoreFull
from runyard.store.posix import PosixStore

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = PosixStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    asyncio.run(store.put("k", b"x" * 200_000))
except StoreFull as error:
    print(error)
"""

AS_NOBODY = """
import asyncio, concurrent.futures.thread, os, sys
from pathlib import Path
from runyard.errors import StoreDenied
from runyard.store.base import read
from runyard.store.posix import PosixStore

if os.getuid() == 0:
    os.setuid(65534)
store = PosixStore(Path(sys.argv[1]))

async def main():
    print((await read(store, "a/b")).decode())
    for call in (store.put("a/c", b"x"), store.delete("a/b"), store.put("a/b", b"", if_absent=False)):
        try:
            await call
        except StoreDenied as error:
            print("denied:", error)

asyncio.run(main())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> PosixStore:
    return PosixStore(folder, durable=False)


def start(code: str, *args: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


async def test_keys_are_paths(store: PosixStore, folder: Path) -> None:
    await store.put("logs/t1/data/1/seal.json", b"{}")
    assert (folder / "data/logs/t1/data/1/seal.json").read_bytes() == b"{}"
    assert store.source("a/b", expires_s=60) == str(folder / "data/a/b")
    target = FolderTarget(folder=str(folder / "data/logs/t1"), root=str(folder / "data"))
    assert store.target("logs/t1/", expires_s=60) == target
    with pytest.raises(InvalidRequest):
        store.target("../", expires_s=60)


async def test_what_another_program_writes_into_a_target_is_an_object(store: PosixStore) -> None:
    target = store.target("logs/t1/data/1/", expires_s=60)
    assert isinstance(target, FolderTarget)
    inside = Path(target.folder, "segments")
    inside.mkdir(parents=True)
    (inside / ".tmp-77-unfinished").write_bytes(b"half")
    (inside / "0000000000000000").write_bytes(b"line\n")
    assert [info.key async for info in store.list("logs/")] == ["logs/t1/data/1/segments/0000000000000000"]
    with pytest.raises(InvalidRequest, match="unfinished"):
        await store.put("logs/.tmp-x/y", b"")


async def test_one_of_several_processes_is_first(folder: Path, store: PosixStore) -> None:
    processes = [start(FIRST, folder, f"writer {n}") for n in range(4)]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    wins = [{int(n) for n in process.communicate(timeout=60)[0].split()} for process in processes]
    assert sum(len(won) for won in wins) == 200
    assert set().union(*wins) == set(range(200))
    for n, won in enumerate(wins):
        for lock in won:
            assert await read(store, f"locks/{lock}") == f"writer {n}".encode()


async def test_a_killed_writer_leaves_a_whole_object(folder: Path, store: PosixStore) -> None:
    for delay_ms in range(0, 40, 5):
        process = start(ENDLESS, folder)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        await asyncio.sleep(delay_ms / 1000)
        process.kill()
        process.communicate()
        found = await read(store, "victim")
        assert len(found) == 3_000_000
        assert len(set(found)) == 1


def test_what_killed_writers_left_is_removed_after_a_day(folder: Path, store: PosixStore) -> None:
    old, new = folder / "tmp/1-old", folder / "tmp/2-new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000, time.time() - 90_000))
    PosixStore(folder)
    assert not old.exists()
    assert new.exists()


async def test_empty_folders_are_pruned_up_to_the_root(store: PosixStore, folder: Path) -> None:
    await store.put("a/b/c/d", b"x")
    await store.put("a/e", b"x")
    await store.delete("a/b/c/d")
    assert sorted(os.listdir(folder / "data/a")) == ["e"]
    await store.delete("a/e")
    assert os.listdir(folder / "data") == []


async def test_stale_unfinished_files_do_not_keep_a_folder(store: PosixStore, folder: Path) -> None:
    await store.put("a/b/c", b"x")
    for name, age_s in ((".tmp-1-old", 90_000), (".tmp-2-new", 10)):
        (folder / "data/a/b" / name).write_bytes(b"half")
        os.utime(folder / "data/a/b" / name, (time.time() - age_s,) * 2)
    await store.delete("a/b/c")
    assert len(os.listdir(folder / "data/a/b")) == 2  # one may still be written
    os.utime(folder / "data/a/b/.tmp-2-new", (time.time() - 90_000,) * 2)
    await store.put("a/b/c", b"x")
    await store.delete("a/b/c")
    assert os.listdir(folder / "data") == []


async def test_an_empty_folder_gives_way_to_an_object(store: PosixStore, folder: Path) -> None:
    """A writer that was killed between making the folder and its file has left one."""
    for if_absent, key, body in ((False, "a", b"x"), (True, "b", b"x"), (True, "c", b""), (False, "d", b"")):
        (folder / "data" / key).mkdir()
        await store.put(key, body, if_absent=if_absent)
        assert await read(store, key) == body


async def test_links_do_not_lead_out(store: PosixStore, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    await store.put("in/side", b"x")
    (folder / "data/in/way").symlink_to(outside)
    (folder / "data/in/file").symlink_to(outside / "secret")
    (folder / "data/in/loop").symlink_to(folder / "data/in")
    assert [info.key async for info in store.list("")] == ["in/side"]
    for key in ("in/way/secret", "in/file", "in/loop/side"):
        with pytest.raises(NotFound):
            await read(store, key)
        with pytest.raises(NotFound):
            await store.stat(key)
    assert [info.key async for info in store.list("in/way/")] == []
    with pytest.raises(Conflict, match="symbolic link"):
        await store.put("in/way/new", b"x")
    await store.delete("in/way/secret")
    await store.put("in/file", b"replaces the link, not what it shows")
    assert (outside / "secret").read_bytes() == b"secret"
    assert sorted(os.listdir(outside)) == ["secret"]


async def test_what_is_no_file_is_no_object(store: PosixStore, folder: Path) -> None:
    os.mkfifo(folder / "data/fifo")
    (folder / "data" / os.fsdecode(b"\xff")).write_bytes(b"not UTF-8")
    with pytest.raises(NotFound):
        await read(store, "fifo")
    assert [info.key async for info in store.list("")] == []


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128])
async def test_too_long_a_part_is_refused_with_its_length(store: PosixStore, name: str) -> None:
    for call in (store.put(f"a/{name}", b""), store.stat(f"{name}/a"), store.delete(name)):
        with pytest.raises(InvalidRequest, match="at most 255 bytes in a folder"):
            await call


async def test_a_folder_removed_while_running(store: PosixStore, folder: Path) -> None:
    await store.put("a/b", b"x")
    shutil.rmtree(folder)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    calls = [
        store.put("a/c", b"x"),
        store.put("a/c", b""),
        store.put("a/c", pieces(), if_absent=True),
        store.stat("a/b"),
        store.delete("a/b"),
        read(store, "a/b"),
        anext(store.list("a/")),
        anext(store.list("")),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="not there any more"):
            await call
    assert not folder.exists()  # nothing makes it anew: it may be a disk that is not mounted


async def test_a_folder_removed_during_a_put(store: PosixStore, folder: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * 2_000_000
        shutil.rmtree(folder)
        yield b"y"

    with pytest.raises(StoreUnavailable, match="not there any more"):
        await store.put("a/b", pieces())
    assert not folder.exists()


async def test_a_read_only_folder(folder: Path, store: PosixStore, tmp_path: Path) -> None:
    await store.put("a/b", b"still readable")
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents:
        if (
            os.access(parent, os.W_OK)
            and parent.owner() == tmp_path.owner()
            and parent.name.startswith(("pytest", "popen"))
        ):
            os.chmod(parent, 0o755)
    for path in (folder, folder / "data", folder / "data/a", folder / "tmp"):
        os.chmod(path, 0o555)
    try:
        output, _ = start(AS_NOBODY, folder).communicate(timeout=60)
    finally:
        for path in (folder, folder / "data", folder / "data/a", folder / "tmp"):
            os.chmod(path, stat.S_IRWXU)
    first, *denied = output.splitlines()
    assert first == "still readable"
    assert len(denied) == 3
    assert all(line.startswith("denied: permission denied when") for line in denied)
    assert "`a/c`" in denied[0]
    assert str(folder) in denied[0]


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="making the folder"):
        PosixStore(tmp_path / "file" / "store")


def test_a_limit_on_the_size_of_files(folder: Path) -> None:
    output, _ = start(TINY_FILES, folder).communicate(timeout=60)
    assert output.startswith("no room left when writing `k`")
    assert not list((folder / "tmp").iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=64", "runyard-test", str(disk)]
    if os.getuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("mounting a small file system needs root on Linux")
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


async def test_a_full_disk(small_disk: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 200_000

    store = PosixStore(small_disk / "store", durable=False)
    await store.put("kept", b"k" * 1000)
    for data in (b"x" * 2_000_000, pieces()):
        with pytest.raises(StoreFull, match="no room left when writing `big`"):
            await store.put("big", data)
    await store.put("after", b"y" * 100_000)  # nothing of the failed ones is left to fill the disk
    assert [info.key async for info in store.list("")] == ["after", "kept"]

    async def fill() -> None:
        for n in range(100):
            await store.put(f"many/{n}", b"")

    with pytest.raises(StoreFull, match="no room left when writing `many/"):
        await fill()


async def test_many_at_once_on_a_full_disk(small_disk: Path) -> None:
    """Many empty objects are names of one file, and there may be no room for it."""
    store = PosixStore(small_disk / "store")
    with (small_disk / "ballast").open("wb") as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))
    for n in range(64):  # what the file system has left of names
        with contextlib.suppress(OSError):
            (small_disk / f"{n}").touch()
    async with asyncio.timeout(30):
        results = await asyncio.gather(*(store.put(f"many/{n}", b"") for n in range(20)), return_exceptions=True)
    assert {type(each) for each in results} == {StoreFull}
    (small_disk / "ballast").unlink()
    for n in range(64):
        (small_disk / f"{n}").unlink(missing_ok=True)
    await asyncio.gather(*(store.put(f"many/{n}", b"") for n in range(20)))
    assert len([info async for info in store.list("many/")]) == 20


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_loop_that_ends_waits_for_nobody(tmp_path: Path, turns: int) -> None:
    """All tasks are cancelled, those that work for others too, before they began or in the middle."""

    async def leave() -> None:
        store = PosixStore(tmp_path / "store")
        writing = [asyncio.create_task(store.put(f"many/{n}", b"")) for n in range(8)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        async with asyncio.timeout(30):
            await asyncio.wait(writing)

    asyncio.run(leave())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="open files are read from /proc")
async def test_a_put_that_is_cancelled_while_it_begins_leaves_nothing(store: PosixStore, folder: Path) -> None:
    """As on a slow disk: the file is made in a thread, after whoever asked for it has been cancelled."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    go = threading.Event()
    busy = [asyncio.create_task(asyncio.to_thread(go.wait, 30)) for _ in range(40)]  # more than there are threads
    await asyncio.sleep(0)
    putting = asyncio.create_task(store.put("a/b", pieces()))
    for _ in range(5):  # it waits for a thread
        await asyncio.sleep(0)
    putting.cancel()
    go.set()
    async with asyncio.timeout(30):
        await asyncio.wait([putting, *busy])
    assert putting.cancelled()
    assert os.listdir(folder / "tmp") == []
    assert [path for path in open_files() if path.startswith(str(folder))] == []


def open_files() -> list[str]:
    """Of this process. What has been removed has ` (deleted)` at its end."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found


async def test_a_read_only_file_system(small_disk: Path) -> None:
    store = PosixStore(small_disk / "store", durable=False)
    await store.put("a/b", b"x")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    reopened = PosixStore(small_disk / "store")
    assert await read(reopened, "a/b") == b"x"
    for call in (reopened.put("a/c", b"x"), reopened.put("a/c", b""), reopened.delete("a/b")):
        with pytest.raises(StoreDenied, match="Read-only file system"):
            await call


async def test_a_small_put_is_quick(store: PosixStore) -> None:
    """A guard against something quadratic, not a measurement: that is 0.2 ms."""
    begun = time.perf_counter()
    for n in range(200):
        await store.put(f"logs/t/data/1/segments/0/{n:016d}", b"x" * 200)
    assert time.perf_counter() - begun < 10


async def test_a_bulk_of_deletes_that_fails_half_way_can_be_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PosixStore(tmp_path, durable=False)
    keys = ["a/1", "a/2", "b/3", "c/4"]
    for key in keys:
        await store.put(key, b"x")
    with monkeypatch.context() as patched:
        unlink = os.unlink

        def refuse(path: bytes, *, dir_fd: int | None = None) -> None:
            if path == b"3":
                raise PermissionError(errno.EPERM, "it is immutable")
            unlink(path, dir_fd=dir_fd)

        patched.setattr(os, "unlink", refuse)
        with pytest.raises(StoreDenied, match="deleting 4 objects"):
            await store.delete_many(keys)
    assert [info.key async for info in store.list("")] == ["b/3", "c/4"]
    await store.delete_many(keys)
    assert [info.key async for info in store.list("")] == []
    assert os.listdir(tmp_path / "data") == []


async def test_empty_objects_of_one_moment_need_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "this file system has none")

    monkeypatch.setattr(os, "link", refuse)
    store = PosixStore(tmp_path)
    names = [f"many/{n:02}/runs/r" for n in range(50)]
    await asyncio.gather(*(store.put(key, b"") for key in names))
    assert [info.key async for info in store.list("")] == names
    assert os.listdir(tmp_path / "tmp") == []


async def test_what_is_not_there_leaves_nothing_for_the_garbage_collector(store: PosixStore) -> None:
    """An error that holds the frames it came through would keep all that its callers have."""
    gc.collect()
    gc.disable()
    try:
        for look in (lambda: store.stat("a/b"), lambda: read(store, "a/b"), lambda: store.stat("c")):
            with pytest.raises(NotFound):
                await look()
        assert gc.collect() == 0
    finally:
        gc.enable()
