"""The layout of the store, in one place.

    runs/<run id>/plan.jsonl        first line RunPlan, then one TaskPlan a line, parents first
    runs/<run id>/request.json      StoredRequest, from which a restart starts; written before the plan
    runs/<run id>/result.json       RunView at the end
    runs/<run id>/imported.json     Imported, of a run that came from another store (see runyard/transfer)
    runs/<run id>/keep              pinned: nothing of this run is removed
    ended/<5 digits>/<8 digits>-<run id>   RunView without tasks; the digits count down the milliseconds of the end
    ended/whole                     every result has its entry there (see records/ended.py)
    logs/<task id>/runs/<run id>    runid object: this run refers to that task's logs
    logs/<task id>/data/<attempt>/  started           written by the agent before the first step, once
                                    segments/<step>/<offset, 16 digits>   while it runs; those of its parts stay
                                    segments/setup/<milliseconds>-<n>     lines of the worker
                                    manifest.json     written by the agent when all is in the store
                                    steps/<step>.log       after sealing, where the log does not stay in its parts
                                    setup.log              after sealing; a short one: in the seal
                                    seal.json         the verdict on the log; nothing changes after it
    archives/<task id>/runs/<run id>
    archives/<task id>/data/<step>.tar.zst|.tar.gz and <step>.json (size, sha256, files)
    caches/<group>/<key>.tar.zst|.tar.gz and <key>.json               parts escaped
    snapshots/<repository uuid>/<id>/data/content   a manifest or a pack of a checkout (see records/snapshots.py);
                                    the id begins with its SHA-256

`logs/<task id>`, `archives/<task id>` and `snapshots/<uuid>/<id>` are shared items (records/sharing.py): besides
`runs/` and `data/` each may have a `tombstone`.

Steps are numbers from 0. Ids of runs and keys and groups of caches are user's words: they are percent-escaped to
one part, which leaves the ids that Runyard makes as they are.
"""

from urllib.parse import quote, unquote

SETUP = "setup"
RUNS = "runs/"
CACHES = "caches/"
ENDED = "ended/"
ENDED_WHOLE = "ended/whole"
LOGS = "logs/"
ARCHIVES = "archives/"
SNAPSHOTS = "snapshots/"
SHARED = {LOGS: 1, ARCHIVES: 1, SNAPSHOTS: 2}
"""Where shared items are, and of how many parts their names are below it."""
_FOREVER_MS = 10**13 - 1


def run(run_id: str) -> str:
    return f"{RUNS}{escape(run_id)}/"


def plan(run_id: str) -> str:
    return f"{run(run_id)}plan.jsonl"


def request(run_id: str) -> str:
    return f"{run(run_id)}request.json"


def result(run_id: str) -> str:
    return f"{run(run_id)}result.json"


def passing(run_id: str) -> str:
    return f"{run(run_id)}passing.json"


def imported(run_id: str) -> str:
    return f"{run(run_id)}imported.json"


def keep(run_id: str) -> str:
    return f"{run(run_id)}keep"


def ended(run_id: str, at_ms: int) -> str:
    """Its entry in the index of ended runs: a folder has those of 28 hours, the latest come first."""
    left = f"{min(max(_FOREVER_MS - at_ms, 0), _FOREVER_MS):013}"
    return f"{ENDED}{left[:5]}/{left[5:]}-{escape(run_id)}"


def parse_ended(key: str) -> tuple[str, int] | None:
    """The run and the millisecond of an entry; None for any other key."""
    day, slash, rest = key.removeprefix(ENDED).partition("/")
    digits, dash, run_id = rest.partition("-")
    left = day + digits
    if not (slash and dash and run_id and len(left) == 13 and left.isascii() and left.isdecimal()):
        return None
    return unescape(run_id), _FOREVER_MS - int(left)


def log_item(task_id: str) -> str:
    return f"{LOGS}{task_id}"


def archive_item(task_id: str) -> str:
    return f"{ARCHIVES}{task_id}"


def snapshot_item(repository: str, pack: str) -> str:
    return f"{SNAPSHOTS}{repository}/{pack}"


def runids(item: str) -> str:
    return f"{item}/runs/"


def runid(item: str, run_id: str) -> str:
    return f"{runids(item)}{escape(run_id)}"


def data(item: str) -> str:
    return f"{item}/data/"


def tombstone(item: str) -> str:
    return f"{item}/tombstone"


def item_of(key: str) -> str | None:
    """The shared item that a key belongs to; None for a key of anything else."""
    parts = key.split("/")
    depth = SHARED.get(f"{parts[0]}/", 0)
    known = depth and len(parts) > depth + 1 and parts[depth + 1] in ("runs", "data", "tombstone")
    return "/".join(parts[: depth + 1]) if known else None


def log_runid(task_id: str, run_id: str) -> str:
    return runid(log_item(task_id), run_id)


def archive_runid(task_id: str, run_id: str) -> str:
    return runid(archive_item(task_id), run_id)


def attempt(task_id: str, number: int) -> str:
    return f"{data(log_item(task_id))}{number}/"


def segments(task_id: str, number: int, step: int | str) -> str:
    return f"{attempt(task_id, number)}segments/{step}/"


def step_log(task_id: str, number: int, step: int | str) -> str:
    name = "setup.log" if step == SETUP else f"steps/{step}.log"
    return attempt(task_id, number) + name


def seal(task_id: str, number: int) -> str:
    return f"{attempt(task_id, number)}seal.json"


def manifest(task_id: str, number: int) -> str:
    return f"{attempt(task_id, number)}manifest.json"


def archives(task_id: str) -> str:
    return data(archive_item(task_id))


def cache_group(group: str) -> str:
    return f"{CACHES}{escape(group)}/"


def snapshot_content(item: str) -> str:
    return f"{data(item)}content"


def escape(words: str) -> str:
    """User's words as one part of a key; `.` and `..` too."""
    escaped = quote(words, safe="-_.~+=@,")
    return escaped.replace(".", "%2E") if set(escaped) == {"."} else escaped


def unescape(part: str) -> str:
    """The user's words again."""
    return unquote(part)
