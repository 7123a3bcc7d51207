from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster, cluster_yard, find_lab, fresh_namespace
from yards import Yard, clear, local

from runyard.executors.local.executor import LocalExecutor
from runyard.executors.memory import MemoryExecutor


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A namespace of its own for each module, on the real kubelet of the lab.

    Not async, since `yard` asks for it only where it needs it.
    """
    with fresh_namespace(find_lab(request)) as fresh:
        yield fresh


@pytest.fixture(params=["memory", "local", pytest.param("kubernetes", marks=pytest.mark.kubernetes)])
async def yard(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Yard]:
    if request.param == "kubernetes":
        async with cluster_yard(request.getfixturevalue("cluster"), tmp_path) as ready:
            yield ready
        return
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
