import os
import platform
import shutil
from pathlib import Path

import pytest

from runyard.errors import ConfigError
from runyard.executors.local import surroundings
from runyard.executors.local.executor import LocalExecutor
from runyard.executors.local.folder import remove_tree
from runyard.executors.memory import MemoryExecutor
from runyard.executors.open import open_executor
from runyard.settings import Settings
from runyard.spec.plan import Container, Resources, TaskPlan, Volume


def task(*containers: Container, **more: object) -> TaskPlan:
    return TaskPlan.model_validate(
        {"id": "id", "name": "t", "containers": containers or [Container(image="python:3.13")], **more}
    )


def test_an_ordinary_task_is_taken() -> None:
    assert surroundings.refusals(task()) == []


def test_services_are_refused_with_where_they_run() -> None:
    (sentence,) = surroundings.refusals(task(Container(image="a"), Container(name="db", image="b")))
    assert "db" in sentence
    assert "kubernetes" in sentence


def test_privileged_and_another_architecture_are_refused() -> None:
    assert "privileged" in surroundings.refusals(task(Container(image="a", privileged=True)))[0]
    assert "sparc" in surroundings.refusals(task(arch="sparc"))[0]
    here = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    assert surroundings.refusals(task(arch=here)) == []


def test_what_is_not_heeded_is_said() -> None:
    container = Container(image="alpine", user="1000", entrypoint=["/x"], volumes=[Volume(path="/big")])
    resources = Resources(cpu=0.5, memory_bytes=1 << 20, disk_bytes=1 << 30)
    said = "\n".join(surroundings.remarks(task(container, resources=resources)))
    for word in ("alpine", "user: 1000", "entrypoint", "/big", "1048576 bytes", "0.5", "disk"):
        assert word in said


def test_nothing_is_said_without_cause() -> None:
    assert len(surroundings.remarks(task())) == 1  # the image


def test_a_task_is_bound_to_as_many_cores_as_it_asks_for() -> None:
    here = os.sched_getaffinity(0)
    assert surroundings.cores(task()) == []
    assert surroundings.cores(task(resources=Resources(cpu=10_000))) == []
    if len(here) > 1:
        for cpu in (0.1, 1):
            bound = surroundings.cores(task(resources=Resources(cpu=cpu)))
            assert len(bound) == 1
            assert set(bound) <= here


def test_there_is_always_a_path() -> None:
    assert surroundings.base_environment({})["PATH"]


def test_caches_are_the_tasks_own_unless_asked_for() -> None:
    environ = {"PIP_CACHE_DIR": "/shared", "PIP_INDEX_URL": "u", "PATH": "/bin"}
    assert "PIP_CACHE_DIR" not in surroundings.base_environment(environ)
    assert surroundings.base_environment(environ, ["PIP_CACHE_DIR"]) == environ


def test_the_agent_keeps_the_users_home() -> None:
    environ = {"HOME": "/home/u", "SSH_AUTH_SOCK": "/s", "PATH": "/bin", "SECRET": "x"}
    assert surroundings.base_environment(environ) == {"PATH": "/bin"}
    assert surroundings.agent_environment(environ) == {"HOME": "/home/u", "SSH_AUTH_SOCK": "/s", "PATH": "/bin"}


def test_executors_by_name(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path)
    assert isinstance(open_executor("local", settings), LocalExecutor)
    assert isinstance(open_executor("memory", settings), MemoryExecutor)
    for name in ("kubernetes", "docker", "nope"):
        with pytest.raises(ConfigError, match=name):
            open_executor(name, settings)


def test_what_cannot_be_removed_stays_and_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of root's, say, that a container left: a worker that fails over them at its start runs no task."""

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "left").mkdir()
    monkeypatch.setattr(shutil, "rmtree", refuse)
    remove_tree(tmp_path / "left")
    assert (tmp_path / "left").exists()
