"""A shell of its own for each test."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell_process import PATIENCE_S, Shell, free_port, until


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    folder = tmp_path / "project"
    folder.mkdir()
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("RUNYARD_", "TEMPORAL_"))}
    environment = keep | {
        "RUNYARD_STATE": str(tmp_path / "state"),
        "RUNYARD_SETTINGS": str(tmp_path / "none.toml"),
        "TEMPORAL_ADDRESS": f"127.0.0.1:{free_port()}",
        "TZ": "UTC",
        "PYTHONUNBUFFERED": "1",
    }
    made = Shell(folder, environment)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=PATIENCE_S)
    # tasks outlive a worker that was killed, as they should: nobody comes back for these
    for pid in made.processes(str(tmp_path)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not made.processes(str(tmp_path)), "all processes of the test to end")
