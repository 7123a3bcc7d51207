"""What a new run is called and what the Temporal UI says of it: pure."""

from datetime import UTC, datetime

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from runyard.client import listing, starting
from runyard.client.remote import from_application, from_rpc
from runyard.errors import InvalidRunFile, RemoteError, tree
from runyard.spec.plan import Source
from runyard.spec.run import RunRequest


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Build & Test", "build-test"),
        ("ünïcode", "n-code"),
        ("🚀", "run"),
        ("x" * 100, "x" * 40),
        ("a/b\n'c'", "a-b-c"),
    ],
)
def test_ids_come_from_names(name: str, slug: str) -> None:
    made = starting.new_run_id(name, now=datetime(2026, 11, 24, 3, 12, tzinfo=UTC))
    assert made.startswith(f"{slug}-20261124-031200-")
    assert len(made) == len(slug) + 21
    assert starting.keyed_run_id(name, "k") == starting.keyed_run_id(name, "k") != starting.keyed_run_id(name, "l")


def test_new_ids_differ() -> None:
    assert len({starting.new_run_id("a") for _ in range(200)}) > 190


def test_what_a_user_writes_stays_text_in_markdown() -> None:
    source = Source(url="https://x/`y`|z", branch="a`b\nc", commit="0" * 40)
    request = RunRequest(file="", source=source, project="p|q", owner="`$HOME`")
    line = starting.summary("*b* [l](u)\n# h", source, tasks=1)
    assert line == "**\\*b\\* \\[l\\]\\(u\\) \\# h** on `ab\nc`: 1 task".replace("\n", " ")
    shown = starting.details("r-1", request, name="n")
    assert "| project\u00a0\u00a0 | `p/q` |" in shown
    assert "| owner\u00a0\u00a0 | `$HOME` |" in shown
    assert "runyard run logs r-1 TASK" in shown


def test_search_attributes_fit() -> None:
    request = RunRequest(file="", project="é" * 300, owner="o" * 300)
    pairs = {pair.key.name: pair.value for pair in starting.search_attributes(request, tasks=3).search_attributes}
    assert pairs["RunyardTasks"] == 3
    assert len(str(pairs["RunyardProject"]).encode()) <= 255
    assert "RunyardGroup" not in pairs
    assert len((starting.priority(request).fairness_key or "").encode()) <= 64


def test_filters_are_quoted() -> None:
    made = listing.query(listing.Filter(phase="failed", project="it's \\ x' OR '1'='1"))
    assert made.endswith("RunyardProject = 'it\\'s \\\\ x\\' OR \\'1\\'=\\'1'")


def test_every_error_of_a_worker_comes_back_as_itself() -> None:
    for kind in tree():
        if kind in (InvalidRunFile, RemoteError):
            continue
        found = from_application(ApplicationError("what\nwhat to do", type=kind.code))
        assert (type(found), found.message, found.remedy) == (kind, "what", "what to do")
    other = from_application(ApplicationError("odd", type="Strange"))
    assert isinstance(other, RemoteError)
    assert (other.remote_code, other.message) == ("Strange", "odd")


def test_problems_come_back_whole() -> None:
    details = [{"message": "bad", "line": 3, "column": 4, "text": "x", "hint": "y", "path": "p", "new": "field"}]
    found = from_application(ApplicationError("ci.yml:3:4: bad", details, type="invalid_run_file"), file="ci.yml")
    assert isinstance(found, InvalidRunFile)
    assert str(found) == "ci.yml:3:4: bad (at `x`); y"
    bare = from_application(ApplicationError("no details", type="invalid_run_file"))
    assert isinstance(bare, InvalidRunFile)
    assert bare.problems[0].message == "no details"


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (RPCStatusCode.NOT_FOUND, "Namespace x is not found.", "server_unavailable"),
        (RPCStatusCode.NOT_FOUND, "workflow not found", "not_found"),
        (RPCStatusCode.UNAVAILABLE, "gone", "server_unavailable"),
        (RPCStatusCode.DEADLINE_EXCEEDED, "slow", "server_unavailable"),
        (RPCStatusCode.PERMISSION_DENIED, "no", "forbidden"),
        (RPCStatusCode.UNAUTHENTICATED, "who", "forbidden"),
        (RPCStatusCode.INVALID_ARGUMENT, "search attribute RunyardStage is not defined", "invalid_request"),
        (RPCStatusCode.INVALID_ARGUMENT, "BadSearchAttributes", "invalid_request"),
        (RPCStatusCode.INTERNAL, "oh", "remote_error"),
    ],
)
def test_answers_of_a_server(status: RPCStatusCode, message: str, code: str) -> None:
    found = from_rpc(RPCError(message, status, b""), what="run r", address="h:1", namespace="x")
    assert found.code == code
    if "search attribute" in message:
        assert "doctor --fix" in found.remedy


@pytest.mark.parametrize(
    ("one", "other"), [("сборка", "деплой"), ("Deploy: prod", "deploy (prod)"), ("x" * 50, "x" * 50 + "y")]
)
def test_a_key_belongs_to_one_run_of_a_file(one: str, other: str) -> None:
    """A push starts each run of the file with the same key."""
    assert starting.keyed_run_id(one, "push 1") != starting.keyed_run_id(other, "push 1")
