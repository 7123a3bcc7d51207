"""A large stream, up and down, in a process of its own whose memory is watched."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from minio_server import MinioServer

from runyard.settings import Settings
from runyard.store.s3.store import open_s3

SIZE = 300_000_000
CHUNK = 1_000_000


def resident() -> int:
    """Bytes of memory at most, since the start of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


async def numbers() -> AsyncIterator[bytes]:
    for n in range(SIZE // CHUNK):
        yield n.to_bytes(8, "big") * (CHUNK // 8)


async def go() -> dict[str, int | bool]:
    store = open_s3(Settings())
    await store.put("warm", b"x")
    begin = resident()
    sent, came = hashlib.sha256(), hashlib.sha256()

    async def hashed() -> AsyncIterator[bytes]:
        async for chunk in numbers():
            sent.update(chunk)
            yield chunk

    info = await store.put("big", hashed())
    up = resident() - begin
    async for chunk in store.get("big"):
        came.update(chunk)
    await store.close()
    return {
        "size": info.size,
        "same": sent.digest() == came.digest(),
        "up": up,
        "down": resident() - begin,
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a process's peak of memory is read from /proc")
def test_memory_stays_flat(minio: MinioServer) -> None:
    settings = minio.settings()
    environment = {
        "RUNYARD_STORE": "s3",
        "RUNYARD_S3_ENDPOINT": settings.s3_endpoint,
        "RUNYARD_S3_BUCKET": settings.s3_bucket,
        "RUNYARD_S3_PREFIX": settings.s3_prefix,
        "RUNYARD_S3_ACCESS_KEY": settings.s3_access_key,
        "RUNYARD_S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
    }
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["size"] == SIZE
    assert found["same"]
    assert found["up"] < 100e6, found
    assert found["down"] < 100e6, found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(go())))
