"""A plan that is made of the earlier one is the plan that compiling makes, or there is none."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from restarts import Scene, file, run_step

from runyard import __version__
from runyard.errors import InvalidRequest, InvalidRunFile
from runyard.records.earlier import StoredRequest, read_request, write_request
from runyard.spec import compile_run
from runyard.spec.plan import Plan
from runyard.spec.replan import replan
from runyard.spec.restart import Earlier, TaskEnded, choose, merge
from runyard.spec.run import Restart, RunRequest, RunView
from runyard.store.posix import PosixStore

FILE = """
task_timeout_interval: 1h
docker_registries_auth:
  registry.example: {type: basic, username: u, password: {from_secret: registry.password}}
runs:
- name: everything
  environment: {LEVEL: "1", TOKEN: {from_secret: token}}
  group: /project/x
  cache_group: shared
  concurrency: 4
  timeouts: {queue: 10m}
  tasks:
  - name: build
    matrix: {arch: [amd64, arm64], exclude: [{arch: none}]}
    runtime:
      arch: "{{ matrix.arch }}"
      containers:
      - {image: golang, environment: {A: b}, volumes: [{path: /tmp/x, tmpfs: {size: 1Gi}}]}
      - {image: postgres, name: db, ready: {port: 5432}}
    environment: {LEVEL: "2", OWN: "3"}
    resources: {cpu: 500m, memory: 1Gi}
    retry: {limit: 2, on: [7, oom_killed]}
    outputs: [VERSION]
    steps:
    - clone
    - restore_cache: {keys: ["go-{{ md5sum `go.sum` }}"]}
    - {run: make, environment: {STEP: s}, timeout: 90s}
    - save_to_workspace: {contents: [{paths: ["*"]}]}
    - save_cache: {key: go, contents: [{source_dir: /go}]}
  - name: use
    depends: [build]
    runtime: {containers: [{image: alpine}]}
    environment: {V: {from_output: "build (amd64).VERSION"}}
    steps: [{restore_workspace: {dest_dir: .}}, {run: make test, when: {branch: main}}]
  - name: publish
    depends: [{task: use, conditions: [always]}]
    when: {branch: /^main$/, ref: "#pull#"}
    approval: {approvers: 2, allowed: [ann, bob]}
    keep_failed_for: 5m
    runtime: {containers: [{image: alpine}]}
    steps: [{run: make publish}]
  - name: unrelated
    ignore_failure: true
    runtime: {containers: [{image: alpine}]}
    steps: [{run: make other}]
- name: another
  tasks: [{name: only, runtime: {containers: [{image: alpine}]}, steps: [{run: make}]}]
"""
BASE = {
    "file": FILE,
    "run": "everything",
    "source": {"branch": "main", "commit": "1" * 40},
    "environment": {"LEVEL": "4"},
    "static_environment": {"FIXED": "5"},
    "annotations": {"note": "first"},
    "owner": "ann",
}


def ended(**changed: object) -> Earlier:
    """A run of that file as the store has it, itself a restart that kept what it could."""
    request = RunRequest.model_validate({**BASE, **changed})
    first = compile_run(request, run_id="first", execution_id="of first")
    ends = {task.name: TaskEnded(status="success", attempt=1) for task in first.tasks}
    result = RunView(id="second", result="failed")
    before = Earlier(request=request, plan=first, result=result, ends=ends)
    again = request.model_copy(update={"restart": Restart(run="first")})
    planned = compile_run(again, run_id="second", execution_id="of second")
    kept = choose(planned, before, environments=[{}, {}], tasks=["publish"]).apply(planned)
    assert any(task.kept for task in kept.tasks)
    assert any(task.again for task in kept.tasks)
    stored = Plan.model_validate_json(kept.model_dump_json())
    return Earlier(request=again, plan=stored, result=result, ends=ends)


def both(earlier: Earlier, **given: object) -> tuple[Plan | None, Plan]:
    """Made of the earlier plan, and compiled."""
    request = merge(RunRequest.model_validate({"restart": {"run": "second"}, **given}), earlier)
    ids = {"run_id": "third", "execution_id": "of third"}
    return replan(earlier, request, **ids), compile_run(request, **ids)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"environment": {"LEVEL": "5"}},
        {"environment": {"LEVEL": "5", "OWN": "6", "NEW": "7", "TOKEN": "8", "FIXED": "9"}},
        {"annotations": {"note": "second"}, "executor": "kubernetes", "owner": "bob", "priority": 1, "window": 7},
        {"trigger": "nightly", "traceparent": f"00-{'1' * 32}-{'2' * 16}-01"},
        {"file": FILE},
    ],
)
def test_it_is_what_compiling_makes(given: dict[str, object]) -> None:
    made, compiled = both(ended(), **given)
    assert made == compiled


@pytest.mark.parametrize(
    "given",
    [
        {"environment": {}},  # LEVEL is the file's again
        {"environment": {"OTHER": "1"}},
        {"annotations": {"pull_request_id": "7"}},
        {"annotations": {"ref_type": "tag"}},
        {"file": FILE.replace("make other", "make another")},
        {"file_name": "other.yml"},
        {"run": "another"},
        {"tasks": ["unrelated"]},
        {"group": "/project/y"},
        {"cache_read_only": True},
        {"project": "x"},
    ],
)
def test_what_another_plan_may_come_of_is_compiled(given: dict[str, object]) -> None:
    assert both(ended(), **given)[0] is None


def test_what_came_from_elsewhere_is_compiled() -> None:
    earlier = ended()
    assert earlier.plan.run.made_by == __version__
    older = earlier.plan.model_copy(update={"run": earlier.plan.run.model_copy(update={"made_by": "0.0.1"})})
    assert both(Earlier(request=earlier.request, plan=older, result=earlier.result))[0] is None
    imported = RunView.model_validate({"id": "second", "imported_at": "2026-01-01T00:00:00Z"})
    assert both(Earlier(request=earlier.request, plan=earlier.plan, result=imported))[0] is None


def test_variables_are_judged_as_ever() -> None:
    for name, value in (("A-B", "1"), ("A", "\0")):
        with pytest.raises(InvalidRequest):
            replan(
                ended(), ended().request.model_copy(update={"environment": {"LEVEL": "", name: value}}),
                run_id="third", execution_id="of third",
            )  # fmt: skip
    with pytest.raises(InvalidRequest, match="characters of variables"):
        both(ended(), environment={"LEVEL": "x" * (60 << 20)})


WORDS = st.sampled_from(["", "1", "main", "pull"])
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "environment": st.dictionaries(st.sampled_from(["LEVEL", "OWN", "NEW"]), WORDS),
    "annotations": st.dictionaries(st.sampled_from(["note", "ref_type", "pull_request_id"]), WORDS),
    "owner": WORDS,
    "project": WORDS,
    "executor": WORDS,
    "priority": st.integers(1, 5),
    "group": st.sampled_from(["", "/project/x"]),
    "group_policy": st.sampled_from(["", "parallel: 2"]),
    "cache_group": WORDS,
    "cache_fallback": WORDS,
    "cache_read_only": st.booleans(),
    "tasks": st.lists(st.sampled_from(["build", "use", "unrelated"]), max_size=2),
    "window": st.integers(1, 1_000),
}
SOME = st.fixed_dictionaries({}, optional=FIELDS)


@settings(deadline=None, max_examples=50)
@given(SOME, SOME)
def test_whatever_is_given_there_is_no_other_plan(before: dict[str, object], given: dict[str, object]) -> None:
    source = {"source": {"tag": "v1"}} if before.get("project") else {}
    earlier = _earlier(**before, **source)
    made, compiled = both(earlier, **given)
    assert made in (None, compiled)


def _earlier(**changed: object) -> Earlier:
    request = RunRequest.model_validate({**BASE, **changed})
    plan = compile_run(request, run_id="second", execution_id="of second")
    return Earlier(request=request, plan=plan, result=None)


async def test_a_restart_does_not_read_the_file_again(scene: Scene, store: PosixStore) -> None:
    tasks = [scene.task("a"), scene.task("b", run_step("test $LEVEL = 2"), depends=["a"])]
    first = await scene.runs.start(file(*tasks, environment={"LEVEL": "0"}), environment={"LEVEL": "1"})
    assert (await first.result()).result == "failed"
    stored = await read_request(store, first.id)
    spoilt = stored.request.model_copy(update={"file": "no run file"})
    await write_request(store, first.id, StoredRequest(execution_id=stored.execution_id, request=spoilt))
    again = await scene.runs.restart(first.id, environment={"LEVEL": "2"})
    assert (await again.result()).result == "success"
    assert scene.ran() == ["a", "b", "b"]
    without = await scene.runs.restart(first.id, environment={})
    with pytest.raises(InvalidRunFile):
        await without.result()
