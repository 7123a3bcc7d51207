"""The current details: what is said, in what order, that it is always small and never breaks its Markdown."""

import re
import shlex
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runyard.reasons import Reason
from runyard.spec.run import RunPhase, RunResultWord, RunView, TaskStatus, TaskView
from workflows.details import MAX_BYTES, current_details

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
BAR = re.compile(r"(?<!\\)\|")
SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def view(*tasks: TaskView, **facts: Any) -> RunView:
    return RunView(id="ci/main-1", phase="running", created_at=NOON, **{"tasks": list(tasks), **facts})


def task(name: str, status: TaskStatus, **facts: Any) -> TaskView:
    return TaskView(name=name, status=status, **facts)


def section(text: str, title: str) -> list[str]:
    """The rows of a section, without its title, the head of its table and the gaps between its columns."""
    found = [part for part in re.split(r"\n\n(?=\*\*|Counts)", text) if part.startswith(f"**{title}")]
    assert len(found) <= 1
    lines = found[0].replace("\u00a0", "").split("\n")[1:] if found else []
    return [line for line in lines if line[:2] in ("| ", "- ")]


# what is said


@pytest.mark.parametrize(
    ("counts", "headline"),
    [
        ({"success": 17, "failed": 1, "running": 2, "waiting": 22}, "**18 of 42 done, 2 running, 1 failed**"),
        ({"success": 42}, "**42 of 42 done**"),
        ({"skipped": 1, "cancelled": 2, "waiting": 1}, "**3 of 4 done**"),
        (
            {"approval": 1, "held": 2, "retrying": 3, "queued": 4},
            "**0 of 10 done, 1 waiting for approval, 2 held, 3 to be tried again, 4 queued**",
        ),
        ({}, "**no tasks**"),
    ],
)
def test_the_headline_counts(counts: dict[TaskStatus, int], headline: str) -> None:
    assert current_details(view(counts=counts)).split("\n")[0] == headline


def test_a_view_without_counts_is_counted() -> None:
    text = current_details(view(task("a", "success"), task("b", "running")))
    assert text.startswith("**1 of 2 done, 1 running**")


def test_the_result_and_its_cause_come_second() -> None:
    text = current_details(view(result="failed", cause="1 of 3 tasks failed: `x` 1/2", counts={"failed": 1}))
    assert text.split("\n")[1] == "Result: **failed**: ``1 of 3 tasks failed: `x` 1/2``"
    assert "Result" not in current_details(view(counts={"running": 1}))


def test_approvals_come_before_all_else_with_the_command_to_approve() -> None:
    text = current_details(
        view(
            task("lint", "failed", attempt=1, reason=Reason.EXIT_CODE),
            task("mend", "held", attempt=1, reason=Reason.EXIT_CODE),
            task("deploy to prod", "approval", approvals=["ann"], approvals_needed=2),
            task("unit", "running", attempt=1),
        )
    )
    assert section(text, "Waits for") == [
        "- approval of `deploy to prod` (1 of 2, by `ann`): `runyard run approve ci/main-1 'deploy to prod'`",
        "- a decision about `mend`, which failed and is held: `runyard run retry ci/main-1 mend`",
    ]
    titles = re.findall(r"^\*\*(\w+)", text, re.MULTILINE)
    assert titles == ["1", "Waits", "Failed", "Running"]


@pytest.mark.parametrize(
    ("counts", "rows"),
    [
        ({"queued": 1}, ["- room for 1 queued task"]),
        ({"queued": 3}, ["- room for 3 queued tasks"]),
        ({"queued": 3, "running": 1}, []),
    ],
)
def test_a_run_without_room_says_so(counts: dict[TaskStatus, int], rows: list[str]) -> None:
    assert section(current_details(view(counts=counts)), "Waits for") == rows


def test_a_run_that_nothing_is_placed_of_names_the_queue() -> None:
    """Where it is one that no worker serves, nothing else in the UI would tell."""
    text = current_details(view(executor="nosuch", counts={"queued": 2}))
    assert section(text, "Waits for") == ["- room, or a worker, on the queue `runyard-nosuch` for 2 queued tasks"]


def test_failed_tasks_say_why_and_what_to_do() -> None:
    text = current_details(
        view(
            task("lint", "failed", attempt=2, reason=Reason.EXIT_CODE, message="step 3 ended with 1/2 | $5"),
            task("memory", "failed", attempt=1, reason=Reason.OOM_KILLED, ignore_failure=True),
            task("odd", "failed"),
        )
    )
    assert section(text, "Failed")[1:] == [
        f"| `lint` | `exit_code`: `step 3 ended with 1/2` \\| `$5` | 2 | {Reason.EXIT_CODE.remedy} |",
        f"| `memory` (ignored) | `oom_killed`: {Reason.OOM_KILLED.sentence} | 1 | {Reason.OOM_KILLED.remedy} |",
        "| `odd` |  | 0 |  |",
    ]
    assert "`runyard run logs ci/main-1 TASK`" in text


def test_running_tasks_say_since_when_in_utc_with_the_day_where_it_is_another() -> None:
    east = timezone(timedelta(hours=5))
    text = current_details(
        view(
            task("late", "queued", attempt=1, queued_at=at(3)),
            task("again", "retrying", attempt=1, next_attempt_at=at(61), reason=Reason.LOST),
            task("fast", "running", attempt=3, started_at=at(1.5).astimezone(east), queued_at=at(0)),
            task("naive", "running", attempt=1, started_at=at(90_000).replace(tzinfo=None)),
            task("placed", "running", attempt=1, queued_at=at(4)),
            task("new", "running", attempt=1),
        )
    )
    assert section(text, "Running")[1:] == [
        "| `fast` | 3 | 12:00:01 |",
        "| `naive` | 1 | 2026-11-25 13:00:00 |",
        "| `placed` | 1 | 12:00:04 |",
        "| `new` | 1 |  |",
        "| `again` | 1 | next attempt 12:01:01 after `lost` |",
        "| `late` | 1 | queued 12:00:03 |",
    ]


def test_the_last_ten_that_finished_newest_first() -> None:
    ended = [task(f"t{i}", "success", started_at=at(0), ended_at=at(i)) for i in range(20)]
    others = [
        task("red", "failed", started_at=at(0), ended_at=at(7300)),
        task("gone", "cancelled", ended_at=at(130)),
        task("skipped", "skipped"),
        task("slow", "success", started_at=at(0), ended_at=at(120)),
    ]
    rows = section(current_details(view(*ended, *others)), "Finished last")
    assert rows[:4] == [
        "- ✖ `red` failed after 2 h 2 min",
        "- ■ `gone` cancelled",
        "- ✔ `slow` success after 2 min",
        "- ✔ `t19` success after 19.0 s",
    ]
    assert len(rows) == 10


def test_counts_come_last_and_name_every_status() -> None:
    counts: dict[TaskStatus, int] = dict.fromkeys(get_args(TaskStatus), 2)
    last = current_details(view(counts=counts)).split("\n")[-1]
    assert last.startswith("Counts: 2 success, 2 failed, ")
    assert last.endswith(" Times are in UTC.")
    assert all(f"2 {status}" in last for status in counts)


def test_a_run_without_tasks_is_a_line() -> None:
    assert current_details(view()) == "**no tasks**"


# size


@pytest.mark.parametrize("status", get_args(TaskStatus))
@pytest.mark.parametrize(
    "name", ["t", "😀" * 100, "|`" * 50, "`" * 100, "|" * 100, "a b" * 33], ids=lambda n: n[:2]
)
def test_ten_thousand_tasks_of_one_status(status: TaskStatus, name: str) -> None:
    tasks = [
        task(
            f"{name}{i}",
            status,
            attempt=1,
            reason=Reason.EXIT_CODE,
            message=name * 20,
            ended_at=at(i),
            approvals=[name],
        )
        for i in range(10_000)
    ]
    text = current_details(view(*tasks, cause=name * 20, result="failed"))
    assert len(text.encode()) <= MAX_BYTES
    check_markdown(text)
    if status not in ("waiting", "skipped", "cancelled", "success"):
        left = re.search(r"and (\d+) more", text)
        assert left
        title = {"approval": "Waits for", "held": "Waits for", "failed": "Failed"}.get(status, "Running")
        rows = section(text, title)
        assert len(rows) + int(left[1]) - (2 if title in ("Failed", "Running") else 1) == 10_000


def test_no_section_is_pushed_out_by_those_before_it() -> None:
    statuses: list[TaskStatus] = ["approval", "held", "failed", "running", "success"]
    tasks = [
        task(
            f"{status} {'long' * 20} {i}", status, attempt=1, reason=Reason.LOST, message="m" * 300, ended_at=at(i)
        )
        for status in statuses
        for i in range(500)
    ]
    text = current_details(view(*tasks, result="failed", cause="c" * 1000))
    for title in ("Waits for", "Failed", "Running", "Finished last"):
        assert len(section(text, title)) >= 3, title
    assert text.split("\n")[-1].startswith("Counts: ")


def test_names_are_cut_in_the_middle_since_those_of_a_matrix_differ_at_their_end() -> None:
    names = [f"test ({'x' * 200}, {version})" for version in ("3.12", "3.13")]
    text = current_details(view(*(task(name, "running") for name in names)))
    assert all(f"…{'x' * 10}" in text and f"{name[-7:]}`" in text for name in names)


# Markdown


def check_markdown(text: str) -> None:
    """Tables keep their columns, fences are closed, and nothing of a name or message is outside of code."""
    columns = 0
    for line in text.split("\n"):
        columns = len(BAR.findall(line)) if line.startswith("|") else 0
        if not columns:
            continue
        assert line.endswith("|")
        assert columns in (4, 5)
    outside = SPAN.sub("", text)
    assert "`" not in outside
    assert "😀" not in outside
    assert "$" not in outside


NASTY = st.text(
    alphabet=st.sampled_from([*"|`\\\n\r\t\x00\x1b$*_[]()<>&#~-+!:1/2 ab'\"", "\u202e", "\u200d", "😀", "é"])
)
LONG = st.builds(lambda text, times: text * times, NASTY, st.integers(1, 60))
MOMENT = st.none() | st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1), timezones=st.none() | st.just(UTC))
TASK = st.builds(
    TaskView,
    name=LONG.filter(bool),
    status=st.sampled_from(get_args(TaskStatus)),
    attempt=st.integers(0, 1000),
    reason=st.none() | st.sampled_from(Reason),
    message=LONG,
    queued_at=MOMENT,
    started_at=MOMENT,
    ended_at=MOMENT,
    next_attempt_at=MOMENT,
    approvals=st.lists(NASTY, max_size=3),
    approvals_needed=st.integers(0, 5),
    ignore_failure=st.booleans(),
)
VIEW = st.builds(
    RunView,
    id=NASTY.filter(bool),
    phase=st.sampled_from(get_args(RunPhase)),
    result=st.sampled_from(get_args(RunResultWord)),
    cause=LONG,
    created_at=MOMENT,
    counts=st.dictionaries(st.sampled_from(get_args(TaskStatus)), st.integers(0, 10**6)),
    tasks=st.lists(TASK, max_size=12),
)


@settings(max_examples=300, deadline=None)
@given(VIEW)
def test_whatever_the_run_the_details_are_small_and_whole(random_view: RunView) -> None:
    text = current_details(random_view)
    assert len(text.encode()) <= MAX_BYTES
    assert "\x00" not in text
    assert "\u202e" not in text
    assert "\n\n\n" not in text
    check_markdown(text)
    assert current_details(random_view) == text


@given(st.text(alphabet="ab|`$'\" \\😀é1/", min_size=1, max_size=20).filter(lambda name: name == name.strip()))
def test_the_command_to_approve_is_what_a_shell_would_need(name: str) -> None:
    row = section(current_details(view(task(name, "approval", approvals_needed=1))), "Waits for")[0]
    spans = [span[1].strip() if "`" in span[1] else span[1] for span in (m.groups() for m in SPAN.finditer(row))]
    assert shlex.split(spans[-1]) == ["runyard", "run", "approve", "ci/main-1", name]


@pytest.mark.parametrize("name", ["two\nlines", "bell\x07", "right\u202eleft"])
def test_a_name_that_cannot_be_typed_has_no_command(name: str) -> None:
    row = section(current_details(view(task(name, "approval", approvals_needed=1))), "Waits for")[0]
    assert row.endswith("(0 of 1)")


def test_the_words_of_all_reasons_fit_into_a_table() -> None:
    for reason in Reason:
        check_markdown(current_details(view(task("a", "failed", reason=reason, attempt=1))))
