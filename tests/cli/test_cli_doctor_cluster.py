"""`runyard doctor` of a real cluster: what it finds missing, and what it says to do."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import yaml
from kubernetes.aio.client import CoreV1Api, RbacAuthorizationV1Api
from lab import Lab
from shell_process import Shell

from runyard.cli.checks import Check
from runyard.executors.kubernetes.examine import NICE, RIGHTS

pytestmark = pytest.mark.kubernetes

ALL = {**RIGHTS, **NICE}


@contextlib.asynccontextmanager
async def account(
    lab: Lab, namespace: str, rights: Mapping[str, tuple[str, ...]], folder: Path
) -> AsyncIterator[Path]:
    """A kubeconfig of a service account that may do this, and no more."""
    async with lab.api() as api:
        core, rbac = CoreV1Api(api), RbacAuthorizationV1Api(api)
        await core.create_namespaced_service_account(namespace, {"metadata": {"name": "worker"}})
        rules = [{"apiGroups": [""], "resources": [kind], "verbs": list(verbs)} for kind, verbs in rights.items()]
        await rbac.create_namespaced_role(namespace, {"metadata": {"name": "worker"}, "rules": rules})
        binding = {
            "metadata": {"name": "worker"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "worker"},
            "subjects": [{"kind": "ServiceAccount", "name": "worker", "namespace": namespace}],
        }
        await rbac.create_namespaced_role_binding(namespace, binding)
        token = await core.create_namespaced_service_account_token("worker", namespace, {"spec": {}})
    config = yaml.safe_load(lab.kubeconfig.read_text())
    config["users"] = [{"name": "worker", "user": {"token": token.status.token}}]
    config["contexts"] = [
        {
            "name": "c",
            "context": {"cluster": config["clusters"][0]["name"], "user": "worker", "namespace": namespace},
        }
    ]
    config["current-context"] = "c"
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    yield file


def doctor(shell: Shell, lab: Lab, kubeconfig: Path, *words: str, **more: str) -> dict[str, Check]:
    """What it says of the cluster. There is no Temporal server, so it ends with 5 anyway."""
    said = {
        "RUNYARD_EXECUTOR": "kubernetes",
        "RUNYARD_KUBERNETES_KUBECONFIG": str(kubeconfig),
        "RUNYARD_KUBERNETES_AGENT_IMAGE": lab.image_runyard,
        **more,
    }
    done = shell.run("doctor", "-o", "json", *words, code=5, **said)
    assert "Traceback" not in done.stderr
    return {check["name"]: Check(**check) for check in json.loads(done.stdout)}


async def test_an_account_that_may_do_all_that_is_needed(shell: Shell, lab: Lab, tmp_path: Path) -> None:
    async with lab.namespace() as namespace, account(lab, namespace, ALL, tmp_path) as kubeconfig:
        found = doctor(shell, lab, kubeconfig)
        assert {name: found[name].state for name in ("rights", "rights, more", "quota", "pod", "executor")} == {
            "rights": "ok",
            "rights, more": "ok",
            "quota": "ok",
            "pod": "ok",
            "executor": "ok",
        }
        assert found["quota"].message == f"none in namespace {namespace}"
        assert found["agent"].state == "warning", "the lab's tag is no version"
        assert "--deep" in found["agent"].remedy
        async with lab.api() as api:
            assert not (await CoreV1Api(api).list_namespaced_pod(namespace)).items, "it made nothing"
            assert not (await CoreV1Api(api).list_namespaced_secret(namespace)).items


async def test_an_account_that_may_not_make_pods(shell: Shell, lab: Lab, tmp_path: Path) -> None:
    rights = {"pods": ("get", "list", "watch", "patch", "delete"), "secrets": ("get", "create")}
    async with lab.namespace() as namespace, account(lab, namespace, rights, tmp_path) as kubeconfig:
        found = doctor(shell, lab, kubeconfig)
    assert found["rights"].state == "wrong"
    who = f"system:serviceaccount:{namespace}:worker"
    assert found["rights"].message.startswith(
        f"{who} may not create pods; delete secrets in namespace {namespace} at "
    )
    assert f"Add to its Role in {namespace}: pods: [create]; secrets: [delete]." in found["rights"].remedy
    assert "pod" not in found
    assert found["rights, more"].state == "warning"
    assert "events: [list]; resourcequotas: [list, watch]" in found["rights, more"].remedy
    assert found["quota"].state == "warning"


@pytest.mark.parametrize(
    ("hard", "state", "words"),
    [
        ({"pods": "3"}, "ok", ""),
        ({"pods": "0"}, "wrong", "more than the quota q allows at all"),
        ({"secrets": "0"}, "wrong", "more than the quota q allows at all"),
        ({"pods": "3", "requests.memory": "1Gi"}, "wrong", "wants every pod to say what it needs"),
    ],
    ids=["room", "none at all", "no secret", "wants resources"],
)
async def test_a_quota_is_told_with_its_numbers_and_whether_a_task_fits(
    shell: Shell, lab: Lab, tmp_path: Path, hard: dict[str, str], state: str, words: str
) -> None:
    async with lab.namespace() as namespace, lab.api() as api:
        quota = {"metadata": {"name": "q"}, "spec": {"hard": hard}}
        await CoreV1Api(api).create_namespaced_resource_quota(namespace, quota)
        await _counted(CoreV1Api(api), namespace)
        async with account(lab, namespace, ALL, tmp_path) as kubeconfig:
            found = doctor(shell, lab, kubeconfig)
    assert found["quota"].message.startswith("q: 0 of ")
    assert all(f"0 of {most} {name}" in found["quota"].message for name, most in hard.items())
    assert (found["pod"].state, words in found["pod"].message) == (state, True), found["pod"]
    assert found["pod"].remedy or state == "ok"


async def test_a_quota_that_is_used_up_is_a_wait(shell: Shell, lab: Lab, tmp_path: Path) -> None:
    async with lab.namespace() as namespace, lab.api() as api:
        core = CoreV1Api(api)
        await core.create_namespaced_resource_quota(
            namespace, {"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}}
        )
        await _counted(core, namespace)
        container = {"name": "c", "image": lab.image_task, "command": ["sleep", "600"]}
        spec = {"containers": [container], "hostNetwork": True, "terminationGracePeriodSeconds": 0}
        await core.create_namespaced_pod(namespace, {"metadata": {"name": "other"}, "spec": spec})
        async with account(lab, namespace, ALL, tmp_path) as kubeconfig:
            found = doctor(shell, lab, kubeconfig)
    assert found["quota"].message == "q: 1 of 1 pods"
    assert found["pod"].state == "warning"
    assert "quota q: 1 of 1 pods in use" in found["pod"].message


async def test_the_agents_version_is_asked_of_its_image(shell: Shell, lab: Lab, tmp_path: Path) -> None:
    template = tmp_path / "template.yaml"
    template.write_text(yaml.safe_dump({"spec": {"hostNetwork": True}}))
    more = {"RUNYARD_KUBERNETES_TEMPLATE": str(template)}
    async with lab.namespace() as namespace, account(lab, namespace, ALL, tmp_path) as kubeconfig:
        found = doctor(shell, lab, kubeconfig, "--deep", **more)
        assert found["agent"].state == "ok", found["agent"]
        found = doctor(
            shell, lab, kubeconfig, "--deep", **more | {"RUNYARD_KUBERNETES_AGENT_IMAGE": lab.image_task}
        )
        assert found["agent"].state == "warning", found["agent"]
        assert "does not say of which version" in found["agent"].message
        missing = "lab.local/runyard:0.0.1"
        found = doctor(shell, lab, kubeconfig, "--deep", **more | {"RUNYARD_KUBERNETES_AGENT_IMAGE": missing})
        assert found["agent"].state == "wrong"
        assert "RUNYARD_KUBERNETES_AGENT_IMAGE" in found["agent"].remedy
        async with lab.api() as api:
            left = (await CoreV1Api(api).list_namespaced_pod(namespace)).items
            assert [pod for pod in left if pod.metadata.deletion_timestamp is None] == []


async def test_a_cluster_that_knows_nobody_of_that_name(shell: Shell, lab: Lab, tmp_path: Path) -> None:
    config = yaml.safe_load(lab.kubeconfig.read_text())
    for each in config["users"]:
        each["user"] = {"token": "not-a-token"}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    found = doctor(shell, lab, tmp_path / "kubeconfig")
    assert found["cluster"].state == "wrong"
    assert "Unauthorized" in found["cluster"].message
    assert "not-a-token" not in repr(found)


async def _counted(core: CoreV1Api, namespace: str) -> None:
    """Until the cluster has begun to count: before that it refuses everything."""
    async with asyncio.timeout(30):
        while not (await core.read_namespaced_resource_quota("q", namespace)).status.hard:
            await asyncio.sleep(0.05)
