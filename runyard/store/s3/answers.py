"""What the library raises, as an error of ours, and whether the same request may do better at once.

Only what the store's own code says decides; a status without a code comes from a proxy in between, and says no
more than that the store was not reached. A missing bucket is `StoreUnavailable`, as a missing folder is: it is
not an answer to the question whether an object is there, and runs under way wait until it is back.
"""

import ssl
from dataclasses import dataclass
from xml.etree.ElementTree import ParseError

from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError, IncompleteRead, NewConnectionError, SSLError, TimeoutError  # noqa: A004

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
from runyard.store.s3.place import Place

TRIES = 100
"""Of what may pass: as often as there is time for, see `Calls`. A store that restarts takes seconds."""

_RACED = 4
"""MinIO says "access denied" too where a folder was pruned under its hands, by a delete of its last object."""

RAISED = (MinioException, HTTPError, OSError, ParseError)
"""All that a request raises."""

_AGAIN_STATUS = (408, 429, 500, 502, 503, 504)
_BUSY = {
    "SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "InternalError", "RequestTimeout",
    "OperationAborted", "ConditionalRequestConflict", "Throttling", "TooManyRequests",
    "XMinioServerNotInitialized", "IncompleteBody",
}  # fmt: skip
_CHANGED = {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "InvalidDigest"}
_FULL = {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage"}
_DENIED = {
    "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "InvalidTokenId", "AllAccessDisabled", "AccountProblem", "TokenRefreshRequired",
}  # fmt: skip
_NO_KEY = {"KeyTooLongError", "XMinioInvalidObjectName", "InvalidURI"}
_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "Redirect", "TemporaryRedirect"}


@dataclass(frozen=True)
class Judgement:
    """``tries``: so often is the same request worth to be sent in all, one soon after the other."""

    error: RunyardError
    tries: int = 1


def judge(raised: Exception, doing: str, place: Place) -> Judgement:
    """What this means for whoever was ``doing`` something, such as "reading `a/b`"."""
    if isinstance(raised, S3Error):
        return _said(raised, doing, place)
    if isinstance(raised, ServerError | InvalidResponseError):
        status = raised.status_code if isinstance(raised, ServerError) else raised._code
        return _status(status, doing, place)
    return Judgement(_unreached(raised, f"{doing} in {place}"), 1 if _is_distrust(raised) else TRIES)


def code_of(error: S3Error) -> str:
    """The store's code. An answer without a body has none, but MinIO puts it into a header."""
    return str(error.response.headers.get("X-Minio-Error-Code") or error.code or "")


def _said(raised: S3Error, doing: str, place: Place) -> Judgement:
    code, where = code_of(raised), f"when {doing} in {place}"
    said = f"{code}: {(raised.message or '').strip()[:300]}"
    if code in _BUSY or raised.response.status in _AGAIN_STATUS:
        return Judgement(StoreUnavailable(f"the store is busy or ill ({said}) {where}"), TRIES)
    if code in _CHANGED:
        return Judgement(Corrupt(f"what arrived at the store is not what was sent ({said}) {where}"), TRIES)
    if code in _FULL or raised.response.status == 507:
        return Judgement(StoreFull(f"no room left ({said}) {where}"))
    refused = _refused(code, said, where, place) or StoreError(f"the store refused ({said}) {where}")
    return Judgement(refused, _RACED if code == "AccessDenied" else 1)


def _refused(code: str, said: str, where: str, place: Place) -> RunyardError | None:
    if code == "NoSuchKey":
        return NotFound(f"the store has no such object, {where}")
    if code == "PreconditionFailed":
        return Conflict(f"it is already there, and was to be written only if absent, {where}")
    if code == "XMinioObjectExistsAsDirectory":
        return Conflict(f"it cannot be written, since there are objects below that name, {where}")
    if code == "XMinioParentIsObject":
        return Conflict(f"it cannot be written, since one of its parts is an object, {where}")
    if code == "NoSuchBucket":
        return StoreUnavailable(
            f"there is no bucket `{place.bucket}` at {place.endpoint}: {where}",
            remedy=f"Create the bucket `{place.bucket}`, or set RUNYARD_S3_BUCKET to the right one.",
        )
    if code == "NoSuchUpload":
        return StoreUnavailable(f"somebody else gave up this unfinished upload, {where}")
    if code == "RequestTimeTooSkewed":
        return StoreDenied(
            f"the clocks of this machine and of the store differ by more than 15 minutes, {where}",
            remedy="Set this machine's clock (by NTP); `runyard doctor` says by how much it is wrong.",
        )
    if code in _DENIED:
        return StoreDenied(f"the store denies it ({said}) {where}", remedy=_remedy(code, place))
    if code in _REGION:
        return StoreError(f"{said}, {where}", remedy=f"Set RUNYARD_S3_REGION, which is `{place.region}` now.")
    return InvalidRequest(f"the store cannot hold a key like this ({said}) {where}") if code in _NO_KEY else None


def _remedy(code: str, place: Place) -> str:
    if code == "AccessDenied":
        return f"Give the account the right to get, put, delete and list in the bucket `{place.bucket}`."
    return "Check the access key and its secret; temporary ones may have expired."


def _status(status: int, doing: str, place: Place) -> Judgement:
    where = f"when {doing} in {place}"
    if status == 507:
        return Judgement(StoreFull(f"no room left {where}"))
    if status in (401, 403, 404, 407, *_AGAIN_STATUS):
        said = f"something in between answers {status}, which is not the store, {where}"
        return Judgement(StoreUnavailable(said), TRIES if status in _AGAIN_STATUS else 1)
    return Judgement(StoreError(f"the answer is {status}, and not one of S3's, {where}"))


def _is_distrust(raised: Exception) -> bool:
    """The certificate is not trusted, or there is no TLS at all: no further try will change that."""
    return isinstance(raised, SSLError | ssl.SSLError)


def _unreached(raised: Exception, where: str) -> StoreUnavailable:
    if _is_distrust(raised):
        return StoreUnavailable(
            f"the store's certificate is not trusted or it speaks no TLS ({_short(raised)}), when {where}",
            remedy="Set RUNYARD_S3_CA_FILE to the authority's certificate, or mend RUNYARD_S3_ENDPOINT.",
        )
    if isinstance(raised, NewConnectionError):
        return StoreUnavailable(f"the store takes no connection ({_short(raised)}), when {where}")
    if isinstance(raised, TimeoutError):
        return StoreUnavailable(f"the store is too slow, or stalled ({_short(raised)}), when {where}")
    if isinstance(raised, ParseError):
        return StoreUnavailable(f"what answers does not speak S3 ({_short(raised)}), when {where}")
    cut = "in the middle of an answer" if isinstance(raised, IncompleteRead) else "on the way"
    return StoreUnavailable(f"the connection was cut {cut} ({_short(raised)}), when {where}")


def _short(raised: Exception) -> str:
    return str(raised)[:200]
