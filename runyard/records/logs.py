"""The end of an attempt's logs: verified against the agent's manifest, put in order, and the seal.

The seal is the attempt's last word. It is written once, after all that it speaks of, and segments are deleted
after it; so a worker that dies anywhere in between leaves a state from which the next call of `seal` goes on, and
several calls at a time end with one seal that all of them return.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Literal

from pydantic import ValidationError

from runyard.dialogue import ArchiveRecord, CacheRecord, Manifest, StepRecord
from runyard.errors import Conflict, Corrupt, NotFound
from runyard.model import Model
from runyard.records.compact import Compacted, compact_setup, compact_step, read_lines
from runyard.records.parts import keys
from runyard.records.segments import Log, Segment, list_segments
from runyard.records.setup import now, stamp
from runyard.spec.run import TaskEnd
from runyard.store import paths
from runyard.store.base import ObjectStore, read

INLINE_SETUP_BYTES = 4096
"""Most setup logs are three lines: an object of its own for them costs more than all else that is sealed."""


class SealedSetup(Model):
    """The setup log. A short one that nobody wrote before the end is ``text``, here, instead of an object."""

    bytes: int = 0
    lines: int = 0
    text: str = ""


class SealedStep(Model):
    """A step's log as it lies in the store: ``bytes``, ``lines`` and ``sha256`` with our markers, if any.

    ``complete`` = it is exactly what the step wrote, after masking; otherwise ``truncated`` says why not. It is
    one object, or the segments at the offsets ``parts``.
    """

    n: int
    bytes: int = 0
    lines: int = 0
    sha256: str
    complete: bool
    truncated: str = ""
    exit_code: int | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    last_line: str = ""
    parts: list[int] = []


class Seal(Model):
    """The verdict on one attempt of a task, and on its logs. Nothing of it changes any more."""

    version: Literal[1] = 1
    task_id: str
    attempt: int
    end: TaskEnd
    complete: bool  # every step's log, and the agent said that it was done
    truncated: str = ""
    steps: list[SealedStep] = []
    setup: SealedSetup = SealedSetup()
    archives: list[ArchiveRecord] = []
    caches: list[CacheRecord] = []
    outputs: dict[str, str] = {}
    notes: list[str] = []
    sealed_at: datetime


async def load_manifest(store: ObjectStore, task_id: str, attempt: int) -> Manifest | None:
    """What the agent left; None where it left nothing. One that cannot be read is a truncated one that says so."""
    try:
        text = await read(store, paths.manifest(task_id, attempt))
    except NotFound:
        return None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        return Manifest(
            seal="truncated", reason=f"the agent's manifest cannot be read: {error.errors()[0]['msg']}"
        )


async def load_seal(store: ObjectStore, task_id: str, attempt: int) -> Seal | None:
    """The seal; None where the attempt is not sealed. Raises Corrupt for one that cannot be read."""
    try:
        text = await read(store, paths.seal(task_id, attempt))
    except NotFound:
        return None
    try:
        return Seal.model_validate_json(text)
    except ValidationError as error:
        raise Corrupt(f"the seal of attempt {attempt} of task {task_id} cannot be read") from error


async def load_last_seal(store: ObjectStore, task_id: str) -> Seal | None:
    """Of the task's last attempt that is sealed. Others before it may not be, yet: their pods go at leisure."""
    folder, last = paths.data(paths.log_item(task_id)), 0
    async for info in store.list(folder):
        number, _, _ = info.key.removeprefix(folder).partition("/")
        if number.isdecimal() and info.key == paths.seal(task_id, int(number)):
            last = max(last, int(number))
    return await load_seal(store, task_id, last) if last else None


async def seal(
    store: ObjectStore,
    task_id: str,
    attempt: int,
    *,
    manifest: Manifest | None,
    end: TaskEnd,
    setup: Sequence[str] = (),
    then: Callable[[TaskEnd], None] | None = None,
) -> Seal:
    """Put the logs in order, check them against the manifest, write the seal, delete what it does not speak of.

    ``setup`` are texts that end the setup log. ``then`` is called with the end as soon as the seal is written:
    what is left to do after that keeps nobody from anything.

    ``end`` is the caller's verdict; in the seal its ``log_bytes``, ``log_complete`` and ``last_line`` are what
    was found. If the attempt is sealed already, that seal is returned and nothing changes, but that segments
    which a killed worker left are deleted.
    """
    segments: dict[Log, list[Segment]] = defaultdict(list)
    async for segment in list_segments(store, task_id, attempt):
        segments[segment.log].append(segment)
    # after the listing: who seals deletes segments only then. Where there are none, to write the seal is the look
    sealed, lines = None, b""
    if segments:
        sealed, lines = await asyncio.gather(
            load_seal(store, task_id, attempt), read_lines(store, segments.get(paths.SETUP, ()))
        )
    if sealed is None:
        made = await _compact(store, task_id, attempt, segments, lines, manifest=manifest, end=end, setup=setup)
        sealed = await _write(store, made)
    if then is not None:
        then(sealed.end)
    kept = {key for step in sealed.steps for key in keys(task_id, attempt, step.n, step.parts)}
    idle = [each.key for group in segments.values() for each in group if each.key not in kept]
    await store.delete_many(idle)
    return sealed


async def _compact(
    store: ObjectStore,
    task_id: str,
    attempt: int,
    segments: Mapping[Log, list[Segment]],
    lines: bytes,
    *,
    manifest: Manifest | None,
    end: TaskEnd,
    setup: Sequence[str],
) -> Seal:
    """All logs to one object each, and what the seal says of them. ``lines``: of the setup log, so far."""
    records = {record.n: record for record in manifest.steps} if manifest else {}
    unconfirmed = "the agent's manifest does not name this step"
    if manifest is None:
        unconfirmed = f"the agent left no manifest: {end.message or end.reason.sentence}"
    steps = []
    for n in sorted(records.keys() | {log for log in segments if isinstance(log, int)}):
        key, record = paths.step_log(task_id, attempt, n), records.get(n)
        log = await compact_step(store, key, segments.get(n, ()), record, unconfirmed=unconfirmed)
        steps.append(_sealed_step(n, log, record))
    truncated = _why_truncated(manifest, end, steps, unconfirmed)
    found = {
        "log_bytes": sum(step.bytes for step in steps),
        "log_complete": not truncated,
        "last_line": next((step.last_line for step in reversed(steps) if step.last_line), ""),
    }
    return Seal(
        task_id=task_id,
        attempt=attempt,
        end=end.model_copy(update=found),
        complete=not truncated,
        truncated=truncated,
        steps=steps,
        setup=await _setup(store, task_id, attempt, lines, setup),
        archives=manifest.archives if manifest else [],
        caches=manifest.caches if manifest else [],
        outputs=manifest.outputs if manifest else {},
        notes=manifest.notes if manifest else [],
        sealed_at=now(),
    )


async def _setup(store: ObjectStore, task_id: str, attempt: int, lines: bytes, last: Sequence[str]) -> SealedSetup:
    """The setup log's end, and where it is."""
    text = stamp(now(), last).encode(errors="replace")
    if not lines and len(text) <= INLINE_SETUP_BYTES:
        return SealedSetup(bytes=len(text), lines=text.count(b"\n"), text=text.decode())
    log = await compact_setup(store, paths.step_log(task_id, attempt, paths.SETUP), lines, text)
    return SealedSetup(bytes=log.bytes, lines=log.lines)


def _why_truncated(manifest: Manifest | None, end: TaskEnd, steps: list[SealedStep], unconfirmed: str) -> str:
    """Why the logs as a whole are not what the steps wrote; empty when they are."""
    cut = next((f"step {step.n}: {step.truncated}" for step in steps if not step.complete), "")
    if manifest is None:
        return cut or (unconfirmed if end.began else "")
    return cut or ((manifest.reason or "the agent was interrupted") if manifest.seal == "truncated" else "")


def _sealed_step(n: int, log: Compacted, record: StepRecord | None) -> SealedStep:
    return SealedStep(
        n=n,
        bytes=log.bytes,
        lines=log.lines,
        sha256=log.sha256,
        complete=not log.truncated,
        truncated=log.truncated,
        exit_code=record.exit_code if record else None,
        started_at=record.started_at if record else None,
        ended_at=record.ended_at if record else None,
        last_line=log.last_line or (record.last_line if record else ""),
        parts=log.parts,
    )


async def _write(store: ObjectStore, made: Seal) -> Seal:
    """The first seal holds; whoever comes later gets it."""
    try:
        await store.put(paths.seal(made.task_id, made.attempt), made.model_dump_json().encode(), if_absent=True)
    except Conflict:
        there = await load_seal(store, made.task_id, made.attempt)
        if there is None:
            raise
        return there
    return made
