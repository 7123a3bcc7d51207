"""A real MinIO for the agent's tests, and what a worker would give an agent to reach it.

The program is found as that of the store's tests is. It listens on loopback, with a folder of its own.
"""

import os
import signal
import socket
import subprocess
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

from minio import Minio
from minio.datatypes import PostPolicy
from minio.error import MinioException
from urllib3 import PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError

from runyard.store.base import UrlTarget

_USER, _PASSWORD = "runyard-tests", "only-on-loopback"


class MinioServer:
    """One server with one bucket; it may be killed, stopped and started again."""

    def __init__(self, program: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.program, self.folder, self.bucket = program, folder, "tests"
        folder.mkdir(parents=True)
        http = PoolManager(retries=Retry(0), timeout=Timeout(10))
        self.client = Minio(self.address, _USER, _PASSWORD, secure=False, region="us-east-1", http_client=http)
        self.start()
        self.client.make_bucket(self.bucket)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        environ = {
            **os.environ,
            "MINIO_ROOT_USER": _USER,
            "MINIO_ROOT_PASSWORD": _PASSWORD,
            "MINIO_BROWSER": "off",
        }
        words = [self.program, "server", "--quiet", "--address", self.address, str(self.folder / "data")]
        with open(self.folder / "minio.log", "ab") as log:
            self.process = subprocess.Popen(words, env=environ, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + 60
        while True:
            try:
                self.client.list_buckets()
                return
            except (MinioException, HTTPError):
                assert time.monotonic() < end, (self.folder / "minio.log").read_text()
                assert self.process.poll() is None, (self.folder / "minio.log").read_text()
                time.sleep(0.05)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def target(self, prefix: str, *, expires_s: float = 3600, most_bytes: int = 5 << 30) -> UrlTarget:
        """As the store gives one: a POST policy for the prefix, and the PUT of `started`."""
        policy = PostPolicy(self.bucket, datetime.now(UTC) + timedelta(seconds=expires_s))
        policy.add_starts_with_condition("key", prefix)
        policy.add_content_length_range_condition(0, most_bytes)
        with warnings.catch_warnings():  # the library asks the clock in a way that Python gives up
            warnings.simplefilter("ignore", DeprecationWarning)
            fields = self.client.presigned_post_policy(policy)
        claim = self.client.presigned_put_object(self.bucket, f"{prefix}started", timedelta(seconds=expires_s))
        url = f"http://{self.address}/{self.bucket}"
        return UrlTarget(url=url, prefix=prefix, fields=fields, claim=claim)

    def source(self, key: str) -> str:
        return self.client.presigned_get_object(self.bucket, key, timedelta(hours=1))

    def get(self, key: str) -> bytes:
        response = self.client.get_object(self.bucket, key)
        try:
            return response.read()
        finally:
            response.close()
            response.release_conn()

    def put(self, key: str, data: bytes) -> None:
        import io

        self.client.put_object(self.bucket, key, io.BytesIO(data), len(data))

    def keys(self, prefix: str) -> list[str]:
        return [str(each.object_name) for each in self.client.list_objects(self.bucket, prefix, recursive=True)]

    def log(self, prefix: str, step: int) -> bytes:
        """A step's log, put together: without a gap, and the same where segments overlap."""
        data = bytearray()
        for key in self.keys(f"{prefix}segments/{step}/"):
            begin, segment = int(key.rpartition("/")[2]), self.get(key)
            assert begin <= len(data)
            assert data[begin : begin + len(segment)] == segment[: len(data) - begin]
            data += segment[len(data) - begin :]
        return bytes(data)
