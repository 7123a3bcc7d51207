"""`runyard exec`, as a process: output, exit codes, Ctrl-C, and what it leaves behind."""

import asyncio
import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from shell_process import PATIENCE_S, Shell, interrupt, until, wait_for_line

from runyard.cli.checkout import find_checkout
from runyard.cli.exec import _Work, _yard
from runyard.settings import Settings
from runyard.spec import compile_run
from runyard.spec.run import RunRequest

HELLO = """
runs:
  - name: hello
    tasks:
      - name: say
        runtime: {containers: [{image: alpine}]}
        steps: [{run: 'echo hello $WHO'}]
"""
MIXED = """
runs:
  - name: mixed
    tasks:
      - name: lint
        runtime: {containers: [{image: alpine}]}
        steps: [{run: 'for n in $(seq 1 30); do echo line $n; done; exit 3'}]
      - name: after
        runtime: {containers: [{image: alpine}]}
        depends: [lint]
        steps: [{run: echo never}]
"""
SLEEPY = """
runs:
  - name: sleepy
    tasks:
      - name: nap
        runtime: {containers: [{image: alpine}]}
        steps: [{run: 'echo asleep; sleep 1000'}]
"""
STUBBORN = SLEEPY.replace("echo asleep;", 'trap "" TERM INT; echo asleep;')


def test_a_run_to_its_end(shell: Shell) -> None:
    shell.write("hello.yml", HELLO)
    done = shell.run("exec", "hello.yml", "--env", "WHO=world")
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"runyard hello of project · run hello-\d{8}-\d{6}-[a-z2-7]{4}", lines[0])
    assert re.fullmatch(r"Temporal UI http://127\.0\.0\.1:\d+/namespaces/default/workflows/hello-.*", lines[1])
    assert [re.sub(r"[\d.:]+", "#", line) for line in lines[2:]] == [
        "# say started",
        "# say ✔ # s",
        "✔ hello · # task in # s",
    ]
    assert done.stderr == ""
    assert not shell.processes(str(shell.state)), "server, worker and tasks are gone"


def test_the_store_remembers_it_without_a_server(shell: Shell) -> None:
    shell.write(".runyard/config.yml", HELLO)
    view = json.loads(shell.run("exec", "-o", "json", "--env", "WHO=you").stdout)
    assert (view["result"], view["phase"], view["counts"]) == ("success", "finished", {"success": 1})
    assert shell.run("run", "logs", view["id"], "say").stdout == "hello you\n"
    assert json.loads(shell.run("run", "logs", view["id"], "say", "-o", "json").stdout) == {
        "text": "hello you",
        "step": 0,
        "attempt": 1,
    }
    shown = json.loads(shell.run("run", "show", view["id"], "-o", "json").stdout)
    assert shown["tasks"][0]["status"] == "success"
    assert [each["id"] for each in json.loads(shell.run("run", "list", "-o", "json").stdout)["runs"]] == [
        view["id"]
    ]
    assert json.loads(shell.run("run", "list", "--failed", "-o", "json").stdout)["runs"] == []


def test_a_failed_run_says_why_and_shows_the_end_of_the_log(shell: Shell) -> None:
    shell.write("mixed.yml", MIXED)
    done = shell.run("exec", "mixed.yml", "--no-ui", code=1)
    logged = [line for line in done.stdout.splitlines() if line.startswith("         | ")]
    assert logged == [f"         | line {n}" for n in range(11, 31)]
    assert "after ○ skipped: lint failed" in done.stdout
    last = done.stdout.split("✖ mixed failed: ")[1].splitlines()
    assert last[0] == "1 of 2 tasks failed: lint"
    assert "exit code 3" in last[1]
    assert re.fullmatch(r" +runyard run logs mixed-\S+ lint", last[-1])
    assert "Temporal UI" not in done.stdout


def test_an_invalid_file_ends_before_anything_is_started(shell: Shell) -> None:
    shell.write("bad.yml", HELLO.replace("steps:", "stepz:"))
    done = shell.run("exec", "bad.yml", code=3)
    assert re.match(r"bad\.yml:7:9: .*stepz.*steps", done.stderr)
    assert not shell.state.exists()
    as_json = json.loads(shell.run("exec", "bad.yml", "-o", "json", code=3).stderr)
    assert (as_json["code"], as_json["exit"], as_json["details"][0]["line"]) == ("invalid_run_file", 3, 7)


def test_a_port_in_use_is_no_obstacle(shell: Shell) -> None:
    shell.write("hello.yml", HELLO)
    first = shell.start("exec", "hello.yml")
    second = shell.run("exec", "hello.yml")
    assert first.wait(PATIENCE_S) == 0
    assert "✔ hello" in second.stdout


@pytest.mark.promise(7)
def test_ctrl_c_cancels_and_leaves_nothing_behind(shell: Shell) -> None:
    shell.write("sleepy.yml", SLEEPY)
    process = shell.start("exec", "sleepy.yml")
    head = wait_for_line(process, "nap started")
    until(lambda: "asleep" in _log(shell, head), "the task to run")
    interrupt(process)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 6, out + err
    assert "✖ sleepy cancelled" in out
    assert err == ""
    assert not shell.processes(str(shell.state)), "server, worker and tasks are gone"
    assert _log(shell, head) == "asleep\n", "its log is kept"


def test_a_second_ctrl_c_leaves_at_once(shell: Shell) -> None:
    shell.write("stubborn.yml", STUBBORN)
    process = shell.start("exec", "stubborn.yml")
    head = wait_for_line(process, "nap started")
    until(lambda: "asleep" in _log(shell, head), "the task to run")
    interrupt(process)
    wait_for_line(process, "Ctrl-C again leaves at once")
    interrupt(process)
    began = time.monotonic()
    assert process.wait(PATIENCE_S) == 6
    assert time.monotonic() - began < 5, "the task's grace period is longer"
    until(lambda: not _servers(shell), "the server to be gone")


def test_killed_exec_takes_its_server_with_it(shell: Shell) -> None:
    shell.write("sleepy.yml", SLEEPY)
    process = shell.start("exec", "sleepy.yml")
    wait_for_line(process, "nap started")
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_S)
    until(lambda: not _servers(shell), "the server to be gone")


@pytest.mark.promise(5)
@pytest.mark.parametrize("file", [SLEEPY, STUBBORN], ids=["sleepy", "stubborn"])
def test_killed_exec_takes_its_tasks_with_it(shell: Shell, file: str) -> None:
    """Nobody would adopt them: the server that knew of the run is gone too. What they had said is kept."""
    shell.write("sleepy.yml", file)
    process = shell.start("exec", "sleepy.yml")
    head = wait_for_line(process, "nap started")
    until(lambda: "asleep" in _log(shell, head), "the task to run")
    process.kill()
    process.wait(PATIENCE_S)
    until(lambda: not shell.processes(str(shell.state)), "server, supervisor, task and agent to end")
    assert "asleep" in _log(shell, head)


def test_a_terminal_gets_a_tree_that_is_redrawn(shell: Shell) -> None:
    shell.write("mixed.yml", MIXED)
    code, output = _on_terminal(shell, "exec", "mixed.yml", TERM="xterm")
    assert code == 1
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output)
    assert " ✖ lint" in text
    assert " ○ after" in text
    assert "✖ mixed failed: 1 of 2 tasks failed: lint" in text
    assert "\x1b[31m" in output, "in colour"
    assert text.count("| line 30") == 1, "the end of the failed task's log"


def test_no_color_and_ascii(shell: Shell) -> None:
    shell.write("hello.yml", HELLO)
    code, output = _on_terminal(shell, "exec", "hello.yml", "--ascii", TERM="xterm", NO_COLOR="1")
    assert code == 0
    assert not re.search(r"\x1b\[[0-9;]*m", output)
    assert output.isascii()
    assert " + say" in output


async def test_a_worker_that_ends_in_the_middle_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else will bring the run to its end. In this process, since no command makes a worker fail."""
    under_way = asyncio.Event()

    @contextlib.asynccontextmanager
    async def server(*_: object, **__: object) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(client=None, ui_url="")

    async def fail(*_: object, ready: asyncio.Event, **__: object) -> None:
        ready.set()
        await under_way.wait()
        raise RuntimeError("the poller failed")

    monkeypatch.setattr("workers.embedded.embedded_server", server)
    monkeypatch.setattr("workers.serve.serve", fail)
    monkeypatch.setattr("runyard.cli.exec.quiet", lambda: None)  # it would be so for the tests that follow
    request = RunRequest(file=HELLO)
    work = _Work(
        request=request,
        plan=compile_run(request, run_id="check", execution_id="check"),
        checkout=find_checkout(tmp_path),
        settings=Settings(state=tmp_path / "state", store_folder=tmp_path / "store"),
        headless=True,
        as_json=True,
    )

    async def wait() -> None:
        async with _yard(work):
            under_way.set()
            await asyncio.Event().wait()  # for the run's result

    waiting = asyncio.create_task(wait())
    ended, _ = await asyncio.wait({waiting}, timeout=10)
    waiting.cancel()  # where it has not ended by itself: the same error comes then, too late
    with pytest.raises(RuntimeError, match="the poller failed"):
        await waiting
    assert ended


def _log(shell: Shell, head: str) -> str:
    found = re.search(r"run (\S+)", head)
    assert found
    return shell.run("run", "logs", found[1], "nap", code=None).stdout


def _servers(shell: Shell) -> list[int]:
    return [pid for pid in shell.processes(str(shell.state)) if _is_server(pid)]


def _is_server(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True)
    return "start-dev" in done.stdout


def _on_terminal(shell: Shell, *words: str, **variables: str) -> tuple[int, str]:
    """Run it with a terminal of 100 by 30 as its output."""
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(shell.folder)
        environment = shell.environment | {"COLUMNS": "100", "LINES": "30"} | variables
        os.execvpe(shell.command()[0], shell.command(*words), environment)
    data = bytearray()
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if not select.select([master], [], [], 0.1)[0]:
            continue
        try:
            chunk = os.read(master, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not chunk:
            break
        data += chunk
    os.close(master)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), data.decode()
