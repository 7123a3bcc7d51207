"""`runyard cleanup`, `run rm` and `run keep`, as their users run them."""

import json
import subprocess
from collections.abc import Iterator

import pytest
from shell_process import PATIENCE_S, Shell, free_port, interrupt, wait_for_line

HELLO = """
runs:
  - name: hello
    tasks:
      - name: say
        runtime: {containers: [{image: alpine}]}
        steps: [{run: 'echo hello'}]
"""
LONG = HELLO.replace("echo hello", "sleep 600")


@pytest.fixture
def served(shell: Shell) -> Iterator[Shell]:
    """A `dev` for which nothing is to stay, once its run has ended."""
    port = free_port()
    shell.environment |= {"TEMPORAL_ADDRESS": f"127.0.0.1:{port}"}
    process: subprocess.Popen[str] = shell.start("dev", "--port", str(port), "--no-ui", RUNYARD_KEEP_RUNS_DAYS="0")
    wait_for_line(process, "Ready:")
    shell.write("hello.yml", HELLO)
    shell.write("long.yml", LONG)
    yield shell
    interrupt(process)
    process.communicate(timeout=PATIENCE_S)


def test_cleanups_pins_and_removals(served: Shell) -> None:
    run = served.run
    first, second, third = [run("run", "start", "hello.yml").stdout.strip() for _ in range(3)]
    goes_on = run("run", "start", "long.yml").stdout.strip()
    for run_id in (first, second, third):
        run("run", "watch", run_id)
    assert run("run", "keep", first).stdout == f"{first}: pinned\n"
    assert f"run {first} is pinned" in run("run", "rm", first, code=2).stderr
    assert "run cancel" in run("run", "rm", goes_on, code=2).stderr
    assert "no run nowhere" in run("run", "rm", "nowhere", code=4).stderr
    assert run("run", "rm", third).stdout == f"{third}: removed\n"
    assert "Would be deleted:" in run("cleanup", "--dry-run").stdout
    assert run("run", "logs", second, "say").stdout == "hello\n"
    said = json.loads(run("cleanup", "--now", "-o", "json").stdout)
    assert said["examples"]["runs"] == [second]
    assert said["kept"]["their run is pinned"] == 2
    assert said["kept"]["their run is open"] >= 1
    shown = run("cleanup", "show").stdout
    assert "- runs: 1, 3 objects" in shown
    assert "next: 20" in shown, "`dev` has made the schedule"
    assert run("run", "logs", first, "say").stdout == "hello\n"
    assert run("run", "keep", first, "--undo").stdout == f"{first}: no longer pinned\n"
    assert json.loads(run("cleanup", "-o", "json").stdout)["examples"]["runs"] == [first]
    assert "cleanup" in run("doctor").stdout
    ended = served.state / "store" / "data" / "ended"
    assert (ended / "whole").exists()
    stray = ended / "98235" / "00000000-never"
    stray.parent.mkdir(exist_ok=True)
    stray.write_text("{}")
    run("cleanup")
    assert stray.exists()
    run("cleanup", "--reindex")
    assert not stray.exists()
    assert "changes nothing" in run("cleanup", "--reindex", "--dry-run", code=2).stderr
    run("run", "cancel", goes_on, "--wait")


def test_without_a_server(shell: Shell) -> None:
    for words in (("cleanup",), ("cleanup", "show"), ("run", "rm", "x")):
        assert "no Temporal server answers" in shell.run(*words, code=5).stderr
