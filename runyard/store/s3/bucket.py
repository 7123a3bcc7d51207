"""One request each, blocking, as the library's errors tell it.

The library's own `put_object` and `fput_object` cannot say "only if absent", and read a file object. So what
writes goes through the one method that signs and sends any request, `_execute`; what the library offers as it is
(listing, presigning) is taken from it.

Everything that is sent carries a digest that the server compares: the library signs the SHA-256 of the body over
plain HTTP, and sends its MD5 over TLS. Objects of one part carry their SHA-256 as the store's own checksum
besides, so that it comes back with the object and whoever reads all of it can compare.
"""

import base64
import hashlib
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET

import certifi
import urllib3
from minio import Minio
from minio.credentials.providers import Provider
from minio.deleteobjects import DeleteObject
from minio.error import S3Error
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.response import BaseHTTPResponse

from runyard.errors import Corrupt
from runyard.store.base import ObjectInfo
from runyard.store.s3.answers import code_of
from runyard.store.s3.place import Place

PAGE = 1000
"""Keys of one answer of a listing."""

_CONNECT_S = 5
SILENCE_S = 30
"""So long nothing may come or go: then the connection is given up."""

_TOKEN = "x-amz-meta-runyard-write"
_SHA256 = "x-amz-checksum-sha256"
_CONTROL = re.compile("[\\x00-\\x1f\\ufffe\\uffff]")
_NO_BULK = {"NotImplemented", "MethodNotAllowed", "MalformedXML"}


def open_http(place: Place, *, connections: int, silence_s: float = SILENCE_S) -> urllib3.PoolManager:
    """Connections to the store, kept open. Retries are not made here, see `Calls`."""
    trust = cache(partial(_trust, place.ca_file))
    if place.ca_file is not None or place.endpoint.startswith("https:"):
        trust()  # what cannot be trusted is said at once
    return _Connections(
        trust,
        num_pools=4,
        maxsize=connections,
        timeout=urllib3.Timeout(connect=_CONNECT_S, read=silence_s),
        retries=False,
    )


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    trusted = ssl.create_default_context()  # what the system trusts, which a small image may lack
    trusted.load_verify_locations(certifi.where())
    if ca_file is not None:
        trusted.load_verify_locations(ca_file)
    return trusted


class _Connections(urllib3.PoolManager):
    """Whom to trust is read (60 ms) when somebody is asked by TLS: of a bucket at `http:` only who gives roles."""

    def __init__(self, trust: Callable[[], ssl.SSLContext], **how: Any) -> None:
        super().__init__(**how)
        self._trust = trust

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> HTTPConnectionPool:
        """One at a time, says the library, and meant to be overridden."""
        how = dict(self.connection_pool_kw if request_context is None else request_context)
        if scheme == "https":
            how["ssl_context"] = self._trust()
        return super()._new_pool(scheme, host, port, how)


def open_client(endpoint: str, place: Place, credentials: Provider, http: urllib3.PoolManager) -> Minio:
    """The library's client for this address. Nothing is asked of the server."""
    scheme, _, host = endpoint.partition("://")
    return Minio(host, secure=scheme == "https", region=place.region, credentials=credentials, http_client=http)


@dataclass(frozen=True)
class Head:
    """An object's facts. ``token`` says which write made it, where that was recorded."""

    info: ObjectInfo
    token: str


@dataclass(frozen=True)
class Unfinished:
    """An upload of many parts that nobody has completed yet."""

    key: str
    upload: str
    begun_at: datetime


class Bucket:
    """Keys are ours, without the place's prefix."""

    def __init__(self, place: Place, credentials: Provider, http: urllib3.PoolManager) -> None:
        self._place = place
        self._client = open_client(place.endpoint, place, credentials, http)

    # whole objects

    def put(self, key: str, data: bytes, *, if_absent: bool, token: str) -> datetime:
        """When it was written, by the store's clock."""
        headers = {_SHA256: _sha256(data), _TOKEN: token}
        return _date(self._send("PUT", key, data, headers=headers | _condition(if_absent)).headers, "Date")

    def head(self, key: str) -> Head:
        """Of an object that is missing the code is `NoSuchKey`, of a bucket `NoSuchBucket`.

        A HEAD has no body to say which of them it was, unless the store is MinIO. So a GET asks again.
        """
        try:
            headers = self._send("HEAD", key).headers
        except S3Error as error:
            if error.response.status != 404 or error.response.headers.get("X-Minio-Error-Code"):
                raise
            with_body = self._send("GET", key, stream=True)
            headers = with_body.headers
            with_body.close()
        size = int(headers.get("Content-Length") or 0)
        info = ObjectInfo(key=key, size=size, modified_at=_date(headers, "Last-Modified"))
        return Head(info, headers.get(_TOKEN) or "")

    def delete(self, key: str) -> None:
        try:
            self._send("DELETE", key)
        except S3Error as error:
            if code_of(error) != "NoSuchKey":
                raise

    def delete_many(self, keys: Sequence[str]) -> list[str]:
        """At most `PAGE` keys; those that are left, for whatever reason: deleted by itself each will say why.

        All of them are left where the store knows no such request. XML cannot say every key.
        """
        prefix, sayable = self._place.prefix, [key for key in keys if not _CONTROL.search(key)]
        left = {key for key in keys if key not in set(sayable)} if len(sayable) < len(keys) else set[str]()
        named = [DeleteObject(prefix + key) for key in sayable]
        try:
            for error in self._client.remove_objects(self._place.bucket, named):
                left.update([error.name.removeprefix(prefix)] if error.name else sayable)
        except S3Error as error:
            if code_of(error) not in _NO_BULK:
                raise
            return list(keys)
        return [key for key in keys if key in left] if left else []

    def fetch(self, key: str, *, begin: int, size: int, etag: str, whole: bool) -> "Piece | None":
        """At most ``size`` bytes from ``begin``; None where the object ends before.

        With ``etag`` only of that version: another one is `PreconditionFailed`. ``whole`` is for the beginning of
        an object that is wanted whole: only with all of it comes its digest. If it is larger than ``size``, the
        rest is not read.
        """
        headers = {"x-amz-checksum-mode": "ENABLED"} if whole else {"Range": f"bytes={begin}-{begin + size - 1}"}
        if etag:
            headers["If-Match"] = etag
        try:
            answer = self._send("GET", key, headers=headers, stream=True)
        except S3Error as error:
            if code_of(error) == "InvalidRange":
                return None
            raise
        return _piece(answer, size, key)

    # listings

    def page(self, prefix: str, after: str) -> list[ObjectInfo]:
        """At most `PAGE` objects; fewer only at the end. Keys are as the bucket has them, with its prefix."""
        place = self._place
        found = self._client.list_objects(
            place.bucket,
            prefix=place.prefix + prefix,
            recursive=True,
            start_after=place.prefix + after if after else None,
        )
        return [
            ObjectInfo(
                key=(each.object_name or "").removeprefix(place.prefix),
                size=each.size or 0,
                modified_at=each.last_modified or datetime.fromtimestamp(0, UTC),
            )
            for each in islice(found, PAGE)
        ]

    def clock(self) -> datetime:
        """The store's time of day, to the second."""
        return _date(self._client._execute("HEAD", self._place.bucket).headers, "Date")

    # uploads of many parts

    def begin_upload(self, key: str, *, token: str) -> str:
        headers = {_TOKEN: token, "Content-Type": "application/octet-stream"}
        answer = self._send("POST", key, headers=headers, query={"uploads": ""})
        return _text(ET.fromstring(answer.data), "UploadId")

    def put_part(self, key: str, upload: str, number: int, data: bytes) -> str:
        """The part's ETag."""
        answer = self._send("PUT", key, data, query={"uploadId": upload, "partNumber": str(number)})
        return (answer.headers.get("ETag") or "").strip('"')

    def complete_upload(self, key: str, upload: str, etags: list[str], *, if_absent: bool) -> datetime:
        """When it was completed. An answer may be 200 and yet be an error: then it is raised as one."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{etag}&quot;</ETag></Part>"
            for number, etag in enumerate(etags, start=1)
        )
        body = f'<CompleteMultipartUpload xmlns="{_SPACE}">{parts}</CompleteMultipartUpload>'.encode()
        headers = {"Content-Type": "application/xml", **_condition(if_absent)}
        answer = self._send("POST", key, body, headers=headers, query={"uploadId": upload})
        if ET.fromstring(answer.data).tag.rpartition("}")[2] == "Error":
            raise S3Error.fromxml(answer)
        return _date(answer.headers, "Date")

    def abort_upload(self, key: str, upload: str) -> None:
        try:
            self._send("DELETE", key, query={"uploadId": upload})
        except S3Error as error:
            if code_of(error) != "NoSuchUpload":
                raise

    def unfinished(self) -> list[Unfinished]:
        """All uploads below the prefix that are not completed.

        MinIO takes a prefix for the whole key; without one it tells all that it has begun since its start.
        """
        found = list(self._uploads(self._place.prefix))
        if not found and self._place.prefix:
            found = list(self._uploads(""))
        ours = self._place.prefix
        return [
            Unfinished(key.removeprefix(ours), upload, at) for key, upload, at in found if key.startswith(ours)
        ]

    def _uploads(self, prefix: str) -> Iterator[tuple[str, str, datetime]]:
        query = {"uploads": "", "prefix": prefix, "max-uploads": str(PAGE), "encoding-type": "url"}
        while True:
            answer = ET.fromstring(self._client._execute("GET", self._place.bucket, query_params={**query}).data)
            for each in answer.iter(f"{{{_SPACE}}}Upload"):
                begun = datetime.fromisoformat(_text(each, "Initiated"))
                yield unquote_plus(_text(each, "Key")), _text(each, "UploadId"), begun
            if _text(answer, "IsTruncated") != "true":
                return
            query["key-marker"] = unquote_plus(_text(answer, "NextKeyMarker"))
            query["upload-id-marker"] = _text(answer, "NextUploadIdMarker")

    def _send(
        self,
        method: str,
        key: str,
        data: bytes | None = None,
        *,
        headers: dict[str, str] | None = None,
        query: dict[str, str] | None = None,
        stream: bool = False,
    ) -> BaseHTTPResponse:
        return self._client._execute(
            method,
            self._place.bucket,
            self._place.prefix + key,
            body=data,
            headers={**(headers or {})},
            query_params={**(query or {})},
            preload_content=not stream,
        )


@dataclass(frozen=True)
class Piece:
    """Bytes of an object, ``total`` of which there are in all."""

    data: bytes
    total: int
    etag: str


def _piece(answer: BaseHTTPResponse, size: int, key: str) -> Piece:
    """Its first ``size`` bytes; the connection is kept where that was all. Raises Corrupt."""
    length = int(answer.headers.get("Content-Length") or 0)
    try:
        data = answer.read(min(size, length)) if length else b""
    except BaseException:
        answer.close()
        raise
    if len(data) < length:
        answer.close()
    answer.release_conn()
    expected = _plain_sha256(answer)
    if answer.status == 200 and len(data) == length and expected not in ("", _sha256(data)):
        raise Corrupt(f"`{key}` is not what was stored: its SHA-256 differs")
    total = (answer.headers.get("Content-Range") or f"/{length}").rpartition("/")[2]
    return Piece(data, int(total), answer.headers.get("ETag") or "")


_SPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def _text(element: ET.Element, name: str) -> str:
    return element.findtext(f"{{{_SPACE}}}{name}") or element.findtext(name) or ""


def _sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def _condition(if_absent: bool) -> dict[str, str]:
    return {"If-None-Match": "*"} if if_absent else {}


def _date(headers: Mapping[str, str], name: str) -> datetime:
    said = headers.get(name)
    return parsedate_to_datetime(said).astimezone(UTC) if said else datetime.now(UTC)


def _plain_sha256(answer: BaseHTTPResponse) -> str:
    """Of the whole object, where the store tells it: of several parts it has only a digest of their digests."""
    said = answer.headers.get(_SHA256) or ""
    kind = answer.headers.get("x-amz-checksum-type") or "FULL_OBJECT"
    return said if kind == "FULL_OBJECT" and "-" not in said else ""
