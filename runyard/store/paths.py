"""The layout of the store, in one place.

    runs/<run id>/plan.jsonl        first line RunPlan, then one TaskPlan a line, parents first
    runs/<run id>/request.json      StoredRequest, from which a restart starts; written before the plan
    runs/<run id>/result.json       RunView at the end
    logs/<task id>/runs/<run id>    runid object: this run refers to that task's logs
    logs/<task id>/data/<attempt>/  started           written by the agent before the first step, once
                                    segments/<step>/<offset, 16 digits>   while it runs
                                    segments/setup/<milliseconds>-<n>     lines of the worker
                                    manifest.json     written by the agent when all is in the store
                                    steps/<step>.log, setup.log           after sealing; a short one: in the seal
                                    seal.json         the verdict on the log; nothing changes after it
    archives/<task id>/runs/<run id>
    archives/<task id>/data/<step>.tar.zst|.tar.gz and <step>.json (size, sha256, files)
    caches/<group>/<key>.tar.zst|.tar.gz and <key>.json               parts escaped
    snapshots/<repository uuid>/<id>/   a manifest or a pack of a checkout (see runyard.records.snapshots), shared:
                                    runs/<run id>     runid object: this run refers to it
                                    data/content      its bytes, whose SHA-256 the id begins with
                                    tombstone         written by the cleanup while it deletes the item

Steps are numbers from 0. Ids of runs and keys and groups of caches are user's words: they are percent-escaped to
one part, which leaves the ids that Runyard makes as they are.
"""

from urllib.parse import quote, unquote

SETUP = "setup"
RUNS = "runs/"
CACHES = "caches/"
SNAPSHOTS = "snapshots/"


def run(run_id: str) -> str:
    return f"{RUNS}{escape(run_id)}/"


def plan(run_id: str) -> str:
    return f"{run(run_id)}plan.jsonl"


def request(run_id: str) -> str:
    return f"{run(run_id)}request.json"


def result(run_id: str) -> str:
    return f"{run(run_id)}result.json"


def log_item(task_id: str) -> str:
    return f"logs/{task_id}"


def archive_item(task_id: str) -> str:
    return f"archives/{task_id}"


def runid(item: str, run_id: str) -> str:
    return f"{item}/runs/{escape(run_id)}"


def tombstone(item: str) -> str:
    return f"{item}/tombstone"


def log_runid(task_id: str, run_id: str) -> str:
    return runid(log_item(task_id), run_id)


def archive_runid(task_id: str, run_id: str) -> str:
    return runid(archive_item(task_id), run_id)


def attempt(task_id: str, number: int) -> str:
    return f"logs/{task_id}/data/{number}/"


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
    return f"archives/{task_id}/data/"


def cache_group(group: str) -> str:
    return f"{CACHES}{escape(group)}/"


def snapshot_item(repository: str, pack: str) -> str:
    return f"{SNAPSHOTS}{repository}/{pack}"


def data(item: str) -> str:
    return f"{item}/data/"


def snapshot_content(item: str) -> str:
    return f"{data(item)}content"


def escape(words: str) -> str:
    """User's words as one part of a key; `.` and `..` too."""
    escaped = quote(words, safe="-_.~+=@,")
    return escaped.replace(".", "%2E") if set(escaped) == {"."} else escaped


def unescape(part: str) -> str:
    """The user's words again."""
    return unquote(part)
