"""The companion of a task: all that goes in or out of it passes through here (see runyard.dialogue).

One file, standard library only, Python 3.9 and later: it runs in an image of its own, as ``python -I -S
agent.pyc``, or in a forked process that calls `main`. (As ``agent.py`` it works too, and is compiled at every
start.) What takes long to import (``http.client``, ``subprocess``, ``tarfile``, …) is imported where it is
used: most tasks need none of it, and every task waits for the agent's first answer.

Three threads at most, each with its reason: the first reads requests and FIFOs and must never wait for the
network; the *uploader* writes what the first has read, behind a bounded queue, so that a slow store slows
the step and loses nothing; a *worker* does what main asked for (clone, archives, caches) while the first goes
on reading. asyncio would make one of them of three, but files, pipes and git would then need threads anyway,
and its import alone takes longer than most tasks' share of this program.

Exit codes: 0 = it has done what it could (the manifest says what), 1 = it failed itself, 2 = the assignment
cannot be read, 3 = main never came. In a pod its termination message says more: see AgentEnd in runyard.dialogue.
"""

from __future__ import annotations

import binascii
import errno
import fcntl
import os
import select
import stat
import sys
import threading
import time

TYPE_CHECKING = False  # typing itself takes longer to import than all of the above
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from hashlib import _Hash as Digest
    from http.client import HTTPConnection
    from json import dumps as to_json
    from json import loads as parse_json
    from socket import socket
    from subprocess import Popen
    from tarfile import TarFile, TarInfo
    from typing import IO, Any, Protocol, TypedDict

    Segment = Callable[[str], bool]
    State = frozenset[tuple[int, int]]
    Entry = tuple[str, str, str]  # name in the archive, path, the folder that was asked for

    class Sink(Protocol):
        def write(self, data: bytes, /) -> int: ...

    class Facts(TypedDict):
        size: int
        sha256: str
        files: int
        checked: bool

    class Target(TypedDict, total=False):
        kind: str
        folder: str
        root: str
        url: str
        prefix: str
        fields: dict[str, str]
        claim: str

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
        fallback: bool

    class Caches(TypedDict):
        read: Target | None
        fallback: Target | None
        known: list[Stored]
        write: Target | None

    class Source(TypedDict):
        url: str
        ref: str
        commit: str
        branch: str
        tag: str
        local: bool

    class Service(TypedDict):
        name: str
        port: int
        path: str
        timeout_s: float

    class StoredPack(TypedDict):
        id: str
        source: str
        size: int

    class StoredSnapshot(TypedDict):
        packs: list[StoredPack]
        listing: list[tuple[int, int, int, int]]
        changed: int

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
        services: list[Service]
        snapshot: StoredSnapshot | None
        mask: list[str]
        log_bytes: int
        output_bytes: int
        start_s: float
else:
    # The parts in C of `json`, `signal` and `socket`, where this Python has them. The modules around those import
    # `re` and `enum`, which takes longer than all that a short task's agent does.
    try:
        import _signal as signal
    except ImportError:
        import signal
    try:
        from _json import encode_basestring_ascii, make_encoder, make_scanner
    except ImportError:
        from json import dumps as to_json
        from json import loads as parse_json
    else:

        class Grammar:
            strict, memo = True, {}
            object_hook = object_pairs_hook = None
            parse_float = parse_constant = float
            parse_int = int

        def parse_json(text: str | bytes) -> Any:
            text = (text if isinstance(text, str) else bytes(text).decode()).strip(" \t\n\r")
            try:
                value, end = make_scanner(Grammar)(text, 0)
            except StopIteration:
                raise ValueError(f"it is no JSON: {text[:40]!r}") from None
            if end != len(text):
                raise ValueError(f"there is more after its end: {text[end : end + 40]!r}")
            return value

        def to_json(value: object) -> str:
            encoder = make_encoder({}, no_json, encode_basestring_ascii, None, ": ", ", ", False, False, True)
            return "".join(encoder(value, 0))

        def no_json(value: object) -> object:
            raise TypeError(f"{type(value).__name__} is nothing that JSON has")


SEGMENT_BYTES = 4 << 20
FIRST_FLUSH_S = 0.05  # the first line of a step is what people wait for
FLUSH_S = 0.5
QUEUED_SEGMENTS = 4
READ_BYTES = 1 << 20
PIPE_BYTES = 1 << 18  # asked of the system for each FIFO; Linux gives a user 64 MiB of them in all
TRIES_REFUSED = 4
COPY_BYTES = 1 << 20  # of the copy of the log, waiting to be read
KEY_CHARACTERS = 200  # of a cache's key, escaped: with its ending it is a file's name
POST_BYTES = 5 << 30  # what S3 takes in one POST
OUTAGE_S = 5  # a store that is away for less is not worth a line
SENT_BYTES = 1 << 14  # of a file: smaller ones are copied more quickly than sent
STORE_TIMEOUT_S = 30
ANSWER_BYTES, HEADERS = 1 << 16, 100  # of an answer of the store: more is not read
SHORT_BYTES = 128 << 10  # of a log: more is hashed by OpenSSL, whose import takes longer than so much without it
AFTERLIFE_S = 300  # how long it goes on trying to store when main is gone
SHA256_OF_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
STARTED_BEFORE, STORE_REFUSED, UNKNOWN_REQUEST, SERVICE_FAILED, CANCELLED = 3, 4, 5, 6, 143
TERMINATION_LOG = "/dev/termination-log"  # where a kubelet looks for a container's last words


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


class LastWords:
    """One line for whoever looks at the agent from outside: ``what: why`` (see AgentEnd in runyard.dialogue).

    The file is there in a pod. Nothing else makes one of that name, least of all on a machine of somebody's.
    """

    def __init__(self, environ: Mapping[str, str], *, in_pod: bool) -> None:
        self.path = environ.get("RUNYARD_TERMINATION_LOG") or (TERMINATION_LOG if in_pod else "")

    def say(self, what: str, why: str) -> None:
        line = " ".join(f"{what}: {why}".split())[:1000]
        complain(line)
        if self.path:
            try:
                fd = os.open(self.path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW)
            except OSError:
                return
            with open(fd, "wb") as file:
                file.write(line.encode("utf-8", "replace"))


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
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP):
        return StoreRefused(f"a file is in the way in the store ({where})")
    return StoreAway(f"the store cannot be written to: {error.strerror} ({where})")


class Patience:
    """How long a write is tried: for ever while the store is away, a few times when it refuses.

    ``until`` is None as long as main lives; after its end a time on the monotonic clock. ``outages`` are those
    that are over and nobody has told yet.
    """

    def __init__(self) -> None:
        self.until: float | None = None
        self.outages: list[str] = []

    def persist(self, write: Callable[[], bool], *, until: float | None = None) -> bool:
        """The answer of ``write``, once it has one. Raises StoreRefused, also when it was away until ``until``."""
        pause, refusals, told = 0.1, 0, 0.0
        away_at, problem = 0.0, ""
        while True:
            try:
                done = write()
            except StoreRefused as error:
                refusals += 1
                if refusals == TRIES_REFUSED:
                    raise
                said = str(error)
            except StoreAway as error:
                said = problem = str(error)
                away_at = away_at or time.time()
            else:
                if problem:
                    self._over(away_at, problem)
                return done
            now = time.monotonic()
            if any(limit is not None and now > limit for limit in (self.until, until)):
                raise StoreRefused(said)
            if now > told:
                complain(f"{said}; trying again")
                told = now + 10
            time.sleep(pause * (0.5 + os.urandom(1)[0] / 512))  # many agents wait for one store
            pause = min(pause * 2, 5)

    def _over(self, away_at: float, problem: str) -> None:
        lasted = time.time() - away_at
        if lasted >= OUTAGE_S:
            began = time.strftime("%H:%M:%SZ", time.gmtime(away_at))
            self.outages.append(f"the store was away for {lasted:.0f} s, from {began} on ({problem})")
            complain(self.outages[-1])


class Folder:
    """A folder of this machine as a store. Names are relative; a reader never sees half of an object.

    Only the manifest and archives are synced to the disk: they are what others rely on. A segment that a
    crash of the machine takes away is found out by the manifest's digest, and syncing each would cost a
    short task more than all the rest of it.
    """

    confirms = False  # that it has a write is not known to be on the disk

    def __init__(self, folder: str, patience: Patience, root: str = "") -> None:
        self.folder = folder
        self.root = root  # never made: it may be a disk that is not mounted
        self.patience = patience

    def warm_up(self) -> None:
        """Nothing takes long here."""

    def create(self, name: str, data: bytes, *, until: float | None = None) -> bool:
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

        return self._persist(name, write, until=until)

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

    def keep(self, temporary: str, name: str, *, absent: bool = False) -> bool:
        """Give a whole temporary file its name; with ``absent`` only if nothing has it. Whether it was done."""

        def write() -> bool:
            path = self._parent_of(name)
            if absent and os.path.lexists(path):  # what is not going to be needed has not to be on the disk
                return False
            fd = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            if absent:
                try:
                    os.link(temporary, path)  # exactly one of several wins
                except FileExistsError:
                    return False
            else:
                os.rename(temporary, path)
            sync_folder(os.path.dirname(path))
            return True

        return self._persist(name, write)

    def facts_of(self, name: str) -> Facts:
        """What can be known of an archive that another one has kept."""
        with open(os.path.join(self.folder, name), "rb", buffering=0) as file:
            size, digest = measure(file, lambda: None)
        return {"size": size, "sha256": digest, "files": 0, "checked": False}

    def prepare(self) -> None:
        """Make the folder of temporary files, once there is the store that it belongs to."""
        self._persist("", lambda: bool(self._parent_of("")))

    def temporary(self) -> str:
        """A path for what is not whole yet: at the top, so that nobody who lists segments meets it."""
        return os.path.join(self.folder, f".tmp-{os.getpid()}-{binascii.hexlify(os.urandom(6)).decode()}")

    def _parent_of(self, name: str) -> str:
        path = os.path.join(self.folder, name)
        if self.root and not os.path.isdir(self.root):
            raise StoreAway(f"the store's folder {self.root} is not there: removed, or its disk is not mounted")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def _persist(self, name: str, write: Callable[[], bool], *, until: float | None = None) -> bool:
        def judged() -> bool:
            try:
                return write()
            except OSError as error:
                raise judge(error, os.path.join(self.folder, name)) from error

        return self.patience.persist(judged, until=until)


class Url:
    """One presigned POST for a prefix, as S3 has it. Names are relative to the prefix.

    What the store says it keeps (the ETag, an MD5 for an object that came in one request) is compared with what
    was sent. A form field with a digest would make the store compare; but policies that allow one are more than
    S3 libraries can sign. Where the ETag is something else (objects encrypted with a key of the user's), this
    shows in the first two answers, and nothing is compared.

    The connection is kept between writes; one thread at a time uses it.
    """

    def __init__(self, target: Target, patience: Patience, scratch: str) -> None:
        self.scratch = scratch  # where archives wait to be sent
        self.scheme, self.netloc, self.path = divide_url(target["url"])
        self.prefix, self.fields, self.claim = target["prefix"], target["fields"], target.get("claim", "")
        self.patience = patience
        self.wire: Wire | None = None
        self.strange = 0  # answers in a row whose ETag was not the MD5

    @property
    def confirms(self) -> bool:
        """Whether the store is known to have just what it was sent."""
        return self.strange < 2

    def warm_up(self) -> None:
        """Import what takes longer than all else here, while main's container is still being made."""
        if self.scheme == "https":
            import ssl  # noqa: F401

    def create(self, name: str, data: bytes, *, until: float | None = None) -> bool:
        """Write the object of ``claim`` if it is not there; whether it was so. ``name`` is what it is called.

        An answer that was lost on its way leaves open whose the object is: then the same is written once more
        on the condition that what is there is what we wrote.
        """
        if not self.claim:
            raise StoreRefused(f"the assignment has no way to write {name} only once")
        _, _, path = divide_url(self.claim)
        ours = f'"{md5(data).hexdigest()}"'
        doubt = False

        def put(condition: dict[str, str]) -> int:
            nonlocal doubt
            headers = {"Content-Length": str(len(data)), **condition}
            try:
                status, text, _ = self._send("PUT", path, headers, lambda: [data])
            except StoreAway:
                doubt = True
                raise
            if status == 409:  # another write is under way: who has won is not said yet
                raise StoreAway("the store has two writes of one object at a time")
            if status != 412:
                doubt = doubt or status >= 500
                judge_answer(status, text)
            return status

        def write() -> bool:
            return put({"If-None-Match": "*"}) != 412 or (doubt and put({"If-Match": ours}) != 412)

        return self.patience.persist(write, until=until)

    def put(self, name: str, data: bytes, *, sync: bool = False) -> None:
        self.patience.persist(lambda: self._post(name, len(data), lambda: [data]))

    def prepare(self) -> None:
        os.makedirs(self.scratch, exist_ok=True)

    def temporary(self) -> str:
        return os.path.join(self.scratch, f"tmp-{binascii.hexlify(os.urandom(6)).decode()}")

    def keep(self, temporary: str, name: str) -> bool:
        """Send a whole temporary file; whether the store is known to have just that."""

        def content() -> Iterator[bytes]:
            with open(temporary, "rb") as file:
                yield from iter(lambda: file.read(1 << 20), b"")

        size = os.stat(temporary).st_size
        if size > POST_BYTES:
            raise Failure(f"the archive has {size} bytes; the store takes {POST_BYTES} at most: divide it")
        self.patience.persist(lambda: self._post(name, size, content))
        return self.confirms

    def _post(self, name: str, size: int, content: Callable[[], Iterable[bytes]]) -> bool:
        head, tail, edge = self._form(name)
        headers = {
            "Content-Type": f"multipart/form-data; boundary={edge}",
            "Content-Length": str(len(head) + size + len(tail)),
        }
        digest = md5()

        def body() -> Iterator[bytes]:
            nonlocal digest
            digest = md5()
            yield head
            for data in content():
                digest.update(data)
                yield data
            yield tail

        status, text, etag = self._send("POST", self.path, headers, body)
        judge_answer(status, text)
        if etag.strip('"') == digest.hexdigest():
            self.strange = 0
        elif not etag:
            self.strange = 2
        elif self.strange < 2:
            self.strange += 1
            if self.strange < 2:
                raise StoreAway(f"the store says that it keeps something else than {name}")
        return True

    def _send(
        self, method: str, path: str, headers: dict[str, str], body: Callable[[], Iterable[bytes]]
    ) -> tuple[int, str, str]:
        """Status, text and ETag of the answer."""
        if self.wire is not None and self.wire.was_closed():
            self._hang_up()
        try:
            if self.wire is None:
                self.wire = Wire(self.scheme, self.netloc)
            answer = self.wire.ask(method, path, headers, body())
            if self.wire.ends:
                self._hang_up()
            return answer
        except OSError as error:
            self._hang_up()
            raise judge_connection(error, self.netloc) from error

    def _hang_up(self) -> None:
        if self.wire is not None:
            self.wire.close()
            self.wire = None

    def _form(self, name: str) -> tuple[bytes, bytes, str]:
        edge = f"runyard{binascii.hexlify(os.urandom(12)).decode()}"
        parts = [
            f'--{edge}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
            for key, value in {**self.fields, "key": self.prefix + name}.items()
        ]
        parts.append(f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="data"\r\n')
        parts.append("Content-Type: application/octet-stream\r\n\r\n")
        return "".join(parts).encode(), f"\r\n--{edge}--\r\n".encode(), edge


class Wire:
    """A connection that small answers come back on: as much of HTTP/1.1 as writing to a store takes.

    ``http.client`` knows more, and downloads use it. But with what it imports (email, ssl) it takes half of the
    processor time of a short task's agent, and every agent writes.
    """

    def __init__(self, scheme: str, netloc: str) -> None:
        host, port = divide_netloc(netloc, 443 if scheme == "https" else 80)
        self.netloc = netloc
        self.unread = b""
        self.ends = False  # whether the other side closes it after the last answer, or that was not read whole
        made = dial(host, port)
        self.socket = encrypt(made, host) if scheme == "https" else made

    def was_closed(self) -> bool:
        """Whether the other side has hung up while it lay idle, as servers do."""
        idle = select.poll()
        idle.register(self.socket, select.POLLIN)
        return bool(idle.poll(0))

    def ask(self, method: str, path: str, headers: dict[str, str], body: Iterable[bytes]) -> tuple[int, str, str]:
        """Status, the first 64 KiB of the text, and the ETag of the answer. Raises OSError."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.netloc}", "Accept-Encoding: identity"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        waiting = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
        cut: OSError | None = None
        try:
            for piece in body:  # what is small goes out at once with what is before it
                waiting += piece
                if len(waiting) >= SENT_BYTES:
                    self.socket.sendall(waiting)
                    waiting = b""
            self.socket.sendall(waiting)
        except ConnectionError as error:  # who refuses a body does not take all of it: its answer may be here
            cut = error
        status, found = self._head()
        if cut is not None and status < 400:
            raise cut
        while status < 200:  # "100 Continue" and the like: the answer is still to come
            status, found = self._head()
        text = b"" if status in (204, 304) else self._text(found)
        self.ends = self.ends or cut is not None or "close" in found.get("connection", "").lower()
        return status, text.decode("utf-8", "replace"), found.get("etag", "")

    def close(self) -> None:
        self.socket.close()

    def _head(self) -> tuple[int, dict[str, str]]:
        first = self._line()
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
            raise ConnectionError(f"an answer that is not HTTP/1.1: {first[:80]!r}")
        self.ends = version == "HTTP/1.0"
        found: dict[str, str] = {}
        while line := self._line():
            name, _, value = line.partition(":")
            found[name.strip().lower()] = value.strip()
            if len(found) > HEADERS:
                raise ConnectionError("an answer with too many headers")
        return int(rest[:3]), found

    def _more(self) -> bool:
        """Whether there was more before the other side's end."""
        data = self.socket.recv(ANSWER_BYTES)
        self.unread += data
        return bool(data)

    def _line(self) -> str:
        while (end := self.unread.find(b"\n")) < 0:
            if len(self.unread) > ANSWER_BYTES or not self._more():
                raise ConnectionError("the answer was cut")
        line, self.unread = self.unread[:end], self.unread[end + 1 :]
        return line.decode("latin-1").rstrip("\r")

    def _text(self, found: dict[str, str]) -> bytes:
        if "chunked" in found.get("transfer-encoding", "").lower():
            return self._chunks()
        length = found.get("content-length", "")
        if length.isdecimal():
            self.ends = self.ends or int(length) > ANSWER_BYTES
            return self._exactly(min(int(length), ANSWER_BYTES))
        self.ends = True
        while len(self.unread) < ANSWER_BYTES and self._more():
            pass
        return self._exactly(min(len(self.unread), ANSWER_BYTES))

    def _chunks(self) -> bytes:
        text = b""
        while True:
            first = self._line().partition(";")[0].strip()
            try:
                size = int(first, 16)
            except ValueError as error:
                raise ConnectionError(f"a chunk of {first[:20]!r} bytes") from error
            if size <= 0:
                while self._line():  # trailers
                    pass
                return text
            text += self._exactly(min(size, ANSWER_BYTES - len(text)))
            if len(text) >= ANSWER_BYTES:
                self.ends = True
                return text
            self._line()

    def _exactly(self, size: int) -> bytes:
        while len(self.unread) < size:
            if not self._more():
                raise ConnectionError("the answer was cut")
        data, self.unread = self.unread[:size], self.unread[size:]
        return data


def dial(host: str, port: int) -> socket:
    """As ``socket.create_connection`` does it. Raises OSError."""
    if TYPE_CHECKING:
        import socket as _socket
    else:
        try:
            import _socket
        except ImportError:
            import socket as _socket
    failed = OSError(f"{host} has no address")
    # bytes, since a text would be encoded by a module that takes long to import
    name = host.encode() if host.isascii() else host.encode("idna")
    for family, kind, protocol, _, address in _socket.getaddrinfo(name, port, 0, _socket.SOCK_STREAM):
        made = _socket.socket(family, kind, protocol)
        try:
            made.settimeout(STORE_TIMEOUT_S)
            made.connect(address)
            made.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            return made
        except OSError as error:
            made.close()
            failed = error
    raise failed


def encrypt(made: socket, host: str) -> socket:
    import socket
    import ssl

    whole = socket.socket(fileno=made.detach())
    try:
        whole.settimeout(STORE_TIMEOUT_S)
        return ssl.create_default_context().wrap_socket(whole, server_hostname=host)
    except BaseException:
        whole.close()
        raise


def divide_url(url: str) -> tuple[str, str, str]:
    """Scheme, host with port, and path with query, of a URL that the worker has made."""
    scheme, _, rest = url.partition("://")
    netloc, slash, path = rest.partition("/")
    return scheme.lower(), netloc, (slash or "/") + path


def divide_netloc(netloc: str, port: int) -> tuple[str, int]:
    """Host and port; an IPv6 address is in brackets."""
    host, colon, last = netloc.rpartition(":")
    if colon and last.isdecimal():
        return host.strip("[]"), int(last)
    return netloc.strip("[]"), port


def connect(scheme: str, netloc: str) -> HTTPConnection:
    from http.client import HTTPConnection, HTTPSConnection

    kind = HTTPSConnection if scheme == "https" else HTTPConnection
    return kind(netloc, timeout=STORE_TIMEOUT_S)


def judge_answer(status: int, text: str) -> None:
    """Raises what an answer of the store other than success means."""
    if 200 <= status < 300:
        return
    said = f"the store answers {status} {' '.join(text.split())[:300]}"
    if status >= 500 or status in (408, 429) or "RequestTimeout<" in text:
        raise StoreAway(said)
    raise StoreRefused(said)


def judge_connection(error: Exception, where: str) -> StoreAway | StoreRefused:
    """A certificate that does not hold today will not hold in a minute; all else may pass."""
    if type(error).__name__ == "SSLCertVerificationError":
        return StoreRefused(f"the certificate of the store at {where} cannot be verified: {error}")
    return StoreAway(f"the store at {where} does not answer: {error!r}")


def make_folders(path: str, owner: tuple[int, int] | None) -> None:
    """The folder and those above it; the new ones are given to their owner."""
    if owner is not None and not os.path.isdir(path):
        parent = os.path.dirname(path)
        if parent != path:
            make_folders(parent, owner)
        try:
            os.mkdir(path)
            os.chown(path, *owner)
        except FileExistsError:
            return
    else:
        os.makedirs(path, exist_ok=True)


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


def open_target(target: Target, patience: Patience, scratch: str) -> Folder | Url:
    if target["kind"] == "folder":
        return Folder(target["folder"], patience, target.get("root", ""))
    return Url(target, patience, scratch)


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
    import json
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
            begun = covered and not start
            if start >= cut and not begun:
                break
            if not begun:
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


class Copy:
    """The logs once more, on the agent's own output, for `kubectl logs` and collectors of logs.

    Whoever reads it must not hold up the step: a little waits for him, the rest is left out, whole lines where
    there are any, and said.
    """

    def __init__(self, fd: int) -> None:
        self.fd, self.left_out, self.dead = fd, 0, False
        self.backlog = bytearray()
        os.set_blocking(fd, False)

    def write(self, data: bytes) -> None:
        if self.dead:
            return
        room = COPY_BYTES - len(self.backlog)
        if self.left_out and room < COPY_BYTES // 2:
            self.left_out += len(data)
            return
        if self.left_out:
            self.backlog += f"[runyard: {self.left_out} bytes are left out of this copy]\n".encode()
            self.left_out = 0
        if len(data) > room:
            taken = data[: data.rfind(b"\n", 0, room) + 1] or data[:room] + b"\n"
            self.left_out = max(1, len(data) - len(taken))
            data = taken
        self.backlog += data
        self.push()

    def push(self) -> None:
        """Give what is taken now."""
        try:
            while self.backlog:
                written = os.write(self.fd, self.backlog[: 1 << 16])
                del self.backlog[:written]
        except BlockingIOError:
            return
        except OSError:  # nobody reads it any more
            self.dead = True
            self.backlog.clear()

    def finish(self, within_s: float) -> None:
        ready, end = select.poll(), time.monotonic() + within_s
        ready.register(self.fd, select.POLLOUT)
        while self.backlog and time.monotonic() < end:
            ready.poll(100)
            self.push()


class Log:
    """The log of one step: from its FIFO, masked, in segments, to the uploader.

    What the uploader has stored is counted by it (``stored_…``, ``digest``): the record of a log says what is in
    the store, not what was meant to be.

    Where the store confirms what it has, the log stays where it is, and nobody reads it to put it together:
    ``parts`` are the segments that it consists of in the end. What came in small ones, as a slow log does, is
    written once more as a large one, in place of the first of them. So a log is some megabytes an object.
    """

    def __init__(
        self, n: int, fd: int, masker: Masker, cap: int, uploader: Uploader, copy: Copy | None = None
    ) -> None:
        self.n, self.fd, self.cap = n, fd, cap
        self.masker, self.uploader, self.copy = masker, uploader, copy
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
        self.digest: LogDigest | None = None
        self.gathers = True
        self.parts: list[int] = []  # offsets
        self.block: list[bytes] = []  # the last part, as long as it may grow
        self.block_bytes = 0

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
        if self.copy is not None:
            self.copy.write(data)
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
            self.uploader.end(self, self.offset)

    def stored(self, target: Folder | Url, offset: int, data: bytes) -> None:
        """Store a segment; in the uploader's thread, which hashes while the first thread reads on."""
        if offset != self.stored_bytes:
            return  # what came before was refused: a log has no hole in it, only an end
        try:
            if data:
                target.put(self._segment(offset), data)
        except StoreRefused as error:
            self.truncated = str(error)
            return
        if self.digest is None:
            self.digest = LogDigest()
        self.digest.update(data)
        self.stored_bytes += len(data)
        self.stored_lines += data.count(b"\n")
        self.stored_tail = (self.stored_tail + data[-4096:])[-4096:]
        self.gathers = self.gathers and target.confirms
        if self.gathers:
            self._gather(target, offset, data)

    def _gather(self, target: Folder | Url, offset: int, data: bytes) -> None:
        """Note where the log is; of small segments in a row make one."""
        if len(data) >= SEGMENT_BYTES or not data:
            self._unite(target)
        if data:
            if not self.block:
                self.parts.append(offset)
            self.block.append(data)
            self.block_bytes += len(data)
        if self.block_bytes >= SEGMENT_BYTES:
            self._unite(target)

    def _unite(self, target: Folder | Url) -> None:
        """One segment in place of the last part's first, with all that is in the others."""
        block, self.block, self.block_bytes = self.block, [], 0
        if len(block) > 1:
            try:
                target.put(self._segment(self.parts[-1]), b"".join(block))
            except StoreRefused as error:  # they are there, small as they are
                complain(str(error))
                self.gathers = False

    def _segment(self, offset: int) -> str:
        return f"segments/{self.n}/{offset:016d}"

    def record(self) -> dict[str, object]:
        return {
            "n": self.n,
            "exit_code": self.exit_code,
            "bytes": self.stored_bytes,
            "lines": self.stored_lines + (1 if self.stored_tail and not self.stored_tail.endswith(b"\n") else 0),
            "sha256": self.digest.hexdigest() if self.digest else SHA256_OF_NOTHING,
            "truncated": self.truncated,
            "started_at": self.started_at or None,
            "ended_at": self.ended_at or None,
            "last_line": last_line(self.stored_tail),
            "parts": self.parts if self.gathers and not self.block else [],
        }


def md5(data: bytes = b"") -> Digest:
    """OpenSSL's where it is here already, else Python's own: as fast, and there at once."""
    if "hashlib" not in sys.modules:
        try:
            from _md5 import md5 as new  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            pass
        else:
            found: Digest = new(data, usedforsecurity=False)
            return found
    import hashlib

    return hashlib.md5(data, usedforsecurity=False)


def sha256() -> Digest:
    import hashlib  # OpenSSL comes with it: 6 ms, which no step waits for

    return hashlib.sha256()


class LogDigest:
    """SHA-256 of a log. Of a short one by Python itself, which is slower and there at once; see `sha256`."""

    def __init__(self) -> None:
        self.short: bytes = b""
        self.long: Digest | None = None

    def update(self, data: bytes) -> None:
        if self.long is None:
            self.short += data
            if len(self.short) <= SHORT_BYTES:
                return
            self.long, data, self.short = sha256(), self.short, b""
        self.long.update(data)

    def hexdigest(self) -> str:
        if self.long is not None:
            return self.long.hexdigest()
        for module in ("_sha2", "_sha256"):  # since 3.12, and before
            try:
                digest: Digest = __import__(module).sha256(self.short)
            except (ImportError, AttributeError):
                continue
            return digest.hexdigest()
        digest = sha256()
        digest.update(self.short)
        return digest.hexdigest()


def measure(file: IO[bytes], check: Callable[[], None]) -> tuple[int, str]:
    """Size and SHA-256 of what is left of a file."""
    digest, size, view = sha256(), 0, memoryview(bytearray(1 << 18))
    while read := file.readinto(view):  # type: ignore[attr-defined]
        check()
        digest.update(view[:read])
        size += read
    return size, digest.hexdigest()


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


class Spool:
    """Segments that wait on the disk of the pod while the store is away. Without a folder there is no room."""

    def __init__(self, folder: str, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes if folder else 0
        self.bytes = self.count = 0
        if folder:
            os.makedirs(folder, exist_ok=True)

    def keep(self, data: bytes) -> str:
        """The path of the file that now has it; empty where there is no room."""
        if self.bytes + len(data) > self.most_bytes:
            return ""
        self.count += 1
        path = os.path.join(self.folder, f"segment-{self.count}")
        try:
            with open(path, "wb", buffering=0) as file:
                keep_whole(file, data)
        except OSError as error:
            complain(f"the spool is given up: {error!r}")
            remove(path)
            self.most_bytes = 0
            return ""
        self.bytes += len(data)
        return path

    def take(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def drop(self, path: str, size: int) -> None:
        remove(path)
        self.bytes -= size


def keep_whole(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


class Piece:
    """A segment on its way: in memory (``data``) or in the spool (``path``)."""

    __slots__ = ("data", "log", "offset", "path", "size")

    def __init__(self, log: Log, offset: int, data: bytes | None, path: str, size: int) -> None:
        self.log, self.offset, self.data, self.path, self.size = log, offset, data, path, size


class Uploader:
    """Stores segments in their order, in a thread of its own: a few wait in memory, then others in the spool."""

    def __init__(self, target: Folder | Url, spool: Spool, watch: Callable[[], None]) -> None:
        self.target, self.spool = target, spool
        self.watch = watch  # called now and then by who waits here: he sees nothing else meanwhile
        self.waiting: list[Piece] = []  # the first is being stored
        self.changed = threading.Condition()
        self.running = False
        self.held_up_s = 0.0  # so long have steps waited for the store
        self.held_since: float | None = None
        self.told: list[str] = []  # lines of the setup log

    @property
    def behind(self) -> bool:
        """Whether small segments should wait and become larger ones."""
        return len(self.waiting) >= QUEUED_SEGMENTS

    def add(self, log: Log, offset: int, data: bytes) -> None:
        """Waits while as many as may be are on their way: the back pressure on the step."""
        if not self.running:
            self.running = True
            threading.Thread(target=self._run, name="uploader", daemon=True).start()
        piece = self._place(log, offset, data) or self._wait_for_place(log, offset, data)
        self._append(piece)

    def end(self, log: Log, offset: int) -> None:
        """Nothing of this log will come any more."""
        if self.running:
            self._append(Piece(log, offset, b"", "", 0))

    def _append(self, piece: Piece) -> None:
        with self.changed:
            self.waiting.append(piece)
            self.changed.notify_all()

    def join(self) -> None:
        """Wait until all is stored or refused."""
        with self.changed:
            while not self.changed.wait_for(lambda: not self.waiting, timeout=1):
                self.watch()

    def _in_memory(self) -> int:
        return sum(piece.data is not None for piece in list(self.waiting))

    def _has_place(self, size: int) -> bool:
        return self._in_memory() < QUEUED_SEGMENTS or self.spool.bytes + size <= self.spool.most_bytes

    def _place(self, log: Log, offset: int, data: bytes) -> Piece | None:
        if self._in_memory() < QUEUED_SEGMENTS:
            return Piece(log, offset, data, "", len(data))
        path = self.spool.keep(data)
        return Piece(log, offset, None, path, len(data)) if path else None

    def _wait_for_place(self, log: Log, offset: int, data: bytes) -> Piece:
        self.held_since = told = time.monotonic()
        while True:
            with self.changed:
                if not self.changed.wait_for(lambda: self._has_place(len(data)), timeout=1):
                    self.watch()
            piece = self._place(log, offset, data)
            if piece is not None:
                self.held_up_s += time.monotonic() - self.held_since
                self.held_since = None
                return piece
            if time.monotonic() > told + OUTAGE_S:
                told = time.monotonic() + 10
                complain(f"the step waits for the store, which is behind; {self.spool.bytes} bytes in the spool")

    def _run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: bool(self.waiting))
                piece = self.waiting[0]
            try:
                data = self.spool.take(piece.path) if piece.data is None else piece.data
                piece.log.stored(self.target, piece.offset, data)
                self.tell_outages()
            except Exception as error:
                piece.log.truncated = piece.log.truncated or f"the agent failed: {error!r}"
            if piece.data is None:
                self.spool.drop(piece.path, piece.size)
            with self.changed:
                del self.waiting[0]
                self.changed.notify_all()

    def tell_outages(self) -> None:
        """Once the store is back: a line in the setup log for each time that it was away."""
        outages = self.target.patience.outages
        while outages:
            text = outages.pop(0)
            held_s = self.held_up_s + (time.monotonic() - (self.held_since or time.monotonic()))
            if held_s >= 1:
                text += f"; the step was held up for {held_s:.0f} s"
            self.held_up_s = 0.0
            self.told.append(text)
            name = f"segments/setup/{time.time_ns() // 10**6:013d}-{9000 + len(self.told)}"  # workers count from 0
            try:
                self.target.put(name, f"{utc_now()[:-4]}Z {text}\n".encode())
            except StoreRefused as error:
                complain(str(error))


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
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return {}, ["the outputs cannot be read: not a regular file"]
    with open(fd, "rb") as file:
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


class Readiness:
    """Waits for the services of a pod, in a thread of its own, since main may change its mind meanwhile.

    ``failed`` says in the end which did not get ready; empty when all did.
    """

    def __init__(self, services: list[Service], waker: int) -> None:
        self.services, self.waker = services, waker
        self.began = time.monotonic()
        self.failed = ""
        self.cancelled = threading.Event()

    def run(self) -> None:
        try:
            for service in self.services:
                if not self._wait_for(service):
                    return
        finally:
            os.write(self.waker, b"x")

    def _wait_for(self, service: Service) -> bool:
        end, pause = self.began + service["timeout_s"], 0.02
        while not self.cancelled.is_set():
            problem = look_at(service)
            if not problem:
                return True
            if time.monotonic() > end:
                self.failed = f"{service['name']} was not ready after {service['timeout_s']:g} s: {problem}"
                return False
            self.cancelled.wait(pause)
            pause = min(pause * 2, 0.5)
        return False


def look_at(service: Service) -> str:
    """What is wrong with a service now; empty when it is ready."""
    import socket
    from http.client import HTTPConnection, HTTPException

    port, path = service["port"], service["path"]
    try:
        if not path:
            socket.create_connection(("localhost", port), timeout=2).close()
            return ""
        connection = HTTPConnection("localhost", port, timeout=5)
        try:
            connection.request("GET", path)
            status = connection.getresponse().status
        finally:
            connection.close()
        return "" if 200 <= status < 400 else f"{path} on port {port} answers {status}"
    except (OSError, HTTPException) as error:
        return f"port {port}: {error!r}"


class Agent:
    """The state of one task as its agent knows it, and the loop that keeps it."""

    def __init__(self, environ: Mapping[str, str], assignment: Assignment) -> None:
        self.environ = environ
        self.assignment = assignment
        self.folder = environ["RUNYARD_DIR"]
        self.scratch = environ.get("RUNYARD_SPOOL", "") or self.folder
        self.in_pod = assignment["logs"]["kind"] == "url"
        self.patience = Patience()
        self.target = open_target(assignment["logs"], self.patience, self.scratch)
        spool = Spool(environ.get("RUNYARD_SPOOL", ""), int(environ.get("RUNYARD_SPOOL_BYTES") or 0))
        self.uploader = Uploader(self.target, spool, self._watch_main)
        self.copy = Copy(1) if environ.get("RUNYARD_COPY_LOG") == "1" else None
        self.copying = False  # whether the loop waits for room in it
        self.last_words = LastWords(environ, in_pod=self.in_pod)
        self.notes: list[str] = []
        self.archives: list[dict[str, object]] = []
        self.caches: list[dict[str, object]] = []
        self.needles = self._needles()
        self.logs: dict[int, Log] = {}  # by step, in the order of their begin
        self.by_fd: dict[int, Log] = {}
        self.work: Work | None = None
        self.readiness: Readiness | None = None  # as long as it is waited for
        self.home = self.cwd = ""
        # folders that main sees too; none where it sees all
        self.common = [os.path.realpath(each) for each in environ.get("RUNYARD_COMMON", "").split(":") if each]
        self.owner: tuple[int, int] | None = None  # to whom files are given that a step shall own
        self.refused, self.why = STARTED_BEFORE, ""  # what main gets instead of an answer, and the reason
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
        self.target.warm_up()
        self.wake, self.waker = os.pipe()
        self.poll.register(self.req, select.POLLIN)
        self.poll.register(self.wake, select.POLLIN)
        lines = b""
        requests: list[list[str]] = []
        start = time.monotonic() + self.assignment["start_s"]
        while True:
            self._watch_copy()
            for fd, _ in self.poll.poll(self._pause(start if not lines and not self.logs else None)):
                if fd == self.req:
                    data = os.read(self.req, 65536)
                    if not data:
                        self._main_ended()
                        if self.copy is not None:
                            self.copy.finish(1)
                        return 0
                    *whole, lines = (lines + data).split(b"\n")
                    requests += [line.decode("utf-8", "surrogateescape").split(" ", 1) for line in whole]
                    start = float("inf")
                elif fd == self.wake:
                    os.read(self.wake, 1)
                    self._finish_readiness()
                    self._finish_work()
                elif self.copy is not None and fd == self.copy.fd:
                    self.copy.push()
                elif fd in self.by_fd:
                    self._take(self.by_fd[fd])
            if time.monotonic() > start:
                self.last_words.say("no main", f"main did not come within {self.assignment['start_s']:g} s")
                return 3
            requests = self._answer(requests)
            self._flush_due()

    def open_archives(self) -> Folder | Url:
        target = self.assignment["archives"]
        if target is None:
            raise Failure("this task has no place to save archives")
        return open_target(target, self.patience, self.scratch)

    def open_caches(self) -> Folder | Url | None:
        target = self.assignment["caches"]["write"]
        return None if target is None else open_target(target, self.patience, self.scratch)

    def mask_also(self, value: str) -> None:
        """For a secret that shows up later, such as a password in a URL: logs begun before mask it too."""
        self.needles |= needles_of(value)
        for log in list(self.logs.values()):
            log.masker.needles = sorted(self.needles)

    def _pause(self, start: float | None) -> float | None:
        """Milliseconds until something is due."""
        due = [log.due for log in self.by_fd.values() if log.due is not None]
        if start is not None and start != float("inf"):
            due.append(start)
        return max(0.0, (min(due) - time.monotonic()) * 1000 + 1) if due else None

    def _watch_copy(self) -> None:
        if self.copy is not None and bool(self.copy.backlog) != self.copying:
            self.copying = not self.copying
            if self.copying:
                self.poll.register(self.copy.fd, select.POLLOUT)
            else:
                self.poll.unregister(self.copy.fd)

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
                if self.uploader.behind:
                    log.due = now + FLUSH_S  # larger segments do the store more good than more of them
                else:
                    log.flush()

    def _answer(self, requests: list[list[str]]) -> list[list[str]]:
        """Answer what can be answered now; the rest waits until the work in hand is done."""
        while requests:
            if self.readiness is not None:
                if ["done"] not in requests:
                    return requests
                self.readiness.cancelled.set()
                self.readiness = None
                self._reply(CANCELLED)
            elif self.work is not None and ["stop"] in requests:
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
                    why = f" {self.why}" if answer in (STORE_REFUSED, SERVICE_FAILED) else ""
                    self._reply(answer, (" sealed" if word == "done" else "") + why)
        return requests

    def _reply(self, number: int, more: str = "") -> None:
        line = " ".join(f"{number}{more}".replace(";", ",").split())[:500]
        os.write(self.res, f"{line}\n".encode("utf-8", "replace"))

    def _do(self, word: str, argument: str) -> int | None:
        """One request; the answer, None when it comes later or not at all."""
        if word == "hello":
            self._meet(argument)
            if self.assignment["services"]:
                self.readiness = Readiness(self.assignment["services"], self.waker)
                threading.Thread(target=self.readiness.run, name="readiness", daemon=True).start()
                return None
            return self._greet()
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
            self._start_work(int(argument))
            return None
        else:
            complain(f"main asks for something unknown: {word!r}")
            return UNKNOWN_REQUEST
        return 0

    def _meet(self, ids: str) -> None:
        """The user that main is, who shall own what we write for it. Only root can give files away."""
        if ids and os.geteuid() == 0:
            uid, gid = map(int, ids.split())
            self.owner = (uid, gid) if uid else None

    def _finish_readiness(self) -> None:
        """The services are ready, so main may begin; or they never will be."""
        readiness, self.readiness = self.readiness, None
        if readiness is None:
            return
        answer = self._refuse(SERVICE_FAILED, "service", readiness.failed) if readiness.failed else self._greet()
        self._reply(answer, f" {self.why}" if answer in (STORE_REFUSED, SERVICE_FAILED) else "")

    def _greet(self) -> int:
        """Take the attempt: only one agent ever can, so that no step of the user's runs twice.

        Nothing has run so far: rather than wait for a store that may never come, main is sent home, and the
        attempt made again.
        """
        text = to_json({"run_id": self.assignment["run_id"], "at": utc_now(), "by": os.urandom(8).hex()})
        try:
            until = time.monotonic() + self.assignment["start_s"]
            if not self.target.create("started", text.encode(), until=until):
                return self._refuse(STARTED_BEFORE, "started before", "nothing is run a second time")
        except StoreRefused as error:
            return self._refuse(STORE_REFUSED, "store", str(error))
        self.greeted = True
        return 0

    def _refuse(self, answer: int, what: str, why: str) -> int:
        self.refused, self.why = answer, why
        self.last_words.say(what, why)
        return answer

    def _begin(self, step: int, fd: int) -> Log:
        log = Log(step, fd, Masker(self.needles), self.assignment["log_bytes"], self.uploader, self.copy)
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

    def give_up(self, error: Exception) -> None:
        """Keep what there is, when this program itself has failed; main sees its end."""
        self.patience.until = time.monotonic()
        self.last_words.say("failed", repr(error))
        if self.greeted and not self.sealed:
            self._finish("truncated", f"the agent failed: {error!r}")

    def _finish(self, seal: str, reason: str) -> int:
        """Bring the rest to the store, the manifest last."""
        if self.sealed:
            return 0
        if not self.greeted and self._greet() != 0:
            return self.refused
        for log in list(self.by_fd.values()):
            self._drain(log)
            if log.fd >= 0:
                self.poll.unregister(log.fd)
                log.close()
        self.by_fd.clear()
        self.uploader.join()
        self.uploader.tell_outages()
        self.notes += self.uploader.told
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
            self.target.put("manifest.json", to_json(manifest).encode(), sync=True)
        except StoreRefused as error:
            return self._refuse(STORE_REFUSED, "store", str(error))
        self.sealed = True
        return 0


def open_turns(folder: str) -> tuple[int, int]:
    """The FIFOs of requests and answers, made if main has not. Opening them waits for nobody."""
    umask = os.umask(0)  # main may be another user, and may open them the moment that they are there
    os.makedirs(folder, exist_ok=True)
    for name in ("req", "res"):
        make_fifo(f"{folder}/{name}")
    os.umask(umask)
    req = os.open(f"{folder}/req", os.O_RDONLY | os.O_NONBLOCK)
    return req, os.open(f"{folder}/res", os.O_RDWR)  # main gets end of file when we die


def open_fifo(path: str) -> int:
    """The reading end of a FIFO, made if need be, which anybody may write to.

    Main may have put something else there: behind a link to /proc/self/environ are the keys to the store.
    """
    make_fifo(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no FIFO", path)
    widen(fd)
    return fd


def widen(fd: int) -> None:
    try:
        fcntl.fcntl(fd, getattr(fcntl, "F_SETPIPE_SZ", 1031), PIPE_BYTES)
    except OSError:  # not Linux, or the user has too many large ones
        return


def make_fifo(path: str) -> None:
    try:
        os.mkfifo(path, 0o666)
        os.chmod(path, 0o666)
    except FileExistsError:
        pass


# --- globs and templates ----------------------------------------------------------------------------


class Globs:
    """Doublestar patterns, walked down a tree segment by segment.

    ``**`` is any number of folders, ``*``, ``?`` and ``[a-z]`` stay within a name, ``{a,b}`` is either. A
    state is a set of (pattern, position): so a folder below which nothing can match is never entered.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns: list[list[Segment | None]] = []  # None is `**`
        for pattern in patterns:
            for plain in expand_braces(pattern):
                names = [name for name in plain.split("/") if name not in ("", ".")]
                if ".." in names:
                    raise Failure(f"the pattern {pattern!r} leaves its source_dir")
                self.patterns.append([None if name == "**" else compile_name(name) for name in names])

    def start(self) -> State:
        return self._closed((pattern, 0) for pattern in range(len(self.patterns)))

    def enter(self, state: State, name: str) -> State:
        """The state of the entry ``name`` in a folder of this state."""
        following = []
        for pattern, at in state:
            segments = self.patterns[pattern]
            if at < len(segments):
                segment = segments[at]
                if segment is None:
                    following.append((pattern, at))
                elif segment(name):
                    following.append((pattern, at + 1))
        return self._closed(following)

    def matches(self, state: State) -> bool:
        return any(at == len(self.patterns[pattern]) for pattern, at in state)

    def goes_on(self, state: State) -> bool:
        return any(at < len(self.patterns[pattern]) for pattern, at in state)

    def _closed(self, state: Iterable[tuple[int, int]]) -> State:
        closed = set()
        for pattern, at in state:
            closed.add((pattern, at))
            while at < len(self.patterns[pattern]) and self.patterns[pattern][at] is None:
                at += 1
                closed.add((pattern, at))
        return frozenset(closed)


def expand_braces(pattern: str) -> list[str]:
    """``a{b,c{d,e}}`` → ab, acd, ace. A brace without its other half is itself."""
    depth, start, at = 0, -1, 0
    commas: list[int] = []
    while at < len(pattern):
        letter = pattern[at]
        if letter == "\\":
            at += 1
        elif letter == "{":
            depth += 1
            if depth == 1:
                start, commas = at, []
        elif letter == "," and depth == 1:
            commas.append(at)
        elif letter == "}" and depth:
            depth -= 1
            if not depth:
                edges = [start, *commas, at]
                middles = [pattern[a + 1 : b] for a, b in zip(edges, edges[1:])]  # noqa: B905, RUF007 (3.9)
                made = [pattern[:start] + middle + pattern[at + 1 :] for middle in middles]
                expanded = [each for one in made for each in expand_braces(one)]
                if len(expanded) > 1000:
                    raise Failure(f"the pattern {pattern[:60]!r} stands for more than 1000 patterns")
                return expanded
        at += 1
    return [pattern]


def compile_name(glob: str) -> Segment:
    """A test for one name of a path."""
    import re

    if not re.search(r"[*?\[\\]", glob):
        return glob.__eq__
    out, at = [], 0
    while at < len(glob):
        letter = glob[at]
        close = glob.find("]", at + 2) if letter == "[" else -1
        if letter == "*":
            out.append(".*")
        elif letter == "?":
            out.append(".")
        elif letter == "[" and close > 0:
            inside = glob[at + 1 : close].replace("\\", "\\\\").replace("[", "\\[")
            inside = re.sub("(?<=-)-|[&|~]", r"\\\g<0>", inside)  # for `re`, these may come to mean more one day
            out.append(f"[^{inside[1:]}]" if inside[0] in "!^" else f"[{inside}]")
            at = close
        else:
            if letter == "\\" and at + 1 < len(glob):
                at += 1
            out.append(re.escape(glob[at]))
        at += 1
    try:
        compiled = re.compile("".join(out), re.DOTALL)
    except re.error as error:
        raise Failure(f"the pattern {glob!r} cannot be read: {error}") from error
    return lambda name: compiled.fullmatch(name) is not None


def render_key(template: str, call: Callable[[str, str | None], str]) -> str:
    """A cache key with each ``{{ function "argument" }}`` replaced by what ``call`` says."""
    import re

    def replace(match: re.Match[str]) -> str:
        inside = re.fullmatch(r'-?\s*([a-z0-9]+)(?:\s+("(?:[^"\\]|\\.)*"|`[^`]*`))?\s*-?', match[1])
        if not inside:
            raise Failure(f"the key has something that cannot be read: {match[0][:80]!r}")
        argument = inside[2]
        if argument is not None and argument[0] == '"':
            argument = parse_json(argument)
        elif argument is not None:
            argument = argument[1:-1]
        return call(inside[1], argument)

    key = re.sub(r"\{\{(.*?)\}\}", replace, template, flags=re.DOTALL)
    length = len(escape(key))
    if not 1 <= length <= KEY_CHARACTERS:
        raise Failure(
            f"a cache key has 1 to {KEY_CHARACTERS} characters (any but letters, digits and -_.~+=@, count as 3 "
            f"for each of their bytes), not {length}: {key[:60]!r}"
        )
    return key


def escape(words: str) -> str:
    """User's words as one part of a key in the store; the same rule as runyard.store.paths.escape."""
    from urllib.parse import quote

    escaped = quote(words, safe="-_.~+=@,")
    return escaped.replace(".", "%2E") if set(escaped) == {"."} else escaped


# --- archives ---------------------------------------------------------------------------------------


def find_entries(globs: Globs, source: str, dest: str) -> Iterator[Entry]:
    """Name in the archive, path and source of all that matches below ``source``; links are not followed."""
    base = [part for part in dest.split("/") if part not in ("", ".")]
    if ".." in base:
        raise Failure(f"the dest_dir {dest!r} leaves the archive")

    def walk(folder: str, names: list[str], state: State) -> Iterator[Entry]:
        if names and globs.matches(state):
            yield "/".join(names), folder, source
        if not globs.goes_on(state):
            return
        try:
            found = list(os.scandir(folder))
        except FileNotFoundError:
            return
        except PermissionError as error:
            raise Failure(f"{folder} cannot be read: {error.strerror}") from error
        for entry in found:
            inner = globs.enter(state, entry.name)
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path, [*names, entry.name], inner)
            elif globs.matches(inner):
                yield "/".join([*names, entry.name]), entry.path, source

    return walk(source, base, globs.start())


class HashingFile:
    """A file being written, with its size and digest so far."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "wb", buffering=0)  # noqa: SIM115 (closed by its owner)
        self.size = 0
        self.digest = sha256()

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data)
        while view:
            view = view[self.file.write(view) or 0 :]
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        self.file.close()


class Forward:
    """A stream that only goes on, for `TarFile`, which asks where it is and skips by seeking.

    Its own streams (``w|``, ``r|``) copy every byte several times, which is most of what packing costs.
    """

    def __init__(self, file: Any) -> None:
        self.file, self.at = file, 0
        self.unread = b""  # what was read to look at it

    def tell(self) -> int:
        return self.at

    def write(self, data: bytes) -> int:
        self.file.write(data)
        self.at += len(data)
        return len(data)

    def read(self, size: int) -> bytes:
        data: bytes
        if self.unread:
            data, self.unread = self.unread[:size], self.unread[size:]
        else:
            data = self.file.read(size)
        self.at += len(data)
        return data

    def give_back(self, data: bytes) -> None:
        self.unread = data
        self.at -= len(data)

    def take(self, view: memoryview) -> int:
        size: int = self.file.readinto(view)
        self.at += size
        return size

    def seek(self, offset: int) -> int:
        while self.at < offset and self.read(min(offset - self.at, 1 << 20)):
            pass
        return self.at


def members(stream: Forward) -> Iterator[TarInfo]:
    """What `tarfile` reads; headers like those of most files it is not asked for, which is most of its time.

    When a member comes the stream is at its content, of which nothing or all may have been read at the next.
    """
    import tarfile

    with tarfile.TarFile("", "r", stream) as tar:  # type: ignore[arg-type]
        member = tar.next()
        while member is not None:
            yield member
            stream.seek(tar.offset)
            block = stream.read(tarfile.BLOCKSIZE)
            member = None if tar.pax_headers else read_plain(block, tarfile.TarInfo)
            if member is not None:
                tar.offset = stream.at + member.size + -member.size % tarfile.BLOCKSIZE
            else:
                stream.give_back(block)
                member = tar.next()


def read_plain(block: bytes, new: type[TarInfo]) -> TarInfo | None:
    """A file or folder with a short name and nothing unusual about it; None for any other header."""
    name, kind = block[:100].rstrip(b"\0"), block[156:157]
    numbers = block[100:107], block[124:135], block[136:147], block[148:154]
    if len(block) != 512 or block[257:263] != b"ustar\0" or block[345:500].strip(b"\0"):
        return None
    if kind not in (b"0", b"5"):
        return None
    if not name or b"\0" in name or not name.isascii() or not all(map(bytes.isdigit, numbers)):
        return None
    try:
        mode, size, mtime, total = (int(number, 8) for number in numbers)
    except ValueError:
        return None
    if total != sum(block[:148]) + 256 + sum(block[156:]) or (size and kind == b"5"):
        return None
    member = new(name.decode())
    member.mode, member.size, member.mtime, member.type = mode, size, mtime, kind
    return member


class Packer:
    """Writes entries into a compressed tar that depends on them alone: names sorted, no owners, whole seconds.

    zstd where there is a codec (``compression.zstd`` of Python 3.14, or the program), else gzip.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.ending, self.program = self._codec()

    @staticmethod
    def _codec() -> tuple[str, str]:
        import importlib.util
        import shutil

        if sys.version_info >= (3, 14) and importlib.util.find_spec("_zstd"):
            return "tar.zst", ""
        program = shutil.which("zstd")
        return ("tar.zst", program) if program else ("tar.gz", "")

    def pack(self, entries: Iterable[Entry], path: str) -> tuple[int, str, int]:
        """Size, SHA-256 and number of entries of the archive that is now at ``path``."""
        out = HashingFile(path)
        try:
            with self._compressor(out) as sink:
                files = self._write(entries, sink)
            return out.size, out.digest.hexdigest(), files
        finally:
            out.close()

    def _compressor(self, out: HashingFile) -> AbstractContextManager[Sink]:
        if self.ending == "tar.gz":
            import gzip

            return gzip.GzipFile("", "wb", 4, out, mtime=0)
        if not self.program:
            from compression.zstd import ZstdFile  # type: ignore[import-not-found, unused-ignore]

            return ZstdFile(out, "wb", level=3)  # type: ignore[no-any-return, unused-ignore]
        return Compressor([self.program, "-q", "-c", "-3"], out, self.work)

    def _write(self, entries: Iterable[Entry], sink: Sink) -> int:
        import tarfile

        seen: dict[str, Entry] = {}
        for entry in entries:
            name, path, _ = entry
            other = seen.setdefault(name, entry)[1]
            if other != path and not (os.path.isdir(path) and os.path.isdir(other)):
                raise Failure(f"{other} and {path} would both become {name}")
        self.sink, self.heads = sink, Heads()
        with tarfile.TarFile("", "w", Forward(sink), tarfile.PAX_FORMAT) as tar:  # type: ignore[arg-type]
            return sum(self._add(tar, *seen[name]) for name in sorted(seen))

    def _add(self, tar: TarFile, name: str, path: str, source: str) -> bool:
        import tarfile

        self.work.check()
        try:
            found = os.lstat(path)
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = stat.S_IMODE(found.st_mode) & 0o777, int(found.st_mtime)
            if stat.S_ISREG(found.st_mode):
                self._add_file(tar, info, path)
            elif stat.S_ISDIR(found.st_mode):
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            elif stat.S_ISLNK(found.st_mode):
                info.type, info.mode = tarfile.SYMTYPE, 0o777
                info.linkname = relative_link(path, source)
                check_link(name.split("/"), info.linkname)
                tar.addfile(info)
            else:
                self.work.say(f"{path} is left out: not a file, folder or link")
                return False
        except FileNotFoundError:
            self.work.say(f"{path} is left out: it vanished")
            return False
        except PermissionError as error:
            raise Failure(f"{path} cannot be read: {error.strerror}") from error
        return True

    def _add_file(self, tar: TarFile, info: TarInfo, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            info.size = os.fstat(fd).st_size
            head = self.heads.make(tar, info)
            self.sink.write(head)
            copied = self._copy(fd, info.size)
            filling = bytes(
                info.size - copied + -info.size % 512
            )  # tar was promised a size: zeros for what is gone
            self.sink.write(filling)
            tar.offset += len(head) + copied + len(filling)
            if copied < info.size or os.pread(fd, 1, info.size):
                self.work.say(f"{path} changed while it was packed: the archive has {info.size} bytes of it")
        finally:
            os.close(fd)

    def _copy(self, fd: int, size: int) -> int:
        """As many bytes of a file, or all that it has; their number."""
        at = self.sink.send(fd, size) if isinstance(self.sink, Compressor) else 0
        while at < size:
            self.work.check()
            data = os.pread(fd, min(size - at, 1 << 18), at)
            if not data:
                break
            self.sink.write(data)
            at += len(data)
        return at


class Heads:
    """The headers of files, as `tarfile` makes them, at a tenth of the cost for those that are like most."""

    def __init__(self) -> None:
        self.model = b""

    def make(self, tar: TarFile, info: TarInfo) -> bytes:
        plain = info.name.isascii() and len(info.name) <= 100 and 0 <= info.mtime < 8**11 and info.size < 8**11
        if not plain:
            return info.tobuf(tar.format, tar.encoding, tar.errors)
        if not self.model:
            like = type(info)("x")
            like.mode = like.size = like.mtime = 0
            self.model = like.tobuf(tar.format, tar.encoding, tar.errors)
        head = bytearray(self.model)
        head[:100] = info.name.encode().ljust(100, b"\0")
        head[100:108] = b"%07o\0" % info.mode
        head[124:136] = b"%011o\0" % info.size
        head[136:148] = b"%011o\0" % int(info.mtime)
        head[148:156] = b" " * 8
        head[148:155] = b"%06o\0" % sum(head)
        return bytes(head)


class Compressor:
    """A program that compresses from its input to its output; a thread takes the output to the file."""

    def __init__(self, command: list[str], out: HashingFile, work: Work) -> None:
        self.out, self.work = out, work
        self.error: BaseException | None = None
        self.process = work.start(command, stdin=-1, stdout=-1, stderr=work.output)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        widen(self.process.stdin.fileno())
        widen(self.process.stdout.fileno())
        self.thread = threading.Thread(target=self._carry, daemon=True)
        self.thread.start()

    def _carry(self) -> None:
        assert self.process.stdout is not None
        view = memoryview(bytearray(1 << 18))
        try:
            while size := self.process.stdout.readinto1(view):  # type: ignore[attr-defined]
                self.out.write(view[:size])
        except BaseException as error:
            self.error = error
        finally:
            self.process.stdout.close()

    def write(self, data: bytes) -> int:
        assert self.process.stdin is not None
        try:
            return self.process.stdin.write(data)
        except BrokenPipeError:
            raise self._ended() from None

    def send(self, fd: int, size: int) -> int:
        """Bytes of a file that went over without a way through this program; the rest has to be written."""
        assert self.process.stdin is not None
        if sys.platform != "linux" or size < SENT_BYTES:
            return 0
        at = 0
        try:
            self.process.stdin.flush()
            while at < size:
                self.work.check()
                sent = os.sendfile(self.process.stdin.fileno(), fd, at, min(size - at, 1 << 20))
                if not sent:
                    break
                at += sent
        except BrokenPipeError:
            raise self._ended() from None
        except OSError:  # a file system that cannot do this
            return at
        return at

    def _ended(self) -> BaseException:
        self.thread.join()
        return self.error or Failure("the compressor ended too early")

    def __enter__(self) -> Compressor:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self.process.stdin is not None
        if kind is not None:
            self.process.kill()
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            self.error = self.error or Failure("the compressor ended too early")
        self.thread.join()
        code = self.work.wait(self.process)
        if kind is None and (self.error or code):
            self.work.check()
            raise self.error or Failure(f"the compressor ended with {code}")


def relative_link(path: str, source: str) -> str:
    """Where a link leads. An absolute one within ``source`` is made relative, to hold wherever it is restored."""
    target = os.readlink(path)
    inside = target.startswith("/") and os.path.normpath(target).startswith(os.path.normpath(source) + "/")
    return os.path.relpath(target, os.path.dirname(path)) if inside else target


def check_link(parts: list[str], target: str) -> None:
    """Raises Failure if a link of this name, from the top of its archive, leaves it."""
    whole = os.path.normpath("/".join([*parts[:-1], target]))
    if target.startswith("/") or whole == ".." or whole.startswith("../"):
        raise Failure(f"{'/'.join(parts)} is a link that leaves its folder, to {target}; leave it out by `paths`")


class Unpacker:
    """Writes the members of an archive below a folder, over what is there, and nowhere else.

    Every member is reached from the folder's descriptor, part by part, never through a link; what is in the
    way of a folder or file is replaced, since a later layer is right.
    """

    def __init__(self, folder: str, work: Work) -> None:
        make_folders(folder, work.agent.owner)
        self.folder, self.work = os.path.realpath(folder), work
        self.root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.parent: tuple[list[str], int] = ([], os.dup(self.root))
        self.folders: dict[str, tuple[int, int]] = {}
        self.links: list[str] = []
        self.count = 0
        self.view = memoryview(bytearray(1 << 18))

    def __enter__(self) -> Unpacker:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.parent[1])
        os.close(self.root)

    def add(self, member: TarInfo, content: Forward) -> None:
        self.work.check()
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if member.name.startswith("/") or ".." in parts:
            raise Failure(f"{member.name!r} would leave the folder; nothing of it is written")
        if not (member.isreg() or member.isdir() or member.issym()) or member.issparse():
            raise Failure(f"{member.name!r} is neither file, folder nor link; it is refused")
        if not parts:
            return
        self.count += 1
        try:
            fd = self._enter(parts[:-1])
            if member.isdir():
                os.close(self._make_folder(fd, parts[-1]))
                self.folders["/".join(parts)] = (member.mode & 0o777, int(member.mtime))
                return
            if member.issym():
                self._clear(fd, parts)
                check_link(parts, member.linkname)
                os.symlink(member.linkname, parts[-1], dir_fd=fd)
                self.links.append("/".join(parts))
                self._own(parts[-1], fd)
            else:
                self._write(fd, parts, member, content)
        except OSError as error:
            where = f"{member.name!r} in {self.folder}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Failure(f"no room left for {where}") from error
            raise Failure(f"{where} cannot be written: {error.strerror}") from error

    def finish(self) -> None:
        """Modes and times of folders, the innermost first; and no link may have become a way out."""
        inside = self.folder.rstrip("/") + "/"
        places = [(name, os.path.join(self.folder, name)) for name in self.links]
        ways_out = [(name, path) for name, path in places if not f"{os.path.realpath(path)}/".startswith(inside)]
        for _, path in ways_out:
            remove(path)
        if ways_out:
            raise Failure(f"{ways_out[0][0]!r} is a link that leaves the folder; it is removed again")
        for name, (mode, mtime) in sorted(self.folders.items(), reverse=True):
            fd = self._enter(name.split("/"))
            os.fchmod(fd, mode)
            os.utime(fd, (mtime, mtime))

    def _enter(self, parts: list[str]) -> int:
        if parts != self.parent[0]:
            fd = os.dup(self.root)
            for part in parts:
                try:
                    inner = self._make_folder(fd, part)
                finally:
                    os.close(fd)
                fd = inner
            os.close(self.parent[1])
            self.parent = (parts, fd)
        return self.parent[1]

    def _make_folder(self, fd: int, name: str) -> int:
        for _ in range(2):
            try:
                return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                os.unlink(name, dir_fd=fd)
        os.mkdir(name, dir_fd=fd)
        self._own(name, fd)
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)

    def _clear(self, fd: int, parts: list[str]) -> None:
        try:
            os.unlink(parts[-1], dir_fd=fd)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
            try:
                os.rmdir(parts[-1], dir_fd=fd)
            except OSError as inner:
                raise Failure(
                    f"{'/'.join(parts)!r} is a folder with something in it, here in {self.folder}"
                ) from inner

    def _write(self, parent: int, parts: list[str], member: TarInfo, content: Forward) -> None:
        fd = self._make_file(parent, parts)
        try:
            left = member.size
            while left:
                self.work.check()
                size = content.take(self.view[: min(left, len(self.view))])
                if not size:
                    raise Failure(f"the archive ends in the middle of {member.name!r}")
                left -= size
                at = 0
                while at < size:
                    at += os.write(fd, self.view[at:size])
            os.fchmod(fd, member.mode & 0o777)
            if self.work.agent.owner is not None:
                os.fchown(fd, *self.work.agent.owner)
            os.utime(fd, (int(member.mtime), int(member.mtime)))
        finally:
            os.close(fd)

    def _make_file(self, parent: int, parts: list[str]) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(parts[-1], flags, 0o600, dir_fd=parent)
        except FileExistsError:  # seldom: a later layer, or a second restore
            self._clear(parent, parts)
            return os.open(parts[-1], flags, 0o600, dir_fd=parent)

    def _own(self, name: str, fd: int) -> None:
        if self.work.agent.owner is not None:
            os.chown(name, *self.work.agent.owner, dir_fd=fd, follow_symlinks=False)


def unpack(work: Work, stored: Stored, folder: str) -> int:
    """Verify an archive whole, then write what is in it below ``folder``. The number of its entries."""
    import tarfile

    with open_stored(work, stored) as file:
        size, digest = measure(file, work.check)
        if size != stored["size"] or digest != stored["sha256"]:
            raise Failure(
                f"the archive {stored['file']} is not what was saved: {size} bytes, SHA-256 {digest}; "
                f"it should have {stored['size']} bytes, SHA-256 {stored['sha256']}"
            )
        file.seek(0)
        try:
            with decompressed(work, file, stored["file"]) as plain, Unpacker(folder, work) as unpacker:
                stream = Forward(plain)
                for member in members(stream):
                    unpacker.add(member, stream)
                unpacker.finish()
                return unpacker.count
        except (tarfile.TarError, EOFError) as error:
            raise Failure(f"the archive {stored['file']} cannot be read: {error}") from error


def open_stored(work: Work, stored: Stored | StoredPack) -> IO[bytes]:
    source = stored["source"]
    if source.startswith(("http://", "https://")):
        return download(work, source)
    try:
        return open(source, "rb", buffering=0)
    except FileNotFoundError as error:
        raise Failure(f"the archive {source} is not there any more") from error
    except OSError as error:
        raise Failure(f"the archive {source} cannot be read: {error.strerror}") from error


def download(work: Work, url: str) -> IO[bytes]:
    """What is at ``url``, in a file without a name. After a cut it goes on where it was."""
    import tempfile
    from http.client import HTTPException
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")

    def fetch() -> bool:
        work.check()
        have = file.seek(0, os.SEEK_END)
        connection = connect(parts.scheme, parts.netloc)
        try:
            connection.request("GET", path, headers={"Range": f"bytes={have}-"} if have else {})
            response = connection.getresponse()
            if response.status not in (200, 206):
                judge_answer(response.status, response.read(4096).decode("utf-8", "replace"))
            if response.status == 200:
                file.seek(0)
                file.truncate()
            left = int(response.headers.get("Content-Length", -1))
            for data in iter(lambda: response.read(1 << 20), b""):
                work.check()
                keep_piece(file, data)
                left -= len(data)
            if left > 0:
                raise StoreAway(f"the answer of {parts.netloc} was cut")
            return True
        except (OSError, HTTPException) as error:
            raise judge_connection(error, parts.netloc) from error
        finally:
            connection.close()

    file: IO[bytes] = tempfile.TemporaryFile(dir=work.agent.scratch, buffering=0)  # noqa: SIM115 (the caller's)
    try:
        work.agent.patience.persist(fetch)
    except BaseException as error:
        file.close()
        if isinstance(error, StoreRefused):
            raise Failure(f"the archive cannot be fetched: {error}") from error
        raise
    file.seek(0)
    return file


def keep_piece(file: IO[bytes], data: bytes) -> None:
    try:
        keep_whole(file, data)
    except OSError as error:
        raise Failure(f"no place for a download: {error.strerror}") from error


def decompressed(work: Work, file: IO[bytes], name: str) -> AbstractContextManager[IO[bytes]]:
    if name.endswith(".gz"):
        import gzip

        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    ending, program = Packer._codec()
    if ending != "tar.zst":
        raise Failure(f"{name} is compressed with zstd, for which there is neither a program nor a library here")
    if not program:
        from compression.zstd import ZstdFile  # type: ignore[import-not-found, unused-ignore]

        return ZstdFile(file)  # type: ignore[no-any-return, unused-ignore]
    return Decompressor([program, "-q", "-d", "-c"], file, work)


class Decompressor:
    """The output of a program that reads ``file``."""

    def __init__(self, command: list[str], file: IO[bytes], work: Work) -> None:
        self.work = work
        self.process = work.start(command, stdin=file.fileno(), stdout=-1, stderr=work.output)
        assert self.process.stdout is not None
        widen(self.process.stdout.fileno())

    def __enter__(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self.process.stdout is not None
        if kind is not None:
            self.process.kill()
        for _ignored in iter(lambda: self.process.stdout.read(1 << 18), b""):  # type: ignore[union-attr]
            pass  # tar ends with zeros that nobody reads
        self.process.stdout.close()
        code = self.work.wait(self.process)
        if kind is None and code:
            self.work.check()
            raise Failure(f"the decompressor ended with {code}")


# --- the agent's own steps --------------------------------------------------------------------------


class Work:
    """One step that the agent does itself, in a thread of its own.

    Its log goes through a pipe, as any step's goes through a FIFO. A cancel kills the program that runs for
    it, and else is seen at the next `check`.
    """

    def __init__(self, agent: Agent, step: int, output: int) -> None:
        self.agent, self.step, self.output = agent, step, output
        self.code = 1
        self.ended = threading.Event()
        self.cancelled = threading.Event()
        self.programs: set[Popen[bytes]] = set()

    def cancel(self) -> None:
        self.cancelled.set()
        for program in list(self.programs):
            self._kill(program)

    def check(self) -> None:
        """Called wherever it may take long."""
        if self.cancelled.is_set():
            raise Failure("cancelled")

    def say(self, text: str) -> None:
        data = f"{text}\n".encode("utf-8", "surrogateescape")
        while data:
            data = data[os.write(self.output, data) :]

    def start(self, command: list[str], **kwargs: Any) -> Popen[bytes]:
        """A program that a cancel ends. It has a session of its own, so that all its children end with it."""
        import subprocess

        program = subprocess.Popen(command, start_new_session=True, **kwargs)
        self.programs.add(program)
        if self.cancelled.is_set():
            self._kill(program)
        return program

    def wait(self, program: Popen[bytes]) -> int:
        code = program.wait()
        self.programs.discard(program)
        return code

    @staticmethod
    def _kill(program: Popen[bytes]) -> None:
        try:
            os.killpg(program.pid, signal.SIGKILL)
        except OSError:
            return

    def path(self, text: str) -> str:
        """A folder that the user named: ``~`` is main's home, others are below its working directory."""
        if text == "~" or text.startswith("~/"):
            text = self.agent.home + text[1:]
        path = os.path.normpath(os.path.join(self.agent.cwd, text))
        if self.agent.common:
            # a step may have made a link there: behind it the agent would find its own container instead of main's
            real = os.path.realpath(path)
            if not any(real == each or real.startswith(f"{each}/") for each in self.agent.common):
                raise Failure(f"{text} leads to {real}, which the agent does not share with main")
        return path

    def run(self) -> None:
        try:
            self._do(self.agent.assignment["steps"][self.step])
            self.code = 0
        except (Failure, StoreRefused, StoreAway) as error:
            self.say(f"runyard: {error}")
            self.code = CANCELLED if self.cancelled.is_set() else 1
        except Exception as error:
            import traceback

            complain(traceback.format_exc())
            self.say(f"runyard: the agent failed: {error!r}")
        finally:
            os.close(self.output)
            self.ended.set()
            os.write(self.agent.waker, b"x")

    def _do(self, step: Step) -> None:
        if step["type"] == "clone":
            Clone(self).run(depth=step.get("depth"), submodules=step.get("recurse_submodules", False))
        elif step["type"] == "save_to_workspace":
            save_to_workspace(self, step)
        elif step["type"] == "restore_workspace":
            restore_workspace(self, step)
        elif step["type"] in ("save_cache", "restore_cache"):
            Cache(self).run(step)
        else:
            raise Failure(f"the agent does not know steps of the type {step['type']}")


def gather(work: Work, contents: list[Content], default: list[str]) -> list[Entry]:
    """All entries that ``contents`` name. Raises Failure for a source that is not there."""
    entries: list[Entry] = []
    for content in contents:
        source = work.path(content["source_dir"])
        if not os.path.isdir(source):
            what = "is not a folder" if os.path.lexists(source) else "is not there"
            raise Failure(f"the source_dir {content['source_dir']!r} ({source}) {what}")
        entries += find_entries(Globs(content["paths"] or default), source, content["dest_dir"])
    return entries


def pack_into(work: Work, target: Folder | Url, entries: list[Entry]) -> tuple[str, str, Facts]:
    """Pack into a temporary file of the target: its path, the ending of its name, and what is known of it."""
    packer = Packer(work)
    path = target.temporary()
    try:
        target.prepare()
        size, digest, files = packer.pack(entries, path)
    except StoreRefused as error:
        raise Failure(str(error)) from error
    except OSError as error:
        remove(path)
        raise Failure(str(judge(error, os.path.dirname(path)))) from error
    except BaseException:
        remove(path)
        raise
    return path, packer.ending, {"size": size, "sha256": digest, "files": files, "checked": False}


def save_to_workspace(work: Work, step: Step) -> None:
    target = work.agent.open_archives()
    entries = gather(work, step["contents"], [])
    if not entries:
        work.say("nothing matches: the archive is empty")
    path, ending, facts = pack_into(work, target, entries)
    name = f"{work.step}.{ending}"
    try:
        facts["checked"] = isinstance(target, Url) and target.keep(path, name)
        if isinstance(target, Folder):
            target.keep(path, name)
    finally:
        remove(path)
    target.put(f"{work.step}.json", to_json({"step": work.step, "file": name, **facts}).encode(), sync=True)
    work.agent.archives.append({"step": work.step, "file": name, **facts})
    work.say(f"saved {_size_of(facts)}")


def _size_of(facts: Facts) -> str:
    return f"{facts['files']} {'entry' if facts['files'] == 1 else 'entries'} in {facts['size']} bytes"


def restore_workspace(work: Work, step: Step) -> None:
    folder = work.path(step["dest_dir"])
    for stored in work.agent.assignment["restore"]:
        files = unpack(work, stored, folder)
        work.say(f"restored {files} entries of {stored['task']}, step {stored['step']}")
    if not work.agent.assignment["restore"]:
        work.say("no task before this one has saved anything")


class Cache:
    """The steps `save_cache` and `restore_cache`. What goes wrong here is said and noted, and fails nothing."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.access = work.agent.assignment["caches"]
        self.more: dict[str, object] = {}  # what a worker must know of the archive, to do the rest
        self.folder, self.fallback = (
            (self.access[which] or {}).get("folder", "") for which in ("read", "fallback")
        )

    def run(self, step: Step) -> None:
        key = step.get("key", "")
        try:
            if step["type"] == "save_cache":
                key, outcome, message = self._save(step)
            else:
                key, outcome, message = self._restore(step)
        except (Failure, StoreRefused, StoreAway, OSError) as error:
            self.work.check()
            outcome, message = "failed", str(error)
        self.work.say(f"cache {outcome}: {key}" + (f" ({message})" if message else ""))
        record = {"step": self.work.step, "key": key, "outcome": outcome, "message": message, **self.more}
        self.work.agent.caches.append(record)

    def _restore(self, step: Step) -> tuple[str, str, str]:
        keys, said = [], []
        for template in step["keys"]:
            try:
                keys.append(self._render(template))
            except Failure as error:  # the next key may be better
                said.append(str(error))
        for key in keys:
            found = self._exact(key) or self._newest(key)
            if found is not None:
                files = unpack(self.work, found, self.work.path(step["dest_dir"]))
                self._touch(found)
                if self.access["known"]:  # in a folder we have noted the use ourselves
                    self.more = {"file": found["file"], "fallback": found["fallback"]}
                return found["key"], "hit", f"{files} entries"
        return ", ".join(keys), "miss", "; ".join(said)

    def _exact(self, key: str) -> Stored | None:
        known = [stored for stored in self.access["known"] if stored["key"] == key]
        known.sort(key=lambda stored: stored["fallback"])
        return known[0] if known else self._load(self.folder, key) or self._load(self.fallback, key)

    def _own(self, key: str) -> bool:
        """Whether the group that is written to has the key."""
        known = any(stored["key"] == key and not stored["fallback"] for stored in self.access["known"])
        return known or self._load(self.folder, key) is not None

    def _newest(self, prefix: str) -> Stored | None:
        """The newest of the group's own that begin so; where there is none, of the second group's."""
        for second in (False, True):
            found = [stored for stored in self.access["known"] if stored["fallback"] == second]
            found += self._entries(self.fallback if second else self.folder, prefix)
            found = [stored for stored in found if stored["key"].startswith(prefix)]
            if found:
                return max(found, key=lambda stored: stored["modified_at"])
        return None

    def _entries(self, folder: str, prefix: str) -> list[Stored]:
        from urllib.parse import unquote

        try:
            names = os.listdir(folder) if folder else []
        except FileNotFoundError:
            return []
        keys = [unquote(name[:-5]) for name in names if name.endswith(".json")]
        return [stored for key in keys if key.startswith(prefix) and (stored := self._load(folder, key))]

    def _load(self, folder: str, key: str) -> Stored | None:
        """An entry of a folder; None where there is none, or none that can be used."""
        if not folder:
            return None
        try:
            with open(os.path.join(folder, f"{escape(key)}.json"), "rb") as file:
                facts = parse_json(file.read())
            source = os.path.join(folder, os.path.basename(facts["file"]))
            return {
                "key": key,
                "file": facts["file"],
                "source": source,
                "size": facts["size"],
                "sha256": facts["sha256"],
                "modified_at": f"{os.stat(source).st_mtime_ns:020d}",
                "fallback": folder == self.fallback,
            }
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _touch(self, stored: Stored) -> None:
        """The time of its last use, for the cleanup. In a pod a worker notes it."""
        folder = self.fallback if stored["fallback"] else self.folder
        if folder:
            try:
                os.utime(os.path.join(folder, f"{escape(stored['key'])}.json"))
            except OSError:
                return

    def _save(self, step: Step) -> tuple[str, str, str]:
        key = self._render(step["key"])
        target = self.work.agent.open_caches()
        if target is None:
            return key, "failed", "this run may only read its caches"
        if self._own(key):
            return key, "exists", ""
        path, ending, facts = pack_into(self.work, target, gather(self.work, step["contents"], ["**"]))
        try:
            if isinstance(target, Url):
                self._offer(target, path, f"{escape(key)}!{os.urandom(8).hex()}.{ending}", facts)
            elif not self._commit(target, path, key, f"{escape(key)}.{ending}", facts):
                return key, "exists", ""
        finally:
            remove(path)
        return key, "saved", _size_of(facts)

    def _commit(self, target: Folder, path: str, key: str, name: str, facts: Facts) -> bool:
        """Make it an entry of the folder; False where another was first."""
        if not target.keep(path, name, absent=True):
            if self._own(key):
                return False
            facts.update(target.facts_of(name))  # of one who has not come as far as its .json
        record = {"key": key, "file": name, "size": facts["size"], "sha256": facts["sha256"]}
        return target.create(f"{escape(key)}.json", to_json({**record, "files": facts["files"]}).encode())

    def _offer(self, target: Url, path: str, name: str, facts: Facts) -> None:
        """Bring it to the store under a name that no other has: whether it becomes the entry, a worker decides.

        A presigned POST cannot say "only if absent"; and an archive without its record is no entry.
        """
        target.keep(path, name)
        self.more = {
            "file": name,
            "size": facts["size"],
            "sha256": facts["sha256"],
            "files": facts["files"],
        }

    def _render(self, template: str) -> str:
        return render_key(template, self._call)

    def _call(self, function: str, argument: str | None) -> str:
        if function in ("md5sum", "sha256sum", "env"):
            if argument is None:
                raise Failure(f"{function} in a key needs an argument in quotes")
            return self._env(argument) if function == "env" else self._sum(function, argument)
        if argument is not None:
            raise Failure(f"{function} in a key takes no argument")
        if function in ("os", "arch"):
            return platform_word(function)
        if function == "unixtime":
            return str(time.time_ns())  # as agola has it: no two tasks make the same key
        forms = {"year": "%Y", "month": "%m", "day": "%d"}
        if function not in forms:
            raise Failure(
                f"a key may call md5sum, sha256sum, env, os, arch, unixtime, year, month, day; not {function}"
            )
        return time.strftime(forms[function], time.gmtime())

    def _env(self, name: str) -> str:
        """A variable of main: it writes those that a key names into files, since its environment is not ours."""
        if "/" in name or not name:
            return ""
        try:
            with open(f"{self.work.agent.folder}/env.{name}", "rb") as file:
                return file.read(4096).decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def _sum(self, function: str, name: str) -> str:
        import hashlib

        digest = hashlib.md5(usedforsecurity=False) if function == "md5sum" else hashlib.sha256()
        try:
            with open(self.work.path(name), "rb") as file:
                for data in iter(lambda: file.read(1 << 20), b""):
                    digest.update(data)
        except OSError as error:
            raise Failure(f"{name} cannot be read: {error.strerror}") from error
        return digest.hexdigest()


def platform_word(which: str) -> str:
    """Operating system or architecture, in the words of Go, which container images use too."""
    import platform

    if which == "os":
        return platform.system().lower()
    machine = platform.machine().lower()
    words = {"x86_64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386"}
    return "arm" if machine.startswith("armv") else words.get(machine, machine)


# --- clone ------------------------------------------------------------------------------------------

_OTHERS = (  # variables GIT_… of whatever repository we were called in
    *("DIR", "WORK_TREE", "INDEX_FILE", "OBJECT_DIRECTORY", "ALTERNATE_OBJECT_DIRECTORIES", "COMMON_DIR"),
    *("NAMESPACE", "PREFIX", "QUARANTINE_PATH", "CEILING_DIRECTORIES"),
)
_HELPER = """!f() { [ "$1" != get ] || printf 'username=%s\\npassword=%s\\n' "$RUNYARD_GIT_USERNAME" \
"$RUNYARD_GIT_PASSWORD"; }; f"""


class Clone:
    """The step `clone`, by the git of this machine or image, which never asks anything of anybody.

    Credentials come as RUNYARD_GIT_USERNAME and RUNYARD_GIT_PASSWORD, or in the URL. Either way they reach
    git through its environment and a helper that is bound to the host: never in an argument, the
    repository's configuration or a log. A key for ssh comes as RUNYARD_GIT_SSH_KEY, the text itself, and the
    keys of hosts as RUNYARD_GIT_KNOWN_HOSTS; ssh wants files, which are there as long as the step runs.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.source = work.agent.assignment["source"]
        self.dest = work.agent.cwd
        self.environ = {
            **{
                name: value
                for name, value in work.agent.environ.items()
                if not name.startswith("GIT_") or name[4:] not in _OTHERS
            },
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            "GCM_INTERACTIVE": "never",
            "GIT_OPTIONAL_LOCKS": "0",
            "LC_ALL": "C",
        }
        self.environ.setdefault("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")
        if not os.access(self.environ.get("HOME", "/"), os.R_OK | os.X_OK):
            self.environ["HOME"] = work.agent.scratch  # another user's, as in images: git takes that for fatal
        self.options = [
            "-c",
            "core.hooksPath=/dev/null",
            "-c",
            "safe.directory=*",
            "-c",
            "advice.detachedHead=false",
        ]

    def run(self, *, depth: int | None, submodules: bool) -> None:
        snapshot = self.work.agent.assignment.get("snapshot")
        if not self.source["url"] and not snapshot:
            raise Failure("there is nothing to clone: the run names no source")
        make_folders(self.dest, self.work.agent.owner)
        if os.path.lexists(os.path.join(self.dest, ".git")):
            raise Failure(f"{self.dest} holds a git repository already")
        if snapshot:
            SnapshotCopy(self, snapshot).run()
        elif self.source["local"]:
            LocalCopy(self, self.source["url"]).run()
        else:
            self._fetch_with_key(["--depth", str(depth)] if depth else [], submodules=submodules)
            self.work.say(self.ask("log", "-1", "--format=HEAD is now at %h %s").strip())
        if self.work.agent.owner is not None:
            own_tree(self.dest, self.work.agent.owner)

    def _fetch_with_key(self, depth: list[str], *, submodules: bool) -> None:
        """Fetch; a key for ssh is in a file of the agent's own meanwhile."""
        key, hosts = (self.environ.pop(f"RUNYARD_GIT_{name}", "") for name in ("SSH_KEY", "KNOWN_HOSTS"))
        if not key:
            self._fetch_all(depth, submodules=submodules)
            return
        import shlex
        import tempfile

        with tempfile.TemporaryDirectory(dir=self.work.agent.scratch) as folder:  # mode 0700
            for name, text in (("key", key), ("hosts", hosts)):
                fd = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(fd, "w") as file:
                    file.write(text.rstrip() + "\n")
            if not hosts:
                self.work.say("RUNYARD_GIT_KNOWN_HOSTS is not set: the host is believed to be who it says it is")
            self.environ["GIT_SSH_COMMAND"] = (
                f"ssh -o BatchMode=yes -o IdentitiesOnly=yes -i {shlex.quote(folder)}/key "
                f"-o UserKnownHostsFile={shlex.quote(folder)}/hosts "
                f"-o StrictHostKeyChecking={'yes' if hosts else 'accept-new'}"
            )
            self._fetch_all(depth, submodules=submodules)

    def _fetch_all(self, depth: list[str], *, submodules: bool) -> None:
        self._fetch(self._without_credentials(self.source["url"]), depth)
        if submodules:
            self.git("submodule", "--quiet", "update", "--init", "--recursive", *depth)

    def _without_credentials(self, url: str) -> str:
        from urllib.parse import unquote, urlsplit, urlunsplit

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            return url
        if parts.password is not None or parts.username:
            self.environ["RUNYARD_GIT_USERNAME"] = unquote(parts.username or "")
            self.environ["RUNYARD_GIT_PASSWORD"] = unquote(parts.password or "")
            self.work.agent.mask_also(unquote(parts.password or parts.username or ""))
            parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
        if "RUNYARD_GIT_PASSWORD" in self.environ:
            key = f"credential.{parts.scheme}://{parts.netloc}.helper"
            self.options += ["-c", f"{key}=", "-c", f"{key}={_HELPER}"]
        return urlunsplit(parts)

    def _fetch(self, url: str, depth: list[str]) -> None:
        import re

        source = self.source
        commit, branch, tag, ref = source["commit"], source["branch"], source["tag"], source["ref"]
        if commit and not re.fullmatch("[0-9a-fA-F]{4,64}", commit):
            raise Failure(f"{commit!r} is not the id of a commit")
        if ref.startswith("refs/heads/"):
            branch = branch or ref[11:]
        elif ref.startswith("refs/tags/"):
            tag = tag or ref[10:]
        self.git("init", "--quiet", self.dest, at="/")
        self.git("remote", "add", "--", "origin", url)
        self.environ["GIT_ALLOW_PROTOCOL"] = "git:http:https:ssh" + (":file" if _is_local(url) else "")
        if not (branch or tag or ref or commit):
            branch = self._default_branch()
        if branch:
            self._get(depth, f"+refs/heads/{branch}:refs/remotes/origin/{branch}")
            start = self._commit_or(commit, f"refs/remotes/origin/{branch}", depth)
            self.git("checkout", "--quiet", "-B", branch, start)
            self.git("branch", "--quiet", f"--set-upstream-to=origin/{branch}", branch)
        elif tag:
            self._get(depth, f"+refs/tags/{tag}:refs/tags/{tag}")
            self.git("checkout", "--quiet", "--detach", self._commit_or(commit, f"refs/tags/{tag}", depth))
        elif ref:
            self._get(depth, ref)
            self.git("checkout", "--quiet", "--detach", self._commit_or(commit, "FETCH_HEAD", depth))
        else:
            self.git("checkout", "--quiet", "--detach", self._commit_or(commit, "", depth))

    def _default_branch(self) -> str:
        found = self.ask("ls-remote", "--symref", "origin", "HEAD")
        for line in found.splitlines():
            if line.startswith("ref: refs/heads/"):
                return line.split("\t")[0][len("ref: refs/heads/") :]
        raise Failure("the repository says no default branch, or is empty; name a branch, tag or commit")

    def _get(self, depth: list[str], *refspecs: str) -> None:
        self.git("fetch", "--quiet", *depth, "origin", *refspecs)

    def _commit_or(self, commit: str, start: str, depth: list[str]) -> str:
        """Where to begin: the commit, fetched by itself or with all its history if need be."""
        if not commit:
            return start
        if self._has(commit):
            return commit
        if len(commit) < 40 or self.git("fetch", "--quiet", *depth, "origin", commit, may_fail=True):
            more = ["--unshallow"] if os.path.exists(os.path.join(self.dest, ".git", "shallow")) else []
            self._get(more, "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
        if not self._has(commit):
            raise Failure(f"the commit {commit} is not in the repository")
        return commit

    def _has(self, commit: str) -> bool:
        return not self.git("cat-file", "-e", f"{commit}^{{commit}}", may_fail=True, quiet=True)

    def git(
        self, *arguments: str, at: str = "", may_fail: bool = False, quiet: bool = False, data: bytes = b""
    ) -> int:
        """Run git there, its output into the log; its exit code. Raises Failure unless it may fail."""
        out = -3 if quiet else self.work.output
        code, _ = self._run(arguments, at, data, stdout=out, stderr=out)
        if code and not may_fail:
            self.work.check()
            raise Failure(f"git {arguments[0]} failed with exit code {code}")
        return code

    def ask(self, *arguments: str, at: str = "", may_fail: bool = False) -> str:
        """What git prints."""
        code, text = self._run(arguments, at, b"", stdout=-1, stderr=-3 if may_fail else self.work.output)
        if code and not may_fail:
            self.work.check()
            raise Failure(f"git {arguments[0]} failed with exit code {code}")
        return text.decode("utf-8", "surrogateescape") if not code else ""

    def _run(
        self, arguments: tuple[str, ...], at: str, data: bytes, *, stdout: int, stderr: int
    ) -> tuple[int, bytes]:
        self.work.check()
        command = ["git", *self.options, "-C", at or self.dest, *arguments]
        try:
            program = self.work.start(
                command, env=self.environ, stdin=-1 if data else -3, stdout=stdout, stderr=stderr
            )
        except FileNotFoundError as error:
            raise Failure("git is not installed where the agent runs") from error
        text, _ = program.communicate(data or None)
        return self.work.wait(program), text or b""


def _is_local(url: str) -> bool:
    return url.startswith(("/", "./", "../", "file://"))


def own_tree(folder: str, owner: tuple[int, int]) -> None:
    os.chown(folder, *owner, follow_symlinks=False)
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            own_tree(entry.path, owner)
        else:
            os.chown(entry.path, *owner, follow_symlinks=False)


class LocalCopy:
    """A checkout of this machine as it is: committed, staged, changed, new and deleted; not what is ignored.

    The copy is a repository of its own with the same HEAD and index; the source's objects are shared, and
    nothing in the source is written, not even its index.
    """

    def __init__(self, clone: Clone, url: str) -> None:
        self.clone, self.work, self.dest = clone, clone.work, clone.dest
        path = url.removeprefix("file://")
        self.source = os.path.realpath(os.path.join(self.work.agent.cwd, os.path.expanduser(path)))
        self.apart = {os.path.realpath(self.dest), os.path.realpath(self.work.agent.folder)}
        self.files = 0

    def run(self) -> None:
        if self.work.agent.in_pod:
            raise Failure(
                f"{self.source} is a folder of the machine where the run was started, which no pod can see: "
                "push the commit and start the run with its URL and branch"
            )
        if not os.path.isdir(self.source):
            raise Failure(f"the source {self.source} is not a folder")
        top = self.clone.ask("rev-parse", "--show-toplevel", at=self.source, may_fail=True).rstrip("\n")
        if top and os.path.realpath(top) == self.source:
            self._take_repository()
            self._copy_listed(self.source, self.dest)
            self.clone.git("update-index", "-q", "--refresh", may_fail=True, quiet=True)
            head = self.clone.ask("log", "-1", "--format=HEAD is now at %h %s", may_fail=True).strip()
            changed = self.clone.ask("status", "--porcelain", may_fail=True).count("\n")
            self.work.say(f"{head or 'no commit yet'}; {changed} uncommitted changes; {self.files} files")
        else:
            self._copy_folder(self.source, self.dest)
            self.work.say(f"{self.source} is not a git repository: {self.files} files copied as they are")

    def _take_repository(self) -> None:
        """`.git`: refs, HEAD and index of the source, its objects by reference."""
        git, source = self.clone.git, self.source
        temporary = os.path.join(self.dest, f".runyard-{os.getpid()}")
        git("clone", "--quiet", "--shared", "--no-checkout", "--", source, temporary, at="/", quiet=True)
        os.rename(os.path.join(temporary, ".git"), os.path.join(self.dest, ".git"))
        os.rmdir(temporary)
        self._share_objects()
        head = self.clone.ask("rev-parse", "--verify", "--quiet", "HEAD", at=source, may_fail=True).strip()
        branch = self.clone.ask("symbolic-ref", "--quiet", "HEAD", at=source, may_fail=True).strip()
        if branch:
            git("symbolic-ref", "HEAD", branch)
        if head:
            git("update-ref", "HEAD", head) if branch else git("update-ref", "--no-deref", "HEAD", head)
        staged = self.clone.ask("ls-files", "--stage", "-z", at=source)
        if staged:
            git("update-index", "-z", "--index-info", data=staged.encode("utf-8", "surrogateescape"))

    def _share_objects(self) -> None:
        """A shallow source is cloned without sharing; what is staged there is nowhere else."""
        path = self.clone.ask("rev-parse", "--git-path", "objects", at=self.source).rstrip("\n")
        objects = os.path.join(self.source, path)
        alternates = os.path.join(self.dest, ".git", "objects", "info", "alternates")
        os.makedirs(os.path.dirname(alternates), exist_ok=True)
        with open(alternates, "a+", errors="surrogateescape") as file:
            file.seek(0)
            if objects not in file.read().split("\n"):
                file.write(f"{objects}\n")

    def _copy_listed(self, source: str, dest: str) -> None:
        """All that git does not ignore."""
        listed = self.clone.ask("ls-files", "-z", "--cached", "--others", "--exclude-standard", at=source)
        for name in dict.fromkeys(filter(None, listed.split("\0"))):
            self._copy(os.path.join(source, name.rstrip("/")), os.path.join(dest, name.rstrip("/")))

    def _copy(self, source: str, dest: str) -> None:
        self.work.check()
        if source in self.apart:
            return
        try:
            found = os.lstat(source)
            os.makedirs(os.path.dirname(dest), exist_ok=True)
            if stat.S_ISLNK(found.st_mode):
                os.symlink(os.readlink(source), dest)
            elif stat.S_ISREG(found.st_mode):
                copy_file(source, dest, found)
            elif stat.S_ISDIR(found.st_mode):
                os.makedirs(dest, exist_ok=True)
                if os.path.isfile(os.path.join(source, ".git")):  # a submodule: its repository lies in ours
                    self._copy_listed(source, dest)
                else:
                    self._copy_folder(source, dest)
                return
            else:
                self.work.say(f"{source} is left out: not a file, folder or link")
                return
            self.files += 1
        except FileNotFoundError:
            return  # deleted, or going to be
        except NotADirectoryError:
            return
        except OSError as error:
            raise Failure(f"{source} cannot be copied: {error.strerror}") from error

    def _copy_folder(self, source: str, dest: str) -> None:
        try:
            names = os.listdir(source)
        except PermissionError as error:
            raise Failure(f"{source} cannot be read: {error.strerror}") from error
        for name in names:
            self._copy(os.path.join(source, name), os.path.join(dest, name))


def copy_file(source: str, dest: str, found: os.stat_result) -> None:
    import shutil

    shutil.copyfile(source, dest, follow_symlinks=False)
    os.chmod(dest, stat.S_IMODE(found.st_mode))
    os.utime(dest, ns=(found.st_atime_ns, found.st_mtime_ns))


# --- snapshots --------------------------------------------------------------------------------------


class Pack:
    """A pack of a snapshot, verified whole before anything of it is used."""

    def __init__(self, work: Work, stored: StoredPack) -> None:
        self.work, self.name = work, f"the pack {stored['id'][:12]} of the snapshot"
        self.file = open_stored(work, stored)
        _, digest = measure(self.file, work.check)
        if digest != stored["id"].partition("-")[0]:
            self.file.close()
            raise Failure(f"{self.name} is not what was stored: its SHA-256 is {digest}")

    def read(self, offset: int, length: int, size: int) -> bytes:
        """One content; stored as it is where that is not shorter."""
        import zlib

        self.work.check()
        data = os.pread(self.file.fileno(), length, offset)
        if len(data) == length and length != size:
            try:
                data = zlib.decompressobj().decompress(data, size + 1)
            except zlib.error as error:
                raise Failure(f"{self.name} cannot be unpacked: {error}") from error
        if len(data) != size:
            raise Failure(f"{self.name} does not hold what the listing says")
        return data


class SnapshotFile:
    """A file to be written: where its contents are, and how many of them are still to come."""

    def __init__(self, parts: list[str], mode: int, mtime_ns: int | None, left: int) -> None:
        self.parts, self.mode, self.mtime_ns, self.left = parts, mode, mtime_ns, left
        self.begun = False


class SnapshotCopy:
    """A checkout from the store (see runyard.records.snapshots), with a `.git` that knows HEAD and the index.

    Packs are fetched one after the other, and what is in one is written at once: the largest file needs no more
    memory than a small one. Links come last, so that no file is written through one.
    """

    def __init__(self, clone: Clone, snapshot: StoredSnapshot) -> None:
        self.clone, self.work, self.dest = clone, clone.work, clone.dest
        self.snapshot = snapshot
        self.packs: dict[str, Pack] = {}
        self.files = 0
        self.links: list[tuple[list[str], str]] = []
        self.empty: list[list[str]] = []
        # by pack: offset, length and size of a content, the file, and the content's offset in it
        self.pieces: dict[str, list[tuple[int, int, int, SnapshotFile, int]]] = {}

    def run(self) -> None:
        import shutil

        try:
            for part in self._listing():
                self._plan(part)
            with Unpacker(self.dest, self.work) as tree:
                for parts in self.empty:
                    tree._enter(parts)
                for pack in sorted(self.pieces):
                    self._write_pack(tree, pack)
                for parts, target in self.links:
                    fd = tree._enter(parts[:-1])
                    tree._clear(fd, parts)
                    os.symlink(target, parts[-1], dir_fd=fd)
        except OSError as error:
            raise Failure(f"the checkout cannot be written to {self.dest}: {error.strerror}") from error
        finally:
            for opened in self.packs.values():
                opened.file.close()
        try:
            self._make_index()
            head = self.clone.ask("log", "-1", "--format=HEAD is now at %h %s", may_fail=True).strip()
        except Failure as error:  # the files are there, which is what most tasks need
            self.work.check()
            head = f"without an index: {error}"
        shutil.rmtree(os.path.join(self.dest, ".git", "runyard"), ignore_errors=True)
        changed = self.snapshot["changed"]
        self.work.say(f"{head or 'no commit yet'}; {changed} uncommitted changes; {self.files} files")

    def _listing(self) -> Iterator[bytes]:
        for number, offset, length, size in self.snapshot["listing"]:
            yield self._open(self.snapshot["packs"][number]["id"]).read(offset, length, size)

    def _open(self, pack: str) -> Pack:
        """By the digest of its bytes: the rest of its name is another where the run was imported."""
        digest = pack.partition("-")[0]
        if digest not in self.packs:
            stored = [each for each in self.snapshot["packs"] if each["id"].partition("-")[0] == digest]
            if not stored:
                raise Failure(f"the listing of the snapshot names a pack that it does not have: {pack[:12]}")
            self.packs[digest] = Pack(self.work, stored[0])
        return self.packs[digest]

    def _plan(self, part: bytes) -> None:
        packs, *lines = parse_json(part)
        for kind, path, *facts in lines:
            parts = self._parts(path)
            if kind == "d":
                self.empty.append(parts)
            elif kind == "l":
                self.links.append((parts, self._name(facts[0])))
            else:
                mode, mtime_ns, contents = facts
                file = SnapshotFile(parts, mode, mtime_ns, len(contents))
                self.files += parts[0] != ".git"
                at = 0
                for number, offset, length, size in contents or [(None, 0, 0, 0)]:
                    pack = "" if number is None else packs[number].partition("-")[0]
                    self.pieces.setdefault(pack, []).append((offset, length, size, file, at))
                    at += size

    def _parts(self, path: str) -> list[str]:
        parts = self._name(path).split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise Failure(f"{path!r} in the snapshot would leave the folder")
        return parts

    @staticmethod
    def _name(text: str) -> str:
        """Bytes of a name, as this system spells them."""
        return os.fsdecode(text.encode("utf-8", "surrogateescape"))

    def _write_pack(self, tree: Unpacker, pack: str) -> None:
        """All that is in one pack; in none are the files that are empty."""
        opened = self._open(pack) if pack else None
        last, data = -1, b""
        for offset, length, size, file, at in sorted(self.pieces.pop(pack), key=lambda piece: piece[0]):
            if opened is not None and offset != last:  # many files may have the same content
                last, data = offset, opened.read(offset, length, size)
            self._write(tree, file, data, at)
        if opened is not None:
            opened.file.close()
            del self.packs[pack]

    def _write(self, tree: Unpacker, file: SnapshotFile, data: bytes, at: int) -> None:
        folder, name = tree._enter(file.parts[:-1]), file.parts[-1]
        if not file.begun:
            tree._clear(folder, file.parts)
            file.begun = True
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        try:
            if len(data) >= 1 << 16 and data.count(0) == len(data):
                os.ftruncate(fd, max(os.fstat(fd).st_size, at + len(data)))  # a hole stays one
            else:
                view = memoryview(data)
                while view:
                    written = os.pwrite(fd, view, at)
                    view, at = view[written:], at + written
            file.left -= 1
            if file.left <= 0:
                os.fchmod(fd, file.mode)
                if file.mtime_ns is not None:
                    os.utime(fd, ns=(file.mtime_ns, file.mtime_ns))
        finally:
            os.close(fd)

    def _make_index(self) -> None:
        """The index of HEAD, then what the checkout's had otherwise."""
        git, folder = self.clone.git, os.path.join(self.dest, ".git", "runyard")
        for name in ("objects", "refs/heads"):
            os.makedirs(os.path.join(self.dest, ".git", name), exist_ok=True)
        git("read-tree", "HEAD", may_fail=True, quiet=True)  # fails where there is no commit
        for name, words in (("index-info", "--index-info"), ("skip-worktree", "--skip-worktree --stdin")):
            path = os.path.join(folder, name)
            if os.path.exists(path):
                with open(path, "rb") as file:
                    git("update-index", "-z", *words.split(), data=file.read())
        git("update-index", "-q", "--refresh", may_fail=True, quiet=True)


def main(environ: Mapping[str, str]) -> int:
    """Be the agent of the task that ``environ`` describes. The exit code; see the module for what it says."""
    for number in (signal.SIGTERM, signal.SIGINT):  # main decides when to end; what we start must not be deaf
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        agent = Agent(environ, load_assignment(environ["RUNYARD_ASSIGNMENT"]))
    except (KeyError, TypeError, ValueError, OSError) as error:
        in_pod = environ.get("RUNYARD_ASSIGNMENT", "").lstrip().startswith("{")
        LastWords(environ, in_pod=in_pod).say("assignment", f"it cannot be read: {error!r}"[:200])
        return 2
    try:
        return agent.run()
    except Exception as error:
        agent.give_up(error)
        raise


def load_assignment(text: str) -> Assignment:
    """The assignment in ``text``, or in the file of that path."""
    if not text.lstrip().startswith("{"):
        with open(text, "rb") as file:
            text = file.read().decode()
    assignment: Assignment = parse_json(text)
    return assignment


if __name__ == "__main__":
    os._exit(main(os.environ))  # tidying up the interpreter would take as long as its start
