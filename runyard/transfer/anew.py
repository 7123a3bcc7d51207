"""The new names that an imported run's data get, and its records with them in.

A name of shared data is used once (rule 3 of records/sharing.py): a delete that comes late must delete nothing. A
run that is exported, removed and imported again would break that under its old names. So each import has a token,
and names its data by it. What refers to them (plan, request, result, the snapshot's manifest) is written anew; all
else stays byte by byte what it was, seals too. The price: two imported runs that shared a task's data share them
no longer.

Records are changed as JSON and not through our models: what a newer version has put into them stays in them.
"""

import base64
import hashlib
import json
import zlib
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from runyard.errors import InvalidExport
from runyard.model import Model
from runyard.records.snapshots import Manifest, Pack, encode_manifest
from runyard.spec.plan import Snapshot
from runyard.spec.run import RunView
from runyard.store import paths
from runyard.transfer.index import RECORD_BYTES


class Imported(Model):
    """Written before all other records of an imported run: which file it is from, and the token of its names."""

    export: str  # Index.digest
    token: str
    at: datetime


class Names:
    """New names for the data of one import. ``snapshot`` is the run's then, once its manifest was seen."""

    def __init__(self, token: str) -> None:
        self._token = token
        self.snapshot: Snapshot | None = None

    def task(self, task_id: str) -> str:
        digest = hashlib.sha256(f"{self._token}/{task_id}".encode()).digest()
        return base64.b32encode(digest).decode().lower()[:20]

    def item(self, item: str) -> str:
        """Of a shared item, all but a snapshot's manifest."""
        folder, _, last = item.rpartition("/")
        if not item.startswith(paths.SNAPSHOTS):
            return f"{folder}/{self.task(last)}"
        return f"{folder}/{self.pack(last)}"

    def key(self, key: str) -> str:
        item = paths.item_of(key)
        assert item is not None
        return self.item(item) + key.removeprefix(item)

    def pack(self, pack: str) -> str:
        """Its bytes stay what they are, and so does the beginning of the name."""
        return f"{pack.partition('-')[0]}-{self._token[:8]}"

    def manifest(self, data: bytes, old: Snapshot) -> Pack:
        """A snapshot's manifest with the new names of its packs; its own name is then known too."""
        try:
            unpacker = zlib.decompressobj(wbits=31)
            manifest = Manifest.model_validate_json(unpacker.decompress(data, RECORD_BYTES))
        except (zlib.error, ValidationError) as error:
            raise InvalidExport("the manifest of its snapshot cannot be read") from error
        packs = [pack.model_copy(update={"id": self.pack(pack.id)}) for pack in manifest.packs]
        made = encode_manifest(manifest.model_copy(update={"packs": packs}), self._token[:8])
        self.snapshot = old.model_copy(update={"id": made.id})
        return made


def read_snapshot(plan: bytes) -> Snapshot | None:
    """The snapshot that a plan's run is made from. Raises InvalidExport."""
    found = (_load(plan.partition(b"\n")[0], "plan").get("source") or {}).get("snapshot")
    try:
        return None if found is None else Snapshot.model_validate(found)
    except ValidationError as error:
        raise InvalidExport("the snapshot that its plan names cannot be read") from error


def read_tasks(plan: bytes, run_id: str) -> list[str]:
    """The ids of the tasks of a run's plan, also of those that it kept. Raises InvalidExport."""
    first, *lines = plan.splitlines() or [b""]
    if _load(first, "plan").get("run_id") != run_id:
        raise InvalidExport(f"its plan is not one of the run {run_id[:200]}")
    tasks = [_load(line, "plan") for line in lines]
    for task in tasks:
        if not all(isinstance(each, str) for each in (task.get("id"), *task.get("layers", ()))):
            raise InvalidExport("its plan has a task without an id")
    return [task["id"] for task in tasks]


def rename_plan(plan: bytes, names: Names) -> bytes:
    head, *tasks = (_load(line, "plan") for line in plan.splitlines())
    _set_snapshot(head, names)
    for task in tasks:
        task["id"] = names.task(task["id"])
        if task.get("layers"):
            task["layers"] = [names.task(each) for each in task["layers"]]
    return b"".join(_dump(each) + b"\n" for each in (head, *tasks))


def rename_request(text: bytes, names: Names) -> bytes:
    request = _load(text, "request")
    if isinstance(request.get("request"), dict):
        _set_snapshot(request["request"], names)
    return _dump(request)


def rename_result(text: bytes, names: Names, imported: Imported) -> RunView:
    view = RunView.model_validate_json(text)
    tasks = [task.model_copy(update={"id": names.task(task.id) if task.id else ""}) for task in view.tasks]
    return view.model_copy(update={"tasks": tasks, "imported_at": imported.at, "ui": ""})


def check_result(text: bytes, run_id: str) -> RunView:
    """How the run ended. Raises InvalidExport where the text says something else."""
    try:
        view = RunView.model_validate_json(text)
    except ValidationError as error:
        raise InvalidExport("its result cannot be read") from error
    if view.id != run_id or view.ended_at is None:
        raise InvalidExport(f"its result does not say how the run {run_id[:200]} ended")
    return view


def _set_snapshot(holder: dict[str, Any], names: Names) -> None:
    source = holder.get("source")
    if names.snapshot is not None and isinstance(source, dict) and source.get("snapshot"):
        source["snapshot"] = {**source["snapshot"], "id": names.snapshot.id}


def _load(text: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidExport(f"its {what} cannot be read") from error
    if not isinstance(found, dict):
        raise InvalidExport(f"its {what} cannot be read")
    return found


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
