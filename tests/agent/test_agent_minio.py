"""Agent and main against a real MinIO, as in a pod but for the containers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_stage import Stage
from minio_for_agent import MinioServer, find_minio

from runyard.dialogue import Manifest
from runyard.spec.plan import RunStep


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    program = find_minio()
    if program is None:
        pytest.skip("there is no MinIO here: set RUNYARD_MINIO to its program")
    server = MinioServer(program, tmp_path_factory.mktemp("minio") / "server")
    yield server
    server.kill()


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """A prefix for this test alone."""
    return f"logs/{tmp_path.name}/data/1/"


def manifest_of(minio: MinioServer, prefix: str) -> Manifest:
    return Manifest.model_validate_json(minio.get(f"{prefix}manifest.json"))


def test_task_from_begin_to_seal(stage: Stage, minio: MinioServer, prefix: str) -> None:
    steps = [
        RunStep(command="echo a; head -c 9000000 /dev/zero"),
        RunStep(command="printf '\\r\\n--runyard\\r\\n'; echo k=v >>$RUNYARD_OUTPUT"),
    ]
    assert stage.play(*steps, logs=minio.target(prefix)) == 0
    assert minio.log(prefix, 0) == b"a\n" + bytes(9_000_000)
    assert minio.log(prefix, 1) == b"\r\n--runyard\r\n"
    manifest = manifest_of(minio, prefix)
    assert (manifest.seal, manifest.outputs) == ("complete", {"k": "v"})
    assert json.loads(minio.get(f"{prefix}started"))["run_id"] == "run"
    assert stage.receipt.sealed
    assert stage.words("agent.log") == ""
