"""From a request and its file to a plan."""

import hashlib
import sys
from typing import Any

import pytest

from runyard import __version__
from runyard.errors import InvalidRequest, InvalidRunFile
from runyard.spec import compile_run, graph_task, is_skipped, lint, outputs_of, task_id
from runyard.spec.plan import Approval, FromOutput, FromSecret, Plan, RunPlan, RunStep, Source, TaskPlan
from runyard.spec.run import RunRequest

RUNTIME: dict[str, Any] = {"containers": [{"image": "x"}]}


def plan(file: dict[str, Any] | str, **request: Any) -> Plan:
    return compile_run(RunRequest(file=file, **request), run_id="run", execution_id="exec")


def one_task(**task: Any) -> TaskPlan:
    return plan({"runs": [{"name": "r", "tasks": [{"name": "t", "runtime": RUNTIME, **task}]}]}).tasks[0]


def graph(depends: dict[str, list[str]], **request: Any) -> Plan:
    tasks = [{"name": name, "runtime": RUNTIME, "depends": parents} for name, parents in depends.items()]
    return plan({"runs": [{"name": "r", "tasks": tasks}]}, **request)


def test_defaults() -> None:
    task = one_task()
    assert task == TaskPlan(
        id=task_id("run", "exec", "t"),
        name="t",
        containers=task.containers,
        working_dir="~/project",
        shell="/bin/sh -e",
    )
    assert task.timeouts.pending_s == 300
    assert task.timeouts.run_s is None


def test_ids_are_fixed_for_run_execution_and_name() -> None:
    digest = hashlib.sha256("run/exec/tést 😀".encode()).digest()
    bits = f"{int.from_bytes(digest):0256b}"
    expected = "".join("abcdefghijklmnopqrstuvwxyz234567"[int(bits[at : at + 5], 2)] for at in range(0, 100, 5))
    assert one_task(name="tést 😀").id == expected
    assert one_task(name="other").id != expected
    assert task_id("run", "exec2", "tést 😀") != expected


def test_parents_come_first_and_levels_are_the_longest_paths() -> None:
    tasks = graph({"d": ["b", "c"], "c": ["a"], "b": [], "a": [], "e": ["a", "d"]}).tasks
    assert [(task.name, task.level) for task in tasks] == [("b", 0), ("a", 0), ("c", 1), ("d", 2), ("e", 3)]


def test_an_order_that_is_right_stays() -> None:
    depends = {"a": [], "b": ["a"], "c": [], "d": ["b"], "e": ["c"]}
    assert [task.name for task in graph(depends).tasks] == list(depends)


def test_a_dependency_that_another_one_implies_is_accepted() -> None:
    assert graph({"a": [], "b": ["a"], "c": ["a", "b"]}).tasks[2].depends.keys() == {"a", "b"}


def test_chosen_tasks_bring_what_they_need() -> None:
    depends = {"a": [], "b": ["a"], "c": ["b"], "d": [], "e": ["d"]}
    assert [task.name for task in graph(depends, tasks=["b", "d"]).tasks] == ["a", "b", "d"]
    with pytest.raises(InvalidRequest, match="has no task `ff`"):
        graph(depends, tasks=["ff"])


def test_a_long_chain_needs_no_deep_stack() -> None:
    depends = {f"t{n}": [f"t{n + 1}"] for n in range(3 * sys.getrecursionlimit())} | {
        f"t{3 * sys.getrecursionlimit()}": []
    }
    tasks = graph(depends).tasks
    assert tasks[-1].name == "t0"
    assert tasks[-1].level == 3 * sys.getrecursionlimit()


@pytest.mark.parametrize(
    "spelled",
    [
        ["a", {"b": ["on_failure"]}],
        [{"a": []}, {"b": "on_failure"}],
        [{"task": "a"}, {"task": "b", "conditions": ["on_failure"]}],
        [{"a": None}, {"task": "b", "conditions": ["on_failure", "on_failure"]}],
    ],
)
def test_every_spelling_of_depends(spelled: list[Any]) -> None:
    tasks = [{"name": name, "runtime": RUNTIME} for name in "ab"] + [
        {"name": "c", "runtime": RUNTIME, "depends": spelled}
    ]
    assert plan({"runs": [{"name": "r", "tasks": tasks}]}).tasks[2].depends == {
        "a": ["on_success"],
        "b": ["on_failure"],
    }


def test_depending_on_a_task_of_the_name_task() -> None:
    tasks = [
        {"name": "task", "runtime": RUNTIME},
        {"name": "b", "runtime": RUNTIME, "depends": [{"task": ["on_failure"]}]},
        {"name": "c", "runtime": RUNTIME, "depends": [{"task": "always"}]},
        {"name": "d", "runtime": RUNTIME, "depends": "task"},
    ]
    assert [task.depends for task in plan({"runs": [{"name": "r", "tasks": tasks}]}).tasks[1:]] == [
        {"task": ["on_failure"]},
        {"task": ["always"]},
        {"task": ["on_success"]},
    ]


@pytest.mark.parametrize(
    "spelled",
    [
        {"type": "run", "command": "make x", "environment": {"A": "1"}},
        {"run": {"command": "make x", "environment": {"A": "1"}}},
        {"run": "make x", "environment": {"A": "1"}},
    ],
)
def test_every_spelling_of_run(spelled: dict[str, Any]) -> None:
    assert one_task(steps=[spelled]).steps == [RunStep(name="make x", command="make x", environment={"A": "1"})]


@pytest.mark.parametrize("spelled", ["clone", {"clone": None}, {"clone": {}}, {"type": "clone"}])
def test_every_spelling_of_clone(spelled: Any) -> None:
    (step,) = one_task(steps=[spelled]).steps
    assert step.type == "clone"


def test_the_name_of_a_run_step_is_its_first_line() -> None:
    steps = one_task(steps=[{"run": "\n\n  " + "x" * 120 + "\necho"}, {"run": "a\nb", "name": "mine"}]).steps
    assert [step.name for step in steps] == ["x" * 100, "mine"]


def test_conditions_of_steps() -> None:
    steps = [
        {"run": "a", "when": "always"},
        {"run": "b", "when": {"status": "on_failure", "branch": "main"}},
        {"run": "c", "when": {"branch": "dev"}},
        {"clone": {"when": {"tag": "/./"}}},
    ]
    file = {"runs": [{"name": "r", "tasks": [{"name": "t", "runtime": RUNTIME, "steps": steps}]}]}
    made = plan(file, source=Source(branch="main")).tasks[0].steps
    assert [(step.when, step.skip) for step in made] == [
        ("always", False),
        ("on_failure", False),
        ("on_success", True),
        ("on_success", True),
    ]


def test_variables_from_the_weakest_to_the_strongest() -> None:
    task = {
        "name": "t",
        "runtime": {"containers": [{"image": "x", "environment": {"C": "container"}}]},
        "environment": {"B": "task", "C": "task", "D": "task", "S": {"from_variable": "s"}},
        "steps": [{"run": "x", "environment": {"D": "step"}}],
    }
    file = {"runs": [{"name": "r", "environment": {"A": "run", "B": "run", "D": "run"}, "tasks": [task]}]}
    made = plan(file, static_environment={"C": "static", "D": "static"}, environment={"D": "request"})
    assert made.tasks[0].environment == {
        "A": "run",
        "B": "task",
        "C": "static",
        "D": "request",
        "S": FromSecret(from_secret="s"),
    }
    assert made.tasks[0].containers[0].environment == {"C": "container"}
    assert isinstance(step := made.tasks[0].steps[0], RunStep)
    assert step.environment == {"D": "step"}
    assert made.run.static_environment == {"C": "static", "D": "static"}


def test_registries_and_timeouts_are_inherited() -> None:
    def auth(user: str) -> dict[str, Any]:
        return {"username": user, "password": {"from_secret": "p"}}

    file = {
        "docker_registries_auth": {"one": auth("file"), "two": auth("file"), "three": auth("file")},
        "task_timeout_interval": "1h",
        "timeouts": {"queue": "1m", "step": "10s", "pending": "2m"},
        "runs": [
            {
                "name": "r",
                "docker_registries_auth": {"two": auth("run"), "three": auth("run")},
                "timeouts": {"run": "30m", "step": "0"},
                "tasks": [
                    {
                        "name": "t",
                        "runtime": RUNTIME,
                        "docker_registries_auth": {"three": {"type": "encodedauth", "auth": "eA=="}},
                        "task_timeout_interval": 90_000_000_000,
                    },
                    {"name": "u", "runtime": RUNTIME, "timeouts": {"pending": "0"}},
                ],
            }
        ],
    }
    first, second = plan(file).tasks
    assert {name: (each.type, each.username) for name, each in first.registries.items()} == {
        "one": ("basic", "file"),
        "two": ("basic", "run"),
        "three": ("encodedauth", ""),
    }
    assert first.timeouts.model_dump() == {"queue_s": 60, "pending_s": 120, "run_s": 90, "step_s": None}
    assert second.timeouts.model_dump() == {"queue_s": 60, "pending_s": None, "run_s": 1800, "step_s": None}


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1h30m", 5400),
        ("90s", 90),
        ("500ms", 0.5),
        ("1.5m", 90),
        ("2us", 2e-6),
        ("1m30.5s", 90.5),
        (60_000_000_000, 60),
    ],
)
def test_durations(written: str | int, seconds: float) -> None:
    assert one_task(timeouts={"run": written}).timeouts.run_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("written", "amount"),
    [("512Mi", 512 << 20), ("1G", 10**9), ("1.5Gi", 3 << 29), ("100k", 100_000), (4096, 4096), ("1e6", 10**6)],
)
def test_sizes(written: str | int, amount: int) -> None:
    assert one_task(resources={"memory": written}).resources.memory_bytes == amount


@pytest.mark.parametrize(("written", "cores"), [("500m", 0.5), (2, 2), ("1.5", 1.5), (0.25, 0.25)])
def test_cores(written: str | float, cores: float) -> None:
    assert one_task(resources={"cpu": written}).resources.cpu == cores


def test_everything_of_a_task() -> None:
    task = one_task(
        runtime={
            "type": "pod",
            "arch": "arm64",
            "containers": [
                {"image": "main", "user": "1000", "privileged": True, "entrypoint": "/bin/x  -a b"},
                {
                    "name": "db",
                    "image": "postgres",
                    "volumes": [{"path": "/data", "tmpfs": {"size": "1Gi"}}, {"path": "/x", "tmpfs": None}],
                    "ready": {"port": 5432, "timeout": "10s"},
                },
            ],
        },
        working_dir="/src",
        shell="/bin/bash",
        user="me",
        ignore_failure=True,
        approval={"approvers": 2, "allowed": ["ann", "bob"], "expires": "24h"},
        retry={
            "limit": 3,
            "backoff": {"initial": "10s", "factor": 1, "max": "1m"},
            "on": [137, "lost"],
            "infra": 1,
        },
        resources={"disk": "10G"},
        keep_failed_for="5m",
        pod={"node_selector": {"gpu": "yes"}, "tolerations": [{"key": "x", "operator": "Exists"}]},
    )
    assert task.arch == "arm64"
    assert task.containers[0].entrypoint == ["/bin/x", "-a", "b"]
    assert [(volume.path, volume.size_bytes) for volume in task.containers[1].volumes] == [
        ("/data", 1 << 30),
        ("/x", None),
    ]
    assert task.containers[1].ready is not None
    assert (task.containers[1].ready.port, task.containers[1].ready.timeout_s) == (5432, 10)
    assert task.approval == Approval(approvers=2, allowed=["ann", "bob"], expires_s=86_400)
    assert task.retry.model_dump() == {
        "limit": 3,
        "backoff_s": 10,
        "backoff_factor": 1,
        "backoff_max_s": 60,
        "on": [137, "lost"],
        "infra": 1,
    }
    assert task.keep_failed_for_s == 300
    assert task.pod == {
        "node_selector": {"gpu": "yes"},
        "tolerations": [{"key": "x", "operator": "Exists"}],
    }
    assert (task.working_dir, task.shell, task.user, task.ignore_failure) == ("/src", "/bin/bash", "me", True)


def test_short_forms() -> None:
    assert one_task(retry=2).retry.limit == 2
    assert one_task(retry={"backoff": "1s", "on": "lost"}).retry.backoff_s == 1
    assert one_task(approval=True).approval == Approval()
    assert one_task(approval=False).approval is None


def test_the_run_of_the_plan() -> None:
    run = {
        "name": "r",
        "group": "/g/web",
        "cache_group": "shared",
        "timeout": "2h",
        "concurrency": 4,
        "fail_fast": True,
        "on_failure": "hold",
        "tasks": [{"name": "t", "runtime": RUNTIME}],
    }
    made = plan({"runs": [run]}, project="p", executor="docker", annotations={"k": "v"}).run
    assert made == RunPlan(
        run_id="run",
        execution_id="exec",
        made_by=__version__,
        name="r",
        group="/g/web",
        project="p",
        cache_group="shared",
        annotations={"k": "v"},
        executor="docker",
        concurrency=4,
        timeout_s=7200,
        fail_fast=True,
        hold_failed=True,
    )
    asked = plan({"runs": [run]}, group="/other/web", cache_group="mine").run
    assert (asked.group, asked.cache_group) == ("/other/web", "mine")
    del run["cache_group"]
    assert plan({"runs": [run]}, project="p").run.cache_group == "p"


def test_choosing_the_run() -> None:
    tasks = [{"name": "t", "runtime": RUNTIME}]
    file = {"runs": [{"name": "build", "tasks": tasks}, {"name": "deploy", "tasks": tasks}]}
    assert plan(file, run="deploy").run.name == "deploy"
    with pytest.raises(InvalidRequest, match="several runs, name one: build, deploy"):
        plan(file)
    with pytest.raises(InvalidRequest, match="no run `deplo`") as caught:
        plan(file, run="deplo")
    assert caught.value.remedy == "did you mean `deploy`?"


def test_a_mistake_in_another_run_counts() -> None:
    tasks = [{"name": "t", "runtime": RUNTIME}]
    with pytest.raises(InvalidRunFile, match=r"\$.runs\[1\]: a run needs a list `tasks`"):
        plan({"runs": [{"name": "a", "tasks": tasks}, {"name": "b"}]}, run="a")


def test_ci_skip_makes_no_tasks() -> None:
    assert is_skipped("fix: typo [ci skip]\n")
    assert not is_skipped("fix: ci skip")
    assert plan("this: is not even a run file", message="docs [ci skip]").tasks == []


@pytest.mark.parametrize("environment", [{"A-B": "x"}, {"": "x"}, {"1A": "x"}, {"A": "x\0y"}, {"A=B": ""}])
def test_variables_of_the_request_are_judged(environment: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="variable"):
        graph({"a": []}, environment=environment)


def test_variables_that_every_task_would_repeat_are_bounded() -> None:
    with pytest.raises(InvalidRequest, match="are too much"):
        graph({f"t{n}": [] for n in range(1_000)}, environment={"A": "x" * 400_000})


def test_what_the_workflow_is_told() -> None:
    tasks = [
        {"name": "a.b", "runtime": RUNTIME},
        {"name": "c", "runtime": RUNTIME, "depends": ["a.b"]},
        {
            "name": "d",
            "runtime": {
                "containers": [{"image": "first", "environment": {"X": {"from_output": "c.X"}}}, {"image": "y"}]
            },
            "depends": ["c"],
            "environment": {"Y": {"from_output": "a.b.Y"}},
            "steps": [{"run": "x", "environment": {"Z": {"from_output": "c.Z"}}}],
            "approval": True,
            "ignore_failure": True,
            "retry": {"infra": 1},
            "keep_failed_for": "1m",
        },
    ]
    first, _, last = plan({"runs": [{"name": "r", "tasks": tasks}]}).tasks
    assert last.environment["Y"] == FromOutput(from_output="a.b.Y")
    assert outputs_of(last) == ["a.b", "c"]
    told = graph_task(last, (7, 8))
    assert told.model_dump(exclude_defaults=True) == {
        "name": "d",
        "depends": {"c": ["on_success"]},
        "ignore_failure": True,
        "approval": {},
        "retry": {"infra": 1},
        "image": "first",
        "outputs_of": ["a.b", "c"],
        "keep_failed_for_s": 60,
        "at": (7, 8),
    }
    assert graph_task(first, (0, 1)).retry is None
    assert told.model_fields_set == set(told.model_dump(exclude_defaults=True)), "what says nothing is not sent"


def test_agolas_own_words_are_taken() -> None:
    file = """
    docker_registries_auth:
      index.docker.io: {type: basic, username: {from_variable: user}, password: {from_variable: pw}}
    task_timeout_interval: 3600000000000
    runs:
      - name: run01
        when: {branch: [main, '#feature/.*#'], tag: {include: '/v.*/', exclude: v0}}
        tasks:
          - name: build go 1.22
            runtime:
              type: pod
              arch: amd64
              containers:
                - image: golang:1.22
                  volumes: [{path: /mnt/tmpfs, tmpfs: {size: 1Gi}}]
            working_dir: /go/src/github.com/x/y
            environment: {GO111MODULE: "on", TOKEN: {from_variable: token}}
            shell: /bin/bash
            user: root
            steps:
              - clone: {depth: 1, recurse_submodules: true}
              - restore_cache: {keys: ['go-{{ md5sum "go.sum" }}', go-], dest_dir: /go/pkg/mod/cache}
              - type: run
                name: tests
                command: |
                  make
                  make test
                tty: false
              - run: {command: ./bin/x}
              - save_cache: {key: 'go-{{ md5sum "go.sum" }}', contents: [{source_dir: /go/pkg/mod/cache}]}
              - save_to_workspace: {contents: [{source_dir: ./bin, dest_dir: /bin/, paths: ['*']}]}
          - name: deploy
            runtime: {containers: [{image: alpine}]}
            steps: [{restore_workspace: {dest_dir: .}}, run: ls]
            depends: [{task: build go 1.22, conditions: [on_success]}]
            approval: true
            ignore_failure: false
    """
    first, second = plan(file, source=Source(branch="main")).tasks
    assert not first.skip
    assert first.timeouts.run_s == 3600
    assert first.registries["index.docker.io"].username == FromSecret(from_secret="user")
    assert first.environment["GO111MODULE"] == "on"
    save = first.steps[5]
    assert save.type == "save_to_workspace"
    assert save.contents[0].dest_dir == "bin"
    assert second.depends == {"build go 1.22": ["on_success"]}


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            "save_cache: {key: 'go-{{ md5sum go.sum }}', contents: []}",
            "`md5sum go.sum` is not known in a cache key",
        ),
        ("restore_cache: {keys: ['a', '{{ checksum \"x\" }}']}", '`checksum "x"` is not known in a cache key'),
        ("restore_cache: {keys: '{{ os \"x\" }}'}", '`os "x"` is not known'),
        ("restore_cache: {keys: ['{{ os }}-{{- sha256sum `a b` -}}-{{ env \"X\" }}-{{year}}']}", ""),
        ("save_to_workspace: {contents: [{paths: ['a\\[b', 'c\\{d']}]}", ""),
        ("save_to_workspace: {contents: [{paths: ['a[b']}]}", "a bracket of this pattern is not closed"),
    ],
)
def test_keys_and_patterns_that_no_agent_could_read(step: str, words: str) -> None:
    """A cache that cannot be is said to a log and fails nothing: nobody would find out."""
    runtime = "runtime: {containers: [{image: x}]}"
    text = f"runs: [{{name: r, tasks: [{{name: t, {runtime}, steps: [{{{step}}}]}}]}}]"
    said = " ".join(map(str, lint(text, name="f")))
    assert words in said if words else said == ""
