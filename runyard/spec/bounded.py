"""A piece of work of the user's that may never end: in a child process, with bounds.

Regular expressions and Jsonnet can use any amount of time and memory, and neither can be stopped from inside
the process that runs them. The bound is on CPU time, which is the same on a busy machine; the time by the
clock is only a second net. Turned down: threads (cannot be ended), signals (only in the main thread),
multiprocessing (imports the caller's main module).
"""

import json
import subprocess
import sys
from dataclasses import dataclass

from pydantic import JsonValue

_PREAMBLE = """
import json, resource, sys
job = json.load(sys.stdin)
sys.path[:] = job["path"]
def bound(kind, limit):
    try:
        resource.setrlimit(kind, (limit, limit))
    except (OSError, ValueError):
        pass
bound(resource.RLIMIT_CPU, job["cpu_s"])
bound(resource.RLIMIT_AS, job["memory_bytes"])
bound(resource.RLIMIT_CORE, 0)
work = job["work"]
"""


@dataclass(frozen=True)
class Outcome:
    """What the child printed. ``exhausted``: it was ended by one of its bounds."""

    output: str
    error: str
    ok: bool
    exhausted: bool


def run_bounded(program: str, work: JsonValue, *, cpu_s: int, memory_bytes: int, wall_s: float) -> Outcome:
    """Run ``program``, Python source that finds ``work`` in the variable of that name. Blocks the thread."""
    job = {"path": sys.path, "cpu_s": cpu_s, "memory_bytes": memory_bytes, "work": work}
    command = [sys.executable, "-I", "-c", _PREAMBLE + program]
    try:
        done = subprocess.run(command, input=json.dumps(job).encode(), capture_output=True, timeout=wall_s)
    except subprocess.TimeoutExpired as error:
        return Outcome(_text(error.output), _text(error.stderr), ok=False, exhausted=True)
    error_text = _text(done.stderr)
    exhausted = done.returncode < 0 or "MemoryError" in error_text
    return Outcome(_text(done.stdout), error_text, ok=done.returncode == 0, exhausted=exhausted)


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace")
