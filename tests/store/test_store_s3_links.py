"""Presigned POST, PUT and GET, used as a task uses them: no credentials, no library."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_asyncio
from minio_server import MinioServer
from s3_proxy import Proxy

from runyard.agent import Patience, Url
from runyard.errors import InvalidRequest
from runyard.store.base import UrlTarget, read
from runyard.store.s3.store import S3Store


@pytest_asyncio.fixture
async def store(minio: MinioServer) -> AsyncIterator[S3Store]:
    store = minio.store()
    yield store
    await store.close()


def post(target: UrlTarget, key: str, data: bytes = b"x", **fields: str) -> int:
    edge = "edge-of-a-part"
    form = target.fields | {"key": key} | fields
    body = b"".join(
        f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in form.items()
    )
    body += f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="data"\r\n\r\n'.encode()
    body += data + f"\r\n--{edge}--\r\n".encode()
    return ask("POST", target.url, body, {"Content-Type": f"multipart/form-data; boundary={edge}"})[0]


def ask(
    method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=30)
    connection.request(method, f"{parts.path}?{parts.query}", body, headers or {})
    answer: HTTPResponse = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def expiry_s(url: str) -> int:
    return int(parse_qs(urlsplit(url).query)["X-Amz-Expires"][0])


async def test_the_agent_posts_below_its_prefix(store: S3Store, tmp_path: Path) -> None:
    target = store.target("logs/t/data/1/", expires_s=60)
    assert target.prefix == f"{store.place.prefix}logs/t/data/1/"
    agent = Url(target.model_dump(mode="json"), Patience(), str(tmp_path))  # type: ignore[arg-type]
    agent.put("segments/0/0000000000000000", b"a line\n")
    agent.put("manifest.json", b"{}")
    agent._hang_up()
    assert await read(store, "logs/t/data/1/segments/0/0000000000000000") == b"a line\n"
    assert [info.key async for info in store.list("")] == [
        "logs/t/data/1/manifest.json",
        "logs/t/data/1/segments/0/0000000000000000",
    ]


async def test_nothing_can_be_posted_elsewhere(store: S3Store) -> None:
    target = store.target("mine/", expires_s=60)
    other = store.place.prefix
    assert post(target, f"{target.prefix}a") in (200, 204)
    for key in (f"{other}yours/a", "a", f"{other}mine", f"{other}mine2/a", f"{target.prefix}../yours/a"):
        assert 400 <= post(target, key) < 500, key
    assert post(target, f"{target.prefix}a", policy=target.fields["policy"][:-8] + "AAAAAAA=") == 403
    assert ask("PUT", target.url + "/" + f"{target.prefix}b", b"x")[0] == 403
    assert [info.key async for info in store.list("")] == ["mine/a"]


@pytest.mark.promise(2)
async def test_a_claim_is_taken_once(store: S3Store) -> None:
    target = store.target("mine/", expires_s=60)
    once = {"If-None-Match": "*"}
    assert [ask("PUT", target.claim, str(n).encode(), once)[0] for n in range(3)] == [200, 412, 412]
    assert await read(store, "mine/started") == b"0"
    other = store.target("theirs/", expires_s=60)
    await store.put("theirs/started", b"by the worker", if_absent=True)
    assert ask("PUT", other.claim, b"late", once)[0] == 412
    assert await read(store, "theirs/started") == b"by the worker"
    moved = target.claim.replace("/mine/", "/yours/")
    assert ask("PUT", moved, b"x", once)[0] == 403


async def test_a_source_is_read(store: S3Store) -> None:
    await store.put("archives/ü +&=/1.tar.zst", b"0123456789" * 1_000_000)
    url = store.source("archives/ü +&=/1.tar.zst", expires_s=60)
    assert ask("GET", url) == (200, b"0123456789" * 1_000_000)
    assert ask("PUT", url, b"x")[0] == 403
    assert ask("GET", url.replace("1.tar", "2.tar"))[0] == 403
    assert ask("GET", store.source("nothing", expires_s=60))[0] == 404


async def test_an_expired_link_opens_nothing(store: S3Store) -> None:
    await store.put("k", b"x")
    target, source = store.target("mine/", expires_s=1), store.source("k", expires_s=1)
    until = time.monotonic() + 30
    while ask("GET", source)[0] == 200 or post(target, f"{target.prefix}a") < 300:
        assert time.monotonic() < until
        time.sleep(0.2)
    assert ask("GET", source)[0] == 403
    assert post(target, f"{target.prefix}b") == 403
    assert ask("PUT", target.claim, b"x")[0] == 403


def test_links_need_no_server_and_last_a_week_at_most(minio: MinioServer) -> None:
    away = minio.store(s3_endpoint="http://127.0.0.1:1", s3_region="eu-west-3")
    target, source = away.target("a/", expires_s=1e9), away.source("a", expires_s=1e9)
    assert expiry_s(source) == expiry_s(target.claim) == 7 * 24 * 3600
    assert target.expires_at is not None
    assert abs(target.expires_at - datetime.now(UTC) - timedelta(days=7)) < timedelta(minutes=1)
    assert "eu-west-3" in source
    for key in ("a/../b/", "/a/", ""):
        with pytest.raises(InvalidRequest):
            away.target(key, expires_s=1)
        with pytest.raises(InvalidRequest):
            away.source(key, expires_s=1)


def test_of_amazon_the_bucket_is_in_the_name_of_the_host(minio: MinioServer) -> None:
    there = minio.store(s3_endpoint="", s3_region="eu-west-3", s3_prefix="p/")
    target = there.target("a/", expires_s=60)
    assert target.url == "https://yard.s3.eu-west-3.amazonaws.com/"
    assert target.claim.startswith("https://yard.s3.eu-west-3.amazonaws.com/p/a/started?")


async def test_tasks_may_reach_the_store_elsewhere(minio: MinioServer) -> None:
    proxy = Proxy(minio.port)
    await proxy.start()
    public = proxy.endpoint.replace("127.0.0.1", "localhost")
    store = minio.store(s3_public_endpoint=public)
    await store.put("k", b"x")
    source, target = store.source("k", expires_s=60), store.target("mine/", expires_s=60)
    assert all(url.startswith(f"{public}/yard") for url in (source, target.url, target.claim))
    assert await asyncio.to_thread(ask, "GET", source) == (200, b"x")
    assert await asyncio.to_thread(post, target, f"{target.prefix}a") in (200, 204)
    assert ask("GET", source.replace(public, minio.endpoint))[0] == 403  # the host is part of the signature
    await proxy.stop()
