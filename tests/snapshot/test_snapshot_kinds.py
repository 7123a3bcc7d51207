"""Checkouts that are not usual: each gives a snapshot, or a sentence that says why not."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from agent.agent_stage import old_python
from snapshot.snapshot_scene import RUN, Scene, commit, git, init, looks, status, untouched

from runyard.errors import InvalidRequest, NotFound, StoreUnavailable
from runyard.snapshot.repository import find_repository
from runyard.snapshot.take import take_snapshot
from runyard.store.posix import PosixStore


def make(kind: str, place: Path) -> Path:
    """A checkout of that kind, below ``place``."""
    base = init(place / "base", file="1\n")
    commit(base, file="2\n")
    git(base, "branch", "side/way", "HEAD~1")
    if kind == "detached":
        git(base, "checkout", "--quiet", "HEAD~1")
    elif kind in ("unborn", "empty"):
        base = init(place / "young")
        if kind == "unborn":
            (base / "staged").write_text("x")
            git(base, "add", "staged")
            (base / "new").write_text("y")
    elif kind == "shallow":
        git(place, "clone", "--quiet", "--depth=1", f"file://{base}", "shallow")
        base = place / "shallow"
        (base / "file").write_text("staged only here")
        git(base, "add", "file")
    elif kind == "worktree":
        git(base, "worktree", "add", "--quiet", str(place / "tree"), "side/way")
        base = place / "tree"
        (base / "new").write_text("y")
    elif kind == "packed":
        git(base, "tag", "--annotate", "--message", "x", "v1", "HEAD~1")
        git(base, "gc", "--quiet")
        git(base, "pack-refs", "--all")
    elif kind == "conflict":
        git(base, "checkout", "--quiet", "side/way")
        commit(base, file="other\n")
        git(base, "merge", "--quiet", "main", code=1)
    elif kind == "sparse":
        commit(base, **{"in/a": "1", "out/b": "1"})
        git(base, "sparse-checkout", "set", "in")
        (base / "in/a").write_text("2")
    return base


KINDS = ["detached", "unborn", "empty", "shallow", "worktree", "packed", "conflict", "sparse"]


@pytest.mark.parametrize("kind", KINDS)
async def test_kind(scene: Scene, tmp_path: Path, kind: str) -> None:
    checkout = make(kind, tmp_path / "made")
    before = untouched(checkout)
    copy, _ = await scene.restore(await scene.take(checkout))
    assert untouched(checkout) == before
    assert looks(copy) == looks(checkout) or kind == "worktree"
    assert status(copy) == status(checkout)
    for words in (
        ("symbolic-ref", "--quiet", "HEAD"),
        ("describe", "--always", "--dirty"),
        ("log", "--format=%H%s"),
    ):
        assert git(copy, *words, code=None) == git(checkout, *words, code=None)
    assert git(copy, "ls-files", "--stage", "-t") == git(checkout, "ls-files", "--stage", "-t")


async def test_worktree_is_the_same_repository(scene: Scene, tmp_path: Path) -> None:
    """Its uuid is that of its main checkout, whose packs it uses."""
    tree = make("worktree", tmp_path / "made")
    (tmp_path / "made/base/large").write_bytes(os.urandom(1 << 20))
    shutil.copy(tmp_path / "made/base/large", tree / "large")
    first = await scene.take(tmp_path / "made/base")
    second = await scene.take(tree, run_id="run-2")
    assert second.snapshot.repository == first.snapshot.repository
    assert second.sent < 100_000
    copy, _ = await scene.restore(second)
    assert (copy / "large").read_bytes() == (tree / "large").read_bytes()
    assert (copy / ".git").is_dir()


async def test_a_copy_is_the_same_repository(scene: Scene, tmp_path: Path) -> None:
    checkout = init(tmp_path / "one", file="1")
    (checkout / "large").write_bytes(os.urandom(1 << 20))
    first = await scene.take(checkout)
    shutil.copytree(checkout, tmp_path / "two", symlinks=True)
    second = await scene.take(tmp_path / "two", run_id="run-2")
    assert second.snapshot.repository == first.snapshot.repository
    assert second.sent < 100_000


async def test_submodules_and_nested_repositories(scene: Scene, tmp_path: Path) -> None:
    """Dirty ones, one that is not checked out, and a repository that is no submodule; without their `.git`."""
    inner = init(tmp_path / "inner", **{"file": "3", ".gitignore": "*.o"})
    outer = init(tmp_path / "outer")
    for name in ("inner", "absent"):
        git(outer, "submodule", "--quiet", "add", f"file://{inner}", name)
    commit(outer, readme="x")
    git(outer, "submodule", "--quiet", "deinit", "--force", "absent")
    (outer / "inner/new").write_text("in the submodule")
    (outer / "inner/file").write_text("changed")
    (outer / "inner/x.o").write_text("ignored")
    init(outer / "nested", deep="1")
    (outer / "nested/new").write_text("2")
    copy, _ = await scene.restore(await scene.take(outer))
    assert (copy / "inner/new").read_text() == "in the submodule"
    assert (copy / "inner/file").read_text() == "changed"
    assert (copy / "absent").is_dir()
    assert (copy / "nested/deep").read_text() == "1"
    assert (copy / "nested/new").read_text() == "2"
    assert not (copy / "inner/x.o").exists()
    assert not (copy / "inner/.git").exists()
    assert not (copy / "nested/.git").exists()


async def test_from_a_folder_within(scene: Scene, tmp_path: Path) -> None:
    checkout = init(tmp_path / "one", **{"deep/er/file": "1"})
    (tmp_path / "way").symlink_to(checkout / "deep")
    copy, _ = await scene.restore(await scene.take(tmp_path / "way/er"))
    assert (copy / "deep/er/file").read_text() == "1"


async def test_fifos_and_sockets_are_left_out(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = init(tmp_path / "one", file="1", tracked="1")
    (checkout / "tracked").unlink()
    os.mkfifo(checkout / "tracked")
    os.mkfifo(checkout / "fifo")
    monkeypatch.chdir(checkout)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as ear:
        ear.bind("socket")
        taken = await scene.take(checkout)
    copy, _ = await scene.restore(taken)
    assert [*looks(copy)] == [b"file"]
    assert taken.notes == ["tracked is left out: not a file, folder or link"]


async def test_variables_of_a_hook_do_not_lead_astray(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is started from a git hook inherits them."""
    checkout, other = init(tmp_path / "one", file="1"), init(tmp_path / "other", file="2")
    for name in ("GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.setenv(name, str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))
    copy, _ = await scene.restore(await scene.take(checkout))
    assert (copy / "file").read_text() == "1"


async def test_the_agent_runs_on_the_oldest_python(scene: Scene, tmp_path: Path) -> None:
    python = old_python()
    if python is None:
        pytest.skip("there is no Python 3.9 on this machine")
    checkout = init(tmp_path / "one", file="1")
    (checkout / "raw\n").write_text("2")
    copy, _ = await scene.restore(await scene.take(checkout), python=python)
    assert looks(copy) == looks(checkout)


async def test_an_agent_without_git(scene: Scene, tmp_path: Path) -> None:
    """The files are what a task needs most."""
    checkout = init(tmp_path / "one", file="1")
    (checkout / "staged").write_text("2")
    git(checkout, "add", "staged")
    copy, log = await scene.restore(await scene.take(checkout), path=str(tmp_path / "nothing"))
    assert looks(copy) == looks(checkout)
    assert "without an index: git is not installed" in log
    assert not (copy / ".git/runyard").exists()


# what is refused


async def test_no_repository(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with pytest.raises(InvalidRequest, match="is not in a git checkout") as caught:
        await scene.take(tmp_path / "plain")
    assert "git init" in caught.value.remedy
    with pytest.raises(NotFound, match="there is no folder"):
        await scene.take(tmp_path / "none")


@pytest.mark.parametrize("place", ["", "refs"])
async def test_bare(scene: Scene, tmp_path: Path, place: str) -> None:
    git(tmp_path, "init", "--quiet", "--bare", "bare.git")
    with pytest.raises(InvalidRequest, match="without a work tree"):
        await scene.take(tmp_path / "bare.git" / place)


async def test_the_git_folder_itself(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="without a work tree"):
        await scene.take(init(tmp_path / "one", file="1") / ".git")


UNREADABLE = """
import asyncio, os, pathlib, sys
from runyard.errors import Forbidden
from runyard.snapshot.take import take_snapshot
from runyard.store.posix import PosixStore

here, what = pathlib.Path(sys.argv[1]), sys.argv[2]
store = PosixStore(here / "store")
asyncio.run(take_snapshot(store, here / "other", run_id="r"))  # what is imported late is imported now
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
(here / "one" / what).chmod(0)
try:
    asyncio.run(take_snapshot(store, here / "one", run_id="r"))
except Forbidden as error:
    print(error.message, error.remedy)
"""


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_cannot_be_read(what: str) -> None:
    """By a user of its own: root, as which tests often run, may read everything."""
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        here.chmod(0o755)
        init(here / "other", file="1")
        checkout = init(here / "one", **{"file": "1", "folder/file": "1"})
        (checkout / "folder/new").touch()
        if os.geteuid() == 0:
            for path in [checkout, *checkout.rglob("*")]:
                os.chown(path, 65534, 65534, follow_symlinks=False)
        home = {"HOME": place, "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
        words = [sys.executable, "-c", UNREADABLE, place, what]
        done = subprocess.run(words, env=home, capture_output=True, text=True, timeout=60)
        (checkout / what).chmod(0o700)
    assert what in done.stdout, done.stderr
    assert "let git ignore it" in done.stdout


async def test_a_uuid_that_is_none(scene: Scene, tmp_path: Path) -> None:
    checkout = init(tmp_path / "one", file="1")
    git(checkout, "config", "runyard.repouuid", "../../x")
    with pytest.raises(InvalidRequest, match="is not a uuid"):
        await scene.take(checkout)


async def test_a_configuration_that_cannot_be_written(scene: Scene, tmp_path: Path) -> None:
    checkout = init(tmp_path / "one", file="1")
    (checkout / ".git/config.lock").touch()
    first, second = await scene.take(checkout), await scene.take(checkout, run_id="run-2")
    assert first.snapshot.repository == second.snapshot.repository
    assert "uuid cannot be kept" in first.notes[0]


def test_the_uuid_is_made_once(tmp_path: Path) -> None:
    repository = find_repository(init(tmp_path / "one", file="1"))
    made, kept = repository.uuid()
    assert kept
    assert repository.uuid() == (made, True)
    assert git(tmp_path / "one", "config", "--local", "runyard.repouuid") == made


async def test_a_store_that_is_away_is_an_error(tmp_path: Path) -> None:

    store = PosixStore(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(StoreUnavailable):
        await take_snapshot(store, init(tmp_path / "one", file="1"), run_id=RUN)
