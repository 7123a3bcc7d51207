"""The graph against a slow, obvious reference: random graphs, conditions, outcomes, orders, stops."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from runyard.graph import Graph, Node, Outcome
from runyard.spec.plan import Condition

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
CONDITIONS: tuple[Condition, ...] = get_args(Condition)


@dataclass
class Reference:
    """Asks all tasks again after every event, until nothing changes."""

    nodes: Sequence[Node]
    fail_fast: bool
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    in_flight: list[str] = field(default_factory=list)
    stopped: bool = False

    def waiting(self) -> list[Node]:
        return [node for node in self.nodes if node.name not in self.outcomes and node.name not in self.in_flight]

    def ready(self) -> list[str]:
        return [node.name for node in self.waiting() if self.has_all(node) and self.meets_all(node)]

    def has_all(self, node: Node) -> bool:
        return all(parent in self.outcomes for parent in node.depends)

    def meets_all(self, node: Node) -> bool:
        return all(meets(self.outcomes[parent], conditions) for parent, conditions in node.depends.items())

    def failed(self) -> list[str]:
        return [n.name for n in self.nodes if self.outcomes.get(n.name) == "failed" and not n.ignore_failure]

    def settle(self) -> None:
        changed = True
        while changed:
            changed = False
            for node in self.waiting():
                if node.skip or (self.has_all(node) and not self.meets_all(node)):
                    self.outcomes[node.name] = "skipped"
                    changed = True

    def end(self, name: str, outcome: Outcome) -> None:
        if name in self.in_flight:
            self.in_flight.remove(name)
        self.outcomes[name] = outcome
        if self.fail_fast and self.failed():
            self.cancel_waiting()
        self.settle()

    def stop(self) -> None:
        if self.waiting() or self.in_flight:
            self.stopped = True
            self.cancel_waiting()

    def cancel_waiting(self) -> None:
        for node in self.waiting():
            self.outcomes[node.name] = "cancelled"

    def result(self) -> str:
        if self.failed():
            return "failed"
        if self.stopped:
            return "stopped"
        if len(self.outcomes) < len(self.nodes):
            return "unknown"
        missed = [n for n in self.nodes if self.outcomes[n.name] == "cancelled" and not n.ignore_failure]
        return "failed" if missed else "success"


def meets(outcome: Outcome, conditions: Sequence[Condition]) -> bool:
    wanted = set(conditions) or {"on_success"}
    if outcome == "success":
        return "on_success" in wanted or "always" in wanted
    if outcome == "failed":
        return "on_failure" in wanted or "always" in wanted
    if outcome == "skipped":
        return "on_skipped" in wanted or "always" in wanted
    return False


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    """Up to ten nodes, in a file order that has nothing to do with who is whose parent."""
    number = draw(st.integers(0, 10))
    conditions = st.one_of(
        st.just([]), st.just(["on_success"]), st.lists(st.sampled_from(CONDITIONS), unique=True)
    )
    nodes = []
    for i in range(number):
        parents = draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set()
        nodes.append(
            Node(
                name=f"t{i}",
                depends={f"t{parent}": draw(conditions) for parent in sorted(parents)},
                skip=draw(st.integers(0, 9)) == 0,
                ignore_failure=draw(st.integers(0, 3)) == 0,
            )
        )
    return draw(st.permutations(nodes))


def check(graph: Graph, reference: Reference) -> None:
    assert graph.outcomes == reference.outcomes
    assert graph.in_flight == reference.in_flight
    assert graph.waiting == len(reference.waiting())
    assert graph.done == (len(reference.outcomes) == len(reference.nodes))
    assert graph.stopped == reference.stopped
    assert graph.failed == bool(reference.failed())
    assert graph.must_stop() == (reference.fail_fast and bool(reference.failed()))
    assert graph.result() == reference.result()
    assert (graph.cause() != "") == (reference.result() in ("failed", "stopped"))
    ended = list(reference.outcomes.values())
    assert graph.counts() == {
        **{outcome: ended.count(outcome) for outcome in OUTCOMES},
        "waiting": len(reference.waiting()),
        "in_flight": len(reference.in_flight),
    }
    for name, outcome in reference.outcomes.items():
        assert (graph.why(name) != "") == (outcome in ("skipped", "cancelled"))


def restored(graph: Graph, nodes: Sequence[Node], fail_fast: bool, chance: random.Random) -> Graph:
    outcomes = shuffled(graph.outcomes, chance)
    return Graph.restore(nodes, outcomes, graph.in_flight, fail_fast=fail_fast, stopped=graph.stopped)


def shuffled(outcomes: Mapping[str, Outcome], chance: random.Random) -> dict[str, Outcome]:
    pairs = list(outcomes.items())
    chance.shuffle(pairs)
    return dict(pairs)


@settings(max_examples=300, deadline=None)
@given(graphs(), st.booleans(), st.randoms(use_true_random=False))
def test_the_graph_agrees_with_the_reference(nodes: list[Node], fail_fast: bool, chance: random.Random) -> None:
    graph, reference = Graph(nodes, fail_fast=fail_fast), Reference(nodes, fail_fast)
    reference.settle()
    check(graph, reference)
    while not graph.done:
        if chance.randrange(4) == 0:
            graph = restored(graph, nodes, fail_fast, chance)
        act(graph, reference, chance)
        check(graph, reference)
    assert graph.take() == []


def act(graph: Graph, reference: Reference, chance: random.Random) -> None:
    """One of the things that can happen, to both."""
    match chance.choice(["take", "take", "end", "end", "end", "by hand", "stop"]):
        case "take":
            limit = chance.choice([None, 0, 1, 2, 3])
            expected = reference.ready()[:limit]
            assert graph.take(limit) == expected
            reference.in_flight += expected
        case "end" if graph.in_flight:
            end(graph, reference, chance.choice(graph.in_flight), chance.choice(["success", "success", *OUTCOMES]))
        case "by hand" if chance.randrange(3) == 0:
            alive = [node.name for node in reference.nodes if node.name not in graph.outcomes]
            end(graph, reference, chance.choice(alive), chance.choice(["cancelled", *OUTCOMES]))
        case "stop" if chance.randrange(6) == 0:
            graph.stop()
            reference.stop()


def end(graph: Graph, reference: Reference, name: str, outcome: Outcome) -> None:
    graph.end(name, outcome)
    reference.end(name, outcome)


@settings(max_examples=200, deadline=None)
@given(graphs(), st.booleans(), st.randoms(use_true_random=False))
def test_a_restored_graph_goes_on_like_the_one_that_was_left(
    nodes: list[Node], fail_fast: bool, chance: random.Random
) -> None:
    """Both are told the same from then on, down to the words."""
    graph = Graph(nodes, fail_fast=fail_fast)
    for _ in range(chance.randrange(8)):
        advance([graph], chance)
    other = restored(graph, nodes, fail_fast, chance)
    while not graph.done:
        advance([graph, other], chance)
        assert said(other, nodes) == said(graph, nodes)
    assert said(other, nodes) == said(graph, nodes)


def advance(graphs: Sequence[Graph], chance: random.Random) -> None:
    limit = chance.randrange(1, 4)
    taken = [graph.take(limit) for graph in graphs]
    assert all(names == taken[0] for names in taken)
    if graphs[0].in_flight:
        name = chance.choice(graphs[0].in_flight)
        outcome: Outcome = chance.choice(["success", "success", "success", *OUTCOMES])
        for graph in graphs:
            graph.end(name, outcome)
    if chance.randrange(12) == 0:
        for graph in graphs:
            graph.stop()


def said(graph: Graph, nodes: Sequence[Node]) -> list[object]:
    whys = [graph.why(node.name) for node in nodes]
    return [dict(graph.outcomes), graph.in_flight, graph.counts(), graph.result(), graph.cause(), *whys]


@given(graphs(), st.randoms(use_true_random=False))
def test_what_follows_from_outcomes_may_be_left_out(nodes: list[Node], chance: random.Random) -> None:
    """Kept tasks: only those that ran are named, and the skips come by themselves."""
    graph = Graph(nodes)
    ran: dict[str, Outcome] = {}
    while not graph.done:
        for name in graph.take():
            ran[name] = chance.choice(["success", "success", "failed", "cancelled"])
            graph.end(name, ran[name])
    other = Graph.restore(nodes, shuffled(ran, chance), [], fail_fast=False, stopped=False)
    assert said(other, nodes) == said(graph, nodes)


@given(graphs())
def test_ancestors_come_parents_first_and_else_as_in_the_file(nodes: list[Node]) -> None:
    graph, by_name = Graph(nodes), {node.name: node for node in nodes}

    def above(name: str) -> set[str]:
        return {name for parent in by_name[name].depends for name in (parent, *above(parent))}

    for node in nodes:
        ancestors = graph.ancestors(node.name)
        assert sorted(ancestors) == sorted(above(node.name))
        for i, name in enumerate(ancestors):
            assert above(name) <= set(ancestors[:i])
    straight = sorted(nodes, key=lambda node: int(node.name[1:]))
    for node in straight:
        found = Graph(straight).ancestors(node.name)
        assert found == sorted(found, key=lambda name: int(name[1:]))
