"""What snapshots share: little is sent twice, nothing is relied on that the run does not refer to."""

import asyncio
import os
import threading
from collections.abc import AsyncIterable, Iterator, Sequence
from pathlib import Path

import pytest
from snapshot.snapshot_scene import RUN, Scene, commit, git, init, looks

from runyard.errors import Conflict, NotFound
from runyard.records import snapshots
from runyard.records.snapshots import Packer, Place, locate_snapshot, merge, read_manifest, refer_to_snapshot
from runyard.snapshot.take import take_snapshot
from runyard.store import paths
from runyard.store.base import ObjectInfo
from runyard.store.posix import PosixStore


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """2 MB that no codec makes smaller, in 300 files."""
    folder = init(tmp_path / "checkout", **{".gitignore": "*.o\n"})
    for number in range(300):
        path = folder / f"part{number % 7}/file{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(7000))
    commit(folder)
    return folder


def settle(folder: Path) -> None:
    """As if all of it had been written long ago: what is younger than the clock's tick is read again."""
    note = folder / ".git/runyard/snapshot"
    assert note.exists()
    old = 1_600_000_000
    for path in folder.rglob("*"):
        if ".git" not in path.parts:
            os.utime(path, (old, old))


async def keys(store: PosixStore) -> set[str]:
    return {info.key async for info in store.list(paths.SNAPSHOTS)}


async def test_the_second_one_sends_next_to_nothing(scene: Scene, checkout: Path) -> None:
    first = await scene.take(checkout)
    assert first.sent > 2_000_000
    again = await scene.take(checkout, run_id="run-2")
    packs = [(await read_manifest(scene.store, each.snapshot)).packs for each in (first, again)]
    assert packs[0] == packs[1]
    assert again.sent < 2_000, "a manifest"
    (checkout / "part3/file3").write_text("changed")
    (checkout / "part0/new").write_text("new")
    third = await scene.take(checkout, run_id="run-3")
    assert third.snapshot.changed == 2
    assert 0 < third.sent < 60_000
    for taken in (first, third):
        copy, _ = await scene.restore(taken)
        assert (copy / "part0/new").exists() == (taken is third)
    assert looks(copy) == looks(checkout)


async def test_what_has_not_changed_is_not_read(scene: Scene, checkout: Path) -> None:
    await scene.take(checkout)
    settle(checkout)
    await asyncio.sleep(2.1)  # the tick of the clock, by which a note is worth something
    await scene.take(checkout, run_id="run-2")
    opened: list[str] = []

    def note(event: str, args: tuple[object, ...]) -> None:
        if listening and event == "open" and isinstance(args[0], bytes) and b"/part" in args[0]:
            opened.append(os.fsdecode(args[0]))

    import sys

    listening = True
    sys.addaudithook(note)
    (checkout / "part1/file1").write_text("changed")
    taken = await scene.take(checkout, run_id="run-3")
    listening = False
    assert opened == [str(checkout / "part1/file1")]
    copy, _ = await scene.restore(taken)
    assert looks(copy) == looks(checkout)


async def test_a_change_in_the_same_moment_is_seen(scene: Scene, tmp_path: Path) -> None:
    """Same size, and the times put back: what git calls racy."""
    checkout = init(tmp_path / "one", file="1111")
    for text in ("2222", "3333", "4444"):
        found = (checkout / "file").stat()
        (checkout / "file").write_text(text)
        os.utime(checkout / "file", ns=(found.st_atime_ns, found.st_mtime_ns))
        copy, _ = await scene.restore(await scene.take(checkout, run_id=f"run-{text}"))
        assert (copy / "file").read_text() == text


async def test_notes_that_cannot_be_read_are_as_good_as_none(scene: Scene, checkout: Path) -> None:
    await scene.take(checkout)
    note = checkout / ".git/runyard/snapshot"
    kept = note.read_bytes()
    damaged = bytearray(kept)
    damaged[len(kept) // 2] ^= 1
    older = kept.replace(b'"format": 2', b'"format": 1', 1)
    for data in (b"", b"{", b"[]\n", b'{"format": 2}\n', kept[:-1], kept.partition(b"\n")[0], damaged, older):
        note.write_bytes(data)
        taken = await scene.take(checkout, run_id="run-2")
        assert taken.sent > 2_000_000, "all of it"


async def test_back_and_forth_between_branches(scene: Scene, checkout: Path) -> None:
    git(checkout, "checkout", "--quiet", "-b", "other")
    (checkout / "part0/large").write_bytes(os.urandom(1 << 20))
    commit(checkout)
    await scene.take(checkout)
    git(checkout, "checkout", "--quiet", "main")
    await scene.take(checkout, run_id="run-2")
    git(checkout, "checkout", "--quiet", "other")
    taken = await scene.take(checkout, run_id="run-3")
    assert taken.sent < 60_000
    copy, _ = await scene.restore(taken)
    assert looks(copy) == looks(checkout)


async def test_another_store_gets_all_of_it(scene: Scene, checkout: Path, tmp_path: Path) -> None:
    await scene.take(checkout)
    other = Scene(tmp_path / "other", PosixStore(tmp_path / "other-store"))
    second = await other.take(checkout)
    assert second.sent > 2_000_000
    assert looks((await other.restore(second))[0]) == looks(checkout)


# what was removed


@pytest.mark.promise(6)
async def test_what_a_cleanup_removed_is_sent_again(scene: Scene, checkout: Path) -> None:
    await scene.take(checkout)
    for key in await keys(scene.store):
        await scene.store.delete(key)
    second = await scene.take(checkout, run_id="run-2")
    assert second.sent > 2_000_000
    assert looks((await scene.restore(second))[0]) == looks(checkout)


async def test_a_snapshot_of_which_something_is_gone(scene: Scene, checkout: Path) -> None:
    taken = await scene.take(checkout)
    await refer_to_snapshot(scene.store, "run-2", taken.snapshot)
    manifest = await read_manifest(scene.store, taken.snapshot)
    for gone in (manifest.packs[0].id, taken.snapshot.id):
        item = paths.snapshot_item(taken.snapshot.repository, gone)
        await scene.store.delete(paths.snapshot_content(item))
        with pytest.raises(NotFound, match="is not in the store any more"):
            await refer_to_snapshot(scene.store, "run-3", taken.snapshot)
    with pytest.raises(NotFound, match="is not in the store any more"):
        await locate_snapshot(scene.store, taken.snapshot, expires_s=60)


async def test_a_pack_that_was_damaged(scene: Scene, checkout: Path) -> None:
    taken = await scene.take(checkout)
    stored = await locate_snapshot(scene.store, taken.snapshot, expires_s=60)
    path = Path(stored.packs[0].source)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    copy, log = await scene.restore(taken, code=1)
    assert "is not what was stored" in log
    assert not looks(copy)


# who refers to what


class Recorder(PosixStore):
    """A store that remembers what it was asked, in order."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[tuple[str, str]] = []

    async def put(
        self,
        key: str,
        data: bytes | AsyncIterable[bytes],
        *,
        size: int | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        self.asked.append(("put", key))
        return await super().put(key, data, size=size, if_absent=if_absent)

    async def stat(self, key: str) -> ObjectInfo:
        self.asked.append(("stat", key))
        return await super().stat(key)

    async def stat_many(self, keys: Sequence[str]) -> dict[str, ObjectInfo]:
        self.asked += [("stat", key) for key in keys]
        return await super().stat_many(keys)


@pytest.mark.promise(6)
async def test_a_run_refers_to_an_item_before_it_relies_on_it(checkout: Path, tmp_path: Path) -> None:
    """Runid object, then the look for a tombstone, then the data, or the look whether they are there."""
    store = Recorder(tmp_path / "recorded")
    for run_id in ("run-1", "run-2"):
        if run_id == "run-2":
            (checkout / "part0/file0").write_text("changed")
        store.asked.clear()
        taken = await take_snapshot(store, checkout, run_id=run_id)
        packs = {pack.id for pack in (await read_manifest(store, taken.snapshot)).packs}
        assert packs
        for each in {*packs, taken.snapshot.id}:
            item = paths.snapshot_item(taken.snapshot.repository, each)
            content = paths.snapshot_content(item)
            referred = store.asked.index(("put", paths.runid(item, run_id)))
            tombstone = store.asked.index(("stat", paths.tombstone(item)), referred)
            if ("put", content) in store.asked:
                assert store.asked.index(("put", content)) > tombstone
            else:
                assert run_id == "run-2"
                assert ("stat", content) in store.asked[tombstone:]


@pytest.mark.promise(6)
async def test_what_a_cleanup_has_given_up_is_not_relied_on(scene: Scene, checkout: Path) -> None:
    """Not even while it is there; and what is sent again has another name, so that no late delete meets it."""
    first = await scene.take(checkout)
    packs = {pack.id for pack in (await read_manifest(scene.store, first.snapshot)).packs}
    for pack in packs:
        item = paths.snapshot_item(first.snapshot.repository, pack)
        await scene.store.put(paths.tombstone(item), b"")
    with pytest.raises(NotFound, match="is not in the store any more"):
        await refer_to_snapshot(scene.store, "run-2", first.snapshot)
    second = await scene.take(checkout, run_id="run-3")
    assert not packs & {pack.id for pack in (await read_manifest(scene.store, second.snapshot)).packs}
    for pack in packs:
        item = paths.snapshot_item(first.snapshot.repository, pack)
        await scene.store.delete(paths.snapshot_content(item))
    assert looks((await scene.restore(second))[0]) == looks(checkout)


async def test_two_at_once(scene: Scene, checkout: Path) -> None:
    both = await asyncio.gather(*(scene.take(checkout, run_id=f"run-{n}") for n in (1, 2)))
    assert both[0].snapshot.repository == both[1].snapshot.repository
    assert looks((await scene.restore(both[1]))[0]) == looks(checkout)


# many packs


def test_merge_retires_the_smallest() -> None:
    known = {"large": Place("P", 0, snapshots.PACK_BYTES, snapshots.PACK_BYTES)}
    known |= {f"c{n}": Place(f"p{n}", 0, n + 1, n + 1) for n in range(snapshots.SMALL_PACKS)}
    assert merge(known, known) == set()
    known["one more"] = Place("q", 0, 1, 1)
    retired = merge(known, known)
    assert "P" not in retired
    assert len(retired) == snapshots.SMALL_PACKS + 1 - 8
    assert "q" in retired
    assert "p31" not in retired


async def test_many_small_changes_need_few_packs(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SMALL_PACKS", 4)
    monkeypatch.setattr(snapshots, "_KEPT_SMALL", 2)
    checkout = init(tmp_path / "one", **{f"f{n}": "0" for n in range(600)})
    for number in range(20):
        (checkout / f"f{number * 30}").write_text(f"{number}")
        taken = await scene.take(checkout, run_id=f"run-{number}")
        manifest = await read_manifest(scene.store, taken.snapshot)
        assert len(manifest.packs) <= 2 * (4 + 1)
    assert looks((await scene.restore(taken))[0]) == looks(checkout)


def test_a_content_is_packed_once() -> None:
    packer = Packer({}, "0" * 8)
    assert packer.close() is None
    one = packer.add(b"x" * 100_000)
    assert packer.add(b"x" * 100_000) == one
    pack = packer.close()
    assert pack is not None
    assert pack.size < 1_000
    assert packer.known[one] == Place(pack.id, 0, pack.size, 100_000)
    assert packer.add(b"x" * 100_000) == one
    assert packer.close() is None


# what changes while it is read


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[tuple[Path, threading.Event]]:
    """Two files, of which the second gets what the first has got a moment before; until the event."""
    checkout, stop = init(tmp_path / "busy", a="0", b="0"), threading.Event()

    def write() -> None:
        number = 0
        while not stop.wait(0.002):
            number += 1
            (checkout / "a").write_text(f"{number:09d}" * 1000)
            (checkout / "b").write_text(f"{number:09d}" * 1000)

    thread = threading.Thread(target=write)
    thread.start()
    yield checkout, stop
    stop.set()
    thread.join()


async def test_a_checkout_that_never_holds_still(scene: Scene, writer: tuple[Path, threading.Event]) -> None:
    with pytest.raises(Conflict, match="changes while it is read"):
        await scene.take(writer[0])


async def test_a_checkout_that_comes_to_rest(scene: Scene, writer: tuple[Path, threading.Event]) -> None:
    checkout, stop = writer
    taking = asyncio.create_task(scene.take(checkout))
    await asyncio.sleep(0.03)
    stop.set()
    copy, _ = await scene.restore(await taking)
    first, second = ((copy / name).read_text() for name in "ab")
    assert len(first) == 9000
    assert first == second


async def test_large_files_and_holes(scene: Scene, tmp_path: Path) -> None:
    """Pieces of several packs, one piece many times, and a hole that stays one."""
    checkout = init(tmp_path / "one", file="1")
    with open(checkout / "large", "wb") as file:
        file.writelines(os.urandom(1 << 20) * 2 if number % 2 else b"same" * (1 << 20) for number in range(9))
        file.write(b"end")
    with open(checkout / "sparse", "wb") as file:
        file.seek(200 << 20)
        file.write(b"end")
    taken = await scene.take(checkout)
    assert taken.sent < 20 << 20
    copy, _ = await scene.restore(taken)
    assert (copy / "large").read_bytes() == (checkout / "large").read_bytes()
    assert (copy / "sparse").stat().st_size == (200 << 20) + 3
    assert (copy / "sparse").stat().st_blocks * 512 < 10 << 20
    assert RUN in {key.rsplit("/", 1)[1] for key in await keys(scene.store) if "/runs/" in key}
