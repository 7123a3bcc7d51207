"""Whatever is put in, what comes out is a plan, InvalidRunFile or InvalidRequest."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runyard.errors import InvalidRequest, InvalidRunFile
from runyard.spec import compile_run, lint
from runyard.spec.plan import Plan
from runyard.spec.run import RunRequest

WORDS_OF_THE_FORMAT = """
runs name tasks when branch tag ref include exclude matrix runtime containers image environment steps run clone
command depends task conditions retry on backoff limit timeouts timeout approval resources cpu volumes tmpfs
from_secret from_output type save_cache key keys contents paths dest_dir docker_registries_auth x-a << pod
on_failure outputs ready port shell group python
"""
KEYS = st.sampled_from(WORDS_OF_THE_FORMAT.split())
WORDS = st.one_of(
    KEYS,
    st.sampled_from(
        ["main", "/a+/", "1h", "-5s", "512Mi", "pod", "basic", "always", "{{ matrix.python }}", "a.B", ""]
    ),
    st.text(max_size=20),
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), WORDS)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(KEYS, WORDS), inner, max_size=5)
    ),
    max_leaves=25,
)
RUNTIME = {"containers": [{"image": "x"}]}
SLOW = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def outcome(file: Any, name: str = "f.yml") -> Plan | InvalidRunFile | InvalidRequest:
    try:
        return compile_run(RunRequest(file=file, file_name=name), run_id="r", execution_id="e")
    except (InvalidRunFile, InvalidRequest) as error:
        return error


def judge(file: Any, name: str = "f.yml") -> None:
    found = outcome(file, name)
    if isinstance(found, Plan):
        assert Plan.model_validate_json(found.model_dump_json()) == found
    elif isinstance(found, InvalidRunFile):
        assert 1 <= len(found.problems) <= 51
        assert all("\n" not in str(problem) and problem.message for problem in found.problems)
        assert [str(each) for each in lint(file, name=name)] == [str(each) for each in found.problems]
    else:
        assert str(found)


@SLOW
@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    for name in ("f.yml", "f.json"):
        judge(text, name)


@SLOW
@given(st.text(alphabet="ab:-[]{}&*!|>'\"%@`#,?<~ \n\t1.", max_size=120))
def test_any_text_that_looks_like_yaml(text: str) -> None:
    judge(text)


@SLOW
@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_any_object_in_every_form(value: dict[str, Any]) -> None:
    judge(value)
    judge(json.dumps(value), "f.json")
    judge(json.dumps(value), "f.yml")


@SLOW
@given(st.dictionaries(KEYS, JSON, max_size=6), st.dictionaries(KEYS, JSON, max_size=3))
def test_a_task_with_anything_beside_what_it_needs(task: dict[str, Any], run: dict[str, Any]) -> None:
    judge(
        {
            "runs": [
                {
                    "name": "r",
                    "tasks": [{"name": "a", "runtime": RUNTIME}, {"name": "b", "runtime": RUNTIME} | task],
                }
                | run
            ]
        }
    )


@SLOW
@given(st.text(min_size=1, max_size=110))
def test_a_name_is_kept_to_the_letter_or_refused(name: str) -> None:
    file = {"runs": [{"name": "r", "tasks": [{"name": name, "runtime": RUNTIME}]}]}
    found = outcome(file)
    if isinstance(found, Plan):
        assert [task.name for task in found.tasks] == [name]
        assert len(name) <= 100
        assert len(name.splitlines()) == 1
    else:
        assert len(name) > 100 or name != name.strip() or not name.isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "a/b",
        "it's",
        'say "x"',
        "😀",
        "👩‍💻 build",
        "é" * 100,
        "x" * 100,
        "$(x)",
        "`x`",
        "a\\b",
        "..",
        "{{ x }}",
        "-",
    ],
)
def test_names_that_must_work(name: str) -> None:
    file = {"runs": [{"name": "r", "tasks": [{"name": name, "runtime": RUNTIME}]}]}
    (task,) = compile_run(RunRequest(file=file), run_id="r", execution_id="e").tasks
    assert task.name == name


@pytest.mark.parametrize(
    "name", ["", " ", "a\nb", "a\tb", "a\x7f", "a\u2028b", " a", "a ", "x" * 101, "a\u202eb", None, [], {}]
)
def test_names_that_cannot_be(name: Any) -> None:
    file = {"runs": [{"name": "r", "tasks": [{"name": name, "runtime": RUNTIME}]}]}
    assert len(lint(file, name="f")) == 1


@given(st.lists(st.lists(st.integers(0, 7), unique=True, max_size=4), min_size=1, max_size=8))
def test_parents_come_first_or_a_cycle_is_named(graph: list[list[int]]) -> None:
    tasks = [
        {
            "name": f"t{n}",
            "runtime": RUNTIME,
            "depends": [f"t{parent}" for parent in parents if parent < len(graph)],
        }
        for n, parents in enumerate(graph)
    ]
    plan = outcome({"runs": [{"name": "r", "tasks": tasks}]})
    if isinstance(plan, Plan):
        levels: dict[str, int] = {}
        for task in plan.tasks:
            assert levels.keys() >= task.depends.keys()
            assert task.level == max((levels[parent] + 1 for parent in task.depends), default=0)
            levels[task.name] = task.level
        return
    assert isinstance(plan, InvalidRunFile)
    chain = plan.problems[0].message.partition(": ")[2].split(" → ")
    assert chain[0] == chain[-1]
    depends = {task["name"]: task["depends"] for task in tasks}
    assert all(parent in depends[child] for child, parent in pairwise(chain))
