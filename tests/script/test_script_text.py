"""What the compiler writes, whatever the task says: right for every shell and clean for shellcheck."""

import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from runyard.errors import InvalidRequest
from runyard.script import compile_script, step_secrets
from runyard.spec.plan import (
    CloneStep,
    FromOutput,
    FromSecret,
    RestoreCacheStep,
    RestoreWorkspaceStep,
    RunStep,
    SaveCacheStep,
    SaveToWorkspaceStep,
    Step,
    TaskPlan,
    Timeouts,
)

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)
LINE = TEXT.map(lambda text: text.replace("\n", ""))
SHELLISH = st.text("'\"\\`$(){}[];|&<>#!~*?\n\r\t =EOF-ab“’\u2028", max_size=40)
SHELLS = [words for words in (["dash"], ["busybox", "ash"], ["bash", "--posix"]) if shutil.which(words[0])]


def plan(*steps: Step, **more: object) -> TaskPlan:
    return TaskPlan.model_validate({"id": "i", "name": "n", "containers": [], "steps": steps, **more})


def run(command: str = "x", **more: object) -> RunStep:
    return RunStep.model_validate({"command": command, **more})


EVERYTHING = plan(
    CloneStep(),
    run(
        "echo 'a'\n\\",
        name="with a name\nand 'quotes'",
        environment={"A": "b'c", "S": FromSecret(from_secret="s")},
    ),
    run(when="on_failure", timeout_s=1.5, shell="/bin/bash -euo pipefail", working_dir="~/a b"),
    run(when="always", skip=True),
    SaveToWorkspaceStep(),
    RestoreWorkspaceStep(when="always"),
    SaveCacheStep(key='{{ env "A" }}-{{env `B`}}'),
    RestoreCacheStep(keys=['{{ env "A" }}', "x"]),
    working_dir="relative/path",
    timeouts=Timeouts(step_s=7),
)


def shellcheck(script: str) -> str:
    done = subprocess.run(
        ["shellcheck", "-s", "sh", "-"], input=script, capture_output=True, text=True, check=False
    )
    return done.stdout


needs_shellcheck = pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")


@needs_shellcheck
@pytest.mark.parametrize("task", [EVERYTHING, plan(), plan(run()), plan(CloneStep())])
def test_shellcheck_has_nothing_to_say(task: TaskPlan) -> None:
    assert shellcheck(compile_script(task)) == ""


@needs_shellcheck
@given(command=SHELLISH, value=SHELLISH, folder=LINE, name=SHELLISH)
@settings(
    max_examples=8,  # shellcheck takes a second for each
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_shellcheck_has_nothing_to_say_to_any_text(command: str, value: str, folder: str, name: str) -> None:
    step = run(command, environment={"A": value}, working_dir=folder, name=name)
    assert shellcheck(compile_script(plan(step, working_dir=folder))) == ""


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_every_shell_can_read_it(shell: list[str]) -> None:
    script = compile_script(EVERYTHING)
    done = subprocess.run([*shell, "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@given(command=st.one_of(TEXT, SHELLISH), value=st.one_of(TEXT, SHELLISH), folder=LINE)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_text_breaks_out(shell: list[str], command: str, value: str, folder: str) -> None:
    """The texts as the shell gets them, from the script's own lines, between two words of the test."""
    script = compile_script(plan(run(command, environment={"A": value}, working_dir=folder)))
    written = script[script.index("  printf '%s' '") : script.index(' >"$ry_dir/step.0"')].removeprefix(
        "  printf '%s' "
    )
    export = script[script.index("    export A=") : script.index("    become ")]
    probe = f"printf '<%s>' {written}\n{export}printf '<%s>' \"$A\"\n"
    done = subprocess.run(shell, input=probe.encode(), capture_output=True, check=False)
    assert done.stdout.decode() == f"<{command}><{value}>"
    assert done.stderr == b""


def test_same_task_makes_the_same_script() -> None:
    assert compile_script(EVERYTHING) == compile_script(EVERYTHING.model_copy(deep=True))


def test_skipped_steps_are_left_out() -> None:
    assert "step 3" not in compile_script(EVERYTHING)


def test_secrets_are_numbered_by_their_names() -> None:
    def secret(name: str) -> FromSecret:
        return FromSecret(from_secret=name)

    task = plan(
        run(environment={"A": secret("two"), "B": secret("one")}),
        run(environment={"C": secret("two"), "D": "plain"}),
        run(environment={"E": secret("skipped")}, skip=True),
        environment={"T": secret("of the task")},
    )
    assert step_secrets(task) == {"RUNYARD_SECRET_0": "two", "RUNYARD_SECRET_1": "one"}
    script = compile_script(task)
    assert 'export C="$runyard_secret_0"' in script
    assert "two" not in script


def test_a_command_of_a_megabyte() -> None:
    script = compile_script(plan(run("echo '" + "x" * (1 << 20) + "' | wc -c")))
    assert len(script) > 1 << 20


WRONG: list[tuple[TaskPlan, str]] = [
    (plan(run("a\0b")), "NUL"),
    (plan(run(environment={"A": "\0"})), "NUL"),
    (plan(run(environment={"a-b": "c"})), "a-b"),
    (plan(run(environment={"A;rm": "c"})), "A;rm"),
    (plan(run(environment={"A\n": "c"})), "letters"),
    (plan(run(environment={"Ä": "c"})), "Ä"),
    (plan(run(environment={"A": FromOutput(from_output="t.k")})), "t.k"),
    (plan(run(working_dir="a\nb")), "line breaks"),
    (plan(working_dir="a\nb"), "line breaks"),
    (plan(run(shell=" ", command="x"), shell=" "), "empty shell"),
]


@pytest.mark.parametrize(("task", "said"), WRONG)
def test_what_no_script_can_say(task: TaskPlan, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        compile_script(task)
