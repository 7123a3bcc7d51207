"""git, asked about a checkout. Only commands for programs, with output that no name of a file can upset."""

import os
import re
import secrets
import socket
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from runyard.errors import GitFailed, InvalidRequest, NotFound

_OTHERS = re.compile(
    r"GIT_(DIR|WORK_TREE|INDEX_FILE|OBJECT_DIRECTORY|ALTERNATE_OBJECT_DIRECTORIES|COMMON_DIR|NAMESPACE|PREFIX"
    r"|QUARANTINE_PATH|CEILING_DIRECTORIES)"
)
_UUID = re.compile(r"[0-9a-f-]{8,64}")
_KEY = "runyard.repouuid"


@dataclass(frozen=True, kw_only=True)
class Head:
    """What is checked out. A ``tag`` only where no branch is; no ``commit`` in a repository without one."""

    branch: str = ""
    tag: str = ""
    commit: str = ""


@dataclass(frozen=True, kw_only=True)
class Repository:
    """The checkout at ``top``. ``git`` is its own git folder, ``common`` the one that its worktrees share."""

    top: Path
    git: Path
    common: Path

    def head(self) -> Head:
        branch = self.find("symbolic-ref", "--quiet", "--short", "HEAD")
        commit = self.find("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        tag = "" if branch or not commit else self.find("describe", "--exact-match", "--tags", "HEAD")
        return Head(branch=branch, tag=tag, commit=commit)

    def uuid(self) -> tuple[str, bool]:
        """The repository's uuid, made at first use; False where it cannot be kept in its configuration.

        Raises InvalidRequest where somebody has set it to what is none.
        """
        found = self._get()
        for pause_s in (0.05, 0.2, 0):  # somebody else may have it locked for a moment
            if found:
                break
            # added, not set: of two who do so at once both then see both, and take the first
            if run_git(self.top, "config", "--local", "--add", _KEY, str(uuid.uuid4())).returncode:
                time.sleep(pause_s)
            found = self._get()
        if not found:
            return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{socket.gethostname()}:{self.common}")), False
        if not _UUID.fullmatch(found):
            raise InvalidRequest(
                f"{_KEY} in the configuration of {self.top} is not a uuid: {found[:80]!r}",
                remedy=f"git config --unset-all {_KEY}, and a new one is made.",
            )
        return found, True

    def _get(self) -> str:
        return self.find("config", "--get-all", _KEY).partition("\n")[0]

    def ask(self, *words: str, given: bytes | None = None) -> bytes:
        """What git prints. Raises GitFailed."""
        done = run_git(self.top, *words, given=given)
        if done.returncode:
            raise _failed(words, done)
        return done.stdout

    def find(self, *words: str) -> str:
        """One word that git prints, empty where it has none."""
        done = run_git(self.top, *words)
        return os.fsdecode(done.stdout.rstrip(b"\n")) if done.returncode == 0 else ""


def find_repository(folder: Path) -> Repository:
    """The checkout around ``folder``. Raises NotFound, InvalidRequest (no checkout), GitFailed."""
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}", remedy="--local takes the folder of a git checkout.")
    # words that it does not know git repeats: a line of our own ends each path, which may have several lines
    end = f"--end-{secrets.token_hex(8)}"
    asked = ("--show-toplevel", end, "--absolute-git-dir", end, "--git-common-dir", end)
    done = run_git(folder, "rev-parse", "--is-inside-work-tree", *asked)
    if done.stdout.startswith(b"false"):
        raise InvalidRequest(
            f"{folder.absolute()} is a git repository without a work tree: there is nothing to run",
            remedy="Name the folder of a checkout; `git worktree add` makes one of a bare repository.",
        )
    if done.returncode:
        if b"not a git repository" in done.stderr:
            raise InvalidRequest(
                f"{folder.absolute()} is not in a git checkout",
                remedy="Run `git init` there (no commit is needed), or name a folder of a checkout. "
                "What git ignores is left out of a direct run, which needs git to say what that is.",
            )
        raise _failed(("rev-parse",), done)
    found = done.stdout.removeprefix(b"true\n").split(f"\n{end}\n".encode())
    top, git, common = (folder / os.fsdecode(path) for path in found[:3])  # an absolute one stays itself
    return Repository(top=top, git=git, common=common.resolve())


def run_git(folder: Path, *words: str, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """git in ``folder``, which neither writes nor asks for anything, and runs no hook of the repository's."""
    try:
        return subprocess.run(_command(folder, words), env=_environment(), input=given, capture_output=True)
    except FileNotFoundError as error:
        raise _no_git() from error


def start_git(folder: Path, *words: str, given: IO[bytes]) -> subprocess.Popen[bytes]:
    """The same, with its output in a pipe."""
    try:
        return subprocess.Popen(
            _command(folder, words),
            env=_environment(),
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise _no_git() from error


def _command(folder: Path, words: tuple[str, ...]) -> list[str]:
    return ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-C", str(folder), *words]


def _no_git() -> GitFailed:
    return GitFailed("git is not installed here", remedy="Install git: it knows what belongs to a checkout.")


def _environment() -> dict[str, str]:
    """This process's, without another repository's variables: we may run in a hook."""
    kept = {name: value for name, value in os.environ.items() if not _OTHERS.fullmatch(name)}
    return {**kept, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}


def _failed(words: tuple[str, ...], done: subprocess.CompletedProcess[bytes]) -> GitFailed:
    said = " ".join(done.stderr.decode(errors="replace").split())[:500] or f"exit code {done.returncode}"
    return GitFailed(f"git {words[0]} failed: {said}")
