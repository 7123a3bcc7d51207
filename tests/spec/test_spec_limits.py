"""What could make the judging of a run file slow or huge is bounded."""

import time

import pytest

from runyard.spec import compile_run, lint
from runyard.spec.run import RunRequest


def run(tasks: str) -> str:
    return f"runs: [{{name: r, tasks: [{tasks}]}}]"


def task(more: str, name: str = "t") -> str:
    return f"{{name: {name}, {more}}}"


def many(count: int, text: str) -> str:
    return ", ".join([text] * count)


def chain(last: int, step: int) -> str:
    return run(", ".join(task(f"depends: [t{(n + step) % last}]", f"t{n}") for n in range(last)))


HUNDRED, NINE_THOUSAND = str([*range(100)]), str([*range(9_000)])
CROSSED = f"a: {HUNDRED}, b: {HUNDRED}"
TEMPLATE = "{{matrix.b}}"

HEAVY: dict[str, str] = {
    "bad steps": run(task(f"steps: [{many(250_000, 'a')}]")),
    "bad steps of many tasks": run(many(9_000, task("steps: [rum, clon, {x: y}, save_cach]"))),
    "unknown keys": "runs:\n- name: r\n  tasks:\n  - name: t\n" + "".join(f"    k{n}: 1\n" for n in range(70_000)),
    "bad reasons": run(task(f"retry: {{on: [{many(200_000, 'oo')}]}}")),
    "patterns": run(task(f"when: {{branch: [{many(90_000, '/a(b)*/')}]}}")),
    "unknown parents": run(
        ", ".join(task(f"depends: [{many(20, f'tusk-{n}')}]", f"task-{n}") for n in range(1_900))
    ),
    "exclusions": run(task(f"matrix: {{{CROSSED}, exclude: [{many(50_000, '{a: 1, b: x}')}]}}")),
    "edges": run(
        task(f"matrix: {{v: {NINE_THOUSAND}}}", "a") + ", " + task(f"depends: [a], matrix: {{v: {HUNDRED}}}", "b")
    ),
    "duplicates": "\n".join(["a: 1"] * 100_000),
    "runs": f"runs: [{many(90_000, '{name: r}')}]",
    "a name of a mebibyte": f"runs: [{{name: {'x' * 1_000_000}, tasks: []}}]",
    "templates": run(task(f"matrix: {{a: {NINE_THOUSAND}}}, user: '{TEMPLATE * 60_000}'")),
    "templates of many tasks": run(many(20_000, task(f"user: '{TEMPLATE}'"))),
    "a long cycle": chain(9_000, 1),
    "many cycles": chain(9_000, 0),
    "cycles of two": run(", ".join(task(f"depends: [t{n ^ 1}]", f"t{n}") for n in range(9_000))),
    "brackets": "[]" * 400_000,
    "anchors": "\n".join(f"k{n}: &a{n} [*a{n - 1}]" for n in range(40_000)),
}


@pytest.mark.parametrize("name", HEAVY)
def test_a_mebibyte_of_mistakes_is_judged_in_time(name: str) -> None:
    assert len(HEAVY[name]) <= 1 << 20
    began = time.process_time()
    found = lint(HEAVY[name], name="f.yml")
    assert 1 <= len(found) <= 51
    assert time.process_time() - began < 30


def test_10_000_tasks_made_with_anchors_compile_in_time() -> None:
    lines = ["runs:", "  - name: big", "    tasks:"]
    for n in range(10_000):
        layer, at = divmod(n, 100)
        parents = ", ".join(f"t{layer - 1:02d}{(at + more) % 100:02d}" for more in range(3)) if layer else ""
        shared = "&r {containers: [{image: a}]}, steps: &s [{run: 'true'}]" if not n else "*r, steps: *s"
        lines.append(f"      - {{name: t{n:04d}, runtime: {shared}, depends: [{parents}]}}")
    text = "\n".join(lines)
    assert 600_000 < len(text) < 1 << 20
    began = time.process_time()
    plan = compile_run(RunRequest(file=text), run_id="r", execution_id="e")
    assert len(plan.tasks) == 10_000
    assert plan.tasks[-1].level == 99
    assert time.process_time() - began < 20
