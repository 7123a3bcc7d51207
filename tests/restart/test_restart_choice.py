"""Which tasks a restart keeps: pure, from two plans and how the earlier run ended."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runyard.errors import InvalidRequest
from runyard.graph import Graph, Node, Outcome
from runyard.spec import compile_run
from runyard.spec.plan import Plan
from runyard.spec.restart import Choice, Earlier, TaskEnded, choose, keeps_nothing, merge
from runyard.spec.run import Restart, RunRequest, RunView, TaskStatus

RUNTIME = {"containers": [{"image": "alpine"}]}


def task(name: str, **fields: object) -> dict[str, object]:
    return {"name": name, "runtime": RUNTIME, "steps": [{"run": f"make {name}"}], **fields}


def request(*tasks: dict[str, object], run: dict[str, object] | None = None, **fields: object) -> RunRequest:
    file = {"runs": [{"name": "build", "tasks": list(tasks), **(run or {})}]}
    return RunRequest.model_validate({"file": file, **fields})


def compiled(asked: RunRequest, run_id: str) -> Plan:
    return compile_run(asked, run_id=run_id, execution_id=f"execution of {run_id}")


def earlier(asked: RunRequest, **ends: TaskStatus) -> Earlier:
    plan = compiled(asked, "old")
    statuses = {each.name: ends.get(each.name, "success") for each in plan.tasks}
    return Earlier(
        request=asked,
        plan=plan,
        result=RunView(id="old", result="failed"),
        ends={name: TaskEnded(status=status, attempt=2) for name, status in statuses.items()},
    )


def chosen(before: Earlier, asked: RunRequest, **more: object) -> Choice:
    environments = (before.request.environment, asked.environment)
    return choose(compiled(asked, "new"), before, environments=environments, **more)  # type: ignore[arg-type]


CHAIN = (task("a"), task("b", depends=["a"]), task("c", depends=["b"]), task("d"))


def test_what_succeeded_is_kept_under_its_old_id() -> None:
    before = earlier(request(*CHAIN), b="failed", c="skipped")
    choice = chosen(before, request(*CHAIN))
    assert dict(choice.again) == {"b": "it failed", "c": "it was skipped"}
    applied = {each.name: each for each in choice.apply(compiled(request(*CHAIN), "new")).tasks}
    old = {each.name: each for each in before.plan.tasks}
    for name in "ad":
        kept = applied[name].kept
        assert kept is not None
        assert (applied[name].id, kept.run, kept.attempt) == (old[name].id, "old", 2)
    assert applied["b"].id != old["b"].id
    assert (applied["b"].kept, applied["b"].again) == (None, "it failed")


@pytest.mark.parametrize("status", ["failed", "cancelled", "held", "running", "waiting", "queued", "approval"])
def test_nothing_but_a_success_is_kept(status: TaskStatus) -> None:
    choice = chosen(earlier(request(*CHAIN), b=status), request(*CHAIN))
    assert set(choice.kept) == {"a", "d"}
    assert choice.again["c"] == "b before it is not kept"


CHANGES = {
    "steps": {"steps": [{"run": "make b otherwise"}]},
    "runtime": {"runtime": {"containers": [{"image": "debian"}]}},
    "environment": {"environment": {"A": "1"}},
    "working_dir": {"working_dir": "/elsewhere"},
    "shell": {"shell": "/bin/bash"},
    "user": {"user": "nobody"},
    "when": {"when": {"branch": "main"}},
    "depends": {"depends": [{"a": ["on_success", "on_failure"]}]},
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_runs_again_with_what_needs_it_and_says_why(what: str) -> None:
    before = earlier(request(*CHAIN))
    changed = task("b", **{"depends": ["a"], **CHANGES[what]})
    choice = chosen(before, request(CHAIN[0], changed, CHAIN[2], CHAIN[3]))
    if what == "when":  # it does not match now: the task is skipped, and so is not said to run
        assert "b" not in choice.again
    else:
        assert choice.again["b"] == f"its {what} changed"
    assert choice.again["c"] == "b before it is not kept"
    assert set(choice.kept) == {"a", "d"}


@pytest.mark.parametrize(
    "fields",
    [
        {"retry": {"limit": 3}},
        {"timeouts": {"run": "10m"}},
        {"resources": {"memory": "1Gi"}},
        {"keep_failed_for": "1m"},
        {"ignore_failure": True},
        {"approval": True},
    ],
    ids=str,
)
def test_how_a_task_is_run_does_not_define_it(fields: dict[str, object]) -> None:
    changed = task("b", depends=["a"], **fields)
    choice = chosen(earlier(request(*CHAIN)), request(CHAIN[0], changed, CHAIN[2], CHAIN[3]))
    assert set(choice.kept) == set("abcd")


def test_variables_of_the_requests_do_not_define_a_task_and_those_of_the_file_do() -> None:
    tasks = (task("a", environment={"X": "1", "Y": "1"}),)
    before = earlier(request(*tasks, environment={"X": "2", "Z": "3"}))
    assert set(chosen(before, request(*tasks, environment={"Z": "4", "NEW": "5"})).kept) == {"a"}
    other = (task("a", environment={"X": "1", "Y": "2"}),)
    assert chosen(before, request(*other)).again == {"a": "its environment changed"}
    head = request(*tasks, run={"environment": {"H": "1"}})
    assert chosen(before, head).again == {"a": "its environment changed"}


def test_a_renamed_task_is_a_new_one() -> None:
    choice = chosen(earlier(request(*CHAIN)), request(CHAIN[0], task("bee", depends=["a"]), CHAIN[3]))
    assert set(choice.kept) == {"a", "d"}
    assert dict(choice.again) == {"bee": "the earlier run has no task of this name"}


def test_tasks_that_are_asked_for_run_again_with_their_descendants() -> None:
    choice = chosen(earlier(request(*CHAIN)), request(*CHAIN), tasks=["b"])
    assert dict(choice.again) == {"b": "it was asked for", "c": "b before it is not kept"}
    with pytest.raises(InvalidRequest, match="no task `bb`") as caught:
        chosen(earlier(request(*CHAIN)), request(*CHAIN), tasks=["bb"])
    assert "b" in caught.value.remedy


def test_the_name_of_a_matrix_means_all_of_its_tasks() -> None:
    many = (task("t", matrix={"v": ["1", "2"]}), task("tt"))
    choice = chosen(earlier(request(*many)), request(*many), tasks=["t"])
    assert set(choice.again) == {"t (1)", "t (2)"}
    assert set(choice.kept) == {"tt"}


def test_what_is_missing_runs_again_with_its_descendants() -> None:
    choice = chosen(earlier(request(*CHAIN)), request(*CHAIN), missing={"a": "its logs are gone"})
    assert choice.again["a"] == "its logs are gone"
    assert set(choice.kept) == {"d"}


def test_a_skip_that_stands_lets_what_follows_it_stand() -> None:
    tasks = (
        task("deploy"),
        task("undo", depends=[{"deploy": ["on_failure"]}]),
        task("never", when={"branch": "no"}),
        task("report", depends=[{"undo": ["on_skipped"]}, {"never": ["on_skipped"]}]),
        task("last", depends=["report"]),
    )
    before = earlier(request(*tasks), undo="skipped", never="skipped", last="failed")
    choice = chosen(before, request(*tasks))
    assert (set(choice.kept), dict(choice.again)) == ({"deploy", "report"}, {"last": "it failed"})
    again = chosen(before, request(*tasks), tasks=["deploy"])
    assert again.kept == {}, "undo may run now, and so report may not"


def test_layers_of_what_runs_again_are_the_kept_archives() -> None:
    save = {"save_to_workspace": {"contents": [{"paths": ["**"]}]}}
    tasks = (
        task("a", steps=[save]),
        task("b", steps=[save], depends=["a"]),
        task("c", steps=["restore_workspace"], depends=["b"]),
    )
    before = earlier(request(*tasks), b="failed", c="skipped")
    new = compiled(request(*tasks), "new")
    applied = {each.name: each for each in chosen(before, request(*tasks)).apply(new).tasks}
    old = {each.name: each.id for each in before.plan.tasks}
    assert applied["c"].layers == [old["a"], applied["b"].id]
    assert applied["b"].id != old["b"]


def test_what_is_fixed_for_the_commit_stays() -> None:
    asked = request(*CHAIN, source={"commit": "c1"}, static_environment={"S": "1"}, environment={"E": "1"})
    before = earlier(asked)
    given = RunRequest.model_validate({"restart": {"run": "old"}, "environment": {"F": "2"}, "priority": 1})
    merged = merge(given, before)
    assert (merged.source.commit, merged.static_environment, merged.environment) == ("c1", {"S": "1"}, {"F": "2"})
    assert (merged.file, merged.run, merged.priority, merged.trigger) == (asked.file, "build", 1, "restart")
    for name, value in {"source": {"commit": "c2"}, "static_environment": {}, "message": "m"}.items():
        with pytest.raises(InvalidRequest, match=f"`{name}` is fixed"):
            merge(RunRequest.model_validate({"restart": {"run": "old"}, name: value}), before)


@pytest.mark.parametrize(
    ("restart", "more", "result", "nothing"),
    [
        ({}, {}, "success", True),
        ({}, {}, "failed", False),
        ({}, {}, "stopped", False),
        ({"mode": "failed"}, {}, "success", False),
        ({"mode": "start"}, {}, "failed", True),
        ({"tasks": ["a"]}, {}, "success", False),
        ({}, {"file": "runs: []"}, "success", False),
    ],
)
def test_what_is_meant_where_nothing_is_said(
    restart: dict[str, object], more: dict[str, object], result: str, nothing: bool
) -> None:
    asked = RunRequest.model_validate({"restart": {"run": "old", **restart}, **more})
    ended = RunView.model_validate({"id": "old", "result": result})
    before = Earlier(request=request(*CHAIN), plan=compiled(request(*CHAIN), "old"), result=ended)
    assert keeps_nothing(asked, before) is nothing


def test_nonsense_is_refused() -> None:
    asked = RunRequest(restart=Restart(run="old", mode="start", tasks=["a"]))
    with pytest.raises(InvalidRequest, match="every task"):
        merge(asked, earlier(request(*CHAIN)))


# whatever the graph and its ends


CONDITIONS = st.lists(st.sampled_from(["on_success", "on_failure", "on_skipped"]), min_size=1, unique=True)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[dict[str, object]], Mapping[str, Outcome]]:
    """A graph, and an end that it can really have."""
    size = draw(st.integers(1, 9))
    tasks = []
    for n in range(size):
        parents = draw(st.lists(st.integers(0, n - 1), max_size=3, unique=True)) if n else []
        depends = [{f"t{parent}": draw(CONDITIONS)} for parent in parents]
        when = {"when": {"branch": "no"}} if draw(st.integers(0, 5)) == 0 else {}
        tasks.append(task(f"t{n}", depends=depends, **when))
    plan = compiled(request(*tasks), "draw")
    graph = _graph(plan)
    while ready := graph.take():
        for name in ready:
            graph.end(name, draw(st.sampled_from(["success", "success", "success", "failed", "cancelled"])))
    return tasks, dict(graph.outcomes)


def _graph(plan: Plan) -> Graph:
    return Graph([Node(name=t.name, depends=t.depends, skip=t.skip) for t in plan.tasks])


@settings(deadline=None, max_examples=200)
@given(runs(), st.data())
def test_what_is_kept_fits_the_graph_and_nothing_before_it_runs(
    run: tuple[list[dict[str, object]], Mapping[str, Outcome]], data: st.DataObject
) -> None:
    tasks, outcomes = run
    try:
        before = earlier(request(*tasks), **outcomes)
    except InvalidRequest:  # a parent twice over, which the file refuses
        return
    missing = data.draw(st.dictionaries(st.sampled_from([str(t["name"]) for t in tasks]), st.just("gone")))
    choice = chosen(before, request(*tasks), missing=missing)
    plan = choice.apply(compiled(request(*tasks), "new"))
    assert not choice.kept.keys() & missing.keys()
    kept: dict[str, Outcome] = {t.name: "success" for t in plan.tasks if t.kept}
    nodes = [Node(name=t.name, depends=t.depends, skip=t.skip) for t in plan.tasks]
    graph = Graph.restore(nodes, kept, [], fail_fast=False, stopped=False)
    ran: set[str] = set()
    while ready := graph.take():
        ran.update(ready)
        for name in ready:
            graph.end(name, data.draw(st.sampled_from(["success", "failed"])))
    assert not ran & kept.keys()
    for name in kept:
        assert not ran & set(graph.ancestors(name)), "a kept task stands on what stood before"
    could = {name for name, outcome in outcomes.items() if outcome == "success"} - missing.keys()
    for name in could - kept.keys():
        assert any(parent in choice.again or parent in missing for parent in graph.ancestors(name)), (
            "nothing runs again without a reason"
        )
