"""`runyard dev`, as a process: one folder, stopped, killed, started twice, started again."""

import json
import os
import signal
import socket
import subprocess

import pytest
from shell_process import PATIENCE_S, Shell, free_port, interrupt, until, wait_for_line

from workers.embedded import temporal_program

SLOW = """
runs:
  - name: slow
    tasks:
      - name: first
        runtime: {containers: [{image: alpine}]}
        steps: [{run: 'echo began; while [ ! -e GATE ]; do sleep 0.1; done; echo went on'}]
      - name: second
        depends: [first]
        runtime: {containers: [{image: alpine}]}
        steps: [{run: 'echo done'}]
"""
GATED = """
runs:
  - name: gated
    tasks:
      - name: build
        runtime: {containers: [{image: alpine}]}
        steps: [{run: 'echo built'}]
      - name: publish
        depends: [build]
        approval: true
        runtime: {containers: [{image: alpine}]}
        steps: [{run: 'echo published'}]
"""


class Dev:
    """A `dev` with ports of its own, started as often as wanted on one folder."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.port, self.ui_port = free_port(), free_port()
        shell.environment["TEMPORAL_ADDRESS"] = f"127.0.0.1:{self.port}"

    def start(self) -> subprocess.Popen[str]:
        words = ("dev", "--port", str(self.port), "--ui-port", str(self.ui_port))
        process = self.shell.start(*words)
        self.said = wait_for_line(process, "Ready:")
        return process

    def stop(self, process: subprocess.Popen[str]) -> None:
        interrupt(process)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, out + err
        assert "stopping; open runs go on" in out
        assert "Traceback" not in err


@pytest.fixture
def dev(shell: Shell) -> Dev:
    return Dev(shell)


def test_from_start_to_logs(dev: Dev) -> None:
    shell = dev.shell
    process = dev.start()
    assert f"http://127.0.0.1:{dev.ui_port}" in dev.said
    shell.write("gated.yml", GATED)
    started = json.loads(shell.run("run", "start", "gated.yml", "-o", "json", "--idempotency-key", "k 1").stdout)
    run_id = started["id"]
    assert started["ui"] == f"http://127.0.0.1:{dev.ui_port}/namespaces/default/workflows/{run_id}"
    again = shell.run("run", "start", "gated.yml", "--idempotency-key", "k 1").stdout
    assert again == f"{run_id}\n", "a second start gives the same run"
    assert "already" in shell.run("run", "start", "gated.yml", "--id", run_id, code=2).stderr

    def waits() -> bool:
        view = json.loads(shell.run("run", "show", run_id, "-o", "json").stdout)
        return [task["status"] for task in view["tasks"]] == ["success", "approval"]

    until(waits, "the task to wait for approval")
    shown = shell.run("run", "show", run_id).stdout
    assert "publish" in shown
    assert "needs approval" in shown
    assert "did you mean" in shell.run("run", "approve", run_id, "publsh", code=4).stderr.lower()
    assert "does not wait" in shell.run("run", "approve", run_id, "build", code=2).stderr
    assert "not held" in shell.run("run", "retry", run_id, "build", code=2).stderr
    assert shell.run("run", "approve", run_id, "publish", "--by", "ann").stdout == "publish: approved\n"
    watched = shell.run("run", "watch", run_id).stdout
    assert watched.splitlines()[-1].startswith("✔ gated · 2 tasks")
    assert shell.run("run", "logs", run_id, "publish", "-f").stdout == "published\n"
    assert shell.run("run", "logs", run_id, "publish", "--step", "7", code=4).stdout == ""
    assert "Did you mean" in shell.run("run", "show", run_id[:-1], code=4).stderr
    assert "ended already" in shell.run("run", "cancel", run_id, code=2).stderr
    listed = shell.run("run", "list", "--closed").stdout
    assert run_id in listed
    assert "success" in listed
    assert shell.run("doctor").stdout.count("✔") >= 9
    assert shell.run("worker", "--executor", "cloud", code=5).stderr.count("\n") >= 1
    dev.stop(process)
    assert not shell.processes(str(shell.state)), "server, worker and tasks are gone"


def test_doctor_says_what_is_wrong_and_mends_it(dev: Dev) -> None:
    shell = dev.shell
    process = dev.start()
    secrets = shell.write("secrets.env", "A=1\n")
    secrets.chmod(0o644)
    done = shell.run("doctor", "--executor", "nowhere", code=5, RUNYARD_SECRETS_FILE=str(secrets))
    assert f"chmod 600 {secrets}" in done.stdout
    assert "runyard worker --executor nowhere" in done.stdout
    wrong = shell.run("doctor", "--namespace", "nowhere", code=5).stdout
    assert "temporal operator namespace create -n nowhere" in wrong
    server = json.loads((shell.state / "server.json").read_text())["address"]
    subprocess.run(
        [
            temporal_program(),
            "operator",
            "search-attribute",
            "remove",
            "--yes",
            "--name",
            "RunyardStage",
            "--address",
            server,
        ],
        check=True,
        capture_output=True,
        env=shell.environment,
    )
    missing = [
        check
        for check in json.loads(shell.run("doctor", "-o", "json", code=5).stdout)
        if check["state"] == "wrong"
    ]
    assert [check["message"] for check in missing] == ["missing: RunyardStage"]
    assert json.loads(shell.run("doctor", "--fix", "-o", "json", code=0).stdout)
    dev.stop(process)


def test_two_on_one_folder(dev: Dev) -> None:
    process = dev.start()
    other = dev.shell.run("dev", "--port", str(free_port()), "--ui-port", str(free_port()), code=2)
    assert f"`runyard dev` runs already on {dev.shell.state} (process {process.pid}" in other.stderr
    assert f"http://127.0.0.1:{dev.ui_port}" in other.stderr
    dev.stop(process)


@pytest.mark.parametrize("which", ["--port", "--ui-port"])
def test_a_port_in_use_is_named(dev: Dev, which: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", dev.port if which == "--port" else dev.ui_port))
        taken.listen()
        words = ("dev", "--port", str(dev.port), "--ui-port", str(dev.ui_port))
        said = dev.shell.run(*words, code=2).stderr
    assert f"port {dev.port if which == '--port' else dev.ui_port} of 127.0.0.1 is in use" in said
    assert which in said


def test_a_folder_that_cannot_be_used(dev: Dev) -> None:
    said = dev.shell.run("dev", "--state", "/dev/null/here", code=5).stderr
    assert "/dev/null/here cannot be used" in said


def test_a_damaged_database_is_named(dev: Dev) -> None:
    dev.shell.state.mkdir(parents=True)
    (dev.shell.state / "temporal.db").write_text("this is no database" * 100)
    said = dev.shell.run("dev", "--port", str(dev.port), "--ui-port", str(dev.ui_port), code=5).stderr
    assert "temporal.db" in said
    assert "not a database" in said


@pytest.mark.promise(9)
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_an_open_run_goes_on_after_a_restart(dev: Dev, how: str) -> None:
    shell = dev.shell
    gate = shell.folder / "gate"
    process = dev.start()
    shell.write("slow.yml", SLOW.replace("GATE", str(gate)))
    run_id = shell.run("run", "start", "slow.yml").stdout.strip()
    until(lambda: "began" in shell.run("run", "logs", run_id, "first", code=None).stdout, "the task to begin")
    if how == "stopped":
        dev.stop(process)
    else:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)
    gate.touch()
    process = dev.start()
    assert shell.run("run", "watch", run_id).stdout.splitlines()[-1].startswith("✔ slow · 2 tasks")
    assert shell.run("run", "logs", run_id, "first").stdout == "began\nwent on\n"
    dev.stop(process)


def test_a_server_that_dies_ends_dev(dev: Dev) -> None:
    process = dev.start()
    pid = json.loads((dev.shell.state / "server.json").read_text())["pid"]
    os.killpg(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 5
    assert "the embedded Temporal server has ended" in err
    assert "Traceback" not in err
