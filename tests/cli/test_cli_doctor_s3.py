"""`runyard doctor` of a bucket: what it tries, and what it says to do."""

import json
import re
import time
from collections.abc import AsyncIterable
from pathlib import Path

import pytest
from minio_server import MinioServer, free_port
from s3_proxy import Proxy
from shell_process import Shell

from runyard.cli import storechecks
from runyard.cli.checks import Check
from runyard.settings import Settings
from runyard.store.base import ObjectInfo
from runyard.store.posix import PosixStore


def environment(settings: Settings) -> dict[str, str]:
    said = {
        "STORE": "s3",
        "S3_ENDPOINT": settings.s3_endpoint,
        "S3_PUBLIC_ENDPOINT": settings.s3_public_endpoint,
        "S3_BUCKET": settings.s3_bucket,
        "S3_PREFIX": settings.s3_prefix,
        "S3_ACCESS_KEY": settings.s3_access_key,
        "S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
    }
    return {f"RUNYARD_{name}": value for name, value in said.items()}


def doctor(shell: Shell, settings: Settings) -> dict[str, Check]:
    """What it says of the store. There is no Temporal server, so it ends with 5 anyway."""
    done = shell.run("doctor", "-o", "json", code=5, **environment(settings))
    found = [Check(**check) for check in json.loads(done.stdout)]
    return {check.name: check for check in found if check.name.startswith("store")}


async def checks(settings: Settings) -> dict[str, Check]:
    return {check.name: check async for check in storechecks.store(settings)}


async def test_a_bucket_that_does_all(shell: Shell, minio: MinioServer) -> None:
    settings = minio.settings()
    found = doctor(shell, settings)
    assert {name: check.state for name, check in found.items()} == {
        "store": "ok",
        "store, first wins": "ok",
        "store, clock": "ok",
        "store, links": "ok",
    }
    store = minio.store(s3_prefix=settings.s3_prefix)
    assert [info.key async for info in store.list("")] == [], "it leaves nothing behind"
    await store.close()


@pytest.mark.parametrize(
    ("given", "message", "remedy"),
    [
        ({"s3_bucket": "elsewhere"}, "cannot write: there is no bucket `elsewhere`", "Create the bucket"),
        ({"s3_secret_key": "not-the-secret"}, "SignatureDoesNotMatch", "secret"),
        ({"s3_endpoint": "http://127.0.0.1:1"}, "takes no connection", "address"),
        ({"s3_bucket": ""}, "cannot open", "RUNYARD_S3_BUCKET"),
        ({"s3_endpoint": "minio"}, "cannot open", "https://HOST"),
    ],
)
def test_what_is_wrong_is_named(
    shell: Shell, minio: MinioServer, given: dict[str, str], message: str, remedy: str
) -> None:
    found = doctor(shell, minio.settings(**given))
    assert list(found) == ["store"]
    assert found["store"].state == "wrong"
    assert message in found["store"].message
    assert remedy in found["store"].remedy
    assert "not-the-secret" not in repr(found)


async def test_an_address_of_the_tasks_that_is_not_reached_from_here(minio: MinioServer) -> None:
    found = await checks(minio.settings(s3_public_endpoint=f"http://127.0.0.1:{free_port()}"))
    assert found["store"].state == "ok"
    assert found["store, links"].state == "warning"
    assert "RUNYARD_S3_PUBLIC_ENDPOINT" in found["store, links"].remedy


async def test_a_proxy_that_changes_the_hosts_name(minio: MinioServer) -> None:
    proxy = Proxy(minio.port)
    await proxy.start()
    public = f"localhost:{proxy.port}"
    proxy.replace_up, proxy.replacements = (public.encode(), f"elsewhere:{proxy.port}".encode()), 1000
    found = await checks(minio.settings(s3_public_endpoint=f"http://{public}"))
    await proxy.stop()
    assert found["store, links"].state == "wrong"
    assert "403" in found["store, links"].message


async def test_a_clock_that_is_wrong(minio: MinioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    right = time.time
    monkeypatch.setattr("runyard.store.s3.store.time.time", lambda: right() + 300)
    found = await checks(minio.settings())
    monkeypatch.undo()
    assert found["store, clock"].state == "warning"
    assert re.search(r"clock is (299|300|301) s ahead of", found["store, clock"].message)
    assert "NTP" in found["store, clock"].remedy


class Overwriting(PosixStore):
    """As a store that does not know the condition: it writes anyway."""

    async def put(
        self,
        key: str,
        data: bytes | AsyncIterable[bytes],
        *,
        size: int | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        return await super().put(key, data, size=size)


async def test_a_store_that_overwrites_is_no_store_for_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runyard.store.open.PosixStore", Overwriting)
    found = await checks(Settings(state=tmp_path))
    assert found["store, first wins"].state == "wrong"
    assert "twice" in found["store, first wins"].remedy
    monkeypatch.undo()
    assert (await checks(Settings(state=tmp_path)))["store, first wins"].state == "ok"
