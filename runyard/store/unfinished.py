"""Files that are being written, and those that a killed program never finished."""

import errno
import os
import secrets
import stat
import time
from contextlib import suppress
from pathlib import Path

from runyard.errors import StoreError

STALE_S = 24 * 3600
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Temporary:
    """A file being written. It becomes an object by `Tree.publish`, or is discarded."""

    def __init__(self, folder: Path) -> None:
        self.path = f"{folder}/{os.getpid()}-{secrets.token_hex(8)}"  # a Path costs as much as the system's call
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def write(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def end(self, *, durable: bool) -> os.stat_result:
        if durable:
            os.fsync(self._fd)
        return os.fstat(self._fd)

    def discard(self) -> None:
        """Close it, and remove it where it was not published."""
        os.close(self._fd)
        with suppress(OSError):
            os.unlink(self.path)


def is_stale(entry: os.DirEntry[str], older_than_s: float = STALE_S) -> bool:
    """Nobody has written to it for so long, a day by default."""
    found = entry.stat(follow_symlinks=False)
    return stat.S_ISREG(found.st_mode) and found.st_mtime < time.time() - older_than_s


def link(source: str, name: bytes, fd: int) -> None:
    try:
        os.link(source, name, dst_dir_fd=fd)
    except OSError as error:
        if error.errno in NO_LINKS:
            raise StoreError(
                f"the file system of {os.path.dirname(source)} has no hard links, "
                "which writing only if absent needs",
                remedy="Put the store's folder on a file system with hard links.",
            ) from error
        raise
