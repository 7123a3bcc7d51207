"""The two programs take turns: one of them dies, is stopped, or is asked to end, at every turn."""

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_stage import Stage, below, compiled_agent

from runyard.spec.plan import CloneStep, RunStep, Source

STEPS = [RunStep(command="echo a"), RunStep(command="echo b; exit 3"), RunStep(command="echo c", when="always")]


def until(true: Callable[[], object], *, timeout_s: float = 20) -> None:
    """Wait for something that other processes bring about."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def test_the_folder_of_the_dialogue_is_made_by_whoever_comes_first(any_shell: Stage) -> None:
    any_shell.dir.rmdir()
    any_shell.prepare(RunStep(command="true"))
    main = any_shell.start_main()
    until(any_shell.dir.exists)
    assert any_shell.start_agent().wait(60) == main.wait(60) == 0


class FakeAgent(threading.Thread):
    """Answers so many requests, then is gone: its ends of the FIFOs are closed."""

    def __init__(self, folder: Path, turns: int, *, answer_last: bool) -> None:
        super().__init__(daemon=True)
        self.folder, self.turns, self.answer_last = folder, turns, answer_last
        self.requests: list[str] = []
        for name in ("req", "res"):
            os.mkfifo(folder / name)

    def run(self) -> None:
        req = os.open(self.folder / "req", os.O_RDONLY | os.O_NONBLOCK)
        res = os.open(self.folder / "res", os.O_RDWR)
        select.select([req], [], [])
        os.set_blocking(req, True)
        logs = []
        with open(req) as lines:
            while self.turns:
                line = lines.readline().strip()
                self.requests.append(line)
                word, _, number = line.partition(" ")
                if word == "begin":
                    os.mkfifo(self.folder / f"log.{number}")
                    logs.append(os.open(self.folder / f"log.{number}", os.O_RDONLY | os.O_NONBLOCK))
                self.turns -= 1
                if self.turns or self.answer_last:
                    os.write(res, b"0 sealed\n" if word == "done" else b"0\n")
        for fd in [res, *logs]:
            os.close(fd)


@pytest.mark.parametrize("answer_last", [True, False], ids=["after its answer", "before its answer"])
@pytest.mark.parametrize("turns", range(1, 8))  # hello, begin 0, end 0, begin 1, end 1, begin 2, end 2
def test_agent_dies_at_a_turn(any_shell: Stage, turns: int, answer_last: bool) -> None:
    any_shell.prepare(*STEPS)
    agent = FakeAgent(any_shell.dir, turns, answer_last=answer_last)
    agent.start()
    assert any_shell.start_main().wait(30) == 125
    assert any_shell.receipt.agent_lost
    assert not any_shell.receipt.sealed
    assert agent.requests[0].startswith("hello")


def test_real_agent_is_killed_while_a_step_writes(any_shell: Stage) -> None:
    any_shell.prepare(RunStep(command="yes"))
    agent = any_shell.start_agent()
    main = any_shell.start_main()
    until(lambda: any_shell.log(0))
    agent.kill()
    assert main.wait(30) == 125
    assert any_shell.receipt.agent_lost
    assert any_shell.receipt.steps[0] != 0


def test_real_agent_is_killed_while_a_step_is_quiet(any_shell: Stage) -> None:
    any_shell.prepare(RunStep(command=": >../began; while [ ! -e ../go ]; do sleep 0.01; done"))
    agent = any_shell.start_agent()
    main = any_shell.start_main()
    until((any_shell.home / "began").exists)
    agent.kill()
    agent.wait()
    (any_shell.home / "go").touch()
    assert main.wait(30) == 125
    receipt = any_shell.receipt
    assert (receipt.steps, receipt.agent_lost, receipt.sealed) == ({0: 0}, True, False)


class FakeMain:
    """Says what a test wants said to a real agent, and hears its answers."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        until((stage.dir / "res").exists)
        self.res = os.open(stage.dir / "res", os.O_RDONLY)
        self.req = os.open(stage.dir / "req", os.O_WRONLY)
        self.logs: list[int] = []

    def tell(self, request: str) -> None:
        os.write(self.req, f"{request}\n".encode())

    def ask(self, request: str) -> str:
        self.tell(request)
        return os.read(self.res, 100).decode()

    def write(self, step: int, data: bytes) -> None:
        if not self.logs:
            self.logs.append(os.open(self.stage.dir / f"log.{step}", os.O_WRONLY))
        os.write(self.logs[-1], data)

    def die(self) -> None:
        for fd in (self.req, self.res, *self.logs):
            os.close(fd)


TURNS = ["hello", "begin 0", "write", "end 0 0", "begin 1", "done"]


@pytest.mark.promise(4)
@pytest.mark.parametrize("turns", range(len(TURNS) + 1))
def test_main_dies_at_a_turn(stage: Stage, turns: int) -> None:
    stage.prepare(*STEPS)
    agent = stage.start_agent()
    main = FakeMain(stage)
    for turn in TURNS[:turns]:
        if turn == "write":
            main.write(0, b"half a li")
        else:
            assert main.ask(turn) == ("0 sealed\n" if turn == "done" else "0\n")
    main.die()
    assert agent.wait(30) == 0
    if not turns:
        assert not (stage.store / "manifest.json").exists()
        return
    manifest = stage.manifest
    assert manifest.seal == ("complete" if turns == len(TURNS) else "truncated")
    assert bool(manifest.reason) == (turns < len(TURNS))
    if turns > 2:
        assert stage.log(0) == b"half a li"
        assert manifest.steps[0].bytes == 9
        assert manifest.steps[0].exit_code == (0 if turns > 3 else None)


def test_agent_that_fails_itself_keeps_what_it_has(stage: Stage) -> None:
    """A step may remove the folder through which the two talk."""
    stage.prepare(RunStep(command=f"echo out; rm -r {stage.dir}"), RunStep(command="echo no"))
    agent = stage.start_agent()
    assert stage.start_main().wait(30) == 125
    assert agent.wait(30) != 0
    assert stage.receipt.agent_lost
    assert stage.log(0) == b"out\n"
    assert stage.manifest.seal == "truncated"
    assert "the agent failed" in stage.manifest.reason


@pytest.mark.promise(4)
def test_real_main_is_killed(any_shell: Stage) -> None:
    any_shell.prepare(RunStep(command="echo out; exec sleep 60"))
    agent = any_shell.start_agent()
    main = any_shell.start_main()
    until(lambda: any_shell.log(0))
    main.kill()
    main.wait()
    assert agent.wait(30) == 0  # the step itself may live on: whoever supervises main ends it
    assert any_shell.manifest.seal == "truncated"
    assert any_shell.log(0) == b"out\n"


@pytest.mark.promise(2)
def test_attempt_is_started_once_only(any_shell: Stage) -> None:
    assert any_shell.play(RunStep(command="echo ran >>../ran")) == 0
    manifest = (any_shell.store / "manifest.json").read_bytes()
    (any_shell.folder / "receipt").unlink()
    for name in ("req", "res"):
        (any_shell.dir / name).unlink()
    assert any_shell.play(RunStep(command="echo ran >>../ran")) == 125
    assert any_shell.receipt.started_before
    assert (any_shell.home / "ran").read_text() == "ran\n"
    assert (any_shell.store / "manifest.json").read_bytes() == manifest


@pytest.mark.promise(2)
def test_of_many_agents_one_gets_the_attempt(tmp_path: Path, stage: Stage) -> None:
    stages = [Stage(tmp_path / str(i), stage.shell, stage.python) for i in range(6)]
    for each in stages:
        each.store = stage.store
        each.prepare(RunStep(command=f"echo ran >>{tmp_path}/ran"))
        each.start_agent()
        each.start_main()
    codes = sorted(each.processes[1].wait(30) for each in stages)
    assert codes == [0, 125, 125, 125, 125, 125]
    assert (tmp_path / "ran").read_text() == "ran\n"
    for each in stages:
        each.end()


def test_whoever_comes_first_waits(any_shell: Stage) -> None:
    any_shell.prepare(*STEPS)
    main = any_shell.start_main()
    until((any_shell.dir / "res").exists)
    any_shell.start_agent()
    assert main.wait(30) == 3


def test_main_never_comes(stage: Stage) -> None:
    stage.prepare(*STEPS, start_s=0.2)
    assert stage.start_agent().wait(30) == 3
    assert not stage.store.exists()


def test_stopped_agent_stops_the_task_and_loses_nothing(stage: Stage) -> None:
    stage.prepare(RunStep(command="i=0; while [ $i -lt 200000 ]; do echo $i; i=$((i+1)); done"))
    agent = stage.start_agent()
    main = stage.start_main()
    for _ in range(10):
        agent.send_signal(signal.SIGSTOP)
        time.sleep(0.01)
        agent.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    assert main.wait(60) == 0
    assert agent.wait(30) == 0
    assert stage.log(0) == b"".join(b"%d\n" % i for i in range(200000))


def test_stopped_main_goes_on(stage: Stage) -> None:
    stage.prepare(*[RunStep(command="echo x") for _ in range(20)])
    stage.start_agent()
    main = stage.start_main()
    while main.poll() is None:
        main.send_signal(signal.SIGSTOP)
        time.sleep(0.002)
        main.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    assert main.wait() == 0
    assert len(stage.receipt.steps) == 20


# --- being asked to end -----------------------------------------------------------------------------


@pytest.fixture
def cancelled(any_shell: Stage) -> Iterator[Callable[..., Stage]]:
    """A stage whose main is asked to end once ``began`` is there; nothing of it may be left."""

    def play(command: str, **task: object) -> Stage:
        any_shell.prepare(RunStep(command=command), RunStep(command="echo always", when="always"), **task)
        agent = any_shell.start_agent()
        main = any_shell.start_main({"RUNYARD_GRACE_S": "1"})
        until((any_shell.home / "began").exists)
        main.terminate()
        assert main.wait(30) == 143
        assert agent.wait(30) == 0
        return any_shell

    yield play
    until(lambda: not below(any_shell.home), timeout_s=5)


@pytest.mark.promise(7)
def test_cancel_ends_a_step_and_seals(cancelled: Callable[..., Stage]) -> None:
    stage = cancelled("echo out; : >../began; sleep 60; echo not")
    assert stage.receipt.term
    assert stage.receipt.sealed
    assert stage.receipt.steps.keys() == {0}
    assert stage.manifest.seal == "complete"
    assert stage.manifest.steps[0].exit_code == stage.receipt.steps[0]
    assert stage.log(0) == b"out\n"


@pytest.mark.promise(7)
def test_cancel_lets_a_step_clean_up(cancelled: Callable[..., Stage]) -> None:
    stage = cancelled("trap 'echo cleaned; exit 9' TERM; : >../began; while :; do sleep 0.01; done")
    assert stage.log(0).endswith(b"cleaned\n")
    assert stage.receipt.steps == {0: 9}


@pytest.mark.promise(7)
def test_cancel_of_a_deaf_step(cancelled: Callable[..., Stage]) -> None:
    """Killed before the grace period of whoever asked is over, so that there is time to seal."""
    stage = cancelled("trap '' TERM; (sleep 60; echo not) & : >../began; sleep 60; sleep 60")
    assert stage.receipt.steps == {0: 137}
    assert stage.receipt.sealed


@pytest.mark.promise(7)
def test_cancel_reaches_the_whole_tree(cancelled: Callable[..., Stage]) -> None:
    command = "(sh -c 'sleep 61 & sleep 62; :' ; :) | cat & : >../began; sleep 63; :"
    assert cancelled(command).receipt.sealed


def test_cancel_before_the_agent_is_there(any_shell: Stage) -> None:
    any_shell.prepare(*STEPS)
    main = any_shell.start_main()
    until((any_shell.dir / "res").exists)
    time.sleep(0.05)  # it may be at any point before the agent: all of them are right
    main.terminate()
    assert main.wait(30) == 143
    assert any_shell.receipt.term
    assert not any_shell.receipt.sealed


def test_cancel_while_the_agent_is_stopped(any_shell: Stage) -> None:
    any_shell.prepare(RunStep(command=": >../began; sleep 60"))
    agent = any_shell.start_agent()
    main = any_shell.start_main()
    until((any_shell.home / "began").exists)
    agent.send_signal(signal.SIGSTOP)
    main.terminate()
    until(lambda: any_shell.receipt.term)
    with pytest.raises(subprocess.TimeoutExpired):
        main.wait(0.3)
    agent.send_signal(signal.SIGCONT)
    assert main.wait(30) == 143
    assert any_shell.receipt.sealed


def _slow_git(stage: Stage) -> dict[str, str]:
    """A git that takes for ever, with a child."""
    folder = stage.folder / "bin"
    folder.mkdir()
    (folder / "git").write_text(f"#!/bin/sh\n: >{stage.home}/began\ncd {stage.home}\nsleep 60 & sleep 61; :\n")
    (folder / "git").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.promise(7)
def test_cancel_while_the_agent_works(any_shell: Stage) -> None:
    any_shell.prepare(CloneStep(), source=Source(url="https://example.org/x"))
    agent = any_shell.start_agent(_slow_git(any_shell))
    main = any_shell.start_main()
    until((any_shell.home / "began").exists)
    main.terminate()
    assert main.wait(30) == 143
    assert agent.wait(30) == 0
    assert any_shell.receipt.sealed
    assert any_shell.manifest.steps[0].exit_code == 143
    assert b"cancelled" in any_shell.log(0)
    until(lambda: not below(any_shell.home), timeout_s=5)


def test_main_is_killed_while_the_agent_works(stage: Stage) -> None:
    stage.prepare(CloneStep(), source=Source(url="https://example.org/x"))
    agent = stage.start_agent(_slow_git(stage))
    main = stage.start_main()
    until((stage.home / "began").exists)
    main.kill()
    assert agent.wait(30) == 0
    assert stage.manifest.seal == "truncated"
    until(lambda: not below(stage.home), timeout_s=5)


# --- taking too long --------------------------------------------------------------------------------


def test_step_over_its_time(any_shell: Stage) -> None:
    steps = [RunStep(command="echo a; sleep 60; echo b", timeout_s=0.5), RunStep(command="echo c", when="always")]
    assert any_shell.play(*steps) == 124
    receipt = any_shell.receipt
    assert (receipt.timed_out, receipt.steps, receipt.sealed) == (0, {0: 124, 1: 0}, True)
    assert any_shell.log(0) == b"a\n"
    assert any_shell.log(1) == b"c\n"
    until(lambda: not below(any_shell.home), timeout_s=5)


def test_deaf_step_over_its_time(any_shell: Stage) -> None:
    step = RunStep(command="trap '' TERM; (sleep 60; :) & while :; do sleep 1; done", timeout_s=1)
    assert any_shell.play(step, environ={"RUNYARD_GRACE_S": "1"}) == 124
    assert any_shell.receipt.timed_out == 0
    until(lambda: not below(any_shell.home), timeout_s=5)


def test_timeout_of_the_task_holds_for_each_step(any_shell: Stage) -> None:
    task = {"timeouts": {"step_s": 1}}
    steps = [RunStep(command="sleep 60"), RunStep(command="echo quick", when="always")]
    assert any_shell.play(*steps, task=task) == 124
    assert any_shell.receipt.steps == {0: 124, 1: 0}


def test_timeout_of_what_the_agent_does(any_shell: Stage) -> None:
    any_shell.prepare(CloneStep(), task={"timeouts": {"step_s": 1}}, source=Source(url="https://example.org/x"))
    agent = any_shell.start_agent(_slow_git(any_shell))
    assert any_shell.start_main().wait(30) == 124
    assert agent.wait(30) == 0
    assert any_shell.receipt.timed_out == 0
    assert any_shell.receipt.sealed


def test_step_within_its_time_leaves_no_watchdog(any_shell: Stage) -> None:
    assert any_shell.play(RunStep(command="echo a", timeout_s=50)) == 0
    assert any_shell.receipt.timed_out is None
    until(lambda: not below(any_shell.folder), timeout_s=5)


def test_stray_signal_is_no_timeout(any_shell: Stage) -> None:
    assert any_shell.play(RunStep(command="kill -USR1 $PPID; sleep 0.1; echo on")) == 0
    assert any_shell.log(0) == b"on\n"
    assert any_shell.receipt.timed_out is None


# --- a store that does not take it ------------------------------------------------------------------


def test_store_in_whose_place_is_a_file(any_shell: Stage) -> None:
    any_shell.store.write_text("in the way")
    any_shell.prepare(RunStep(command="echo ran >../ran"))
    agent = any_shell.start_agent()
    assert any_shell.start_main().wait(30) == 125
    assert agent.wait(30) == 0
    assert any_shell.receipt.store_refused
    assert not (any_shell.home / "ran").exists()
    assert "in the way" in any_shell.words("agent.log")


def test_log_that_is_refused_in_the_middle_fails_no_step(stage: Stage) -> None:
    command = f"echo a; rm -rf {stage.store}/segments; : >{stage.store}/segments; echo b"
    assert stage.play(RunStep(command=command), RunStep(command="echo c")) == 0
    record = stage.manifest.steps[1]
    assert "in the way" in record.truncated
    assert record.bytes == 0


def test_folder_removed_while_running(stage: Stage) -> None:
    """What was there is gone, which the manifest's digest shows; what comes after it is kept."""
    assert stage.play(RunStep(command=f"rm -rf {stage.store}; echo b")) == 0
    assert stage.log(0) == b"b\n"


@pytest.fixture
def full_store(stage: Stage) -> Iterator[Path]:
    """What starts an agent whose store is a full file system of 1 MiB; ``go`` makes room in it."""
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small file system of his own")
    script = stage.folder / "full.sh"
    stage.store.mkdir()
    script.write_text(
        f"""set -e
        mount -t tmpfs -o size=1m none {stage.store}
        head -c 900000 /dev/zero >{stage.store}/ballast
        (while [ ! -e {stage.home}/go ]; do sleep 0.05; done; rm {stage.store}/ballast) &
        code=0; "$@" || code=$?
        cp -r {stage.store} {stage.folder}/copy
        exit $code
        """
    )
    return script


def test_full_store_stops_the_step_until_there_is_room(stage: Stage, full_store: Path) -> None:
    stage.prepare(RunStep(command="head -c 500000 /dev/zero; head -c 100000 /dev/zero; : >../written"))
    python, stage.python = stage.python, "unshare"
    words = ["-Urm", "sh", str(full_store), python]
    agent = stage._start(
        ["unshare", *words, "-I", "-S", compiled_agent(python)],
        {
            "PATH": os.environ["PATH"],
            "RUNYARD_DIR": str(stage.dir),
            "RUNYARD_ASSIGNMENT": str(stage.folder / "assignment.json"),
        },
        "agent.log",
    )
    main = stage.start_main()
    until(lambda: "no room left" in stage.words("agent.log"))
    assert main.poll() is None
    (stage.home / "go").touch()
    assert main.wait(30) == 0
    assert agent.wait(30) == 0
    stage.store = stage.folder / "copy"
    assert stage.log(0) == bytes(600_000)
    assert stage.manifest.steps[0].truncated == ""
