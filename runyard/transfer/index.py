"""What is in an exported run: a tar whose first member says what the others are.

    runyard-export.json                        Index: version, run, and name, size and SHA-256 of all that follow
    runs/<run id>/plan.jsonl, request.json, result.json
    logs/<task id>/data/…   archives/<task id>/data/…   snapshots/<uuid>/<id>/data/content

Members are named by the keys that they had in the store, so that `tar tf` says what a file holds. A format of our
own was turned down since nobody has a tool for it, a compressed one since archives are compressed already.

The index comes first, so that a reader knows what it has to get before it writes a byte, and whoever cut a file
short or changed it is found out. It costs the writer a second look at the data.
"""

import hashlib
import json
import re

from pydantic import ValidationError

from runyard.errors import InvalidExport, InvalidRequest, NewerExport
from runyard.model import Model
from runyard.store import paths
from runyard.store.base import check_key

VERSION = 1
INDEX = "runyard-export.json"
INDEX_BYTES = 64 << 20
RECORD_BYTES = 256 << 20
"""A plan, request, result or manifest of a snapshot: these are held in memory."""

_TASK_ID = re.compile(r"[a-z0-9]{1,64}")
_KINDS = (paths.LOGS, paths.ARCHIVES, paths.SNAPSHOTS)


class Member(Model):
    """``size`` in bytes."""

    name: str
    size: int
    sha256: str


class Index(Model):
    """``made_by``: the version of Runyard that wrote it."""

    format: str = "runyard export"
    version: int = VERSION
    made_by: str = ""
    run: str
    members: list[Member]

    @property
    def digest(self) -> str:
        """Two files with one digest hold the same run in the same state."""
        words = [self.run, *([each.name, each.size, each.sha256] for each in self.members)]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()

    @property
    def records(self) -> list[Member]:
        """Those of the run itself, which come first."""
        return [member for member in self.members if member.name.startswith(paths.RUNS)]

    @property
    def items(self) -> list[str]:
        """The shared items of which something is in the file."""
        return list(dict.fromkeys(item for each in self.members if (item := paths.item_of(each.name))))


def parse_index(text: bytes) -> Index:
    """Raises InvalidExport, NewerExport."""
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise InvalidExport(f"its {INDEX} is not JSON") from error
    if not isinstance(facts, dict) or facts.get("format") != "runyard export":
        raise InvalidExport(f"its {INDEX} is not one of an exported run")
    version = facts.get("version")
    if not isinstance(version, int) or version < 1:
        raise InvalidExport(f"its {INDEX} names no version")
    if version > VERSION:
        by = f"Runyard {facts.get('made_by') or 'of a later version'}"
        raise NewerExport(f"it is of version {version}, written by {by}; up to {VERSION} is read here")
    try:
        index = Index.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidExport(f"its {INDEX} cannot be read: {where}: {first['msg']}") from error
    _check_names(index)
    return index


def _check_names(index: Index) -> None:
    """Only names that an export can have, and each once: whatever else a tar may hold goes nowhere."""
    if not index.run or index.run in (".", ".."):
        raise InvalidExport("it names no run")
    seen = set[str]()
    records = (paths.plan(index.run), paths.request(index.run), paths.result(index.run))
    if records[2] not in {member.name for member in index.records}:
        raise InvalidExport("it has no result: only runs that have ended are exported")
    if index.members[: len(index.records)] != index.records:
        raise InvalidExport("its records do not come first")
    for member in index.members:
        if member.name in seen:
            raise InvalidExport(f"it names `{member.name[:200]}` twice")
        seen.add(member.name)
        if member.name not in records:
            _check_data(member.name)
        elif member.size > RECORD_BYTES:
            raise InvalidExport(f"`{member.name[:200]}` of {member.size} bytes is larger than any of its kind")
        if member.size < 0:
            raise InvalidExport(f"`{member.name[:200]}` has no size")


def _check_data(name: str) -> None:
    try:
        check_key(name)
    except InvalidRequest as error:
        raise InvalidExport(f"it holds what cannot be the name of anything in a store: {name[:200]!r}") from error
    item = paths.item_of(name)
    if item is None or not name.startswith(_KINDS) or not name.startswith(paths.data(item)):
        raise InvalidExport(f"it holds what is no part of a run: {name[:200]!r}")
    if not name.startswith(paths.SNAPSHOTS) and not _TASK_ID.fullmatch(item.rpartition("/")[2]):
        raise InvalidExport(f"it holds data of what is no task: {name[:200]!r}")
