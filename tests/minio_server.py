"""A real MinIO of the tests' own, and stores in it.

The program is `$RUNYARD_MINIO`, else `minio` of the PATH, else the one that `make lab` leaves in
`$RUNYARD_LAB/bin` (by default `~/.cache/runyard-lab/bin`). Without it these tests are skipped, and say so.
"""

import contextlib
import itertools
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import urllib3
from minio import Minio

from runyard.settings import Settings
from runyard.store.s3.store import S3Store, open_s3

BUCKET = "yard"
LAB = Path(
    os.environ.get("RUNYARD_LAB") or Path.home() / ".cache" / "runyard-lab"
)  # tests have homes of their own
USER = "root"
_NUMBERS = itertools.count()


@dataclass
class MinioServer:
    """A server on a port of loopback with its data in a folder; it may be killed and started again."""

    program: str
    folder: Path
    port: int
    arguments: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    secret: str = field(default_factory=lambda: secrets.token_hex(12), repr=False)
    scheme: str = "http"
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://{self.address}"

    def start(self) -> None:
        own = {"MINIO_ROOT_USER": USER, "MINIO_ROOT_PASSWORD": self.secret, "MINIO_BROWSER": "off"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self.program,
                    "server",
                    "--quiet",
                    "--address",
                    self.address,
                    *self.arguments,
                    self.folder / "data",
                ],
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **own, **self.environment},
                stdout=log,
                stderr=log,
            )
        self.wait()

    def wait(self) -> None:
        """Until it takes requests."""
        until = time.monotonic() + 60
        while True:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()
            try:
                self._knock()
            except (OSError, URLError):
                assert time.monotonic() < until, (self.folder / "log").read_text()
                time.sleep(0.05)
            else:
                return

    def _knock(self) -> None:
        if self.scheme == "http":
            urlopen(f"{self.endpoint}/minio/health/cluster", timeout=5).close()
        else:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def client(self, *, ca_file: Path | None = None) -> Minio:
        """The administrator's own client."""
        http = urllib3.PoolManager(ca_certs=str(ca_file) if ca_file else None)
        secure = self.scheme == "https"
        return Minio(self.address, USER, self.secret, secure=secure, region="us-east-1", http_client=http)

    def settings(self, **more: object) -> Settings:
        """Settings of a store of its own in this server's bucket."""
        given: dict[str, object] = {
            "store": "s3",
            "s3_endpoint": self.endpoint,
            "s3_bucket": BUCKET,
            "s3_prefix": f"t{next(_NUMBERS)}-{secrets.token_hex(4)}/",
            "s3_access_key": USER,
            "s3_secret_key": self.secret,
        }
        return Settings.model_validate(given | more)

    def store(self, **more: object) -> S3Store:
        return open_s3(self.settings(**more))


def find_minio() -> str | None:
    if named := os.environ.get("RUNYARD_MINIO"):
        return named
    return shutil.which("minio") or shutil.which("minio", path=str(LAB / "bin"))


def require_minio() -> str:
    """The program; without it the test is skipped."""
    program = find_minio()
    if program is None:
        pytest.skip("no MinIO: `make lab` brings it; or set RUNYARD_MINIO to the program")
    return program


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_pair() -> int:
    """A port above which, at 1,000 more, another is free too: a Temporal server has its UI there."""
    while True:
        port = free_port()
        with socket.socket() as probe, contextlib.suppress(OSError, OverflowError):
            probe.bind(("127.0.0.1", port + 1000))
            return port


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """One server a test session, with the bucket `yard`."""
    server = MinioServer(require_minio(), tmp_path_factory.mktemp("minio"), free_port())
    server.start()
    try:
        server.client().make_bucket(BUCKET)
        yield server
    finally:
        server.kill()


@pytest.fixture
def own_minio(tmp_path: Path) -> Iterator[MinioServer]:
    """A server of the test's own, which it may kill."""
    server = MinioServer(require_minio(), tmp_path, free_port())
    server.start()
    try:
        server.client().make_bucket(BUCKET)
        yield server
    finally:
        server.kill()
