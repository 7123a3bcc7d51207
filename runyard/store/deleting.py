"""Deleting files of a tree, and the folders that this leaves empty.

Many files are taken in the order of their folders, so that each folder is opened once, and removed once, when all
in it that was to go is gone. Nothing is waited for: what a loss of power undoes whoever cleans up does again.
"""

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from runyard.store.listing import FOLDER_FLAGS, NO_FOLDER, Names
from runyard.store.unfinished import is_stale


def delete_files(root: int, ways: Iterable[list[bytes]], names: Names) -> None:
    """Delete those of the files that are there. ``root`` is open, and stays so; each way is folders and a name."""
    way = Way(root, names)
    try:
        for *folders, name in sorted(ways):
            if way.go(folders):
                way.unlink(name)
        way.go_up(0)
    finally:
        way.close()


class Way:
    """The folders from the root down to where files are looked for or deleted, all of them open."""

    def __init__(self, root: int, names: Names) -> None:
        self._names = names
        self._folders: list[bytes] = []
        self._open = [root]
        self._changed = [False]

    @property
    def folder(self) -> int:
        """The lowest one."""
        return self._open[-1]

    def go(self, folders: list[bytes]) -> bool:
        """Go there by the shortest way; False where there is no such folder."""
        same = 0
        for here, there in zip(self._folders, folders, strict=False):
            if here != there:
                break
            same += 1
        self.go_up(same)
        try:
            for folder in folders[same:]:
                self._open.append(os.open(folder, FOLDER_FLAGS, dir_fd=self._open[-1]))
                self._folders.append(folder)
                self._changed.append(False)
        except OSError as error:
            if error.errno != errno.ENOENT and error.errno not in NO_FOLDER:
                raise
            return False
        return True

    def unlink(self, name: bytes) -> None:
        """A folder of this name is no object."""
        try:
            os.unlink(name, dir_fd=self._open[-1])
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):  # which of them it is for a folder is the system's choice
            if not stat.S_ISDIR(os.stat(name, dir_fd=self._open[-1], follow_symlinks=False).st_mode):
                raise
            return
        self._changed[-1] = True

    def go_up(self, depth: int) -> None:
        """Leave the folders below this depth, and remove those that are empty now."""
        while len(self._folders) > depth:
            if self._changed[-1] and self._remove():
                self._changed[-2] = True
            os.close(self._open.pop())
            self._folders.pop()
            self._changed.pop()

    def close(self) -> None:
        while len(self._open) > 1:
            os.close(self._open.pop())

    def _remove(self) -> bool:
        return self._remove_empty() or (self._drop_unfinished() and self._remove_empty())

    def _remove_empty(self) -> bool:
        """Whether the folder is gone."""
        try:
            os.rmdir(self._folders[-1], dir_fd=self._open[-2])
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def _drop_unfinished(self) -> bool:
        """Remove what a killed program left in the folder; whether that was all of it."""
        left = []
        if os.fstat(self._open[-1]).st_nlink > 2:  # folders are in it, where the file system counts them so
            return False
        with suppress(OSError), os.scandir(self._open[-1]) as entries:
            for entry in entries:
                if not self._names.is_unfinished(os.fsencode(entry.name)) or not is_stale(entry):
                    return False
                left.append(entry.name)
            for name in left:
                os.unlink(name, dir_fd=self._open[-1])
            return bool(left)
        return False
