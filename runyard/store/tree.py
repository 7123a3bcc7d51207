"""Objects as files of one folder: the file calls of the folder stores, all of them blocking.

Two choices carry it. A file is written whole in ``tmp`` and then renamed or linked to its place, so no reader
ever sees half of one, and of several writers that ask for "only if absent" the file system picks one. And every
path is walked part by part from an open folder, never following a symbolic link: what others put into the tree
cannot lead out of it. Both cost a few microseconds a part, which a check of the resolved path beforehand would
save at the price of a race. Locks were turned down: they would have to be taken by other programs too, and be
given up by dead ones.

A folder that got empty is removed at once, and whoever wants to write into it meanwhile makes it anew; so a
writer that loses that race begins again from the top.

Other programs that write into a folder of ours (the agent, see `ObjectStore.target`) put their unfinished files
beside the finished ones, under names that begin with `.tmp-`. Those are no objects: they are not listed.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from runyard.errors import (
    Conflict,
    Corrupt,
    InvalidRequest,
    NotFound,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from runyard.store.base import ObjectInfo
from runyard.store.deleting import Way, delete_files
from runyard.store.listing import FOLDER_FLAGS, NO_FOLDER, Names, walk
from runyard.store.unfinished import NO_LINKS, STALE_S, Temporary, is_stale, link

_ROUNDS = 1000
_ALONE, _SYNCS = 4, 16
"""So few empty objects are made and synced one after the other; folders of more are synced so many at a time."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

T = TypeVar("T")


class Tree:
    """The files of a store below ``folder``: objects in ``data``, unfinished ones in ``tmp``.

    With ``durable`` an object is on the disk when its write returns, and survives a loss of power; without, it
    survives the end of any process but perhaps not that. A delete is never waited for: one that a loss of power
    undoes is done again by whoever cleans up.
    """

    def __init__(self, folder: Path, names: Names, *, durable: bool) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._tmp = folder / "tmp"
        self._names = names
        self._durable = durable

    def make(self) -> None:
        """Make the folders where missing; remove what killed writers left more than a day ago."""
        with self.errors("making the folder"):
            self.data.mkdir(parents=True, exist_ok=True)
            self._tmp.mkdir(exist_ok=True)
            with suppress(OSError):
                self.discard_unfinished(STALE_S)

    def discard_unfinished(self, older_than_s: float) -> int:
        """Remove unfinished objects that nobody has written to for so long; their number."""
        removed = 0
        with os.scandir(self._tmp) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # it was finished meanwhile
                    if is_stale(entry, older_than_s):
                        os.unlink(entry.path)
                        removed += 1
        return removed

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Errors of the system as ours, with what was being done and where."""
        try:
            yield
        except OSError as error:
            raise self._translated(error, doing) from error

    def begin(self) -> Temporary:
        """A new unfinished object."""
        try:
            return Temporary(self._tmp)
        except FileNotFoundError as error:
            raise self._gone() from error

    def publish(self, temporary: Temporary, key: str, *, if_absent: bool) -> ObjectInfo:
        """Give a written file its key. Raises Conflict, and what `errors` makes of the system's errors."""
        *folders, name = self._names.parts(key)
        found = temporary.end(durable=self._durable)
        for _ in range(_ROUNDS):
            with suppress(FileNotFoundError):  # a folder on the way was pruned meanwhile
                fd = self._descend(folders, key, make=True)
                try:
                    if self._place(temporary, fd, name, key, if_absent=if_absent):
                        return _info(key, found)
                finally:
                    os.close(fd)
            if not os.path.exists(temporary.path):
                raise self._gone()
        raise StoreUnavailable(f"the folder of `{key}` is removed again and again by somebody else")

    def write(self, key: str, data: bytes, *, if_absent: bool) -> ObjectInfo:
        """A small object in one go."""
        if if_absent:
            self.refuse(key)
        if not data:
            (made,) = self.touch([key])
            if isinstance(made, Exception):
                raise made
            if made is not None:
                return made
        temporary = self.begin()
        try:
            temporary.write(data)
            return self.publish(temporary, key, if_absent=if_absent)
        finally:
            temporary.discard()

    def touch(self, keys: Sequence[str]) -> list[ObjectInfo | Exception | None]:
        """New empty objects. For each what was made, None where something may be there already, or the error.

        All are made before the first folder is synced: that brings most file systems to write down all of them.
        Many are names of one empty file, since no object is ever written into: a name more costs ext4 a thirtieth
        of a new file.
        """
        if len(keys) <= _ALONE:
            return self._touch(keys, None)
        empty = self.begin()
        try:
            return self._touch(keys, empty)
        finally:
            empty.discard()

    def _touch(self, keys: Sequence[str], empty: Temporary | None) -> list[ObjectInfo | Exception | None]:
        made: list[ObjectInfo | Exception | None] = []
        folders: list[int] = []
        if empty is not None:
            empty.end(durable=self._durable)
        for key in keys:
            folder = -1
            try:
                created = self._create(key, empty)
                made.append(None if created is None else _info(key, created[0]))
                folder = -1 if created is None else created[1]
            except Exception as error:
                made.append(error)
            folders.append(folder)
        synced = {folder: error for folder, error in _sync(folders) if error} if self._durable else {}
        for at, folder in enumerate(folders):
            if folder >= 0:
                made[at] = synced.get(folder, made[at])
                os.close(folder)
        return made

    def open(self, key: str) -> tuple[int, int]:
        """A descriptor to read from, which the caller closes, and the size in bytes. Raises NotFound."""
        file = self._lookup(key, lambda name, fd: os.open(name, _READ_FLAGS, dir_fd=fd))
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            os.close(file)
            raise _missing(key)
        return file, found.st_size

    def stat(self, key: str) -> ObjectInfo:
        """Raises NotFound."""
        found = self._lookup(key, lambda name, fd: os.stat(name, dir_fd=fd, follow_symlinks=False))
        if not stat.S_ISREG(found.st_mode):
            raise _missing(key)
        return _info(key, found)

    def stat_many(self, keys: Sequence[str]) -> dict[str, ObjectInfo]:
        """Those that are there. Each folder is opened once for all that is looked for in it."""
        found: dict[str, ObjectInfo] = {}
        root = self._root()
        way = Way(root, self._names)
        try:
            for (*folders, name), key in sorted((self._names.parts(key), key) for key in keys):
                if way.go(folders):
                    with suppress(FileNotFoundError):
                        facts = os.stat(name, dir_fd=way.folder, follow_symlinks=False)
                        if stat.S_ISREG(facts.st_mode):
                            found[key] = _info(key, facts)
        finally:
            way.close()
            os.close(root)
        return found

    def refuse(self, key: str) -> None:
        """Raises Conflict when the object is there: what would be written in vain need not be."""
        with suppress(NotFound):
            self.stat(key)
            raise _taken(key)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects, and every folder that this leaves empty."""
        root = self._root()
        try:
            delete_files(root, [self._names.parts(key) for key in keys], self._names)
        finally:
            os.close(root)

    def has_folder(self, prefix: str) -> bool:
        """Whether there is a folder in which objects with this prefix would be."""
        start = self._names.start(prefix)
        if start is None:
            return False
        try:
            os.close(self._descend(start[0], prefix, make=False))
        except (FileNotFoundError, Conflict):
            return False
        return True

    def walk(self, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        """The objects with this prefix after that key, in the order of their keys' bytes."""
        start = self._names.start(prefix)
        os.close(self._root())
        if start is None:
            return
        folders, base = start
        try:
            fd = self._descend(folders, prefix, make=False)
        except (FileNotFoundError, Conflict):
            return
        for key, found in walk(fd, self._names, base=base, prefix=prefix, start_after=start_after):
            yield _info(key, found)

    # paths

    def _root(self) -> int:
        try:
            return os.open(self.data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._gone() from error

    def _descend(self, folders: list[bytes], key: str, *, make: bool) -> int:
        """The lowest of ``folders``, open. Raises FileNotFoundError; Conflict where one is something else."""
        fd = self._root()
        try:
            for name in folders:
                below = self._enter(fd, name, make=make)
                os.close(fd)
                fd = below
        except OSError as error:
            os.close(fd)
            if error.errno in NO_FOLDER:
                shown = name.decode()
                raise Conflict(
                    f"`{key}` cannot be written: its part `{shown}` is an object (or a symbolic link, "
                    "which is not followed), and a folder cannot have the same name"
                ) from error
            raise
        return fd

    def _enter(self, fd: int, name: bytes, *, make: bool) -> int:
        try:
            return os.open(name, FOLDER_FLAGS, dir_fd=fd)
        except FileNotFoundError:
            if not make:
                raise
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=fd)
            if self._durable:
                os.fsync(fd)
        return os.open(name, FOLDER_FLAGS, dir_fd=fd)

    def _lookup(self, key: str, look: Callable[[bytes, int], T]) -> T:
        """What ``look`` finds under the object's name in its open folder; NotFound where either is not there.

        No context manager: one that makes another error of what it is given leaves a cycle of frames, which
        holds all that its callers have until the next full garbage collection.
        """
        *folders, name = self._names.parts(key)
        try:
            fd = self._descend(folders, key, make=False)
        except (FileNotFoundError, Conflict) as error:
            raise _missing(key) from error
        try:
            return look(name, fd)
        except OSError as error:
            if error.errno == errno.ENOENT or error.errno in NO_FOLDER:
                raise _missing(key) from error
            raise
        finally:
            os.close(fd)

    # writing

    def _create(self, key: str, empty: Temporary | None) -> tuple[os.stat_result, int] | None:
        """Make an empty object where there is none: it is whole at once. Its facts, and its folder, open."""
        *folders, name = self._names.parts(key)
        with suppress(FileExistsError, FileNotFoundError):
            fd = self._descend(folders, key, make=True)
            try:
                return _make_empty(name, fd, empty), fd
            except BaseException:
                os.close(fd)
                raise
        return None

    def _place(self, temporary: Temporary, fd: int, name: bytes, key: str, *, if_absent: bool) -> bool:
        """Move the file to its name; False = an empty folder had it and is gone now, so try again."""
        try:
            if if_absent:
                link(temporary.path, name, fd)
            else:
                os.replace(temporary.path, name, dst_dir_fd=fd)
        except (FileExistsError, IsADirectoryError) as error:
            with suppress(FileNotFoundError):  # gone meanwhile
                if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    raise _taken(key) from error
                _remove_empty(name, fd, key)
            return False
        if self._durable:
            os.fsync(fd)
        return True

    # errors

    def _gone(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"the store's folder {self.folder} is not there any more: removed, or its disk is not mounted"
        )

    def _translated(self, error: OSError, doing: str) -> StoreError | InvalidRequest:
        where = f"{doing} in the store's folder {self.folder}: {error.strerror or error}"
        if error.errno in _FULL:
            return StoreFull(f"no room left when {where}")
        if error.errno in _DENIED:
            return StoreDenied(f"permission denied when {where}")
        if error.errno == errno.ENAMETOOLONG:
            return InvalidRequest(f"a name is too long when {where}")
        if error.errno == errno.EXDEV:
            return StoreError(f"`data` and `tmp` are on different file systems, when {where}")
        return StoreUnavailable(f"failed when {where}")


def check_size(key: str, size: int | None, found: int) -> None:
    """Raises Corrupt where a stream brought another number of bytes than was announced."""
    if size is not None and size != found:
        raise Corrupt(f"`{key}` was announced with {size} bytes and came with {found}; it was not written")


def _sync(folders: Sequence[int]) -> Iterator[tuple[int, OSError | None]]:
    """Sync open folders (not -1), and say what became of each.

    In threads, although this is one: each sync has the disk flush its cache, also where the first one brought all
    to it, and those that come at the same time share a flush. 256 folders take a quarter of the time so.
    """

    def sync(folder: int) -> tuple[int, OSError | None]:
        try:
            os.fsync(folder)
        except OSError as error:
            return folder, error
        return folder, None

    wanted = [folder for folder in folders if folder >= 0]
    if len(wanted) <= _ALONE:
        yield from map(sync, wanted)
        return
    shares = [wanted[at::_SYNCS] for at in range(min(_SYNCS, len(wanted)))]
    with ThreadPoolExecutor(len(shares), thread_name_prefix="sync") as threads:
        for synced in threads.map(lambda share: [*map(sync, share)], shares):
            yield from synced


def _make_empty(name: bytes, fd: int, empty: Temporary | None) -> os.stat_result:
    """A new empty file: another name of ``empty``, or one of its own. Raises FileExistsError."""
    if empty is not None:
        try:
            os.link(empty.path, name, dst_dir_fd=fd)
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (*NO_LINKS, errno.EMLINK):
                raise
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(name, flags, 0o666, dir_fd=fd)
    try:
        return os.fstat(file)
    finally:
        os.close(file)


def _remove_empty(name: bytes, fd: int, key: str) -> None:
    try:
        os.rmdir(name, dir_fd=fd)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise Conflict(
                f"`{key}` cannot be written: there are objects below `{key}/`, and an object cannot have "
                "the name of a folder"
            ) from error
        raise


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key=key, size=found.st_size, modified_at=datetime.fromtimestamp(found.st_mtime, UTC))


def _missing(key: str) -> NotFound:
    return NotFound(f"the store has no object `{key}`")


def _taken(key: str) -> Conflict:
    return Conflict(f"`{key}` is already there, and was to be written only if absent")
