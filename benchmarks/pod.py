"""A task as it is in a pod, but for the pod: main in `sh`, the agent beside it, a real store, presigned requests.

The store is that of $S3_ENDPOINT, $S3_ACCESS_KEY and $S3_SECRET_KEY; where these are not set, a MinIO of the
measurement's own, by the program `minio` of the PATH or the one that `make lab` has built.
"""

import contextlib
import os
import py_compile
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.datatypes import PostPolicy

import runyard.agent
from runyard.dialogue import Assignment, Manifest
from runyard.script import compile_script
from runyard.settings import Settings
from runyard.spec.plan import Step, TaskPlan
from runyard.store.base import Target, UrlTarget
from runyard.store.s3.store import S3Store, open_s3

BUCKET = "runyard-bench"
_ENVIRONMENT = ("S3_ENDPOINT", "S3_ACCESS_KEY", "S3_SECRET_KEY")


class Bucket:
    """What a worker would presign."""

    def __init__(self, endpoint: str, access_key: str, secret_key: str) -> None:
        self.endpoint = endpoint
        self.words = endpoint, access_key, secret_key
        parts = urlsplit(endpoint)
        self.client = Minio(
            parts.netloc, access_key, secret_key, secure=parts.scheme == "https", region="us-east-1"
        )
        if not self.client.bucket_exists(BUCKET):
            self.client.make_bucket(BUCKET)

    def target(self, prefix: str) -> UrlTarget:
        policy = PostPolicy(BUCKET, datetime.now(UTC) + timedelta(hours=1))
        policy.add_starts_with_condition("key", prefix)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            fields = self.client.presigned_post_policy(policy)
        claim = self.put(f"{prefix}started")
        return UrlTarget(url=f"{self.endpoint}/{BUCKET}", prefix=prefix, fields=fields, claim=claim)

    def put(self, key: str) -> str:
        return self.client.presigned_put_object(BUCKET, key, timedelta(hours=1))

    def get(self, key: str) -> str:
        return self.client.presigned_get_object(BUCKET, key, timedelta(hours=1))

    def manifest(self, prefix: str) -> Manifest:
        response = self.client.get_object(BUCKET, f"{prefix}manifest.json")
        try:
            return Manifest.model_validate_json(response.read())
        finally:
            response.close()

    def settings(self, **others: object) -> Settings:
        """What a worker is told of it."""
        endpoint, key, secret = self.words
        own = {"s3_endpoint": endpoint, "s3_bucket": BUCKET, "s3_access_key": key, "s3_secret_key": secret}
        return Settings.model_validate({"store": "s3", **own, **others})

    def store(self) -> S3Store:
        """The store as a worker opens it."""
        return open_s3(self.settings())

    def clear(self) -> None:
        for each in self.client.list_objects(BUCKET, recursive=True):
            self.client.remove_object(BUCKET, str(each.object_name))
        self.client.remove_bucket(BUCKET)


@contextlib.contextmanager
def open_bucket(place: Path) -> Iterator[Bucket]:
    """The bucket, empty; at the end it is removed, and the server ended if it is ours."""
    with contextlib.ExitStack() as stack:
        given = [os.environ.get(name, "") for name in _ENVIRONMENT]
        endpoint, access_key, secret_key = given if all(given) else stack.enter_context(_serve(place / "minio"))
        bucket = Bucket(endpoint, access_key, secret_key)
        stack.callback(bucket.clear)
        yield bucket


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[tuple[str, str, str]]:
    built = Path(os.environ.get("RUNYARD_LAB") or Path.home() / ".cache" / "runyard-lab") / "bin"
    program = shutil.which("minio") or shutil.which("minio", path=str(built))
    if program is None:
        raise SystemExit(f"no MinIO: set {', '.join(_ENVIRONMENT)}, or build one with `make lab`")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    folder.mkdir()
    secret = secrets.token_hex(12)
    own = {"MINIO_ROOT_USER": "bench", "MINIO_ROOT_PASSWORD": secret, "MINIO_BROWSER": "off"}
    words = [program, "server", "--quiet", "--address", address, str(folder / "data")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(words, env={**os.environ, **own}, stdout=log, stderr=log)
    try:
        urllib3.request(
            "GET", f"http://{address}/minio/health/cluster", retries=urllib3.Retry(20, backoff_factor=0.1)
        )
        yield f"http://{address}", "bench", secret
    finally:
        server.kill()
        server.wait()


def compile_agent(place: Path) -> None:
    py_compile.compile(runyard.agent.__file__, cfile=str(place / "agent.pyc"), doraise=True)


@dataclass(frozen=True)
class Played:
    """``seconds`` from the start of main to its end; of the agent its CPU and its largest RSS."""

    seconds: float
    agent_cpu_s: float
    agent_rss_bytes: int


def play(
    place: Path,
    logs: Target,
    name: str,
    step: Step,
    *,
    environ: Mapping[str, str] | None = None,
    **assignment: object,
) -> Played:
    """A task with this one step. `compile_agent` comes before."""
    dialogue = place / name.replace("/", "-")
    dialogue.mkdir()
    (dialogue / "script").write_text(compile_script(TaskPlan(id="id", name="bench", containers=[], steps=[step])))
    facts = {"run_id": "run", "task": "bench", "attempt": 1, "steps": [step], "logs": logs}
    (dialogue / "assignment").write_text(Assignment.model_validate(facts | assignment).model_dump_json())
    places = {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "RUNYARD_DIR": str(dialogue),
        "RUNYARD_RECEIPT": str(dialogue / "receipt"),
        "RUNYARD_ASSIGNMENT": str(dialogue / "assignment"),
    }
    agent = subprocess.Popen(
        [sys.executable, "-I", "-S", str(place / "agent.pyc")], env={**places, **(environ or {})}
    )
    begin = time.monotonic()
    subprocess.run(["sh", str(dialogue / "script")], env=places, check=True)
    took = time.monotonic() - begin
    _, status, used = os.wait4(agent.pid, 0)
    agent.returncode = os.waitstatus_to_exitcode(status)
    return Played(took, _cpu_s(used), used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def _cpu_s(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime
