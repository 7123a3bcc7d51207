"""What the two programs of a task say to each other, and to us.

`main` (compiled by runyard.script, POSIX sh) and `agent` (runyard.agent, standard library only) share a
folder, ``$RUNYARD_DIR``, and take turns through two FIFOs in it: main writes a request line to ``req``, the
agent answers one line on ``res``: a number, 0 = done. Nothing polls. Whoever comes first makes folder and FIFOs
and waits.

    main → agent                 the agent
    hello [UID GID]              starts, once the services are ready; 3 if this attempt has been started before
                                 (`started` exists), `4 WHY` if the store does not take it, `6 WHY` if a service
                                 did not get ready. The ids come in a pod: files are given to that user
    home PATH / cwd PATH         where `~` and relative folders point
    begin N                      opens FIFO ``log.N`` for step N, before anything is written to it
    do N                         does step N itself (clone, archives, caches), logs into its own step
    end N RC                     step N ended; takes what its FIFO holds now, and goes on reading it
    stop                         ends the `do` in hand; has no answer of its own
    done                         drains, flushes, writes outputs and manifest, answers `0 sealed`: all is in the
                                 store (`4 sealed WHY`: it is not). Answers to earlier requests come before that

Main appends to its receipt, ``$RUNYARD_RECEIPT`` (in a pod the termination message), a word at a time, each with a
`;` after it: ``N RC`` (step N ended with RC), ``timeout N``, ``term`` (it was asked to end), ``agent lost``,
``started before``, ``store refused WHY``, ``service failed WHY``, ``sealed`` (its last word: the agent has
confirmed that everything is in the store). Its exit code is that of the first step that failed, 124 after a
timeout, 143 after a ``term``, and 125 where the dialogue itself failed.

Main also reads ``RUNYARD_GRACE_S`` (whole seconds from asking a step to end to killing it, 8), ``RUNYARD_POD``
(set where it is process 1 of a container, whose processes are all its own), ``RUNYARD_HOME`` (HOME where it can
neither make nor write to the one that it has) and what `step_secrets` names.

The agent reads its ``Assignment`` from ``$RUNYARD_ASSIGNMENT``: the JSON itself, or the path of a file with it.
What it leaves in the store is the ``Manifest``. It also reads

    RUNYARD_SPOOL, RUNYARD_SPOOL_BYTES   a folder where segments wait while the store is away, up to so many bytes;
                                         then the step waits. Archives are packed and fetched there too, uncounted
    RUNYARD_COPY_LOG                     1 = the logs once more on its own output, as far as somebody reads it
    RUNYARD_TERMINATION_LOG              where its last words go; in a pod the termination message
    RUNYARD_GIT_USERNAME, …_PASSWORD     for the step `clone`, as RUNYARD_GIT_SSH_KEY and …_KNOWN_HOSTS (texts);
                                         and the values of what ``mask`` names

While the store is away the agent says so on its standard error, every ten seconds; once it is back, in a line of
the setup log and in the manifest's notes.
"""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from runyard.model import Model
from runyard.spec.plan import Source, Step
from runyard.store.base import FolderTarget, Target


class AgentEnd(StrEnum):
    """How the agent ended, where that was not as it should be: the first words of its termination message.

    After it comes `: ` and the reason. The exit code alone says less: 0 = it did what it could, 1 = failed, 2 =
    assignment, 3 = no main. A kill leaves no message.
    """

    ASSIGNMENT = "assignment"  # it cannot be read: another version, or cut
    NO_MAIN = "no main"  # main's container never said hello
    STARTED_BEFORE = "started before"
    STORE = "store"  # refused `started` or the manifest, or was away too long for the first
    SERVICE = "service"  # one did not get ready
    FAILED = "failed"  # our own fault


def parse_agent_end(text: str) -> tuple[AgentEnd | None, str]:
    """What the agent's termination message says, and why; None where it says nothing that is known."""
    what, colon, why = text.partition(": ")
    try:
        return (AgentEnd(what), why) if colon else (None, text)
    except ValueError:
        return None, text


class StoredArchive(Model):
    """An archive of another task, to be restored: ``source`` is a path of this machine or a presigned URL."""

    task: str
    step: int
    file: str  # `3.tar.zst`: its ending is its codec
    source: str
    size: int
    sha256: str


class StoredCache(Model):
    """An entry of the cache group, as known when the task was scheduled (used where there is no folder)."""

    key: str
    file: str
    source: str
    size: int
    sha256: str
    modified_at: datetime
    fallback: bool = False  # of the group that is looked into second


class ServiceProbe(Model):
    """A service to wait for: ready when its port takes connections, or its path answers 2xx or 3xx."""

    name: str
    port: int
    path: str = ""
    timeout_s: float = 60  # from when the agent heard of main


class CacheAccess(Model):
    """The cache group of the task. ``write`` None = read-only; folders are listed by the agent itself.

    ``fallback`` (and the entries of ``known`` that say so) is another group, which is looked into second.
    """

    read: FolderTarget | None = None
    fallback: FolderTarget | None = None
    known: list[StoredCache] = []  # newest first
    write: Target | None = None


class StoredPack(Model):
    """A pack of a snapshot; ``source`` is a path of this machine or a presigned URL."""

    id: str  # begins with the SHA-256 of its bytes, up to a dash
    source: str
    size: int


class StoredSnapshot(Model):
    """A checkout to be restored. ``listing`` = (number of the pack, offset, stored length, size) of its parts."""

    packs: list[StoredPack]
    listing: list[tuple[int, int, int, int]]
    changed: int = 0  # files that differ from the commit


class Assignment(Model):
    """All that the agent needs to know. No secret is in it: ``mask`` names variables whose values are masked."""

    version: Literal[1] = 1
    run_id: str
    task: str
    attempt: int
    steps: list[Step]
    logs: Target  # below it: started, segments/, manifest.json
    archives: Target | None = None
    restore: list[StoredArchive] = []  # in the order in which they are laid over each other
    caches: CacheAccess = CacheAccess()
    source: Source = Source()
    services: list[ServiceProbe] = []
    snapshot: StoredSnapshot | None = None  # what `clone` yields, where the source is one
    mask: list[str] = []
    log_bytes: int = 1 << 30  # cap of a step's log
    output_bytes: int = 64 << 10  # cap of all outputs of the task
    start_s: float = 300  # how long it waits for main, and main for the first answer of the store


class StepRecord(Model):
    """What became of a step. ``bytes``, ``lines`` and ``sha256`` are of the log as stored, after masking."""

    n: int
    exit_code: int | None = None  # None = it never ended
    bytes: int = 0
    lines: int = 0
    sha256: str
    truncated: str = ""  # why the log is not whole, e.g. "cap of 1073741824 bytes"
    started_at: datetime | None = None
    ended_at: datetime | None = None
    last_line: str = ""  # at most 200 characters
    parts: list[int] = []
    """Offsets of the segments that the log consists of, each up to the next, where the store has confirmed all of
    them while it took them (see `ArchiveRecord.checked`). Empty = whoever seals has to read it."""


class ArchiveRecord(Model):
    step: int
    file: str
    size: int
    sha256: str
    files: int
    checked: bool = False  # the store has confirmed the bytes while it took them


class CacheRecord(Model):
    """What became of a step. ``file`` = the archive that was restored, or that is in the store and waits for a
    worker to make it an entry of the group: only then ``size``, ``sha256`` and ``files`` are set.
    """

    step: int
    key: str
    outcome: Literal["hit", "miss", "saved", "exists", "failed"]
    message: str = ""
    file: str = ""
    size: int = 0
    sha256: str = ""
    files: int = 0
    fallback: bool = False  # it came from the group that is looked into second


class Manifest(Model):
    """The agent's last word. ``complete`` = main said `done`; otherwise ``reason`` says what cut it short."""

    version: Literal[1] = 1
    seal: Literal["complete", "truncated"]
    reason: str = ""
    steps: list[StepRecord] = []
    outputs: dict[str, str] = {}
    archives: list[ArchiveRecord] = []
    caches: list[CacheRecord] = []
    notes: list[str] = []  # what went wrong without changing the verdict
