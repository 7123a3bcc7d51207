"""The lab can be trusted: the images work in a restricted pod, and nobody's lab is in another's way."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes.aio.client import ApiClient, CoreV1Api
from lab import PROGRAM, Lab

pytestmark = pytest.mark.kubernetes

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}


async def ended(api: ApiClient, namespace: str, image: str, command: list[str]) -> tuple[int, str]:
    """Exit code and output of a container, in the pod that a strict administrator allows."""
    core = CoreV1Api(api)
    container = {"name": "main", "image": image, "command": command, "securityContext": RESTRICTED}
    pod = {"metadata": {"name": "once"}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    await core.create_namespaced_pod(namespace, pod)
    async with asyncio.timeout(60):
        while True:
            seen = await core.read_namespaced_pod("once", namespace)
            statuses = seen.status.container_statuses or []
            if statuses and statuses[0].state.terminated:
                text = await core.read_namespaced_pod_log("once", namespace)
                return statuses[0].state.terminated.exit_code, text
            await asyncio.sleep(0.1)


async def test_our_image_runs_in_a_restricted_pod(lab: Lab) -> None:
    async with (
        lab.namespace(labels={"pod-security.kubernetes.io/enforce": "restricted"}) as name,
        lab.api() as api,
    ):
        # the agent without an assignment says so: it was compiled for this very Python
        script = """runyard version && git --version && zstd --version && ssh -V
            python3 -I /opt/runyard/agent.pyc; echo agent $?"""
        code, said = await ended(api, name, lab.image_runyard, ["sh", "-c", script])
    assert code == 0, said
    assert "agent 2" in said
    assert "bad magic number" not in said


async def test_a_users_image_has_the_usual_shells(lab: Lab) -> None:
    async with lab.namespace() as name, lab.api() as api:
        script = "for shell in sh dash bash 'busybox sh'; do $shell -c 'echo ok | cat'; done"
        code, said = await ended(api, name, lab.image_task, ["sh", "-c", script])
    assert (code, said.split()) == (0, ["ok"] * 4)


async def test_a_bucket_is_there_and_goes(lab: Lab) -> None:
    store = lab.minio()
    async with lab.bucket() as name:
        assert store.bucket_exists(name)
    assert not store.bucket_exists(name)


async def test_whoever_comes_second_finds_the_lab_as_it_is(lab: Lab) -> None:
    before = status(os.environ)
    others = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    try:
        holding = [lab_process("hold", str(other.pid)) for other in others]
        assert [process.wait(timeout=60) for process in holding] == [0, 0]
        assert status(os.environ) == before
        releasing = [lab_process("release", str(other.pid)) for other in others]
        assert [process.wait(timeout=60) for process in releasing] == [0, 0]
        assert status(os.environ) == before, "the session still holds it"
    finally:
        for other in others:
            other.kill()
            other.wait()


@pytest.fixture
def own_lab(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a second lab, beside the shared one."""
    state = Path("/run/ryd-test") if os.access("/run", os.W_OK) else tmp_path_factory.mktemp("ryd")
    environ = os.environ | {"RUNYARD_LAB_STATE": str(state), "RUNYARD_LAB_PORT": "26540"}
    yield environ
    run(environ, "down")


def test_a_killed_lab_comes_up_again_and_leaves_nothing(own_lab: dict[str, str]) -> None:
    shared = status(os.environ)
    holder = subprocess.Popen(["sleep", "600"])
    try:
        run(own_lab, "hold", str(holder.pid))
        first = status(own_lab)
        for pid in first.values():
            os.kill(pid, signal.SIGKILL)
        run(own_lab, "hold", str(holder.pid))
        second = status(own_lab)
        assert second.keys() == first.keys()
        assert not set(second.values()) & set(first.values())
    finally:
        holder.kill()
        holder.wait()
    run(own_lab, "release", str(holder.pid))
    state = own_lab["RUNYARD_LAB_STATE"]
    assert not Path(state).exists()
    assert state not in Path("/proc/self/mounts").read_text()
    assert not Path("/sys/class/net/ryd26540").exists()
    assert not [entry for entry in Path("/proc").glob("[0-9]*/cmdline") if state in words_of(entry)]
    assert not list(Path("/sys/fs/cgroup").glob("**/ryd26540"))
    assert status(os.environ) == shared


def words_of(cmdline: Path) -> str:
    with contextlib.suppress(OSError):
        return cmdline.read_text()
    return ""


def lab_process(*words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, str(PROGRAM), *words])


def run(environ: "dict[str, str] | os._Environ[str]", *words: str) -> str:
    done = subprocess.run([sys.executable, str(PROGRAM), *words], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def status(environ: "dict[str, str] | os._Environ[str]") -> dict[str, int]:
    return {name: int(pid) for name, pid in json.loads(run(environ, "status", "--json")).items()}
