"""What is so in pods only: services to wait for, other users, process 1, last words, a copy of the log."""

import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_stage import SHELLS, Stage, compiled_agent
from test_agent_dialogue import until

from runyard.agent import Agent, Clone, Failure, LocalCopy, Work
from runyard.dialogue import AgentEnd, Assignment, ServiceProbe, StoredArchive, parse_agent_end
from runyard.spec.plan import CloneStep, Content, RestoreWorkspaceStep, RunStep, SaveToWorkspaceStep, Source
from runyard.store.base import UrlTarget

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts processes of other users")


def last_words(stage: Stage) -> tuple[AgentEnd | None, str]:
    return parse_agent_end(stage.words("termination"))


def in_a_pod(stage: Stage) -> dict[str, str]:
    """The agent's termination message, made by whoever starts it, as a kubelet does."""
    (stage.folder / "termination").touch()
    return {"RUNYARD_TERMINATION_LOG": str(stage.folder / "termination")}


# --- services ---------------------------------------------------------------------------------------


@pytest.fixture
def port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def test_steps_begin_when_the_service_listens(any_shell: Stage, port: int, warming: int) -> None:
    services = [ServiceProbe(name="web", port=warming, path="/health"), ServiceProbe(name="db", port=port)]
    any_shell.prepare(RunStep(command=": >../ran"), services=services)
    agent, main = any_shell.start_agent(), any_shell.start_main()
    until(lambda: Warming.asked == 4)  # the first is ready, the second is not there yet
    assert not (any_shell.store / "started").exists()  # so a pod that is lost now is made again
    with socket.create_server(("127.0.0.1", port)):
        assert main.wait(30) == 0
    assert agent.wait(30) == 0
    assert (any_shell.home / "ran").exists()


class Warming(http.server.BaseHTTPRequestHandler):
    """Answers 503 until it is warm."""

    asked = 0

    def do_GET(self) -> None:
        Warming.asked += 1
        self.send_response(200 if Warming.asked > 3 and self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def warming() -> Iterator[int]:
    Warming.asked = 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Warming)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_service_that_answers_but_is_not_ready_yet(stage: Stage, warming: int) -> None:
    service = ServiceProbe(name="web", port=warming, path="/health")
    assert stage.play(RunStep(command="echo ran"), services=[service]) == 0
    assert Warming.asked == 4


def test_service_that_never_gets_ready(any_shell: Stage, port: int, warming: int) -> None:
    services = [
        ServiceProbe(name="web", port=warming, path="/health"),
        ServiceProbe(name="the; db", port=port, timeout_s=1),
    ]
    any_shell.prepare(RunStep(command=": >../ran"), services=services)
    agent = any_shell.start_agent(in_a_pod(any_shell))
    assert any_shell.start_main().wait(30) == 125
    assert agent.wait(30) == 0
    receipt = any_shell.receipt
    assert (receipt.service_failed, receipt.steps, receipt.sealed) == (True, {}, False)
    assert receipt.message.startswith(f"the, db was not ready after 1 s: port {port}")
    assert not (any_shell.home / "ran").exists()
    assert not (any_shell.store / "started").exists()
    what, why = last_words(any_shell)
    assert what == AgentEnd.SERVICE
    assert "was not ready after 1 s" in why


def test_cancel_while_a_service_is_waited_for(any_shell: Stage, warming: int) -> None:
    service = ServiceProbe(name="web", port=warming, path="/never")
    any_shell.prepare(RunStep(command=": >../ran"), services=[service])
    agent, main = any_shell.start_agent(), any_shell.start_main()
    until(lambda: Warming.asked)
    main.terminate()
    assert main.wait(30) == 143
    assert agent.wait(30) == 0
    assert any_shell.receipt.term
    assert not (any_shell.home / "ran").exists()


def test_main_is_killed_while_a_service_is_waited_for(stage: Stage, warming: int) -> None:
    service = ServiceProbe(name="web", port=warming, path="/never")
    stage.prepare(RunStep(command=": >../ran"), services=[service])
    agent, main = stage.start_agent(), stage.start_main()
    until(lambda: Warming.asked)
    main.kill()
    assert agent.wait(30) == 0
    assert not (stage.store / "started").exists()


# --- last words -------------------------------------------------------------------------------------


def test_last_words_on_an_assignment_that_cannot_be_read(stage: Stage) -> None:
    stage.prepare(RunStep(command="echo"))
    (stage.folder / "assignment.json").write_text('{"steps": ')
    assert stage.start_agent(in_a_pod(stage)).wait(30) == 2
    assert last_words(stage)[0] == AgentEnd.ASSIGNMENT


def test_last_words_when_main_never_comes(stage: Stage) -> None:
    stage.prepare(RunStep(command="echo"), start_s=0.2)
    assert stage.start_agent(in_a_pod(stage)).wait(30) == 3
    assert last_words(stage) == (AgentEnd.NO_MAIN, "main did not come within 0.2 s")


def test_last_words_on_an_attempt_that_was_started_before(stage: Stage) -> None:
    stage.store.mkdir()
    (stage.store / "started").touch()
    stage.prepare(RunStep(command="echo"))
    agent = stage.start_agent(in_a_pod(stage))
    assert stage.start_main().wait(30) == 125
    assert agent.wait(30) == 0
    assert last_words(stage)[0] == AgentEnd.STARTED_BEFORE


def test_store_that_is_away_from_the_beginning_sends_main_home(stage: Stage, port: int) -> None:
    """An address that tasks cannot reach would hang every one of them; nothing has run, so it is made again."""
    away = f"http://127.0.0.1:{port}/b"
    target = UrlTarget(url=away, prefix="p/", fields={}, claim=f"{away}/p/started")
    stage.prepare(RunStep(command=": >../ran"), logs=target, start_s=1)
    agent = stage.start_agent(in_a_pod(stage))
    assert stage.start_main().wait(30) == 125
    assert agent.wait(30) == 0
    assert "does not answer" in stage.receipt.message
    assert last_words(stage) == (AgentEnd.STORE, stage.receipt.message)
    assert not (stage.home / "ran").exists()


def test_no_last_words_where_all_is_well(stage: Stage) -> None:
    assert stage.play(RunStep(command="exit 3"), secrets=in_a_pod(stage)) == 3
    assert stage.words("termination") == ""


def test_unknown_last_words_are_passed_on() -> None:
    assert parse_agent_end("Traceback: no") == (None, "Traceback: no")
    assert parse_agent_end("") == (None, "")


# --- a copy of the log ------------------------------------------------------------------------------


def test_copy_of_the_log(stage: Stage) -> None:
    steps = [RunStep(command="echo a; echo $S; echo b >&2"), RunStep(command="printf c")]
    environ = {"RUNYARD_COPY_LOG": "1", "SECRET": "tell-nobody"}
    assert stage.play(*steps, secrets=environ, environ={"S": "tell-nobody"}, mask=["SECRET"]) == 0
    assert stage.words("agent.log") == "a\n***\nb\nc"


def start_agent_on(stage: Stage, output: int) -> subprocess.Popen[bytes]:
    """The agent, its own output going to a pipe."""
    environ = {
        "PATH": os.environ["PATH"],
        "RUNYARD_COPY_LOG": "1",
        "RUNYARD_DIR": str(stage.dir),
        "RUNYARD_ASSIGNMENT": str(stage.folder / "assignment.json"),
    }
    words = [stage.python, "-I", "-S", compiled_agent(stage.python)]
    agent = subprocess.Popen(words, env=environ, stdout=output, start_new_session=True)
    stage.processes.append(agent)
    os.close(output)
    return agent


def test_copy_that_nobody_reads_stops_no_step(stage: Stage) -> None:
    """What was left out is said; what is there are whole lines."""
    stage.prepare(RunStep(command="i=0; while [ $i -lt 40000 ]; do i=$((i+1)); printf '%099d\\n' $i; done"))
    read, write = os.pipe()
    agent = start_agent_on(stage, write)
    assert stage.start_main().wait(60) == 0
    assert len(stage.log(0)) == 4_000_000
    with open(read, "rb") as copy:
        lines = copy.read().splitlines(keepends=True)
    assert agent.wait(30) == 0
    assert lines[0] == b"%099d\n" % 1
    assert len(lines) < 40_000
    assert all(len(line) == 100 or line.startswith(b"[runyard: ") for line in lines[:-1])


def test_copy_whose_reader_goes_away(stage: Stage) -> None:
    stage.prepare(RunStep(command="echo a; sleep 0.3; echo b"))
    read, write = os.pipe()
    os.close(read)
    agent = start_agent_on(stage, write)
    assert stage.start_main().wait(30) == 0
    assert agent.wait(30) == 0
    assert stage.log(0) == b"a\nb\n"


# --- users ------------------------------------------------------------------------------------------

DEBIAN_PYTHON = "/usr/bin/python3"


@pytest.fixture
def shared(stage: Stage) -> Iterator[Stage]:
    """A stage in a folder that every user reaches, with a Python that every user reaches."""
    if not os.path.exists(DEBIAN_PYTHON):
        pytest.skip("there is no Python that other users of this machine could start")
    folder = Path(f"/var/tmp/runyard-stage-{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)
    made = Stage(folder / "stage", SHELLS[0], DEBIAN_PYTHON)
    yield made
    made.end()
    shutil.rmtree(folder)


def open_up(stage: Stage) -> None:
    """As emptyDirs are: anybody may write there."""
    for path in (stage.folder, stage.dir, stage.home):
        path.chmod(0o777)
    (stage.folder / "receipt").touch()
    (stage.folder / "receipt").chmod(0o666)
    (stage.folder / "assignment.json").chmod(0o644)
    (stage.folder / "script").chmod(0o644)


def saved_archive(stage: Stage) -> StoredArchive:
    saver = Stage(stage.folder / "saver", stage.shell, stage.python)
    command = "mkdir -p out/sub; echo secret >out/sub/f; chmod 600 out/sub/f; ln -s sub/f out/l"
    save = SaveToWorkspaceStep(contents=[Content(source_dir="out", dest_dir="", paths=["**"])])
    archives = {"kind": "folder", "folder": str(stage.folder / "archives")}
    assert saver.play(RunStep(command=command), save, archives=archives) == 0
    record = saver.manifest.archives[0]
    path = stage.folder / "archives" / record.file
    return StoredArchive(
        task="t", step=1, file=record.file, source=str(path), size=record.size, sha256=record.sha256
    )


@ROOT_ONLY
def test_agent_as_root_gives_files_to_the_user_of_main(shared: Stage) -> None:
    stored = saved_archive(shared)
    shared.main_as = 1000
    steps = [
        RestoreWorkspaceStep(dest_dir="~/a/b/c"),
        RunStep(
            command="id -u; cat ~/a/b/c/sub/f; echo more >>~/a/b/c/sub/f; : >~/a/new; rm -r ~/a/b\n"
            "umask 077; echo mine >~/mine"
        ),
        SaveToWorkspaceStep(contents=[Content(source_dir="~", paths=["mine"])]),
    ]
    archives = {"kind": "folder", "folder": str(shared.folder / "saved")}
    shared.prepare(*steps, restore=[stored], archives=archives)
    open_up(shared)
    agent = shared.start_agent()
    main = shared.start_main({"RUNYARD_POD": "1"})
    assert main.wait(60) == 0, [shared.log(n) for n in range(3)]
    assert agent.wait(60) == 0
    assert shared.log(1) == b"1000\nsecret\n"
    assert shared.manifest.archives[0].files == 1


@ROOT_ONLY
def test_both_under_one_user_without_any_capability(shared: Stage) -> None:
    """As in a namespace that enforces the restricted standard."""
    stored = saved_archive(shared)
    origin = shared.folder / "origin"
    subprocess.run(["git", "init", "-q", "-b", "main", str(origin)], check=True)
    (origin / "f").write_text("cloned\n")
    commit = ["git", "-C", str(origin), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*commit, "add", "f"], check=True)
    subprocess.run([*commit, "commit", "-qm", "m"], check=True)
    subprocess.run(
        ["chown", "-R", "1000:1000", str(origin)], check=True
    )  # to whom it belongs is the server's matter
    shared.main_as = shared.agent_as = 1000
    steps = [
        CloneStep(),
        RestoreWorkspaceStep(dest_dir="~/a/b"),
        RunStep(command="cat f ~/a/b/l; echo more >>f; git status --short; (umask 077; echo s >~/a/s)"),
        SaveToWorkspaceStep(contents=[Content(source_dir="~/a", paths=["s"])]),
    ]
    shared.store.mkdir()
    shared.store.chmod(0o777)
    archives = {"kind": "folder", "folder": str(shared.store / "saved")}
    source = Source(url=f"file://{origin}", branch="main")
    shared.prepare(*steps, restore=[stored], archives=archives, source=source)
    open_up(shared)
    agent = shared.start_agent({"HOME": "/root"})
    main = shared.start_main({"RUNYARD_POD": "1"})
    assert main.wait(60) == 0, [shared.log(n) for n in range(4)]
    assert agent.wait(60) == 0
    assert shared.log(2) == b"cloned\nsecret\n M f\n"
    assert shared.manifest.seal == "complete"


def test_folder_of_another_machine_cannot_be_cloned_in_a_pod(stage: Stage, port: int) -> None:
    stage.prepare(CloneStep(), source=Source(url="/somewhere", local=True))
    words = {"kind": "url", "url": f"http://127.0.0.1:{port}/b", "prefix": "p/", "fields": {}, "claim": ""}
    source = Source(url="/somewhere", local=True)
    asked = Assignment(run_id="r", task="t", attempt=1, steps=[CloneStep()], logs=words, source=source)
    assignment = asked.model_dump(mode="json")
    agent = Agent({"RUNYARD_DIR": str(stage.dir), "PATH": os.environ["PATH"]}, assignment)
    agent.cwd = str(stage.cwd)
    with pytest.raises(Failure, match="which no pod can see"):
        LocalCopy(Clone(Work(agent, 0, 2)), "/somewhere").run()


# --- main as process 1 ------------------------------------------------------------------------------


@pytest.fixture(params=SHELLS, ids=" ".join)
def container(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A stage whose main is process 1 of a namespace of its own, as in a container."""
    if subprocess.run(["unshare", "-Urpf", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a namespace of processes")
    made = Stage(tmp_path / "stage", request.param, sys.executable)
    made.shell = ["unshare", "-Urpf", "--mount-proc", "--kill-child=KILL", *request.param]
    yield made
    made.end()


def child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    until(lambda: children.read_text().strip())
    return int(children.read_text().split()[0])


def test_process_1_asks_all_processes_to_end(container: Stage) -> None:
    """Also those that have left the step's session, and its tree."""
    command = "(setsid sh -c 'trap \"echo asked; : >../asked; exit\" TERM; : >../began; sleep 60 & wait' &)\n"
    command += "trap 'while [ ! -e ../asked ]; do sleep 0.05; done; exit' TERM; sleep 60 & wait"
    container.prepare(RunStep(command=command))
    agent = container.start_agent()
    outer = container.start_main({"RUNYARD_POD": "1"})
    until((container.home / "began").exists)
    os.kill(child_of(outer.pid), 15)
    assert outer.wait(30) == 143
    assert agent.wait(30) == 0
    assert container.receipt.term
    assert container.receipt.sealed
    assert container.log(0) == b"asked\n"


@pytest.mark.promise(7)
def test_process_1_with_a_deaf_step(container: Stage) -> None:
    container.prepare(RunStep(command="trap '' TERM; : >../began; while :; do sleep 1; done"))
    agent = container.start_agent()
    outer = container.start_main({"RUNYARD_POD": "1", "RUNYARD_GRACE_S": "1"})
    until((container.home / "began").exists)
    os.kill(child_of(outer.pid), 15)
    assert outer.wait(30) == 143
    assert agent.wait(30) == 0
    assert container.receipt.sealed


# --- scripts of any size ----------------------------------------------------------------------------


def test_script_that_is_too_long_for_an_argument(any_shell: Stage) -> None:
    """The kernel takes 128 KiB as one argument: main runs from a file then, and so do its steps."""
    text = "x" * 200_000
    any_shell.prepare(RunStep(command=f": '{text}'\necho '{text}'"), RunStep(command="echo b"))
    assert (any_shell.folder / "script").stat().st_size > 400_000
    agent = any_shell.start_agent()
    assert any_shell.start_main({"RUNYARD_POD": "1"}).wait(60) == 0
    assert agent.wait(60) == 0
    assert any_shell.log(0) == text.encode() + b"\n"
    assert any_shell.log(1) == b"b\n"
