"""`runyard worker` as a process of its own, with its log in a file."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from temporalio.client import Client


@contextmanager
def worker(client: Client, state: Path, *options: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Told to end when the block is over. It writes nothing but its log."""
    environ = os.environ | environment | {"RUNYARD_STATE": str(state)}
    address = client.service_client.config.target_host
    command = [sys.executable, "-m", "runyard", "worker", "--address", address, *options]
    with (state / "log").open("a") as log:
        process = subprocess.Popen(command, env=environ, stderr=log, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        said, _ = process.communicate(timeout=30)
        assert "--log-format" not in options or said == "", "one stream is the log"
