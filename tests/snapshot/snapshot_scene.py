"""A checkout, its snapshot, and what a task makes of that: by the real agent, in a folder of its own."""

import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from agent.agent_stage import SHELLS, Stage

from runyard.records.snapshots import locate_snapshot
from runyard.snapshot.take import Taken, take_snapshot
from runyard.spec.plan import CloneStep, Source
from runyard.store.posix import PosixStore

RUN = "run-1"
_WHO = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def git(folder: Path, *words: str, code: int | None = 0) -> str:
    """What git prints, without the settings of whoever runs the tests."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        **_WHO,
    }
    command = ["git", "-c", "protocol.file.allow=always", "-C", str(folder), *words]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert code is None or done.returncode == code, done.stderr.decode(errors="replace")
    return done.stdout.decode(errors="surrogateescape").removesuffix("\n")


def init(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    if files:
        commit(folder, **files)
    return folder


def commit(folder: Path, **files: str) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", f"with {sorted(files)}")
    return git(folder, "rev-parse", "HEAD")


def looks(folder: Path) -> dict[bytes, tuple[object, ...]]:
    """All in a folder but its top `.git`: bytes, modes, times, targets."""
    found: dict[bytes, tuple[object, ...]] = {}
    top = os.fsencode(folder)
    for place, folders, names in os.walk(top):
        if place == top and b".git" in folders:
            folders.remove(b".git")
        for name in [*names, *(each for each in folders if os.path.islink(os.path.join(place, each)))]:
            path = os.path.join(place, name)
            facts = os.lstat(path)
            mode = stat.S_IMODE(facts.st_mode)
            if stat.S_ISLNK(facts.st_mode):
                found[os.path.relpath(path, top)] = ("link", os.readlink(path))
            elif stat.S_ISREG(facts.st_mode):
                with open(path, "rb") as file:
                    found[os.path.relpath(path, top)] = ("file", file.read(), mode, facts.st_mtime_ns)
            else:
                found[os.path.relpath(path, top)] = ("other", stat.S_IFMT(facts.st_mode))
    return found


def untouched(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Everything in a folder, with its `.git`, as far as a look at it must not change it."""
    found = {}
    for path in folder.rglob("*"):
        facts = path.lstat()
        name = str(path.relative_to(folder))
        if not (name == ".git" or name.startswith(".git/runyard") or name == ".git/config"):
            found[name] = (facts.st_mtime_ns, facts.st_mode, facts.st_size)
    return found


def status(folder: Path) -> list[str]:
    """Without the line that compares with a branch of a remote, of which the copy knows nothing."""
    lines = git(folder, "status", "--porcelain=v2", "-z", "--branch", "--untracked-files=all").split("\0")
    return [line for line in lines if not line.startswith(("# branch.upstream", "# branch.ab"))]


@dataclass
class Scene:
    """A store, and tasks that clone from it."""

    folder: Path
    store: PosixStore
    stages: int = 0

    async def take(self, checkout: Path, *, run_id: str = RUN, ignored: bool = False) -> Taken:
        return await take_snapshot(self.store, checkout, run_id=run_id, ignored=ignored)

    async def restore(
        self, taken: Taken, *, python: str = sys.executable, code: int = 0, path: str = os.environ["PATH"]
    ) -> tuple[Path, str]:
        """The folder in which a task finds the checkout, and the log of its `clone`."""
        self.stages += 1
        stage = Stage(self.folder / f"stage-{self.stages}", SHELLS[0], python)
        try:
            snapshot = await locate_snapshot(self.store, taken.snapshot, expires_s=60)
            source = Source(snapshot=taken.snapshot)
            secrets = {"PATH": path}  # of the agent only
            found = stage.play(CloneStep(), source=source, snapshot=snapshot, secrets=secrets)
            assert found == code, stage.log(0)
            return stage.cwd, stage.log(0).decode(errors="surrogateescape")
        finally:
            stage.end()
