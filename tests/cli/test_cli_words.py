"""Commands that need no server, and how every command says that something is wrong."""

import json
import re
from pathlib import Path

import pytest
from shell_process import Shell

from runyard import cli
from runyard.cli.exits import Exit, exit_of
from runyard.errors import InvalidRunFile, Problem, tree

VALID = """
runs:
  - name: r
    tasks:
      - name: t
        runtime: {containers: [{image: a}]}
        steps: [{run: 'true'}]
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of this machine, no server, a folder of its own."""
    for name, value in {
        "RUNYARD_STATE": str(tmp_path / "state"),
        "RUNYARD_SETTINGS": str(tmp_path / "none.toml"),
        "TEMPORAL_ADDRESS": "127.0.0.1:1",
        "TEMPORAL_CONFIG_FILE": str(tmp_path / "none.toml"),
        "RUNYARD_DEBUG": "",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


CODES = {
    "error": 70, "invalid_run_file": 3, "invalid_request": 2,
    "git_failed": 2, "not_found": 4, "conflict": 2, "forbidden": 2,
    "invalid_export": 2, "newer_export": 2, "damaged_export": 2,
    "store_error": 5, "store_unavailable": 5, "store_full": 5, "store_denied": 5, "corrupt": 5,
    "executor_error": 5, "config_error": 5, "start_error": 5, "quota_exceeded": 5, "unschedulable": 5,
    "image_pull": 5, "quota": 5, "not_admitted": 5, "cluster_unavailable": 5,
    "output_missing": 4, "fenced": 5, "server_unavailable": 5, "remote_error": 70,
}  # fmt: skip


def test_every_error_has_its_exit_code() -> None:
    made = [each([Problem(message="m")]) if each is InvalidRunFile else each() for each in tree()]
    assert {error.code: int(exit_of(error)) for error in made} == CODES


def test_documented_exit_codes() -> None:
    text = (Path(cli.__file__).parents[2] / "docs/reference/cli.md").read_text()
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert documented == {int(code) for code in Exit}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["version"], 0, "runyard "),
        (["--help"], 0, "Exit codes: 0 success"),
        ([], 2, "Commands"),
        (["rnu", "list"], 2, "did you mean 'run'?"),
        (["run", "list", "--limit", "0"], 2, "--limit"),
        (["run", "show", "r-1", "--nonsense"], 2, "No such option"),
        (["run", "show", "a/b"], 2, "a run's id"),
        (["run", "show", "r-1"], 5, "no Temporal server answers at 127.0.0.1:1"),
        (["run", "approve", "r-1", "t"], 5, "runyard dev"),
        (["run", "start", "nowhere.yml"], 4, "there is no run file nowhere.yml"),
        (["run", "start"], 4, "there is no .runyard/config.yml in "),
        (["run", "start", "ok.yml", "--env", "novalue"], 2, "NAME=VALUE"),
        (["run", "start", "ok.yml", "--env", "2A=x"], 2, "2A"),
        (["run", "start", "ok.yml", "--run", "q"], 2, "no run"),
        (["run", "start", "ok.yml"], 5, "127.0.0.1:1"),
        (["run", "start", "bad.yml"], 3, "bad.yml:"),
        (["exec", "ok.yml", "--env", "2A=x"], 2, "2A"),
        (["exec", "ok.yml", "--run", "q"], 2, "no run"),
        (["exec", "ok.yml", "--task", "tt"], 2, "tt"),
        (["exec", "ok.yml", "--source", "nowhere"], 4, "no folder nowhere"),
        (["exec", "ok.yml", "--env-file", "nowhere"], 2, "nowhere"),
        (["exec", "ok.yml", "--executor", "cloud"], 5, "cloud"),
        (["lint", "nowhere.yml"], 4, "there is no run file"),
        (["lint", "."], 2, "cannot be read"),
        (["lint", "ok.yml"], 0, "ok.yml: valid"),
        (["lint", "bad.yml"], 3, "bad.yml:"),
        (["lint", "binary.yml"], 3, "UTF-8"),
        (["lint", "empty.yml"], 3, "empty"),
        (["run", "start", "ok.yml", "--group", "main"], 2, "does not begin with a slash"),
        (["run", "start", "ok.yml", "--group", "/project/web", "--group-policy", "all"], 2, "no policy"),
        (["group", "show", "main"], 5, "127.0.0.1:1"),
        (["group", "list"], 5, "127.0.0.1:1"),
        (["cache", "list"], 0, "no caches"),
        (["cache", "stat", "g"], 4, "no cache group"),
        (["cache", "stat", "g", "k"], 4, "no entry"),
        (["cache", "stat", "g", "../k"], 4, "no entry"),
        (["cache", "rm", "g"], 2, "--all"),
        (["cache", "rm", "g", "k"], 4, "k"),
        (["cache", "rm", "g", "--all"], 4, "no cache group"),
        (["completion", "bash"], 0, "_RUNYARD_COMPLETE"),
        (["completion", "zsh"], 0, "_RUNYARD_COMPLETE"),
        (["completion", "fish"], 0, "_RUNYARD_COMPLETE"),
        (["schema"], 0, "$schema"),
        (["dev", "--port", "99999"], 2, "--port"),
        (["worker", "--executor", "cloud", "--address", "127.0.0.1:1"], 5, "127.0.0.1:1"),
        (["run", "list", "--state", "/dev/null/x"], 5, ""),
    ],
)
def test_words_codes_and_sentences(
    words: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ok.yml").write_text(VALID)
    (tmp_path / "bad.yml").write_text(VALID.replace("steps", "stepz"))
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.yml").write_text("")
    assert cli.call(words) == code, capsys.readouterr()
    out, err = capsys.readouterr()
    assert said in (err if code and words[:1] != ["lint"] else out + err)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["run", "show", "r-1", "-o", "json"], "server_unavailable"),
        (["run", "show", "a/b", "-ojson"], "invalid_request"),
        (["run", "start", "nowhere.yml", "--output=json"], "not_found"),
        (["run", "show", "--output", "json"], "usage"),
        (["exec", "bad.yml", "-o", "json"], "invalid_run_file"),
    ],
)
def test_errors_are_json_for_programs(
    words: list[str], code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yml").write_text(VALID.replace("steps", "stepz"))
    status = cli.call(words)
    out, err = capsys.readouterr()
    found = json.loads(err)
    assert (found["code"], found["exit"], out) == (code, status, "")


def test_lint_lists_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yml").write_text(VALID.replace("steps", "stepz").replace("image", "imag"))
    assert cli.call(["lint", "bad.yml"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2
    assert all(re.match(r"bad\.yml:\d+:\d+: ", line) for line in lines)
    assert cli.call(["lint", "bad.yml", "-o", "json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["valid"], len(found["problems"])) == (False, len(lines))


def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RUNYARD_LOCAL_SLOTS", "none")
    assert cli.call(["run", "list"]) == 2
    assert "RUNYARD_LOCAL_SLOTS" in capsys.readouterr().err


def test_a_broken_settings_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none.toml").write_text("executor = ")
    assert cli.call(["run", "list"]) == 2
    assert "settings file" in capsys.readouterr().err


def test_a_bug_shows_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(**_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("runyard.cli.options.load_settings", broken)
    assert cli.call(["doctor"]) == 70
    assert "ZeroDivisionError: oh" in capsys.readouterr().err


def test_a_stranger_named_workflows_is_found(shell: Shell) -> None:
    shell.write("workflows/__init__.py", "raise RuntimeError('not for you')\n")
    shell.write("ok.yml", VALID)
    done = shell.run("exec", "ok.yml", code=2)
    assert "another package `workflows` hides Runyard's" in done.stderr
    assert "pipx" in done.stderr
    assert shell.run("lint", "ok.yml").stdout == "ok.yml: valid\n"


def test_lint_does_not_pay_for_temporal(shell: Shell) -> None:
    shell.write("ok.yml", VALID)
    done = shell.run("lint", "ok.yml", PYTHONPROFILEIMPORTTIME="1")
    assert "runyard.spec" in done.stderr
    assert "temporalio" not in done.stderr
    assert "rich" not in done.stderr


def test_completion_completes(shell: Shell) -> None:
    variables = {"_RUNYARD_COMPLETE": "bash_complete", "COMP_WORDS": "runyard run ca", "COMP_CWORD": "2"}
    assert shell.run(code=None, **variables).stdout == "plain,cancel\n"
