"""What all tests share: a real Temporal server, a store in a folder, a worker in this process."""

import asyncio
import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from _pytest.faulthandler import fault_handler_stderr_fd_key
from hypothesis import HealthCheck, settings
from lab import lab, release_lab
from minio_server import free_pair, minio, own_minio  # noqa: F401 - fixtures of all rooms
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment
from yard import Work, Yard, temporal_program, working

from runyard.executors.memory import MemoryExecutor
from runyard.executors.open import open_executor
from runyard.settings import Settings
from runyard.store.posix import PosixStore
from runyard.temporal import DYNAMIC_CONFIG, data_converter
from workers.serve import require_search_attributes

__all__ = ["lab"]  # a fixture that lives beside what it gives


TEARDOWN_S = 150

settings.register_profile("loaded", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loaded")  # a loaded machine is no verdict on what is tested


def pytest_configure(config: pytest.Config) -> None:
    """Shells make what scripts start in the background deaf to these two, and so all that is started from there.

    What begins deaf stays so in a shell: `trap -` does not help. The steps of our tests begin as in a container.
    """
    for number, hearing in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, hearing)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(FailuresAtOnce(config))


class FailuresAtOnce:
    """A failure is told when it happens: where a run is cut off, nothing of what comes at its end is seen."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(f"{report.nodeid}, {report.when}: {report.longreprtext}"[:4000], red=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """A test's timeout strikes once: a teardown that hangs after it would hang for ever. This ends the process."""
    faulthandler.dump_traceback_later(TEARDOWN_S, file=item.config.stash[fault_handler_stderr_fd_key], exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_sessionfinish() -> None:
    release_lab()


@pytest_asyncio.fixture(scope="session")
async def server() -> AsyncIterator[WorkflowEnvironment]:
    """A real Temporal server, with the settings of the embedded one."""
    flags = [
        word for name, value in DYNAMIC_CONFIG.items() for word in ("--dynamic-config-value", f"{name}={value}")
    ]
    async with await WorkflowEnvironment.start_local(
        data_converter=data_converter(),
        dev_server_existing_path=temporal_program(),
        dev_server_extra_args=flags,
        ui=True,
        port=free_pair(),
    ) as environment:
        await require_search_attributes(environment.client)
        yield environment


@pytest.fixture
def client(server: WorkflowEnvironment) -> Client:
    return server.client


@pytest.fixture
def store(tmp_path: Path) -> PosixStore:
    return PosixStore(tmp_path / "store")


@pytest_asyncio.fixture
async def yard(client: Client, store: PosixStore) -> AsyncIterator[Yard]:
    """A worker with the memory executor."""
    executor = MemoryExecutor()
    async with working(client, store, [executor]) as ready:
        yield ready
    await executor.close()


@pytest_asyncio.fixture
async def local_yard(client: Client, store: PosixStore, tmp_path: Path) -> AsyncIterator[Yard]:
    """A worker with local processes."""

    executor = open_executor("local", Settings(state=tmp_path / "state", store_folder=tmp_path / "store"))
    async with working(client, store, [executor]) as ready:
        yield ready
    await executor.close()


@pytest_asyncio.fixture
async def work(client: Client, tmp_path: Path) -> AsyncIterator[Work]:
    """Starts workers with local processes in processes of their own, on the store of the test, to be killed."""
    started: list[asyncio.subprocess.Process] = []

    async def start(at: str = "") -> asyncio.subprocess.Process:
        program = Path(__file__).parent / "faults" / "worker_process.py"
        words = [sys.executable, str(program), client.service_client.config.target_host, str(tmp_path), at]
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        await process.stdout.readline()  # it is ready, or has died at its fault point
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
