"""The rules of the graph, one by one, and what is refused."""

import graphlib
import itertools
import time
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runyard.errors import Conflict, InvalidRequest, NotFound
from runyard.graph import Graph, Node, Outcome
from runyard.spec.plan import Condition

CONDITIONS: tuple[Condition, ...] = get_args(Condition)
SETS = [set_ for size in range(5) for set_ in itertools.combinations(CONDITIONS, size)]
STARTS: dict[Outcome, set[Condition]] = {
    "success": {"on_success", "always"},
    "failed": {"on_failure", "always"},
    "skipped": {"on_skipped", "always"},
    "cancelled": set(),
}


def chain(*names: str, **options: bool) -> list[Node]:
    """Each depends on the one before."""
    return [
        Node(name, {parent: ["on_success"]} if parent else {}, **options)
        for parent, name in zip([None, *names], names, strict=False)
    ]


def run(graph: Graph, **outcomes: Outcome) -> list[str]:
    """Take and end all there is; a success where nothing else is said. Returns the order of the starts."""
    started = []
    while names := graph.take(1):
        started += names
        graph.end(names[0], outcomes.get(names[0], "success"))
    return started


# conditions


@pytest.mark.parametrize("outcome", get_args(Outcome))
@pytest.mark.parametrize("conditions", SETS, ids="+".join)
def test_every_set_of_conditions_with_every_outcome(outcome: Outcome, conditions: tuple[Condition, ...]) -> None:
    graph = Graph([Node("parent"), Node("child", {"parent": conditions})])
    graph.end("parent", outcome)
    starts = bool(STARTS[outcome] & set(conditions or ["on_success"]))
    assert graph.take() == (["child"] if starts else [])
    assert graph.outcomes.get("child") == (None if starts else "skipped")


@pytest.mark.parametrize("endings", list(itertools.permutations("abc")))
def test_a_child_waits_for_every_parent_even_when_one_has_decided(endings: tuple[str, ...]) -> None:
    graph = Graph([Node("a"), Node("b"), Node("c"), Node("d", {"a": [], "b": ["on_failure"], "c": ["always"]})])
    assert graph.take() == ["a", "b", "c"]
    for name in endings:
        assert "d" not in graph.outcomes
        graph.end(name, "success")
    assert graph.outcomes["d"] == "skipped"
    assert graph.why("d") == "b succeeded, and `depends` asks for on_failure"


def test_skips_go_on_through_the_graph_until_somebody_asks_for_them() -> None:
    nodes = [*chain("a", "b", "c"), Node("d", {"c": ["on_skipped"]}), Node("e", {"d": []})]
    graph = Graph(nodes)
    assert run(graph, a="failed") == ["a", "d", "e"]
    assert [graph.outcomes[name] for name in "abcde"] == ["failed", "skipped", "skipped", "success", "success"]


def test_a_task_whose_when_does_not_match_is_skipped_at_once() -> None:
    graph = Graph([Node("a"), Node("b", {"a": []}, skip=True), Node("c", {"b": []}), Node("d", {"b": ["always"]})])
    assert graph.outcomes == {"b": "skipped", "c": "skipped"}
    assert graph.why("b") == "`when` does not match"
    assert graph.why("c") == "b was skipped, and `depends` asks for on_success"
    assert graph.take() == ["a", "d"]


def test_an_ignored_failure_is_one_for_its_children_and_none_for_the_run() -> None:
    nodes = [Node("a", ignore_failure=True), Node("b", {"a": []}), Node("c", {"a": ["on_failure"]})]
    graph = Graph(nodes)
    assert run(graph, a="failed") == ["a", "c"]
    assert graph.outcomes == {"a": "failed", "b": "skipped", "c": "success"}
    assert not graph.failed
    assert (graph.result(), graph.cause()) == ("success", "")


def test_a_failure_leaves_other_branches_alone() -> None:
    graph = Graph([*chain("a", "b"), *chain("x", "y")])
    assert run(graph, a="failed") == ["a", "x", "y"]
    assert graph.result() == "failed"


# order


def test_ready_tasks_come_in_the_order_of_the_file_whenever_they_got_ready() -> None:
    graph = Graph([Node("late", {"a": []}), Node("a"), Node("b"), Node("c")])
    assert graph.take(2) == ["a", "b"]
    graph.end("a", "success")
    assert graph.take(0) == []
    assert graph.take() == ["late", "c"]
    assert graph.in_flight == ["b", "late", "c"]
    assert graph.take() == []


def test_what_is_ready_does_not_depend_on_the_order_of_the_endings() -> None:
    seen = set()
    for endings in itertools.permutations("abcd"):
        graph = Graph([*(Node(name) for name in "abcd"), *(Node(f"of-{name}", {name: []}) for name in "dcba")])
        graph.take()
        for name in endings:
            graph.end(name, "success")
        seen.add(tuple(graph.take()))
    assert seen == {("of-d", "of-c", "of-b", "of-a")}


# stops


def test_a_stop_cancels_what_has_not_started_whatever_its_conditions() -> None:
    graph = Graph([*chain("a", "b"), Node("c", {"a": ["on_failure", "always"]}), Node("d", {"b": ["on_skipped"]})])
    graph.take()
    graph.stop()
    assert (graph.waiting, graph.in_flight, graph.done) == (0, ["a"], False)
    assert graph.result() == "stopped"
    graph.end("a", "success")
    assert graph.take() == []
    assert graph.outcomes == {"b": "cancelled", "c": "cancelled", "d": "cancelled", "a": "success"}
    assert (graph.result(), graph.cause()) == ("stopped", "stopped: 3 of 4 tasks cancelled")
    assert graph.why("b") == "the run was stopped"


def test_a_stop_after_the_end_changes_nothing() -> None:
    graph = Graph(chain("a"))
    run(graph)
    graph.stop()
    assert (graph.stopped, graph.result()) == (False, "success")


def test_a_failure_outweighs_a_stop() -> None:
    graph = Graph(chain("a", "b"))
    graph.take()
    graph.stop()
    graph.end("a", "failed")
    assert (graph.result(), graph.cause()) == ("failed", "1 of 2 tasks failed: a")


def test_fail_fast_cancels_what_has_not_started_and_tells_the_caller() -> None:
    nodes = [
        Node("ignored", ignore_failure=True),
        Node("a"),
        Node("b"),
        Node("c", {"a": ["on_failure"]}),
        Node("d"),
    ]
    graph = Graph(nodes, fail_fast=True)
    assert graph.take(3) == ["ignored", "a", "b"]
    graph.end("ignored", "failed")
    assert not graph.must_stop()
    graph.end("a", "failed")
    assert graph.must_stop()
    assert graph.take() == []
    assert (graph.outcomes["c"], graph.outcomes["d"], graph.in_flight) == ("cancelled", "cancelled", ["b"])
    assert graph.why("c") == "a failed, and the run is `fail_fast`"
    graph.end("b", "cancelled")
    assert (graph.result(), graph.cause()) == ("failed", "1 of 5 tasks failed: a")
    assert not graph.stopped


def test_a_task_cancelled_all_by_itself_fails_the_run_and_skips_its_children() -> None:
    graph = Graph([*chain("a", "b"), Node("c", {"a": ["always"]}), Node("d")])
    graph.end("a", "cancelled")
    assert graph.result() == "unknown"
    assert run(graph) == ["d"]
    assert graph.outcomes == {"a": "cancelled", "b": "skipped", "c": "skipped", "d": "success"}
    assert graph.why("a") == "it was cancelled by hand"
    assert graph.why("c") == "a was cancelled, and `depends` asks for always"
    assert (graph.result(), graph.cause()) == ("failed", "1 of 4 tasks cancelled: a")


def test_nobody_minds_when_a_task_whose_failure_is_ignored_is_cancelled() -> None:
    graph = Graph([Node("a", ignore_failure=True), Node("b")])
    graph.end("a", "cancelled")
    run(graph)
    assert graph.result() == "success"


def test_a_task_that_ended_before_its_turn_is_not_given_out() -> None:
    """Kept from an earlier run, or cancelled by hand: its parents may still be at work."""
    graph = Graph(chain("a", "b", "c"))
    graph.end("b", "success")
    assert graph.take() == ["a", "c"]
    graph.end("a", "failed")
    assert graph.outcomes == {"b": "success", "a": "failed"}


# words


def test_the_cause_names_some_and_counts_the_rest_in_the_order_of_the_file() -> None:
    graph = Graph([Node(f"t{i}") for i in range(7)])
    for name in reversed(graph.take()):
        graph.end(name, "failed")
    assert graph.cause() == "7 of 7 tasks failed: t0, t1, t2, t3, t4 and 2 more"
    assert graph.cause(limit=7) == "7 of 7 tasks failed: t0, t1, t2, t3, t4, t5, t6"
    assert graph.cause(limit=0) == "7 of 7 tasks failed: 7 more"


def test_the_cause_is_one_line_whatever_the_names() -> None:
    graph = Graph([Node("a\nb\r\n c")])
    graph.end("a\nb\r\n c", "failed")
    assert graph.cause() == "1 of 1 task failed: a b c"


def test_why_of_a_skip_names_the_first_parent_that_is_to_blame() -> None:
    graph = Graph([Node("a"), Node("b"), Node("c", {"a": [], "b": ["on_failure", "on_skipped"]}), Node("d")])
    graph.end("b", "success")
    graph.end("a", "success")
    graph.end("d", "skipped")
    assert graph.why("c") == "b succeeded, and `depends` asks for on_failure or on_skipped"
    assert graph.why("a") == ""
    assert graph.why("d") == "it was skipped by hand"


# what is refused


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([Node("a"), Node("b"), Node("a")], "two tasks have the name 'a'"),
        ([Node("a", {"nobody": []})], "task 'a' depends on 'nobody', and there is no such task"),
        ([Node("a", {"a": []})], "in a cycle: a → a"),
        ([Node("x"), Node("a", {"x": [], "b": []}), Node("b", {"c": []}), Node("c", {"a": []})], "a → b → c → a"),
        ([Node("outside", {"a": []}), Node("b", {"a": []}), Node("a", {"b": []})], "b → a → b"),
    ],
)
def test_a_graph_that_cannot_be(nodes: list[Node], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Graph(nodes)
    assert caught.value.message.endswith(words)


def test_a_long_cycle_is_named_in_part() -> None:
    names = [f"t{i}" for i in range(10_000)]
    nodes = [Node(name, {names[i - 1]: []}) for i, name in enumerate(names)]
    with pytest.raises(InvalidRequest) as caught:
        Graph(nodes)
    assert "t0 → t9999 → t9998" in caught.value.message
    assert caught.value.message.endswith("(9992 more) → t0")


@given(st.lists(st.lists(st.integers(0, 7), max_size=2, unique=True), min_size=8, max_size=8))
def test_cycles_are_found_wherever_there_are_some(parents: list[list[int]]) -> None:
    edges = {f"t{i}": [f"t{parent}" for parent in each] for i, each in enumerate(parents)}
    try:
        graphlib.TopologicalSorter(edges).prepare()
        cyclic = False
    except graphlib.CycleError:
        cyclic = True
    try:
        Graph([Node(name, dict.fromkeys(each, ())) for name, each in edges.items()])
        assert not cyclic
    except InvalidRequest as error:
        assert cyclic
        cycle = error.message.rpartition(": ")[2].split(" → ")
        assert cycle[0] == cycle[-1]
        assert all(parent in edges[child] for child, parent in itertools.pairwise(cycle))


def test_what_cannot_happen_is_an_error() -> None:
    graph = Graph(chain("a", "b"))
    with pytest.raises(NotFound, match="no task 'c'"):
        graph.end("c", "success")
    with pytest.raises(NotFound, match="no task 'c'"):
        graph.why("c")
    graph.end("a", "failed")
    for name in ("a", "b"):
        with pytest.raises(Conflict, match=f"task '{name}' has ended already: "):
            graph.end(name, "success")
    assert graph.counts() == {
        "success": 0,
        "failed": 1,
        "skipped": 1,
        "cancelled": 0,
        "waiting": 0,
        "in_flight": 0,
    }


def test_a_restored_graph_refuses_what_contradicts_itself() -> None:
    nodes = [Node("a"), Node("b", skip=True)]

    def restore(outcomes: dict[str, Outcome], in_flight: list[str]) -> Graph:
        return Graph.restore(nodes, outcomes, in_flight, fail_fast=False, stopped=False)

    with pytest.raises(Conflict, match="'a' cannot be in flight"):
        restore({"a": "success"}, ["a"])
    with pytest.raises(Conflict, match="'b' cannot be in flight"):
        restore({}, ["b"])
    with pytest.raises(Conflict, match="'b' cannot have ended as success: it is skipped"):
        restore({"b": "success"}, [])
    with pytest.raises(NotFound):
        restore({"c": "success"}, [])
    with pytest.raises(NotFound):
        restore({}, ["c"])


def test_a_graph_of_nothing_is_done() -> None:
    graph = Graph([])
    assert (graph.done, graph.result(), graph.take(), graph.cause()) == (True, "success", [], "")


# size


@pytest.mark.parametrize("parents", [3, 100])
def test_ten_thousand_tasks_take_less_than_a_second(parents: int) -> None:
    """Processor time; a fifth to two thirds of a second where it was written, five is the guard."""
    nodes = [
        Node(
            f"t{layer}-{i}",
            {f"t{layer - 1}-{(i * 7 + k) % 100}": ["on_success"] for k in range(parents if layer else 0)},
        )
        for layer in range(100)
        for i in range(100)
    ]
    began = time.process_time()
    graph = Graph(nodes)
    while names := graph.take(37):
        for name in names:
            graph.end(name, "success")
            graph.counts()
    assert graph.counts()["success"] == 10_000
    assert time.process_time() - began < 5


@pytest.mark.parametrize("shape", ["chain", "star", "no edges"])
def test_the_worst_shapes_are_no_worse(shape: str) -> None:
    """Skips that go through all, ten thousand children, ten thousand single takes, cancels after a stop."""
    names = [f"t{i}" for i in range(10_000)]
    parent = {"chain": lambda i: names[i - 1], "star": lambda _: names[0], "no edges": lambda _: None}[shape]
    nodes = [Node(name, {parent(i): []} if i and parent(i) else {}) for i, name in enumerate(names)]
    began = time.process_time()
    graph = Graph(nodes)
    while taken := graph.take(1):
        graph.end(taken[0], "failed")
        graph.cause()
    assert graph.done
    other = Graph(nodes)
    in_flight = other.take(5_000)
    other.stop()
    for name in in_flight:
        other.end(name, "cancelled")
    assert other.done
    assert time.process_time() - began < 10
