"""One task written, many meant."""

import textwrap
import time

import pytest

from runyard.errors import InvalidRunFile
from runyard.spec import compile_run, lint
from runyard.spec.plan import Plan, RestoreCacheStep, RunStep
from runyard.spec.run import RunRequest


def file(tasks: str) -> str:
    return "runs:\n  - name: r\n    tasks:\n" + textwrap.indent(textwrap.dedent(tasks), "      ")


def plan(tasks: str, /, **request: object) -> Plan:
    asked = RunRequest.model_validate({"file": file(tasks), **request})
    return compile_run(asked, run_id="r", execution_id="e")


def names(tasks: str) -> list[str]:
    return [task.name for task in plan(tasks).tasks]


def problems(tasks: str) -> list[str]:
    return [str(problem) for problem in lint(file(tasks), name="f")]


RUNTIME = "runtime: {containers: [{image: x}]}"


def test_the_product_in_the_order_of_the_file() -> None:
    assert names(f"- {{name: test, matrix: {{python: [3.9, 3.10], arch: [amd64, arm]}}, {RUNTIME}}}") == [
        "test (3.9, amd64)",
        "test (3.9, arm)",
        "test (3.10, amd64)",
        "test (3.10, arm)",
    ]


def test_exclude_and_include() -> None:
    matrix = (
        "{python: [a, b], os: [x, y], exclude: [{python: a, os: x}, {os: y, python: b}], include: [{python: c}]}"
    )
    assert names(f"- {{name: t, matrix: {matrix}, {RUNTIME}}}") == ["t (a, y)", "t (b, x)", "t (c)"]


def test_include_alone() -> None:
    assert names(f"- {{name: t, matrix: {{include: [{{a: 1, b: 2}}, {{a: 3}}]}}, {RUNTIME}}}") == [
        "t (1, 2)",
        "t (3)",
    ]


def test_the_value_is_put_into_every_text_and_only_matrix_braces_are_ours() -> None:
    (task,) = plan("""
        - name: t
          matrix: {v: [3.10], cores: [2]}
          runtime:
            containers:
              - image: "python:{{matrix.v}}"
                environment: {"V_{{ matrix.cores }}": "{{ matrix.v }}"}
          resources: {cpu: "{{ matrix.cores }}"}
          retry: {limit: "{{ matrix.cores }}"}
          steps:
            - restore_cache: {keys: ['pip-{{ matrix.v }}-{{ md5sum "x" }}-{{ arch }}']}
            - run: echo {{ matrix.v }} {{ matrixx.v }} {{ matrix }}
    """).tasks
    assert task.name == "t (3.10, 2)"
    assert task.matrix == {"v": "3.10", "cores": "2"}
    assert task.containers[0].image == "python:3.10"
    assert task.containers[0].environment == {"V_2": "3.10"}
    assert task.resources.cpu == 2
    assert task.retry.limit == 2
    restore, run = task.steps
    assert isinstance(restore, RestoreCacheStep)
    assert restore.keys == ['pip-3.10-{{ md5sum "x" }}-{{ arch }}']
    assert isinstance(run, RunStep)
    assert run.command == "echo 3.10 {{ matrixx.v }} {{ matrix }}"


def test_a_name_with_a_template_is_the_name() -> None:
    assert names(f'- {{name: "{{{{ matrix.v }}}} tests", matrix: {{v: [a, b]}}, {RUNTIME}}}') == [
        "a tests",
        "b tests",
    ]


def test_depending_on_all_or_on_one() -> None:
    tasks = plan(f"""
        - {{name: t, matrix: {{v: [a, b]}}, {RUNTIME}}}
        - {{name: all, {RUNTIME}, depends: [{{t: [always]}}]}}
        - {{name: one, {RUNTIME}, depends: ["t (b)"]}}
        - {{name: u, matrix: {{v: [a, b]}}, {RUNTIME}, depends: ["t ({{{{ matrix.v }}}})"]}}
    """).tasks
    assert {task.name: task.depends for task in tasks if task.depends} == {
        "all": {"t (a)": ["always"], "t (b)": ["always"]},
        "one": {"t (b)": ["on_success"]},
        "u (a)": {"t (a)": ["on_success"]},
        "u (b)": {"t (b)": ["on_success"]},
    }


def test_choosing_a_matrix_chooses_all_of_it() -> None:
    tasks = f"""
        - {{name: t, matrix: {{v: [a, b]}}, {RUNTIME}}}
        - {{name: other, {RUNTIME}}}
    """
    assert [task.name for task in plan(tasks, tasks=["t"]).tasks] == ["t (a)", "t (b)"]
    assert [task.name for task in plan(tasks, tasks=["t (b)"]).tasks] == ["t (b)"]


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ("{}", "4:30: this matrix has no combination; give it values, or remove it"),
        ("{v: []}", "4:34: `v` of a matrix is a list of values"),
        ("{v: [a], exclude: [{v: a}]}", "4:30: this matrix has no combination"),
        ("{v: x}", "`v` of a matrix is a list of values (at `x`); write v: [a, b]"),
        ("[a]", "4:30: a mapping is wanted here"),
        ("{v: [a, {b: c}]}", "a value of a matrix is a text, a number or a boolean"),
        ("{v: [a, a]}", "4:38: this value of the matrix is there twice"),
        ("{'a b': [a]}", "`a b` cannot be the name of a matrix's values"),
        ("{python: [a], exclude: [{pyton: a}]}", "the matrix has no `pyton` (at `pyton`); did you mean `python`?"),
        ("{v: [a], include: [a]}", "an item of `include` is a mapping of names to texts"),
        ("{v: [a], include: a}", "`include` of a matrix is a list of mappings"),
        (
            "{a: " + str(list(range(101))) + ", b: " + str(list(range(100))) + "}",
            "4:30: this matrix has more than 10,000 combinations",
        ),
    ],
)
def test_what_is_no_matrix(matrix: str, expected: str) -> None:
    (found,) = problems(f"- {{name: test, matrix: {matrix}, {RUNTIME}}}")
    assert expected in found


def test_templates_without_a_value() -> None:
    found = problems(f"""
        - {{name: a, {RUNTIME}, steps: [run: "x {{{{ matrix.v }}}}"]}}
        - {{name: b, matrix: {{python: [1]}}, {RUNTIME}, steps: [run: "x {{{{ matrix.pyton }}}}"]}}
        - {{name: c, matrix: {{v: [1], include: [{{w: 2}}]}}, {RUNTIME}, steps: [run: "{{{{ matrix.v }}}}"]}}
    """)
    assert [each.split(": ", 1)[1] for each in found] == [
        "there is no matrix here for `{{ matrix.v }}` (at `x {{ matrix.v }}`); add `matrix` to the task",
        "the matrix has no `pyton` (at `x {{ matrix.pyton }}`); did you mean `python`?",
        "the matrix has no `v` for (2) (at `{{ matrix.v }}`); set it in every `include`",
    ]


def test_a_mistake_in_the_task_is_told_once() -> None:
    assert problems(f"- {{name: t, matrix: {{v: [a, b, c]}}, {RUNTIME}, shel: x}}") == [
        "4:80: there is no key `shel` here (at `shel`); did you mean `shell`?"
    ]


def test_10_000_tasks_are_possible_and_one_more_is_not() -> None:
    def tasks(more: str = "") -> str:
        return f"- {{name: t, matrix: {{a: {list(range(100))}, b: {list(range(100))}}}, {RUNTIME}}}\n{more}"

    assert len(plan(tasks()).tasks) == 10_000
    (found,) = problems(tasks(f"- {{name: u, {RUNTIME}}}"))
    assert "a run has at most 10,000 tasks, matrices included" in found


def test_a_matrix_that_multiplies_a_big_task_is_refused_at_once() -> None:
    matrix = f"matrix: {{a: {list(range(100))}, b: {list(range(100))}}}"
    began = time.monotonic()
    (found,) = problems(
        f"- {{name: t, {matrix}, {RUNTIME}, steps: [run: 'echo {{{{ matrix.a }}}} {'x' * 500_000}']}}"
    )
    assert "this matrix makes more than a run file may hold" in found
    with pytest.raises(InvalidRunFile, match="more than a run file may hold"):
        plan(f"- {{name: t, matrix: {{a: [{'x' * 400_000}]}}, {RUNTIME}, user: '{'{{ matrix.a }}' * 1_000}'}}")
    assert time.monotonic() - began < 20


def test_names_that_collide() -> None:
    found = problems(f"""
        - {{name: t, matrix: {{v: [a]}}, {RUNTIME}}}
        - {{name: t, {RUNTIME}}}
        - {{name: "t (a)", {RUNTIME}}}
        - {{name: t, matrix: {{v: [b]}}, {RUNTIME}}}
    """)
    assert [each.split(": ", 1)[1].split(" (at")[0] for each in found] == [
        "there is a matrix of the name `t`",
        "there are two tasks of the name `t (a)`",
        "there are two matrices of the name `t`",
    ]
