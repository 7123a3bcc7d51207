"""deploy/Dockerfile, built by a real dockerd on a root file system of Debian: no registry is asked."""

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Lab

from runyard import __version__

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(1200)]

REPOSITORY = Path(__file__).resolve().parents[2]
LAB = Path(os.environ.get("RUNYARD_LAB") or Path.home() / ".cache" / "runyard-lab")
BASE = "lab.local/debian:12"
MARK = f"secret-{uuid.uuid4().hex}"

Docker = Callable[..., str]


@pytest.fixture(scope="module")
def docker(lab: Lab) -> Iterator[Docker]:
    """A dockerd of our own, that leaves the machine's network alone. Skips where none can run, with its words."""
    daemon = shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin")
    if daemon is None:
        pytest.skip("no dockerd here (Debian: docker.io)")
    client = Path(daemon).parents[1] / "bin" / "docker"  # the daemon's own: another `docker` may be in the path
    with tempfile.TemporaryDirectory(prefix="ryd-") as folder, contextlib.ExitStack() as stack:
        host = f"unix://{folder}/docker.sock"
        log = stack.enter_context(open(f"{folder}/log", "w+"))
        running = subprocess.Popen(
            [daemon, "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--host", host,
             "--pidfile", f"{folder}/pid", "--bridge=none", "--iptables=false", "--ip6tables=false",
             "--ip-forward=false"], stdout=log, stderr=log)  # fmt: skip
        stack.callback(_end, running)

        def run(*words: str, stdin: bytes | None = None) -> str:
            environ = os.environ | {"DOCKER_HOST": host, "DOCKER_BUILDKIT": "1"}
            done = subprocess.run([client, *words], input=stdin, capture_output=True, env=environ)
            assert done.returncode == 0, done.stderr.decode()[-4000:]
            return (done.stdout + done.stderr).decode()

        if not _answers(run, running):
            log.seek(0)
            pytest.skip(f"dockerd does not run here: {log.read()[-500:]}")
        yield run


@pytest.fixture(scope="module")
def image(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> str:
    root = max((LAB / "images").glob("root-runyard-*.tar"), key=lambda path: path.stat().st_mtime)
    docker("import", str(root), BASE)
    pip_conf = tmp_path_factory.mktemp("pip") / "pip.conf"
    pip_conf.write_text(f"# {MARK}\n[global]\n{_index()}")
    authority = os.environ.get("PIP_CERT") or "/etc/ssl/certs/ca-certificates.crt"
    docker(
        "build", "--network=host", "--file", "deploy/Dockerfile", "--build-arg", f"BASE={BASE}",
        "--secret", f"id=pip.conf,src={pip_conf}", "--secret", f"id=ca.pem,src={authority}", "--tag", "runyard",
        str(REPOSITORY))  # fmt: skip
    return "runyard"


def test_it_is_worker_and_agent_for_a_user_without_rights(docker: Docker, image: str) -> None:
    strict = ["run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    assert __version__ in docker(*strict, image, "version")
    assert "serve" in docker(*strict, image, "worker", "--help").lower()
    script = "id -u; git --version; zstd --version; python3 -I /opt/runyard/agent.pyc; echo agent $?"
    said = docker(*strict, "--entrypoint=sh", image, "-c", script)
    assert said.split()[0] == "65532"
    assert "agent 2" in said, "the agent without an assignment says so"


def test_nothing_of_the_build_is_left_in_it(docker: Docker, image: str, tmp_path: Path) -> None:
    assert MARK not in docker("history", "--no-trunc", image)
    docker("save", "--output", str(tmp_path / "image.tar"), image)
    with tarfile.open(tmp_path / "image.tar") as archive:
        layers = [entry for entry in archive if entry.name.endswith("layer.tar")]
        for layer in layers:
            content = archive.extractfile(layer)
            assert content is not None
            names = set()
            with tarfile.open(fileobj=content) as files:
                for file in files:
                    names.add(file.name)
                    if file.isfile() and file.size < 100_000:
                        taken = files.extractfile(file)
                        assert taken is not None
                        assert MARK.encode() not in taken.read(), file.name
            assert not {"etc/pip.conf", "run/ca.pem", "tmp/pip", "src", "opt/runyard/lib/bin/temporal"} & names
            assert not [
                name for name in names if name.startswith("var/lib/apt/lists/") and name.endswith("_Packages")
            ]


def _index() -> str:
    """What this machine's pip asks, less what only its own file system has."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    wanted = ("index-url", "extra-index-url", "trusted-host", "timeout", "proxy")
    lines = []
    for line in done.stdout.splitlines():
        key, _, value = line.partition("=")
        if (name := key.rpartition(".")[2]) in wanted:
            lines.append(f"{name} = {value.strip(chr(39))}\n")
    return "".join(lines)


def _answers(docker: Docker, running: "subprocess.Popen[bytes]") -> bool:
    deadline = time.monotonic() + 60
    while running.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(AssertionError):
            docker("version")
            return True
        time.sleep(0.2)
    return False


def _end(running: "subprocess.Popen[bytes]") -> None:
    running.terminate()
    try:
        running.wait(timeout=30)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()
