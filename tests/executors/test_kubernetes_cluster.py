"""Pods on the real kubelet: what goes wrong there, what is waited for, and what must not be lost on the way."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, fresh_namespace, two_pods_only
from kubernetes.aio.client import ApiException
from unsteady import Unsteady
from yards import silent, until

from runyard.errors import BeyondQuota, ConfigError, Conflict, Fenced, StartError
from runyard.executors.base import Ended, Launch, Progress
from runyard.executors.kubernetes.executor import KubernetesExecutor
from runyard.executors.kubernetes.pod import Rules
from runyard.executors.kubernetes.template import merge
from runyard.reasons import Reason
from runyard.spec.plan import (
    Container,
    Content,
    FromSecret,
    RegistryAuth,
    Resources,
    RunStep,
    SaveToWorkspaceStep,
    Step,
)
from runyard.spec.run import PodRef

pytestmark = pytest.mark.kubernetes

PYC = ["python3", "-I", "/opt/runyard/agent.pyc"]
Worker = Callable[..., KubernetesExecutor]


@pytest.fixture
async def worker(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Worker]:
    """Executors, as many as are asked for. In the end none of their pods is left."""
    opened: list[KubernetesExecutor] = []

    def open_one(**more: Any) -> KubernetesExecutor:
        opened.append(more.pop("cluster", cluster).executor(tmp_path, **more))
        return opened[-1]

    yield open_one
    for namespace in {executor.namespace: executor for executor in opened}:
        sweeper = open_one(namespace=namespace)  # the others' way to the server may be gone by now
        for pod in [seen.pod async for seen in sweeper.list()]:
            await sweeper.delete(pod)
    for executor in opened:
        await executor.close()


async def see_through(executor: KubernetesExecutor, asked: Launch, report: Any = silent) -> Ended:
    pod = await executor.start(asked, report)
    try:
        return await executor.follow(pod, owner="one", report=report)
    finally:
        await executor.delete(pod)


async def begun(folder: Path, asked: Launch) -> None:
    await until((folder / asked.name / "started").exists, guard_s=60)


def main_with(**more: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "main", **more}]}}


def agent_with(**more: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "agent", **more}]}}


# What goes wrong


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("lab.local/none:1", Reason.IMAGE_PULL),
        ("lab.local/UPPER:1", Reason.INVALID_IMAGE_NAME),
        ("lab.local/pause:1", Reason.START_ERROR),
    ],
)
async def test_an_image_that_cannot_be_had(
    worker: Worker, cluster: Cluster, tmp_path: Path, image: str, reason: Reason
) -> None:
    ended = await see_through(worker(), cluster.launch(tmp_path, task={"containers": [Container(image=image)]}))
    assert (ended.reason, ended.gone) == (reason, False)
    assert ended.exit_code != 0
    assert image in ended.message or reason is Reason.START_ERROR


@pytest.mark.parametrize("secret", ["absent", "present/absent"])
async def test_a_secret_that_is_not_there(worker: Worker, cluster: Cluster, tmp_path: Path, secret: str) -> None:
    async with cluster.core() as core:
        with suppress(ApiException):
            body = {"metadata": {"name": "present"}, "stringData": {"value": "x"}}
            await core.create_namespaced_secret(cluster.namespace, body)
    asked = cluster.launch(tmp_path, environment={"TOKEN": FromSecret(from_secret=secret)})
    ended = await see_through(worker(), asked)
    assert ended.reason is Reason.CONFIG_ERROR
    assert "absent" in ended.message


async def test_a_service_that_dies_ends_the_task(worker: Worker, cluster: Cluster, tmp_path: Path) -> None:
    dying = Container(name="db", image=cluster.image, entrypoint=["sh", "-c", "sleep 1; echo no room >&2; exit 4"])
    asked = cluster.launch(tmp_path, "sleep 60", task={"containers": [Container(image=cluster.image), dying]})
    ended = await see_through(worker(), asked)
    assert ended.reason is Reason.SERVICE_FAILED
    assert ended.message == "the service db ended with exit code 4: no room"
    assert ended.exit_code != 0


@pytest.mark.parametrize(
    ("over", "reason", "words"),
    [
        ({"command": ["sh", "-c", "echo the end >&2; exit 9"]}, Reason.AGENT_LOST, "exit code 9: the end"),
        ({"image": "lab.local/none:1"}, Reason.IMAGE_PULL, "the agent's image lab.local/none:1"),
        (
            {"command": ["sh", "-c", "python3 -I /opt/runyard/agent.py & sleep 3; exit 8"]},
            Reason.AGENT_LOST,
            "exit code 8",
        ),
    ],
)
async def test_an_agent_that_fails_never_hangs_the_task(
    worker: Worker, cluster: Cluster, tmp_path: Path, over: dict[str, Any], reason: Reason, words: str
) -> None:
    async with asyncio.timeout(60):
        ended = await see_through(worker(template=agent_with(**over)), cluster.launch(tmp_path, "sleep 100"))
    assert ended.reason is reason
    assert words in ended.message
    assert ended.exit_code != 0


@pytest.mark.promise(1)
@pytest.mark.parametrize(("grace_s", "reason"), [(5, Reason.LOST), (0, None)])
async def test_a_pod_that_somebody_deletes(
    worker: Worker, cluster: Cluster, tmp_path: Path, grace_s: int, reason: Reason | None
) -> None:
    executor, asked = worker(), cluster.launch(tmp_path, "sleep 60")
    pod = await executor.start(asked, silent)
    follower = asyncio.create_task(executor.follow(pod, owner="one", report=silent))
    await begun(tmp_path, asked)
    async with cluster.core() as core:
        await core.delete_namespaced_pod(pod.name, cluster.namespace, grace_period_seconds=grace_s)
    ended = await follower
    assert ended.reason is reason
    assert ended.gone == (reason is None)
    assert ended.exit_code != 0


async def test_what_cannot_be_scheduled_is_said_and_waited_for(
    worker: Worker, cluster: Cluster, tmp_path: Path
) -> None:
    executor = worker()
    asked = cluster.launch(tmp_path, task={"resources": Resources(memory_bytes=1 << 50)})
    pod = await executor.start(asked, silent)
    said: list[Progress] = []
    follower = asyncio.create_task(executor.follow(pod, owner="one", report=said.append))
    await until(lambda: any("Insufficient memory" in progress.message for progress in said))
    assert {progress.state for progress in said} == {"pending"}
    await executor.stop(pod, grace_s=0)
    ended = await follower
    assert ended.reason is Reason.CANCELLED
    assert ended.exit_code is None


async def test_a_store_that_no_pod_sees_is_refused(worker: Worker, cluster: Cluster, tmp_path: Path) -> None:
    executor = worker()
    with pytest.raises(ConfigError, match="which no pod sees"):
        await executor.start(cluster.launch(Path("/srv/store")), silent)
    assert [seen async for seen in executor.list()] == []


async def test_what_no_status_says_comes_from_the_events(
    worker: Worker, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runyard.executors.kubernetes.follow._WHY_S", 2.0)
    volume = {"name": "absent", "configMap": {"name": "absent"}}
    mounted = main_with(volumeMounts=[{"name": "absent", "mountPath": "/absent"}])
    executor = worker(template=merge(mounted, {"spec": {"volumes": [volume]}}))
    asked = cluster.launch(tmp_path)
    pod = await executor.start(asked, silent)
    said: list[Progress] = []
    follower = asyncio.create_task(executor.follow(pod, owner="one", report=said.append))
    await until(lambda: any('configmap "absent" not found' in each.message for each in said), guard_s=60)
    assert {progress.state for progress in said} == {"pending"}
    await executor.stop(pod, grace_s=0)
    assert (await follower).reason is Reason.CANCELLED


# What it is given


async def test_words_arrive_as_they_were_written(worker: Worker, cluster: Cluster, tmp_path: Path) -> None:
    words = "$(HOME) $$ $HOME ${HOME} $(NOPE) 'a' \"b\" \\$"
    step = f"""printf '%s' "$WORDS" >{tmp_path}/words; printf '%s' '$(HOME) $$ $(NOPE)' >{tmp_path}/script"""
    asked = cluster.launch(tmp_path, step, environment={"WORDS": words})
    assert (await see_through(worker(), asked)).exit_code == 0
    assert (tmp_path / "words").read_text() == words
    assert (tmp_path / "script").read_text() == "$(HOME) $$ $(NOPE)"


async def test_a_script_that_no_argument_holds(worker: Worker, cluster: Cluster, tmp_path: Path) -> None:
    comment = "\n".join(f"# line {n} of a long comment with $(HOME)" for n in range(5000))
    asked = cluster.launch(tmp_path, f"{comment}\nprintf '%s' '$$' >{tmp_path}/words")
    assert len(asked.script) > 150_000
    ended = await see_through(worker(), asked)
    assert (ended.exit_code, ended.receipt) == (0, "0 0;sealed;")
    assert (tmp_path / "words").read_text() == "$$"


async def test_a_script_that_no_secret_holds(worker: Worker, cluster: Cluster, tmp_path: Path) -> None:
    executor = worker()
    with pytest.raises(StartError, match="keep long scripts in the repository"):
        await executor.start(cluster.launch(tmp_path, "# " + "x" * 1_100_000), silent)
    assert [seen async for seen in executor.list()] == []


async def test_secrets_of_the_run_file(worker: Worker, cluster: Cluster, tmp_path: Path) -> None:
    async with cluster.core() as core:
        body = {"metadata": {"name": "npm-token"}, "stringData": {"value": "s3cr3t", "other": "0th3r"}}
        await core.create_namespaced_secret(cluster.namespace, body)
    environment = {"A": FromSecret(from_secret="NPM_TOKEN"), "B": FromSecret(from_secret="NPM_TOKEN/other")}
    asked = cluster.launch(tmp_path, 'test "$A $B" = "s3cr3t 0th3r"; echo "$A" "$B"', environment=environment)
    asked = asked.model_copy(update={"assignment": asked.assignment.model_copy(update={"mask": ["A", "B"]})})
    assert (await see_through(worker(), asked)).exit_code == 0
    log = b"".join(path.read_bytes() for path in (tmp_path / asked.name / "segments" / "0").iterdir())
    assert b"s3cr3t" not in log
    assert b"0th3r" not in log


async def test_another_user_and_shared_folders(worker: Worker, cluster: Cluster, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    step = f"id -u >{tmp_path}/uid; pwd >{tmp_path}/cwd; touch here ~/there; echo $HOME >>{tmp_path}/cwd"
    asked = cluster.launch(tmp_path, step, task={"user": "1000:1000"})
    tmp_path.chmod(0o777)
    ended = await see_through(worker(), asked)
    assert (ended.exit_code, ended.receipt) == (0, "0 0;sealed;")
    assert (tmp_path / "uid").read_text() == "1000\n"
    assert (tmp_path / "cwd").read_text() == "/home/runyard/project\n/home/runyard\n"


async def test_credentials_of_a_registry_come_with_the_pod_and_go_with_it(
    worker: Worker, cluster: Cluster, tmp_path: Path
) -> None:
    executor = worker()
    registries = {"r.example": RegistryAuth(username="me", password="p4ss")}
    asked = cluster.launch(tmp_path, "sleep 30", task={"registries": registries})
    pod = await executor.start(asked, silent)
    async with cluster.core() as core:
        secret = await core.read_namespaced_secret(pod.name, cluster.namespace)
        made = await core.read_namespaced_pod(pod.name, cluster.namespace)
        assert [each.name for each in made.spec.image_pull_secrets] == [pod.name]
        assert made.spec.automount_service_account_token is False
        auths = json.loads(base64.b64decode(secret.data[".dockerconfigjson"]))["auths"]
        assert base64.b64decode(auths["r.example"]["auth"]) == b"me:p4ss"
        await executor.delete(pod)
        with pytest.raises(ApiException) as caught:
            await core.read_namespaced_secret(pod.name, cluster.namespace)
        assert caught.value.status == 404


async def test_a_secret_whose_pod_others_deleted_goes_by_itself(
    worker: Worker, cluster: Cluster, tmp_path: Path
) -> None:
    pod = await worker().start(cluster.launch(tmp_path, "sleep 30"), silent)
    async with cluster.core() as core:
        await core.delete_namespaced_pod(pod.name, cluster.namespace, grace_period_seconds=0)

        async def gone() -> bool:
            secrets = await core.list_namespaced_secret(cluster.namespace)
            return pod.name not in [secret.metadata.name for secret in secrets.items]

        await until(gone, guard_s=60)


async def test_four_requests_a_task(worker: Worker, cluster: Cluster, tmp_path: Path) -> None:
    executor = worker()
    for _ in range(3):
        assert (await see_through(executor, cluster.launch(tmp_path))).exit_code == 0
    asked = {key: n for key, n in executor.requests.items() if not key.startswith("GET")}
    assert asked == {"POST pods": 3, "POST secrets": 3, "DELETE pods": 3, "DELETE secrets": 3}
    assert executor.requests["GET pods"] == 1  # the list that the watch begins with


# Room


@pytest.fixture
async def two_pods(cluster: Cluster) -> AsyncIterator[Cluster]:
    async with two_pods_only(cluster) as small:
        yield small


LIMITED = {"spec": {"containers": [{"name": "agent", "resources": {"limits": {"memory": "128Mi"}}}]}}
SMALL = {"resources": Resources(memory_bytes=128 << 20)}


async def test_a_quota_is_waited_for_in_turn(worker: Worker, two_pods: Cluster, tmp_path: Path) -> None:
    executor, said = worker(cluster=two_pods, template=LIMITED), []

    async def one() -> Ended:
        asked = two_pods.launch(tmp_path, "sleep 0.2", task=SMALL)
        return await see_through(executor, asked, said.append)

    ends = await asyncio.gather(*(one() for _ in range(7)))
    assert [ended.exit_code for ended in ends] == [0] * 7
    waits = {progress.message for progress in said if progress.state == "waiting"}
    assert "waits for room: quota team: 2 of 2 pods in use" in waits
    # its use says when there is room, almost always rightly
    assert executor.requests["POST pods"] <= 7 + 2


async def test_what_a_quota_never_allows_is_told(worker: Worker, two_pods: Cluster, tmp_path: Path) -> None:
    executor = worker(cluster=two_pods, template=LIMITED)
    large = two_pods.launch(tmp_path, task={"resources": Resources(memory_bytes=2 << 30)})
    with pytest.raises(BeyondQuota, match="more than the quota team allows at all"):
        await executor.start(large, silent)
    with pytest.raises(ConfigError, match="wants every pod to say what it needs"):
        await executor.start(two_pods.launch(tmp_path), silent)
    assert [seen async for seen in executor.list()] == []


async def test_what_the_server_finds_invalid_is_told_at_once(
    worker: Worker, cluster: Cluster, tmp_path: Path
) -> None:
    executor = worker(template={"spec": {"dnsPolicy": "Sometimes"}})
    with pytest.raises(StartError, match="dnsPolicy"):
        await executor.start(cluster.launch(tmp_path), silent)


# Who has it


@pytest.mark.promise(2)
async def test_of_two_workers_that_take_a_pod_over_one_has_it(
    worker: Worker, cluster: Cluster, tmp_path: Path
) -> None:
    asked = cluster.launch(tmp_path, "sleep 60")
    pod = await worker().start(asked, silent)
    rivals = [worker() for _ in range(4)]
    follows = [
        asyncio.create_task(rival.follow(pod, owner=f"rival {n}", report=silent)) for n, rival in enumerate(rivals)
    ]
    await asyncio.wait(follows, timeout=15)
    lost = [follow for follow in follows if follow.done()]
    assert len(lost) == 3
    for follow in lost:
        with pytest.raises(Fenced):
            await follow
    (winner,) = (follow for follow in follows if not follow.done())
    await rivals[0].stop(pod, grace_s=1)
    assert (await winner).reason is Reason.CANCELLED


async def test_a_worker_that_comes_later_goes_on(worker: Worker, cluster: Cluster, tmp_path: Path) -> None:
    first, asked = worker(), cluster.launch(tmp_path, "sleep 3; exit 6")
    pod = await first.start(asked, silent)
    await first.close()
    later = worker()
    assert await later.start(asked.model_copy(update={"owner": "two"}), silent) == pod
    assert (await later.follow(pod, owner="three", report=silent)).exit_code == 6
    with pytest.raises(Conflict):
        await later.start(asked.model_copy(update={"digest": "other"}), silent)
    await later.delete(pod)
    async with cluster.core() as core:
        secrets = await core.list_namespaced_secret(cluster.namespace)
        assert pod.name not in [secret.metadata.name for secret in secrets.items]


async def test_a_deadline_holds_for_a_worker_that_came_later(
    worker: Worker, cluster: Cluster, tmp_path: Path
) -> None:
    first, asked = worker(), cluster.launch(tmp_path, "sleep 60", deadline_s=4)
    pod = await first.start(asked, silent)
    await begun(tmp_path, asked)
    await first.close()
    ended = await worker().follow(pod, owner="two", report=silent)
    assert (ended.reason, ended.message) == (Reason.TIMEOUT_RUN, "ran longer than 4 s")


# The way to the server


@pytest.fixture
async def unsteady(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Unsteady]:
    async with Unsteady.before(cluster.kubeconfig, tmp_path / "kubeconfig") as way:
        yield way


@pytest.mark.promise(9)
@pytest.mark.parametrize("trouble", ["cut", "refuse", "freeze", "forget"])
async def test_a_way_that_fails_while_a_task_runs(
    worker: Worker,
    cluster: Cluster,
    unsteady: Unsteady,
    tmp_path: Path,
    trouble: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runyard.executors.kubernetes.watch._IDLE_S", 4.0)
    executor = worker(kubeconfig=unsteady.kubeconfig)
    asked = cluster.launch(tmp_path, "sleep 4; exit 5")
    pod = await executor.start(asked, silent)
    follower = asyncio.create_task(executor.follow(pod, owner="one", report=silent))
    await begun(tmp_path, asked)
    async with unsteady.trouble(trouble):
        await until((tmp_path / asked.name / "manifest.json").exists)  # it ends meanwhile
    assert (await follower).exit_code == 5


@pytest.mark.promise(2)
async def test_a_create_whose_answer_is_lost_makes_one_pod(
    worker: Worker, cluster: Cluster, unsteady: Unsteady, tmp_path: Path
) -> None:
    executor = worker(kubeconfig=unsteady.kubeconfig)
    first = await executor.start(cluster.launch(tmp_path), silent)
    unsteady.lose_answers(2)
    asked = cluster.launch(tmp_path)
    pod = await executor.start(asked, silent)
    assert (await executor.follow(pod, owner="one", report=silent)).exit_code == 0
    assert {seen.pod async for seen in executor.list()} == {first, pod}


async def test_a_server_that_is_away_for_long_is_an_error_of_its_own(
    worker: Worker, cluster: Cluster, unsteady: Unsteady, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runyard.executors.kubernetes.api._PATIENCE_S", 1.0)
    executor = worker(kubeconfig=unsteady.kubeconfig)
    async with unsteady.trouble("refuse"):
        with pytest.raises(Exception, match="does not answer") as caught:
            await executor.start(cluster.launch(tmp_path), silent)
    assert getattr(caught.value, "code", "") == "cluster_unavailable"
    assert await executor.follow(PodRef(name="never", uid="x"), owner="one", report=silent) == Ended(
        gone=True, message="the pod is not there"
    )


# Namespaces that allow little


@pytest.fixture
def restricted(cluster: Cluster) -> Iterator[Cluster]:
    """A namespace that enforces the `restricted` standard: no folder of the node can be mounted there."""
    if not cluster.agent_image:
        pytest.skip("needs an image with the agent in it: RUNYARD_LAB_AGENT_IMAGE names none")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    with fresh_namespace(cluster, labels) as strict:
        yield strict


def inside(asked: Launch) -> Launch:
    """With a store in the pod itself, which is lost with it: what matters here is that it ends well."""
    logs = asked.assignment.logs.model_copy(update={"folder": "/runyard/spool/store"})
    return asked.model_copy(update={"assignment": asked.assignment.model_copy(update={"logs": logs})})


async def test_one_uid_passes_the_restricted_standard(restricted: Cluster, tmp_path: Path) -> None:
    rules = Rules(agent_image=restricted.agent_image, agent_command=PYC, one_uid=1234)
    executor = KubernetesExecutor(rules=rules, kubeconfig=restricted.kubeconfig, namespace=restricted.namespace)
    steps: list[Step] = [
        RunStep(command='test "$(id -u)" = 1234; touch here; chmod 600 here'),
        SaveToWorkspaceStep(contents=[Content(paths=["*"])]),
    ]
    asked = inside(restricted.launch(tmp_path, task={"steps": steps}))
    target = asked.assignment.logs.model_copy(update={"folder": "/runyard/spool/archives"})
    change = {"steps": steps, "archives": target}
    asked = asked.model_copy(update={"assignment": asked.assignment.model_copy(update=change)})
    ended = await see_through(executor, asked)
    assert (ended.exit_code, ended.receipt) == (0, "0 0;1 0;sealed;")
    await executor.close()


async def test_what_the_standard_refuses_is_told_at_once(restricted: Cluster, tmp_path: Path) -> None:
    executor = restricted.executor(tmp_path)
    with pytest.raises(StartError, match="violates PodSecurity"):
        await executor.start(restricted.launch(tmp_path), silent)
    await executor.close()
