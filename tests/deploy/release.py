"""The chart as Helm renders it, and put into a cluster."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio.client import ApiClient
from kubernetes.aio.dynamic import DynamicClient

CHART = Path(__file__).resolve().parents[2] / "deploy" / "chart"
KUBERNETES = "1.34.4"

Values = dict[str, Any]
Objects = list[dict[str, Any]]


class Refused(Exception):
    """What Helm said."""


@pytest.fixture(scope="session")
def helm() -> Path:
    """The program that `make lab-build` makes of Helm's Go module."""
    program = Path(os.environ.get("RUNYARD_LAB") or Path.home() / ".cache/runyard-lab") / "bin" / "helm"
    if not program.exists():
        pytest.skip(f"{program} is not there: `make lab-build` makes it")
    return program


def run(helm: Path, values: Values, *words: str) -> str:
    command = [str(helm), *words, "--values", "-"]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True)
    if done.returncode:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def render(helm: Path, values: Values, *, release: str = "ry", namespace: str = "ci") -> Objects:
    chosen = ["--namespace", namespace, "--kube-version", KUBERNETES]
    return [
        each for each in yaml.safe_load_all(run(helm, values, "template", release, str(CHART), *chosen)) if each
    ]


def of_kind(objects: Objects, kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


async def create(api: ApiClient, objects: Objects) -> None:
    dynamic = await DynamicClient(api)
    for each in objects:
        resource = await dynamic.resources.get(api_version=each["apiVersion"], kind=each["kind"])
        await dynamic.create(resource, body=each, namespace=each["metadata"]["namespace"])
