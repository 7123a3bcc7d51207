"""A tree of files in the order of the keys that they stand for, lazily.

Sorting each folder's names as they are would not do: the key `a-b` comes before `a/b`, the folder `a` before the
file `a-b`. So what is sorted is what each name adds to the key (`Names.piece`). Of a folder with very many names
only a page is held at a time, at the price of reading its names again for the next one.
"""

import errno
import heapq
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import Protocol

PAGE = 20_000
"""So many names of one folder are held at a time."""

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NO_FOLDER = (errno.ENOTDIR, errno.ELOOP)
"""What the system says where a file or a symbolic link has the name of a folder."""


class Names(Protocol):
    """How keys become paths below the folder, one to one."""

    def parts(self, key: str) -> list[bytes]:
        """The folders and, last, the file of a key. Raises InvalidRequest for one that cannot be."""
        ...

    def piece(self, name: bytes, *, folder: bool) -> str | None:
        """What a name adds to the key; None where no key has such a name."""
        ...

    def start(self, prefix: str) -> tuple[list[bytes], str] | None:
        """The lowest folder that holds every key with this prefix, and what all keys in it begin with."""
        ...

    def is_unfinished(self, name: bytes) -> bool:
        """Whether other programs give this name to files that they have not finished."""
        ...


def walk(
    fd: int, names: Names, *, base: str, prefix: str, start_after: str
) -> Iterator[tuple[str, os.stat_result]]:
    """Keys and facts of all files below the open folder ``fd``, which is closed at the end.

    ``base`` is what all keys in it begin with. What vanishes during the walk is left out.
    """
    after = ("", False)
    try:
        while True:
            wanted = _names_in(fd, names, base, prefix, start_after)
            page = _smallest(each for each in wanted if each[:2] > after)
            for piece, is_folder, name in page:
                key = base + piece
                if not is_folder:
                    with suppress(FileNotFoundError):
                        yield key, os.stat(name, dir_fd=fd, follow_symlinks=False)
                elif (below := _enter(name, fd)) is not None:
                    yield from walk(below, names, base=key, prefix=prefix, start_after=start_after)
            if len(page) < PAGE:
                return
            after = page[-1][:2]
    finally:
        os.close(fd)


def _smallest(names: Iterator[tuple[str, bool, bytes]]) -> list[tuple[str, bool, bytes]]:
    """A page of them, in order. Of a folder with less than that, as nearly all are, sorting costs far less."""
    some = list(islice(names, PAGE))
    return sorted(some) if len(some) < PAGE else heapq.nsmallest(PAGE, chain(some, names))


def _enter(name: bytes, fd: int) -> int | None:
    try:
        return os.open(name, FOLDER_FLAGS, dir_fd=fd)
    except OSError as error:
        if error.errno == errno.ENOENT or error.errno in NO_FOLDER:
            return None
        raise


def _names_in(
    fd: int, names: Names, base: str, prefix: str, start_after: str
) -> Iterator[tuple[str, bool, bytes]]:
    """What of a folder may hold wanted keys."""
    with os.scandir(fd) as entries:
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            if not is_folder and not entry.is_file(follow_symlinks=False):
                continue
            name = os.fsencode(entry.name)
            piece = names.piece(name, folder=is_folder)
            if piece is not None and _is_wanted(base + piece, is_folder, prefix, start_after):
                yield piece, is_folder, name


def _is_wanted(begins: str, is_folder: bool, prefix: str, start_after: str) -> bool:
    if not begins.startswith(prefix):  # `Names.start` leads so deep that a folder's keys have it or have it not
        return False
    return begins > start_after or (is_folder and start_after.startswith(begins))
