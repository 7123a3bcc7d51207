"""The git checkout around a file, as it is: what a direct run takes as its source."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from runyard.errors import NotFound
from runyard.spec.plan import Source


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """``changed`` files differ from the commit, or are new. ``folder`` is the top of the checkout."""

    source: Source
    folder: Path
    changed: int = 0

    @property
    def origin(self) -> str:
        """E.g. `main@3f2c1d9 + 2 changed files`."""
        where = self.source.branch or self.source.tag or self.folder.name
        commit = f"@{self.source.commit[:7]}" if self.source.commit else ""
        files = "1 changed file" if self.changed == 1 else f"{self.changed} changed files"
        return f"{where}{commit}" + (f" + {files}" if self.changed else "")


def find_checkout(folder: Path) -> Checkout:
    """The checkout that contains ``folder``; where there is none, the folder itself without a commit.

    Raises NotFound when there is no such folder.
    """
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}", remedy="--source takes the folder of a git checkout.")
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        place = folder.resolve()
        return Checkout(source=Source(url=str(place), local=True), folder=place)
    place = Path(top)
    branch = _git(place, "symbolic-ref", "--quiet", "--short", "HEAD") or ""
    tag = "" if branch else _git(place, "describe", "--exact-match", "--tags", "HEAD") or ""
    commit = _git(place, "rev-parse", "--verify", "--quiet", "HEAD") or ""
    changed = _git(place, "status", "--porcelain") or ""
    source = Source(url=str(place), local=True, branch=branch, tag=tag, commit=commit)
    return Checkout(source=source, folder=place, changed=len(changed.splitlines()))


def find_direct(folder: Path) -> Checkout:
    """The checkout around ``folder`` as a direct run takes it: only git checkouts, and by their snapshot.

    Raises NotFound, InvalidRequest (no checkout), GitFailed.
    """
    from runyard.snapshot.repository import find_repository

    repository = find_repository(folder)
    head = repository.head()
    return Checkout(source=Source(branch=head.branch, tag=head.tag, commit=head.commit), folder=repository.top)


def find_checkout_of(path: Path) -> Checkout:
    """The checkout that contains the run file, else the one that contains the current folder."""
    folder = path.absolute().parent
    here = find_checkout(folder if folder.is_dir() else Path.cwd())
    around = here if here.source.commit else find_checkout(Path.cwd())
    return around if around.source.commit else here


def _git(folder: Path, *words: str) -> str | None:
    """What git says, or None where it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
