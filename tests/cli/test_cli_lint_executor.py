"""`runyard lint --executor`: what the executor of a file's tasks refuses, before anything is started."""

import json

import pytest
from shell_process import Shell

FILE = """
runs:
  - name: nightly
    tasks:
      - name: train
        runtime: {containers: [{image: a}]}
        pod: {node_selector: {gpu: "yes"}}
        steps: [{run: "true"}]
      - name: plain
        runtime: {containers: [{image: a}]}
        steps: [{run: "true"}]
"""
WORDS = ("lint", "run.yml", "--executor", "kubernetes")
IMAGE = {"RUNYARD_KUBERNETES_AGENT_IMAGE": "agent:1"}


@pytest.fixture(autouse=True)
def file(shell: Shell) -> None:
    shell.write("run.yml", FILE)


def test_what_the_settings_do_not_allow(shell: Shell) -> None:
    said = shell.run(*WORDS, code=3, **IMAGE).stdout
    assert "nightly.train" in said
    assert "RUNYARD_KUBERNETES_ALLOW would have to name 'node_selector'" in said
    assert "plain" not in said
    found = json.loads(shell.run(*WORDS, "-o", "json", code=3, **IMAGE).stdout)
    assert [problem["path"] for problem in found["problems"]] == ["nightly.train"]


def test_what_they_allow(shell: Shell) -> None:
    allowed = {"RUNYARD_KUBERNETES_ALLOW": '["node_selector"]'}
    assert shell.run(*WORDS, **IMAGE, **allowed).stdout == "run.yml: valid\n"


def test_without_an_executor_only_the_file_counts(shell: Shell) -> None:
    assert shell.run("lint", "run.yml").stdout == "run.yml: valid\n"


def test_the_agents_image_has_to_be_known(shell: Shell) -> None:
    done = shell.run(*WORDS, code=5)
    assert "needs the image of the agent" in done.stdout + done.stderr
