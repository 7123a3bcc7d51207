"""Stages for the tests of script and agent."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_stage import SHELLS, Stage, old_python
from minio_for_agent import MinioServer
from minio_server import require_minio


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A stage with the first shell there is."""
    made = Stage(tmp_path / "stage", SHELLS[0], sys.executable)
    yield made
    made.end()


@pytest.fixture(params=SHELLS, ids=" ".join)
def any_shell(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A stage for each shell of this machine."""
    made = Stage(tmp_path / "stage", request.param, sys.executable)
    yield made
    made.end()


@pytest.fixture
def old_stage(tmp_path: Path) -> Iterator[Stage]:
    """A stage whose agent runs on the oldest Python that it promises."""
    python = old_python()
    if python is None:
        pytest.skip("there is no Python 3.9 on this machine")
    made = Stage(tmp_path / "stage", SHELLS[0], python)
    yield made
    made.end()


@pytest.fixture(scope="session")
def one_minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """One server for all tests, which some of them kill and start again."""
    server = MinioServer(require_minio(), tmp_path_factory.mktemp("minio") / "server")
    yield server
    server.kill()


@pytest.fixture
def minio(one_minio: MinioServer) -> Iterator[MinioServer]:
    """That server, running."""
    yield one_minio
    if one_minio.process.poll() is not None:
        one_minio.start()


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """A prefix in the bucket for this test alone."""
    return f"logs/{tmp_path.name}/data/1/"
