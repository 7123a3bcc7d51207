from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from yards import Yard, clear, local

from runyard.executors.local.executor import LocalExecutor
from runyard.executors.memory import MemoryExecutor


@pytest.fixture(params=["memory", "local"])
async def yard(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Yard]:
    if request.param == "memory":
        memory = MemoryExecutor(slots=4)
        yield Yard(memory, lambda: memory, tmp_path, "memory")
        return
    opened: list[LocalExecutor] = []

    def again() -> LocalExecutor:
        opened.append(local(tmp_path))
        return opened[-1]

    yield Yard(again(), again, tmp_path, "local")
    await clear(opened, tmp_path)


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[Callable[..., LocalExecutor]]:
    """Local executors, as many as are asked for, on one tasks folder. In the end no process may be left."""
    opened: list[LocalExecutor] = []

    def worker(**settings: object) -> LocalExecutor:
        opened.append(local(tmp_path, **settings))  # type: ignore[arg-type]
        return opened[-1]

    yield worker
    await clear(opened, tmp_path)
