"""Workspace archives: what a task saved, found again for those that restore it, and verified."""

from collections.abc import Sequence

from pydantic import ValidationError

from runyard.dialogue import ArchiveRecord, StoredArchive
from runyard.errors import Corrupt, NotFound
from runyard.records.bounded import for_each
from runyard.records.digest import digest
from runyard.records.logs import load_last_seal
from runyard.store import paths
from runyard.store.base import ObjectInfo, ObjectStore, read

_WEEK_S = 7 * 24 * 3600.0


async def list_archives(
    store: ObjectStore, task_ids: Sequence[str], *, expires_s: float = _WEEK_S
) -> list[StoredArchive]:
    """The archives of these tasks, in this order and by step; ``expires_s``: how long `source` is good.

    Of a task that has ended they are those that its last attempt saved, by its seal: an earlier one may have saved
    others. Where that seal knows of a part only, as after a kill, all that are there are taken.

    Raises Corrupt for a record that cannot be read, NotFound for an archive whose record is there and it not.
    """

    async def one(task_id: str) -> list[StoredArchive]:
        return await _of_task(store, task_id, expires_s)

    return [archive for found in await for_each(task_ids, one, limit=16) for archive in found]


async def _of_task(store: ObjectStore, task_id: str, expires_s: float) -> list[StoredArchive]:
    prefix = paths.archives(task_id)
    there = {info.key.removeprefix(prefix): info async for info in store.list(prefix)}
    if not there:
        return []
    last = await load_last_seal(store, task_id)
    if last is not None and last.complete:
        records = last.archives
    else:
        names = [name for name in there if _is_record(name)]
        records = [_parse(await read(store, prefix + name), task_id, name) for name in names]
    found = []
    for record in sorted(records, key=lambda each: each.step):
        _check_size(task_id, record, there.get(record.file))
        found.append(
            StoredArchive(
                task=task_id,
                step=record.step,
                file=record.file,
                source=store.source(prefix + record.file, expires_s=expires_s),
                size=record.size,
                sha256=record.sha256,
            )
        )
    return found


def _is_record(name: str) -> bool:
    number, _, ending = name.partition(".")
    return number.isdecimal() and ending == "json"


async def verify_archives(store: ObjectStore, task_id: str, records: Sequence[ArchiveRecord]) -> None:
    """Compare size and SHA-256 with the records. Raises NotFound, Corrupt.

    One that the store has confirmed while it took it (``checked``) is not read again: in pods no byte of an
    archive passes through a worker. Whoever restores it compares the SHA-256 in any case.
    """
    for record in records:
        key = paths.archives(task_id) + record.file
        try:
            info = await store.stat(key)
        except NotFound as error:
            raise _gone(task_id, record) from error
        _check_size(task_id, record, info)
        if not record.checked and (await digest(store.get(key))).sha256 != record.sha256:
            raise Corrupt(f"archive {record.file} of task {task_id} is not what was saved: its SHA-256 differs")


def _parse(text: bytes, task_id: str, name: str) -> ArchiveRecord:
    try:
        return ArchiveRecord.model_validate_json(text)
    except ValidationError as error:
        raise Corrupt(f"the record {name} of the archives of task {task_id} cannot be read") from error


def _check_size(task_id: str, record: ArchiveRecord, info: ObjectInfo | None) -> None:
    if info is None:
        raise _gone(task_id, record)
    if info.size != record.size:
        raise Corrupt(f"archive {record.file} of task {task_id} has {info.size} bytes; {record.size} were saved")


def _gone(task_id: str, record: ArchiveRecord) -> NotFound:
    return NotFound(f"archive {record.file} of task {task_id} is not in the store")
