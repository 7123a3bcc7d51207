"""What a status means: of those that a real kubelet gave (record_statuses.py), and of anything at all."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runyard.executors.base import Ended
from runyard.executors.kubernetes import names
from runyard.executors.kubernetes.verdict import SEAL_S, Patience, Verdict, judge
from runyard.executors.kubernetes.watch import Seen, main_ended, trim
from runyard.reasons import Reason

STATUSES = Path(__file__).with_name("kubernetes_statuses")
PULL, CONFIG, AGENT = Patience().pull_s, Patience().config_s, Patience().agent_s
UNKNOWN = None

# scenario: exit code, reason, patience in seconds, words of the message
TABLE: dict[str, tuple[int | None, Reason | None, float, str]] = {
    "success": (0, None, 0, ""),
    "success_with_phase": (0, None, 0, ""),
    "exit_code": (3, None, 0, ""),
    "signal_in_step": (137, None, 0, ""),
    "oom_main": (137, Reason.OOM_KILLED, SEAL_S, "more memory"),
    "oom_child": (137, Reason.OOM_KILLED, 0, "more memory"),
    "evicted_by_api": (143, Reason.EVICTED, 0, "Eviction API"),
    "deleted_gracefully": (143, Reason.LOST, 0, "somebody deleted the pod"),
    "deleted_gracefully_gone": (143, Reason.LOST, 0, "somebody deleted the pod"),
    "deadline": (143, Reason.TIMEOUT_RUN, 0, "deadline"),
    "deadline_while_it_waits": (UNKNOWN, Reason.TIMEOUT_RUN, 0, "deadline"),
    "image_missing": (UNKNOWN, Reason.IMAGE_PULL, PULL, "image lab.local/none:1: failed to pull"),
    "image_back_off": (UNKNOWN, Reason.IMAGE_PULL, PULL, "image lab.local/none:1: Back-off"),
    "image_never_pulled": (UNKNOWN, Reason.IMAGE_PULL, 0, "pull policy of Never"),
    "image_name_invalid": (UNKNOWN, Reason.INVALID_IMAGE_NAME, 0, "must be lowercase"),
    "secret_missing": (UNKNOWN, Reason.CONFIG_ERROR, CONFIG, 'secret "absent" not found'),
    "secret_key_missing": (UNKNOWN, Reason.CONFIG_ERROR, CONFIG, "couldn't find key absent in Secret"),
    "root_where_none_may_be": (UNKNOWN, Reason.CONFIG_ERROR, CONFIG, "image will run as root"),
    "no_shell": (128, Reason.START_ERROR, 0, "/bin/sh: no such file"),
    "bad_working_dir": (128, Reason.START_ERROR, 0, "not a directory"),
    "refused_by_node": (UNKNOWN, Reason.UNSCHEDULABLE, 0, "enough resource: memory"),
    "preempted": (143, Reason.PREEMPTED, 0, "higher priority"),
    "agent_fails_first": (UNKNOWN, Reason.AGENT_LOST, AGENT, "ended with exit code 9: no way"),
    "agent_fails_in_step": (UNKNOWN, Reason.AGENT_LOST, AGENT, "ended with exit code 9: out of luck"),
    "agent_lost_told_by_main": (125, Reason.AGENT_LOST, 0, "ended with exit code 9: out of luck"),
    "agent_out_of_memory": (UNKNOWN, Reason.AGENT_LOST, AGENT, "the agent used more memory than its limit"),
    "agent_image_missing": (UNKNOWN, Reason.IMAGE_PULL, PULL, "the agent's image lab.local/none:1"),
    "agent_image_never_pulled": (UNKNOWN, Reason.IMAGE_PULL, 0, "the agent's image lab.local/none:1"),
    "agent_without_secret": (UNKNOWN, Reason.CONFIG_ERROR, CONFIG, "the agent's container"),
    "service_fails": (UNKNOWN, Reason.SERVICE_FAILED, 0, "service db ended with exit code 7: no data folder"),
}
GOING_ON = {
    "creating": ("pending", "ContainerCreating"),
    "running": ("running", "runs"),
    "unschedulable_selector": ("pending", "didn't match Pod's node affinity/selector"),
    "unschedulable_memory": ("pending", "Insufficient memory"),
}


def recorded(name: str) -> tuple[dict[str, Any], bool]:
    found = json.loads((STATUSES / f"{name}.json").read_text())
    return found["pod"], found["gone"]


def taken_at(body: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(body["metadata"]["creationTimestamp"]) + timedelta(seconds=30)


def verdict_of(name: str) -> Verdict:
    body, gone = recorded(name)
    return judge(body, gone=gone, now=taken_at(body))


def test_every_recorded_status_is_in_a_table() -> None:
    names_of_files = {path.stem for path in STATUSES.glob("*.json")}
    assert names_of_files == {*TABLE, *GOING_ON, "deleted_by_force"}


@pytest.mark.parametrize("name", TABLE)
def test_how_it_ended(name: str) -> None:
    exit_code, reason, patience_s, words = TABLE[name]
    verdict = verdict_of(name)
    assert verdict.ended is not None
    found = verdict.ended
    assert (found.exit_code, found.reason, found.gone, verdict.patience_s) == (
        exit_code,
        reason,
        False,
        patience_s,
    )
    assert words in found.message
    assert found.node in ("localhost", "")


CUT_OFF = "failed to create containerd task: failed to create shim task: context canceled: unknown"
"""The whole message of a container whose kubelet was killed while its runtime made it."""


def set_container(body: dict[str, Any], name: str, state: dict[str, Any]) -> None:
    for each in body["status"]["containerStatuses"]:
        if each["name"] == name:
            each["state"] = state


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (CUT_OFF, Reason.NODE_LOST),
        ('exec: "/no/such": stat /no/such: no such file or directory', Reason.START_ERROR),
    ],
)
def test_whose_fault_it_is_that_a_container_does_not_start(said: str, reason: Reason) -> None:
    """The node's is tried again by itself: no step has begun."""
    body, gone = recorded("no_shell")
    before = next(
        each["state"]["terminated"] for each in body["status"]["containerStatuses"] if each["name"] == "main"
    )
    set_container(body, "main", {"terminated": {**before, "message": said}})
    verdict = judge(body, gone=gone, now=taken_at(body))
    assert verdict.ended is not None
    assert (verdict.ended.reason, verdict.patience_s) == (reason, 0)
    assert said in verdict.ended.message
    set_container(body, "main", {"waiting": {"reason": "CreateContainerError", "message": said}})
    verdict = judge(body, gone=gone, now=taken_at(body))
    assert verdict.ended is not None
    assert (verdict.ended.reason, verdict.patience_s) == (reason, Patience().start_s)


@pytest.mark.parametrize(("said", "reason"), [(CUT_OFF, Reason.NODE_LOST), ("no", Reason.SERVICE_FAILED)])
def test_whose_fault_it_is_that_a_service_does_not_start(said: str, reason: Reason) -> None:
    body, gone = recorded("service_fails")
    ended = {"reason": "StartError", "message": said, "exitCode": 128}
    set_container(body, "svc-db", {"terminated": ended})
    verdict = judge(body, gone=gone, now=taken_at(body))
    assert verdict.ended is not None
    assert verdict.ended.reason is reason


@pytest.mark.parametrize("name", GOING_ON)
def test_it_goes_on(name: str) -> None:
    state, words = GOING_ON[name]
    verdict = verdict_of(name)
    assert (verdict.state, verdict.ended) == (state, None)
    assert words in verdict.message


@pytest.mark.promise(1)
def test_a_pod_that_vanished_is_gone_and_no_success() -> None:
    verdict = verdict_of("deleted_by_force")
    assert verdict.ended is not None
    assert verdict.ended.gone
    assert verdict.ended.exit_code is None


def test_what_main_left_comes_with_its_end() -> None:
    ended = verdict_of("success").ended
    assert ended is not None
    assert ended.receipt == "0 0;sealed;"
    assert ended.started_at is not None
    assert ended.ended_at is not None
    assert ended.started_at <= ended.ended_at


def test_a_status_that_is_a_second_old_does_not_know_the_phase() -> None:
    body, _ = recorded("success")
    assert body["status"]["phase"] in ("Running", "Pending")


@pytest.mark.parametrize("name", ["deleted_gracefully", "evicted_by_api", "deadline"])
def test_our_own_word_comes_first(name: str) -> None:
    body, gone = recorded(name)
    body["metadata"]["annotations"][names.ENDING] = "service_failed the service db ended"
    ended = judge(body, gone=gone, now=taken_at(body)).ended
    assert ended is not None
    assert (ended.reason, ended.message) == (Reason.SERVICE_FAILED, "the service db ended")


@pytest.mark.parametrize("name", ["success", "exit_code"])
def test_an_end_of_its_own_stays_one_though_it_was_asked_to_end(name: str) -> None:
    body, gone = recorded(name)
    before = judge(body, gone=gone, now=taken_at(body))
    body["metadata"]["annotations"][names.ENDING] = "cancelled it was asked to end"
    body["metadata"]["deletionTimestamp"] = body["metadata"]["creationTimestamp"]
    assert judge(body, gone=gone, now=taken_at(body)) == before


def test_asked_to_end_before_it_ran() -> None:
    body, _ = recorded("creating")
    body["metadata"]["annotations"][names.ENDING] = "cancelled it was asked to end"
    ended = judge(body, gone=True, now=taken_at(body)).ended
    assert ended == Ended(reason=Reason.CANCELLED, message="it was asked to end", node="localhost")


@pytest.mark.parametrize(
    ("receipt", "reason", "words"),
    [
        ("store refused 403 AccessDenied;", Reason.STORE_REFUSED, "403 AccessDenied"),
        ("service failed db: nothing listens on 5432;", Reason.SERVICE_FAILED, "db: nothing listens"),
        ("0 0;agent lost;", Reason.AGENT_LOST, "out of luck"),
        ("started before;", None, ""),
    ],
)
def test_what_main_heard_of_the_agent(receipt: str, reason: Reason | None, words: str) -> None:
    body, gone = recorded("agent_lost_told_by_main")
    (main,) = (each for each in body["status"]["containerStatuses"] if each["name"] == "main")
    main["state"]["terminated"]["message"] = receipt
    ended = judge(body, gone=gone, now=taken_at(body)).ended
    assert ended is not None
    assert ended.reason is reason
    assert words in ended.message


def test_the_agents_own_last_words_tell_the_store_from_the_rest() -> None:
    body, gone = recorded("agent_fails_in_step")
    (agent,) = (each for each in body["status"]["containerStatuses"] if each["name"] == "agent")
    agent["state"]["terminated"]["message"] = "store: 403 AccessDenied"
    ended = judge(body, gone=gone, now=taken_at(body)).ended
    assert ended is not None
    assert (ended.reason, ended.message) == (Reason.STORE_REFUSED, "403 AccessDenied")


def test_a_node_that_does_not_answer() -> None:
    body, _ = recorded("running")
    due = taken_at(body)
    body["metadata"]["deletionTimestamp"] = due.isoformat()
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
    body["status"]["conditions"].append({**condition, "message": "Taint manager: deleting due to NoExecute taint"})
    early = judge(body, gone=False, now=due + timedelta(seconds=30))
    assert (early.state, early.ended) == ("running", None)
    late = judge(body, gone=False, now=due + timedelta(seconds=90)).ended
    assert late is not None
    assert (late.reason, late.exit_code, late.gone) == (Reason.NODE_LOST, None, False)
    assert "has not confirmed" in late.message


def test_its_own_secret_that_is_late_is_no_fault_of_the_user() -> None:
    body, _ = recorded("agent_without_secret")
    (agent,) = (each for each in body["status"]["containerStatuses"] if each["name"] == "agent")
    agent["state"]["waiting"]["message"] = f'secret "{body["metadata"]["name"]}" not found'
    verdict = judge(body, gone=False, now=taken_at(body))
    assert verdict.ended is not None
    assert (verdict.ended.reason, verdict.patience_s) == (Reason.AGENT_LOST, PULL)
    assert verdict.ended.reason.infra


def test_a_node_that_has_been_silent_for_a_while_is_named() -> None:
    body, _ = recorded("running")
    (ready,) = (each for each in body["status"]["conditions"] if each["type"] == "Ready")
    ready["status"] = "False"
    verdict = judge(body, gone=False, now=taken_at(body))
    assert (verdict.state, verdict.message, verdict.ended) == ("running", "its node does not answer", None)


def test_a_container_that_its_node_does_not_know_is_no_exit_code() -> None:
    body, _ = recorded("running")
    state = {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": "not located"}}
    for each in body["status"]["containerStatuses"]:
        each["state"] = state
    ended = judge(body, gone=False, now=taken_at(body)).ended
    assert ended is not None
    assert (ended.exit_code, ended.reason) == (None, Reason.LOST)


def test_main_waits_for_an_agent_whose_image_comes_later() -> None:
    body, _ = recorded("running")
    (agent,) = (each for each in body["status"]["containerStatuses"] if each["name"] == "agent")
    agent["state"] = {"waiting": {"reason": "ContainerCreating"}}
    assert judge(body, gone=False, now=taken_at(body)).state == "pending"


# Anything at all

WORDS = st.sampled_from(
    [
        "metadata",
        "spec",
        "status",
        "phase",
        "reason",
        "message",
        "conditions",
        "containerStatuses",
        "state",
        "waiting",
        "running",
        "terminated",
        "exitCode",
        "name",
        "main",
        "agent",
        "svc-db",
        "type",
        "PodScheduled",
        "False",
        "True",
        "DisruptionTarget",
        "PreemptionByScheduler",
        "Failed",
        "Succeeded",
        "Running",
        "Evicted",
        "ErrImagePull",
        "InvalidImageName",
        "CreateContainerConfigError",
        "deletionTimestamp",
        "uid",
        "annotations",
        "nodeName",
        "2026-11-24T15:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "OOMKilled",
        "StartError",
        "sealed;",
        "term;",
        "image",
        "startedAt",
        "finishedAt",
        "runyard.dev/ending",
        "cancelled",
        "runyard.dev/deadline-seconds",
        "nan",
    ]
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS, st.text(max_size=5))
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=6)),
    max_leaves=30,
)
PATHS = [
    *([("status",), ("metadata",), ("spec",), ("status", "containerStatuses"), ("status", "conditions")]),
    *([("status", "containerStatuses", 0), ("status", "containerStatuses", 0, "state")]),
    *([("status", "containerStatuses", 1, "state"), ("status", "phase"), ("metadata", "deletionTimestamp")]),
    *([("metadata", "annotations"), ("status", "containerStatuses", 1, "name")]),
]
NOW = datetime(2026, 11, 24, 15, tzinfo=UTC)


def must_be_sound(body: Any, *, gone: bool) -> None:
    verdict = judge(body, gone=gone, now=NOW)
    if verdict.ended is not None:
        if verdict.ended.exit_code == 0:
            assert verdict.ended.reason is None
            assert not verdict.ended.gone
        assert isinstance(verdict.ended.message, str)
    else:
        assert not gone
    kept = trim(body) if isinstance(body, dict) else {}
    main_ended(kept)
    assert isinstance(Seen(body=kept).live, bool)


@settings(max_examples=500, deadline=None)
@given(JSON, st.booleans())
@pytest.mark.promise(1)
def test_any_json_has_a_verdict(body: Any, gone: bool) -> None:
    must_be_sound(body, gone=gone)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted({*TABLE, *GOING_ON})), st.sampled_from(PATHS), JSON, st.booleans())
@pytest.mark.promise(1)
def test_a_real_status_with_anything_in_one_place_is_success_only_with_mains_zero(
    name: str, path: tuple[str | int, ...], value: Any, gone: bool
) -> None:
    body, _ = recorded(name)
    place: Any = body
    for key in path[:-1]:
        place = place[key] if isinstance(place, dict) or len(place) > int(key) else {}
    if isinstance(place, dict) or (isinstance(place, list) and len(place) > int(path[-1])):
        place[path[-1]] = value
    must_be_sound(body, gone=gone)
    ended = judge(body, gone=gone, now=NOW).ended
    if ended is not None and ended.exit_code == 0:
        mains = [e for e in body["status"]["containerStatuses"] if isinstance(e, dict) and e.get("name") == "main"]
        assert mains[0]["state"]["terminated"]["exitCode"] == 0
