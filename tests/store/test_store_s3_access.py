"""Who we are to the store, by which way, and over which connection."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs

import pytest
from minio.credentials.credentials import Credentials
from minio.credentials.providers import AssumeRoleProvider
from minio_server import BUCKET, USER, MinioServer, free_port, require_minio
from urllib3.exceptions import SSLError

from runyard.errors import ConfigError, StoreDenied, StoreUnavailable
from runyard.settings import Settings
from runyard.store.base import read
from runyard.store.s3.bucket import open_http
from runyard.store.s3.credentials import Kept
from runyard.store.s3.place import Place
from runyard.store.s3.store import S3Store, open_s3

KEYS = {"s3_access_key": "", "s3_secret_key": ""}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's own."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "RUNYARD_S3_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


async def works(store: S3Store) -> None:
    await store.put("k", b"x")
    assert await read(store, "k") == b"x"
    await store.close()


def temporary(minio: MinioServer) -> Credentials:
    """Real temporary credentials, for an hour."""
    return AssumeRoleProvider(
        sts_endpoint=minio.endpoint, access_key=USER, secret_key=minio.secret, region="us-east-1"
    ).retrieve()


async def test_the_environment(minio: MinioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "STORE": "s3",
        "S3_ENDPOINT": minio.endpoint,
        "S3_BUCKET": BUCKET,
        "S3_PREFIX": "by-environment",
        "S3_ACCESS_KEY": USER,
        "S3_SECRET_KEY": minio.secret,
    }.items():
        monkeypatch.setenv(f"RUNYARD_{name}", value)
    settings = Settings()
    assert minio.secret not in repr(settings) + str(settings.model_dump()) + settings.model_dump_json()
    await works(open_s3(settings))
    assert minio.client().stat_object(BUCKET, "by-environment/k").size == 1


async def test_amazons_variables(minio: MinioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", USER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", minio.secret)
    await works(minio.store(**KEYS))


async def test_temporary_credentials(minio: MinioServer) -> None:
    found = temporary(minio)
    more = {"s3_access_key": found.access_key, "s3_secret_key": found.secret_key}
    await works(minio.store(**more, s3_session_token=found.session_token))
    without = minio.store(**more)
    with pytest.raises(StoreDenied):
        await without.stat("k")
    await without.close()


@pytest.mark.parametrize("usual", [True, False])
async def test_a_file(minio: MinioServer, tmp_path: Path, usual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".aws" / "credentials" if usual else tmp_path / "elsewhere"
    file.parent.mkdir(exist_ok=True)
    found = temporary(minio)
    keys = f"aws_access_key_id = {found.access_key}\naws_secret_access_key = {found.secret_key}\n"
    file.write_text(
        "[default]\naws_access_key_id = nobody\naws_secret_access_key = none\n"
        f"[yard]\n{keys}aws_session_token = {found.session_token}\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "yard")
    await works(minio.store(**KEYS, s3_credentials_file=None if usual else file))
    file.write_text("[default]\n")
    with pytest.raises(StoreDenied, match=str(file)):
        await minio.store(**KEYS, s3_credentials_file=file).stat("k")


@contextmanager
def sts(found: Credentials) -> Iterator[tuple[str, list[dict[str, list[str]]]]]:
    """Stands in for the service that exchanges a web identity; the credentials that it gives are real."""
    asked: list[dict[str, list[str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            words = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            asked.append(parse_qs(words or self.path.partition("?")[2]))
            end = (datetime.now(UTC) + timedelta(minutes=30)).strftime("%Y-%m-%dT%H:%M:%SZ")
            key, secret = found.access_key, found.secret_key
            body = (
                "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
                f"<AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>"
                f"<SessionToken>{found.session_token}</SessionToken><Expiration>{end}</Expiration>"
                "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

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


async def test_a_web_identity(minio: MinioServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One exchange for all that follows; links are signed with what came, and last no longer than that."""
    (tmp_path / "token").write_text("a.web.token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/yard")
    with sts(temporary(minio)) as (address, asked):
        store = minio.store(**KEYS, s3_sts_endpoint=address)
        await asyncio.gather(*(store.put(f"k{n}", b"x") for n in range(10)))
        target, source = store.target("a/", expires_s=3600), store.source("k", expires_s=3600)
        assert [words["WebIdentityToken"] for words in asked] == [["a.web.token"]]
        assert "X-Amz-Security-Token=" in source
        assert target.expires_at is not None
        assert target.expires_at <= datetime.now(UTC) + timedelta(minutes=30)
        await works(store)
    away = minio.store(**KEYS, s3_sts_endpoint="http://127.0.0.1:1")
    with pytest.raises(StoreUnavailable, match="credentials for the store cannot be had"):
        await away.stat("k")
    await away.close()


class Ending:
    """A provider whose credentials end after so long."""

    def __init__(self, minutes: float) -> None:
        self.calls = 0
        self.minutes = minutes
        self.works = True

    def retrieve(self) -> Credentials:
        self.calls += 1
        if not self.works:
            raise ValueError("no more")
        return Credentials("k", f"s{self.calls}", None, datetime.now(UTC) + timedelta(minutes=self.minutes))


def test_credentials_are_kept_while_they_are_good() -> None:
    provider = Ending(60)
    kept = Kept(lambda: provider, "a test")  # type: ignore[arg-type, return-value]
    assert {kept.retrieve().secret_key for _ in range(5)} == {"s1"}
    assert 3500 < kept.left_s() <= 3600
    assert provider.calls == 1


def test_credentials_at_their_end_are_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("runyard.store.s3.credentials.time.monotonic", lambda: clock[0])
    provider = Ending(30)
    kept = Kept(lambda: provider, "a test")  # type: ignore[arg-type, return-value]
    assert kept.retrieve().secret_key == "s1"
    clock[0] += 19 * 60
    assert kept.retrieve().secret_key == "s1"
    clock[0] += 2 * 60  # nine minutes before the end
    assert kept.current().secret_key == "s1"  # what signs a link asks nobody
    assert kept.retrieve().secret_key == "s2"
    provider.works = False
    clock[0] += 22 * 60
    assert kept.retrieve().secret_key == "s2"  # they are still good
    other = Kept(lambda: provider, "a test")  # type: ignore[arg-type, return-value]
    with pytest.raises(StoreDenied, match="a test: no more"):
        other.retrieve()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"s3_bucket": ""}, "RUNYARD_S3_BUCKET"),
        ({"s3_bucket": "No Bucket"}, "RUNYARD_S3_BUCKET"),
        ({"s3_endpoint": "minio:9000"}, "https://HOST"),
        ({"s3_endpoint": "https://minio:9000/yard"}, "RUNYARD_S3_BUCKET"),
        ({"s3_endpoint": "https://user:word@minio"}, "RUNYARD_S3_ACCESS_KEY"),
        ({"s3_public_endpoint": "ftp://minio"}, "https://HOST"),
        ({"s3_prefix": "a//b"}, "path"),
        ({"s3_region": "not a region"}, "RUNYARD_S3_REGION"),
        ({"s3_ca_file": "/nowhere.pem"}, "PEM"),
        ({"s3_secret_key": ""}, "RUNYARD_S3_SECRET_KEY"),
        (KEYS, "RUNYARD_S3_ACCESS_KEY"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, str], said: str) -> None:
    usual = {"store": "s3", "s3_endpoint": "http://minio:9000", "s3_bucket": "yard"}
    keys = {"s3_access_key": "key", "s3_secret_key": "a-secret-word"}
    with pytest.raises(ConfigError) as caught:
        open_s3(Settings.model_validate(usual | keys | given))
    assert said in caught.value.remedy
    assert "word" not in str(caught.value)


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[MinioServer]:
    """A server with a certificate that nobody knows."""
    certificates = tmp_path / "certs"
    certificates.mkdir()
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=store", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(certificates / "private.key"), "-out", str(certificates / "public.crt")),
        ],
        check=True,
        capture_output=True,
    )
    server = MinioServer(
        require_minio(), tmp_path, free_port(), ["--certs-dir", str(certificates)], scheme="https"
    )
    server.start()
    yield server
    server.kill()


async def test_a_certificate_of_ones_own(secured: MinioServer, tmp_path: Path) -> None:
    ours = tmp_path / "certs" / "public.crt"
    secured.client(ca_file=ours).make_bucket(BUCKET)
    store = secured.store(s3_ca_file=ours)

    async def stream() -> object:
        for _ in range(18):
            yield b"x" * (1 << 20)

    await store.put("big", stream())  # type: ignore[arg-type]
    assert (await store.stat("big")).size == 18 << 20
    await works(store)
    stranger = secured.store()
    with pytest.raises(StoreUnavailable, match="certificate is not trusted") as caught:
        await stranger.stat("k")
    assert "RUNYARD_S3_CA_FILE" in caught.value.remedy
    await stranger.close()


def test_who_gives_roles_is_trusted_no_more_than_a_store(secured: MinioServer, tmp_path: Path) -> None:
    """The bucket itself may be at `http:`, where nobody is trusted beforehand."""
    place = Place(endpoint="http://127.0.0.1:9", bucket=BUCKET)
    alive = f"{secured.endpoint}/minio/health/live"
    with open_http(place, connections=1) as http, pytest.raises(SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        http.request("GET", alive)
    known = replace(place, ca_file=tmp_path / "certs" / "public.crt")
    with open_http(known, connections=1) as http:
        assert http.request("GET", alive).status == 200


async def test_a_bulk_of_deletes_one_of_which_is_denied(minio: MinioServer) -> None:
    """The others are done, and the error is the one of a delete by itself."""
    settings = minio.settings()
    ours = open_s3(settings)
    for key in ("a", "fixed/b", "c"):
        await ours.put(key, b"x")
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]},
            {"Effect": "Deny", "Action": ["s3:DeleteObject"], "Resource": ["arn:aws:s3:::*/fixed/*"]},
        ],
    }
    found = AssumeRoleProvider(
        sts_endpoint=minio.endpoint,
        access_key=USER,
        secret_key=minio.secret,
        region="us-east-1",
        policy=json.dumps(policy),
    ).retrieve()
    given = {
        "s3_access_key": found.access_key,
        "s3_secret_key": found.secret_key,
        "s3_session_token": found.session_token,
    }
    theirs = open_s3(Settings.model_validate({**settings.model_dump(), **given}))
    with pytest.raises(StoreDenied, match="deleting `fixed/b`"):
        await theirs.delete_many(["a", "fixed/b", "c"])
    assert [info.key async for info in ours.list("")] == ["fixed/b"]
    await theirs.close()
    await ours.delete_many(["a", "fixed/b", "c"])
    assert [info.key async for info in ours.list("")] == []
    await ours.close()
