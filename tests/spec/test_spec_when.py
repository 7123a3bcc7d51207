"""The rules of `when`, as a table; and regular expressions that would never end."""

import re
import time
from typing import Any

import pytest
from pydantic import ValidationError

from runyard.errors import InvalidRunFile
from runyard.spec import compile_run, lint
from runyard.spec.plan import Source
from runyard.spec.run import RunRequest
from runyard.spec.when import Commit, Matcher, StepCondition, When, expression

MAIN = Commit(ref_type="branch", branch="main", ref="refs/heads/main")
FIX = Commit(ref_type="branch", branch="fix/12", ref="refs/heads/fix/12")
TAG = Commit(ref_type="tag", tag="v1.2.3", ref="refs/tags/v1.2.3")
PULL = Commit(ref_type="pull_request", pull_request_id="7", ref="refs/pull/7/head")
NOTHING = Commit()

TABLE: list[tuple[dict[str, Any], Commit, bool]] = [
    # a word is compared as a whole, an expression may match anywhere
    ({"branch": "main"}, MAIN, True),
    ({"branch": "mai"}, MAIN, False),
    ({"branch": "/mai/"}, MAIN, True),
    ({"branch": "/^ai/"}, MAIN, False),
    ({"branch": "#^fix/#"}, FIX, True),
    ({"branch": "/^fix/[0-9]+$/"}, FIX, True),
    ({"branch": "//"}, MAIN, True),
    ({"branch": "/"}, MAIN, False),
    # lists: any of them
    ({"branch": ["dev", "main"]}, MAIN, True),
    ({"branch": ["dev", "/^release/"]}, MAIN, False),
    ({"branch": []}, MAIN, False),
    # exclude outranks include, and alone lets nothing through
    ({"branch": {"include": "/.*/", "exclude": "main"}}, MAIN, False),
    ({"branch": {"include": "/.*/", "exclude": "main"}}, FIX, True),
    ({"branch": {"include": ["main"], "exclude": ["/ma/"]}}, MAIN, False),
    ({"branch": {"exclude": "dev"}}, MAIN, False),
    # branch rules only on a branch, tag rules only on a tag, ref rules always
    ({"branch": "/.*/"}, TAG, False),
    ({"branch": "/.*/"}, PULL, False),
    ({"tag": "/^v/"}, TAG, True),
    ({"tag": "/^v/"}, MAIN, False),
    ({"ref": "#^refs/pull/#"}, PULL, True),
    ({"ref": "refs/heads/main"}, MAIN, True),
    ({"ref": "/.*/"}, NOTHING, True),
    ({"branch": "/.*/", "tag": "/.*/"}, NOTHING, False),
    # a later kind outranks an earlier one
    ({"branch": "main", "ref": {"exclude": "refs/heads/main"}}, MAIN, False),
    ({"branch": {"exclude": "main"}, "ref": "refs/heads/main"}, MAIN, True),
    ({"branch": "main", "ref": "refs/heads/other"}, MAIN, True),
    ({"branch": "main", "tag": "v1.2.3"}, TAG, True),
    ({"branch": "main", "tag": {"exclude": "/.*/"}}, MAIN, True),
    # a mapping without rules matches nothing
    ({}, MAIN, False),
]


@pytest.mark.parametrize(("rules", "commit", "expected"), TABLE)
def test_rules(rules: dict[str, Any], commit: Commit, expected: bool) -> None:
    when = When.model_validate(rules)
    matcher = Matcher(commit)
    matcher.learn([when])
    assert matcher.matches(when) is expected


def test_without_when_everything_takes_part() -> None:
    assert Matcher(NOTHING).matches(None)


def test_a_step_condition_without_rules_is_not_a_rule() -> None:
    assert not StepCondition.model_validate({"status": "always"}).has_rules
    assert StepCondition.model_validate({"status": "always", "branch": "main"}).has_rules


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"source": Source(branch="main")}, ("branch", "refs/heads/main", "main", "")),
        ({"source": Source(ref="refs/heads/a/b")}, ("branch", "refs/heads/a/b", "a/b", "")),
        ({"source": Source(ref="refs/tags/v1")}, ("tag", "refs/tags/v1", "", "v1")),
        ({"source": Source(tag="v1")}, ("tag", "refs/tags/v1", "", "v1")),
        (
            {"source": Source(branch="main"), "annotations": {"ref_type": "tag"}},
            ("tag", "refs/heads/main", "main", ""),
        ),
        (
            {"source": Source(ref="refs/pull/7/head", branch="fix"), "annotations": {"pull_request_id": "7"}},
            ("pull_request", "refs/pull/7/head", "fix", ""),
        ),
    ],
)
def test_the_commit_of_a_request(request_: dict[str, Any], expected: tuple[str, str, str, str]) -> None:
    commit = Commit.of(RunRequest(file="", **request_))
    assert (commit.ref_type, commit.ref, commit.branch, commit.tag) == expected


def _file(when: str) -> str:
    return f"""\
runs:
  - name: r
    tasks:
      - name: a
        runtime: {{containers: [{{image: x}}]}}
      - name: b
        runtime: {{containers: [{{image: x}}]}}
        when: {{branch: '{when}'}}
"""


@pytest.mark.parametrize("regex", ["/^(a+)+$/", "/^(a|a)*$/", "/^(([a-z])+.)+[A-Z]([a-z])+$/"])
def test_an_expression_that_explodes_is_refused_in_time_and_named(regex: str) -> None:
    request = RunRequest(file=_file(regex), source=Source(branch="a" * 60 + "!"))
    began = time.monotonic()
    with pytest.raises(InvalidRunFile) as caught:
        compile_run(request, run_id="r", execution_id="e")
    assert time.monotonic() - began < 30
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (8, 15)
    assert "takes too long" in problem.message
    assert regex.strip("/")[:20] in problem.message


def test_an_expression_with_a_repeated_group_is_answered() -> None:
    request = RunRequest(file=_file(r"/^v(\d+\.)+\d+$/"), source=Source(branch="v1.22.333"))
    assert [task.skip for task in compile_run(request, run_id="r", execution_id="e").tasks] == [False, False]


def test_a_run_that_does_not_match_skips_all_its_tasks() -> None:
    file = _file("main").replace("  - name: r\n", "  - name: r\n    when: {branch: dev}\n")
    tasks = compile_run(RunRequest(file=file, source=Source(branch="main")), run_id="r", execution_id="e").tasks
    assert [task.skip for task in tasks] == [True, True]


@pytest.mark.parametrize("regex", ["/(/", "/[/", "/*a/", "/a{99999999999}/", "/" + "(" * 400 + "/"])
def test_an_expression_that_does_not_compile(regex: str) -> None:
    (problem,) = lint(_file(regex), name="f")
    assert problem.message.startswith("this regular expression does not compile")
    assert problem.line == 8


def test_a_nested_set_compiles_without_a_warning() -> None:
    assert lint(_file("/[[a]/"), name="f") == []


DIGITS = Commit(ref_type="branch", branch="hotfix-12", ref="refs/heads/hotfix-12")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/^hotfix-[[:digit:]]+$/", True),
        ("/^[[:lower:]-]+[[:digit:]_]{2}$/", True),
        ("/[^[:alnum:]]/", True),
        ("/^[^[:digit:]]+$/", False),
        (r"/^\[[:alpha:]/", False),  # an escaped bracket opens no set
        ("/^[[:upper:]]/", False),
    ],
)
def test_classes_that_go_knows(pattern: str, expected: bool) -> None:
    """Python reads them as something else, so that an `exclude` with one excluded nothing."""
    matcher, when = Matcher(DIGITS), When.model_validate({"branch": pattern})
    matcher.learn([when])
    assert matcher.matches(when) == expected


def test_every_class_is_gos() -> None:
    """By what regexp/syntax says of them, for all of ASCII."""
    space, shown = "\t\n\v\f\r ", [chr(c) for c in range(33, 127)]
    of_each = {
        "alnum": str.isalnum, "alpha": str.isalpha, "digit": str.isdigit, "lower": str.islower,
        "upper": str.isupper, "space": space.__contains__, "ascii": lambda _: True,
        "punct": lambda c: c in shown and not c.isalnum(), "graph": shown.__contains__,
        "print": lambda c: c in [" ", *shown], "blank": " \t".__contains__,
        "word": lambda c: c.isalnum() or c == "_", "xdigit": "0123456789abcdefABCDEF".__contains__,
        "cntrl": lambda c: c not in [" ", *shown],
    }  # fmt: skip
    for name, holds in of_each.items():
        regex = expression(f"/[[:{name}:]]/")
        assert regex is not None
        for c in map(chr, range(128)):
            assert (re.fullmatch(regex, c) is not None) == bool(holds(c)), (name, c)


def test_a_class_that_nobody_knows() -> None:
    with pytest.raises(ValidationError, match=r"there is no class \[:digits:\]"):
        When.model_validate({"branch": "/[[:digits:]]/"})
