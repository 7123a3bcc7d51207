"""A task's log as lines, over its steps and, when following, over its attempts."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from runyard.client.remote import unknown_task
from runyard.errors import InvalidRequest, NotFound, RunyardError
from runyard.records.logs import load_seal
from runyard.records.reader import LogReader
from runyard.records.segments import Log, list_segments
from runyard.spec.run import RunView
from runyard.store import paths
from runyard.store.base import ObjectStore

if TYPE_CHECKING:
    from runyard.client.run import Run

_ENDED: Final = ("success", "failed", "skipped", "cancelled")
_IDLE_S: Final = 2.0
"""After so long without a line we look whether the task has ended: one that never began has no seal."""

_LOOK_S: Final = 0.5
_WINDOW: Final = 64 << 10
_PENDING: Final = 1_000

_Queue = asyncio.Queue[tuple[Log, str] | RunyardError | None]


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One line without its end. ``step`` is a step's number from 0, or `setup`; ``attempt`` counts from 1."""

    text: str
    step: Log
    attempt: int

    def __str__(self) -> str:
        return self.text


async def read_logs(
    run: "Run",
    store: ObjectStore,
    task: str,
    *,
    step: Log | None = None,
    attempt: int | None = None,
    follow: bool = False,
    lines: int | None = None,
) -> AsyncGenerator[LogLine, None]:
    """See `Run.logs`."""
    if (attempt is not None and attempt < 1) or (lines is not None and lines < 0):
        raise InvalidRequest("attempts count from 1, and lines from 0")
    if isinstance(step, str) and step != paths.SETUP:
        raise InvalidRequest(f"a step is a number from 0 or `setup`, not {step[:80]!r}")
    task_id = await _find(run, task, wait=follow)
    if not follow:
        number = attempt or await _last_attempt(store, task_id)
        if number:
            async for line in _read(store, task_id, number, step=step, lines=lines):
                yield line
        return
    number = attempt or 1
    while attempt is not None or (number := await _wait_for_attempt(run, task, at_least=number)):
        following = _follow(run, store, (task, task_id), number, step=step, lines=lines)
        async with contextlib.aclosing(following):  # who stops early ends the reader with it, not some time later
            async for line in following:
                yield line
        if attempt is not None:
            return
        number, lines = number + 1, None


async def _find(run: "Run", task: str, *, wait: bool) -> str:
    """The task's id, from the store alone, so that logs can be read without a server.

    When following, a run that has only been started gets the time to make its plan.
    """
    planned = await run.planned()
    while not planned:
        view = await run.describe()
        planned = await run.planned()  # a short run may have come and gone between the two looks
        if not planned and (not wait or _is_over(view)):
            raise NotFound(
                f"run {run.id} has no plan, and so no logs", remedy=view.cause or "Try again in a moment."
            )
        await asyncio.sleep(0 if planned else _LOOK_S)
    if task not in planned:
        raise unknown_task(task, planned, run_id=run.id)
    return planned[task].id


async def _wait_for_attempt(run: "Run", task: str, *, at_least: int) -> int:
    """The number of the attempt to follow next; 0 when there will be none."""
    while True:
        view = await run.describe()
        found = next((each for each in view.tasks if each.name == task), None)
        if found is not None and found.attempt >= at_least:
            # a retry may have begun while we read the attempt before it: none is left out
            return at_least if at_least > 1 else found.attempt
        if _is_over(view) or (found is not None and found.status in _ENDED):
            return 0
        await asyncio.sleep(_LOOK_S)


def _is_over(view: RunView) -> bool:
    """Closed and recorded; the phase alone says `finished` also of a run whose plan is not made yet."""
    return view.ended_at is not None


async def _last_attempt(store: ObjectStore, task_id: str) -> int:
    """The last one that has left anything in the store; 0 when none has."""
    number = 0
    while True:
        async for _ in store.list(paths.attempt(task_id, number + 1)):
            number += 1
            break
        else:
            return number


# what is there


async def _read(
    store: ObjectStore, task_id: str, attempt: int, *, step: Log | None, lines: int | None
) -> AsyncIterator[LogLine]:
    reader = LogReader(store, task_id, attempt)
    logs = await _chosen(reader, step)
    if lines is None:
        for log in logs:
            async for _, text in reader.lines(log):
                yield LogLine(text=text, step=log, attempt=attempt)
        return
    sizes, found, wanted = await _sizes(store, task_id, attempt), deque[LogLine](), lines
    for log in reversed(logs):
        if wanted <= 0:
            break
        last = await _last_lines(reader, log, sizes.get(log, 0), wanted)
        found.extendleft(LogLine(text=text, step=log, attempt=attempt) for text in reversed(last))
        wanted -= len(last)
    for line in found:
        yield line


async def _chosen(reader: LogReader, step: Log | None) -> list[Log]:
    """The wanted log; else all steps; the setup log of a task that has no other, since it says why."""
    if step is not None:
        return [step]
    logs = await reader.steps()
    return [log for log in logs if log != paths.SETUP] or logs


async def _sizes(store: ObjectStore, task_id: str, attempt: int) -> dict[Log, int]:
    """Bytes of each log now."""
    if seal := await load_seal(store, task_id, attempt):
        return {paths.SETUP: seal.setup.bytes, **{step.n: step.bytes for step in seal.steps}}
    sizes: dict[Log, int] = {}
    async for segment in list_segments(store, task_id, attempt):
        begin = sizes.get(segment.log, 0) if segment.offset is None else segment.offset
        sizes[segment.log] = begin + segment.size
    return sizes


async def _last_lines(reader: LogReader, log: Log, size: int, wanted: int) -> list[str]:
    """The end of a log, without reading the whole of it."""
    window = _WINDOW
    while True:
        begin = max(0, size - window)
        data = b"".join([chunk async for chunk in reader.read(log, offset=begin)])
        found = data.decode(errors="replace").split("\n")
        found = found[:-1] if found[-1] == "" else found
        if begin == 0 or len(found) > wanted:
            return found[-wanted:]
        window *= 16


# what is there and what comes


async def _follow(
    run: "Run", store: ObjectStore, task: tuple[str, str], attempt: int, *, step: Log | None, lines: int | None
) -> AsyncGenerator[LogLine, None]:
    (name, task_id), skip = task, 0
    if lines is not None:
        there = [line async for line in _read(store, task_id, attempt, step=step, lines=None)]
        skip = max(0, len(there) - lines)
    reader, setup = LogReader(store, task_id, attempt), deque[LogLine](maxlen=_PENDING)
    given = False
    async with contextlib.aclosing(_lines(run, reader, name, attempt, step)) as coming:
        async for log, text in coming:
            line = LogLine(text=text, step=log, attempt=attempt)
            if step is None and log == paths.SETUP:
                setup.append(line)
            elif skip:
                skip -= 1
            else:
                given = True
                yield line
    if not given and step is None:  # it never came to a step: its setup says why
        for line in setup:
            yield line


async def _lines(
    run: "Run", reader: LogReader, task: str, attempt: int, step: Log | None
) -> AsyncGenerator[tuple[Log, str], None]:
    """The reader's lines until it ends, or until the task has ended and nothing comes any more.

    A queue stands between, since a reader that is interrupted while it waits could not be asked again.
    """
    queue: _Queue = asyncio.Queue(_PENDING)
    pumping = asyncio.create_task(_pump(reader, step, queue))
    try:
        while True:
            try:
                async with asyncio.timeout(_IDLE_S if queue.empty() else None):
                    line = await queue.get()
            except TimeoutError:
                if await _is_done(run, task, attempt):
                    return
                continue
            if isinstance(line, RunyardError):
                raise line
            if line is None:
                return
            yield line
    finally:
        pumping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pumping


async def _pump(reader: LogReader, step: Log | None, queue: _Queue) -> None:
    """Every line, then how it ended: None or an error."""
    last: RunyardError | None = None
    try:
        async for line in reader.lines(step, follow=True):
            await queue.put(line)
    except RunyardError as error:
        last = error
    await queue.put(last)


async def _is_done(run: "Run", task: str, attempt: int) -> bool:
    view = await run.describe()
    found = next((each for each in view.tasks if each.name == task), None)
    if found is None:
        return _is_over(view)
    return found.status in _ENDED or found.attempt > attempt or _is_over(view)
