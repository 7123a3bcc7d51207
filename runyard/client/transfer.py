"""Runs as files: from a yard's store, and into it."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from runyard.client.restarting import ask_state
from runyard.errors import Conflict, InvalidExport, InvalidRequest, NotFound
from runyard.store.threads import settle
from runyard.transfer.export import make_index, pack
from runyard.transfer.imports import Import, import_run

if TYPE_CHECKING:
    from runyard.client.yard import Runyard
    from runyard.records.earlier import State


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written: objects of the store, and the size of the file in bytes."""

    run: str
    members: int
    size_bytes: int


async def export_to(yard: "Runyard", run_id: str, target: Path | BinaryIO) -> Export:
    """See `Runyard.export_run`."""
    view = await yard.run(run_id).describe()
    if view.ended_at is None:
        raise Conflict(
            f"run {run_id} has not ended", remedy="Wait for its end, or end it: `runyard run cancel --wait`."
        )
    index, records = await make_index(yard.store, view)
    size = 0
    with _written(target) as file:
        async with contextlib.aclosing(pack(yard.store, index, records)) as pieces:
            async for piece in pieces:
                size += len(piece)
                await settle(asyncio.ensure_future(asyncio.to_thread(file.write, piece)))  # a pipe may be slow
    return Export(run=run_id, members=len(index.members), size_bytes=size)


async def import_from(yard: "Runyard", source: Path | BinaryIO) -> Import:
    """See `Runyard.import_run`."""

    async def ask(run_id: str) -> "State":
        return await ask_state(yard, run_id)

    with _opened(source) as file:
        try:
            found = await import_run(yard.store, file, ask=ask)
        except InvalidExport as error:
            name = source if isinstance(source, Path) else "what was given"
            raise type(error)(f"{name} cannot be imported: {error.message}", remedy=error.remedy) from error
    return found


@contextlib.contextmanager
def _written(target: Path | BinaryIO) -> Iterator[BinaryIO]:
    """A file that has its name only when it is whole."""
    if not isinstance(target, Path):
        yield target
        return
    try:
        target = target.resolve()  # a link stays one
        if target.exists() and not target.is_file():  # a device or a pipe is written to, and never replaced
            with target.open("wb") as file:
                yield file
            return
    except OSError as error:
        raise InvalidRequest(f"{target} cannot be written: {error.strerror or error}") from error
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(target)
    except OSError as error:
        raise InvalidRequest(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[BinaryIO]:
    if not isinstance(source, Path):
        yield source
        return
    try:
        file = source.open("rb")
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {source}") from error
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{source} cannot be read: {error}") from error
    with file:
        yield file
