"""Stages for the tests of script and agent."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_stage import SHELLS, Stage, old_python


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
