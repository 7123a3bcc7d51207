"""Who has a turn in a line, rule by rule; and, at random, what holds whatever happens."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runyard.spec.group import Caps as Limits
from runyard.spec.group import Entry, LineState, Member, Policy, lines_of
from runyard.spec.plan import RunPlan
from workflows.line import Line

A, B = "/project/web/branch/a", "/project/web/branch/b"


def entry(run_id: str, group: str = A, kind: str = "queue", limit: int = 1, **more: object) -> Entry:
    policy = Policy.model_validate({"kind": kind, "limit": limit})
    return Entry.model_validate(
        {"line": "l", "run_id": run_id, "execution_id": run_id, "group": group, "policy": policy, **more}
    )


def line(*entries: Entry) -> Line:
    made = Line(LineState())
    for each in entries:
        made.enter(each)
    return made


def admit(made: Line) -> list[str]:
    chosen = made.turns()
    for member in chosen:
        made.admit(member)
    assert made.turns() == []
    return [member.entry.run_id for member in chosen]


def test_one_at_a_time_in_each_group() -> None:
    made = line(entry("1"), entry("2"), entry("3", B))
    assert admit(made) == ["1", "3"]
    made.leave("1")
    assert admit(made) == ["2"]


def test_a_run_that_comes_again_keeps_its_number_and_its_place() -> None:
    made = line(entry("1"), entry("2"), entry("1"), entry("2"))
    assert made.counter == 2
    assert [(m.entry.run_id, m.place) for m in made.waiting()] == [("1", 1), ("2", 2)]


def test_a_run_that_brings_its_number_stands_where_it_stood() -> None:
    made = line(entry("new"), entry("old", counter=7), entry("older", counter=5))
    assert [m.entry.run_id for m in made.waiting()] == ["new", "older", "old"]
    assert made.enter(entry("next")).place == 8


def at(second: int) -> str:
    return f"2026-01-01T00:00:{second:02}Z"


def test_numbers_follow_the_starts_of_runs_and_not_their_coming() -> None:
    made = line(*(entry(f"s{n}", started_at=at(n)) for n in (3, 1, 2)))
    assert [(m.entry.run_id, m.place) for m in made.waiting()] == [("s1", 1), ("s2", 2), ("s3", 3)]
    assert admit(made) == ["s1"]
    made.enter(entry("s0", started_at=at(0)))  # a number that has had its turn is final
    assert [(m.entry.run_id, m.place) for m in made.waiting()] == [("s0", 2), ("s2", 3), ("s3", 4)]


def test_a_run_that_came_late_does_not_supersede_one_that_was_started_after_it() -> None:
    made = line(entry("new", kind="cancel-superseded", started_at=at(5)))
    assert admit(made) == ["new"]
    made.enter(entry("old", kind="cancel-superseded", started_at=at(4)))
    assert [m.entry.run_id for m in made.superseded()] == ["old"]
    newest = made.newest(A)
    assert newest is not None
    assert newest.entry.run_id == "new"


def test_what_the_newest_run_says_holds() -> None:
    made = line(entry("1"), entry("2"))
    assert admit(made) == ["1"]
    made.enter(entry("3", kind="parallel", limit=3))
    assert admit(made) == ["2", "3"]
    made.enter(entry("4"))
    made.leave("1")
    made.leave("2")
    assert admit(made) == []
    made.leave("3")
    assert admit(made) == ["4"]


def test_a_cap_lets_in_by_priority_then_by_owner_then_by_number() -> None:
    made = line(
        entry("a1", "", owner="ann", cap=2),
        entry("a2", "", owner="ann", cap=2),
        entry("a3", "", owner="ann", cap=2),
        entry("b1", "", owner="bob", cap=2),
        entry("urgent", "", owner="ann", priority=1, cap=2),
    )
    assert admit(made) == ["urgent", "b1"]
    made.leave("urgent")
    assert [m.entry.run_id for m in made.order()] == ["a1", "a2", "a3"]
    assert admit(made) == ["a1"]


def test_only_older_runs_are_superseded_and_only_newer_ones_skipped() -> None:
    made = line(entry("1"), entry("2"), entry("3", kind="cancel-superseded"), entry("4", B))
    assert [m.entry.run_id for m in made.superseded()] == ["1", "2"]
    made.enter(entry("5", kind="skip-if-running"))
    assert [m.entry.run_id for m in made.skipped()] == ["5"]
    made.enter(entry("6", B, kind="skip-if-running"))
    assert [m.entry.run_id for m in made.skipped()] == ["5", "6"]


def test_positions_are_those_that_people_count() -> None:
    made = line(entry("1"), entry("2"), entry("3"), entry("other", B, cap=1))
    assert admit(made) == ["1"]
    assert [made.position(m) for m in made.waiting()] == [1, 2, 1]
    assert made.why(made.waiting()[1]) == f"waits for earlier runs of {A} (1 running)"
    assert made.why(made.waiting()[2]) == "waits for room: 1 of 1 runs at a time are running"


def test_where_a_run_waits() -> None:
    run = RunPlan(run_id="r", name="n", group=A, group_policy="parallel: 4", owner="ann", executor="gpu")
    found = lines_of(run, execution_id="e", caps=Limits(project_runs=3, executor_runs={"gpu": 2}))
    assert [(each.line, each.group, each.cap) for each in found] == [
        ("runyard-group:/project/web", A, 3),
        ("runyard-queue:gpu", "", 2),
    ]
    assert found[0].policy == Policy(kind="parallel", limit=4)
    assert lines_of(run.model_copy(update={"group": ""}), execution_id="e", caps=Limits()) == []


EVENTS = st.lists(
    st.tuples(st.sampled_from(["enter", "leave"]), st.integers(0, 9), st.sampled_from([A, B, ""])), max_size=60
)


@given(events=EVENTS, cap=st.none() | st.integers(1, 3))
def test_whatever_happens_a_group_runs_one_at_a_time_in_order_and_survives_a_copy(
    events: list[tuple[str, int, str]], cap: int | None
) -> None:
    made, begun = Line(LineState()), dict[str, list[int]]()
    for serial, (what, number, group) in enumerate(events):
        if what == "enter":
            made.enter(entry(f"r{serial}-{number}", group, cap=cap))
        elif members := [*made.running(), *made.waiting()]:
            made.leave(members[number % len(members)].entry.run_id)
        made = Line(LineState.model_validate_json(made.state().model_dump_json()))
        for member in made.turns():
            made.admit(member)
            begun.setdefault(member.entry.group, []).append(member.place)
        running = [m.entry.group for m in made.running()]
        assert cap is None or made.cap is None or len(running) <= cap
        assert all(running.count(each) == 1 for each in (A, B) if each in running)
    for group in (A, B):
        assert all(one < two for one, two in pairwise(begun.get(group, [])))


def at_most(monkeypatch: pytest.MonkeyPatch, name: str, calls: int) -> None:
    """Fail at the first call beyond, before what costs too much costs all of it."""
    real: Callable[..., Any] = getattr(Line, name)
    seen = Counter[str]()

    def counted(self: Line, *words: Any) -> Any:
        seen[name] += 1
        assert seen[name] <= calls, f"{name} was asked more than {calls} times"
        return real(self, *words)

    monkeypatch.setattr(Line, name, counted)


@pytest.mark.parametrize("group", [A, ""], ids=["a group", "an executor"])
def test_where_2000_are_is_worked_out_once(monkeypatch: pytest.MonkeyPatch, group: str) -> None:
    """For each of them anew it took longer than a workflow task may, so that the line stood still for ever."""
    entries = [entry(f"{n}", group, owner=f"o{n % 50}", cap=1) for n in range(2_001)]
    members = [Member(entry=each, place=n, running=n == 1) for n, each in enumerate(entries, 1)]
    made = Line(LineState(counter=2_001, cap=1, members=members))
    at_most(monkeypatch, "_ready", 1)
    at_most(monkeypatch, "policy", 1)
    assert made.turns() == []
    told = [(made.position(member), made.why(member)) for member in made.order()]
    assert [position for position, _ in told] == list(range(1, 2_001))
    assert len({why for _, why in told}) == 1


def obvious(made: Line) -> tuple[list[Member], list[Member]]:
    """Those whose group has room, one after the other as the rules say it, and those that wait for their group."""
    used = Counter(member.entry.group for member in made.running())
    owners = Counter(member.entry.owner for member in made.running())
    free, held = list[Member](), list[Member]()
    for member in made.waiting():
        group = member.entry.group
        has_room = not group or used[group] < made.policy(group).limit
        used[group] += has_room
        (free if has_room else held).append(member)
    ready = list[Member]()
    while free:
        best = min(free, key=lambda m: (m.entry.priority, owners[m.entry.owner], m.place))
        owners[best.entry.owner] += 1
        free.remove(best)
        ready.append(best)
    return ready, held


COMINGS = st.tuples(
    st.just("enter"),
    st.integers(0, 9),
    st.sampled_from([A, B, ""]),
    st.integers(1, 3),  # runs at a time in its group
    st.sampled_from(["ann", "bob", "cy"]),
    st.integers(1, 3),  # priority
)
GOINGS = st.tuples(st.sampled_from(["leave", "admit"]), st.integers(0, 9))


@given(events=st.lists(COMINGS | GOINGS, max_size=40), cap=st.none() | st.integers(1, 4))
def test_the_order_is_the_one_that_the_rules_say(events: list[tuple[Any, ...]], cap: int | None) -> None:
    """After whatever has happened: what was worked out before must not be taken for what is."""
    made = Line(LineState())
    for serial, (what, number, *more) in enumerate(events):
        members = [*made.running(), *made.waiting()]
        if what == "enter":
            group, limit, owner, priority = more
            words = {"kind": "parallel", "limit": limit, "owner": owner, "priority": priority, "cap": cap}
            made.enter(entry(f"r{serial}", group, started_at=at(number), **words))
        elif what == "leave" and members:
            made.leave(members[number % len(members)].entry.run_id)
        elif what == "admit" and (chosen := made.turns()):
            made.admit(chosen[0])
            assert made.turns() == chosen[1:], "the others are where they were"
        ready, held = obvious(made)
        room = len(ready) if made.cap is None else max(0, made.cap - len(made.running()))
        assert made.order() == [*ready, *held]
        assert made.turns() == ready[:room]
        assert [made.position(member) for member in ready] == list(range(1, len(ready) + 1))
        for member in held:
            assert made.position(member) == 1 + sum(not other.running for other in made.before(member))
            assert made.why(member).startswith(f"waits for earlier runs of {member.entry.group}")
