"""`runyard run start --local`, as its users type it."""

import json
import re

import pytest
from shell_process import Shell
from snapshot.snapshot_scene import commit, git, init
from test_cli_dev import Dev

FILE = """
runs:
  - name: direct
    tasks:
      - name: look
        runtime: {containers: [{image: alpine}]}
        steps: [clone, {run: 'cat file; ls; echo "$WHO on $RUNYARD_GIT_BRANCH$RUNYARD_GIT_TAG"'}]
      - name: other
        runtime: {containers: [{image: alpine}]}
        steps: [{run: 'echo other'}]
"""


def test_from_a_dirty_checkout_to_its_log(shell: Shell) -> None:
    dev = Dev(shell)
    process = dev.start()
    init(shell.folder, **{".runyard/config.yml": FILE, ".gitignore": "*.o\n", "file": "1\n"})
    shell.write("file", "changed\n")
    shell.write("x.o", "ignored")
    shell.write("who.env", "WHO=ann\n")
    done = shell.run("run", "start", "--local", "--task", "look", "--env-file", "who.env")
    assert re.search(r"^Checkout  4 files, 2 changed; \S+ kB sent$", done.stderr, re.MULTILINE), done.stderr
    run_id = done.stdout.strip()
    assert "✔ direct · 1 task" in shell.run("run", "watch", run_id).stdout
    assert shell.run("run", "logs", run_id, "look", "--step", "1").stdout.splitlines() == [
        "changed",
        "file",
        "who.env",
        "ann on main",
    ]
    words = ("--local", str(shell.folder), "--ignored", "--tag", "v9", "--watch", "--id", "again")
    watched = shell.run("run", "start", *words)
    assert "Checkout  5 files, 3 changed" in watched.stderr
    assert "✔ direct · 2 tasks" in watched.stdout
    lines = shell.run("run", "logs", "again", "look", "--step", "1").stdout.splitlines()
    assert lines == ["changed", "file", "who.env", "x.o", " on v9"]
    as_json = shell.run("run", "start", ".runyard/config.yml", "--local", "-o", "json")
    assert json.loads(as_json.stdout)["id"].startswith("direct-")
    assert as_json.stderr == ""
    dev.stop(process)


@pytest.mark.parametrize("output", ["text", "json"])
def test_what_is_wrong_is_said_before_a_server_is_asked(shell: Shell, output: str) -> None:
    shell.write("ci.yml", FILE)
    for words, said in [
        (("ci.yml", "--local"), "is not in a git checkout"),
        (("--local", "ci.yml"), "--local takes a folder"),
        (("ci.yml", "--local", ".", "--source", "."), "give it or --source"),
        (("ci.yml", "--ignored"), "--ignored says what --local takes"),
    ]:
        assert said in shell.run("run", "start", *words, "-o", output, code=2).stderr
    assert "there is no folder" in shell.run("run", "start", "ci.yml", "--local", "none", code=4).stderr
    git(shell.folder, "init", "--quiet", "--bare", "bare.git")
    assert "without a work tree" in shell.run("run", "start", "ci.yml", "--local", "bare.git", code=2).stderr


def test_a_checkout_elsewhere_brings_its_run_file(shell: Shell) -> None:
    """The run file is that of the checkout, not of the folder that the command was typed in."""
    elsewhere = init(shell.folder.parent / "elsewhere")
    commit(elsewhere, file="1")
    done = shell.run("run", "start", "--local", str(elsewhere), code=4)
    assert "there is no .runyard/config.yml in" in done.stderr
    commit(elsewhere, **{".runyard/config.yml": FILE})
    assert "no Temporal server" in shell.run("run", "start", "--local", str(elsewhere), code=5).stderr
