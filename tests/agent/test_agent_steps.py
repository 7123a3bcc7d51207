"""What users write into steps, and what becomes of it in the log."""

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest
from agent_stage import Stage

from runyard.agent import open_fifo
from runyard.spec.plan import FromSecret, RunStep


def run(command: str, **more: object) -> RunStep:
    return RunStep.model_validate({"command": command, **more})


def test_two_steps_share_the_folder_and_each_has_its_log(any_shell: Stage) -> None:
    code = any_shell.play(run("echo one >file; echo out; echo err >&2"), run("cat file; pwd"))
    assert code == 0
    assert any_shell.log(0) == b"out\nerr\n"
    assert any_shell.log(1) == f"one\n{any_shell.cwd}\n".encode()
    receipt = any_shell.receipt
    assert receipt.steps == {0: 0, 1: 0}
    assert receipt.sealed
    manifest = any_shell.manifest
    assert manifest.seal == "complete"
    step = manifest.steps[0]
    assert (step.n, step.exit_code, step.bytes, step.lines) == (0, 0, 8, 2)
    assert manifest.steps[0].sha256 == hashlib.sha256(b"out\nerr\n").hexdigest()
    assert manifest.steps[0].last_line == "err"
    assert manifest.steps[0].truncated == ""


EVERY_BYTE = "".join(chr(i) for i in range(1, 0x180)) + "\u2028 ✓ 🎈"

TEXTS = {
    "quotes": ("echo 'a'\\''b' \"c\" `echo d`", b"a'b c d\n"),
    "heredoc": ("cat <<'EOF'\n$x 'y' \"z\"\n\\\nEOF", b"$x 'y' \"z\"\n\\\n"),
    "heredoc of ours": ("cat <<RUNYARD\nEOF\nRUNYARD\n", b"EOF\n"),
    "comment at the end": ("echo a # b", b"a\n"),
    "carriage returns": ("printf 'a\r\nb'\r", b"a\r\nb\r"),
    "dollar dollar": ("x='$$' ; echo \"$x\" '$(HOME)'", b"$$ $(HOME)\n"),
    "unclosed brace is text": ("echo '}' ')' 'fi' 'done'", b"} ) fi done\n"),
    "no final newline": ("printf abc", b"abc"),
    "only newline": ("echo", b"\n"),
    "nothing": ("", b""),
    "set +e": ("set +e; false; echo on", b"on\n"),
    "stdin is at its end": ("cat; read x || echo nothing", b"nothing\n"),
    "to /dev/stdout": ("echo a >/dev/stdout; echo b >>/dev/stderr; echo c >/proc/self/fd/1", b"a\nb\nc\n"),
    "closed stdout": ("exec >&-; echo lost || true; exec 2>&-; exit 0", None),
    "binary": ("printf '\\000\\001\\377\\r\\n\\033[1m'", b"\x00\x01\xff\r\n\x1b[1m"),
    "descriptors of ours are closed": (
        "for fd in 6 7 8 9; do if (: >&$fd) 2>/dev/null; then echo $fd; fi; done",
        b"",
    ),
}


def test_a_step_whose_text_finds_no_room_is_no_success(any_shell: Stage) -> None:
    (any_shell.dir / "step.0").symlink_to("/dev/full")
    assert any_shell.play(run("true")) == 126
    assert b"no room in" in any_shell.log(0)


def test_a_home_that_cannot_be_made_is_elsewhere(any_shell: Stage) -> None:
    """Where nobody has made one: in a pod without volumes, whose image may have a user that may not."""
    spare = any_shell.folder / "spare"
    steps = [run("echo $HOME; pwd; echo a >~/b"), run("env | grep RUNYARD_HOME || true")]
    assert any_shell.play(*steps, environ={"HOME": "/dev/null/home", "RUNYARD_HOME": str(spare)}) == 0
    assert any_shell.log(0) == f"{spare}\n{spare}/project\n".encode()
    assert any_shell.log(1) == b""
    assert (spare / "b").read_text() == "a\n"


def test_a_home_is_made_where_it_can_be(any_shell: Stage) -> None:
    any_shell.home.rmdir()
    spare = any_shell.folder / "spare"
    assert any_shell.play(run("cd; pwd"), environ={"RUNYARD_HOME": str(spare)}) == 0
    assert any_shell.log(0) == f"{any_shell.home}\n".encode()
    assert not spare.exists()


@pytest.mark.parametrize("name", TEXTS)
def test_text(any_shell: Stage, name: str) -> None:
    command, expected = TEXTS[name]
    assert any_shell.play(run(command)) == 0, any_shell.log(0)
    if expected is not None:
        assert any_shell.log(0) == expected
    assert any_shell.manifest.seal == "complete"


def test_every_character_of_a_step_survives(any_shell: Stage) -> None:
    any_shell.play(run(EVERY_BYTE, shell="cat"))
    assert any_shell.log(0).decode() == EVERY_BYTE


def test_exit_in_the_middle_decides(any_shell: Stage) -> None:
    steps = [run("echo a; exit 3; echo b"), run("echo never"), run("echo undo", when="on_failure")]
    steps += [run("echo always; exit 4", when="always"), run("echo skipped", when="always", skip=True)]
    assert any_shell.play(*steps) == 3
    assert any_shell.receipt.steps == {0: 3, 2: 0, 3: 4}
    assert any_shell.log(0) == b"a\n"
    assert any_shell.log(2) == b"undo\n"
    assert [step.n for step in any_shell.manifest.steps] == [0, 2, 3]


def test_first_failing_command_ends_the_step_by_default(any_shell: Stage) -> None:
    assert any_shell.play(run("false\necho on")) == 1
    assert any_shell.log(0) == b""


def test_shell_is_split_at_spaces(any_shell: Stage) -> None:
    step = run("false\necho $# $0", shell="/bin/sh  -u")
    assert any_shell.play(step) == 0
    assert any_shell.log(0) == f"0 {any_shell.dir}/step.0\n".encode()


def test_shell_that_is_not_there(any_shell: Stage) -> None:
    assert any_shell.play(run("echo", shell="/no/such/shell -e")) in (126, 127)
    assert b"/no/such/shell" in any_shell.log(0)
    assert any_shell.receipt.sealed


def test_syntax_error_is_the_steps_own(any_shell: Stage) -> None:
    code = any_shell.play(run("if ; done '"), run("echo on", when="always"))
    assert code == 2
    assert any_shell.log(1) == b"on\n"


def test_working_dir(any_shell: Stage) -> None:
    steps = [run("pwd", working_dir="~"), run("pwd", working_dir="a b/c"), run("pwd", working_dir="/")]
    steps += [run("pwd", working_dir="-x"), run("rm -rf ../project"), run("pwd")]
    assert any_shell.play(*steps) == 0
    home, cwd = any_shell.home, any_shell.cwd
    expected = [str(home), f"{cwd}/a b/c", "/", f"{cwd}/-x"]
    assert [any_shell.log(n).decode().rstrip("\n") for n in range(4)] == expected
    assert any_shell.log(5) == f"{cwd}\n".encode()


def test_working_dir_that_cannot_be_made(any_shell: Stage) -> None:
    (any_shell.home / "project").write_text("in the way")
    assert any_shell.play(run("echo on")) == 126
    assert b"project" in any_shell.log(0)


def test_environment_is_the_steps_own(any_shell: Stage) -> None:
    value = "a'b\"$x`y`\\\n\t c  "
    steps = [run('printf %s "$A"', environment={"A": value}), run("echo ${A-unset} $B", environment={"B": ""})]
    assert any_shell.play(*steps, environ={"B": "task"}) == 0
    assert any_shell.log(0).decode() == value
    assert any_shell.log(1) == b"unset\n"


def test_secret_is_seen_only_where_it_is_named(any_shell: Stage) -> None:
    steps = [run("env", environment={"TOKEN": FromSecret(from_secret="s")}), run("env; set", working_dir="~")]
    assert any_shell.play(*steps, environ={"RUNYARD_SECRET_0": "value of it"}) == 0
    assert b"TOKEN=value of it\n" in any_shell.log(0)
    assert b"RUNYARD_SECRET" not in any_shell.log(0)
    assert b"value of it" not in any_shell.log(1)
    assert b"RUNYARD_DIR" not in any_shell.log(1)


def test_step_can_be_interrupted(any_shell: Stage) -> None:
    """A background child of a shell is deaf to SIGINT, and so would be all programs of a step."""
    if any_shell.shell[0] == "busybox" and os.system("env --default-signal=INT true 2>/dev/null"):
        pytest.skip("only coreutils can make a child of ash hear SIGINT")
    assert any_shell.play(run("kill -INT $$; sleep 60")) == 130


def test_step_that_kills_its_group_does_not_cancel_the_task(any_shell: Stage) -> None:
    """A common last line of scripts: it is meant for what the script has started."""
    if not shutil.which("setsid"):
        pytest.skip("without setsid a step shares the group of main")
    command = "trap 'trap - TERM; kill 0' EXIT; sleep 60 & exit 4"
    assert any_shell.play(run(command), run("echo on", when="always")) == 143
    assert not any_shell.receipt.term
    assert any_shell.log(1) == b"on\n"


def test_background_child_writes_on_into_its_own_log(any_shell: Stage) -> None:
    first = run("(while [ ! -e ../go ]; do sleep 0.01; done; echo late; : >../gone) & echo early")
    second = run(": >../go; while [ ! -e ../gone ]; do sleep 0.01; done; echo second")
    assert any_shell.play(first, second) == 0
    assert any_shell.log(0) == b"early\nlate\n"
    assert any_shell.log(1) == b"second\n"


def test_background_child_that_never_stops_writing_blocks_nobody(any_shell: Stage) -> None:
    """Not even the end: what is in its FIFO is taken once, not until it is empty."""
    assert any_shell.play(run("yes & echo started"), run("echo second"), log_bytes=1 << 20) == 0
    assert any_shell.log(1) == b"second\n"
    assert any_shell.manifest.seal == "complete"


def test_line_of_ten_megabytes(stage: Stage) -> None:
    assert stage.play(run("head -c 10000000 /dev/zero | tr '\\0' x; echo; printf end")) == 0
    assert stage.log(0) == b"x" * 10_000_000 + b"\nend"
    record = stage.manifest.steps[0]
    assert (record.bytes, record.lines, record.last_line) == (10_000_004, 2, "end")
    assert record.sha256 == hashlib.sha256(stage.log(0)).hexdigest()


def test_cap(stage: Stage) -> None:
    """The step is not stopped, and its log says where it ends and why."""
    code = stage.play(run("head -c 3000000 /dev/zero | tr '\\0' y; echo written >proof"), log_bytes=100_000)
    assert code == 0
    assert (stage.cwd / "proof").read_text() == "written\n"
    marker = b"\n[runyard: the log ends here, at its cap of 100000 bytes]\n"
    assert stage.log(0) == b"y" * 100_000 + marker
    record = stage.manifest.steps[0]
    assert record.truncated == "cap of 100000 bytes"
    assert record.bytes == len(stage.log(0))
    assert stage.manifest.seal == "complete"


def test_log_of_just_the_cap_is_whole(stage: Stage) -> None:
    assert stage.play(run("printf 1234567890"), log_bytes=10) == 0
    assert stage.log(0) == b"1234567890"
    assert stage.manifest.steps[0].truncated == ""


def test_first_line_is_stored_while_the_step_runs(stage: Stage) -> None:
    stage.prepare(run("echo hello; while [ ! -e ../go ]; do sleep 0.01; done"))
    stage.start_agent()
    main = stage.start_main()
    until = time.monotonic() + 20
    while not stage.log(0) and time.monotonic() < until:
        time.sleep(0.01)
    assert stage.log(0) == b"hello\n"
    (stage.home / "go").touch()
    assert main.wait(20) == 0


def test_last_line_is_printable(stage: Stage) -> None:
    command = "printf 'x\\n\\033[31mred\\033[0m\\007 and \\200 %0300d\\n\\n  \\n' 7"
    stage.play(run(command))
    line = stage.manifest.steps[0].last_line
    assert line.startswith("red  and \ufffd 000")
    assert len(line) == 200


def test_outputs(stage: Stage) -> None:
    command = """
    echo A=1 >>"$RUNYARD_OUTPUT"
    printf 'B<<END\\none\\ntwo\\nEND\\n' >>"$RUNYARD_OUTPUT"
    printf 'C=x=y\\r\\nnonsense\\n\\n1D=x\\nE<<F\\nnever ends' >>"$RUNYARD_OUTPUT"
    """
    stage.play(
        run(command),
        run("echo A=2 >>$RUNYARD_OUTPUT; echo S=hunter2hunter2 >>$RUNYARD_OUTPUT"),
        mask=["S"],
        secrets={"S": "hunter2hunter2"},
    )
    manifest = stage.manifest
    assert manifest.outputs == {"A": "1", "B": "one\ntwo", "C": "x=y"}
    assert len(manifest.notes) == 3


def test_outputs_over_their_cap(stage: Stage) -> None:
    stage.play(run("printf 'A=12345\\nB=12345\\nC=1\\n' >>$RUNYARD_OUTPUT"), output_bytes=10)
    assert stage.manifest.outputs == {"A": "12345", "C": "1"}
    assert "B" in stage.manifest.notes[0]


@pytest.mark.parametrize("what", ["ln -sf /etc/hostname", "ln -sf /dev/zero", "mkfifo", "mkdir"])
def test_outputs_that_are_something_else(stage: Stage, what: str) -> None:
    assert stage.play(run(f"rm -f $RUNYARD_OUTPUT; {what} $RUNYARD_OUTPUT")) == 0
    assert stage.manifest.outputs == {}
    assert "cannot be read" in stage.manifest.notes[0]


def test_oldest_python(old_stage: Stage) -> None:
    assert old_stage.play(run("echo hi; echo K=v >$RUNYARD_OUTPUT"), mask=["S"], secrets={"S": "geheim"}) == 0
    assert old_stage.log(0) == b"hi\n"
    assert old_stage.manifest.outputs == {"K": "v"}


NAMES = [
    "R", "T", "G", "pod", "home", "spare", "step", "child", "timer", "timers", "busy", "failed", "stage",
    "woken", "agent", "answer", "rest", "word", "rc", "tree", "grown", "signal", "process", "file", "line",
    "parent", "pause", "nap", "over", "fifo", "id", "hear", "cwd",
]  # fmt: skip


def test_variables_of_the_user_reach_the_steps_whatever_they_are_called(any_shell: Stage) -> None:
    """What is exported stays so: a variable of the script with such a name would have changed it."""
    shown = " ".join(f'"${name}"' for name in NAMES)
    environ = dict.fromkeys(NAMES, "user")
    code = any_shell.play(run(f"echo {shown}"), run(f"echo {shown}", environment={"R": "own"}), environ=environ)
    assert code == 0
    assert any_shell.log(0).split() == [b"user"] * len(NAMES)
    assert any_shell.log(1).split() == [b"own", *[b"user"] * (len(NAMES) - 1)]


def test_a_link_in_the_place_of_a_log_is_not_read(tmp_path: Path) -> None:
    """Behind it there may be what main must not know: the agent's environment has the keys to the store."""
    (tmp_path / "environ").write_text("RUNYARD_ASSIGNMENT={}")
    (tmp_path / "log.1").symlink_to(tmp_path / "environ")
    (tmp_path / "log.2").write_text("no FIFO either")
    for name in ("log.1", "log.2"):
        with pytest.raises(OSError, match=r"symbolic links|no FIFO"):
            open_fifo(str(tmp_path / name))
