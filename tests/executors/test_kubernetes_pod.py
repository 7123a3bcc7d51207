"""What a launch becomes: manifests, compared with what they have to be, word for word where it matters."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from yards import launch

from runyard.errors import ConfigError, StartError
from runyard.executors.base import Launch
from runyard.executors.kubernetes import folders, names
from runyard.executors.kubernetes.pod import Rules, build_pod, build_secret, literal, refusals, remarks, secret_of
from runyard.executors.kubernetes.template import load_template, merge
from runyard.spec import compile_run
from runyard.spec.plan import (
    CloneStep,
    Container,
    Content,
    FromSecret,
    Readiness,
    RegistryAuth,
    Resources,
    RestoreWorkspaceStep,
    RunStep,
    SaveCacheStep,
    SaveToWorkspaceStep,
    TaskPlan,
    Timeouts,
    Volume,
)
from runyard.spec.run import RunRequest

RULES = Rules(agent_image="runyard/agent:1", agent_command=["agent"])
GOLDEN = Path(__file__).with_name("kubernetes_pod.json")


def asked(**task: Any) -> Launch:
    more = {key: task.pop(key) for key in ("environment", "secrets", "deadline_s", "grace_s") if key in task}
    plain = launch(Path("/logs"), name="pod", **more)
    environment = {key: value for key, value in plain.environment.items() if key != "STEP"}
    containers = task.pop("containers", [Container(image="alpine:3")])
    update = {"task": plain.task.model_copy(update={"containers": containers, **task})}
    return plain.model_copy(update={**update, "environment": environment, "script": "echo $HOME"})


def container(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (each for each in manifest["spec"]["containers"] if each["name"] == name)
    return found


def mounts(manifest: dict[str, Any], name: str) -> dict[str, str]:
    return {each["mountPath"]: each["name"] for each in container(manifest, name)["volumeMounts"]}


def build(rules: Rules = RULES, **task: Any) -> dict[str, Any]:
    return build_pod(asked(**task), rules, process="p")


def meets_in_memory(manifest: dict[str, Any]) -> bool:
    folders_ = {
        variable["value"]
        for each in manifest["spec"]["containers"]
        for variable in each["env"]
        if variable["name"] == "RUNYARD_DIR"
    }
    (folder,) = folders_  # main and agent, at the same place
    in_memory: bool = folder.startswith("/dev/shm/")
    assert in_memory == (not manifest["spec"]["volumes"])
    if not in_memory:
        assert folder in mounts(manifest, "main")
        assert folder in mounts(manifest, "agent")
    return in_memory


def test_a_small_pod_word_for_word() -> None:
    """After a wanted change: write what it says into the file, and read it."""
    made = build(environment={"A": "$(B) $$"}, deadline_s=60, steps=[SaveToWorkspaceStep(contents=[])])
    assert json.loads(json.dumps(made)) == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize(("written", "needed"), [("a", "a"), ("$", "$$"), ("$(A)$$", "$$(A)$$$$"), ("", "")])
def test_dollars_are_doubled(written: str, needed: str) -> None:
    assert literal(written) == needed


def test_no_secret_and_no_assignment_is_in_the_pod() -> None:
    made = build(environment={"TOKEN": FromSecret(from_secret="deploy")}, secrets={"_S": "NPM_TOKEN"})
    text = json.dumps(made)
    assert '"run_id"' not in text
    for name in ("main", "agent"):
        variables = {each["name"]: each for each in container(made, name)["env"]}
        assert variables["TOKEN"]["valueFrom"]["secretKeyRef"] == {
            "name": "deploy",
            "key": "value",
            "optional": False,
        }
        assert variables["_S"]["valueFrom"]["secretKeyRef"]["name"] == "npm-token"
    assert not any(each["name"] == "RUNYARD_ASSIGNMENT" for each in container(made, "main")["env"])


def test_the_secret_belongs_to_the_pod_and_holds_what_it_must() -> None:
    secret = build_secret(asked(), "uid")
    assert secret["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "pod", "uid": "uid"}
    ]
    assert list(secret["data"]) == [names.ASSIGNMENT_KEY]
    assert json.loads(base64.b64decode(secret["data"][names.ASSIGNMENT_KEY]))["run_id"] == "run"
    with_auth = build_secret(asked(), "uid", auths={"r": {"auth": "x"}})
    assert with_auth["type"] == "kubernetes.io/dockerconfigjson"


def test_what_is_long_comes_as_a_file_that_only_its_reader_sees() -> None:
    long = asked().model_copy(update={"script": "#" * 200_000})
    made, secret = build_pod(long, RULES, process="p"), build_secret(long, "uid")
    assert container(made, "main")["command"] == ["/bin/sh", "/runyard/letters/script/letter"]
    assert mounts(made, "main")["/runyard/letters/script"] == "script"
    assert "script" not in mounts(made, "agent").values()
    assert base64.b64decode(secret["data"]["script"]) == long.script.encode()
    with pytest.raises(StartError):
        build_secret(asked().model_copy(update={"script": "#" * (1 << 20)}), "uid")


@pytest.mark.parametrize(
    ("name", "pattern", "found"),
    [
        ("token", "{name}/value", ("token", "value")),
        ("NPM_TOKEN", "{name}/value", ("npm-token", "value")),
        ("npm/key", "{name}/value", ("npm", "key")),
        ("NPM_TOKEN", "ci-secrets/{name}", ("ci-secrets", "NPM_TOKEN")),
        ("npm", "team-{name}", ("team-npm", "value")),
    ],
)
def test_which_secret_a_name_means(name: str, pattern: str, found: tuple[str, str]) -> None:
    assert secret_of(name, pattern) == found


def test_a_task_whose_files_the_agent_never_sees_has_no_volume_to_wait_for() -> None:
    made = build(user="root", pod={"labels": {"a": "b"}}, resources=Resources(memory_bytes=1 << 30))
    assert meets_in_memory(made)
    variables = {each["name"]: each.get("value") for each in container(made, "main")["env"]}
    assert variables["HOME"] == "/home/runyard"
    assert variables["RUNYARD_HOME"] == "/tmp/runyard"
    chosen = build(environment={"HOME": "/home/somebody"})
    assert "RUNYARD_HOME" not in {each["name"] for each in container(chosen, "main")["env"]}


@pytest.mark.parametrize(
    "task",
    [
        {"steps": [CloneStep()]},
        {"steps": [RunStep(command="make"), SaveToWorkspaceStep(contents=[])]},
        {"user": "1000"},  # it could not make its home
        {"containers": [Container(image="a", user="1000:0")]},
        {"containers": [Container(image="a"), Container(image="b")]},  # a service would see the dialogue
        {"containers": [Container(image="a", volumes=[Volume(path="/dev/shm")])]},
        {"pod": {"runtime_class": "gvisor"}},
    ],
)
def test_other_tasks_meet_in_volumes(task: dict[str, Any]) -> None:
    assert not meets_in_memory(build(**task))


@pytest.mark.parametrize(
    "spec",
    [
        {"hostIPC": True},
        {"runtimeClassName": "kata"},
        {"volumes": [{"name": "more", "emptyDir": {}}]},
        {"securityContext": {"runAsUser": 1000}},
        {"containers": [{"name": "main", "securityContext": {"runAsUser": 1000}}]},
        {"containers": [{"name": "main", "securityContext": {"readOnlyRootFilesystem": True}}]},
        {"containers": [{"name": "agent", "securityContext": {"readOnlyRootFilesystem": True}}]},
    ],
)
def test_a_template_may_make_volumes_needed(spec: dict[str, Any]) -> None:
    template = {"spec": spec}
    assert not meets_in_memory(build(Rules(agent_image="a", agent_command=["a"], template=template)))


def test_one_uid_meets_in_volumes() -> None:
    assert not meets_in_memory(build(Rules(agent_image="a", agent_command=["a"], one_uid=1234)))


def test_users_and_security() -> None:
    plain = container(build(), "main")["securityContext"]
    assert plain == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    made = build(user="1000:2000")
    assert container(made, "main")["securityContext"]["runAsGroup"] == 2000
    assert container(made, "agent")["securityContext"]["runAsUser"] == 0
    assert container(build(user="root"), "main")["securityContext"]["runAsUser"] == 0
    one = build(Rules(agent_image="a", agent_command=["a"], one_uid=1234), user="1000")
    assert one["spec"]["securityContext"]["runAsNonRoot"] is True
    assert one["spec"]["securityContext"]["fsGroup"] == 1234
    for each in one["spec"]["containers"]:
        assert each["securityContext"] == plain


def test_resources_arch_and_deadline() -> None:
    made = build(
        resources=Resources(cpu=0.5, memory_bytes=1 << 30, disk_bytes=5),
        arch="arm64",
        deadline_s=100,
        timeouts=Timeouts(pending_s=60),
        grace_s=7.5,
    )
    amounts = {"cpu": "500m", "memory": "1073741824", "ephemeral-storage": "5"}
    assert container(made, "main")["resources"] == {"requests": amounts, "limits": amounts}
    assert made["spec"]["nodeSelector"] == {"kubernetes.io/arch": "arm64"}
    assert made["spec"]["activeDeadlineSeconds"] == 288
    assert made["spec"]["terminationGracePeriodSeconds"] == 28
    assert build()["spec"]["activeDeadlineSeconds"] == 7 * 24 * 3600


def test_services_and_tmpfs() -> None:
    db = Container(
        name="My DB",
        image="postgres",
        environment={"P": FromSecret(from_secret="db"), "X": "$x"},
        entrypoint=["run", "$(A)"],
        volumes=[Volume(path="/data", size_bytes=1 << 20)],
    )
    made = build(containers=[Container(image="a", volumes=[Volume(path="/tmp")]), db, Container(image="redis")])
    service = container(made, "svc-my-db")
    assert service["command"] == ["run", "$$(A)"]
    assert service["env"][1] == {"name": "X", "value": "$$x"}
    assert container(made, "svc-2")["image"] == "redis"
    volumes = {each["name"]: each for each in made["spec"]["volumes"]}
    assert volumes["tmpfs-1-0"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "1048576"}
    assert volumes["tmpfs-0-0"]["emptyDir"] == {"medium": "Memory"}
    assert mounts(made, "svc-my-db") == {"/data": "tmpfs-1-0"}


def test_long_names_and_odd_ids_are_labels() -> None:
    odd = asked().model_copy(update={"run_id": "/project/web/branch/main run #7"})
    made = build_pod(odd, RULES, process="p")
    assert made["metadata"]["annotations"][names.RUN_ID] == odd.run_id
    label = made["metadata"]["labels"][names.RUN]
    assert names.label_value(label) == label
    assert names.label_value("x" * 64) != names.label_value("x" * 65)
    assert names.label_value("a.b-c_1") == "a.b-c_1"


# Folders

SAVE = SaveToWorkspaceStep(contents=[Content(source_dir="/data/out"), Content(source_dir="~/x"), Content()])


@pytest.mark.parametrize(
    ("task", "found"),
    [
        ({}, []),
        ({"working_dir": "/src"}, []),  # nobody but main works there
        ({"working_dir": "/src", "steps": [CloneStep()]}, ["/src"]),
        ({"steps": [SAVE]}, ["/data/out"]),
        ({"steps": [SAVE, RestoreWorkspaceStep(dest_dir="/data")]}, ["/data"]),
        ({"steps": [SAVE.model_copy(update={"skip": True})]}, []),
        ({"steps": [SaveCacheStep(key="k", contents=[Content(source_dir="/home/runyard/.cache")])]}, []),
        ({"environment": {"HOME": "/root"}, "steps": [CloneStep()]}, ["/root"]),
        ({"environment": {"HOME": "/root"}}, []),
    ],
)
def test_folders_that_both_must_see(task: dict[str, Any], found: list[str]) -> None:
    plan = TaskPlan(id="i", name="t", containers=[Container(image="a")], **task)
    assert folders.shared(plan) == found
    made = build_pod(asked().model_copy(update={"task": plan}), RULES, process="p")
    if meets_in_memory(made):
        return
    for name in ("main", "agent"):
        there = mounts(made, name)
        assert [path for path, volume in there.items() if volume.startswith("work")] == [folders.HOME, *found]
        assert len(set(there.values())) == len(there)


@pytest.mark.parametrize("folder", ["/", "/usr/bin", "/etc", "/runyard", "/var", "/home", "/bin"])
def test_folders_of_the_image_are_not_hidden(folder: str) -> None:
    task = asked(steps=[RestoreWorkspaceStep(dest_dir=folder)]).task
    assert "would hide what the image has there" in "".join(refusals(task, RULES))


@pytest.mark.parametrize(
    "task",
    [
        {"working_dir": "build", "steps": [CloneStep()]},  # below the image's own folder
        {"steps": [RestoreWorkspaceStep(dest_dir="~/../../usr/local/bin")]},
        {"steps": [RestoreWorkspaceStep(dest_dir="../../../opt/x")]},
        {"steps": [SaveToWorkspaceStep(contents=[Content(source_dir="../../other")])]},
    ],
)
def test_folders_of_the_agents_own_container_are_refused(task: dict[str, Any]) -> None:
    assert "nowhere that main and the agent share" in "".join(refusals(asked(**task).task, RULES))


def test_folders_that_both_see_are_not_refused() -> None:
    for folder in ("x", "./x", "../x", "~", "~/x", "/srv/app", "/home/runyard/x"):
        assert refusals(asked(steps=[RestoreWorkspaceStep(dest_dir=folder)]).task, RULES) == []


def test_the_agent_sees_a_tmpfs_that_lies_in_what_both_share() -> None:
    """Else it would see the folder beneath, and an archive of it would be empty, and a success."""
    image = Container(image="a", volumes=[Volume(path="/home/runyard/project/build"), Volume(path="/tmp")])
    made = build(containers=[image], steps=[SAVE])
    assert mounts(made, "agent")["/home/runyard/project/build"] == "tmpfs-0-0"
    assert "/tmp" not in mounts(made, "agent")


def test_the_last_words_of_a_service_that_knows_a_secret_are_not_told() -> None:
    """Nobody masks them, and they would be in the run's message."""
    knows = Container(name="db", image="b", environment={"P": FromSecret(from_secret="db")})
    made = build(containers=[Container(image="a"), knows, Container(name="redis", image="c")])
    policies = [container(made, name)["terminationMessagePolicy"] for name in ("svc-db", "svc-redis")]
    assert policies == ["File", "FallbackToLogsOnError"]


def test_a_pull_without_a_limit_is_not_cut_by_the_limit_on_the_run() -> None:
    """The kubelet's clock runs while the image is pulled."""
    made = build(deadline_s=60, timeouts=Timeouts(pending_s=None))
    assert made["spec"]["activeDeadlineSeconds"] > RULES.deadline_s


# What is refused


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"pod": {"service_account": "x"}}, "RUNYARD_KUBERNETES_ALLOW would have to name 'service_account'"),
        ({"containers": [Container(image="a", privileged=True)]}, "would have to name 'privileged'"),
        ({"user": "build"}, "is a name"),
        ({"environment": {"A": FromSecret(from_secret=".x")}}, "no such names can be"),
        (
            {"containers": [Container(image="a"), Container(image="b", ready=Readiness(command="x"))]},
            "name a `port`",
        ),
        ({"containers": [Container(image="a"), *[Container(image="b", name="x")] * 2]}, "two services are called"),
    ],
)
def test_refused(task: dict[str, Any], words: str) -> None:
    environment = task.pop("environment", None)
    plan = asked(**task).task
    if environment:
        plan = plan.model_copy(update={"environment": environment})
    (said,) = refusals(plan, RULES)
    assert words in said


def test_allowed_things_are_done() -> None:
    rules = Rules(
        agent_image="a", agent_command=["a"], allow=frozenset({"node_selector", "tolerations", "labels"})
    )
    pod = {
        "node_selector": {"gpu": "yes"},
        "tolerations": [{"key": "x", "operator": "Exists"}],
        "labels": {"a": "b"},
    }
    assert refusals(asked(pod=pod).task, rules) == []
    made = build(rules, pod=pod, arch="amd64")
    assert made["spec"]["nodeSelector"] == {"kubernetes.io/arch": "amd64", "gpu": "yes"}
    assert made["spec"]["tolerations"] == pod["tolerations"]
    assert made["metadata"]["labels"]["a"] == "b"
    (said,) = refusals(asked(pod={"labels": {names.RUN: "x"}}).task, rules)
    assert "Runyard's own" in said


def test_the_run_file_reaches_the_pod() -> None:
    task = {
        "name": "t",
        "runtime": {"containers": [{"image": "a"}]},
        "steps": [{"run": "true"}],
        "pod": {"node_selector": {"gpu": "yes"}, "tolerations": [{"key": "x", "effect": "NoSchedule"}]},
    }
    plan = compile_run(
        RunRequest(file={"runs": [{"name": "r", "tasks": [task]}]}), run_id="r", execution_id="e"
    ).tasks[0]
    assert plan.pod == task["pod"]
    assert len(refusals(plan, RULES)) == 2


def test_what_is_not_heeded_is_said() -> None:
    task = asked(user="1000", containers=[Container(image="a", entrypoint=["x"])]).task
    assert len(remarks(task, RULES)) == 1
    (_, said) = remarks(task, Rules(agent_image="a", agent_command=["a"], one_uid=7))
    assert said == "`user: 1000` is not heeded: here everything runs as 7."


def test_nothing_is_refused_in_a_plain_task() -> None:
    task = asked(steps=[RunStep(command="x")], registries={"r": RegistryAuth(auth="x", type="encodedauth")}).task
    assert refusals(task, RULES) == []


# The template


def test_the_administrators_template() -> None:
    template = {
        "metadata": {"labels": {"team": "a", names.RUN: "forged"}, "annotations": {"note": "x"}},
        "spec": {
            "hostNetwork": True,
            "serviceAccountName": "ci",
            "restartPolicy": "Always",
            "tolerations": [{"key": "ci", "operator": "Exists"}],
            "securityContext": None,
            "containers": [
                {
                    "name": "main",
                    "env": [{"name": "PROXY", "value": "p"}],
                    "securityContext": {"capabilities": None},
                },
                {"name": "agent", "resources": {"limits": {"memory": "1Gi"}}},
                {"name": "extra", "image": "x"},
            ],
            "volumes": [{"name": "work", "hostPath": {"path": "/fast"}}],
        },
    }
    made = build(Rules(agent_image="a", agent_command=["a"], template=template))
    spec = made["spec"]
    assert (spec["hostNetwork"], spec["serviceAccountName"], spec["restartPolicy"]) == (True, "ci", "Never")
    assert "securityContext" not in spec
    assert container(made, "main")["securityContext"] == {"allowPrivilegeEscalation": False}
    assert {"name": "PROXY", "value": "p"} in container(made, "main")["env"]
    assert len(container(made, "main")["env"]) > 1
    assert container(made, "agent")["resources"]["requests"]
    assert container(made, "extra") == {"name": "extra", "image": "x"}
    assert {"name": "work", "hostPath": {"path": "/fast"}} in spec["volumes"]
    assert made["metadata"]["labels"]["team"] == "a"
    assert made["metadata"]["labels"][names.RUN] == "run"


def test_merging_changes_neither_side() -> None:
    base, over = {"a": {"b": [1]}, "env": [{"name": "x"}]}, {"a": {"b": [2]}, "env": [{"name": "y"}]}
    merged = merge(base, over)
    assert merged == {"a": {"b": [2]}, "env": [{"name": "x"}, {"name": "y"}]}
    merged["a"]["b"].append(3)
    assert (base["a"], over["a"]) == ({"b": [1]}, {"b": [2]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "is no object"),
        ("kind: Job", "is a Job, not a Pod"),
        ("template: {}", "has the key 'template'"),
        ("spec: []", "`spec` that is no object"),
        ("spec: {containers: [{image: x}]}", "container without a name"),
        ("a: [", "is no YAML"),
    ],
)
def test_a_template_that_is_none(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "pod.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_template(path)


def test_templates_are_files(tmp_path: Path) -> None:
    path = tmp_path / "pod.yml"
    assert load_template(None) == {}
    path.write_text("")
    assert load_template(path) == {}
    path.write_text(yaml.safe_dump({"kind": "Pod", "spec": {"hostNetwork": True}}))
    assert load_template(path)["spec"] == {"hostNetwork": True}
    with pytest.raises(ConfigError, match="cannot be read"):
        load_template(tmp_path / "absent.yml")
