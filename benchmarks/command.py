"""The command line's bars: `runyard exec` of one `echo`, and what a start of the program imports.

Ours is the time after the embedded server is up: a small program around the command notes that moment. CPU is
given beside the clock's time, since on a busy machine it is the number that can be compared.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.rows import Row, Samples

FILE: Final = """
runs:
- name: echo
  tasks:
  - {name: hello, runtime: {containers: [{image: none}]}, steps: [{run: echo hello}]}
"""

_NOTING: Final = """
import contextlib, os, sys, time
import workers.embedded as embedded
start = embedded.embedded_server

@contextlib.asynccontextmanager
async def noting(*args, **kwargs):
    async with start(*args, **kwargs) as server:
        with open(os.environ["NOTE"], "w") as note:
            note.write(str(time.time()))
        yield server

embedded.embedded_server = noting
from runyard.cli import main
sys.exit(main())
"""

MODULES: Final = ("runyard.cli", "runyard.cli.exec", "runyard.client", "workers.serve")


def echo(place: Path, repeats: int) -> Iterator[Row]:
    """The whole command, as a user types it; and once more with the moment at which its server was up."""
    whole, ours, cpu = Samples(), Samples(), Samples()
    file, note = place / "echo.yml", place / "note"
    file.write_text(FILE)
    environment = {**os.environ, "RUNYARD_STATE": str(place / "exec"), "NOTE": str(note)}
    for _ in range(repeats):
        seconds, used = _run([sys.executable, "-m", "runyard", "exec", str(file)], environment)
        whole.add(seconds)
        cpu.add(used)
        _run([sys.executable, "-c", _NOTING, "exec", str(file)], environment)
        ours.add(time.time() - float(note.read_text()))
    yield Row("`runyard exec` of one `echo`, the whole command", whole.text("s"), "≤ 4 s", whole.median <= 4)
    yield Row("of which after its server is up", ours.text("s"), "≤ 1.5 s", ours.median <= 1.5)
    yield Row("CPU of the whole command, server included", cpu.text("s"))


def imports(place: Path, repeats: int) -> Iterator[Row]:
    """How long an import takes above Python's own start, and how many modules it brings."""
    bare = Samples(_run([sys.executable, "-c", "pass"], None)[1] for _ in range(repeats))
    for module in MODULES:
        program = f"import sys, json; import {module}; print(json.dumps(len(sys.modules)))"
        found = [_run([sys.executable, "-c", program], None) for _ in range(repeats)]
        count = json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
        cpu = Samples(max(0.0, used - bare.median) for _, used in found)
        yield Row(f"import of `{module}`, {count} modules", cpu.text("s of CPU"))


def _run(words: list[str], environment: dict[str, str] | None) -> tuple[float, float]:
    """Seconds by the clock and of CPU, all that the program has waited for included."""
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begin, cpu


MEASURES: Final = (echo, imports)


def measure(place: Path, *, repeats: int, only: str = "") -> Iterator[Row]:
    for each in MEASURES:
        if only in ("", each.__name__):
            yield from each(place, repeats)
