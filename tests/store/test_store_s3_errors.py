"""What is refused, what is missing, what answers instead: each told apart, and no secret in any of it."""

import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread

import pytest
from minio.credentials.providers import StaticProvider
from minio.error import S3Error
from minio.minioadmin import MinioAdmin
from minio_server import BUCKET, USER, MinioServer
from urllib3 import HTTPResponse

from runyard.errors import (
    Conflict,
    Corrupt,
    InvalidRequest,
    NotFound,
    RunyardError,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from runyard.store.base import ObjectStore, read
from runyard.store.s3.answers import judge
from runyard.store.s3.place import Place

CALLS: dict[str, Callable[[ObjectStore], Awaitable[object]]] = {
    "put": lambda store: store.put("k", b"x"),
    "put_absent": lambda store: store.put("k", b"x", if_absent=True),
    "put_parts": lambda store: store.put("k", _chunks()),
    "read": lambda store: read(store, "k"),
    "stat": lambda store: store.stat("k"),
    "delete": lambda store: store.delete("k"),
    "list": lambda store: anext(store.list("")),
    "discard": lambda store: store.discard_unfinished(older_than_s=0),
}


async def _chunks() -> AsyncIterator[bytes]:
    for _ in range(9):
        yield bytes(1 << 20)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runyard.store.s3.calls.PATIENCE_S", 1.0)


@pytest.mark.parametrize("call", CALLS)
async def test_a_missing_bucket_is_no_answer(minio: MinioServer, call: str) -> None:
    store = minio.store(s3_bucket="elsewhere")
    with pytest.raises(StoreUnavailable, match="there is no bucket `elsewhere`") as caught:
        await CALLS[call](store)
    assert "RUNYARD_S3_BUCKET" in caught.value.remedy
    await store.close()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("user", [USER, "nobody"])
async def test_wrong_credentials_are_denied_and_stay_secret(minio: MinioServer, call: str, user: str) -> None:
    settings = minio.settings(s3_access_key=user, s3_secret_key="not-the-secret-word")
    store = minio.store(s3_access_key=user, s3_secret_key="not-the-secret-word")
    with pytest.raises(StoreDenied, match=r"SignatureDoesNotMatch|InvalidAccessKeyId|AccessDenied") as caught:
        await CALLS[call](store)
    said = "".join(traceback.format_exception(caught.value)) + repr(vars(store)) + repr(settings)
    assert "not-the-secret-word" not in said
    assert caught.value.remedy
    await store.close()


def admin(minio: MinioServer) -> MinioAdmin:
    return MinioAdmin(endpoint=minio.address, credentials=StaticProvider(USER, minio.secret), secure=False)


async def test_an_account_that_may_only_read(minio: MinioServer) -> None:
    admin(minio).user_add("reader", "reader-secret")
    admin(minio).policy_set("readonly", user="reader")
    prefix = "readers/"
    await minio.store(s3_prefix=prefix).put("k", b"x")
    store = minio.store(s3_access_key="reader", s3_secret_key="reader-secret", s3_prefix=prefix)
    assert await read(store, "k") == b"x"
    with pytest.raises(StoreDenied, match="AccessDenied") as caught:
        await store.put("k", b"y")
    assert f"`{BUCKET}`" in caught.value.remedy
    with pytest.raises(StoreDenied):
        await store.put("other", _chunks())
    await store.close()


async def test_a_full_bucket(own_minio: MinioServer) -> None:
    admin(own_minio).bucket_quota_set(BUCKET, 1 << 20)
    store = own_minio.store()
    await store.put("small", b"x")
    for data in (bytes(3 << 20), _chunks()):
        with pytest.raises(StoreFull, match="no room left"):
            await store.put("k", data)
    assert [info.key async for info in store.list("")] == ["small"]
    assert await store.discard_unfinished(older_than_s=0) == 0
    await store.close()


@contextmanager
def answering(status: int, body: bytes, kind: str) -> Iterator[tuple[str, list[str]]]:
    """A server that is no store; its address, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            asked.append(self.command)
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do  # noqa: N815

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


HTML = b"<html>Welcome to the proxy<p></html>"


@pytest.mark.parametrize("kind", ["text/html", "application/xml"])
@pytest.mark.parametrize("status", [404, 403, 200])
@pytest.mark.parametrize("call", ["put_parts", "read", "stat", "list"])
async def test_what_is_no_store_never_says_not_found(
    minio: MinioServer, status: int, kind: str, call: str
) -> None:
    with answering(status, HTML, kind) as (address, _asked):
        store = minio.store(s3_endpoint=address)
        if (status, call) in ((200, "read"), (200, "stat")):
            return  # a page is an object like any other
        with pytest.raises(StoreError) as caught:
            await CALLS[call](store)
        assert not isinstance(caught.value, NotFound)
        await store.close()


SLOW = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@pytest.mark.parametrize("call", ["put", "read", "list", "delete"])
async def test_a_busy_store_is_asked_again_for_a_while(minio: MinioServer, call: str) -> None:
    with answering(503, SLOW, "application/xml") as (address, asked):
        store = minio.store(s3_endpoint=address)
        with pytest.raises(StoreUnavailable, match="SlowDown"):
            await CALLS[call](store)
        assert 3 <= len(asked) <= 10
        await store.close()


HELD = Place(endpoint="https://s3.example.com", bucket="yard", region="us-east-1")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchKey", NotFound),
        (404, "NoSuchBucket", StoreUnavailable),
        (404, "NoSuchUpload", StoreUnavailable),
        (412, "PreconditionFailed", Conflict),
        (409, "ConditionalRequestConflict", StoreUnavailable),
        (400, "XMinioParentIsObject", Conflict),
        (409, "XMinioObjectExistsAsDirectory", Conflict),
        (507, "XMinioStorageFull", StoreFull),
        (400, "XMinioAdminBucketQuotaExceeded", StoreFull),
        (403, "RequestTimeTooSkewed", StoreDenied),
        (400, "ExpiredToken", StoreDenied),
        (400, "AuthorizationHeaderMalformed", StoreError),
        (400, "BadDigest", Corrupt),
        (400, "KeyTooLongError", InvalidRequest),
        (503, "SlowDown", StoreUnavailable),
        (500, "SomethingNew", StoreUnavailable),
        (400, "SomethingNew", StoreError),
    ],
)
def test_codes_of_stores(status: int, code: str, kind: type[RunyardError]) -> None:
    """Some come from stores that are not here: of other versions, or with a full disk or a wrong clock."""
    response = HTTPResponse(BytesIO(), status=status)
    raised = S3Error(response, code, "Words of the store.", "/yard/k", "1", "2")
    judgement = judge(raised, "writing `k`", HELD)
    assert type(judgement.error) is kind
    assert "writing `k`" in judgement.error.message
    assert judgement.error.remedy
    passing = status in (500, 503) or code in ("BadDigest", "ConditionalRequestConflict")
    assert (judgement.tries > 1) == passing


async def test_objects_of_others_are_not_listed(minio: MinioServer, tmp_path: Path) -> None:
    """Folders that other programs mark with an empty object, for one."""
    store = minio.store()
    await store.put("a/b", b"x")
    for name in ("a/", "folder/"):
        minio.client().put_object(BUCKET, f"{store.place.prefix}{name}", BytesIO(), 0)
    minio.client().put_object(BUCKET, f"{store.place.prefix.rstrip('/')}-not-ours", BytesIO(), 0)
    assert [info.key async for info in store.list("")] == ["a/b"]
    assert [info.key async for info in store.list("a/")] == ["a/b"]
    await store.close()
