"""The companion of a task: all that goes in or out of it passes through here (see runyard.dialogue).

One file, standard library only, Python 3.9 and later: it runs in an image of its own, as ``python -I
agent.py``, or in a forked process that calls `main`. What takes long to import (``http.client``,
``subprocess``, ``tarfile``, …) is imported where it is used: most tasks need none of it, and every task waits
for the agent's first answer.

Three threads at most, each with its reason: the first reads requests and FIFOs and must never wait for the
network; the *uploader* writes what the first has read, behind a bounded queue, so that a slow store slows
the step and loses nothing; a *worker* does what main asked for (clone, archives, caches) while the first goes
on reading. asyncio would make one of them of three, but files, pipes and git would then need threads anyway,
and its import alone takes longer than most tasks' share of this program.

Exit codes: 0 = it has done what it could (the manifest says what), 2 = the assignment cannot be read,
3 = main never came.
"""

from __future__ import annotations

import binascii
import errno
import fcntl
import json
import os
import select
import signal
import stat
import sys
import threading
import time

TYPE_CHECKING = False  # typing itself takes longer to import than all of the above
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from hashlib import _Hash as Digest
    from http.client import HTTPConnection
    from typing import TypedDict

    class Target(TypedDict, total=False):
        kind: str
        folder: str
        url: str
        prefix: str
        fields: dict[str, str]

    class Content(TypedDict):
        source_dir: str
        dest_dir: str
        paths: list[str]

    class Step(TypedDict, total=False):
        type: str
        name: str
        depth: int | None
        recurse_submodules: bool
        contents: list[Content]
        dest_dir: str
        key: str
        keys: list[str]

    class Stored(TypedDict, total=False):
        task: str
        step: int
        key: str
        file: str
        source: str
        size: int
        sha256: str
        modified_at: str

    class Caches(TypedDict):
        read: Target | None
        known: list[Stored]
        write: Target | None

    class Source(TypedDict):
        url: str
        ref: str
        commit: str
        branch: str
        tag: str
        local: bool

    class Assignment(TypedDict):
        run_id: str
        task: str
        attempt: int
        steps: list[Step]
        logs: Target
        archives: Target | None
        restore: list[Stored]
        caches: Caches
        source: Source
        mask: list[str]
        log_bytes: int
        output_bytes: int
        start_s: float


SEGMENT_BYTES = 4 << 20
FIRST_FLUSH_S = 0.05  # the first line of a step is what people wait for
FLUSH_S = 0.5
QUEUED_SEGMENTS = 4
READ_BYTES = 1 << 20
PIPE_BYTES = 1 << 18  # asked of the system for each FIFO; Linux gives a user 64 MiB of them in all
TRIES_REFUSED = 4
STORE_TIMEOUT_S = 30
AFTERLIFE_S = 300  # how long it goes on trying to store when main is gone
STARTED_BEFORE, STORE_REFUSED, UNKNOWN_REQUEST, CANCELLED = 3, 4, 5, 143


class Failure(Exception):
    """A step of the agent's failed; the text says why, for the step's log."""


class StoreRefused(Exception):
    """The store will not take it, now or later; the text says why."""


class StoreAway(Exception):
    """The store may take it later; the text says what is wrong now."""


# --- where things are written -----------------------------------------------------------------------


def complain(text: str) -> None:
    """A line for whoever reads the agent's own log."""
    try:
        os.write(2, f"agent: {text}\n".encode("utf-8", "replace"))
    except OSError:
        return


def judge(error: OSError, where: str) -> StoreAway | StoreRefused:
    """What an error of the file system means for the store in it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreAway(f"no room left in the store ({where})")
    if error.errno == errno.EROFS:
        return StoreRefused(f"the store is read-only ({where})")
    if error.errno in (errno.EACCES, errno.EPERM):
        return StoreRefused(f"no permission to write to the store ({where})")
    if error.errno == errno.ENAMETOOLONG:
        return StoreRefused(f"a name is too long for the file system of the store ({where})")
    if error.errno in (errno.ENOTDIR, errno.EISDIR):
        return StoreRefused(f"a file is in the way in the store ({where})")
    return StoreAway(f"the store cannot be written to: {error.strerror} ({where})")


class Patience:
    """How long a write is tried: for ever while the store is away, a few times when it refuses.

    ``until`` is None as long as main lives; after its end a time on the monotonic clock.
    """

    def __init__(self) -> None:
        self.until: float | None = None

    def persist(self, write: Callable[[], bool]) -> bool:
        """The answer of ``write``, once it has one. Raises StoreRefused."""
        pause, refusals, told = 0.1, 0, 0.0
        while True:
            try:
                return write()
            except StoreRefused as error:
                refusals += 1
                if refusals == TRIES_REFUSED:
                    raise
                problem: Exception = error
            except StoreAway as error:
                problem = error
            now = time.monotonic()
            if self.until is not None and now > self.until:
                raise StoreRefused(str(problem))
            if now > told:
                complain(f"{problem}; trying again")
                told = now + 10
            time.sleep(pause * (0.5 + os.urandom(1)[0] / 512))  # many agents wait for one store
            pause = min(pause * 2, 5)


class Folder:
    """A folder of this machine as a store. Names are relative; a reader never sees half of an object.

    Only the manifest and archives are synced to the disk: they are what others rely on. A segment that a
    crash of the machine takes away is found out by the manifest's digest, and syncing each would cost a
    short task more than all the rest of it.
    """

    def __init__(self, folder: str, patience: Patience) -> None:
        self.folder = folder
        self.patience = patience

    def create(self, name: str, data: bytes) -> bool:
        """Write ``data`` if nothing of that name is there; whether it was so."""

        def write() -> bool:
            path = self._parent_of(name)
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                return False
            with open(fd, "wb") as file:
                file.write(data)
            return True

        return self._persist(name, write)

    def put(self, name: str, data: bytes, *, sync: bool = False) -> None:
        def write() -> bool:
            path = self._parent_of(name)
            temporary = self.temporary()
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                    if sync:
                        file.flush()
                        os.fsync(file.fileno())
                os.rename(temporary, path)
            except BaseException:
                remove(temporary)
                raise
            if sync:
                sync_folder(os.path.dirname(path))
            return True

        self._persist(name, write)

    def temporary(self) -> str:
        """A path for what is not whole yet: at the top, so that nobody who lists segments meets it."""
        return os.path.join(self.folder, f".tmp-{os.getpid()}-{binascii.hexlify(os.urandom(6)).decode()}")

    def _parent_of(self, name: str) -> str:
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def _persist(self, name: str, write: Callable[[], bool]) -> bool:
        def judged() -> bool:
            try:
                return write()
            except OSError as error:
                raise judge(error, os.path.join(self.folder, name)) from error

        return self.patience.persist(judged)


class Url:
    """One presigned POST for a prefix, as S3 has it. Names are relative to the prefix.

    The connection is kept between writes; one thread at a time uses it.
    """

    def __init__(self, target: Target, patience: Patience) -> None:
        from urllib.parse import urlsplit

        self.parts = urlsplit(target["url"])
        self.prefix, self.fields = target["prefix"], target["fields"]
        self.patience = patience
        self.connection: HTTPConnection | None = None

    def create(self, name: str, data: bytes) -> bool:
        """Write ``data`` if nothing of that name is there; whether it was so, as far as the store heeds the header.

        A store that does not heed it overwrites. Then the name of the pod, which only one pod can have, is all
        that keeps an attempt from being started twice.
        """
        return self.patience.persist(lambda: self._post(name, len(data), lambda: [data], absent=True))

    def put(self, name: str, data: bytes, *, sync: bool = False) -> None:
        self.patience.persist(lambda: self._post(name, len(data), lambda: [data]))

    def _post(self, name: str, size: int, content: Callable[[], Iterable[bytes]], *, absent: bool = False) -> bool:
        head, tail, edge = self._form(name)
        headers = {
            "Content-Type": f"multipart/form-data; boundary={edge}",
            "Content-Length": str(len(head) + size + len(tail)),
        }
        if absent:
            headers["If-None-Match"] = "*"

        def body() -> Iterator[bytes]:
            yield head
            yield from content()
            yield tail

        status, text = self._send(headers, body())
        if 200 <= status < 300:
            return True
        if absent and status in (409, 412):
            return False
        said = f"the store answers {status} {' '.join(text.split())[:300]}"
        if status >= 500 or status in (408, 429) or "RequestTimeout" in text:
            raise StoreAway(said)
        raise StoreRefused(said)

    def _send(self, headers: dict[str, str], body: Iterator[bytes]) -> tuple[int, str]:
        from http.client import HTTPConnection, HTTPException, HTTPSConnection

        try:
            if self.connection is None:
                kind = HTTPSConnection if self.parts.scheme == "https" else HTTPConnection
                self.connection = kind(self.parts.netloc, timeout=STORE_TIMEOUT_S)
            path = (self.parts.path or "/") + (f"?{self.parts.query}" if self.parts.query else "")
            self.connection.request("POST", path, body, headers)
            response = self.connection.getresponse()
            text = response.read(65536).decode("utf-8", "replace")
            if response.will_close or not response.isclosed():
                self._hang_up()
            return response.status, text
        except (OSError, HTTPException) as error:
            self._hang_up()
            raise StoreAway(f"the store at {self.parts.hostname} does not answer: {error!r}") from error

    def _hang_up(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def _form(self, name: str) -> tuple[bytes, bytes, str]:
        edge = f"runyard{binascii.hexlify(os.urandom(12)).decode()}"
        parts = [
            f'--{edge}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
            for key, value in {**self.fields, "key": self.prefix + name}.items()
        ]
        parts.append(f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="data"\r\n')
        parts.append("Content-Type: application/octet-stream\r\n\r\n")
        return "".join(parts).encode(), f"\r\n--{edge}--\r\n".encode(), edge


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return


def sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError:  # some file systems cannot
        pass
    finally:
        os.close(fd)


def open_target(target: Target, patience: Patience) -> Folder | Url:
    if target["kind"] == "folder":
        return Folder(target["folder"], patience)
    return Url(target, patience)


# --- secrets ----------------------------------------------------------------------------------------


def needles_of(value: str) -> set[bytes]:
    """All the spellings in which ``value`` is looked for: itself, its lines, base64, URL and JSON escapes."""
    found = {value, *(line.strip() for line in value.splitlines())}
    plain = {text for text in found if len(text) >= 4}
    needles = {text.encode("utf-8", "surrogateescape") for text in plain}
    for text in plain & {value, value.strip()}:
        needles |= _base64_of(text.encode("utf-8", "surrogateescape"))
        needles |= _escapes_of(text)
    return {needle for needle in needles if len(needle) >= 4}


def _base64_of(raw: bytes) -> set[bytes]:
    """What of the base64 of any text with ``raw`` in it depends on ``raw`` alone: one core for each alignment."""
    whole = binascii.b2a_base64(raw, newline=False)
    cores = {whole, *(whole[i : i + 76] for i in range(0, len(whole), 76))}  # `base64` breaks its lines there
    for before in range(3):
        encoded = binascii.b2a_base64(b"\0" * before + raw, newline=False)
        first = -(-before * 8 // 6)
        cores.add(encoded[first : (before + len(raw)) * 8 // 6])
    return cores | {core.replace(b"+", b"-").replace(b"/", b"_") for core in cores}


def _escapes_of(text: str) -> set[bytes]:
    from urllib.parse import quote, quote_plus

    raw = text.encode("utf-8", "surrogateescape")
    quoted = {quote(raw, safe=safe) for safe in ("", "/", "!'()*~")} | {quote_plus(raw)}
    spellings = quoted | {_lower_hex(each) for each in quoted}
    spellings |= {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    return {each.encode("utf-8", "surrogateescape") for each in spellings}


def _lower_hex(quoted: str) -> str:
    first, *rest = quoted.split("%")
    return "%".join([first, *(part[:2].lower() + part[2:] for part in rest)])


class Masker:
    """Replaces needles in a stream by ``***``, whatever its chunks: overlapping ones count as one place.

    `bytes.find` for each needle runs at gigabytes a second; one regular expression of all of them reaches 50 MB/s.
    """

    def __init__(self, needles: Iterable[bytes]) -> None:
        self.needles = sorted(set(needles))
        self.held = b""
        self.covered = 0  # so many bytes of ``held`` are of a place whose *** is already out

    def feed(self, data: bytes, *, last: bool = False) -> bytes:
        """What of the stream is certain now. With ``last`` nothing is held back."""
        if not self.needles:
            return data
        data = self.held + data
        places = self._places(data)
        cut = len(data) if last else self._certain(data)
        out, at = [], 0
        self.held, covered, self.covered = data[cut:], self.covered, 0
        for start, end in places:
            if start >= cut:
                break
            if start or not covered:
                out += [data[at:start], b"***"]
            at = end
            if end > cut:
                self.covered = end - cut
        out.append(data[at:cut])
        return b"".join(out)

    def _places(self, data: bytes) -> list[tuple[int, int]]:
        """Start and end of each place to be masked, in order, overlaps joined."""
        found = [(0, self.covered)] if self.covered else []
        for needle in self.needles:
            at = data.find(needle)
            while at >= 0:
                found.append((at, at + len(needle)))
                at = data.find(needle, at + 1)
        if len(found) < 2:
            return found
        found.sort()
        places = [found[0]]
        for start, end in found[1:]:
            if start < places[-1][1]:
                places[-1] = (places[-1][0], max(end, places[-1][1]))
            else:
                places.append((start, end))
        return places

    def _certain(self, data: bytes) -> int:
        """The start of the longest end of ``data`` that may be the beginning of a needle."""
        certain = len(data)
        for needle in self.needles:
            at = data.find(needle[:1], max(0, len(data) - len(needle) + 1), certain)
            while at >= 0 and not needle.startswith(data[at:]):
                at = data.find(needle[:1], at + 1, certain)
            if at >= 0:
                certain = at
        return certain


# --- logs -------------------------------------------------------------------------------------------


class Log:
    """The log of one step: from its FIFO, masked, in segments, to the uploader.

    What the uploader has stored is counted by it (``stored_…``, ``digest``): the record of a log says what is in
    the store, not what was meant to be.
    """

    def __init__(self, n: int, fd: int, masker: Masker, cap: int, uploader: Uploader) -> None:
        self.n, self.fd, self.cap = n, fd, cap
        self.masker, self.uploader = masker, uploader
        self.buffer: list[bytes] = []
        self.size = 0  # of the buffer
        self.offset = 0  # of the buffer in the log
        self.due: float | None = None
        self.truncated = ""
        self.exit_code: int | None = None
        self.started_at, self.ended_at = utc_now(), ""
        self.tail = b""  # of what was flushed
        self.stored_bytes = self.stored_lines = 0
        self.stored_tail = b""
        self.digest: Digest | None = None

    def take(self, at_most: int = READ_BYTES) -> int:
        """Read what is there; the number of bytes, 0 when there is nothing now or nothing any more."""
        if self.fd < 0:
            return 0
        try:
            data = os.read(self.fd, at_most)
        except BlockingIOError:
            return 0
        if data:
            self.add(data)
        else:
            self.close()
        return len(data)

    def drain(self) -> None:
        """Take what the FIFO holds at this moment, and no more: something may write to it without end."""
        left = PIPE_BYTES + READ_BYTES
        while left > 0:
            taken = self.take()
            if not taken:
                break
            left -= taken

    def add(self, data: bytes, *, last: bool = False) -> None:
        if self.truncated:
            return
        data = self.masker.feed(data, last=last)
        if self.offset + self.size + len(data) > self.cap:
            data = data[: self.cap - self.offset - self.size]
            self._keep(data)
            marker = f"[runyard: the log ends here, at its cap of {self.cap} bytes]\n"
            self._keep(("" if self._at_line_start() else "\n").encode() + marker.encode())
            self.truncated = f"cap of {self.cap} bytes"
        else:
            self._keep(data)
        if self.size >= SEGMENT_BYTES:
            self.flush()

    def _at_line_start(self) -> bool:
        last = self.buffer[-1] if self.buffer else self.tail
        return not last or last.endswith(b"\n")

    def _keep(self, data: bytes) -> None:
        if not data:
            return
        self.buffer.append(data)
        self.size += len(data)
        if self.due is None:
            self.due = time.monotonic() + (FLUSH_S if self.offset else FIRST_FLUSH_S)

    def flush(self) -> None:
        if self.buffer:
            data = b"".join(self.buffer)
            self.uploader.add(self, self.offset, data)
            self.tail = data[-4096:]
            self.offset += len(data)
        self.buffer, self.size, self.due = [], 0, None

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.add(b"", last=True)
            self.flush()

    def stored(self, target: Folder | Url, offset: int, data: bytes) -> None:
        """Store a segment; in the uploader's thread, which hashes while the first thread reads on."""
        if offset != self.stored_bytes:
            return  # what came before was refused: a log has no hole in it, only an end
        try:
            target.put(f"segments/{self.n}/{offset:016d}", data)
        except StoreRefused as error:
            self.truncated = str(error)
            return
        if self.digest is None:
            self.digest = sha256()
        self.digest.update(data)
        self.stored_bytes += len(data)
        self.stored_lines += data.count(b"\n")
        self.stored_tail = data[-4096:]

    def record(self) -> dict[str, object]:
        return {
            "n": self.n,
            "exit_code": self.exit_code,
            "bytes": self.stored_bytes,
            "lines": self.stored_lines + (1 if self.stored_tail and not self.stored_tail.endswith(b"\n") else 0),
            "sha256": (self.digest or sha256()).hexdigest(),
            "truncated": self.truncated,
            "started_at": self.started_at or None,
            "ended_at": self.ended_at or None,
            "last_line": last_line(self.stored_tail),
        }


def sha256() -> Digest:
    import hashlib  # OpenSSL comes with it: 6 ms, which no step waits for

    return hashlib.sha256()


def last_line(tail: bytes) -> str:
    """The last line with something on it, at most 200 characters, without escape sequences."""
    text = tail.decode("utf-8", "replace")
    if "\x1b" in text:
        import re

        text = re.sub(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])", "", text)
    for line in reversed(text.replace("\r", "\n").split("\n")):
        shown = "".join(c if c.isprintable() else " " for c in line).strip()
        if shown:
            return shown[:200]
    return ""


def utc_now() -> str:
    ns = time.time_ns()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ns // 10**9)) + f".{ns // 1000 % 10**6:06d}Z"


class Uploader:
    """Stores segments in their order, in a thread of its own, a few ahead at most."""

    def __init__(self, target: Folder | Url, watch: Callable[[], None]) -> None:
        self.target = target
        self.watch = watch  # called now and then by who waits here: he sees nothing else meanwhile
        self.waiting: list[tuple[Log, int, bytes]] = []  # the first is being stored
        self.changed = threading.Condition()
        self.running = False

    def add(self, log: Log, offset: int, data: bytes) -> None:
        """Waits while as many as may be are on their way: the back pressure on the step."""
        if not self.running:
            self.running = True
            threading.Thread(target=self._run, name="uploader", daemon=True).start()
        self._wait_for_less_than(QUEUED_SEGMENTS)
        with self.changed:
            self.waiting.append((log, offset, data))
            self.changed.notify_all()

    def join(self) -> None:
        """Wait until all is stored or refused."""
        self._wait_for_less_than(1)

    def _wait_for_less_than(self, count: int) -> None:
        with self.changed:
            while not self.changed.wait_for(lambda: len(self.waiting) < count, timeout=1):
                self.watch()

    def _run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: bool(self.waiting))
                log, offset, data = self.waiting[0]
            try:
                log.stored(self.target, offset, data)
            except Exception as error:
                log.truncated = log.truncated or f"the agent failed: {error!r}"
            with self.changed:
                del self.waiting[0]
                self.changed.notify_all()


# --- outputs ----------------------------------------------------------------------------------------


def read_outputs(path: str, cap: int, mask: Callable[[str], str]) -> tuple[dict[str, str], list[str]]:
    """The outputs in the file that steps write to, and what is wrong in it.

    A line is ``KEY=value``, or ``KEY<<WORD`` with lines up to one that is just ``WORD``. The file is the
    user's to do with as he likes: a link or a device in its place is not read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return {}, []
    except OSError as error:
        return {}, [f"the outputs cannot be read: {error.strerror}"]
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return {}, ["the outputs cannot be read: not a regular file"]
        text = file.read(4 * cap + 65536).decode("utf-8", "replace")
        notes = [f"outputs are read up to {4 * cap + 65536} bytes"] if file.read(1) else []
    outputs: dict[str, str] = {}
    size = 0
    for number, key, value in _output_lines(text):
        if value is None or not _is_output_key(key):
            notes.append(f"line {number} of the outputs is not KEY=value: {mask(key)[:60]!r}")
            continue
        value = mask(value)
        added = len(key.encode()) + len(value.encode("utf-8", "surrogatepass"))
        if size + added > cap:
            notes.append(f"the output {key} is left out: all outputs together have at most {cap} bytes")
            continue
        size += added
        outputs[key] = value
    return outputs, notes[:20] + ([f"{len(notes) - 20} more such lines"] if len(notes) > 20 else [])


def _output_lines(text: str) -> Iterator[tuple[int, str, str | None]]:
    """Number, key and value of each line that has one; value None where it has none."""
    lines = iter(enumerate(text.split("\n"), 1))
    for number, line in lines:
        line = line.rstrip("\r")
        key, equals, value = line.partition("=")
        name, here, word = line.partition("<<")
        if here and word and len(name) < len(key):
            block: list[str] = []
            for _, inner in lines:
                if inner.rstrip("\r") == word:
                    yield number, name, "\n".join(block)
                    break
                block.append(inner)
            else:
                yield number, line, None
        elif line.strip():
            yield number, key if equals else line, value if equals else None


def _is_output_key(key: str) -> bool:
    return 0 < len(key) <= 100 and key.isascii() and key.replace("-", "_").isidentifier()


# --- the dialogue -----------------------------------------------------------------------------------


class Agent:
    """The state of one task as its agent knows it, and the loop that keeps it."""

    def __init__(self, environ: Mapping[str, str], assignment: Assignment) -> None:
        self.environ = environ
        self.assignment = assignment
        self.folder = environ["RUNYARD_DIR"]
        self.patience = Patience()
        self.target = open_target(assignment["logs"], self.patience)
        self.uploader = Uploader(self.target, self._watch_main)
        self.notes: list[str] = []
        self.archives: list[dict[str, object]] = []
        self.caches: list[dict[str, object]] = []
        self.needles = self._needles()
        self.logs: dict[int, Log] = {}  # by step, in the order of their begin
        self.by_fd: dict[int, Log] = {}
        self.work: Work | None = None
        self.home = self.cwd = ""
        self.owner: tuple[int, int] | None = None  # to whom files are given that a step shall own
        self.refused = STARTED_BEFORE
        self.greeted = self.sealed = False
        self.poll = select.poll()

    def _needles(self) -> set[bytes]:
        needles: set[bytes] = set()
        for name in self.assignment["mask"]:
            value = self.environ.get(name, "")
            if value and len(value.strip()) < 4:
                self.notes.append(f"the secret in {name} is shorter than 4 characters and is not masked")
            needles |= needles_of(value)
        return needles

    def run(self) -> int:
        """Talk with main until it has ended. The exit code."""
        self.req, self.res = open_turns(self.folder)
        self.wake, self.waker = os.pipe()
        self.poll.register(self.req, select.POLLIN)
        self.poll.register(self.wake, select.POLLIN)
        lines = b""
        requests: list[list[str]] = []
        start = time.monotonic() + self.assignment["start_s"]
        while True:
            for fd, _ in self.poll.poll(self._pause(start if not lines and not self.logs else None)):
                if fd == self.req:
                    data = os.read(self.req, 65536)
                    if not data:
                        self._main_ended()
                        return 0
                    *whole, lines = (lines + data).split(b"\n")
                    requests += [line.decode("utf-8", "surrogateescape").split(" ", 1) for line in whole]
                    start = float("inf")
                elif fd == self.wake:
                    os.read(self.wake, 1)
                    self._finish_work()
                elif fd in self.by_fd:
                    self._take(self.by_fd[fd])
            if time.monotonic() > start:
                complain(f"main did not come within {self.assignment['start_s']} s")
                return 3
            requests = self._answer(requests)
            self._flush_due()

    def _pause(self, start: float | None) -> float | None:
        """Milliseconds until something is due."""
        due = [log.due for log in self.by_fd.values() if log.due is not None]
        if start is not None and start != float("inf"):
            due.append(start)
        return max(0.0, (min(due) - time.monotonic()) * 1000 + 1) if due else None

    def _take(self, log: Log) -> None:
        fd = log.fd
        if not log.take() and log.fd < 0:
            self.poll.unregister(fd)
            del self.by_fd[fd]

    def _drain(self, log: Log) -> None:
        fd = log.fd
        if fd >= 0:
            log.drain()
            if log.fd < 0:
                self.poll.unregister(fd)
                del self.by_fd[fd]

    def _flush_due(self) -> None:
        now = time.monotonic()
        for log in self.by_fd.values():
            if log.due is not None and log.due <= now:
                log.flush()

    def _answer(self, requests: list[list[str]]) -> list[list[str]]:
        """Answer what can be answered now; the rest waits until the work in hand is done."""
        while requests:
            if self.work is not None and ["stop"] in requests:
                self.work.cancel()
                requests = [request for request in requests if request != ["stop"]]
            elif self.work is not None:
                if ["done"] in requests:
                    self.work.cancel()
                return requests
            else:
                word, *argument = requests.pop(0)
                answer = self._do(word, argument[0] if argument else "")
                if answer is not None:
                    self._reply(answer, " sealed" if word == "done" else "")
        return requests

    def _reply(self, number: int, more: str = "") -> None:
        os.write(self.res, f"{number}{more}\n".encode())

    def _do(self, word: str, argument: str) -> int | None:
        """One request; the answer, None when it comes later or not at all."""
        if word == "hello":
            return self._greet(argument)
        if word == "done":
            return self._finish("complete", "")
        if word == "stop":
            return None
        if not self.greeted:
            return self.refused
        if word == "home":
            self.home = argument
        elif word == "cwd":
            self.cwd = argument
        elif word == "begin":
            self._begin(int(argument), open_fifo(f"{self.folder}/log.{argument}"))
        elif word == "end":
            step, _, code = argument.partition(" ")
            self._end(int(step), int(code))
        elif word == "do":
            return self._start_work(int(argument))
        else:
            complain(f"main asks for something unknown: {word!r}")
            return UNKNOWN_REQUEST
        return 0

    def _greet(self, ids: str) -> int:
        """Take the attempt: only one agent ever can, so that no step of the user's runs twice."""
        if ids and os.geteuid() == 0:
            uid, gid = map(int, ids.split())
            self.owner = (uid, gid) if uid else None
        text = json.dumps({"run_id": self.assignment["run_id"], "at": utc_now(), "pid": os.getpid()})
        try:
            if not self.target.create("started", text.encode()):
                complain("this attempt has been started before; nothing is run")
                return STARTED_BEFORE
        except StoreRefused as error:
            complain(str(error))
            self.refused = STORE_REFUSED
            return STORE_REFUSED
        self.greeted = True
        return 0

    def _begin(self, step: int, fd: int) -> Log:
        log = Log(step, fd, Masker(self.needles), self.assignment["log_bytes"], self.uploader)
        self.logs[step] = self.by_fd[fd] = log
        self.poll.register(fd, select.POLLIN)
        return log

    def _end(self, step: int, code: int) -> None:
        log = self.logs.get(step)
        if log is not None:
            self._drain(log)
            log.flush()
            log.exit_code, log.ended_at = code, utc_now()

    def _start_work(self, step: int) -> None:
        read, write = os.pipe()
        os.set_blocking(read, False)
        self._begin(step, read)
        self.work = Work(self, step, write)
        threading.Thread(target=self.work.run, name="worker", daemon=True).start()

    def _finish_work(self) -> None:
        work, self.work = self.work, None
        if work is not None:
            self._end(work.step, work.code)
            self._reply(work.code)

    def _watch_main(self) -> None:
        """While the store is waited for: when main has died, that wait has an end."""
        hangup = select.poll()
        hangup.register(self.req, 0)
        if self.patience.until is None and hangup.poll(0):
            self.patience.until = time.monotonic() + AFTERLIFE_S

    def _main_ended(self) -> None:
        """Main is gone. If it has not said `done`, what there is gets kept."""
        self.patience.until = self.patience.until or time.monotonic() + AFTERLIFE_S
        if self.work is not None:
            self.work.cancel()
            self.work.ended.wait(5)
        if self.greeted and not self.sealed:
            self._finish("truncated", "main ended before its end")

    def _finish(self, seal: str, reason: str) -> int:
        """Bring the rest to the store, the manifest last."""
        if self.sealed:
            return 0
        if not self.greeted and self._greet("") != 0:
            return self.refused
        for log in list(self.by_fd.values()):
            self._drain(log)
            if log.fd >= 0:
                self.poll.unregister(log.fd)
                log.close()
        self.by_fd.clear()
        self.uploader.join()
        masker = Masker(self.needles)

        def mask(text: str) -> str:
            raw = masker.feed(text.encode("utf-8", "surrogatepass"), last=True)
            return raw.decode("utf-8", "replace")

        outputs, notes = read_outputs(f"{self.folder}/output", self.assignment["output_bytes"], mask)
        manifest = {
            "version": 1,
            "seal": seal,
            "reason": reason,
            "steps": [log.record() for log in self.logs.values()],
            "outputs": outputs,
            "archives": self.archives,
            "caches": self.caches,
            "notes": [mask(note) for note in self.notes + notes],
        }
        try:
            self.target.put("manifest.json", json.dumps(manifest).encode(), sync=True)
        except StoreRefused as error:
            complain(str(error))
            return STORE_REFUSED
        self.sealed = True
        return 0


def open_turns(folder: str) -> tuple[int, int]:
    """The FIFOs of requests and answers, made if main has not. Opening them waits for nobody."""
    for name in ("req", "res"):
        make_fifo(f"{folder}/{name}")
    req = os.open(f"{folder}/req", os.O_RDONLY | os.O_NONBLOCK)
    return req, os.open(f"{folder}/res", os.O_RDWR)  # main gets end of file when we die


def open_fifo(path: str) -> int:
    """The reading end of a FIFO, made if need be, which anybody may write to."""
    make_fifo(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    widen(fd)
    return fd


def widen(fd: int) -> None:
    try:
        fcntl.fcntl(fd, getattr(fcntl, "F_SETPIPE_SZ", 1031), PIPE_BYTES)
    except OSError:  # not Linux, or the user has too many large ones
        return


def make_fifo(path: str) -> None:
    try:
        os.mkfifo(path)
        os.chmod(path, 0o666)  # main may be another user
    except FileExistsError:
        pass


class Work:
    """One step that the agent does itself, in a thread of its own. Its log goes through a pipe, like any step's."""

    def __init__(self, agent: Agent, step: int, output: int) -> None:
        self.agent, self.step, self.output = agent, step, output
        self.code = 1
        self.ended = threading.Event()
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()

    def check(self) -> None:
        """Called wherever it may take long."""
        if self.cancelled.is_set():
            raise Failure("cancelled")

    def say(self, text: str) -> None:
        data = f"{text}\n".encode("utf-8", "surrogateescape")
        while data:
            data = data[os.write(self.output, data) :]

    def run(self) -> None:
        try:
            self.code = self._do(self.agent.assignment["steps"][self.step])
        except Failure as error:
            self.say(f"runyard: {error}")
            self.code = CANCELLED if self.cancelled.is_set() else 1
        except Exception as error:
            import traceback

            complain(traceback.format_exc())
            self.say(f"runyard: the agent failed: {error!r}")
            self.code = 1
        finally:
            os.close(self.output)
            self.ended.set()
            os.write(self.agent.waker, b"x")

    def _do(self, step: Step) -> int:
        raise Failure(f"the agent does not know steps of the type {step['type']}")


def main(environ: Mapping[str, str]) -> int:
    """Be the agent of the task that ``environ`` describes. The exit code; see the module for what it says."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # main decides when to end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        agent = Agent(environ, load_assignment(environ["RUNYARD_ASSIGNMENT"]))
    except (KeyError, TypeError, ValueError, OSError) as error:
        complain(f"the assignment cannot be read: {error!r}")
        return 2
    return agent.run()


def load_assignment(text: str) -> Assignment:
    """The assignment in ``text``, or in the file of that path."""
    if not text.lstrip().startswith("{"):
        with open(text, "rb") as file:
            text = file.read().decode()
    assignment: Assignment = json.loads(text)
    return assignment


if __name__ == "__main__":
    sys.exit(main(os.environ))
