"""deploy/chart: what it renders, refuses, and what a real API server makes of it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio.client import ApiClient, AppsV1Api, AuthorizationV1Api, CoreV1Api
from lab import Lab
from release import CHART, KUBERNETES, Refused, Values, create, helm, of_kind, render, run

from runyard.executors.kubernetes.examine import NICE, RIGHTS
from runyard.settings import Settings

__all__ = ["helm"]  # a fixture

REQUIRED = {
    "image": {"repository": "registry.example/runyard"},
    "temporal": {"address": "temporal.example:7233"},
    "store": {"s3": {"bucket": "runs"}},
}
FULL = {
    **REQUIRED,
    "temporal": {"address": "temporal.example:7233", "existingSecret": "temporal"},
    "store": {
        "s3": {"bucket": "runs", "endpoint": "https://s3.example", "existingSecret": "s3", "caConfigMap": "ca"}
    },
    "settings": {"keep_logs_days": 90},
    "metrics": {"serviceMonitor": {"enabled": True}},
    "log": {"format": "text", "level": "debug"},
    "tracing": {"endpoint": "http://collector:4318", "existingSecret": "otel"},
    "networkPolicy": {"egress": [{"ports": [{"port": 443}]}]},
    "extraEnv": [{"name": "A", "value": "b"}],
    "queues": [
        {"name": "kubernetes", "namespace": "tasks"},
        {
            "name": "kubernetes-gpu",
            "namespace": "gpu",
            "settings": {"keep_logs_days": 7, "local_pass_environment": ["A", "B"]},
            "template": {"spec": {"nodeSelector": {"gpu": "yes"}}},
        },
    ],
}


@pytest.mark.parametrize("values", [REQUIRED, FULL], ids=["required", "full"])
def test_helm_finds_nothing_to_complain_about(helm: Path, values: Values) -> None:
    said = run(helm, values, "lint", "--strict", str(CHART), "--kube-version", KUBERNETES)
    assert "WARNING" not in said


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image": {}}, "/image"),
        ({"temporal": {"address": "https://temporal.example"}}, "/temporal/address"),
        ({"store": {"s3": {"bucket": ""}}}, "/store/s3/bucket"),
        ({"replica": 3}, "'replica' not allowed"),
        ({"queues": [{"name": "kubernetes", "replicas": "3"}]}, "/queues/0/replicas"),
        ({"queues": [{"name": "local"}]}, "/queues/0/name"),
        ({"queues": [{"name": "kubernetes"}, {"name": "kubernetes"}]}, "two queues have the name kubernetes"),
        ({"settings": {"s3_secret_key": "hunter2"}}, "propertyName 's3_secret_key'"),
        ({"settings": {"LOG_BYTES": 1}}, "propertyName 'LOG_BYTES'"),
        ({"settings": {"log_format": "json"}}, "propertyName 'log_format'"),
        ({"log": {"format": "xml"}}, "/log/format"),
        ({"tracing": {"endpoint": "collector:4318"}}, "/tracing/endpoint"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_values_are_refused(helm: Path, change: Values, complaint: str) -> None:
    with pytest.raises(Refused) as refused:
        render(helm, {**REQUIRED, **change})
    assert complaint in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_queue_is_a_deployment_with_rights_in_its_namespace_only(helm: Path) -> None:
    objects = render(helm, FULL)
    workers = of_kind(objects, "Deployment")
    assert set(workers) == {"ry-runyard-runs", "ry-runyard-kubernetes", "ry-runyard-kubernetes-gpu"}
    assert {name: role["metadata"]["namespace"] for name, role in of_kind(objects, "Role").items()} == {
        "ry-runyard-kubernetes": "tasks",
        "ry-runyard-kubernetes-gpu": "gpu",
    }
    assert not [each for each in objects if each["kind"].startswith("Cluster")]
    tokens = {name: spec(worker)["automountServiceAccountToken"] for name, worker in workers.items()}
    assert tokens == {"ry-runyard-runs": False, "ry-runyard-kubernetes": True, "ry-runyard-kubernetes-gpu": True}


def test_what_a_worker_reads_are_settings_that_there_are(helm: Path) -> None:
    maps = of_kind(render(helm, FULL), "ConfigMap")
    own = maps["ry-runyard-kubernetes-gpu"]["data"]
    assert own["RUNYARD_KEEP_LOGS_DAYS"] == "7", "the queue's own wins"
    assert json.loads(own["RUNYARD_LOCAL_PASS_ENVIRONMENT"]) == ["A", "B"]
    assert maps["ry-runyard-runs"]["data"]["RUNYARD_KEEP_LOGS_DAYS"] == "90"
    template = yaml.safe_load(maps["ry-runyard-kubernetes-gpu-pods"]["data"]["template.yaml"])
    assert template == {"spec": {"nodeSelector": {"gpu": "yes"}}}
    known = {f"RUNYARD_{name}".upper() for name in Settings.model_fields}
    assert {name for name in own if name.startswith("RUNYARD_")} <= known
    assert own["RUNYARD_EXECUTOR"] == "kubernetes-gpu", "what doctor examines there"
    cleaned = json.loads(maps["ry-runyard-runs"]["data"]["RUNYARD_CLEANUP_EXECUTORS"])
    assert cleaned == ["kubernetes", "kubernetes-gpu"], "a cleanup looks after every queue's pods"


def test_workers_are_seen_into_as_the_values_say(helm: Path) -> None:
    usual, full = render(helm, REQUIRED), render(helm, FULL)
    data = {name: each["data"] for name, each in of_kind(usual, "ConfigMap").items()}
    assert {each["RUNYARD_LOG_FORMAT"] for each in data.values()} == {"json"}
    assert {each["RUNYARD_METRICS_ADDRESS"] for each in data.values()} == {"0.0.0.0:9464"}
    assert not [name for each in data.values() for name in each if name.startswith("OTEL_")]
    for worker in of_kind(usual, "Deployment").values():
        (container,) = spec(worker)["containers"]
        assert {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness")} == {"/healthz"}
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    told = of_kind(full, "ConfigMap")["ry-runyard-runs"]["data"]
    assert (told["RUNYARD_LOG_FORMAT"], told["RUNYARD_LOG_LEVEL"]) == ("text", "debug")
    assert told["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"
    for worker in of_kind(full, "Deployment").values():
        (container,) = spec(worker)["containers"]
        (headers,) = [each for each in container["env"] if each["name"] == "OTEL_EXPORTER_OTLP_HEADERS"]
        assert headers["valueFrom"] == {"secretKeyRef": {"name": "otel", "key": "headers"}}
    off = render(helm, {**REQUIRED, "metrics": {"enabled": False}})
    assert "ry-runyard-metrics" not in of_kind(off, "Service")
    assert all("livenessProbe" not in spec(each)["containers"][0] for each in of_kind(off, "Deployment").values())


def test_a_change_of_the_settings_replaces_the_workers(helm: Path) -> None:
    def notes(values: Values) -> Any:
        return spec(of_kind(render(helm, values), "Deployment")["ry-runyard-runs"], part="metadata")["annotations"]

    assert notes(REQUIRED) == notes(REQUIRED)
    assert notes(REQUIRED) != notes({**REQUIRED, "settings": {"log_bytes": 4096}})


def spec(worker: dict[str, Any], *, part: str = "spec") -> Any:
    return worker["spec"]["template"][part]


@pytest.fixture
def values(lab: Lab) -> Values:
    """Of a release whose pods the lab's node can start."""
    repository, _, tag = lab.image_runyard.partition(":")
    return {
        "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
        "temporal": {"address": "127.0.0.1:1"},
        "store": {"s3": {"bucket": "runs", "endpoint": lab.s3_endpoint, "existingSecret": "s3"}},
        "runs": {"replicas": 0},
        "queues": [{"name": "kubernetes", "replicas": 0}],
    }


@pytest.mark.kubernetes
async def test_the_api_server_takes_it_and_gives_the_workers_what_they_need_and_no_more(
    helm: Path, lab: Lab, values: Values
) -> None:
    async with lab.namespace() as own, lab.namespace() as tasks, lab.api() as api:
        values["queues"][0]["namespace"] = tasks
        await create(api, render(helm, values, namespace=own))
        account = f"system:serviceaccount:{own}:ry-runyard-kubernetes"
        for resource, verb in [(kind, verb) for kind, verbs in {**RIGHTS, **NICE}.items() for verb in verbs]:
            assert await may(api, account, tasks, verb, resource), (verb, resource)
        for resource, verb in (
            ("pods/exec", "create"),
            ("pods/exec", "get"),
            ("pods/log", "get"),
            ("secrets", "list"),
            ("secrets", "update"),
            ("nodes", "list"),
        ):
            assert not await may(api, account, tasks, verb, resource), (verb, resource)
        assert not await may(api, account, own, "create", "pods")
        assert not await may(api, account, own, "get", "secrets")
        assert not await may(api, f"system:serviceaccount:{own}:ry-runyard-runs", tasks, "get", "pods")


@pytest.mark.kubernetes
async def test_its_pods_pass_the_restricted_standard(helm: Path, lab: Lab, values: Values) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    values |= {"runs": {"replicas": 1}, "queues": [{"name": "kubernetes", "replicas": 1}]}
    async with lab.namespace(labels=labels) as own, lab.api() as api:
        await create(api, render(helm, values, namespace=own))
        names = set()
        async with asyncio.timeout(60):
            while len(names) < 2:
                pods = (await CoreV1Api(api).list_namespaced_pod(own)).items
                names = {pod.metadata.labels["app.kubernetes.io/component"] for pod in pods}
                await asyncio.sleep(0.1)
        for deployment in ("ry-runyard-runs", "ry-runyard-kubernetes"):
            await AppsV1Api(api).delete_namespaced_deployment(deployment, own)
    assert names == {"runs", "kubernetes"}


async def may(api: ApiClient, user: str, namespace: str, verb: str, resource: str) -> bool:
    kind, _, part = resource.partition("/")
    asked = {"namespace": namespace, "verb": verb, "resource": kind, "subresource": part}
    review = {"spec": {"user": user, "resourceAttributes": asked}}
    answer = await AuthorizationV1Api(api).create_subject_access_review(review)
    return bool(answer.status.allowed)
