"""What an agent leaves in the store, written by the tests."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime

from runyard.dialogue import ArchiveRecord, Manifest, StepRecord
from runyard.reasons import Reason
from runyard.spec.run import TaskEnd
from runyard.store import paths
from runyard.store.base import ObjectStore

T0 = datetime(2025, 3, 1, 12, tzinfo=UTC)
SUCCESS = TaskEnd(status="success", reason=Reason.SUCCESS, exit_code=0, ended_at=T0)
LOST = TaskEnd(status="failed", reason=Reason.LOST, message="the pod is gone", ended_at=T0)
TASK = "task00000000000000aa"


def record(n: int, log: bytes, **fields: object) -> StepRecord:
    facts: dict[str, object] = {
        "n": n,
        "exit_code": 0,
        "bytes": len(log),
        "lines": log.count(b"\n"),
        "sha256": hashlib.sha256(log).hexdigest(),
        "started_at": T0,
        "ended_at": T0,
    }
    return StepRecord.model_validate(facts | fields)


def pieces(log: bytes, size: int) -> list[tuple[int, bytes]]:
    return [(at, log[at : at + size]) for at in range(0, len(log), size)]


async def write_segments(
    store: ObjectStore, step: int, segments: Sequence[tuple[int, bytes]], *, attempt: int = 1
) -> None:
    for offset, data in segments:
        await store.put(f"{paths.segments(TASK, attempt, step)}{offset:016d}", data)


async def write_attempt(store: ObjectStore, *logs: bytes, size: int = 10, attempt: int = 1) -> Manifest:
    """Segments and manifest of a task whose steps wrote ``logs``."""
    await store.put(f"{paths.attempt(TASK, attempt)}started", b"", if_absent=True)
    for n, log in enumerate(logs):
        await write_segments(store, n, pieces(log, size), attempt=attempt)
    manifest = Manifest(
        seal="complete",
        steps=[record(n, log) for n, log in enumerate(logs)],
        outputs={"VERSION": "1.2"},
        notes=["x"],
    )
    await store.put(paths.manifest(TASK, attempt), manifest.model_dump_json().encode())
    return manifest


async def write_archive(store: ObjectStore, step: int, data: bytes, *, task_id: str = TASK) -> ArchiveRecord:
    made = ArchiveRecord(
        step=step, file=f"{step}.tar.gz", size=len(data), sha256=hashlib.sha256(data).hexdigest(), files=1
    )
    await store.put(paths.archives(task_id) + made.file, data)
    await store.put(f"{paths.archives(task_id)}{step}.json", json.dumps(made.model_dump()).encode())
    return made
