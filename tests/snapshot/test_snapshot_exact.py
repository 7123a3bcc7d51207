"""A snapshot is the checkout exactly as it is, taken without changing it, and a task finds it so."""

import os
from pathlib import Path

import pytest
from snapshot.snapshot_scene import Scene, commit, git, init, looks, status, untouched


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Changes of every kind."""
    folder = init(tmp_path / "checkout", first="1")
    git(folder, "tag", "v1")
    (folder / ".gitignore").write_text("*.o\nbuild/\n")
    names = ("changed", "staged", "both", "deleted", "removed", "renamed", "mode", "to-folder", "folder/in/it")
    commit(folder, **dict.fromkeys(names, "1"))
    (folder / "changed").write_text("2")
    (folder / "staged").write_text("2")
    git(folder, "add", "staged")
    (folder / "both").write_text("2")
    git(folder, "add", "both")
    (folder / "both").write_text("3")
    (folder / "deleted").unlink()
    git(folder, "rm", "--quiet", "removed")
    git(folder, "mv", "renamed", "moved")
    (folder / "mode").chmod(0o755)
    (folder / "to-folder").unlink()
    (folder / "to-folder").mkdir()
    (folder / "to-folder/inner").write_text("x")
    (folder / "folder/in/it").unlink()
    (folder / "folder/in").rmdir()
    (folder / "folder/in").symlink_to("/etc")  # now `folder/in/passwd` is none of ours
    (folder / "new folder/ünï").mkdir(parents=True)
    (folder / "new folder/ünï/file\n'\"\\").write_text("new")
    with open(os.path.join(os.fsencode(folder), b"raw \xff"), "w") as file:
        file.write("raw")
    (folder / "empty").touch()
    (folder / "private").write_text("only mine")
    (folder / "private").chmod(0o600)
    (folder / "link").symlink_to("first")
    (folder / "dangling").symlink_to("/no/such")
    (folder / "loop").symlink_to("loop")
    (folder / "up").symlink_to(".")
    (folder / "x.o").write_text("ignored")
    (folder / "build").mkdir()
    (folder / "build/out").write_text("ignored")
    (folder / "added").write_text("1")
    git(folder, "add", "added")
    (folder / "stashed").write_text("1")
    git(folder, "stash", "push", "--quiet", "--include-untracked", "--", "stashed")
    return folder


async def test_byte_for_byte(scene: Scene, checkout: Path) -> None:
    before, wanted = untouched(checkout), looks(checkout)
    taken = await scene.take(checkout)
    assert untouched(checkout) == before
    for path in (b"x.o", b"build/out"):
        del wanted[path]
    copy, log = await scene.restore(taken)
    assert looks(copy) == wanted
    assert status(copy) == status(checkout)
    assert git(copy, "diff") == git(checkout, "diff")
    assert git(copy, "diff", "--cached") == git(checkout, "diff", "--cached")
    assert f"; {taken.snapshot.changed} uncommitted changes; {taken.files} files" in log


async def test_with_what_is_ignored(scene: Scene, checkout: Path) -> None:
    copy, _ = await scene.restore(await scene.take(checkout, ignored=True))
    assert looks(copy) == looks(checkout)
