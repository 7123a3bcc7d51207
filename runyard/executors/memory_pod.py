"""What a pod of the memory executor does: main and agent in one, without a process.

The words of a run step, one a line; ``$NAME`` is a variable of the task:

    print TEXT, echo TEXT   a line of log            exit N       the step ends with this code
    lines N                 N numbered lines         signal N     main is killed by this signal
    sleep S                 takes S seconds          oom          the step is killed for its memory
    output KEY=VALUE        an output of the task    vanish       the pod is gone, nothing is left of it
    slow_start S            the pod is pending for S seconds before anything begins
    hang                    never ends, and does not heed a signal to end

Any other line does nothing, successfully. Logs, manifest and archives are written to the targets of the
assignment as the real agent writes them, but plainly: no fsync, no temporary names, since a fake that is
killed is gone with its pods anyway.
"""

import asyncio
import contextlib
import gzip
import hashlib
import io
import os
import string
import tarfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from runyard.dialogue import ArchiveRecord, CacheRecord, Manifest, StepRecord
from runyard.errors import StartError
from runyard.executors.base import Ended, Launch
from runyard.reasons import Reason
from runyard.spec.plan import (
    RestoreCacheStep,
    RestoreWorkspaceStep,
    RunStep,
    SaveCacheStep,
    SaveToWorkspaceStep,
    Step,
)
from runyard.store.base import FolderTarget, Target

TERM_CODE = 143
TIMEOUT_CODE = 124
_NOTHING = hashlib.sha256(b"").hexdigest()


class _Cut(Exception):
    """Main ends here, in the middle of a step."""

    def __init__(self, reason: Reason | None, code: int, message: str, *, sealed: bool, signal: int | None = None):
        super().__init__(message)
        self.reason = reason
        self.code = code
        self.message = message
        self.sealed = sealed
        self.signal = signal


class _Vanish(Exception):
    """The pod is gone."""


class _Log:
    """The log of one step, in segments."""

    def __init__(self, n: int, folder: Path) -> None:
        self.n = n
        self._folder = folder
        self._kept = bytearray()
        self._sha256 = hashlib.sha256()
        self.bytes = 0
        self.lines = 0
        self.last_line = ""
        self.started_at = datetime.now(UTC)

    def write(self, text: str) -> None:
        self._kept += text.encode()
        self.lines += text.count("\n")
        self.last_line = text.rstrip("\n").rpartition("\n")[2][:200]

    def flush(self) -> None:
        if self._kept:
            folder = f"{self._folder}/segments/{self.n}"
            os.makedirs(folder, exist_ok=True)
            _write(f"{folder}/{self.bytes:016d}", self._kept)
            self._sha256.update(self._kept)
            self.bytes += len(self._kept)
            self._kept.clear()

    def record(self, exit_code: int | None) -> StepRecord:
        self.flush()
        return StepRecord(
            n=self.n,
            exit_code=exit_code,
            bytes=self.bytes,
            lines=self.lines,
            sha256=self._sha256.hexdigest() if self.bytes else _NOTHING,
            started_at=self.started_at,
            ended_at=datetime.now(UTC),
            last_line=self.last_line,
        )


class PodPlay:
    """One pod from beginning to end. ``term`` and ``kill`` are the two signals that it can be sent."""

    def __init__(self, launch: Launch) -> None:
        self.term = asyncio.Event()
        self.kill = asyncio.Event()
        self.running = False
        self._launch = launch
        self._assignment = launch.assignment
        self._logs = _folder(launch.assignment.logs)
        self._environment = {k: v for k, v in launch.environment.items() if isinstance(v, str)}
        self._steps: list[StepRecord] = []
        self._archives: list[ArchiveRecord] = []
        self._caches: list[CacheRecord] = []
        self._outputs: dict[str, str] = {}
        self._receipt = ""
        self._deadline: float | None = None
        self._starved: _Cut | None = None

    async def run(self) -> Ended:
        started_at = datetime.now(UTC)
        try:
            await self._pend()
            self._begin()
            code, cut = await self._main()
        except _Vanish:
            return Ended(gone=True, message="the pod is not there any more")
        except _Cut as cut_:  # before anything began
            code, cut = cut_.code, cut_
        except FileExistsError:
            code, cut, self._receipt = 125, None, "started before;"
        return Ended(
            exit_code=code,
            signal=cut.signal if cut else None,
            reason=cut.reason if cut else None,
            message=cut.message if cut else "",
            receipt=self._receipt,
            started_at=started_at,
            ended_at=datetime.now(UTC),
            node="memory",
        )

    async def _pend(self) -> None:
        for step in self._launch.task.steps:
            if isinstance(step, RunStep):
                for line in step.command.splitlines():
                    if line.startswith("slow_start "):
                        await self._pause(float(line.split()[1]))

    def _begin(self) -> None:
        self.running = True
        if self._launch.deadline_s is not None:
            self._deadline = asyncio.get_running_loop().time() + self._launch.deadline_s
        os.makedirs(self._logs, exist_ok=True)
        _write(f"{self._logs}/started", b"", flags=os.O_EXCL)

    async def _main(self) -> tuple[int, _Cut | None]:
        """All steps that are due; main's exit code and what cut it short."""
        failed = 0
        for n, step in enumerate(self._launch.task.steps):
            due = step.when == "always" or (step.when == "on_failure") == bool(failed)
            if step.skip or not due:
                continue
            log = _Log(n, self._logs)
            try:
                code = await self._step(n, step, log)
            except _Cut as cut:
                self._steps.append(log.record(cut.code if cut.sealed else None))
                return cut.code, self._cut(n, cut)
            self._steps.append(log.record(code))
            self._receipt += f"{n} {code};"
            failed = failed or code
        self._manifest("complete")
        self._receipt += "sealed;"
        return failed, self._starved

    def _cut(self, n: int, cut: _Cut) -> _Cut:
        if cut.sealed:
            self._manifest("complete")
            self._receipt += f"term;{n} {cut.code};sealed;"
        else:
            self._manifest("truncated", "main ended without a word")
        return cut

    def _manifest(self, seal: str, reason: str = "") -> None:
        manifest = Manifest(
            seal="complete" if seal == "complete" else "truncated",
            reason=reason,
            steps=self._steps,
            outputs=self._outputs,
            archives=self._archives,
            caches=self._caches,
        )
        _write(f"{self._logs}/manifest.json", manifest.model_dump_json().encode())

    # Steps

    async def _step(self, n: int, step: Step, log: _Log) -> int:
        if isinstance(step, RunStep):
            limit = step.timeout_s if step.timeout_s is not None else self._launch.task.timeouts.step_s
            try:
                async with asyncio.timeout(limit):
                    return await self._run_step(step, log)
            except TimeoutError:
                self._receipt += f"timeout {n};"
                return TIMEOUT_CODE
        if isinstance(step, SaveToWorkspaceStep):
            return self._save(n, log)
        if isinstance(step, RestoreWorkspaceStep):
            return self._restore(log)
        if isinstance(step, SaveCacheStep):
            return self._save_cache(n, step)
        if isinstance(step, RestoreCacheStep):
            return self._restore_cache(n, step)
        return 0

    async def _run_step(self, step: RunStep, log: _Log) -> int:
        environment = {**self._environment, **{k: v for k, v in step.environment.items() if isinstance(v, str)}}
        for line in step.command.splitlines():
            word, _, rest = _expand(line.strip(), environment).partition(" ")
            if word == "exit":
                return int(rest or 0)
            if word == "oom":
                self._starved = _Cut(Reason.OOM_KILLED, 137, "it used more memory than its limit", sealed=True)
                return 137
            await self._word(word, rest, log)
        return 0

    async def _word(self, word: str, rest: str, log: _Log) -> None:
        match word:
            case "print" | "echo":
                log.write(rest + "\n")
            case "lines":
                log.write("".join(f"{number}\n" for number in range(1, int(rest) + 1)))
            case "output":
                key, _, value = rest.partition("=")
                self._outputs[key] = value
            case "sleep":
                log.flush()
                await self._pause(float(rest))
            case "hang":
                log.flush()
                await self._pause(None, deaf=True)
            case "signal":
                raise _Cut(None, 128 + int(rest), f"signal {rest}", sealed=False, signal=int(rest))
            case "vanish":
                log.flush()
                raise _Vanish

    async def _pause(self, seconds: float | None, *, deaf: bool = False) -> None:
        """Let time pass, until a signal or the deadline cuts it short."""
        loop = asyncio.get_running_loop()
        until = None if seconds is None else loop.time() + seconds
        late = self._deadline is not None and (until is None or self._deadline < until)
        signals = [self.kill] if deaf else [self.kill, self.term]
        waits = [asyncio.ensure_future(event.wait()) for event in signals]
        end = self._deadline if late else until
        try:
            await asyncio.wait(
                waits,
                timeout=None if end is None else max(0.0, end - loop.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for wait in waits:
                wait.cancel()
        if self.kill.is_set():
            raise _Cut(Reason.CANCELLED, 137, "it was killed", sealed=False, signal=9)
        if self.term.is_set() and not deaf:
            raise _Cut(Reason.CANCELLED, TERM_CODE, "it was asked to end", sealed=True)
        if late:
            message = f"it ran longer than {self._launch.deadline_s:g} s"
            raise _Cut(Reason.TIMEOUT_RUN, TERM_CODE, message, sealed=not deaf)

    # Archives and caches

    def _save(self, n: int, log: _Log) -> int:
        target = self._assignment.archives
        if target is None:
            log.write("no place for archives\n")
            return 1
        data = _archive(self._assignment.task)
        record = ArchiveRecord(step=n, **_store(_folder(target), str(n), data))
        (_folder(target) / f"{n}.json").write_text(record.model_dump_json())
        self._archives.append(record)
        return 0

    def _restore(self, log: _Log) -> int:
        for archive in self._assignment.restore:
            try:
                data = Path(archive.source).read_bytes()
            except OSError as error:
                log.write(f"the archive of {archive.task} cannot be read: {error}\n")
                return 1
            if (len(data), hashlib.sha256(data).hexdigest()) != (archive.size, archive.sha256):
                log.write(f"the archive of {archive.task} is not what was recorded\n")
                return 1
        return 0

    def _save_cache(self, n: int, step: SaveCacheStep) -> int:
        target = self._assignment.caches.write
        outcome = "failed"
        if isinstance(target, FolderTarget):
            there = any(Path(target.folder).glob(f"{step.key}.tar.*"))
            if not there:
                _store(Path(target.folder), step.key, _archive(step.key))
            outcome = "exists" if there else "saved"
        self._caches.append(CacheRecord.model_validate({"step": n, "key": step.key, "outcome": outcome}))
        return 0

    def _restore_cache(self, n: int, step: RestoreCacheStep) -> int:
        target = self._assignment.caches.read
        known = sorted(path.name for path in Path(target.folder).glob("*.tar.*")) if target else []
        for key in step.keys:
            hit = next((name for name in known if name.startswith(key)), None)
            if hit is not None:
                self._caches.append(CacheRecord(step=n, key=hit.partition(".tar.")[0], outcome="hit"))
                return 0
        self._caches.append(CacheRecord(step=n, key=step.keys[0], outcome="miss"))
        return 0


def _expand(line: str, environment: Mapping[str, str]) -> str:
    return string.Template(line).safe_substitute(environment) if "$" in line else line


def _folder(target: Target) -> Path:
    if not isinstance(target, FolderTarget):
        raise StartError("the memory executor writes to folders only: choose a posix store")
    return Path(target.folder)


def _write(path: str, data: bytes | bytearray, *, flags: int = os.O_TRUNC) -> None:
    """The system's calls alone: of a task that does nothing, Python's files were a tenth of the worker's time."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def _archive(word: str) -> bytes:
    """A small archive that says whose it is; the same word gives the same bytes."""
    content = f"{word}\n".encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("made-by.txt")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)


def _store(folder: Path, name: str, data: bytes) -> dict[str, object]:
    """An archive, as the agent leaves it, and what its record says."""
    record = {
        "file": f"{name}.tar.gz",
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "files": 1,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (folder / f"{name}.tar.gz").write_bytes(data)
    return record
