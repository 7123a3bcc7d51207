"""What a pod leaves on the disk.

    <tasks folder>/<pod name>/   mode 0700
      pod.json         what was asked: uid, digest, run, task, attempt; written once
      owner            who cares for the pod now; replaced whole
      script           what main runs
      assignment.json  what the agent reads
      runyard/         their FIFOs
      home/            the task's HOME
      receipt          main's word on its steps
      nest.json, status.json, stop.json    see runyard.executors.local.nest
      main.log, agent.log, nest.log        what went to nobody's step

A pod is made in a folder with another name and renamed: either all of it is there or nothing. The same way
it goes: renamed first, removed after. The name's owner at any moment is whoever holds the rename, so uid and
name cannot be mixed up; all renames happen under one lock of the tasks folder, held for microseconds.
"""

import contextlib
import errno
import json
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from runyard.errors import ExecutorError, InvalidRequest
from runyard.executors.base import Launch
from runyard.executors.local import nest_files
from runyard.executors.local.process import running
from runyard.model import Model

log = logging.getLogger(__name__)

NEW = ".new-"
GONE = ".gone-"
KEPT = ".kept"


class Facts(Model):
    """What is true of a pod as long as it is there."""

    uid: str
    digest: str
    run_id: str
    task: str
    attempt: int
    created_at: datetime


class NestSeen(Model):
    """The process that has taken the pod. Pid 0: it was taken by a delete, nothing will ever run in it."""

    pid: int
    started: str
    uid: str

    @property
    def running(self) -> bool:
        return self.pid > 0 and running(self.pid, self.started)


class Status(Model):
    """How main ended. ``swept``: no process of the pod is left."""

    exit_code: int | None
    signal: int | None
    reason: str
    message: str
    receipt: str
    started_at: float | None
    ended_at: float
    swept: bool


class PodFolder:
    """One pod's folder. Everything in it may vanish at any moment: then the answers are None."""

    def __init__(self, tasks: Path, name: str) -> None:
        if not name or "/" in name or name.startswith(".") or "\0" in name:
            raise InvalidRequest(f"a pod's name is a plain word, not {name!r}")
        self.name = name
        self.path = tasks / name

    def facts(self) -> Facts | None:
        text = self._text("pod.json")
        return None if text is None else Facts.model_validate_json(text)

    def nest(self) -> NestSeen | None:
        text = self._text(nest_files.CLAIM)
        return None if text is None else NestSeen.model_validate_json(text)

    def status(self) -> Status | None:
        text = self._text(nest_files.STATUS)
        return None if text is None else Status.model_validate_json(text)

    def ended(self) -> bool:
        return (self.path / nest_files.STATUS).exists()

    def owner(self) -> str | None:
        return self._text("owner")

    def own(self, owner: str) -> bool:
        """Take the pod over; False if it is not there."""
        return self._replace("owner", owner)

    def ask_to_stop(self, grace_s: float) -> bool:
        return self._replace(nest_files.STOP, json.dumps({"grace_s": grace_s}))

    def bury(self, uid: str) -> None:
        """Take a pod that no nest has taken, so that none will. One that is taken is not written to: its disk
        may be full, and it must be possible to delete it then."""
        if (self.path / nest_files.CLAIM).exists():
            return
        temporary = self.path / f".buried.{secrets.token_hex(4)}"
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            temporary.write_text(json.dumps({"pid": 0, "started": "", "uid": uid}))
            os.link(temporary, self.path / nest_files.CLAIM)
        temporary.unlink(missing_ok=True)

    def log_tail(self, name: str, characters: int = 1000) -> str:
        return (self._text(name) or "").strip()[-characters:]

    def _text(self, name: str) -> str | None:
        try:
            return (self.path / name).read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _replace(self, name: str, text: str) -> bool:
        temporary = self.path / f".{name}.{secrets.token_hex(4)}"
        try:
            temporary.write_text(text)
            temporary.replace(self.path / name)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ExecutorError(f"the folder of the task cannot be written: {error}") from error
        return True


def make(tasks: Path, launch: Launch) -> Facts:
    """Make the pod's folder whole. Raises FileExistsError if there is one of that name."""
    facts = Facts(
        uid=secrets.token_hex(10),
        digest=launch.digest,
        run_id=launch.run_id,
        task=launch.task.name,
        attempt=launch.attempt,
        created_at=datetime.now(UTC),
    )
    new = tasks / f"{NEW}{facts.uid}"
    try:
        _fill(new, launch, facts)
        new.rename(PodFolder(tasks, launch.name).path)  # refused if there is one: it is never empty
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise FileExistsError(launch.name) from error
        raise
    return facts


def _fill(new: Path, launch: Launch, facts: Facts) -> None:
    new.mkdir(mode=0o700)
    (new / "home").mkdir()
    (new / "runyard").mkdir()
    (new / "script").write_text(launch.script)
    (new / "assignment.json").write_text(launch.assignment.model_dump_json())
    (new / "owner").write_text(launch.owner)
    (new / nest_files.RESERVE).write_bytes(bytes(nest_files.RESERVE_BYTES))
    (new / "receipt").write_text(";")  # its block is there when the disk is full
    (new / "pod.json").write_text(facts.model_dump_json())


def put_away(tasks: Path, folder: PodFolder, *, keep: bool) -> Path | None:
    """Take the pod's name from its folder; where it is now, if it is to be removed."""
    facts = folder.facts()
    target = tasks / f"{GONE}{secrets.token_hex(8)}"
    if keep:
        (tasks / KEPT).mkdir(exist_ok=True)
        target = tasks / KEPT / f"{folder.name}.{facts.uid if facts else secrets.token_hex(4)}"
    with contextlib.suppress(FileNotFoundError):
        folder.path.rename(target)
    return None if keep else target


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it, also where a task took away its own right to write.

    What is another user's, as files are that a container left there, stays: the pod is gone all the same.
    """
    shutil.rmtree(path, ignore_errors=True)
    if not path.exists():
        return
    for folder in _folders(path):
        with contextlib.suppress(OSError):
            os.chmod(folder, stat.S_IRWXU)
    try:
        shutil.rmtree(path)
    except FileNotFoundError:  # two may remove it at once
        return
    except OSError as error:
        log.warning("%s cannot be removed and stays: %s", path, error.strerror or error)


def _folders(path: Path) -> Iterator[str]:
    """The folder and those below it, each before it is entered; links are not followed."""
    yield str(path)
    for parent, names, _ in os.walk(path):
        for name in names:
            below = os.path.join(parent, name)
            if not os.path.islink(below):
                yield below


def pods(tasks: Path) -> Iterator[PodFolder]:
    """Every pod's folder, in no order."""
    with contextlib.suppress(FileNotFoundError), os.scandir(tasks) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                yield PodFolder(tasks, entry.name)


def leftovers(tasks: Path, *, older_than_s: float) -> list[Path]:
    """Folders that a killed worker left half made or half removed."""
    now = datetime.now(UTC).timestamp()
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(tasks) as entries:
        for entry in entries:
            if entry.name.startswith(GONE):
                found.append(Path(entry.path))
            elif entry.name.startswith(NEW):
                with contextlib.suppress(FileNotFoundError):
                    if now - entry.stat().st_mtime > older_than_s:
                        found.append(Path(entry.path))
    return found
