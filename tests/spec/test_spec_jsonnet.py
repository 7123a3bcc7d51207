"""Jsonnet: what comes out is a run file like any other; what it may not do it cannot."""

import importlib.util
import time

import pytest

from runyard.errors import InvalidRunFile
from runyard.spec import compile_run, lint, run_names
from runyard.spec.plan import Source
from runyard.spec.run import RunRequest

TASK = "{name: 'on ' + ctx.branch, runtime: {containers: [{image: 'x'}]}, environment: {N: 3}}"


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (problem,) = lint("{}", name="f.jsonnet")
    assert problem.message == "Jsonnet needs a library that is not installed"
    assert problem.hint == "run `pip install 'runyard[jsonnet]'`"


@pytest.fixture
def library() -> None:
    pytest.importorskip("_jsonnet", reason="the optional library jsonnet is not installed")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "program",
    [
        f"function(ctx) {{runs: [{{name: 'r', tasks: [{TASK}]}}]}}",
        f"local ctx = std.extVar('ctx'); {{runs: [{{name: 'r', tasks: [{TASK}]}}]}}",
        f"local ctx = std.extVar('ctx'); function() {{runs: [{{name: 'r', tasks: [{TASK}]}}]}}",
    ],
)
def test_the_facts_of_the_commit_are_told(program: str) -> None:
    request = RunRequest(file=program, file_name="f.jsonnet", source=Source(branch="main"))
    (task,) = compile_run(request, run_id="r", execution_id="e").tasks
    assert task.name == "on main"
    assert task.environment == {"N": "3"}
    assert run_names(program, name="f.jsonnet") == ["r"]


@pytest.mark.usefixtures("library")
def test_problems_are_named_by_path() -> None:
    (problem,) = lint(
        "{runs: [{name: 'r', tasks: [{name: 't', runtime: {containers: [{imag: 'x'}]}}]}]}", name="f.jsonnet"
    )[:1]
    assert str(problem).startswith(" $.runs[0].tasks[0].runtime.containers[0]")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import 'x.libsonnet'", "f.jsonnet:1:1: Jsonnet: couldn't open import"),
        ("{a: importstr '/etc/passwd'}", "f.jsonnet:1:5: Jsonnet: couldn't open import"),
        ("{", "f.jsonnet:1:2: Jsonnet: unexpected: end of file"),
        ("error 'no'", "f.jsonnet:1:1: Jsonnet: no"),
        ("local f(x) = f(x + 1) + 1; {a: f(1)}", "max stack frames exceeded"),
        ("{a: std.repeat('x', 2000000)}", "it evaluates to more than 1 MiB"),
        ("{a: std.repeat('xxxxxxxxxx', 1e9)}", "needs more than"),
        ("'text'", "a run file is a mapping with the key `runs`"),
    ],
)
def test_a_program_that_fails(program: str, expected: str) -> None:
    with pytest.raises(InvalidRunFile) as caught:
        compile_run(RunRequest(file=program, file_name="f.jsonnet"), run_id="r", execution_id="e")
    assert expected in str(caught.value)


@pytest.mark.usefixtures("library")
def test_a_program_without_an_end_is_ended() -> None:
    program = "local f(x) = if x < 2 then 1 else f(x - 1) + f(x - 2); {a: f(60)}"
    began = time.monotonic()
    (problem,) = lint(program, name="f.jsonnet")
    assert "needs more than 5 s" in problem.message
    assert time.monotonic() - began < 60
