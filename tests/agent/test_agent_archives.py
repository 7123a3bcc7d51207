"""What goes into an archive comes out of it, and nothing else happens."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import socket
import stat
import string
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_stage import Stage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runyard import agent
from runyard.agent import Agent, Failure, Globs, Packer, Unpacker, Work, find_entries, unpack
from runyard.dialogue import StoredArchive
from runyard.spec.plan import Content, RestoreWorkspaceStep, RunStep, SaveToWorkspaceStep
from runyard.store.base import FolderTarget

ALL = [Content(paths=["**"])]


class Bench:
    """A piece of work without a task around it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = open(folder / "log", "w+b")  # noqa: SIM115 (closed by the fixture)
        assignment = {"logs": {"kind": "folder", "folder": str(folder / "logs")}, "mask": []}
        self.agent = Agent({"RUNYARD_DIR": str(folder)}, assignment)  # type: ignore[arg-type]
        self.agent.home = self.agent.cwd = str(folder)
        self.work = Work(self.agent, 0, self.log.fileno())

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read().decode()

    def pack(self, source: Path, *patterns: str, dest: str = ".") -> agent.Stored:
        packer = Packer(self.work)
        path = str(self.folder / f"0.{packer.ending}")
        entries = find_entries(Globs(patterns or ["**"]), str(source), dest)
        size, digest, _ = packer.pack(entries, path)
        return {
            "task": "t",
            "step": 0,
            "file": os.path.basename(path),
            "source": path,
            "size": size,
            "sha256": digest,
        }

    def unpack(self, stored: agent.Stored, dest: Path) -> int:
        return unpack(self.work, stored, str(dest))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "bench").mkdir()
    made = Bench(tmp_path / "bench")
    yield made
    made.log.close()


@pytest.fixture(params=["zstd", "gzip"])
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the program zstd and without."""
    if request.param == "gzip":
        monkeypatch.setattr(Packer, "_codec", staticmethod(lambda: ("tar.gz", "")))
    elif Packer._codec()[0] != "tar.zst":
        pytest.skip("there is no zstd on this machine")
    return str(request.param)


def picture(folder: Path) -> dict[str, object]:
    """All of a tree that an archive keeps."""
    shown: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        found = path.lstat()
        name = os.fsencode(path.relative_to(folder))
        if stat.S_ISLNK(found.st_mode):
            shown[repr(name)] = os.readlink(path)
        elif stat.S_ISDIR(found.st_mode):
            shown[repr(name)] = (stat.S_IMODE(found.st_mode), int(found.st_mtime))
        else:
            shown[repr(name)] = (stat.S_IMODE(found.st_mode), int(found.st_mtime), path.read_bytes())
    return shown


def make_tree(folder: Path) -> Path:
    (folder / "empty").mkdir(parents=True)
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/run.sh").write_text("#!/bin/sh\n")
    (folder / "deep/er/run.sh").chmod(0o755)
    (folder / "deep/link").symlink_to("er/run.sh")
    (folder / "up").symlink_to("deep/../deep/er")
    (folder / "dangling").symlink_to("nothing")
    (folder / "secret").write_bytes(b"\0\xff" * 1000)
    (folder / "secret").chmod(0o600)
    (folder / ("x" * 200)).touch()
    (folder / "ünï \n'\"").write_text("x")
    (folder / "deep" / ("y" * 120) / ("z" * 120)).mkdir(parents=True)
    with open(os.path.join(os.fsencode(folder), b"not utf-8 \xff"), "wb") as file:
        file.write(b"1")
    os.utime(folder / "secret", (1_000_000_000, 1_000_000_000))
    (folder / "deep").chmod(0o555)
    os.utime(folder / "deep", (1_100_000_000, 1_100_000_000))
    return folder


def test_round_trip(bench: Bench, codec: str, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    stored = bench.pack(source)
    count = bench.unpack(stored, tmp_path / "dest")
    assert picture(tmp_path / "dest") == picture(source)
    assert count == len(picture(source))
    assert bench.unpack(stored, tmp_path / "dest") == count
    assert picture(tmp_path / "dest") == picture(source)
    assert bench.said() == ""


def test_equal_trees_make_equal_archives(bench: Bench, codec: str, tmp_path: Path) -> None:
    first = make_tree(tmp_path / "first")
    second = tmp_path / "second"
    names = sorted(os.listdir(first), key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    second.mkdir()
    for name in names:
        path = first / name
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, second / name, symlinks=True)
        else:
            shutil.copy2(path, second / name, follow_symlinks=False)
    assert picture(first) == picture(second)
    assert bench.pack(first)["sha256"] == bench.pack(second)["sha256"]


NAMES = st.sampled_from(["a", "b", "c.txt", ".d", "e f", "ü"])
TREES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3).map("/".join),
    st.one_of(st.binary(max_size=2000), st.just(None), NAMES.map(lambda name: f"->{name}")),
    max_size=8,
)


@given(tree=TREES, over=TREES)
@settings(
    max_examples=60,
    deadline=None,  # programs are started
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_tree_over_any_other(bench: Bench, tree: dict[str, object], over: dict[str, object]) -> None:
    """Every entry of the later archive is there as it was saved, whatever was in its place, or it is refused."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as name:
        folder = Path(name)
        for place, content in (("below", tree), ("above", over)):
            (folder / place).mkdir()
            _grow(folder / place, content)
        below, above = bench.pack(folder / "below"), picture(folder / "above")
        bench.unpack(below, folder / "dest")
        assert picture(folder / "dest") == picture(folder / "below")
        try:
            bench.unpack(bench.pack(folder / "above"), folder / "dest")
        except Failure as error:
            if "a folder with something in it" not in str(error):
                raise
            return
        assert above.items() <= picture(folder / "dest").items()


def _grow(folder: Path, tree: dict[str, object]) -> None:
    for name, content in tree.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.mkdir(exist_ok=True)
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.symlink_to(str(content)[2:])
        except OSError:  # something else has that place: any tree will do
            continue


def test_special_files_are_left_out_and_said(bench: Bench, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / "fifo")
    (source / "file").touch()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(source / "s"))
        stored = bench.pack(source)
    bench.unpack(stored, tmp_path / "dest")
    assert os.listdir(tmp_path / "dest") == ["file"]
    assert bench.said().count("is left out") == 2


def test_two_files_of_one_name(bench: Bench, tmp_path: Path) -> None:
    for name in ("one/d/f", "two/d/f"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    entries = [
        entry for name in ("one", "two") for entry in find_entries(Globs(["**"]), str(tmp_path / name), "x")
    ]
    with pytest.raises(Failure, match="would both become x/d/f"):
        Packer(bench.work).pack(entries, str(tmp_path / "out"))


@pytest.mark.parametrize("grows", [True, False])
def test_file_that_changes_while_it_is_packed(bench: Bench, tmp_path: Path, grows: bool) -> None:
    """The archive stays whole, and the log says what happened."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "log").write_bytes(random.Random(1).randbytes(3 << 20))
    (source / "z").write_text("after it")
    check, seen = bench.work.check, iter(range(3))

    def change() -> None:
        if next(seen, None) == 2:
            with open(source / "log", "r+b") as file:
                file.seek(0, os.SEEK_END)
                file.write(b"more") if grows else file.truncate(1 << 20)
        check()

    bench.work.check = change  # type: ignore[method-assign]
    stored = bench.pack(source)
    bench.work.check = check  # type: ignore[method-assign]
    bench.unpack(stored, tmp_path / "dest")
    assert (tmp_path / "dest" / "log").stat().st_size == 3 << 20
    assert (tmp_path / "dest" / "z").read_text() == "after it"
    assert "changed while it was packed" in bench.said()


def test_file_that_vanishes_while_packing(bench: Bench, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in string.ascii_lowercase:
        (source / name).write_text(name)
    entries = list(find_entries(Globs(["**"]), str(source), "."))
    (source / "m").unlink()
    packer = Packer(bench.work)
    path = str(tmp_path / f"0.{packer.ending}")
    size, digest, files = packer.pack(entries, path)
    assert files == 25
    stored: agent.Stored = {"file": os.path.basename(path), "source": path, "size": size, "sha256": digest}
    assert bench.unpack(stored, tmp_path / "dest") == 25
    assert "m is left out: it vanished" in bench.said()


def test_many_writers_while_packing(bench: Bench, tmp_path: Path) -> None:
    """Files that come, go, grow and shrink all the time: every archive can be read to its end."""
    source = tmp_path / "source"
    source.mkdir()
    stop = threading.Event()

    def disturb(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            path = source / chance.choice("abcdef")
            try:
                if chance.random() < 0.3:
                    path.unlink()
                else:
                    path.write_bytes(bytes(chance.randrange(200_000)))
            except FileNotFoundError:
                continue

    threads = [threading.Thread(target=disturb, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    try:
        for i in range(15):
            bench.unpack(bench.pack(source), tmp_path / f"dest{i}")
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# --- archives that mean harm ------------------------------------------------------------------------


def tar_of(folder: Path, *members: tuple[str, dict[str, object]]) -> agent.Stored:
    """An archive of just these members, with size and digest as if it had been saved so."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, facts in members:
            info = tarfile.TarInfo(name)
            content = facts.get("content", b"")
            assert isinstance(content, bytes)
            info.size = len(content)
            for key, value in facts.items():
                if key != "content":
                    setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    packed = gzip.compress(data.getvalue())
    (folder / "evil.tar.gz").write_bytes(packed)
    digest = hashlib.sha256(packed).hexdigest()
    return {"file": "evil.tar.gz", "source": str(folder / "evil.tar.gz"), "size": len(packed), "sha256": digest}


def link(target: str) -> dict[str, object]:
    return {"type": tarfile.SYMTYPE, "linkname": target}


HARM = {
    "../outside": [("../outside", {"content": b"x"})],
    "a/../../outside": [("a/../../outside", {"content": b"x"})],
    "/absolute": [("/absolute", {"content": b"x"})],
    "dev": [("dev", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3})],
    "block": [("block", {"type": tarfile.BLKTYPE})],
    "fifo": [("fifo", {"type": tarfile.FIFOTYPE})],
    "hard": [("hard", {"type": tarfile.LNKTYPE, "linkname": "/etc/hostname"})],
    "up": [("up", link("../x"))],
    "abs": [("abs", link("/etc"))],
    "deep/er": [("deep/er", link("../../x"))],
    "chain/b": [("chain/a", link("..")), ("chain/b", link("a/../.."))],
    "turn": [("here", link(".")), ("sub/turn", link("../here/..")), ("turns", link("sub/turn/..")), ("x", {})],
}


@pytest.mark.parametrize("name", HARM)
def test_harm_is_refused_and_named(bench: Bench, tmp_path: Path, name: str) -> None:
    dest = tmp_path / "a" / "dest"
    outside = picture(tmp_path / "a") if dest.parent.exists() else {}
    with pytest.raises(Failure, match=name.rpartition("/")[2]):
        bench.unpack(tar_of(bench.folder, *HARM[name]), dest)
    left = {key: value for key, value in picture(tmp_path / "a").items() if not key.startswith("b'dest")}
    assert left == outside
    for path in dest.rglob("*"):
        assert os.path.realpath(path).startswith(f"{dest}")


@pytest.mark.parametrize("place", ["link/file", "link", "link/sub/file"])
def test_nothing_is_written_through_a_link(bench: Bench, tmp_path: Path, place: str) -> None:
    """Neither one of the archive's nor one that was there before."""
    dest, outside = tmp_path / "dest", tmp_path / "outside"
    dest.mkdir()
    outside.mkdir()
    (outside / "file").write_text("mine")
    (dest / "link").symlink_to(outside / "file" if place == "link" else outside)
    bench.unpack(tar_of(bench.folder, (place, {"content": b"theirs"})), dest)
    assert (outside / "file").read_text() == "mine"
    assert os.listdir(outside) == ["file"]
    assert (dest / place).read_text() == "theirs"
    inside = ("in/dir/", {"type": tarfile.DIRTYPE}), ("l", link("in/dir")), ("l/f", {"content": b"x"})
    bench.unpack(tar_of(bench.folder, *inside), dest)
    assert not (dest / "in/dir/f").exists()
    assert (dest / "l/f").read_text() == "x"


def test_modes_that_give_rights_away_are_dropped(bench: Bench, tmp_path: Path) -> None:
    bench.unpack(tar_of(bench.folder, ("f", {"mode": 0o6755, "content": b"x"})), tmp_path / "dest")
    assert stat.S_IMODE((tmp_path / "dest/f").stat().st_mode) == 0o755


@pytest.mark.parametrize("damage", ["cut", "flipped", "longer", "gone"])
def test_damaged_archive_writes_nothing(bench: Bench, codec: str, tmp_path: Path, damage: str) -> None:
    stored = bench.pack(make_tree(tmp_path / "source"))
    path = Path(stored["source"])
    data = path.read_bytes()
    changed = {"cut": data[:-5], "flipped": data[:40] + bytes([data[40] ^ 1]) + data[41:], "longer": data + b"x"}
    path.unlink() if damage == "gone" else path.write_bytes(changed[damage])
    with pytest.raises(Failure, match="not there any more" if damage == "gone" else "is not what was saved"):
        bench.unpack(stored, tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


def test_archive_that_was_damaged_before_it_was_stored(bench: Bench, tmp_path: Path) -> None:
    stored = tar_of(bench.folder, ("a", {"content": random.Random(1).randbytes(100_000)}))
    data = Path(stored["source"]).read_bytes()[:50_000]
    Path(stored["source"]).write_bytes(data)
    stored.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(Failure):
        bench.unpack(stored, tmp_path / "dest")


def test_folder_that_would_become_a_file(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "dest/a/b").mkdir(parents=True)
    stored = tar_of(bench.folder, ("a/b", {"content": b"x"}))
    bench.unpack(stored, tmp_path / "dest")
    (tmp_path / "dest/a/b").unlink()
    (tmp_path / "dest/a/b/c").mkdir(parents=True)
    with pytest.raises(Failure, match="a folder with something in it"):
        bench.unpack(stored, tmp_path / "dest")


def test_link_that_leaves_is_refused_when_saving(bench: Bench, tmp_path: Path) -> None:
    """The task that saves can still be mended; the one that restores could only fail."""
    source = tmp_path / "source"
    (source / "bin").mkdir(parents=True)
    (source / "bin" / "python").symlink_to("/usr/bin/python3")
    with pytest.raises(Failure, match="bin/python is a link that leaves"):
        bench.pack(source)
    (source / "bin" / "python").unlink()
    (source / "bin" / "inside").symlink_to(source / "x")
    bench.unpack(bench.pack(source, dest="a/b"), tmp_path / "dest")
    assert os.readlink(tmp_path / "dest/a/b/bin/inside") == "../x"


# --- as steps of a task -----------------------------------------------------------------------------


def saved(stage: Stage, *contents: Content, command: str) -> list[StoredArchive]:
    steps = [RunStep(command=command), SaveToWorkspaceStep(contents=list(contents))]
    target = FolderTarget(folder=str(stage.folder / "archives"))
    assert stage.play(*steps, archives=target) == 0, stage.log(1)
    assert [path.name for path in (stage.folder / "archives").iterdir() if path.name.startswith(".")] == []
    return [
        StoredArchive(
            task="earlier",
            step=record.step,
            file=record.file,
            source=str(stage.folder / "archives" / record.file),
            size=record.size,
            sha256=record.sha256,
        )
        for record in stage.manifest.archives
    ]


def test_workspace_of_two_layers(stage: Stage) -> None:
    command = "mkdir -p out/sub ~/other; echo 1 >out/a; echo 1 >out/b; echo 1 >out/sub/c.txt; echo o >~/other/o"
    contents = [
        Content(source_dir="out", dest_dir="/bin/", paths=["**"]),
        Content(source_dir="~/other", paths=["*"]),
    ]
    first = saved(stage, *contents, command=command)
    facts = json.loads((stage.folder / "archives/1.json").read_text())
    assert facts == {
        "step": 1,
        "file": first[0].file,
        "size": first[0].size,
        "sha256": first[0].sha256,
        "files": 6,
        "checked": False,
    }
    second_stage = Stage(stage.folder / "second", stage.shell, stage.python)
    second = saved(second_stage, Content(paths=["**"]), command="mkdir bin; echo 2 >bin/b; rm -f nothing")
    third = Stage(stage.folder / "third", stage.shell, stage.python)
    steps = [RestoreWorkspaceStep(), RunStep(command="cat bin/a bin/b bin/sub/c.txt o")]
    assert third.play(*steps, restore=first + second) == 0
    assert third.log(1) == b"1\n2\n1\no\n"
    assert b"restored 6 entries of earlier, step 1" in third.log(0)


def test_no_paths_save_nothing(stage: Stage) -> None:
    assert [stored.step for stored in saved(stage, Content(), command="echo >a")] == [1]
    assert stage.manifest.archives[0].files == 0
    assert b"nothing matches" in stage.log(1)


def test_missing_source_fails_the_step_and_names_it(stage: Stage) -> None:
    step = SaveToWorkspaceStep(contents=[Content(source_dir="no/such", paths=["**"])])
    archives = FolderTarget(folder=str(stage.folder / "archives"))
    assert stage.play(step, RunStep(command="echo"), archives=archives) == 1
    assert b"the source_dir 'no/such'" in stage.log(0)
    assert stage.manifest.archives == []
    assert stage.receipt.steps == {0: 1}


def test_archive_store_that_cannot_be_written(stage: Stage) -> None:
    (stage.folder / "archives").write_text("")
    step = SaveToWorkspaceStep(contents=ALL)
    archives = FolderTarget(folder=str(stage.folder / "archives"))
    assert stage.play(RunStep(command="echo >a"), step, archives=archives) == 1
    assert b"in the way in the store" in stage.log(1)


def test_restore_of_a_damaged_archive_fails_the_step(stage: Stage) -> None:
    stored = saved(stage, *ALL, command="echo 1 >a")[0]
    other = Stage(stage.folder / "other", stage.shell, stage.python)
    damaged = stored.model_copy(update={"sha256": "0" * 64})
    assert other.play(RestoreWorkspaceStep(), restore=[damaged]) == 1
    assert b"is not what was saved" in other.log(0)
    assert list(other.cwd.iterdir()) == []


def test_oldest_python_packs_and_unpacks(old_stage: Stage) -> None:
    stored = saved(old_stage, *ALL, command="mkdir d; echo 1 >d/a; ln -s d l")
    other = Stage(old_stage.folder / "other", old_stage.shell, old_stage.python)
    assert other.play(RestoreWorkspaceStep(dest_dir="x"), RunStep(command="cat x/l/a"), restore=stored) == 0
    assert other.log(1) == b"1\n"


def test_unpacker_gives_files_to_the_user_of_main(bench: Bench, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    bench.agent.owner = (12345, 12346)
    stored = tar_of(bench.folder, ("d/f", {"content": b"x"}), ("l", link("d")))
    bench.unpack(stored, tmp_path / "dest")
    for name in ("d", "d/f", "l"):
        found = (tmp_path / "dest" / name).lstat()
        assert (found.st_uid, found.st_gid) == (12345, 12346)


def test_unpacker_is_closed(bench: Bench, tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    with Unpacker(str(tmp_path / "dest"), bench.work):
        pass
    assert len(os.listdir("/dev/fd")) == before


def test_a_link_that_leads_out_of_what_main_sees_is_not_followed(bench: Bench, tmp_path: Path) -> None:
    """In a pod the agent would find its own container behind it, programs that it runs as root among them."""
    shared, outside = tmp_path / "shared", tmp_path / "outside"
    shared.mkdir()
    outside.mkdir()
    (shared / "out").symlink_to(outside)
    bench.agent.common, bench.agent.cwd = [str(shared)], str(shared)
    assert bench.work.path("in/here") == str(shared / "in" / "here")
    for folder in ("out", "out/below", "../outside", str(outside)):
        with pytest.raises(Failure, match="does not share with main"):
            bench.work.path(folder)
