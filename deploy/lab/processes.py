"""Processes that outlive the command that started them.

A process is known by its number *and* the time it was born, so that a number that the kernel gave to somebody
else (after a restart of the machine, say) is never taken for ours, nor killed.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from problems import Problem

POLL_S = 0.05


@dataclass(frozen=True)
class Process:
    """``born`` is what the kernel says: the boot, and clock ticks since it."""

    pid: int
    born: str

    def alive(self) -> bool:
        return birth(self.pid) == self.born

    def kill(self, number: signal.Signals) -> None:
        if self.alive():
            os.kill(self.pid, number)


def birth(pid: int) -> str | None:
    """None: there is no such process, or only its remains."""
    try:
        # the name, in brackets, may contain anything
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if state in "ZX":
        return None
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{fields[18]}"


class Processes:
    """The processes of one folder: `run/NAME` has the number, `log/NAME` what they say."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.log = folder / "log"

    def find(self, name: str) -> Process | None:
        """The living process of that name."""
        try:
            pid, born = (self.run / name).read_text().split()
        except (FileNotFoundError, ValueError):  # a half-written file is one of a killed `up`
            return None
        process = Process(int(pid), born)
        return process if process.alive() else None

    def names(self) -> list[str]:
        return sorted(file.name for file in self.run.iterdir()) if self.run.exists() else []

    def start(self, name: str, command: Sequence[str], *, environ: Mapping[str, str]) -> None:
        """Start it in a session of its own, unless it is there."""
        if self.find(name):
            return
        self.run.mkdir(parents=True, exist_ok=True)
        self.log.mkdir(parents=True, exist_ok=True)
        with (self.log / name).open("ab") as log:
            started = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=dict(environ),
            )
        started.returncode = 0  # not waited for: it is init's child from the moment that we end
        born = birth(started.pid)
        (self.run / name).write_text(f"{started.pid} {born}\n")

    def stop(self, name: str, *, number: signal.Signals = signal.SIGTERM, within_s: float = 10) -> None:
        """Ask it to end, and kill it when it has not within the time."""
        if process := self.find(name):
            process.kill(number)
            if not _within(within_s, lambda: not process.alive()):
                process.kill(signal.SIGKILL)
                _within(5, lambda: not process.alive())

    def wait(self, name: str, ready: Callable[[], bool], *, within_s: float = 90) -> None:
        """Until it is ready. Raises Problem with its last words when it ends, or the time does."""

        def settled() -> bool:
            return self.find(name) is None or ready()

        if _within(within_s, settled) and self.find(name):
            return
        what = "did not get ready" if self.find(name) else "ended"
        raise Problem(f"{name} {what}; the end of {self.log / name}:\n{self.tail(name)}")

    def tail(self, name: str, *, lines: int = 12) -> str:
        try:
            text = (self.log / name).read_text(errors="replace")
        except FileNotFoundError:
            return "(nothing)"
        return "\n".join(text.splitlines()[-lines:])


def _within(seconds: float, settled: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not settled():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
