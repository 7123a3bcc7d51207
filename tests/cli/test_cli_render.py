"""The drawing of a run: pure, so compared whole."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from runyard.cli import render
from runyard.cli.render import Frame, plain
from runyard.cli.text import clean, cut, seconds, width_of
from runyard.reasons import Reason
from runyard.spec.run import RunView, TaskView

START = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


def at(seconds_later: float) -> datetime:
    return START + timedelta(seconds=seconds_later)


def done(name: str, *, took: float, last: str = "", **more: object) -> TaskView:
    given = {"status": "success", "attempt": 1, "started_at": at(1), "ended_at": at(1 + took), "last_line": last}
    return TaskView.model_validate({"name": name, **given, **more})


TASKS = [
    done("checkout", took=1.2, last="41 files"),
    done("lint", took=3.9),
    done("style", took=2, status="failed", reason="exit_code", exit_code=1, ignore_failure=True),
    done("test (3.11)", took=21.4, status="failed", reason="exit_code", message="step 1 ended with exit code 3"),
    TaskView(name="test (3.13)", status="running", attempt=2, started_at=at(5), last_line="older words"),
    TaskView(name="soak", status="queued", attempt=1, message="waits for room: 4 of 4 slots are in use"),
    TaskView(
        name="flaky",
        status="retrying",
        attempt=1,
        started_at=at(2),
        reason=Reason.EXIT_CODE,
        next_attempt_at=at(27),
    ),
    TaskView(name="package", status="waiting", depends=["test (3.11)", "test (3.13)"]),
    TaskView(name="docs", status="skipped", reason=Reason.WHEN),
    TaskView(name="publish", status="approval", approvals=["ann"], approvals_needed=2),
    TaskView(name="deploy", status="held", attempt=1, started_at=at(3), ended_at=at(4), reason=Reason.OOM_KILLED),
    TaskView(name="notify", status="cancelled", reason=Reason.NEVER_STARTED),
]
VIEW = RunView(
    id="build-and-test-7",
    name="build-and-test",
    phase="running",
    created_at=START,
    tasks=TASKS,
    ui="http://127.0.0.1:8233/namespaces/default/workflows/build-and-test-7",
)

TREE = """\
 runyard  build-and-test  build-and-test-7  of main@3f2c1d9 + 2 changed files
 Temporal UI  http://127.0.0.1:8233/namespaces/default/workflows/build-and-test-7
 ✔ checkout        1.2 s   41 files
 ✔ lint            3.9 s
 ⚠ style           2.0 s   A step ended with an exit code other than 0 (ignored)
 ✖ test (3.11)    21.4 s   step 1 ended with exit code 3
 ● test (3.13)    18.0 s   attempt 2: tests/test_graph.py::test_layers PASSED
 ◷ soak                    waits for room: 4 of 4 slots are in use
 ◷ flaky                   attempt 1 failed: A step ended with an exit code other than 0; next attempt in 4.0 s
 ◷ package                 waits for test (3.13)
 ○ docs                    skipped: Its `when` does not match this run
 ○ publish                 needs approval: 1 of 2 (ann)
 ⚠ deploy          1.0 s   The task used more memory than its limit and was killed; waits for a decision: retry…
 ✖ notify                  cancelled: The run ended before its turn came
 cancelling"""

NARROW = """\
 runyard  build-and-test  build-and-tes…
 ✔ checkout        1.2 s   41 files
 ✔ lint            3.9 s
 ⚠ style           2.0 s   A step ended…
 ✖ test (3.11)    21.4 s   step 1 ended…
 ● test (3.13)    18.0 s   attempt 2: o…
 ◷ soak                    waits for ro…
 ◷ flaky                   attempt 1 fa…
 ◷ package                 waits for te…
 ○ docs                    skipped: Its…
 ○ publish                 needs approv…
 ⚠ deploy          1.0 s   The task use…
 ✖ notify                  cancelled: T…"""

LOW = """\
 runyard  build-and-test  build-and-test-7
 ! style           2.0 s   A step ended with an exit co...
 x test (3.11)    21.4 s   step 1 ended with exit code 3
 * test (3.13)    18.0 s   attempt 2: older words
 ? publish                 needs approval: 1 of 2 (ann)
 ! deploy          1.0 s   The task used more memory th...
 ... 7 more tasks: 2 success, 1 queued, 1 retrying, 1 w..."""


def drawn(view: RunView, **frame: object) -> str:
    given = {"now": at(23), "width": 112, **frame}
    return "\n".join(plain(line) for line in render.tree(view, Frame(**given)))  # type: ignore[arg-type]


def test_tree_tells_every_state() -> None:
    tails = {"test (3.13)": "\x1b[32mtests/test_graph.py::test_layers PASSED\x1b[0m\n"}
    found = drawn(VIEW, origin="main@3f2c1d9 + 2 changed files", tails=tails, notice="cancelling")
    assert found == TREE


def test_narrow_terminal_cuts_and_never_wraps() -> None:
    found = drawn(VIEW, width=40)
    assert found == NARROW
    assert all(width_of(line) <= 40 for line in found.splitlines())


def test_low_terminal_shows_what_needs_attention_and_ascii_is_ascii() -> None:
    view = VIEW.model_copy(update={"tasks": TASKS})
    found = drawn(view, width=58, height=7, ascii_only=True)
    assert found == LOW
    assert found.isascii()


def test_ten_thousand_tasks_fit_a_screen() -> None:
    tasks = [TaskView(name=f"t{n}", status="success" if n < 9_000 else "waiting") for n in range(10_000)]
    found = drawn(VIEW.model_copy(update={"tasks": tasks}), height=24).splitlines()
    assert len(found) <= 24
    assert found[-1].startswith(" … 9,979 more tasks: ")


@pytest.mark.parametrize("words", ["a\x1b[2Jb", "a\x1b]0;title\x07b", "\x9b31mab", "a\u202eb", "x\rab", "a\x07b"])
def test_a_task_cannot_paint_on_the_terminal(words: str) -> None:
    found = drawn(RunView(id="r", tasks=[TaskView(name=words, status="running", last_line=words)]))
    assert all(char.isprintable() or char == "\n" for char in found), repr(found)
    assert clean(words).replace(" ", "").endswith("b")


def test_width_counts_columns() -> None:
    assert width_of("漢字") == 4
    assert cut("漢字漢字", 5) == "漢字…"
    assert cut("abc", 0) == ""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.99, "1 m 00 s"),
        (125, "2 m 05 s"),
        (3725, "1 h 02 m"),
        (273600, "3 d 04 h"),
    ],
)
def test_durations(value: float, words: str) -> None:
    assert seconds(value) == words


def told(before: RunView | None, after: RunView) -> list[str]:
    found = render.events(before, after, now=at(30))
    return [f"{render.stamp(event.at, UTC)} {plain(event.line)}" for event in found]


def test_lines_of_a_run_in_the_order_of_time() -> None:
    assert told(None, VIEW) == [
        "12:00:01 checkout started",
        "12:00:01 lint started",
        "12:00:01 style started",
        "12:00:01 test (3.11) started",
        "12:00:02 checkout ✔ 1.2 s",
        "12:00:03 style ⚠ 2.0 s A step ended with an exit code other than 0 (ignored)",
        "12:00:03 deploy started",
        "12:00:04 lint ✔ 3.9 s",
        "12:00:05 test (3.13) started, attempt 2",
        "12:00:22 test (3.11) ✖ 21.4 s step 1 ended with exit code 3",
        "12:00:30 flaky ◷ attempt 1 failed: A step ended with an exit code other than 0; next attempt in 0.0 s",
        "12:00:30 docs ○ skipped: Its `when` does not match this run",
        "12:00:30 publish ○ needs approval: 1 of 2 (ann) · runyard run approve build-and-test-7 publish",
        f"12:00:30 deploy ⚠ {Reason.OOM_KILLED.sentence[:-1]}; waits for a decision: retry or cancel",
        "12:00:30 notify ✖ cancelled: The run ended before its turn came",
    ]


def test_lines_say_only_what_is_new() -> None:
    running = VIEW.tasks[4]
    after = VIEW.model_copy(
        update={
            "tasks": [
                *VIEW.tasks[:4],
                running.model_copy(update={"status": "success", "ended_at": at(29)}),
                *VIEW.tasks[5:],
            ]
        }
    )
    assert told(VIEW, VIEW) == []
    assert told(VIEW, after) == ["12:00:29 test (3.13) ✔ 24.0 s"]


def test_each_attempt_starts_once() -> None:
    def view(**task: object) -> RunView:
        return RunView(id="r", tasks=[TaskView.model_validate({"name": "t", **task})])

    first = view(status="running", attempt=1, started_at=at(1))
    failed = view(status="retrying", attempt=1, started_at=at(1), reason="exit_code", next_attempt_at=at(35))
    again = view(status="queued", attempt=2)
    second = view(status="running", attempt=2, started_at=at(36))
    looks = [None, first, failed, again, second, second]
    lines = [line for one, two in pairwise(looks) for line in told(one, two or first)]
    assert lines == [
        "12:00:01 t started",
        "12:00:30 t ◷ attempt 1 failed: A step ended with an exit code other than 0; next attempt in 5.0 s",
        "12:00:36 t started, attempt 2",
    ]


def ended(result: str, **more: object) -> str:
    given = {"phase": "finished", "result": result, "ended_at": at(125), **more}
    view = VIEW.model_copy(update=given)
    return "\n".join(plain(line) for line in render.ending(view))


def test_endings() -> None:
    assert ended("success", counts={"success": 12}) == "✔ build-and-test · 12 tasks in 2 m 05 s"
    assert (
        ended("stopped", cause="ann cancelled it") == "✖ build-and-test cancelled after 2 m 05 s: ann cancelled it"
    )
    assert ended("failed", cause="1 of 12 tasks failed: test (3.11)") == (
        "✖ build-and-test failed: 1 of 12 tasks failed: test (3.11)\n"
        "  test (3.11): step 1 ended with exit code 3\n"
        "    Read the end of that step's log.\n"
        "    runyard run logs build-and-test-7 'test (3.11)'"
    )
