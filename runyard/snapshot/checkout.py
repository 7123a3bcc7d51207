"""What a checkout holds: its files as they lie there, by what git says of them.

git lists what it tracks and what it neither tracks nor ignores; the file system says what of that is there. A
submodule that is checked out, or another repository within this one, is listed by itself, without its `.git`.
Folders are made by the files in them: git does not know empty ones, and neither do we, but for a submodule's.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from runyard.errors import Forbidden, GitFailed
from runyard.snapshot.repository import Repository, run_git

_LINK_MODE = b"160000"
_VERSION = attrgetter("st_mtime_ns", "st_ctime_ns", "st_size", "st_ino", "st_mode")


class Version(NamedTuple):
    """What tells one version of a file from another, as far as the system says it."""

    mtime_ns: int
    ctime_ns: int
    size: int
    inode: int
    mode: int

    @classmethod
    def of(cls, found: os.stat_result) -> "Version":
        return cls._make(_VERSION(found))


@dataclass
class Contents:
    """Paths are below the top of the checkout; ``files`` are the regular ones. ``notes`` say what is left out.

    ``index`` is the checkout's own, not of its submodules, as git lists it: `TAG MODE OID STAGE<tab>PATH`. With
    the tag S a file is not in the work tree (a sparse checkout), stages above 0 are a conflict.
    """

    files: dict[bytes, Version] = field(default_factory=dict)
    links: dict[bytes, bytes] = field(default_factory=dict)  # path and target
    folders: list[bytes] = field(default_factory=list)  # empty ones
    index: list[bytes] = field(default_factory=list)
    untracked: int = 0
    notes: list[str] = field(default_factory=list)


def list_checkout(repository: Repository, *, ignored: bool) -> Contents:
    """Everything, with ``ignored`` also what git ignores. Raises GitFailed, Forbidden (unreadable)."""
    return _Lister(os.fsencode(repository.top), ignored).read()


class _Lister:
    def __init__(self, top: bytes, ignored: bool) -> None:
        self._top = top
        self._ignored = ignored
        self._contents = Contents()
        self._folders: dict[bytes, bool] = {b"": True}

    def read(self) -> Contents:
        self._contents.index = self._list_below(b"")
        return self._contents

    def _list_below(self, prefix: bytes) -> list[bytes]:
        top = Path(os.fsdecode(self._top + b"/" + prefix))
        index = _ask(top, "ls-files", "-z", "-t", "--stage")
        others = _read_others(top, ignored=self._ignored)
        self._contents.untracked += len(others)
        inner = {path_of(line) for line in index if line.startswith(_LINK_MODE, 2)}
        inner |= {path for path in others if path.endswith(b"/")}
        for path in dict.fromkeys([*map(path_of, index), *others]):
            if path in inner:
                self._add_repository(prefix + path.rstrip(b"/"))
            else:
                self._add(prefix + path)
        return index

    def _add_repository(self, path: bytes) -> None:
        place = os.path.join(self._top, path)
        if not self._is_folder(path):
            self._add(path)
        elif os.path.lexists(os.path.join(place, b".git")):
            self._list_below(path + b"/")
        else:
            self._contents.folders.append(path)

    def _add(self, path: bytes) -> None:
        folder = path.rpartition(b"/")[0]
        if not (self._folders.get(folder) or self._is_folder(folder)):
            return  # deleted: a file or link is where its folder was
        place = self._top + b"/" + path
        try:
            found = os.lstat(place)
            if stat.S_ISREG(found.st_mode):
                self._contents.files[path] = Version.of(found)
            elif stat.S_ISLNK(found.st_mode):
                self._contents.links[path] = os.readlink(place)
            elif not stat.S_ISDIR(found.st_mode):
                self._contents.notes.append(f"{os.fsdecode(path)} is left out: not a file, folder or link")
        except FileNotFoundError:
            return  # deleted
        except OSError as error:
            raise unreadable(path, error) from error

    def _is_folder(self, path: bytes) -> bool:
        """Whether it is one, reached without a link."""
        known = self._folders.get(path)
        if known is None:
            try:
                known = stat.S_ISDIR(os.lstat(self._top + b"/" + path).st_mode)
            except OSError:
                known = False
            known = known and self._is_folder(path.rpartition(b"/")[0])
            self._folders[path] = known
        return known


def unreadable(path: bytes, error: OSError) -> Forbidden:
    return Forbidden(
        f"{os.fsdecode(path)} cannot be read: {error.strerror}",
        remedy="Make it readable, or let git ignore it (.gitignore, or .git/info/exclude for yourself only).",
    )


def find_change(top: bytes, files: Mapping[bytes, Version]) -> bytes | None:
    """A second look: the path of a file that is not any more what it was."""
    lstat = os.lstat
    for path, version in files.items():
        try:
            if _VERSION(lstat(top + b"/" + path)) != version:
                return path
        except OSError:
            return path
    return None


def path_of(line: bytes) -> bytes:
    """Of the index, or of a tree."""
    return line[line.index(b"\t") + 1 :]


def _read_others(top: Path, *, ignored: bool) -> list[bytes]:
    return _ask(top, "ls-files", "-z", "--others", *([] if ignored else ["--exclude-standard"]))


def _ask(top: Path, *words: str) -> list[bytes]:
    done = run_git(top, *words)
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode:
        raise GitFailed(f"git {words[0]} failed in {top}: {' '.join(said.split())[:500]}")
    if "could not open directory" in said:  # git goes on without it; we would call whole what is not
        raise Forbidden(
            f"git {words[0]}: {said.splitlines()[0][:500]}",
            remedy="Make the folder readable, or let git ignore it (.gitignore, or .git/info/exclude).",
        )
    return done.stdout.split(b"\0")[:-1]
