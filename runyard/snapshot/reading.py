"""The bytes of a file, of which nobody can say afterwards that they are of two versions."""

import os
from collections.abc import Iterator

from runyard.records.snapshots import CONTENT_BYTES
from runyard.snapshot.checkout import Version, unreadable


class Changed(Exception):
    """The file is not what it was when the checkout was listed."""

    def __init__(self, path: bytes) -> None:
        super().__init__(os.fsdecode(path))
        self.path = path


def read_contents(top: bytes, path: bytes, version: Version) -> Iterator[bytes]:
    """The file in pieces of `CONTENT_BYTES`. Raises Changed (then what came is worth nothing), Forbidden."""
    try:
        # not blocking: what was a file a moment ago may be a FIFO now
        fd = os.open(os.path.join(top, path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if isinstance(error, PermissionError):
            raise unreadable(path, error) from error
        raise Changed(path) from error
    try:
        if Version.of(os.fstat(fd)) != version:
            raise Changed(path)
        left = version.size
        while left:
            content = _read_whole(fd, min(left, CONTENT_BYTES))
            if not content:
                raise Changed(path)
            left -= len(content)
            yield content
        if Version.of(os.fstat(fd)) != version:
            raise Changed(path)
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        os.close(fd)


def _read_whole(fd: int, size: int) -> bytes:
    """As many bytes as asked for, fewer only at the end: a read may give less than there is."""
    content = os.read(fd, size)
    while content and len(content) < size and (more := os.read(fd, size - len(content))):
        content += more
    return content
